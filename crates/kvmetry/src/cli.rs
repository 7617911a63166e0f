//! The command line.
//!
//! Flags are few on purpose: what is set once stands in the file, what is tried out stands here.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::Targets;

#[cfg(feature = "store")]
use crate::ask;
use crate::config::{Config, Flags};
use crate::http::tokens::Scope;
use crate::logging;
use crate::{check, once, pipeline, token};

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
  kvmetry run                                     every VM every 5 seconds, into the embedded store
  kvmetry query 'SHOW TABLES'                      ask the store in SQL
  kvmetry run --output - --interval 2s            line protocol on stdout, too, every 2 seconds
  kvmetry run --influxdb http://127.0.0.1:8181    into InfluxDB 3
  kvmetry run --uri qemu+ssh://root@kvm1/system --uri qemu+ssh://root@kvm2/system
  kvmetry token --scope write --name kvm1         who may write to this one's HTTP port
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
  kvmetry run                                         every point into the embedded store; ask with kvmetry query
  kvmetry run --no-store --listen off                 what is seen, a line a cycle
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

const SERVE_EXAMPLES: &str = "\
Examples:
  kvmetry serve                                       on loopback, without tokens
  kvmetry token --scope write --name kvm1             a token for the collector of kvm1, then
  kvmetry serve --listen 0.0.0.0:8177                 a server for others

docs/API.md has every endpoint with an example.";

const TOKEN_EXAMPLES: &str = "\
Examples:
  kvmetry token --scope write --name kvm1 > kvm1.token
  kvmetry token --scope read --name grafana
  kvmetry token list
  kvmetry token revoke kvm1

The token is shown once: what is kept is its hash. A running server sees new and revoked tokens at once.
Once there is a token, everybody needs one, also on loopback.";

#[cfg(feature = "store")]
const QUERY_EXAMPLES: &str = "\
Examples:
  kvmetry query 'SHOW TABLES'
  kvmetry query 'SELECT time, name, memrss FROM vm_totals ORDER BY time DESC LIMIT 10'
  kvmetry query --format csv 'SELECT * FROM vm_totals_1h' > hours.csv

Beside a running kvmetry it asks through its HTTP port, with the token in KVMETRY_TOKEN if that demands one.";

#[cfg(feature = "store")]
const COMPACT_EXAMPLES: &str = "\
Example:
  kvmetry compact --data-dir /var/lib/kvmetry && duckdb -c \"SELECT count(*) FROM '/var/lib/kvmetry/store/kvmetry/vm_totals/*/*.parquet'\"";

#[cfg(feature = "store")]
const BACKUP_EXAMPLES: &str = "\
Examples:
  kvmetry backup /backup/kvmetry-monday             also while kvmetry runs (token in KVMETRY_TOKEN if demanded)
  kvmetry query --data-dir /backup/kvmetry-monday 'SHOW TABLES'

A backup holds every point that was acknowledged before, the databases with their retentions, and the hashes of the
tokens. It is a data directory of its own. On the same file system it takes no room at first (hard links): only what
retention and compaction remove later stays in it. A file that the store has lost is named and missing (exit code 1).";

#[cfg(feature = "store")]
const RESTORE_EXAMPLES: &str = "\
Example, with kvmetry stopped:
  kvmetry restore /backup/kvmetry-monday

Every file is read and compared with its checksum; what is damaged is named and left out (exit code 1).
The backup stays as it is.";

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
    /// Take lines and answer queries without collecting: the central server
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Ask the embedded store in SQL
    #[cfg(feature = "store")]
    #[command(after_help = QUERY_EXAMPLES)]
    Query(Query),
    /// Write all points into Parquet files now, one a day and table
    #[cfg(feature = "store")]
    #[command(after_help = COMPACT_EXAMPLES)]
    Compact,
    /// Make a backup of the store, also while kvmetry runs
    #[cfg(feature = "store")]
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup(Backup),
    /// Fill the data directory from a backup
    #[cfg(feature = "store")]
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(Restore),
    /// Make a token for the HTTP port, list them, or revoke one
    #[command(after_help = TOKEN_EXAMPLES)]
    Token(Token),
}

/// The flags of whatever opens the HTTP port.
#[derive(Args, Clone, Debug)]
pub(crate) struct Port {
    /// Address and port of the HTTP port, or off [default: 127.0.0.1:8177]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Whoever reaches the HTTP port may read and write all of it, whatever tokens there are
    #[arg(long)]
    insecure_no_auth: bool,
    /// Keep no points here, only what is still to be delivered
    #[arg(long)]
    no_store: bool,
}

/// The flags of `serve`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Serve {
    #[command(flatten)]
    port: Port,
}

/// The flags of `query`.
#[cfg(feature = "store")]
#[derive(Args, Clone, Debug)]
pub(crate) struct Query {
    /// The question; names with upper-case letters need double quotes
    #[arg(value_name = "SQL")]
    pub(crate) sql: String,
    /// The database to ask [default: kvmetry]
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = QueryFormat::Table)]
    pub(crate) format: QueryFormat,
}

/// The flags of `backup`.
#[cfg(feature = "store")]
#[derive(Args, Clone, Debug)]
pub(crate) struct Backup {
    /// Where to put it: a folder that is not there yet, or is empty
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// The flags of `restore`.
#[cfg(feature = "store")]
#[derive(Args, Clone, Debug)]
pub(crate) struct Restore {
    /// What `kvmetry backup` made
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Give up what the data directory holds, also what is still to be delivered
    #[arg(long)]
    pub(crate) replace: bool,
}

/// How `query` prints.
#[cfg(feature = "store")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QueryFormat {
    /// A table for people
    Table,
    /// With a header line
    Csv,
    /// One array of objects
    Json,
    /// An object a line
    Jsonl,
    /// A Parquet file
    Parquet,
}

/// The flags of `token`.
#[derive(Args, Clone, Debug)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct Token {
    /// What it is good for; may be repeated
    #[arg(long = "scope", value_enum, value_name = "SCOPE", required = true)]
    pub(crate) scopes: Vec<Scope>,
    /// What to call it: who uses it [default: its scope and a number]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(subcommand)]
    pub(crate) action: Option<TokenAction>,
}

/// What else to do with tokens.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TokenAction {
    /// Names, scopes and dates of all tokens
    List,
    /// Take a token away: it is refused from now on
    Revoke {
        /// The token's name
        name: String,
    },
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
    #[command(flatten)]
    port: Port,
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
                run.port.apply(&mut flags);
            }
            Command::Serve(serve) => serve.port.apply(&mut flags),
            Command::Check(check) => flags.influxdb.clone_from(&check.influxdb),
            Command::Once(_) | Command::Config | Command::Token(_) => {}
            #[cfg(feature = "store")]
            Command::Query(_) | Command::Compact | Command::Backup(_) | Command::Restore(_) => {}
        }
        flags
    }

    /// What is logged unless the environment says otherwise.
    pub(crate) fn log_levels(&self) -> Targets {
        match self.command {
            Command::Run(_) | Command::Serve(_) => logging::of_run(),
            _ => logging::of_others(),
        }
    }
}

impl Port {
    fn apply(&self, flags: &mut Flags) {
        flags.listen.clone_from(&self.listen);
        flags.insecure_no_auth = self.insecure_no_auth;
        flags.no_store = self.no_store;
    }
}

/// Does what the command says. True if all it looked at was well.
///
/// # Errors
/// Why it could not.
pub(crate) async fn execute(command: Command, config: Config) -> anyhow::Result<bool> {
    match command {
        Command::Run(_) => pipeline::run(config).await.map(|()| true),
        Command::Serve(_) => pipeline::serve(config).await.map(|()| true),
        Command::Once(once) => once::once(&config, once.format).await.map(|()| true),
        Command::Check(_) => check::check(&config).await,
        Command::Token(token) => token::token(&config, &token).map(|()| true),
        #[cfg(feature = "store")]
        Command::Query(query) => ask::query(&config, &query).await,
        #[cfg(feature = "store")]
        Command::Compact => ask::compact(&config).await,
        #[cfg(feature = "store")]
        Command::Backup(backup) => ask::backup(&config, &backup.dir).await,
        #[cfg(feature = "store")]
        Command::Restore(restore) => ask::restore(&config, &restore),
        // Printed without reading a configuration.
        Command::Config => Ok(true),
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
        check("kvmetry run --listen off --insecure-no-auth", Ok("None [] None [] None"));
        check("kvmetry serve --listen [::]:1", Ok("None [] None [] None"));
        check("kvmetry token --scope write --scope read --name a", Ok("None [] None [] None"));
        check("kvmetry token list", Ok("None [] None [] None"));
        check("kvmetry token revoke a", Ok("None [] None [] None"));
        check("kvmetry token", Err("--scope <SCOPE>"));
        check("kvmetry token --name a", Err("--scope <SCOPE>"));
        check("kvmetry token --scope all", Err("possible values: write, read, admin"));
        check("kvmetry token revoke", Err("<NAME>"));
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
