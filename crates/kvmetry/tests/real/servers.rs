//! Real servers that take line protocol, from Debian's packages: what they hold is what the file beside them holds,
//! point by point. (InfluxDB 3 is in no package; its answers are tested against a stub, `output/tests.rs`.)

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use xtask::lab::daemon::free_port;

use crate::harness::{Kvmetry, Point, SOON, Seen, URI, Value, finish, lab, start_vm};

/// How long a server may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(50);

/// A server of the test's own, killed when it is dropped.
struct Server {
    command: Command,
    process: Option<Child>,
    address: SocketAddr,
}

impl Server {
    fn start(command: Command, address: SocketAddr) -> Self {
        let mut server = Self { command, process: None, address };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let process = self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let program = self.command.get_program().to_owned();
        self.process =
            Some(process.unwrap_or_else(|e| panic!("{program:?}: {e}; scripts/install-deps.sh test")));
        let begun = Instant::now();
        while TcpStream::connect(self.address).is_err() || self.get("/ping").0 / 100 != 2 {
            assert!(begun.elapsed() < START_PATIENCE, "{program:?} does not answer");
            thread::sleep(POLL);
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "")
    }

    /// Status and body. HTTP/1.0, so that the answer ends with the connection.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = "Content-Type: application/x-www-form-urlencoded\r\nAuthorization: Basic YWRtaW46c2VjcmV0";
        write!(stream, "{method} {path} HTTP/1.0\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()))
}

/// A point's measurement, tags and time, and its fields.
type Points = BTreeMap<(String, BTreeMap<String, String>, i64), BTreeMap<String, Value>>;

fn points_of(seen: &Seen) -> Points {
    let parts = |p: &Point| ((p.measurement.clone(), p.tags.clone(), p.time_ns), p.fields.clone());
    let points: Points = seen.points.iter().map(parts).collect();
    assert_eq!(points.len(), seen.points.len(), "no two points with the same tags and time");
    points
}

fn influxd(dir: &Path) -> Server {
    let (http, rpc) = (free_address(), free_address());
    let path = dir.display();
    let conf = format!(
        "reporting-disabled = true\nbind-address = \"{rpc}\"\n[meta]\ndir = \"{path}/meta\"\n[data]\ndir = \"{path}/data\"\n\
         wal-dir = \"{path}/wal\"\n[http]\nbind-address = \"{http}\"\nauth-enabled = true\nlog-enabled = false\n"
    );
    fs::write(dir.join("influxdb.conf"), conf).unwrap();
    let mut command = Command::new("influxd");
    command.args(["run", "-config"]).arg(dir.join("influxdb.conf"));
    let server = Server::start(command, http);
    for statement in ["CREATE USER admin WITH PASSWORD 'secret' WITH ALL PRIVILEGES", "CREATE DATABASE vms"] {
        let (status, answer) = server.ask("POST", "/query", &format!("q={}", statement.replace(' ', "+")));
        assert_eq!(status, 200, "{statement}: {answer}");
    }
    server
}

/// All that InfluxDB 1 has.
fn points_in(server: &Server) -> Points {
    let (status, answer) = server.get("/query?db=vms&epoch=ns&q=SELECT+*+FROM+/.*/+GROUP+BY+*");
    assert_eq!(status, 200, "{answer}");
    let answer: Json = serde_json::from_str(&answer).unwrap();
    let mut points = Points::new();
    for series in answer["results"][0]["series"].as_array().into_iter().flatten() {
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        let tags = series["tags"].as_object().unwrap();
        // A tag that the series has not, but another of its measurement has, is empty.
        let tags =
            tags.iter().map(|(key, value)| (key.clone(), text(value))).filter(|(_, value)| !value.is_empty());
        let tags: BTreeMap<_, _> = tags.collect();
        let columns: Vec<_> = series["columns"].as_array().unwrap().iter().map(text).collect();
        for row in series["values"].as_array().unwrap() {
            let row = row.as_array().unwrap();
            let fields = columns.iter().zip(row).skip(1).filter(|(_, value)| !value.is_null());
            let measurement = text(&series["name"]);
            let fields = fields.map(|(name, value)| {
                let value = match value {
                    Json::String(text) => Value::Text(text.clone()),
                    // 12.0 comes as 12: which fields are floats is the contract's matter.
                    number if measurement == "vm_features" => Value::Float(number.as_f64().unwrap()),
                    number => Value::Int(number.as_i64().unwrap()),
                };
                (name.clone(), value)
            });
            points.insert((measurement.clone(), tags.clone(), row[0].as_i64().unwrap()), fields.collect());
        }
    }
    points
}

#[test]
fn influxdb_1_holds_what_the_file_holds_though_it_was_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = influxd(dir.path());
    let token = dir.path().join("token");
    fs::write(&token, "admin:secret\n").unwrap();
    let config = |database: &str| {
        format!(
            "[collect]\ninterval = \"1s\"\n[[hypervisor]]\nuri = \"{URI}\"\n[[influxdb]]\nurl = \"http://{}\"\n\
             api = \"v1\"\ndatabase = \"{database}\"\ntoken_file = \"{}\"\n",
            server.address,
            token.display()
        )
    };

    // What `check` says of the right database, of one that is not there, and of a wrong password.
    let check = |database: &str| {
        let file = dir.path().join("check.toml");
        fs::write(&file, config(database)).unwrap();
        finish(&["check", "--config", file.to_str().unwrap(), "--uri", "test:///default"], SOON)
    };
    let right = check("vms");
    assert!(right.code() == 0 && right.stdout.contains("InfluxDB 1."), "{right:?}");
    let absent = check("no such");
    assert!(absent.code() == 1 && absent.stdout.contains("make the database"), "{absent:?}");
    fs::write(&token, "admin:wrong\n").unwrap();
    let wrong = check("vms");
    assert!(wrong.code() == 1 && wrong.stdout.contains("refuses the token"), "{wrong:?}");
    assert!(!format!("{right:?}{absent:?}{wrong:?}").contains("secret"), "a password was shown");
    fs::write(&token, "admin:secret\n").unwrap();

    let lab = lab("servers");
    let vm = start_vm(&lab, "servers, \"one\" ü");
    let mut kvmetry = Kvmetry::run_with(&config("vms"), &[]);
    kvmetry.next_cycles(3);
    server.kill();
    kvmetry.wait_for_stderr("cannot deliver, trying again", SOON);
    lab.pause(&vm).unwrap();
    kvmetry.next_cycles(3);
    server.start_again();
    kvmetry.wait_for_stderr("delivers again", Duration::from_secs(45));
    let seen = kvmetry.stop("TERM");
    assert!(seen.events(&vm).any(|event| event.tag("event") == "paused"), "{seen:?}");

    let (expect, found) = (points_of(&seen), points_in(&server));
    let missing: Vec<_> = expect.keys().filter(|key| !found.contains_key(key)).collect();
    assert!(missing.is_empty(), "{} of {} points are missing: {missing:?}", missing.len(), expect.len());
    assert_eq!(expect, found);
}

#[test]
fn victoriametrics_holds_what_the_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut command = Command::new("victoria-metrics");
    command.arg(format!("-storageDataPath={}", dir.path().display()));
    command.arg(format!("-httpListenAddr={address}"));
    let server = Server::start(command, address);

    let lab = lab("victoria");
    start_vm(&lab, "victoria");
    let config = format!(
        "[collect]\ninterval = \"1s\"\n[[hypervisor]]\nuri = \"{URI}\"\n[[influxdb]]\nurl = \"http://{address}\"\n\
         api = \"v2\"\n"
    );
    let mut kvmetry = Kvmetry::run_with(&config, &[]);
    kvmetry.next_cycles(4);
    let seen = kvmetry.stop("TERM");

    // A series a field, named MEASUREMENT_FIELD; times in ms; no texts. What is written is seen after a flush.
    assert_eq!(server.get("/internal/force_flush").0, 200);
    let (status, export) = server.get("/api/v1/export?match[]=%7B__name__!=%22%22%7D");
    assert_eq!(status, 200, "{export}");
    let mut found = BTreeMap::new();
    for line in export.lines() {
        let series: Json = serde_json::from_str(line).unwrap();
        let labels = series["metric"].as_object().unwrap();
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
        let numbers = |key: &str| series[key].as_array().unwrap().clone();
        for (value, time) in numbers("values").iter().zip(numbers("timestamps")) {
            found.insert((labels.clone(), time.as_i64().unwrap()), value.as_f64().unwrap());
        }
    }
    let mut compared = 0;
    for point in &seen.points {
        for (field, value) in &point.fields {
            let expect = match value {
                Value::Int(value) => *value as f64,
                Value::Float(value) => *value,
                Value::Text(_) => continue,
            };
            let mut labels = point.tags.clone();
            labels.insert("__name__".into(), format!("{}_{field}", point.measurement));
            let stored = found.get(&(labels.clone(), point.time_ns / 1_000_000));
            let stored = *stored.unwrap_or_else(|| panic!("{labels:?} is missing"));
            assert!(
                (stored - expect).abs() <= expect.abs() * 1e-9,
                "{labels:?}: {stored} instead of {expect}"
            );
            compared += 1;
        }
    }
    assert!(compared > 100 && compared == found.len(), "{compared} values compared, {} found", found.len());
}
