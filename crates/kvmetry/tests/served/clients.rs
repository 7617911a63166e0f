//! Clients of other people: InfluxDB's own for Python, ADBC, Arrow's, and DuckDB over the files.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::{Server, kvmetry, package, text};

/// The Python that has them, as `scripts/install-deps.sh test` makes it.
fn python() -> PathBuf {
    let tools = std::env::var_os("KVMETRY_TOOLS").map(PathBuf::from);
    let tools = tools.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/kvmetry-tools")));
    let python = tools.expect("HOME is set").join("clients/bin/python");
    assert!(python.exists(), "{} is not there: scripts/install-deps.sh test", python.display());
    python
}

/// Where `python3` is the one that has them.
pub(crate) fn path() -> OsString {
    let mut path = python().parent().expect("a folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

#[track_caller]
fn ask_with(client: &str, arguments: &[&str]) {
    let script = package().join("tests/served/clients.py");
    let mut command = Command::new(python());
    let ended =
        command.arg(script).arg(client).args(arguments).env("NO_PROXY", "*").output().expect("it runs");
    let told = format!("{client}: {}\n{}", text(&ended), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && text(&ended).ends_with("all as expected\n"), "{told}");
}

#[test]
fn clients_for_python_write_and_ask() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    ask_with("influxdb", &[&server.url]);
    ask_with("flightsql", &[&server.url]);
    let token = |scope: &str| {
        let made = kvmetry(dir.path(), &["token", "--scope", scope, "--name", scope]);
        text(&made).trim().to_owned()
    };
    ask_with("tokens", &[&server.url, &token("read"), &token("write")]);
    server.stop();
}

#[tokio::test]
async fn duckdb_finds_every_point_once_in_the_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut sum = 0_u64;
    for round in 0..3 {
        let server = Server::start(dir.path());
        // Each round writes the same points and some more, over four days.
        let count = 400 * (round + 1);
        let lines = (0..count).map(|n| format!("cpu,VMID=vm{} n={n}i {}", n % 7, n * 300_000_000_000_u64));
        let lines: Vec<_> = lines.collect();
        assert_eq!(server.write(&lines.join("\n")).await.expect("an answer"), 204);
        sum = (0..count).sum();
        match round {
            0 => server.kill(),
            1 => server.stop(),
            _ => {
                kvmetry(dir.path(), &["compact"]);
                server.stop();
            }
        }
    }
    let pattern = format!("{}/store/db/cpu/*/*.parquet", dir.path().display());
    ask_with("files", &[&pattern, "1200", &sum.to_string()]);
}
