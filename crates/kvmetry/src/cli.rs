//! The command line.
//!
//! Flags are few on purpose: what is set once stands in the file, what is tried out stands here.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Flags;

/// All went well, or the program was asked to end and did.
pub(crate) const EXIT_OK: u8 = 0;
/// Something failed while running, or `check` found something that does not work.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong; nothing was started. (clap's own exit code, too.)
pub(crate) const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  kvmetry once --format table                     what every VM of this host does now
  kvmetry check                                   what works, what does not, what to do about it
  kvmetry run --output - --interval 2s            line protocol on stdout, every 2 seconds
  kvmetry run --influxdb http://127.0.0.1:8181    into InfluxDB 3
  kvmetry run --uri qemu+ssh://root@kvm1/system --uri qemu+ssh://root@kvm2/system
  kvmetry config > kvmetry.toml                   every setting, with unit, default and reason

Environment:
  KVMETRY_SECTION_KEY       any setting of the configuration, such as KVMETRY_COLLECT_INTERVAL=10s
  KVMETRY_INFLUXDB_TOKEN    the token of InfluxDB (never in a URL or an argument)
  KVMETRY_LOG               error, warn, info, debug or trace [default: info for run, warn for the others]

Exit codes:
  0  all went well
  1  something failed
  2  the command line or the configuration is wrong";

const RUN_EXAMPLES: &str = "\
Examples:
  kvmetry run                                         what is seen, a line a cycle
  kvmetry run --output - --interval 2s                line protocol on stdout
  kvmetry run --output file:/var/log/vms.lp           into a file; rename it and a new one is begun
  kvmetry run --influxdb http://127.0.0.1:8181        into InfluxDB 3
  kvmetry run --uri qemu+ssh://root@kvm1/system --uri qemu+ssh://root@kvm2/system

SIGINT and SIGTERM end it within 2 seconds.";

const ONCE_EXAMPLES: &str = "\
Examples:
  kvmetry once                          line protocol
  kvmetry once --format table           for people; takes a second, to see rates
  kvmetry once --format json | jq 'select(.measurement == \"vm_totals\").fields'";

const CHECK_EXAMPLES: &str = "\
Examples:
  kvmetry check
  kvmetry check --config ./kvmetry.toml
  kvmetry check --uri qemu+ssh://root@kvm1/system --influxdb http://127.0.0.1:8181

Exit code 1 if something does not work.";

const CONFIG_EXAMPLES: &str = "\
Example:
  kvmetry config > kvmetry.toml";

/// Telemetry for KVM/libvirt virtual machines: every VM and its devices, every few seconds.
#[derive(Clone, Debug, Parser)]
#[command(name = "kvmetry", version, after_help = EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Clone, Debug)]
struct Common {
    /// Configuration file [default: /etc/kvmetry/kvmetry.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Hypervisor to read, in place of the configured ones; may be repeated [default: qemu:///system]
    #[arg(long = "uri", global = true, value_name = "URI")]
    uris: Vec<String>,
    /// Where what must survive is kept [default: /var/lib/kvmetry for root, ~/.local/state/kvmetry for others]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Read all VMs every few seconds, until it is told to end
    #[command(after_help = RUN_EXAMPLES)]
    Run(Run),
    /// Read all VMs once and print what was read
    #[command(after_help = ONCE_EXAMPLES)]
    Once(Once),
    /// Say what works, what does not, and what to do about it
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Print the configuration with every key, its default and its reason
    #[command(after_help = CONFIG_EXAMPLES)]
    Config,
}

/// The flags of `run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Run {
    /// Time between two readings, such as 5s, in place of the configured ones [default: 5s]
    #[arg(long, value_name = "DURATION")]
    interval: Option<String>,
    /// Where to print line protocol: - (stdout) or file:PATH; may be repeated
    #[arg(long = "output", value_name = "-|file:PATH", allow_hyphen_values = true)]
    outputs: Vec<String>,
    /// InfluxDB server to write to, in place of the configured ones, such as http://127.0.0.1:8181
    #[arg(long, value_name = "URL")]
    influxdb: Option<String>,
}

/// The flags of `once`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Once {
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Line)]
    pub(crate) format: Format,
}

/// The flags of `check`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Check {
    /// InfluxDB server to try, in place of the configured ones
    #[arg(long, value_name = "URL")]
    influxdb: Option<String>,
}

/// How `once` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Line protocol, as `run` writes it
    Line,
    /// A JSON object a point, one a line
    Json,
    /// A table for people
    Table,
}

impl Cli {
    /// What the command line says about the configuration.
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = Flags {
            config: self.common.config.clone(),
            uris: self.common.uris.clone(),
            data_dir: self.common.data_dir.clone(),
            ..Flags::default()
        };
        match &self.command {
            Command::Run(run) => {
                flags.interval.clone_from(&run.interval);
                flags.outputs.clone_from(&run.outputs);
                flags.influxdb.clone_from(&run.influxdb);
            }
            Command::Check(check) => flags.influxdb.clone_from(&check.influxdb),
            Command::Once(_) | Command::Config => {}
        }
        flags
    }
}

/// `kvmetry config`: the defaults, whatever a configuration says.
pub(crate) fn print_config(flags: &Flags) -> ExitCode {
    if flags.config.is_some() || !flags.uris.is_empty() || flags.data_dir.is_some() {
        let error = "config prints the defaults and reads nothing; to try a configuration: kvmetry check --config FILE";
        return fail(EXIT_USAGE, error);
    }
    ended(print(crate::config::sample().as_bytes()).map(|()| true))
}

/// Writes to standard output.
///
/// # Errors
/// Standard output that cannot be written; [`ended`] knows that a reader who has gone is no failure.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(bytes).and_then(|()| stdout.flush());
    printed.context("standard output cannot be written")
}

/// The exit code of a command that ended: true if all it looked at was well.
pub(crate) fn ended(result: anyhow::Result<bool>) -> ExitCode {
    let reader_has_gone = |error: &anyhow::Error| {
        let source = error.downcast_ref::<io::Error>();
        source.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match result {
        Ok(true) => ExitCode::from(EXIT_OK),
        Ok(false) => ExitCode::from(EXIT_FAILED),
        // Whoever read it has seen enough.
        Err(error) if reader_has_gone(&error) => ExitCode::from(EXIT_OK),
        Err(error) => fail(EXIT_FAILED, format_args!("{error:#}")),
    }
}

/// Says on standard error why the program ends.
pub(crate) fn fail(code: u8, error: impl std::fmt::Display) -> ExitCode {
    // Whoever reads it may have gone: then the exit code says it.
    let _ = writeln!(io::stderr(), "kvmetry: {error}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// A command line gives these flags, or an error with this part.
    #[track_caller]
    fn check(line: &str, expect: Result<&str, &str>) {
        let parsed = Cli::try_parse_from(line.split_whitespace());
        match (parsed, expect) {
            (Ok(cli), Ok(expect)) => {
                let flags = cli.flags();
                let found = format!(
                    "{:?} {:?} {:?} {:?} {:?}",
                    flags.config, flags.uris, flags.interval, flags.outputs, flags.influxdb
                );
                assert_eq!(found, expect);
            }
            (Err(error), Err(part)) => {
                assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
                assert!(error.to_string().contains(part), "{error}");
            }
            (found, expect) => panic!("{line}: {found:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn flags_become_configuration() {
        check("kvmetry run", Ok("None [] None [] None"));
        check(
            "kvmetry --config a.toml run --uri test:///default --uri xen:/// --interval 2s --output - --output file:x",
            Ok(r#"Some("a.toml") ["test:///default", "xen:///"] Some("2s") ["-", "file:x"] None"#),
        );
        check("kvmetry once --config a.toml --format json", Ok(r#"Some("a.toml") [] None [] None"#));
        check("kvmetry check --influxdb http://a:1", Ok(r#"None [] None [] Some("http://a:1")"#));
        check("kvmetry", Err("Usage"));
        check("kvmetry once --output -", Err("--output"));
        check("kvmetry once --format xml", Err("possible values: line, json, table"));
        check("kvmetry runn", Err("run"));
    }

    #[test]
    fn the_help_names_what_a_person_looks_for() {
        use clap::CommandFactory;
        let help = Cli::command().render_help().to_string();
        for part in ["run", "once", "check", "config", "--uri", "Exit codes", "KVMETRY_INFLUXDB_TOKEN"] {
            assert!(help.contains(part), "{part} is missing in:\n{help}");
        }
    }
}
