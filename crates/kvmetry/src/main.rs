//! kvmetry: telemetry for KVM/libvirt virtual machines. See ARCHITECTURE.md for the map; start in `pipeline.rs`.

#![forbid(unsafe_code)]

mod cli;
mod clock;
mod collect;
mod config;
mod logging;
mod once;
mod schedule;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::config::Config;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logging::init() {
        eprintln!("kvmetry: {error}");
        return ExitCode::from(cli::EXIT_USAGE);
    }
    let config = match Config::load(&cli.flags()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(cli::EXIT_USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match cli.command {
            Command::Once(once) => once::once(&config, once.format).await,
            _ => ExitCode::from(0),
        }
    })
}
