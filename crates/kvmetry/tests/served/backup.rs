//! Backup and restore: what was acknowledged before a backup is there after the loss of the data directory.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use super::*;

/// A line of the series of numbers.
fn lines(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|n| format!("t,vm=vm{} n={n}i {}\n", n % 5, n / 5 * 7_000_000_000)).collect()
}

fn asked(dir: &Path, sql: &str) -> String {
    text(&kvmetry(dir, &["query", "--database", "db", "--format", "csv", sql]))
}

/// What a command that fails says.
fn refused(dir: &Path, args: &[&str]) -> String {
    let output =
        Command::new(KVMETRY).args(args).arg("--data-dir").arg(dir).envs(LONG).output().expect("it runs");
    assert!(!output.status.success(), "{args:?} went well");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a folder").map(|it| it.expect("a name").path());
    entries.flat_map(|it| if it.is_dir() { files_below(&it) } else { vec![it] }).collect()
}

const NUMBERS: &str = "SELECT n FROM t ORDER BY n";
const MINUTES: &str = "SELECT count(*) AS n, max(n_max) AS m, sum(n_mean) AS s FROM t_1m";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_backup_has_survives_the_data_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, backup) = (folder.path().join("data"), folder.path().join("backup"));
    let server = Server::start(&dir);
    let made = client().post(format!("{}/api/v3/configure/database", server.url));
    let made =
        made.header("content-type", "application/json").body(r#"{"db":"lab","retention_period":"7d"}"#);
    assert!(made.send().await.expect("an answer").status().is_success());
    // Some in files that compaction replaces, the others in memory.
    for from in (0..2_000).step_by(500) {
        assert_eq!(server.write(&lines(from..from + 500)).await.expect("an answer"), 204);
        kvmetry(&dir, &["compact"]);
    }
    assert_eq!(server.write(&lines(2_000..2_500)).await.expect("an answer"), 204);
    let making = {
        let (dir, backup) = (dir.clone(), backup.clone());
        tokio::task::spawn_blocking(move || kvmetry(&dir, &["backup", backup.to_str().expect("a path")]))
    };
    let mut next = 2_500;
    while !making.is_finished() {
        assert_eq!(server.write(&lines(next..next + 50)).await.expect("an answer"), 204);
        next += 50;
    }
    making.await.expect("a backup");
    // A backup can be asked as it is, and has all that was there before it, whole writes only.
    let numbers = asked(&backup, NUMBERS);
    let found: Vec<u64> = numbers.lines().skip(1).map(|it| it.parse().expect("a number")).collect();
    let count = found.len() as u64;
    assert!(found.iter().copied().eq(0..count), "{found:?}");
    assert!((2_500..=next).contains(&count) && count.is_multiple_of(50), "{count} of {next}");
    assert!(dir.join("backups").read_dir().expect("it is there").next().is_none(), "it was moved");
    let mode = fs::metadata(&backup).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "what VMs do is not for everybody");
    let is_linked = |it: &PathBuf| fs::metadata(it).expect("it is there").nlink() > 1;
    assert!(files_below(&backup.join("store/db")).iter().any(is_linked), "files are linked");
    let minutes = asked(&backup, MINUTES);
    // What comes later is not in it, and does not change it.
    assert_eq!(server.write(&lines(next..next + 500)).await.expect("an answer"), 204);
    kvmetry(&dir, &["compact"]);
    let busy = refused(&dir, &["restore", backup.to_str().expect("a path")]);
    assert!(busy.contains("is in use by process") || busy.contains("is not empty"), "{busy}");
    let busy = refused(&folder.path().join("other"), &["restore", dir.to_str().expect("a path")]);
    assert!(busy.contains("is in use by process") && busy.contains("kvmetry backup"), "{busy}");
    assert!(!folder.path().join("other").exists());
    server.kill();
    fs::remove_dir_all(&dir).expect("removed");

    kvmetry(&dir, &["restore", backup.to_str().expect("a path")]);
    assert_eq!(asked(&dir, NUMBERS), numbers);
    assert_eq!(asked(&dir, MINUTES), minutes);
    let server = Server::start(&dir);
    let listed = client().get(format!("{}/api/v3/configure/database?format=csv", server.url));
    let listed = listed.send().await.expect("an answer").text().await.expect("a text");
    assert!(listed.contains("lab,7days"), "{listed}");
    // Numbers of the journal go on, and the schema is known.
    assert_eq!(server.write("t,vm=vm0 n=1.5 1").await.expect("an answer"), 400);
    assert_eq!(server.write(&lines(count..count + 5)).await.expect("an answer"), 204);
    server.kill();
    assert_eq!(asked(&dir, "SELECT count(n) AS n FROM t"), format!("n\n{}\n", count + 5));
    // Nor did the backup change by all of that.
    assert_eq!(asked(&backup, NUMBERS), numbers);
}

#[tokio::test]
async fn a_restore_takes_whole_backups_and_empty_directories_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, backup) = (folder.path().join("data"), folder.path().join("backup"));
    let server = Server::start(&dir);
    assert_eq!(server.write(&lines(0..10)).await.expect("an answer"), 204);
    server.stop();
    let (restore, make) =
        (["restore", backup.to_str().expect("a path")], ["backup", backup.to_str().expect("a path")]);
    assert!(refused(&dir, &restore).contains("backup cannot be found"));
    fs::create_dir(&backup).expect("made");
    assert!(refused(&dir, &restore).contains("is no backup of kvmetry"));
    assert!(refused(&backup.join("inside"), &restore).contains("a backup stays as it is"));
    assert!(refused(&dir, &["backup", "/proc/backup"]).contains("/proc/backup cannot be made"));
    assert!(!dir.join("backups").exists(), "none was made for nothing");
    let inside = dir.join("inside");
    let told = refused(&dir, &["backup", inside.to_str().expect("a path")]);
    assert!(told.contains("is in the data directory"), "{told}");
    fs::write(dir.join("tokens.json"), r#"{"version":1,"tokens":[]}"#).expect("written");
    kvmetry(&dir, &make);
    assert!(refused(&dir, &make).contains("is not empty: a backup goes into a folder of its own"));
    let told = refused(&dir, &restore);
    assert!(told.contains("is not empty (") && told.contains("--replace"), "{told}");

    // Broken off in the middle.
    fs::write(backup.join("unfinished"), "").expect("written");
    assert!(refused(&dir, &restore).contains("holds only a part of a backup"));
    assert!(refused(&backup, &["query", "SELECT 1"]).contains("holds only a part of a backup"));
    fs::remove_file(backup.join("unfinished")).expect("removed");
    fs::write(backup.join("version"), "2\n").expect("written");
    assert!(refused(&dir, &restore).contains("was written by a newer kvmetry (version 2"));
    fs::write(backup.join("version"), "1\n").expect("written");

    // More came after it; --replace goes back to it. The tokens that are there stay.
    let server = Server::start(&dir);
    assert_eq!(fs::remove_file(dir.join("tokens.json")).ok(), Some(()));
    assert_eq!(server.write(&lines(10..20)).await.expect("an answer"), 204);
    server.stop();
    kvmetry(&dir, &[&restore[..], &["--replace"]].concat());
    assert_eq!(asked(&dir, "SELECT count(*) AS n FROM t"), "n\n10\n");
    let mode = fs::metadata(dir.join("tokens.json")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.join("unfinished").exists());

    // A file that is not what was written: named and left out, the rest is there.
    let server = Server::start(&dir);
    fs::remove_file(dir.join("tokens.json")).expect("removed");
    assert_eq!(server.write("u v=1i 1").await.expect("an answer"), 204);
    server.stop();
    fs::remove_dir_all(&backup).expect("removed");
    kvmetry(&dir, &make);
    let damaged = files_below(&backup.join("store/db/u")).into_iter().next().expect("a file");
    fs::copy(&damaged, damaged.with_extension("copy")).expect("copied");
    fs::rename(damaged.with_extension("copy"), &damaged).expect("renamed");
    let mut bytes = fs::read(&damaged).expect("read");
    bytes[10] ^= 1;
    fs::write(&damaged, bytes).expect("written");
    fs::remove_dir_all(&dir).expect("removed");
    let told = refused(&dir, &restore);
    assert!(told.contains("is damaged: its 1 rows are left out") && told.contains("restored: "), "{told}");
    assert_eq!(asked(&dir, "SELECT count(*) AS n FROM t"), "n\n10\n");
    assert_eq!(asked(&dir, "SELECT count(*) AS n FROM u"), "n\n0\n");
}

/// What is missing in a backup is said in words and by the exit code; the rest is in it.
#[tokio::test]
async fn a_backup_that_lacks_something_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, backup) = (folder.path().join("data"), folder.path().join("backup"));
    let server = Server::start(&dir);
    assert_eq!(server.write(&lines(0..10)).await.expect("an answer"), 204);
    assert_eq!(server.write("u v=1i 1").await.expect("an answer"), 204);
    kvmetry(&dir, &["compact"]);
    let lost = files_below(&dir.join("store/db/u")).into_iter().next().expect("a file");
    fs::remove_file(&lost).expect("removed");
    let told = refused(&dir, &["backup", backup.to_str().expect("a path")]);
    assert!(told.contains("is missing: its 1 rows are left out") && told.contains("backup: "), "{told}");
    assert_eq!(asked(&backup, "SELECT count(*) AS n FROM t"), "n\n10\n");
    server.stop();
}

/// Over HTTP backups stay in the data directory, so many and no more; what was broken off goes with the next one.
#[tokio::test]
async fn backups_over_http_stay_in_the_data_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    let server = Server::start(&dir);
    assert_eq!(server.write(&lines(0..10)).await.expect("an answer"), 204);
    let broken = dir.join("backups/broken");
    fs::create_dir_all(&broken).expect("made");
    fs::write(broken.join("unfinished"), "").expect("written");
    let url = format!("{}/api/v3/backup", server.url);
    let ask = async || {
        // No path from the wire is heeded.
        let answer = client().post(&url).body(r#"{"dir":"/tmp/elsewhere"}"#).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    let mut made = Vec::new();
    for _ in 0..16 {
        let (status, text) = ask().await;
        assert_eq!(status, 200, "{text}");
        let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&told["rows"], &told["missing"]), (&10.into(), &serde_json::json!([])));
        made.push(PathBuf::from(told["dir"].as_str().expect("a path")));
    }
    assert!(made.iter().all(|it| it.parent() == Some(&dir.join("backups")) && it.is_dir()), "{made:?}");
    assert!(!broken.exists());
    let (status, text) = ask().await;
    assert!(status == 500 && text.contains("there are 16 backups in"), "{status}: {text}");
    let last = made.pop().expect("some");
    assert_eq!(asked(&last, "SELECT count(*) AS n FROM t"), "n\n10\n");
    fs::remove_dir_all(&last).expect("removed");
    assert_eq!(ask().await.0, 200);
    server.stop();
    // Such a backup fills its own data directory again.
    let from = made[0].to_str().expect("a path");
    kvmetry(&dir, &["restore", "--replace", from]);
    assert_eq!(asked(&dir, "SELECT count(*) AS n FROM t"), "n\n10\n");
}
