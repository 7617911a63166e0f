//! kvmetry: telemetry for KVM/libvirt virtual machines. ARCHITECTURE.md has the map; start in `pipeline.rs`.

#[cfg(feature = "store")]
mod ask;
mod backoff;
#[cfg(feature = "store")]
mod backup;
mod check;
mod cli;
mod clock;
mod collect;
mod config;
mod datadir;
mod deliver;
#[cfg(feature = "store")]
mod embedded;
mod entry;
mod http;
mod keep;
mod logging;
mod losses;
mod once;
mod output;
mod pipeline;
mod schedule;
mod serve;
mod table;
mod token;
mod vital;
mod write;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, ended, fail};
use crate::config::Config;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logging::init(cli.log_levels()) {
        return fail(cli::EXIT_USAGE, error);
    }
    if matches!(cli.command, Command::Config) {
        return cli::print_config(&cli.flags());
    }
    let config = match Config::load(&cli.flags()) {
        Ok(config) => config,
        Err(error) => return fail(cli::EXIT_USAGE, error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(cli::EXIT_FAILED, error),
    };
    let result = runtime.block_on(cli::execute(cli.command, config));
    // A look-up in the DNS that hangs must not hold up the end.
    runtime.shutdown_background();
    ended(result)
}
