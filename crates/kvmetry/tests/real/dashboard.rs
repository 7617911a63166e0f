//! What the dashboard says of the hypervisors that its process reads.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use xtask::lab::daemon::{Daemon, DaemonOptions};

use crate::harness::{Kvmetry, SOON, URI, command, now_ns, sudo};

/// Between two looks at a page.
const POLL: Duration = Duration::from_millis(50);
/// After some seconds without a daemon the next try is at most this far away.
const BACK_OFF: Duration = Duration::from_secs(35);

/// A `kvmetry run` with its port.
struct Dashboard {
    kvmetry: Kvmetry,
    /// Host and port.
    address: String,
}

impl Dashboard {
    fn run(uris: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = command(&["run", "--listen", "127.0.0.1:0", "--interval", "1s", "--data-dir"]);
        command.arg(dir.path().join("data"));
        for uri in uris {
            command.args(["--uri", uri]);
        }
        let mut kvmetry = Kvmetry::spawn(command, dir);
        let says = "the dashboard is at http://";
        kvmetry.wait_for_stderr(says, SOON);
        let told = kvmetry.stderr();
        let address = told.split_once(says).and_then(|it| it.1.split_once('/')).unwrap().0.to_owned();
        Self { kvmetry, address }
    }

    /// HTTP/1.0, so that the answer ends with the connection.
    fn get(&self, path: &str) -> Json {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer}"));
        serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e}: {answer}"))
    }

    /// Looks at a page until `look` finds what it wants.
    fn wait_for<T>(
        &self,
        what: &str,
        path: &str,
        patience: Duration,
        look: impl Fn(&Json) -> Option<T>,
    ) -> T {
        let begun = Instant::now();
        loop {
            let page = self.get(path);
            if let Some(found) = look(&page) {
                return found;
            }
            if begun.elapsed() > patience {
                self.kvmetry.fail(&format!("{what}: not within {patience:?}: {page:#}"));
            }
            thread::sleep(POLL);
        }
    }

    /// The hypervisor of this URI, once this field of it is something, or nothing.
    fn hypervisor(&self, uri: &str, patience: Duration, field: &str, is_there: bool) -> Json {
        self.wait_for(field, "/api/collector", patience, |page| {
            let mut all = page["hypervisors"].as_array().unwrap().iter();
            all.find(|it| it["uri"] == uri && it[field].is_null() != is_there).cloned()
        })
    }
}

#[test]
fn each_hypervisor_is_shown_with_its_connection_or_its_problem() {
    let mut daemon = Daemon::new(DaemonOptions::default()).unwrap();
    let late = daemon.uri_read_only();
    let begun_ms = now_ns() / 1_000_000;
    let dashboard = Dashboard::run(&[URI, &late]);

    let up = dashboard.hypervisor(URI, SOON, "cycle", true);
    let since = up["connectedSince"].as_i64().unwrap();
    assert!((begun_ms..=now_ns() / 1_000_000).contains(&since), "{up:#}");
    let told = sudo(&["virsh", "-r", "-c", URI, "version", "--daemon"]);
    let version = told.lines().find_map(|it| it.strip_prefix("Running against daemon: ")).unwrap();
    assert_eq!((&up["libvirt"], &up["problem"]), (&json!(version.trim()), &Json::Null), "{up:#}");
    assert_eq!(up["interval"], 1_000);

    // It was never read, so the store knows nothing of it.
    let down = dashboard.hypervisor(&late, SOON, "problem", true);
    let problem = down["problem"].as_str().unwrap();
    assert!(problem.contains("no such socket: is the daemon running"), "{down:#}");
    assert_eq!(
        (&down["host"], &down["connectedSince"], &down["libvirt"]),
        (&json!(late), &Json::Null, &Json::Null)
    );
    let text = format!("{late} cannot be read: {problem}");
    dashboard.wait_for("the same on the fleet's page", "/api/fleet", SOON, |fleet| {
        fleet["warnings"].as_array().unwrap().iter().find(|it| it["text"] == text).map(drop)
    });

    let started_ms = now_ns() / 1_000_000;
    daemon.start().unwrap();
    let up = dashboard.hypervisor(&late, BACK_OFF, "cycle", true);
    assert!(up["connectedSince"].as_i64() >= Some(started_ms), "{up:#}");
    assert_eq!((&up["libvirt"], &up["problem"]), (&json!(version.trim()), &Json::Null));

    // What is known of it stays.
    daemon.kill().unwrap();
    let down = dashboard.hypervisor(&late, SOON, "problem", true);
    assert_eq!((&down["connectedSince"], &down["cycle"]), (&Json::Null, &Json::Null), "{down:#}");
    assert_eq!(down["libvirt"], version.trim());
    // The other one is read on.
    let other = dashboard.hypervisor(URI, SOON, "cycle", true);
    assert_eq!((&other["connectedSince"], &other["problem"]), (&json!(since), &Json::Null), "{other:#}");
}
