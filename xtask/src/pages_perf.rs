//! What the dashboard's answers cost: the numbers on its server in docs/PERFORMANCE.md. Through `kvmetry serve`, as a browser
//! sees it, with made-up telemetry (`telemetry::workload`) up to this moment.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use telemetry::workload::{Options, Workload};

use crate::store_perf::{Server, say};

/// Of the fleet page.
const VMS: u32 = 1_000;
/// How long they have run.
const FLEET: Duration = Duration::from_secs(15 * 60);
/// How long the VMs of the VM page have run.
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Cycles of which the fleet is asked for; the first two do not count.
const CYCLES: usize = 14;
/// How often a VM's page is asked for; the first five do not count.
const PAGES: usize = 35;
/// Bytes of one write, at least.
const BATCH_BYTES: usize = 4 << 20;
const WRITE: &str = "/api/v3/write_lp?db=kvmetry&precision=ns";

/// Measures this binary and prints what it found.
///
/// # Errors
/// It does not start, or does not answer as it should.
pub fn run(binary: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut server = Server::start(binary, dir.path())?;
    let usual = Options::default();
    let interval = usual.interval;
    let tick = i64::try_from(interval.as_nanos())?;
    let ago = |time: Duration| anyhow::Ok(now_ns()? / tick * tick - i64::try_from(time.as_nanos())?);
    let few = Options { seed: 2, host: "kvm-02".to_owned(), vms: 3, start_ns: ago(DAY)?, ..usual.clone() };
    server.feed("kvmetry", few, DAY)?;
    server.post("/api/v3/compact", b"")?;
    let begun = Instant::now();
    let mut fleet = Workload::new(Options { vms: VMS, start_ns: ago(FLEET)?, ..usual });
    let mut fed = 0;
    let mut catch_up = |server: &mut Server| -> Result<()> {
        let mut body = Vec::new();
        while fleet.next_tick_ns() <= now_ns()? {
            fed += u64::from(fleet.cycle(&mut body));
            if body.len() > BATCH_BYTES {
                server.post(WRITE, &body)?;
                body.clear();
            }
        }
        if !body.is_empty() {
            server.post(WRITE, &body)?;
        }
        Ok(())
    };
    catch_up(&mut server)?;
    say(&format!("{VMS} VMs for {FLEET:?} are written in {:.1} s", begun.elapsed().as_secs_f64()))?;

    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..CYCLES {
        // A cycle is written when it is due; what is asked then is worked out anew.
        thread::sleep(interval);
        catch_up(&mut server)?;
        let begun = Instant::now();
        let answer = server.get("/api/fleet")?;
        times.push(begun.elapsed());
        bytes = answer.len();
        let listed = answer.matches("\"uuid\":").count();
        if listed < VMS as usize {
            bail!("the fleet has {listed} VMs");
        }
    }
    tell(&format!("fleet of {VMS} VMs, {bytes} bytes"), &mut times[2..])?;
    // From memory, for whoever asks within the second.
    let mut times = Vec::new();
    for _ in 0..PAGES {
        let begun = Instant::now();
        server.get("/api/fleet")?;
        times.push(begun.elapsed());
    }
    tell("the same again", &mut times[5..])?;
    let begun = Instant::now();
    let history = server.get("/api/fleet/history")?;
    say(&format!(
        "15 minutes of CPU of all of them: {:.1} ms, {} bytes",
        begun.elapsed().as_secs_f64() * 1e3,
        history.len()
    ))?;

    let uuid = server.ask("kvmetry", "SELECT uuid FROM vm_totals WHERE host = 'kvm-02' LIMIT 1")?;
    let uuid = uuid.lines().nth(1).context("no VM")?.to_owned();
    for (what, span, points) in [
        ("24 h of 5 s in 800 points", DAY, 800),
        ("24 h of 5 s in 1,600 points", DAY, 1_600),
        ("1 h, every reading", Duration::from_secs(3_600), 800),
    ] {
        let mut times = Vec::new();
        let (mut bytes, mut panels) = (0, 0);
        for _ in 0..PAGES {
            let to = now_ns()? / 1_000_000;
            let from = to - i64::try_from(span.as_millis())?;
            // The fleet that it needs is another question.
            server.get("/api/fleet")?;
            let begun = Instant::now();
            let page = server.get(&format!("/api/vm/{uuid}?from={from}&to={to}&points={points}"))?;
            times.push(begun.elapsed());
            (bytes, panels) = (page.len(), page.matches("\"sql\":").count());
        }
        tell(&format!("a VM's page, {what}: {panels} charts, {bytes} bytes"), &mut times[5..])?;
    }
    Ok(())
}

fn tell(what: &str, times: &mut [Duration]) -> Result<()> {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    say(&format!("{what}: p50 {:.1} ms, p90 {:.1} ms", ms(times.len() / 2), ms(times.len() * 9 / 10)))
}

#[expect(clippy::disallowed_methods, reason = "the fleet is what was read a moment ago")]
fn now_ns() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}
