//! A small file system that fills up under a running `kvmetry`, and gets room again: collecting goes on, what cannot be
//! written is refused with 503, and nothing that was acknowledged is missing afterwards, also after a kill. One that is
//! unmounted, and one that a backup goes to.
//!
//! The file system is a tmpfs of the test's own, mounted as root.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{Kvmetry, SOON, URI, command, finish_command, sudo};

/// Of the file system: less than the journal and the store may take, more than `min_free` and a few segments.
const SIZE: &str = "size=48m";
/// Its cycles go on every second; so much for some of them, or for a maintenance, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted tmpfs, unmounted when it is dropped.
struct Small {
    dir: TempDir,
}

impl Small {
    fn mounted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sudo(&["mount", "-t", "tmpfs", "-o", SIZE, "kvmetry-test", dir.path().to_str().unwrap()]);
        Self { dir }
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    /// Fills all that is free, to the last byte.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        for size in [1 << 20, 4096, 1] {
            let block = vec![1; size];
            loop {
                match file.write(&block) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// A bind mount, unmounted when it is dropped.
struct Bound<'a>(&'a Path);

impl<'a> Bound<'a> {
    fn mounted(from: &Path, to: &'a Path) -> Self {
        sudo(&["mount", "--bind", from.to_str().unwrap(), to.to_str().unwrap()]);
        Self(to)
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        sudo(&["umount", "-l", self.0.to_str().unwrap()]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Whoever uses it has ended.
        sudo(&["umount", "-l", self.dir.path().to_str().unwrap()]);
    }
}

fn kvmetry(data: &Path, dir: TempDir) -> (Kvmetry, String) {
    let output = format!("file:{}", dir.path().join("out.lp").display());
    let mut command =
        command(&["run", "--uri", URI, "--interval", "1s", "--listen", "127.0.0.1:0", "--output", &output]);
    command.arg("--data-dir").arg(data).envs(settings());
    let mut kvmetry = Kvmetry::spawn(command, dir);
    kvmetry.wait_for_stderr("listening on ", PATIENCE);
    let told = kvmetry.stderr();
    let url = told.lines().find_map(|it| it.split_once("listening on ")).unwrap().1.trim().to_owned();
    (kvmetry, url)
}

fn settings() -> [(&'static str, &'static str); 4] {
    [
        ("KVMETRY_JOURNAL_MAX_SIZE", "64MiB"),
        ("KVMETRY_STORE_MIN_FREE", "16MiB"),
        ("KVMETRY_STORE_MAX_SIZE", "64MiB"),
        ("KVMETRY_STORE_RETENTION", "36500days"),
    ]
}

/// Writes so many lines, each with its number; the status.
fn write(url: &str, first: u64, count: u64) -> u16 {
    let pad = "x".repeat(400);
    let lines: String = (first..first + count)
        .map(|n| format!("t n={n}i,pad=\"{pad}{:x}\" {}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n * 1_000))
        .collect();
    let url = format!("{url}/api/v3/write_lp?db=db&precision=ns");
    let args =
        ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--data-binary", "@-", &url];
    let mut curl = std::process::Command::new("curl");
    let mut curl = curl
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    curl.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = curl.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

/// The numbers that are there.
fn numbers(data: &Path) -> Vec<u64> {
    let sql = "SELECT n FROM t ORDER BY n";
    let mut command = command(&["query", "--database", "db", "--format", "csv", sql]);
    command.arg("--data-dir").arg(data).envs(settings());
    let ended = finish_command(command, PATIENCE);
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended.stdout.lines().skip(1).map(|it| it.parse().unwrap()).collect()
}

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    const LINES: u64 = 500;
    let small = Small::mounted();
    let data = small.dir.path().join("data");
    let (mut kvmetry, url) = kvmetry(&data, tempfile::tempdir().unwrap());
    let (mut next, mut acknowledged, mut refused) = (0, Vec::new(), 0);
    let mut put = |acknowledged: &mut Vec<u64>| {
        let status = write(&url, next, LINES);
        match status {
            204 => acknowledged.extend(next..next + LINES),
            503 => refused += 1,
            other => panic!("{other}"),
        }
        next += LINES;
        (status, refused)
    };
    for _ in 0..10 {
        assert_eq!(put(&mut acknowledged).0, 204);
    }
    kvmetry.next_cycle();

    // Nothing is free any more. The journal goes on in the room that it has, dropping what the store has in memory, until
    // there is none: then writes are refused.
    let since = Instant::now();
    loop {
        small.fill();
        if put(&mut acknowledged).1 >= 3 {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "nothing is refused");
    }
    kvmetry.wait_for_stderr("the disk is nearly full: the store stops growing", PATIENCE);
    kvmetry.wait_for_stderr("the journal cannot be written, and writes are refused", PATIENCE);
    kvmetry.next_cycles(3);

    // Room again: all by itself, and nothing is missing.
    fs::remove_file(small.filler()).unwrap();
    kvmetry.wait_for_stderr("the disk has room again: the store grows on", PATIENCE);
    let since = Instant::now();
    while put(&mut acknowledged).0 != 204 {
        assert!(since.elapsed() < PATIENCE, "it does not recover");
    }
    kvmetry.wait_for_stderr("the journal can be written again", PATIENCE);
    kvmetry.next_cycle();
    let is_all_there = |found: Vec<u64>| {
        assert!(found.is_sorted_by(|a, b| a < b), "a point is there twice");
        let missing: Vec<_> = acknowledged.iter().filter(|it| found.binary_search(it).is_err()).collect();
        assert!(missing.is_empty(), "{} of {} are missing", missing.len(), acknowledged.len());
    };
    is_all_there(numbers(&data));
    let mut compact = command(&["compact", "--data-dir"]);
    compact.arg(&data).envs(settings());
    let ended = finish_command(compact, PATIENCE);
    assert_eq!(ended.code(), 0, "{ended:?}");
    kvmetry.signal("KILL");
    kvmetry.ended(SOON);
    is_all_there(numbers(&data));
}

#[test]
fn an_unmounted_data_directory_is_told_and_waited_for() {
    let small = Small::mounted();
    let folder = tempfile::tempdir().unwrap();
    let mount_point = folder.path().join("data");
    fs::create_dir(&mount_point).unwrap();
    let mounted = Bound::mounted(small.dir.path(), &mount_point);
    let (mut kvmetry, url) = kvmetry(&mount_point, tempfile::tempdir().unwrap());
    assert_eq!(write(&url, 0, 10), 204);
    kvmetry.next_cycle();
    drop(mounted);
    // It is looked for every few seconds; a write tells before that.
    kvmetry.wait_for_stderr("nothing can be written, and writes are refused", PATIENCE);
    kvmetry.wait_for_stderr("is not the data directory any more: it was unmounted", PATIENCE);
    assert_eq!(write(&url, 10, 10), 503);
    kvmetry.next_cycles(2);
    let below: Vec<_> = fs::read_dir(&mount_point).unwrap().collect();
    assert!(below.is_empty(), "{below:?}");

    let _mounted = Bound::mounted(small.dir.path(), &mount_point);
    kvmetry.wait_for_stderr("the data directory is there again", PATIENCE);
    assert_eq!(write(&url, 20, 10), 204);
    kvmetry.next_cycle();
    kvmetry.signal("KILL");
    kvmetry.ended(SOON);
    let found = numbers(&mount_point);
    assert!((0..10).chain(20..30).all(|it| found.contains(&it)), "{found:?}");
}

#[test]
fn a_backup_goes_to_another_file_system_and_comes_back() {
    let small = Small::mounted();
    backup_and_restore(&small.dir.path().join("backup"));
}

/// Its parent and the data directory are on one file system.
#[test]
fn a_backup_goes_to_a_mount_point_and_comes_back() {
    let small = Small::mounted();
    let user = rustix::process::geteuid().as_raw().to_string();
    sudo(&["chown", &user, small.dir.path().to_str().unwrap()]);
    backup_and_restore(small.dir.path());
}

fn backup_and_restore(backup: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (kvmetry, url) = kvmetry(&data, tempfile::tempdir().unwrap());
    assert_eq!(write(&url, 0, 1_000), 204);
    let run = |args: &[&str]| {
        let mut command = command(args);
        command.arg(backup).arg("--data-dir").arg(&data).envs(settings());
        let ended = finish_command(command, PATIENCE);
        assert_eq!(ended.code(), 0, "{ended:?}");
    };
    run(&["backup"]);
    kvmetry.signal("KILL");
    kvmetry.ended(SOON);
    assert!(
        fs::read_dir(data.join("backups")).unwrap().next().is_none(),
        "the one in the data directory is removed"
    );
    assert!(!backup.join("unfinished").exists());
    fs::remove_dir_all(&data).unwrap();
    run(&["restore"]);
    assert!(numbers(&data).into_iter().eq(0..1_000));
}
