//! `cargo xtask …`: see `cargo xtask --help`.

use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use xtask::lab::{Accel, Lab, LabOptions};
use xtask::{docs, fixture, generate, pages_perf, perf, store_perf, tidy};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tools")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Real VMs under the local libvirt, for trying and for tests
    #[command(subcommand)]
    Lab(LabTask),
    /// Documents that are generated from code
    Docs {
        #[command(flatten)]
        action: DocsAction,
    },
    /// What kvmetry costs on real VMs: the table of docs/PERFORMANCE.md
    Perf {
        /// Sizes of the lab, one after another
        #[arg(long, value_delimiter = ',', default_values_t = [10, 50, 100, 200])]
        sizes: Vec<usize>,
        /// The binary to measure
        #[arg(long, default_value = "target/release/kvmetry")]
        binary: PathBuf,
        /// With the embedded store and its port, not into a file alone
        #[arg(long)]
        store: bool,
        /// Cycles to measure at each size
        #[arg(long, default_value_t = 12)]
        cycles: usize,
    },
    /// What the embedded store costs: the figures of docs/PERFORMANCE.md; takes minutes and a few GB
    StorePerf {
        /// The binary to measure
        #[arg(long, default_value = "target/release/kvmetry")]
        binary: PathBuf,
        /// What other servers take of the disk for the same day, instead
        #[arg(long)]
        peers: bool,
    },
    /// What the dashboard's answers cost: the figures of docs/PERFORMANCE.md; takes two minutes
    PagesPerf {
        /// The binary to measure
        #[arg(long, default_value = "target/release/kvmetry")]
        binary: PathBuf,
    },
    /// A data directory as this release leaves it, for the tests of all later ones; once a version of the directory
    Fixture {
        /// The binary that writes it
        #[arg(long, default_value = "target/release/kvmetry")]
        binary: PathBuf,
        /// Where; it must not be there yet
        #[arg(long, default_value = "crates/kvmetry/tests/fixtures/data-dir-v1")]
        dir: PathBuf,
    },
    /// Made-up telemetry of VMs, as line protocol to stdout: the same options, the same lines
    Gen(generate::Options),
    /// Rules that no compiler checks: who depends on whom, what no tracked file may hold
    Tidy,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct DocsAction {
    /// Fail where a document is not what the code says
    #[arg(long)]
    check: bool,
    /// Write the documents
    #[arg(long)]
    write: bool,
}

#[derive(Subcommand)]
enum LabTask {
    /// Start VMs 1 to N; those that run already are left alone
    Up {
        /// How many
        count: usize,
        #[command(flatten)]
        options: LabArgs,
    },
    /// Remove the VMs of this prefix, their files, and the bridge if nothing else uses it
    Down {
        /// The VMs of every prefix that have their files in this directory
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        options: LabArgs,
    },
    /// List the VMs of this prefix
    Status {
        #[command(flatten)]
        options: LabArgs,
    },
}

#[derive(Args)]
struct LabArgs {
    /// VMs are called PREFIX-0001, PREFIX-0002, …
    #[arg(long)]
    prefix: Option<String>,
    /// Where images and the guest are kept
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The local libvirt to use
    #[arg(long)]
    uri: Option<String>,
    /// What the guests run with
    #[arg(long, value_enum, default_value = "auto")]
    accel: AccelArg,
    /// Seconds between two rounds of a guest's work (the balloon's statistics period); 0: never
    #[arg(long)]
    period: Option<u32>,
    /// The bridge for the first network card, made where it is missing
    #[arg(long)]
    bridge: Option<String>,
    /// VMs started at the same time
    #[arg(long)]
    workers: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum AccelArg {
    Auto,
    Kvm,
    Tcg,
}

impl LabArgs {
    fn lab(self) -> Result<Lab> {
        let usual = LabOptions::default();
        Lab::new(LabOptions {
            prefix: self.prefix.unwrap_or(usual.prefix),
            dir: self.dir.unwrap_or(usual.dir),
            uri: self.uri.unwrap_or(usual.uri),
            accel: match self.accel {
                AccelArg::Auto => Accel::Auto,
                AccelArg::Kvm => Accel::Kvm,
                AccelArg::Tcg => Accel::Tcg,
            },
            balloon_period: self.period.unwrap_or(usual.balloon_period),
            bridge: self.bridge.unwrap_or(usual.bridge),
            workers: self.workers.unwrap_or(usual.workers),
            quiet: false,
        })
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Lab(task) => run_lab(task),
        Task::Docs { action: DocsAction { write: true, .. } } => docs::write(),
        Task::Docs { .. } => docs::check(),
        Task::Perf { sizes, binary, store, cycles } => perf::run(&binary, &sizes, store, cycles),
        Task::StorePerf { peers: true, .. } => store_perf::peers(),
        Task::StorePerf { binary, .. } => store_perf::run(&binary),
        Task::PagesPerf { binary } => pages_perf::run(&binary),
        Task::Fixture { binary, dir } => fixture::run(&binary, &dir),
        Task::Gen(options) => generate::run(&options),
        Task::Tidy => tidy::tidy(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_lab(task: LabTask) -> Result<()> {
    match task {
        LabTask::Up { count, options } => {
            let lab = options.lab()?;
            lab.up(count)?;
            print_status(&lab)
        }
        LabTask::Down { all: true, options } => options.lab()?.down_all(),
        LabTask::Down { all: false, options } => options.lab()?.down(),
        LabTask::Status { options } => print_status(&options.lab()?),
    }
}

fn print_status(lab: &Lab) -> Result<()> {
    let vms = lab.status()?;
    let mut out = stdout().lock();
    for vm in &vms {
        let balloon = match vm.balloon_update {
            0 => "no balloon statistics".into(),
            at => format!("balloon statistics of {at}"),
        };
        writeln!(out, "{}  {:8}  {}  {balloon}", vm.uuid, vm.state, vm.name)?;
    }
    let count = |test: &dyn Fn(&&xtask::lab::VmStatus) -> bool| vms.iter().filter(test).count();
    let running = count(&|vm| vm.state == "running");
    let answering = count(&|vm| vm.balloon_update > 0);
    writeln!(out, "{} VMs, {running} running, {answering} with balloon statistics", vms.len())?;
    Ok(())
}
