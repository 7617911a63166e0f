//! Running `kvmetry` and reading what it writes.
//!
//! ```text
//!   Kvmetry::run(args) ──▶ kvmetry run --output file:DIR/out.lp ARGS
//!                                              │
//!        wait_for(what, patience, look) ◀── Seen: points ▸ cycles, events
//! ```
//!
//! A cycle is all points with the time of one `kvmetry_collector` line, which is a cycle's last. Waiting is looking
//! at the file again and again, with a bound; a bound that is reached fails the test with all that is known.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use influxdb_line_protocol::{FieldValue, parse_lines};
use tempfile::TempDir;
use xtask::lab::{Lab, LabGuard, LabOptions, LabVm};

/// The libvirt that the labs run on.
pub(crate) const URI: &str = "qemu:///system";

/// For what should be there in a cycle or two, on a machine with much else to do.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// SIGTERM and SIGINT end the process within this time.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Lines of output shown when a test fails.
const SHOWN_LINES: usize = 30;

// ---- The lab

/// A lab of this test alone, gone when it is dropped. Its guests work once a second.
pub(crate) fn lab(name: &str) -> LabGuard {
    lab_with(name, 1)
}

/// The same with this balloon period, in seconds.
pub(crate) fn lab_with(name: &str, balloon_period: u32) -> LabGuard {
    let options = LabOptions {
        prefix: format!("kvmetry-real-{name}-{}", std::process::id()),
        uri: URI.into(),
        balloon_period,
        quiet: true,
        ..LabOptions::default()
    };
    Lab::new(options).unwrap().guard()
}

/// Starts one VM under this name and waits for its guest.
pub(crate) fn start_vm(lab: &Lab, name: &str) -> LabVm {
    let vm = lab.vm(name).unwrap();
    start_vms(lab, std::slice::from_ref(&vm));
    vm
}

/// Starts these VMs and waits for their guests.
pub(crate) fn start_vms(lab: &Lab, vms: &[LabVm]) {
    lab.start_all(vms).unwrap();
    lab.wait_for_answers(vms).unwrap();
}

// ---- What was written

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    Float(f64),
    Text(String),
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) measurement: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) fields: BTreeMap<String, Value>,
    pub(crate) time_ns: i64,
}

impl Point {
    /// A tag; empty where the line has none of that name.
    pub(crate) fn tag(&self, key: &str) -> &str {
        self.tags.get(key).map_or("", String::as_str)
    }

    /// An integer field, if the line has it. Panics where it is of another type.
    pub(crate) fn int(&self, field: &str) -> Option<i64> {
        match self.fields.get(field)? {
            Value::Int(value) => Some(*value),
            other => panic!("{field} is {other:?}, not an integer, in {self:?}"),
        }
    }

    /// A float field, if the line has it. Panics where it is of another type.
    pub(crate) fn float(&self, field: &str) -> Option<f64> {
        match self.fields.get(field)? {
            Value::Float(value) => Some(*value),
            other => panic!("{field} is {other:?}, not a float, in {self:?}"),
        }
    }

    /// A text field; empty where the line has none.
    pub(crate) fn text(&self, field: &str) -> &str {
        match self.fields.get(field) {
            Some(Value::Text(value)) => value,
            _ => "",
        }
    }

    /// Whether it is this VM's.
    pub(crate) fn is_of(&self, vm: &LabVm) -> bool {
        self.tag("uuid") == vm.uuid
    }
}

/// Reads line protocol. Panics at the first line that the parser of InfluxDB's makers refuses.
pub(crate) fn parse(text: &str) -> Vec<Point> {
    let point = |(number, line): (usize, Result<_, influxdb_line_protocol::Error>)| {
        let line: influxdb_line_protocol::ParsedLine<'_> =
            line.unwrap_or_else(|e| panic!("line {}: {e}: {:?}", number + 1, text.lines().nth(number)));
        let tags = line.series.tag_set.iter().flatten();
        let fields = line.field_set.iter().map(|(key, value)| {
            let value = match value {
                FieldValue::I64(value) => Value::Int(*value),
                FieldValue::F64(value) => Value::Float(*value),
                FieldValue::String(value) => Value::Text(value.to_string()),
                other => panic!("{key} has a type that the contract does not know: {other:?}"),
            };
            (key.to_string(), value)
        });
        Point {
            measurement: line.series.measurement.to_string(),
            tags: tags.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            fields: fields.collect(),
            time_ns: line.timestamp.expect("every line has its time"),
        }
    };
    parse_lines(text).enumerate().map(point).collect()
}

/// One cycle of one hypervisor: its points without the collector's own, which stands apart.
#[derive(Clone, Debug)]
pub(crate) struct Cycle {
    pub(crate) time_ns: i64,
    pub(crate) points: Vec<Point>,
    pub(crate) collector: Point,
}

impl Cycle {
    /// All lines of a VM.
    pub(crate) fn of<'a>(&'a self, vm: &'a LabVm) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(|point| point.is_of(vm))
    }

    /// A VM's line of a measurement that has one a VM.
    pub(crate) fn line<'a>(&'a self, measurement: &str, vm: &'a LabVm) -> Option<&'a Point> {
        self.of(vm).find(|point| point.measurement == measurement)
    }

    /// A VM's `vm_totals` line.
    pub(crate) fn totals<'a>(&'a self, vm: &'a LabVm) -> Option<&'a Point> {
        self.line("vm_totals", vm)
    }

    /// The line of one of a VM's devices.
    pub(crate) fn device<'a>(&'a self, vm: &'a LabVm, device: &str) -> Option<&'a Point> {
        self.of(vm).find(|point| point.measurement == "vm_devices" && point.tag("device") == device)
    }
}

/// All that was written so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) points: Vec<Point>,
}

impl Seen {
    /// The cycles that are complete, oldest first.
    pub(crate) fn cycles(&self) -> Vec<Cycle> {
        let mut open: BTreeMap<(String, i64), Vec<Point>> = BTreeMap::new();
        let mut cycles = Vec::new();
        for point in self.points.iter().filter(|point| point.measurement != "vm_events") {
            let key = (point.tag("host").to_owned(), point.time_ns);
            if point.measurement == "kvmetry_collector" {
                let points = open.remove(&key).unwrap_or_default();
                cycles.push(Cycle { time_ns: point.time_ns, points, collector: point.clone() });
            } else {
                open.entry(key).or_default().push(point.clone());
            }
        }
        cycles
    }

    /// The cycles later than this moment, in ns since 1970.
    pub(crate) fn cycles_after(&self, time_ns: i64) -> Vec<Cycle> {
        self.cycles().into_iter().filter(|cycle| cycle.time_ns > time_ns).collect()
    }

    /// The last complete cycle, if there is one.
    pub(crate) fn last(&self) -> Option<Cycle> {
        self.cycles().pop()
    }

    /// What happened to a VM, in order: the `vm_events` lines.
    pub(crate) fn events<'a>(&'a self, vm: &'a LabVm) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(|point| point.measurement == "vm_events" && point.is_of(vm))
    }
}

/// The wall clock, in ns since 1970.
#[expect(clippy::disallowed_methods, reason = "a test compares the program's times with the machine's")]
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

// ---- The program

/// How a `kvmetry` ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Its exit code. Panics where a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

/// The built program, with nothing of this process's environment but the search path and the home directory (which
/// `ssh` wants).
pub(crate) fn command(args: &[&str]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_kvmetry")), args)
}

/// Any program, with these arguments and without this process's environment.
pub(crate) fn clean(mut command: Command, args: &[&str]) -> Command {
    command.args(args).env_clear().stdin(Stdio::null());
    for key in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(key) {
            command.env(key, value);
        }
    }
    command
}

/// Runs `kvmetry ARGS` to its end, which must come within `patience`.
pub(crate) fn finish(args: &[&str], patience: Duration) -> Ended {
    finish_command(command(args), patience)
}

/// Runs a command to its end, which must come within `patience`.
pub(crate) fn finish_command(command: Command, patience: Duration) -> Ended {
    Kvmetry::spawn(command, tempfile::tempdir().unwrap()).ended(patience)
}

/// A running `kvmetry`, killed when it is dropped.
pub(crate) struct Kvmetry {
    child: Child,
    dir: TempDir,
    /// Bytes of the output file that were read, and what they said.
    read: usize,
    seen: Seen,
}

/// `kvmetry run` into `out.lp` in this folder, which is a collector's alone.
fn run_command(dir: &TempDir, args: &[&str]) -> Command {
    let output = format!("file:{}", dir.path().join("out.lp").display());
    let mut command = command(&["run", "--no-store", "--listen", "off", "--output", &output, "--data-dir"]);
    command.arg(dir.path().join("data")).args(args);
    command
}

impl Kvmetry {
    /// `kvmetry run` on [`URI`] once a second, into a file, with these arguments more.
    pub(crate) fn run(args: &[&str]) -> Self {
        let mut all = vec!["--uri", URI, "--interval", "1s"];
        all.extend(args);
        Self::run_as(&all)
    }

    /// `kvmetry run` with these arguments alone, into a file.
    pub(crate) fn run_as(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::spawn(run_command(&dir, args), dir)
    }

    /// The same with the log at its level debug.
    pub(crate) fn run_telling_all(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = run_command(&dir, args);
        command.env("KVMETRY_LOG", "debug");
        Self::spawn(command, dir)
    }

    /// `kvmetry run` with this configuration file, into a file, with these arguments more.
    pub(crate) fn run_with(config: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvmetry.toml");
        fs::write(&file, config).unwrap();
        let mut command = run_command(&dir, &["--config", file.to_str().unwrap()]);
        command.args(args);
        Self::spawn(command, dir)
    }

    /// Any command that writes line protocol to `out.lp` in `dir`.
    pub(crate) fn spawn(mut command: Command, dir: TempDir) -> Self {
        command.stdout(File::create(dir.path().join("stdout")).unwrap());
        Self::spawn_with_its_stdout(command, dir)
    }

    /// The same, with the standard output that the command has.
    pub(crate) fn spawn_with_its_stdout(mut command: Command, dir: TempDir) -> Self {
        command.stderr(File::create(dir.path().join("stderr")).unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, dir, read: 0, seen: Seen::default() }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its directory: `out.lp`, `stdout`, `stderr`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it said on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// What it said on standard output so far.
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.path("stdout")).unwrap_or_default()
    }

    /// What it has written up to now.
    pub(crate) fn seen(&mut self) -> &Seen {
        let text = fs::read(self.path("out.lp")).unwrap_or_default();
        let new = text.get(self.read..).unwrap_or_default();
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = std::str::from_utf8(&new[..whole]).expect("lines are UTF-8");
        self.seen.points.extend(parse(lines));
        self.read += whole;
        &self.seen
    }

    /// Looks at what is written until `look` finds what it wants, at most for `patience`.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        look: impl Fn(&Seen) -> Option<T>,
    ) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self.seen()) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                self.fail(&format!("{what}: kvmetry ended before, {status}"));
            }
            if begun.elapsed() > patience {
                self.fail(&format!("{what}: not within {patience:?}"));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for this many complete cycles that begin from now on, and returns them.
    pub(crate) fn next_cycles(&mut self, count: usize) -> Vec<Cycle> {
        let from = now_ns();
        // A cycle that began before may still be on its way; the interval is at most 5 s in these tests.
        let patience = SOON + Duration::from_secs(5 * count as u64);
        self.wait_for(&format!("{count} cycles"), patience, |seen| {
            let mut cycles = seen.cycles_after(from);
            (cycles.len() >= count).then(|| {
                cycles.truncate(count);
                cycles
            })
        })
    }

    /// Waits for one complete cycle that begins from now on.
    pub(crate) fn next_cycle(&mut self) -> Cycle {
        self.next_cycles(1).remove(0)
    }

    /// Waits until standard error holds this text.
    pub(crate) fn wait_for_stderr(&mut self, text: &str, patience: Duration) {
        self.wait_for_stderr_times(text, 1, patience);
    }

    /// Waits until standard error holds this text so many times.
    pub(crate) fn wait_for_stderr_times(&mut self, text: &str, times: usize, patience: Duration) {
        let begun = Instant::now();
        while self.stderr().matches(text).count() < times {
            if begun.elapsed() > patience {
                self.fail(&format!("standard error: {text:?} not {times} times within {patience:?}"));
            }
            thread::sleep(POLL);
        }
    }

    /// Sends a signal (`TERM`, `INT`, `STOP`, ...).
    pub(crate) fn signal(&self, signal: &str) {
        signal_pid(self.pid(), signal);
    }

    /// Ends it by `TERM` or `INT`, which must take at most 2 s and leave exit code 0, and returns all it wrote.
    pub(crate) fn stop(mut self, signal: &str) -> Seen {
        self.signal(signal);
        let status = self.wait(ENDS_WITHIN);
        if status.code() != Some(0) {
            self.fail(&format!("after SIG{signal}: {status}"));
        }
        self.seen().clone()
    }

    /// Waits for its own end, which must come within `patience`.
    pub(crate) fn ended(mut self, patience: Duration) -> Ended {
        let status = self.wait(patience);
        Ended { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Fails the test, with what is known.
    pub(crate) fn fail(&self, why: &str) -> ! {
        let mut text = format!("{why}\n");
        for name in ["stderr", "stdout", "out.lp"] {
            let all = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            let from = lines.len().saturating_sub(SHOWN_LINES);
            let _ = writeln!(text, "--- {name}, the last {} of {} lines", lines.len() - from, lines.len());
            lines[from..].iter().for_each(|line| text.extend([line, "\n"]));
        }
        panic!("{text}");
    }

    fn wait(&mut self, patience: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if begun.elapsed() > patience {
                self.fail(&format!("did not end within {patience:?}"));
            }
            thread::sleep(POLL);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Kvmetry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process. `kill` is the shell's own: the program is not installed everywhere.
pub(crate) fn signal_pid(pid: u32, signal: &str) {
    let status =
        Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]).status();
    assert!(status.unwrap().success(), "signal {signal} to {pid}");
}

/// Runs a program of the machine's, with root's rights where this process has none, and returns what it printed.
/// Panics where it fails.
pub(crate) fn sudo(args: &[&str]) -> String {
    let is_root = fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    let args = if is_root { args.to_vec() } else { [&["sudo", "-n"], args].concat() };
    let output = Command::new(args[0]).args(&args[1..]).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|e| panic!("{args:?}: {e}"));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
