//! `cargo xtask gen`: telemetry of made-up VMs as line protocol, for trying, for load and for measuring.

use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use telemetry::workload::{self, Workload};

/// What is generated. Every cycle's lines are those that `kvmetry run` writes.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// VMs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(workload::MAX_VMS)))]
    pub vms: u32,
    /// NICs of each VM
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=i64::from(workload::MAX_DEVICES)))]
    pub nics: u32,
    /// Disks of each VM
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=i64::from(workload::MAX_DEVICES)))]
    pub disks: u32,
    /// Days; a part of one will do
    #[arg(long, default_value_t = 1.0)]
    pub days: f64,
    /// Between two cycles
    #[arg(long, default_value = "5s", value_parser = interval)]
    pub interval: Duration,
    /// Between two reports of a guest on its memory; the interval if not given
    #[arg(long, value_parser = humantime::parse_duration)]
    pub balloon_period: Option<Duration>,
    /// Another seed, other VMs
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The first cycle
    #[arg(long, default_value = "2026-01-01T00:00:00Z", value_parser = humantime::parse_rfc3339_weak)]
    pub start: SystemTime,
    /// Cycles begin up to 4 ms after their tick, as timers wake, and carry that moment: no time is round
    #[arg(long)]
    pub jitter: bool,
    /// The tag `host`
    #[arg(long, default_value_t = workload::Options::default().host)]
    pub host: String,
}

/// How late a cycle may begin, ns.
const JITTER_NS: u64 = 4_000_000;

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval >= Duration::from_millis(1) => Ok(interval),
        Ok(_) => Err("at least 1ms".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Writes the lines to stdout. Ends well where nobody reads on.
///
/// # Errors
/// Stdout cannot be written; the first cycle is out of range.
pub fn run(options: &Options) -> Result<()> {
    let since_1970 = options.start.duration_since(UNIX_EPOCH).context("--start is before 1970")?;
    let start_ns = i64::try_from(since_1970.as_nanos()).context("--start is after 2262")?;
    let cycles = (options.days.max(0.0) * 86_400.0 / options.interval.as_secs_f64()).round() as u64;
    let mut workload = Workload::new(workload::Options {
        seed: options.seed,
        host: options.host.clone(),
        vms: options.vms,
        nics: options.nics,
        disks: options.disks,
        interval: options.interval,
        balloon_period: options.balloon_period.unwrap_or(options.interval),
        start_ns,
        jitter_ns: if options.jitter { JITTER_NS } else { 0 },
    });
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    let mut lines = Vec::new();
    for _ in 0..cycles {
        lines.clear();
        workload.cycle(&mut lines);
        match out.write_all(&lines) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("writing to stdout")?,
        }
    }
    match out.flush() {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        flushed => flushed.context("writing to stdout"),
    }
}
