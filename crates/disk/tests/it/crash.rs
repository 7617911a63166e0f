//! What the double keeps, forgets and breaks.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use disk::Disk;
use disk::double::{Double, Effect, Failure, Fault, Op, SECTOR};

const DIR: &str = "/data";

fn disk() -> Double {
    let disk = Double::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

fn write(disk: &Double, path: &str, bytes: &[u8]) {
    disk.open(Path::new(path)).unwrap().write_all_at(bytes, 0).unwrap();
}

fn sync(disk: &Double, path: &str) {
    disk.open(Path::new(path)).unwrap().sync().unwrap();
}

fn content(disk: &Double, path: &str) -> Option<String> {
    let file = disk.open_to_read(Path::new(path)).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(String::from_utf8(bytes).unwrap())
}

/// What a crash after these steps may leave of these files, over many seeds.
fn outcomes(steps: impl Fn(&Double), paths: &[&str]) -> BTreeSet<Vec<Option<String>>> {
    (0..300)
        .map(|seed| {
            let disk = disk();
            disk.seed(seed);
            steps(&disk);
            disk.crash(seed);
            paths.iter().map(|it| content(&disk, it)).collect()
        })
        .collect()
}

fn set(expected: &[&[Option<&str>]]) -> BTreeSet<Vec<Option<String>>> {
    expected.iter().map(|one| one.iter().map(|it| it.map(str::to_owned)).collect()).collect()
}

#[test]
fn a_file_is_there_when_bytes_and_name_were_synced() {
    let paths = ["/data/a"];
    let both = outcomes(
        |disk| {
            write(disk, "/data/a", b"x");
            sync(disk, "/data/a");
            disk.sync_dir(Path::new(DIR)).unwrap();
        },
        &paths,
    );
    assert_eq!(both, set(&[&[Some("x")]]));
    let name = outcomes(
        |disk| {
            write(disk, "/data/a", b"x");
            disk.sync_dir(Path::new(DIR)).unwrap();
        },
        &paths,
    );
    assert_eq!(name, set(&[&[Some("")], &[Some("x")]]));
    let bytes = outcomes(
        |disk| {
            write(disk, "/data/a", b"x");
            sync(disk, "/data/a");
        },
        &paths,
    );
    assert_eq!(bytes, set(&[&[None], &[Some("x")]]));
}

#[test]
fn writes_get_there_in_any_combination_and_in_parts() {
    let kept = |disk: &Double| {
        write(disk, "/data/a", b"....");
        sync(disk, "/data/a");
        disk.sync_dir(Path::new(DIR)).unwrap();
    };
    let found = outcomes(
        |disk| {
            kept(disk);
            let file = disk.open(Path::new("/data/a")).unwrap();
            file.write_all_at(b"1", 0).unwrap();
            file.write_all_at(b"2", 1).unwrap();
            file.set_len(6).unwrap();
        },
        &["/data/a"],
    );
    let all = ["....", "1...", ".2..", "12..", "....\0\0", "1...\0\0", ".2..\0\0", "12..\0\0"];
    assert_eq!(found, all.iter().map(|it| vec![Some((*it).to_owned())]).collect());

    let torn = outcomes(
        |disk| {
            write(disk, "/data/a", "-".repeat(2 * SECTOR).as_bytes());
            sync(disk, "/data/a");
            disk.sync_dir(Path::new(DIR)).unwrap();
            let file = disk.open(Path::new("/data/a")).unwrap();
            file.write_all_at("x".repeat(SECTOR).as_bytes(), SECTOR as u64 / 2).unwrap();
        },
        &["/data/a"],
    );
    let half = SECTOR / 2;
    let line = |a: &str, b: &str| {
        let parts = ["-".repeat(half), a.repeat(half), b.repeat(half), "-".repeat(half)];
        vec![Some(parts.concat())]
    };
    let all = [line("-", "-"), line("x", "-"), line("-", "x"), line("x", "x")];
    assert_eq!(torn, all.into_iter().collect());
}

#[test]
fn names_change_in_any_combination_but_each_as_a_whole() {
    let steps = |disk: &Double| {
        for (path, bytes) in [("/data/a", b"old"), ("/data/b", b"new"), ("/data/c", b"one")] {
            write(disk, path, bytes);
            sync(disk, path);
        }
        disk.sync_dir(Path::new(DIR)).unwrap();
        disk.rename(Path::new("/data/b"), Path::new("/data/a")).unwrap();
        disk.remove_file(Path::new("/data/c")).unwrap();
    };
    let expected = set(&[
        &[Some("old"), Some("new"), Some("one")],
        &[Some("old"), Some("new"), None],
        &[Some("new"), None, Some("one")],
        &[Some("new"), None, None],
    ]);
    assert_eq!(outcomes(steps, &["/data/a", "/data/b", "/data/c"]), expected);
    let linked = |disk: &Double| {
        write(disk, "/data/a", b"x");
        sync(disk, "/data/a");
        disk.sync_dir(Path::new(DIR)).unwrap();
        disk.hard_link(Path::new("/data/a"), Path::new("/data/b")).unwrap();
        disk.remove_file(Path::new("/data/a")).unwrap();
    };
    let expected = set(&[&[Some("x"), None], &[Some("x"), Some("x")], &[None, Some("x")], &[None, None]]);
    assert_eq!(outcomes(linked, &["/data/a", "/data/b"]), expected);
}

#[test]
fn the_same_seed_gives_the_same_crash() {
    let run = |seed| {
        let disk = disk();
        for n in 0..20 {
            write(&disk, &format!("/data/{n}"), b"x");
        }
        disk.crash(seed);
        disk.list(Path::new(DIR)).unwrap()
    };
    assert_eq!(run(7), run(7));
    assert!((0..20).any(|seed| run(seed) != run(7)));
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let found = outcomes(
        |disk| {
            write(disk, "/data/a", b"x");
            disk.sync_dir(Path::new(DIR)).unwrap();
            disk.fault(Fault { times: 1, ..Fault::every(Op::Sync, Effect::Fail(Failure::Io)) });
            let file = disk.open(Path::new("/data/a")).unwrap();
            assert!(file.sync().is_err());
            file.sync().unwrap();
            assert_eq!(content(disk, "/data/a").unwrap(), "x", "the cache has it still");
        },
        &["/data/a"],
    );
    assert_eq!(found, set(&[&[Some("")], &[Some("x")]]));
}

#[test]
fn an_ignored_sync_makes_nothing_durable() {
    let found = outcomes(
        |disk| {
            disk.fault(Fault::every(Op::SyncDir, Effect::Ignore).on("data"));
            disk.fault(Fault::every(Op::Sync, Effect::Ignore).on("/data/b"));
            for path in ["/data/a", "/data/b"] {
                write(disk, path, b"x");
                sync(disk, path);
            }
            disk.sync_dir(Path::new(DIR)).unwrap();
        },
        &["/data/a", "/data/b"],
    );
    assert!(
        found.contains(&vec![None, None]) && found.contains(&vec![Some("x".into()), Some(String::new())])
    );
    assert!(!found.contains(&vec![Some(String::new()), None]), "a was synced");
}

#[test]
fn folders_whose_names_were_not_synced_may_go_with_all_in_them() {
    let found = |are_synced: bool| {
        let steps = |disk: &Double| {
            disk.fault(Fault::every(Op::CreateDirAll, Effect::Ignore));
            disk.create_dir_all(Path::new("/data/b/c")).unwrap();
            write(disk, "/data/b/c/a", b"x");
            sync(disk, "/data/b/c/a");
            let dirs = ["/data/b/c", "/data/b", DIR].into_iter().take(if are_synced { 3 } else { 2 });
            dirs.for_each(|it| disk.sync_dir(Path::new(it)).unwrap());
        };
        outcomes(steps, &["/data/b/c/a"])
    };
    assert_eq!(found(true), set(&[&[Some("x")]]));
    assert_eq!(found(false), set(&[&[None], &[Some("x")]]));
}

#[test]
fn faults_hit_what_they_name_as_often_as_they_say() {
    let disk = disk();
    disk.fault(Fault {
        after: 1,
        times: 2,
        ..Fault::every(Op::Write, Effect::Fail(Failure::NoSpace)).on("/a")
    });
    let (a, b) = (disk.open(Path::new("/data/a")).unwrap(), disk.open(Path::new("/data/b")).unwrap());
    let results: Vec<bool> = (0..4).map(|_| a.write_all_at(b"x", 0).is_ok()).collect();
    assert_eq!(results, [true, false, false, true]);
    b.write_all_at(b"x", 0).unwrap();
    disk.fault(Fault::nth(1, Effect::Short(Failure::NoSpace)));
    b.write_all_at(b"1111", 0).unwrap();
    assert_eq!(b.write_all_at(b"2222", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(content(&disk, "/data/b").unwrap(), "2211");
    let before = disk.operations();
    a.sync().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(disk.operations(), before + 2);
    assert_eq!(disk.count(Op::SyncDir), 1);
    disk.fault(Fault::every(Op::List, Effect::Fail(Failure::ReadOnly)));
    assert_eq!(disk.list(Path::new(DIR)).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    disk.heal();
    disk.list(Path::new(DIR)).unwrap();
}

#[test]
fn without_power_nothing_works_and_the_dead_stay_dead() {
    let disk = disk();
    let file = disk.open(Path::new("/data/a")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.fault(Fault::nth(1, Effect::PowerOff));
    file.write_all_at(b"x", 0).unwrap();
    assert!(file.sync().is_err());
    assert!(disk.is_off());
    assert!(
        file.len().is_err() && disk.open(Path::new("/data/a")).is_err() && disk.list(Path::new(DIR)).is_err()
    );
    disk.crash(1);
    assert!(!disk.is_off());
    assert!(file.write_all_at(b"y", 0).is_err(), "opened before the crash");
    drop(file);
    write(&disk, "/data/a", b"z");
    assert_eq!(content(&disk, "/data/a").unwrap(), "z");
}

#[test]
fn room_is_limited_in_pages_and_given_back() {
    let disk = disk();
    disk.set_space(Some(3 * 4096));
    let a = disk.open(Path::new("/data/a")).unwrap();
    a.set_len(1 << 20).unwrap();
    assert_eq!(disk.used(), 0, "a hole");
    a.write_all_at(&[1; 4097], 4096).unwrap();
    assert_eq!(disk.space(Path::new(DIR)).unwrap().free, 4096);
    a.write_all_at(&[1; 8192], 4096).unwrap();
    assert_eq!(a.write_all_at(&[2; 8192], 40960).unwrap_err().kind(), ErrorKind::StorageFull);
    let mut part = [0; 2];
    a.read_exact_at(&mut part, 40960 + 4095).unwrap();
    assert_eq!(part, [2, 0], "a part was written");
    a.set_len(8192).unwrap();
    assert_eq!(disk.used(), 4096);
    disk.remove_file(Path::new("/data/a")).unwrap();
    assert_eq!(disk.used(), 4096, "still open");
    drop(a);
    assert_eq!(disk.used(), 0);
}

#[test]
fn damage_is_seen_at_once_and_after_a_crash() {
    let disk = disk();
    write(&disk, "/data/a", b"abc");
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert!(disk.damage(Path::new("/data/a"), |bytes| bytes[1] ^= 1));
    assert!(!disk.damage(Path::new("/data/b"), Vec::clear));
    assert_eq!(content(&disk, "/data/a").unwrap(), "acc");
    disk.crash(0);
    assert_eq!(content(&disk, "/data/a").unwrap(), "acc");
}
