//! Data directories that releases have left (`cargo xtask fixture`): each is opened, asked, written to and compacted.

use std::fs;
use std::path::PathBuf;

use super::*;

/// The points are old, and stay.
const KEPT: [(&str, &str); 5] = [
    ("KVMETRY_STORE_RETENTION", "36500days"),
    ("KVMETRY_STORE_DEVICES_RETENTION", "36500days"),
    ("KVMETRY_STORE_MINUTES_RETENTION", "36500days"),
    ("KVMETRY_STORE_HOURS_RETENTION", "36500days"),
    ("KVMETRY_JOURNAL_MAX_AGE", "3650days"),
];

fn fixtures() -> Vec<PathBuf> {
    let folder = crate::package().join("tests/fixtures");
    let mut found: Vec<_> =
        fs::read_dir(folder).expect("there").map(|it| it.expect("a name").path()).collect();
    found.retain(|it| it.file_name().is_some_and(|it| it.to_string_lossy().starts_with("data-dir-v")));
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for entry in fs::read_dir(from).expect("there") {
        let (from, to) = entry.map(|it| (it.path(), to.join(it.file_name()))).expect("a name");
        if from.is_dir() { copy(&from, &to) } else { fs::copy(&from, &to).map(drop).expect("copied") }
    }
}

fn run(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(KVMETRY);
    let output = command.args(args).arg("--data-dir").arg(dir).envs(KEPT).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    text(&output)
}

#[tokio::test]
async fn what_releases_have_left_is_read() {
    let fixtures = fixtures();
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let answers = fs::read(fixture.join("answers.json")).expect("answers.json");
        let answers: Vec<serde_json::Value> = serde_json::from_slice(&answers).expect("JSON");
        assert!(answers.len() >= 5, "{}", fixture.display());
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("data");
        copy(&fixture.join("data"), &dir);
        let check = || {
            for answer in &answers {
                let of = |name: &str| answer[name].as_str().expect("a text");
                let args = ["query", "--database", of("database"), "--format", "csv", of("sql")];
                assert_eq!(run(&dir, &args), of("csv"), "{}: {}", fixture.display(), of("sql"));
            }
        };
        check();
        let server = Server::with(&dir, &[], &KEPT);
        let listed = client().get(format!("{}/api/v3/configure/database?format=csv", server.url));
        let listed = listed.send().await.expect("an answer").text().await.expect("a text");
        assert!(listed.contains("kept,7days"), "{listed}");
        // The schema is known, and what is written now comes after all that was.
        assert_eq!(server.write("types i=1.5 1").await.expect("an answer"), 204, "another database");
        let own = format!("{}/api/v3/write_lp?db=own&precision=ns", server.url);
        let write = async |line: &'static str| {
            client().post(&own).body(line).send().await.expect("an answer").status().as_u16()
        };
        assert_eq!(write("types i=1.5 1").await, 400);
        assert_eq!(write("added v=1i 1").await, 204);
        server.kill();
        check();
        run(&dir, &["compact"]);
        check();
        assert_eq!(
            run(&dir, &["query", "--database", "own", "--format", "csv", "SELECT v FROM added"]),
            "v\n1\n"
        );
    }
}

/// What a later release wrote is refused by its name, whichever part of it is later, and nothing in it changes.
#[test]
fn what_a_later_release_wrote_is_refused() {
    #[track_caller]
    fn check(change: impl FnOnce(&Path), expect: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("data");
        copy(&fixtures()[0].join("data"), &dir);
        change(&dir);
        let ask = ["query", "SELECT 1", "--data-dir"];
        let output = Command::new(KVMETRY).args(ask).arg(&dir).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(expect), "{told}");
    }
    check(
        |dir| fs::write(dir.join("version"), "2\n").expect("written"),
        "written by a newer kvmetry (version 2",
    );
    check(
        |dir| {
            let path = dir.join("store/manifest.json");
            let text = fs::read_to_string(&path).expect("read");
            fs::write(&path, text.replacen("\"format\":1", "\"format\":2", 1)).expect("written");
        },
        "manifest.json has format 2, this release knows formats up to 1",
    );
    check(
        |dir| {
            let entries = fs::read_dir(dir.join("journal")).expect("there");
            let path = entries.map(|it| it.expect("a name").path()).max().expect("a segment");
            let newer = path.to_string_lossy().replace(".v1.redb", ".v2.redb");
            fs::rename(&path, newer).expect("renamed");
        },
        "version 2 of the journal's format",
    );
}
