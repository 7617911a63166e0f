//! `kvmetry serve` as a process: written to and asked over HTTP, killed, asked by commands beside it and without it.
#![cfg(feature = "store")]

mod backup;
mod check;
mod clients;
mod dashboard;
mod elsewhere;
mod fixture;
mod mount;
mod queries;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const KVMETRY: &str = env!("CARGO_BIN_EXE_kvmetry");
/// Points here are of 1970.
const LONG: [(&str, &str); 1] = [("KVMETRY_STORE_RETENTION", "36500days")];

/// A running server; killed when it is dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(dir: &Path) -> Self {
        Self::with::<&str>(dir, &[], &[])
    }

    /// With more arguments and variables.
    fn with<V: AsRef<OsStr>>(dir: &Path, args: &[&str], variables: &[(&str, V)]) -> Self {
        Self::of("serve", dir, args, variables)
    }

    /// By another command that opens the port.
    fn of<V: AsRef<OsStr>>(command: &str, dir: &Path, args: &[&str], variables: &[(&str, V)]) -> Self {
        let mut child = Command::new(KVMETRY)
            .args([command, "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .args(args)
            .env("KVMETRY_LOG", "info")
            .envs(LONG)
            .envs(variables.iter().map(|(name, value)| (name, value.as_ref())))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut told = String::new();
        let url = lines.by_ref().map_while(Result::ok).find_map(|line| {
            told.push_str(&line);
            line.split_once("listening on ").map(|it| it.1.trim().to_owned())
        });
        // Whatever it says later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        let Some(url) = url else { panic!("it does not listen: {told}") };
        Self { child, url }
    }

    async fn write(&self, lines: &str) -> reqwest::Result<u16> {
        let url = format!("{}/api/v3/write_lp?db=db&precision=ns", self.url);
        Ok(client().post(url).body(lines.to_owned()).send().await?.status().as_u16())
    }

    async fn ask(&self, sql: &str) -> String {
        let url = format!("{}/api/v3/query_sql", self.url);
        let body = serde_json::json!({ "db": "db", "q": sql, "format": "csv" }).to_string();
        let request = client().post(url).header("content-type", "application/json").body(body);
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a whole answer");
        assert!(status.is_success(), "{status}: {text}");
        text
    }

    fn kill(mut self) {
        self.child.kill().expect("it is there");
        self.child.wait().expect("it ends");
    }

    /// As Ctrl-C does.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This package's folder. Asked now, not when this was compiled: two clones may share one target directory.
fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo").into()
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What the port shows is not what these tests look at.
    let builder = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
    builder.build().expect("a client")
}

fn kvmetry(dir: &Path, args: &[&str]) -> Output {
    let output =
        Command::new(KVMETRY).args(args).arg("--data-dir").arg(dir).envs(LONG).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn what_was_acknowledged_is_seen_at_once_and_after_a_kill() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    assert_eq!(server.write("cpu,vm=a v=1i 1000\ncpu,vm=b v=2i,w=2.5 1000").await.expect("an answer"), 204);
    let all = "SELECT vm, v, w FROM cpu ORDER BY vm";
    assert_eq!(server.ask(all).await, "vm,v,w\na,1,\nb,2,2.5\n");
    server.kill();
    let server = Server::start(dir.path());
    assert_eq!(server.ask(all).await, "vm,v,w\na,1,\nb,2,2.5\n");
    // The schema is there too, and so is the point that comes again.
    assert_eq!(server.write("cpu,vm=a v=1.5 2000").await.expect("an answer"), 400);
    assert_eq!(server.write("cpu,vm=a w=3.5 1000").await.expect("an answer"), 204);
    assert_eq!(server.ask(all).await, "vm,v,w\na,1,3.5\nb,2,2.5\n");
    server.stop();
}

#[tokio::test]
async fn commands_ask_beside_a_server_and_without_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    assert_eq!(server.write("cpu,vm=a v=1i 1000\ncpu,vm=a v=5i 2000").await.expect("an answer"), 204);
    let ask = ["query", "--database", "db", "--format", "csv", "SELECT max(v) AS v FROM cpu"];
    assert_eq!(text(&kvmetry(dir.path(), &ask)), "v\n5\n");
    kvmetry(dir.path(), &["compact"]);
    server.stop();
    assert_eq!(text(&kvmetry(dir.path(), &ask)), "v\n5\n");
    kvmetry(dir.path(), &["compact"]);
    let day = dir.path().join("store/db/cpu/day=1970-01-01");
    let files: Vec<_> =
        std::fs::read_dir(day).expect("the day").map(|it| it.expect("a name").file_name()).collect();
    assert_eq!(files, ["1-1.parquet"]);
    let pretty =
        text(&kvmetry(dir.path(), &["query", "--database", "db", "SELECT v FROM cpu ORDER BY time"]));
    assert_eq!(pretty, "+---+\n| v |\n+---+\n| 1 |\n| 5 |\n+---+\n");
}

#[tokio::test]
async fn commands_ask_through_a_port_that_speaks_tls() {
    let (dir, keys) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| keys.path().join(name));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    // Another name than the one that is asked for.
    openssl.args(["-subj", "/CN=kvm1.example"]).arg("-keyout").arg(&key).arg("-out").arg(&cert);
    assert!(openssl.output().expect("openssl; scripts/install-deps.sh test").status.success());
    let variables = [("KVMETRY_HTTP_TLS_CERT", &*cert), ("KVMETRY_HTTP_TLS_KEY", &*key)];
    let server = Server::with(dir.path(), &[], &variables);
    assert!(server.url.starts_with("https://"), "{}", server.url);
    assert_eq!(server.write("cpu,vm=a v=1i 1000").await.expect("an answer"), 204);
    let ask = ["query", "--database", "db", "--format", "csv", "SELECT max(v) AS v FROM cpu"];
    assert_eq!(text(&kvmetry(dir.path(), &ask)), "v\n1\n");
    kvmetry(dir.path(), &["compact"]);
    server.stop();
}

/// Somebody of the group, who may read the directory and not write to it.
#[tokio::test]
async fn who_may_not_write_to_the_directory_asks_through_the_port() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().expect("a folder");
    let may = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    };
    may(dir.path(), 0o755);
    // Where it was built, perhaps below a home, nobody else may look.
    let folder = tempfile::tempdir().expect("a folder");
    may(folder.path(), 0o755);
    let program = folder.path().join("kvmetry");
    let linked = std::fs::hard_link(KVMETRY, &program);
    linked.or_else(|_| std::fs::copy(KVMETRY, &program).map(drop)).expect("the program");
    let ask = || {
        let mut command = Command::new(&program);
        command.args(["query", "--database", "db", "--format", "csv", "SELECT max(v) AS v FROM cpu"]);
        command.arg("--data-dir").arg(dir.path()).envs(LONG);
        // Who may do everything must become somebody who may not.
        if std::fs::OpenOptions::new().write(true).open(dir.path().join("lock")).is_ok() {
            command.uid(65_534).gid(65_534);
        }
        command.output().expect("it runs")
    };
    let server = Server::start(dir.path());
    assert_eq!(server.write("cpu,vm=a v=1i 1000").await.expect("an answer"), 204);
    may(&dir.path().join("lock"), 0o444);
    let asked = ask();
    assert_eq!(text(&asked), "v\n1\n", "{}", String::from_utf8_lossy(&asked.stderr));
    server.stop();
    // Nobody is there to be asked any more, though the lock file says so still: who listens there may be anybody.
    let told = std::fs::read_to_string(dir.path().join("lock")).expect("it is there");
    assert!(told.contains("url http"), "{told}");
    let said = String::from_utf8_lossy(&ask().stderr).into_owned();
    assert!(said.contains("no kvmetry with an HTTP port has it, to ask through"), "{said}");
    std::fs::write(dir.path().join("lock"), "pid 1\n").unwrap_or_default();
    may(dir.path(), 0o700);
    let said = String::from_utf8_lossy(&ask().stderr).into_owned();
    assert!(!said.contains("there is no data"), "{said}");
}

/// What only memory and the journal have outlasts a server without the store, and what that one takes comes after it.
#[tokio::test]
async fn a_store_that_was_off_for_once_misses_and_doubles_nothing() {
    let (dir, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let sink = Server::start(elsewhere.path());
    let config = elsewhere.path().join("config.toml");
    std::fs::write(&config, format!("[[influxdb]]\nurl = {:?}\n", sink.url)).expect("a file");
    let off = ["--no-store", "--config", config.to_str().expect("UTF-8")];
    let all = "SELECT n FROM t ORDER BY time";
    let mut expect = "n\n".to_owned();
    for (n, args) in [(1, &[][..]), (2, &off), (3, &off), (4, &[])] {
        let server = Server::with::<&str>(dir.path(), args, &[]);
        for m in 0..50 {
            let point = n * 100 + m;
            let line = format!("t,vm=a n={point}i {point}000");
            assert_eq!(server.write(&line).await.expect("an answer"), 204);
            expect += &format!("{point}\n");
        }
        if n == 3 {
            // The other server has all of it, so the journal needs it no more for that one. Its end tidies up.
            server.stop();
            assert_eq!(sink.ask(all).await, expect);
        } else {
            server.kill();
        }
    }
    let server = Server::start(dir.path());
    assert_eq!(server.ask(all).await, expect);
    kvmetry(dir.path(), &["compact"]);
    assert_eq!(server.ask(all).await, expect);
    server.stop();
}

/// Every example of docs/API.md, one after another, gives what the page says.
#[tokio::test]
async fn the_examples_of_the_api_page_work() {
    let page = std::fs::read_to_string(package().join("../../docs/API.md"));
    let page = page.expect("docs/API.md");
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    let mut compared = 0;
    for part in page.split("```sh\n").skip(1) {
        let (script, rest) = part.split_once("\n```\n").expect("the block ends");
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script]).current_dir(dir.path()).stdin(Stdio::null());
        bash.env("PATH", clients::path());
        let ended = bash.env("KVMETRY_URL", &server.url).env("NO_PROXY", "*").output().expect("bash");
        assert!(ended.status.success(), "{script}\n{}", String::from_utf8_lossy(&ended.stderr));
        if let Some(expect) = rest.strip_prefix("\n```text\n") {
            let expect = expect.split_once("```").expect("the block ends").0;
            assert_eq!(text(&ended).trim_end(), expect.trim_end(), "{script}");
            compared += 1;
        }
    }
    assert!(compared >= 10, "only {compared} outputs were compared");
    server.stop();
}

#[test]
fn options_of_token_stand_before_its_commands_too() {
    let dir = tempfile::tempdir().expect("a folder");
    kvmetry(dir.path(), &["token", "--scope", "read", "--name", "one"]);
    let run = |args: &[&str]| {
        let mut command = Command::new(KVMETRY);
        command.args(["token", "--data-dir"]).arg(dir.path()).args(args).output().expect("it runs")
    };
    assert!(text(&run(&["list"])).contains("one"));
    let told = run(&["--scope", "read", "list"]);
    assert!(String::from_utf8_lossy(&told.stderr).contains("are for making a token"), "{told:?}");
    assert!(run(&["revoke", "one"]).status.success());
    assert!(!text(&run(&["list"])).contains("one"));
}

#[test]
fn a_token_that_nobody_got_is_revoked_and_a_failure() {
    let dir = tempfile::tempdir().expect("a folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(KVMETRY);
    let command = command.args(["token", "--scope", "write", "--data-dir"]).arg(dir.path()).stdout(writer);
    let told = command.output().expect("it runs");
    let error = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{error}");
    assert!(error.contains("standard output cannot be written: Broken pipe"), "{error}");
    assert!(error.contains("; the token was revoked"), "{error}");
    let tokens = std::fs::read_to_string(dir.path().join("tokens.json")).expect("it is there");
    assert!(!tokens.contains("write"), "{tokens}");
}

/// How often the server is killed; `KVMETRY_KILLS` for more.
fn kills() -> u32 {
    std::env::var("KVMETRY_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(6)
}

/// Writers go on while the server is killed at any moment, in the middle of writes, flushes and compactions. Every
/// acknowledged point is there once; one that was not acknowledged may be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_and_double_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    assert_eq!(server.write("t,vm=vm0 n=0i 0").await.expect("an answer"), 204);
    server.kill();
    let mut next = 1_u64;
    let mut acknowledged: Vec<u64> = vec![0];
    for kill in 0..kills() {
        let server = Server::start(dir.path());
        let deadline = std::time::Duration::from_millis(100 + u64::from(fastrand::u32(0..900)));
        let written = async {
            loop {
                let first = next;
                next += 20;
                let lines: Vec<_> = (first..next)
                    .map(|n| format!("t,vm=vm{} n={n}i {}", n % 5, n / 5 * 7_000_000_000))
                    .collect();
                match server.write(&lines.join("\n")).await {
                    Ok(204) => acknowledged.extend(first..next),
                    other => panic!("{other:?}"),
                }
                if fastrand::u8(0..4) == 0 {
                    let url = format!("{}/api/v3/compact", server.url);
                    client().post(url).send().await.expect("an answer");
                }
            }
        };
        // Dropped in the middle of whatever it does.
        let _ = tokio::time::timeout(deadline, written).await;
        server.kill();
        let server = Server::start(dir.path());
        let found = server.ask("SELECT n FROM t ORDER BY n").await;
        let found: Vec<u64> = found.lines().skip(1).map(|it| it.parse().expect("a number")).collect();
        assert!(found.is_sorted_by(|a, b| a < b), "kill {kill}: a point is there twice");
        let missing: Vec<_> = acknowledged.iter().filter(|it| found.binary_search(it).is_err()).collect();
        assert!(missing.is_empty(), "kill {kill}: {missing:?} are missing");
        server.stop();
    }
    assert!(acknowledged.len() > 1);
}
