//! A data directory that is not there any more, as when its file system is unmounted: told, and nothing is written into
//! what is at its place; when it is back, all goes on.

use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn nothing_goes_into_the_mount_point_below() {
    let folder = tempfile::tempdir().expect("a folder");
    let (dir, away) = (folder.path().join("data"), folder.path().join("away"));
    let server = Server::start(&dir);
    assert_eq!(server.write("t v=1i 1000").await.expect("an answer"), 204);
    std::fs::rename(&dir, &away).expect("it goes");
    std::fs::create_dir(&dir).expect("the mount point below");
    for n in 0..20 {
        let url = format!("{}/api/v3/write_lp?db=db&precision=ns", server.url);
        let answer = client().post(url).body(format!("u v=1i {n}")).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 503);
        assert!(answer.headers().contains_key("retry-after"));
        let told = answer.text().await.expect("a text");
        assert!(told.contains("is not the data directory any more"), "{told}");
    }
    let left: Vec<_> = dir.read_dir().expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::remove_dir(&dir).expect("empty");
    std::fs::rename(&away, &dir).expect("it comes back");
    let since = Instant::now();
    while server.write("t v=2i 2000").await.expect("an answer") != 204 {
        assert!(since.elapsed() < PATIENCE, "it does not recover");
    }
    assert_eq!(server.ask("SELECT v FROM t ORDER BY time").await, "v\n1\n2\n");
    server.kill();
    let server = Server::start(&dir);
    assert_eq!(server.ask("SELECT v FROM t ORDER BY time").await, "v\n1\n2\n");
    server.stop();
}
