//! What the embedded store costs: the numbers on it in docs/PERFORMANCE.md. All through `kvmetry serve`, as a client
//! sees it, with made-up telemetry (`telemetry::workload`).

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use telemetry::workload::{Options, Workload};

/// Lines of one write.
const BATCH_LINES: u32 = 5_000;
/// How often each query is asked; the first ones do not count.
const ASKED: usize = 60;
/// See [`ASKED`].
const WARM_UP: usize = 10;
const DAY: Duration = Duration::from_secs(86_400);

/// Measures this binary and prints what it found.
///
/// # Errors
/// It does not start, or does not answer as it should.
pub fn run(binary: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut server = Server::start(binary, dir.path())?;
    let ten = Options::default();
    for (database, jitter_ns) in [("aligned", 0), ("jittered", 4_000_000)] {
        let fed = server.feed(database, Options { jitter_ns, ..ten.clone() }, DAY)?;
        server.post("/api/v3/compact", b"")?;
        let (raw, rolled) = sizes(&dir.path().join("store").join(database))?;
        say(&format!(
            "{database}: {} lines of {:.0} bytes, {:.0} lines/s of server CPU, {:.0} lines/s; on disk {:.2} bytes a line, \
             roll-ups {:.2}; RSS {} MiB",
            fed.lines,
            fed.bytes as f64 / fed.lines as f64,
            fed.lines as f64 / fed.cpu.as_secs_f64(),
            fed.lines as f64 / fed.wall.as_secs_f64(),
            raw as f64 / fed.lines as f64,
            rolled as f64 / fed.lines as f64,
            server.rss_kib()? >> 10,
        ))?;
    }
    server.feed("hundred", Options { vms: 100, ..ten.clone() }, DAY)?;
    server.feed("thousand", Options { vms: 1_000, ..ten.clone() }, Duration::from_secs(60))?;
    let minute = Duration::from_secs(60);
    server.feed("month", Options { interval: minute, balloon_period: minute, ..ten }, DAY * 30)?;
    server.post("/api/v3/compact", b"")?;
    let at = "TIMESTAMP '2026-01-01T12:00:00'";
    for (what, database, sql) in [
        (
            "last value of all of 1,000 VMs",
            "thousand",
            "SELECT DISTINCT ON (name) name, time, memrss, cputime FROM vm_totals ORDER BY name, time DESC"
                .to_owned(),
        ),
        (
            "one VM, one hour, raw",
            "hundred",
            format!(
                "SELECT * FROM vm_totals WHERE name = '{{vm}}' AND time >= {at} AND time < {at} + INTERVAL '1 hour'"
            ),
        ),
        ("one VM, 24 h in 300 buckets, all fields", "hundred", buckets(&mut server)?),
        (
            "top 10 of 100 VMs by network, 24 h",
            "hundred",
            "SELECT name, sum(rxbytes_increase) + sum(txbytes_increase) AS bytes FROM vm_devices_1m \
             GROUP BY name ORDER BY bytes DESC LIMIT 10"
                .to_owned(),
        ),
        (
            "one VM, 30 days, by the hour",
            "month",
            "SELECT time, memrss_mean, cputime_increase FROM vm_totals_1h WHERE name = '{vm}' ORDER BY time"
                .to_owned(),
        ),
    ] {
        let vm = server.ask("hundred", "SELECT name FROM vm_totals LIMIT 1")?;
        let vm = vm.lines().nth(1).context("no VM")?.to_owned();
        let sql = sql.replace("{vm}", &vm);
        let mut times = Vec::new();
        let mut rows = 0;
        for _ in 0..ASKED {
            let begun = Instant::now();
            rows = server.ask(database, &sql)?.lines().count() - 1;
            times.push(begun.elapsed());
        }
        let times = &mut times[WARM_UP..];
        times.sort();
        say(&format!(
            "{what}: p50 {:.1} ms, p90 {:.1} ms, {rows} rows",
            times[times.len() / 2].as_secs_f64() * 1e3,
            times[times.len() * 9 / 10].as_secs_f64() * 1e3
        ))?;
    }
    say(&format!("RSS at the end: {} MiB", server.rss_kib()? >> 10))
}

/// All numeric fields of vm_totals of one VM's day in 300 buckets.
fn buckets(server: &mut Server) -> Result<String> {
    let fields = server.ask(
        "hundred",
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'vm_totals' AND data_type = 'Int64'",
    )?;
    let mut sql = "SELECT date_bin(INTERVAL '288 seconds', time) AS bucket".to_owned();
    for field in fields.lines().skip(1) {
        write!(sql, ", avg(\"{field}\")")?;
    }
    Ok(sql + " FROM vm_totals WHERE name = '{vm}' GROUP BY bucket ORDER BY bucket")
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output cannot be written")
}

/// Bytes of raw tables and of roll-ups.
fn sizes(database: &Path) -> Result<(u64, u64)> {
    let (mut raw, mut rolled) = (0, 0);
    for table in fs::read_dir(database)? {
        let table = table?;
        let name = table.file_name().to_string_lossy().into_owned();
        for day in fs::read_dir(table.path())? {
            for file in fs::read_dir(day?.path())? {
                let bytes = file?.metadata()?.len();
                if name.ends_with("_1m") || name.ends_with("_1h") { rolled += bytes } else { raw += bytes }
            }
        }
    }
    Ok((raw, rolled))
}

struct Fed {
    lines: u64,
    bytes: u64,
    cpu: Duration,
    wall: Duration,
}

struct Server {
    child: Child,
    address: String,
    connection: BufReader<TcpStream>,
}

impl Server {
    fn start(binary: &Path, dir: &Path) -> Result<Self> {
        let mut child = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .env("KVMETRY_STORE_RETENTION", "36500days")
            .env("KVMETRY_STORE_DEVICES_RETENTION", "36500days")
            .env("KVMETRY_STORE_MINUTES_RETENTION", "36500days")
            .env("KVMETRY_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", binary.display()))?;
        let stderr = child.stderr.take().context("no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("http://").map(|it| it.1.trim().to_owned()))
            .context("it does not listen")?;
        std::thread::spawn(move || lines.for_each(drop));
        let connection = TcpStream::connect(&address)?;
        connection.set_nodelay(true)?;
        let connection = BufReader::new(connection);
        Ok(Self { child, address, connection })
    }

    /// Writes a workload of this length, all of it made before the clock starts for each batch.
    fn feed(&mut self, database: &str, options: Options, length: Duration) -> Result<Fed> {
        let end = options.start_ns + i64::try_from(length.as_nanos())?;
        let mut workload = Workload::new(options);
        let mut fed = Fed { lines: 0, bytes: 0, cpu: Duration::ZERO, wall: Duration::ZERO };
        let path = format!("/api/v3/write_lp?db={database}&precision=ns");
        let cpu = self.cpu()?;
        let (mut body, mut lines) = (Vec::new(), 0);
        while workload.next_tick_ns() < end {
            lines += workload.cycle(&mut body);
            if lines >= BATCH_LINES || workload.next_tick_ns() >= end {
                let begun = Instant::now();
                self.post(&path, &body)?;
                fed.wall += begun.elapsed();
                fed.lines += u64::from(lines);
                fed.bytes += body.len() as u64;
                body.clear();
                lines = 0;
            }
        }
        fed.cpu = self.cpu()? - cpu;
        Ok(fed)
    }

    fn ask(&mut self, database: &str, sql: &str) -> Result<String> {
        let body = serde_json::json!({ "db": database, "q": sql, "format": "csv" }).to_string();
        self.post("/api/v3/query_sql", body.as_bytes())
    }

    fn post(&mut self, path: &str, body: &[u8]) -> Result<String> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.connection.get_mut().write_all(head.as_bytes())?;
        self.connection.get_mut().write_all(body)?;
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut is_chunked) = (0, false);
        loop {
            line.clear();
            self.connection.read_line(&mut line)?;
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            is_chunked |= header.starts_with("transfer-encoding: chunked");
        }
        let mut text = Vec::new();
        if is_chunked {
            loop {
                line.clear();
                self.connection.read_line(&mut line)?;
                let chunk = usize::from_str_radix(line.trim(), 16)?;
                let from = text.len();
                text.resize(from + chunk + 2, 0);
                self.connection.read_exact(&mut text[from..])?;
                text.truncate(from + chunk);
                if chunk == 0 {
                    break;
                }
            }
        } else {
            text.resize(length, 0);
            self.connection.read_exact(&mut text)?;
        }
        let text = String::from_utf8(text)?;
        if !status.starts_with('2') {
            bail!("{path}: {status} {text}");
        }
        Ok(text)
    }

    /// CPU time of the server so far, in 1/100 s (USER_HZ on Linux).
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    fn rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
