//! What `kvmetry check` says of what is on this machine: data directory, store, port.

use super::*;

fn check(dir: &Path, listen: &str) -> String {
    let output = Command::new(KVMETRY)
        .args(["check", "--uri", "qemu+unix:///system?socket=/nonexistent", "--data-dir"])
        .arg(dir)
        .env("KVMETRY_HTTP_LISTEN", listen)
        .env("KVMETRY_STORE_MIN_FREE", "16MiB")
        .env("KVMETRY_STORE_MAX_SIZE", "64MiB")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1), "there is no such hypervisor");
    text(&output)
}

#[tokio::test]
async fn it_says_who_has_the_data_directory_and_the_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    let told = check(&dir, "127.0.0.1:0");
    let expect = format!(
        "data directory {}\n  ok    is not there yet: it is made in {}",
        dir.display(),
        folder.path().display()
    );
    assert!(told.contains(&expect), "{told}");
    assert!(!dir.exists(), "it makes nothing");
    assert!(told.contains("  ok    the store: 0 files, 0 MiB of at most 64 MiB"), "{told}");
    assert!(told.contains("HTTP port 127.0.0.1:0\n  ok    free"), "{told}");
    assert!(told.contains("  ok    kvmetry run tells where the dashboard is"), "{told}");

    let server = Server::start(&dir);
    assert_eq!(server.write("t v=1i 1000").await.expect("an answer"), 204);
    kvmetry(&dir, &["compact"]);
    let port = server.url.strip_prefix("http://").expect("a URL").to_owned();
    let told = check(&dir, &port);
    let expect = format!("  ok    in use by process {}, which answers at {}", server.child.id(), server.url);
    assert!(told.contains(&expect), "{told}");
    assert!(told.contains("  ok    the store: 1 files"), "{told}");
    assert!(told.contains("  ok    open: the process that has the data directory listens there"), "{told}");
    assert!(told.contains(&format!("  ok    the dashboard is at {}/\n", server.url)), "{told}");

    // The port of another.
    let other = folder.path().join("other");
    let told = check(&other, &port);
    assert!(told.contains("  FAIL  cannot be opened: Address already in use"), "{told}");
    assert!(!told.contains("dashboard"), "{told}");
    let url = server.url.clone();
    server.stop();
    let told = check(&dir, &port);
    assert!(told.contains(&format!("  ok    the dashboard will be at {url}/ once kvmetry runs\n")), "{told}");
    assert!(told.contains("  ok    no kvmetry uses it now"), "{told}");
    std::fs::write(dir.join("version"), "2\n").expect("written");
    assert!(check(&dir, &port).contains("  FAIL  "), "{told}");
    assert!(check(&dir, &port).contains("was written by a newer kvmetry (version 2"), "{told}");
}

#[test]
fn it_tells_what_would_keep_the_port_shut() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    let told = check(&dir, "0.0.0.0:0");
    assert!(
        told.contains("  FAIL  0.0.0.0:0 can be reached from other machines, and there is no token"),
        "{told}"
    );
    kvmetry(&dir, &["token", "--scope", "read"]);
    assert!(!check(&dir, "0.0.0.0:0").contains("no token"));
    std::fs::write(dir.join("tokens.json"), "rubbish").expect("written");
    let told = check(&dir, "127.0.0.1:0");
    assert!(told.contains("tokens.json is damaged"), "{told}");
}

#[test]
fn a_relative_data_directory_that_is_not_there_yet() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(KVMETRY);
    command.args(["check", "--uri", "qemu+unix:///system?socket=/nonexistent"]);
    command.args(["--data-dir", "new"]).current_dir(folder.path()).env("KVMETRY_HTTP_LISTEN", "off");
    let told = text(&command.output().expect("it runs"));
    assert!(told.contains("  ok    is not there yet: it is made in "), "{told}");
}
