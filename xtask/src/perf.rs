//! What kvmetry costs on real VMs, and what libvirtd itself does: the numbers of docs/PERFORMANCE.md.
//!
//! For each size of the lab, in one run on one machine: `kvmetry run` into a file at its default interval, and
//! between its cycles one unsharded bulk call of the six groups. Ratios hold; absolute times are this machine's.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use libvirt_rpc::{Access, Budget, Connection, DomainRef, Groups, Options, StatsFlags, StatsVisitor, Value};

use crate::lab::{Lab, LabOptions};

/// kvmetry's default interval, seconds.
const INTERVAL: u64 = 5;
/// The six groups: state, cpu-total, balloon, vcpu, interface, block.
const SIX_GROUPS: Groups = Groups(0x3f);

/// One size's figures. Times are medians.
#[derive(Debug)]
struct Figures {
    vms: usize,
    /// CPU of the kvmetry process a cycle, ms, and its memory, MiB.
    cpu_ms: f64,
    rss_mib: f64,
    /// Wall time of a cycle and of one bulk call, ms.
    cycle_ms: f64,
    bulk_ms: f64,
    /// libvirtd's CPU a cycle, and for one bulk call, ms.
    daemon_cycle_ms: f64,
    daemon_bulk_ms: f64,
    /// From start to the first line in the file, less the first cycle's own time, ms.
    cold_start_ms: f64,
    lines: u64,
}

/// Brings the lab to each of `sizes` in turn, measures `binary` over so many cycles, after two that do not count, and
/// prints a Markdown table. `store`: with the embedded store; what a flush costs is in it from 120 cycles on.
///
/// # Errors
/// The lab cannot be made, kvmetry does not write, libvirtd does not answer.
pub fn run(binary: &Path, sizes: &[usize], store: bool, count: usize) -> Result<()> {
    let lab = Lab::new(LabOptions { prefix: "kvmetry-perf".into(), ..LabOptions::default() })?.guard();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = Vec::new();
    for &size in sizes {
        let vms = lab.up(size)?;
        lab.wait_for_answers(&vms)?;
        all.push(runtime.block_on(measure(binary, size, store, count))?);
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "| VMs | lines | kvmetry CPU a cycle, ms | RSS, MiB | cycle, ms | one bulk call, ms | ratio | \
         libvirtd CPU a cycle, ms | libvirtd CPU a bulk call, ms | first line after, ms |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
    for f in &all {
        writeln!(
            out,
            "| {} | {} | {:.2} | {:.1} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.0} |",
            f.vms,
            f.lines,
            f.cpu_ms,
            f.rss_mib,
            f.cycle_ms,
            f.bulk_ms,
            f.cycle_ms / f.bulk_ms,
            f.daemon_cycle_ms,
            f.daemon_bulk_ms,
            f.cold_start_ms
        )?;
    }
    if let (Some(first), Some(last)) = (all.first(), all.last())
        && last.vms > first.vms
    {
        let slope = (last.cpu_ms - first.cpu_ms) / (last.vms - first.vms) as f64;
        writeln!(
            out,
            "\nkvmetry's CPU a cycle: {:.2} ms and {:.4} ms a VM",
            first.cpu_ms - slope * first.vms as f64,
            slope
        )?;
    }
    Ok(())
}

async fn measure(binary: &Path, vms: usize, store: bool, count: usize) -> Result<Figures> {
    let connection = connect().await?;
    let daemon = connection.daemon_process().context("libvirtd's process is not known")?.pid as u32;
    let file = std::env::temp_dir().join(format!("kvmetry-perf-{}.lp", std::process::id()));
    let _ = fs::remove_file(&file);

    let started = Instant::now();
    let data = tempfile::tempdir()?;
    let mut kvmetry = Process::start(binary, &file, store.then(|| data.path()))?;
    let first = loop {
        if let Some(cycle) = cycles(&file)?.first() {
            break started.elapsed().as_secs_f64() * 1e3 - cycle.ms;
        }
        if started.elapsed() > Duration::from_secs(60) {
            bail!("no line within a minute: {}", kvmetry.failure());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    wait_for(&file, 3).await?;

    let mut bulk = Vec::new();
    let mut daemon_cycles = Vec::new();
    let mut daemon_bulk = Vec::new();
    let begun = cycles(&file)?.len();
    let cpu_before = cpu_ns(kvmetry.0.id())?;
    for n in 1..=count {
        // From just after one cycle to just after the next: nothing else asks libvirtd meanwhile.
        let before = cpu_ns(daemon)?;
        wait_for(&file, begun + n).await?;
        daemon_cycles.push((cpu_ns(daemon)? - before) as f64 / 1e6);
        if n % 3 == 0 {
            let (before, sent) = (cpu_ns(daemon)?, Instant::now());
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            connection.stats(&[], SIX_GROUPS, StatsFlags::ACTIVE, deadline, &mut Unread).await?;
            bulk.push(sent.elapsed().as_secs_f64() * 1e3);
            daemon_bulk.push((cpu_ns(daemon)? - before) as f64 / 1e6);
        }
    }
    let cpu = cpu_ns(kvmetry.0.id())? - cpu_before;
    let measured = &cycles(&file)?[begun..];
    let figures = Figures {
        vms,
        cpu_ms: cpu as f64 / 1e6 / measured.len() as f64,
        rss_mib: rss_kib(kvmetry.0.id())? as f64 / 1024.0,
        cycle_ms: median(measured.iter().map(|cycle| cycle.ms).collect()),
        bulk_ms: median(bulk),
        daemon_cycle_ms: median(daemon_cycles),
        daemon_bulk_ms: median(daemon_bulk),
        cold_start_ms: first,
        lines: measured.iter().map(|cycle| cycle.lines).max().unwrap_or(0),
    };
    kvmetry.stop()?;
    connection.close().await;
    fs::remove_file(&file)?;
    eprintln!("{figures:?}");
    Ok(figures)
}

async fn connect() -> Result<Connection> {
    let options = Options {
        access: Access::ReadOnly,
        connect_deadline: Duration::from_secs(5),
        call_deadline: Duration::from_secs(5),
        budget: Budget::new(1),
    };
    Ok(Connection::open(&"qemu:///system".parse()?, options).await?)
}

/// One line of `kvmetry_collector`.
struct Cycle {
    ms: f64,
    lines: u64,
}

fn cycles(file: &Path) -> Result<Vec<Cycle>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let field =
        |line: &str, name: &str| -> Option<u64> { line.split_once(name)?.1.split_once('i')?.0.parse().ok() };
    text.lines()
        .filter(|line| line.starts_with("kvmetry_collector"))
        .map(|line| {
            let ns = field(line, "cycle_ns=").context("no cycle_ns")?;
            Ok(Cycle { ms: ns as f64 / 1e6, lines: field(line, ",lines=").context("no lines")? })
        })
        .collect()
}

/// Waits for the file to hold so many cycles.
async fn wait_for(file: &Path, count: usize) -> Result<()> {
    let patience = Instant::now() + Duration::from_secs(INTERVAL * 4);
    while cycles(file)?.len() < count {
        if Instant::now() > patience {
            bail!("kvmetry has not written cycle {count} within {} s", INTERVAL * 4);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// CPU time of all threads of a process, ns (`schedstat` has it exact; `stat` only in ticks of 10 ms).
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(total)
}

fn rss_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `kvmetry run`, ended when it is dropped.
struct Process(Child);

impl Process {
    /// With the store in this folder, or without one.
    fn start(binary: &Path, file: &Path, store: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(binary);
        match store {
            Some(dir) => command.args(["run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir),
            None => command.args(["run", "--no-store", "--listen", "off"]),
        };
        let child = command
            .args(["--uri", "qemu:///system", "--output"])
            .arg(format!("file:{}", file.display()))
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("{} cannot be started: cargo build --release -p kvmetry", binary.display())
            })?;
        Ok(Self(child))
    }

    fn failure(&mut self) -> String {
        match self.0.try_wait() {
            Ok(Some(status)) => format!("it ended with {status}"),
            _ => "it still runs".into(),
        }
    }

    fn stop(&mut self) -> Result<()> {
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks at nothing: only libvirtd's time is of interest.
struct Unread;

impl StatsVisitor for Unread {
    fn begin(&mut self, _: DomainRef<'_>) {}
    fn param(&mut self, _: &str, _: Value<'_>) {}
    fn end(&mut self) {}
}
