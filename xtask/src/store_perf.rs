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
use influxdb_line_protocol::parse_lines;
use telemetry::workload::{Options, Workload};

/// Lines of one write.
const BATCH_LINES: u32 = 5_000;
/// How often each query is asked; the first ones do not count.
const ASKED: usize = 60;
/// See [`ASKED`].
const WARM_UP: usize = 10;
const DAY: Duration = Duration::from_secs(86_400);
/// Of these threads of kvmetry no write waits: flushes, roll-ups, compactions.
const BACKGROUND: [&str; 2] = ["store", "compact"];

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
            "{database}: {} lines of {:.0} bytes; lines/s: {:.0} of the CPU that writes wait for, {:.0} of all of the \
             server's CPU, {:.0} by the clock, {:.0} by the bare parser; on disk {:.2} bytes a line, roll-ups {:.2}; RSS {} \
             MiB",
            fed.lines,
            fed.bytes as f64 / fed.lines as f64,
            fed.lines as f64 / (fed.cpu - fed.background).as_secs_f64(),
            fed.lines as f64 / fed.cpu.as_secs_f64(),
            fed.lines as f64 / fed.wall.as_secs_f64(),
            fed.lines as f64 / fed.parser.as_secs_f64(),
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
            "last value of all of 1,000 VMs, from memory",
            "thousand",
            "SELECT name, time, memrss, cputime FROM last_cache('vm_totals')".to_owned(),
        ),
        (
            "last value of all of 1,000 VMs, DISTINCT ON",
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
    say(&format!("RSS at the end: {} MiB", server.rss_kib()? >> 10))?;
    for end in ["killed", "stopped"] {
        if end == "stopped" {
            server.stop()?
        } else {
            drop(server)
        }
        let begun = Instant::now();
        server = Server::start(binary, dir.path())?;
        let started = begun.elapsed();
        let rows = server.ask("month", "SELECT count(*) FROM vm_totals_1h")?;
        let rows = rows.lines().nth(1).context("no count")?;
        say(&format!(
            "start with all of it after being {end}: {:.0} ms until it listens, RSS {} MiB ({rows} hours)",
            started.as_secs_f64() * 1e3,
            server.rss_kib()? >> 10
        ))?;
    }
    Ok(())
}

/// What the servers that Debian has make of the same days: bytes a line on disk once they have merged what they merge.
///
/// # Errors
/// They are not installed, or do not answer as they should.
pub fn peers() -> Result<()> {
    for jitter_ns in [0, 4_000_000] {
        peer_sizes(&Options { jitter_ns, ..Options::default() })?;
    }
    Ok(())
}

fn peer_sizes(options: &Options) -> Result<()> {
    for name in ["victoria-metrics", "influxd"] {
        let dir = tempfile::tempdir()?;
        let path = dir.path().display();
        let mut command = Command::new(name);
        let address = "127.0.0.1:18428";
        match name {
            "influxd" => {
                let conf = dir.path().join("influxdb.conf");
                let text = format!(
                    "reporting-disabled = true\nbind-address = \"127.0.0.1:18088\"\n[monitor]\nstore-enabled = false\n\
                     [meta]\ndir = \"{path}/meta\"\n\
                     [data]\ndir = \"{path}/data\"\nwal-dir = \"{path}/wal\"\ncompact-full-write-cold-duration = \"1s\"\n\
                     cache-snapshot-write-cold-duration = \"1s\"\n[http]\nbind-address = \"{address}\"\nlog-enabled = false\n"
                );
                fs::write(&conf, text)?;
                command.arg("run").arg("-config").arg(conf)
            }
            _ => command.args([
                format!("-storageDataPath={path}/data"),
                format!("-httpListenAddr={address}"),
                "-retentionPeriod=100y".to_owned(),
            ]),
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("{name}: scripts/install-deps.sh test"))?;
        let mut server = Server { child, address: address.to_owned(), connection: connect_within(address)? };
        if name == "influxd" {
            server.post("/query?q=CREATE+DATABASE+day", b"")?;
        }
        let fed = server.feed_at("/write?db=day", options.clone(), DAY)?;
        let data = dir.path().join("data");
        if name == "influxd" {
            settled(&data)?;
        } else {
            server.post("/internal/force_flush", b"")?;
            server.post("/internal/force_merge", b"")?;
            settled(&data)?;
        }
        server.stop()?;
        say(&format!(
            "{name}, jitter {} ms: {:.2} bytes a line, {:.0} lines/s of its CPU",
            options.jitter_ns / 1_000_000,
            bytes_under(&data)? as f64 / fed.lines as f64,
            fed.lines as f64 / fed.cpu.as_secs_f64()
        ))?;
    }
    Ok(())
}

/// Waits until a folder has had the same size for ten seconds: the server has merged what it merges.
fn settled(dir: &Path) -> Result<()> {
    let (mut last, mut since) = (bytes_under(dir)?, Instant::now());
    let patience = Instant::now() + Duration::from_secs(180);
    while since.elapsed() < Duration::from_secs(10) {
        if Instant::now() > patience {
            bail!("{} still changes after three minutes", dir.display());
        }
        std::thread::sleep(Duration::from_millis(500));
        let now = bytes_under(dir)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

fn bytes_under(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A file may go while it is looked at.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { bytes_under(&entry.path()).unwrap_or(0) } else { metadata.len() };
    }
    Ok(bytes)
}

fn connect_within(address: &str) -> Result<BufReader<TcpStream>> {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        match TcpStream::connect(address) {
            Ok(connection) => return Ok(BufReader::new(connection)),
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
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

pub(crate) fn say(line: &str) -> Result<()> {
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

pub(crate) struct Fed {
    lines: u64,
    bytes: u64,
    cpu: Duration,
    /// Of it, what threads took that no write waits for.
    background: Duration,
    wall: Duration,
    /// What the bare parser takes for the same bodies, here.
    parser: Duration,
}

/// `kvmetry serve`; killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    address: String,
    connection: BufReader<TcpStream>,
}

impl Server {
    pub(crate) fn start(binary: &Path, dir: &Path) -> Result<Self> {
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

    pub(crate) fn feed(&mut self, database: &str, options: Options, length: Duration) -> Result<Fed> {
        self.feed_at(&format!("/api/v3/write_lp?db={database}&precision=ns"), options, length)
    }

    /// Writes a workload of this length, all of it made before the clock starts for each batch.
    fn feed_at(&mut self, path: &str, options: Options, length: Duration) -> Result<Fed> {
        let end = options.start_ns + i64::try_from(length.as_nanos())?;
        let mut workload = Workload::new(options);
        let zero = Duration::ZERO;
        let mut fed = Fed { lines: 0, bytes: 0, cpu: zero, background: zero, wall: zero, parser: zero };
        let (cpu, background) = (self.cpu()?, self.background()?);
        let (mut body, mut lines) = (Vec::new(), 0);
        while workload.next_tick_ns() < end {
            lines += workload.cycle(&mut body);
            if lines >= BATCH_LINES || workload.next_tick_ns() >= end {
                let begun = Instant::now();
                self.post(path, &body)?;
                fed.wall += begun.elapsed();
                let (text, begun) = (std::str::from_utf8(&body)?, Instant::now());
                for line in parse_lines(text) {
                    std::hint::black_box(line)?;
                }
                fed.parser += begun.elapsed();
                fed.lines += u64::from(lines);
                fed.bytes += body.len() as u64;
                body.clear();
                lines = 0;
            }
        }
        (fed.cpu, fed.background) = (self.cpu()? - cpu, self.background()? - background);
        Ok(fed)
    }

    pub(crate) fn ask(&mut self, database: &str, sql: &str) -> Result<String> {
        let body = serde_json::json!({ "db": database, "q": sql, "format": "csv" }).to_string();
        self.post("/api/v3/query_sql", body.as_bytes())
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<String> {
        self.request("POST", path, body)
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        self.request("GET", path, b"")
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
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

    /// Of it, that of [`BACKGROUND`], which live as long as the server.
    fn background(&self) -> Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.path();
            // Others may end between the listing and the reading.
            let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
            let Ok(times) = fs::read_to_string(task.join("schedstat")) else { continue };
            if BACKGROUND.contains(&name.trim()) {
                total += times.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(total))
    }

    /// As Ctrl-C does.
    fn stop(mut self) -> Result<()> {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        self.child.wait()?;
        Ok(())
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
