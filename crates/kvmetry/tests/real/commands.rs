//! What a person types: `once`, `check`, `run` with its outputs, and what is said of mistakes.
//!
//! Where the text of a page or an exit code is judged the daemon is the test's own, so that nobody else's VM is in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, pipe};
use std::path::Path;
use std::time::Duration;

use serde_json::Value as Json;
use xtask::lab::daemon::{Daemon, DaemonOptions};

use crate::harness::{
    Ended, Kvmetry, Point, SOON, Value, clean, command, finish, finish_command, now_ns, parse, start_vm, sudo,
};
use crate::restart::lab_on;

/// For a command that reads once or twice.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines of the usual lab VM at its first reading: vm_metrics, 2 NICs, 3 disks, vm_totals.
const FIRST_LINES: usize = 7;

fn good(ended: Ended) -> Ended {
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

/// A point as `once --format json` prints it.
fn from_json(line: &str) -> Point {
    let json: Json = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let object = |key: &str| json[key].as_object().unwrap_or_else(|| panic!("no object {key} in {line}"));
    let value = |value: &Json| match value {
        Json::Number(number) if number.is_f64() => Value::Float(number.as_f64().unwrap()),
        Json::Number(number) => Value::Int(number.as_i64().unwrap()),
        Json::String(text) => Value::Text(text.clone()),
        other => panic!("{other} in {line}"),
    };
    Point {
        measurement: json["measurement"].as_str().unwrap().to_owned(),
        tags: object("tags").iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect(),
        fields: object("fields").iter().map(|(k, v)| (k.clone(), value(v))).collect(),
        time_ns: json["time_ns"].as_i64().unwrap(),
    }
}

/// Which lines there are, and which fields of which type in them.
fn shape(points: &[Point]) -> BTreeSet<String> {
    let kind = |value: &Value| match value {
        Value::Int(_) => "integer",
        Value::Float(_) => "float",
        Value::Text(_) => "text",
    };
    let fields = |point: &Point| -> Vec<String> {
        point
            .fields
            .iter()
            .map(|(name, value)| format!("{} {:?} {name} {}", point.measurement, point.tags, kind(value)))
            .collect()
    };
    points.iter().flat_map(fields).collect()
}

#[test]
fn once_prints_one_cycle_and_check_names_the_balloon_without_a_period() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "once");
    let mut vm = lab.vm("once, the \"VM\"").unwrap();
    vm.balloon_period = 0;
    lab.start_all(std::slice::from_ref(&vm)).unwrap();
    let uri = daemon.uri_read_only();

    let lines = good(finish(&["once", "--uri", &uri], PATIENCE));
    let points = parse(&lines.stdout);
    assert_eq!(points.iter().filter(|it| it.is_of(&vm)).count(), FIRST_LINES, "{lines:?}");
    assert_eq!(points.len(), FIRST_LINES + 1, "the collector's line, too, and no other: {lines:?}");
    assert!(points.iter().all(|it| it.time_ns == points[0].time_ns && it.time_ns <= now_ns()));

    let json = good(finish(&["once", "--uri", &uri, "--format", "json"], PATIENCE));
    let from_json: Vec<_> = json.stdout.lines().map(from_json).collect();
    assert_eq!(shape(&from_json), shape(&points));

    let table = good(finish(&["once", "--uri", &uri, "--format", "table"], PATIENCE));
    let rows: Vec<&str> = table.stdout.lines().collect();
    assert_eq!(rows.len(), 2, "a head and a VM: {}", table.stdout);
    assert!(rows[0].contains("VM") && rows[0].contains("STATE"), "{}", rows[0]);
    assert!(rows[1].contains(&vm.name) && rows[1].contains("running"), "{}", rows[1]);

    // What check says is what to type; typed, it is content.
    let check = good(finish(&["check", "--uri", &uri], PATIENCE));
    let named =
        check.stdout.lines().find(|it| it.contains("balloon period not set")).expect("a note on the balloon");
    assert!(named.contains(&vm.name), "{named}");
    let typed = named.split_once("type, for each: ").and_then(|(_, rest)| rest.split_once(" (and"));
    let (typed, _) = typed.unwrap_or_else(|| panic!("nothing to type: {named}"));
    assert!(check.stdout.contains("1 live VMs read whole"), "{}", check.stdout);
    sudo(&["sh", "-c", typed]);
    let check = good(finish(&["check", "--uri", &uri], PATIENCE));
    assert!(check.stdout.contains("all balloons have a statistics period"), "{}", check.stdout);
    assert!(!check.stdout.contains("not set"), "{}", check.stdout);

    // Whoever reads it may have seen enough: a closed pipe is no failure.
    for format in ["line", "json", "table"] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut once = command(&["once", "--uri", &uri, "--format", format]);
        once.stdout(writer);
        let ended = good(Kvmetry::spawn_with_its_stdout(once, tempfile::tempdir().unwrap()).ended(PATIENCE));
        assert!(!ended.stderr.contains("panic"), "{}", ended.stderr);
    }
}

#[test]
fn outputs_get_the_same_lines_and_a_signal_or_a_closed_pipe_ends_it() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "outputs");
    let vm = start_vm(&lab, "outputs");
    let uri = daemon.uri_read_only();

    for signal in ["TERM", "INT"] {
        let mut kvmetry = Kvmetry::run_as(&["--uri", &uri, "--interval", "1s", "--output", "-"]);
        kvmetry.next_cycles(2);
        let dir = kvmetry.dir().to_owned();
        let copy = tempfile::tempdir().unwrap();
        // What is left in the directory goes with the process: it is linked to another place before.
        for name in ["out.lp", "stdout"] {
            fs::hard_link(dir.join(name), copy.path().join(name)).unwrap();
        }
        let seen = kvmetry.stop(signal);
        assert!(seen.points.iter().any(|it| it.is_of(&vm)), "{seen:?}");
        let text = |name: &str| fs::read_to_string(copy.path().join(name)).unwrap();
        assert_eq!(text("stdout"), text("out.lp"), "after SIG{signal}");
    }

    // Without anything to read, too.
    let mut kvmetry = Kvmetry::run(&["--uri", "qemu+unix:///system?socket=/nonexistent/libvirt-sock"]);
    kvmetry.wait_for_stderr("no such socket", SOON);
    kvmetry.stop("TERM");

    let (reader, writer) = pipe().unwrap();
    let mut run = command(&[
        "run",
        "--no-store",
        "--listen",
        "off",
        "--uri",
        &uri,
        "--interval",
        "1s",
        "--output",
        "-",
    ]);
    run.stdout(writer);
    let kvmetry = Kvmetry::spawn_with_its_stdout(run, tempfile::tempdir().unwrap());
    let mut first = String::new();
    BufReader::new(reader).read_line(&mut first).unwrap();
    assert!(!parse(&first).is_empty());
    // The reader is gone with that line: the next cycle finds the pipe closed.
    let ended = good(kvmetry.ended(SOON));
    assert!(!ended.stderr.contains("panic") && !ended.stderr.contains("ERROR"), "{}", ended.stderr);
}

/// Runs `kvmetry once` as a user in no group but its own, with no argument and no configuration. `sockets` stands in
/// for `/run/libvirt`, in a mount namespace of the command's own.
fn once_as_nobody(sockets: &Path) -> Ended {
    // The build's directory may be closed to others.
    let dir = tempfile::Builder::new().prefix("kvmetry-real-").tempdir_in("/var/tmp").unwrap();
    let program = dir.path().join("kvmetry");
    fs::copy(env!("CARGO_BIN_EXE_kvmetry"), &program).unwrap();
    for path in [dir.path(), &program] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    const AS_NOBODY: &str = "mount --bind \"$1\" /run/libvirt && cd / && \
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs env -u HOME \"$2\" once";
    let args = ["--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh"];
    let mut command = clean(std::process::Command::new("unshare"), &args);
    command.arg(sockets).arg(&program);
    finish_command(command, PATIENCE)
}

#[test]
fn an_unprivileged_user_in_no_group_reads_everything_with_no_configuration() {
    // The writable socket is root's alone.
    let mut options = DaemonOptions::default();
    options.conf.insert("unix_sock_rw_perms".into(), "\"0700\"".into());
    let daemon = Daemon::running(options).unwrap();
    let lab = lab_on(&daemon, "nobody");
    let vm = start_vm(&lab, "nobody's");
    let sockets = daemon.socket().parent().unwrap().to_owned();

    let ended = good(once_as_nobody(&sockets));
    let points = parse(&ended.stdout);
    assert_eq!(points.iter().filter(|it| it.is_of(&vm)).count(), FIRST_LINES, "{ended:?}");
    let totals = points.iter().find(|it| it.measurement == "vm_totals").unwrap();
    assert_eq!(totals.int("collect_ok"), Some(1), "{totals:?}");
    assert!(totals.int("memavailable") > Some(0) && totals.int("disk_wr_bytes") > Some(0), "{totals:?}");

    // Without the right to read, one line says what to do.
    fs::set_permissions(sockets.join("libvirt-sock-ro"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    let refused = once_as_nobody(&sockets);
    assert_eq!((refused.code(), refused.stdout.contains("vm_totals")), (1, false), "{refused:?}");
    assert!(
        refused.stderr.contains("libvirt-sock-ro") && refused.stderr.contains("permission"),
        "{}",
        refused.stderr
    );
}

#[test]
fn mistakes_are_named_with_the_nearest_right_word() {
    let check = |config: &str, args: &[&str], expect: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvmetry.toml");
        fs::write(&file, config).unwrap();
        let mut all = vec!["once", "--config", file.to_str().unwrap()];
        all.extend(args);
        let ended = finish(&all, PATIENCE);
        assert_eq!((ended.code(), ended.stdout.as_str()), (2, ""), "{config:?} {args:?}: {ended:?}");
        for part in expect {
            assert!(ended.stderr.contains(part), "{config:?} {args:?}: no {part:?} in {}", ended.stderr);
        }
    };
    check("[collect]\nintervall = \"5s\"\n", &[], &["kvmetry.toml:2", "\"intervall\"", "\"interval\""]);
    check("[colect]\ninterval = \"5s\"\n", &[], &["colect", "collect"]);
    check(
        "[[hypervisor]]\nuri = \"qemu:///system\"\nnmae = \"x\"\n",
        &[],
        &["toml:3", "\"nmae\"", "\"name\""],
    );
    check("", &["--uri", "qemu+carrier://h/system"], &["carrier", "transport"]);
    check("", &["--uri", "qemu+tcp://h:port/system"], &["port"]);
    check("", &["--formt", "json"], &["--formt", "--format"]);

    // The sample that `config` prints is a configuration.
    let sample = good(finish(&["config"], PATIENCE)).stdout;
    let mut kvmetry = Kvmetry::run_with(&sample, &["--interval", "1s"]);
    kvmetry.next_cycle();
    kvmetry.stop("TERM");
}
