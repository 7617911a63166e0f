//! What each call does, on a real disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::RealDisk;
use journal::{Entry, Journal, Limits, LossCause, Opened, Read, Seq};

const SECOND: i64 = 1_000_000_000;

fn open(dir: &Path, readers: &[&str]) -> (Journal, Opened) {
    open_with(dir, Limits { max_bytes: 16 << 20, ..Limits::default() }, readers)
}

fn open_with(dir: &Path, limits: Limits, readers: &[&str]) -> (Journal, Opened) {
    Journal::open(Arc::new(RealDisk), dir, limits, readers).unwrap()
}

fn entry(n: usize, len: usize) -> Entry {
    let at = i64::try_from(n).unwrap();
    Entry {
        payload: (0..len).map(|it| (it * 7 + n) as u8).collect(),
        lines: 1 + n as u32 % 9,
        span: (at, at + 5),
    }
}

fn seqs(read: &Read) -> Vec<Seq> {
    read.entries.iter().map(|(seq, _)| *seq).collect()
}

#[test]
fn what_is_appended_is_read_in_order_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, opened) = open(dir.path(), &["a"]);
    assert_eq!(opened, Opened::default());
    assert_eq!(journal.read(0, 1000).unwrap(), Read::default());

    let all: Vec<Entry> = (0..20).map(|n| entry(n, n * 100)).collect();
    let first = journal.append(&all[..3], &[("schema", b"one")], SECOND).unwrap();
    assert_eq!((first.first, first.last), (1, 3));
    let second = journal.append(&all[3..], &[], SECOND).unwrap();
    assert_eq!((second.first, second.last), (4, 20));

    for journal in [journal, open(dir.path(), &["a"]).0] {
        assert_eq!(journal.state("schema").unwrap().as_deref(), Some(b"one".as_slice()));
        assert_eq!(journal.state("other").unwrap(), None);
        let read = journal.read(0, usize::MAX).unwrap();
        assert_eq!(read.through, 20);
        assert_eq!(read.damaged, []);
        assert_eq!(seqs(&read), (1..=20).collect::<Vec<_>>());
        assert!(read.entries.iter().zip(&all).all(|((_, read), wrote)| read == wrote));
        assert_eq!(seqs(&journal.read(4, 1).unwrap()), [5], "at least one");
        assert_eq!(seqs(&journal.read(18, 3700).unwrap()), [19, 20]);
    }
}

#[test]
fn the_age_of_the_oldest_entry_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), &["a"]);
    assert_eq!(journal.stats().oldest_at, None);
    // States are no entries.
    journal.append(&[], &[("schema", b"one")], SECOND).unwrap();
    assert_eq!(journal.stats().oldest_at, None);
    journal.append(&[entry(1, 10)], &[], 2 * SECOND).unwrap();
    journal.append(&[entry(2, 10)], &[], 3 * SECOND).unwrap();
    assert_eq!(journal.stats().oldest_at, Some(2 * SECOND));
    drop(journal);
    // A new segment begins; the first one stays until it is read.
    let (journal, _) = open(dir.path(), &["a"]);
    assert_eq!(journal.stats().oldest_at, Some(2 * SECOND));
    journal.append(&[entry(3, 10)], &[], 4 * SECOND).unwrap();
    assert_eq!((journal.stats().segments, journal.stats().oldest_at), (2, Some(2 * SECOND)));
    journal.advance("a", 2);
    journal.maintain(5 * SECOND).unwrap();
    assert_eq!((journal.stats().segments, journal.stats().oldest_at), (1, Some(4 * SECOND)));
}

#[test]
fn a_reader_goes_on_where_it_was_and_a_new_one_begins_with_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), &["a", "b"]);
    journal.append(&[entry(1, 10), entry(2, 10), entry(3, 10)], &[], SECOND).unwrap();
    journal.advance("a", 2);
    journal.advance("a", 1);
    journal.maintain(SECOND).unwrap();
    drop(journal);

    let (journal, opened) = open(dir.path(), &["a", "c"]);
    assert_eq!(opened, Opened::default());
    assert_eq!(journal.cursor("a"), 2);
    assert_eq!(journal.cursor("c"), 0);
    assert_eq!(journal.cursor("b"), 0, "nobody knows it");
    journal.append(&[entry(4, 10)], &[], SECOND).unwrap();
    assert_eq!(journal.stats().readers.iter().map(|it| it.reader.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn room_is_given_back_when_every_reader_is_past() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), &["a", "b"]);
    for n in 0..100 {
        journal.append(&[entry(n, 100_000)], &[("s", &[n as u8])], SECOND).unwrap();
    }
    let full = journal.stats();
    assert!(full.file_bytes > 10_000_000, "{full:?}");
    journal.advance("a", 100);
    journal.maintain(SECOND).unwrap();
    assert!(journal.stats().file_bytes > 10_000_000, "b has read nothing");
    journal.advance("b", 100);
    assert_eq!(journal.maintain(SECOND).unwrap(), []);
    let stats = journal.stats();
    assert!(stats.file_bytes < 200_000, "{stats:?}");
    let on_disk: u64 =
        std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk < 400_000, "{on_disk}");
    assert_eq!(journal.state("s").unwrap(), Some(vec![99]));
    drop(journal);
    let (journal, _) = open(dir.path(), &["a", "b"]);
    assert_eq!(journal.state("s").unwrap(), Some(vec![99]));
    assert_eq!(journal.cursor("b"), 100);
    assert_eq!(journal.append(&[entry(1, 1)], &[], SECOND).unwrap().first, 101);
}

#[test]
fn beyond_the_limit_the_oldest_go_and_are_counted_for_who_had_not_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(dir.path(), Limits { max_bytes: 4 << 20, ..Limits::default() }, &["a", "b"]);
    let all: Vec<Entry> = (0..200).map(|n| entry(n, 60_000)).collect();
    let mut losses = Vec::new();
    for it in &all {
        losses.extend(journal.append(std::slice::from_ref(it), &[], SECOND).unwrap().losses);
        journal.advance("b", journal.stats().last);
        assert!(journal.stats().file_bytes <= 4 << 20, "{:?}", journal.stats());
    }
    let stats = journal.stats();
    assert!(stats.file_bytes > 3 << 20, "{stats:?}");
    assert!(losses.iter().all(|it| it.reader == "a" && it.cause == LossCause::Full), "{losses:?}");
    let lost = usize::try_from(stats.first - 1).unwrap();
    assert!(lost > 100);
    assert_eq!(losses.iter().map(|it| it.entries).sum::<u64>(), lost as u64);
    assert_eq!(
        losses.iter().map(|it| it.lines).sum::<u64>(),
        all[..lost].iter().map(|it| u64::from(it.lines)).sum::<u64>()
    );
    assert_eq!(losses[0].span.0, 0);
    assert_eq!(losses.last().unwrap().span.1, lost as i64 - 1 + 5);
    assert_eq!(journal.read(0, 1).unwrap().entries[0].0, stats.first);
}

#[test]
fn what_is_too_old_goes() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_age: Duration::from_secs(80), ..Limits::default() };
    let (journal, _) = open_with(dir.path(), limits, &["a"]);
    let mut lost = 0;
    for n in 0..200 {
        let now = n as i64 * SECOND;
        journal.append(&[entry(n, 100)], &[], now).unwrap();
        for loss in journal.maintain(now).unwrap() {
            assert_eq!(loss.cause, LossCause::TooOld);
            lost += loss.entries;
        }
    }
    assert!((199 - 80 - 12..=199 - 80).contains(&lost), "{lost}");
    assert_eq!(journal.stats().first, lost + 1);
}

#[test]
fn a_frozen_journal_drops_instead_of_growing() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 64 << 20, ..Limits::default() };
    let (journal, _) = open_with(dir.path(), limits, &["a"]);
    for n in 0..100 {
        journal.append(&[entry(n, 100_000)], &[], SECOND).unwrap();
    }
    let before = journal.stats();
    journal.set_may_grow(false);
    let mut losses = Vec::new();
    for n in 0..100 {
        losses.extend(journal.append(&[entry(n, 100_000)], &[], SECOND).unwrap().losses);
        assert!(journal.stats().file_bytes <= before.file_bytes + (64 << 20) / 256, "{:?}", journal.stats());
    }
    assert!(losses.iter().all(|it| it.cause == LossCause::DiskFull));
    assert_eq!(losses.iter().map(|it| it.entries).sum::<u64>(), journal.stats().first - 1);
    journal.set_may_grow(true);
    let (first, bytes) = (journal.stats().first, journal.stats().file_bytes);
    for n in 0..50 {
        assert_eq!(journal.append(&[entry(n, 100_000)], &[], SECOND).unwrap().losses, []);
    }
    assert_eq!(journal.stats().first, first);
    assert!(journal.stats().file_bytes > bytes);
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("segment-0000000001-00000000000000000001.v2.redb"), "?").unwrap();
    let error =
        Journal::open(Arc::new(RealDisk), dir.path(), Limits::default(), &[]).unwrap_err().to_string();
    assert!(error.contains("v2.redb has version 2") && error.contains("up to 1"), "{error}");
}

#[test]
fn a_reader_that_knows_of_more_entries_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), &["a", "store"]);
    journal.append(&[entry(1, 10), entry(2, 10)], &[], SECOND).unwrap();
    journal.advance("store", 10);
    assert_eq!(journal.append(&[entry(3, 10)], &[], SECOND).unwrap().first, 11);
    let read = journal.read(0, 100).unwrap();
    assert_eq!(seqs(&read), [1, 2, 11]);
    assert_eq!(read.damaged.iter().map(|it| (it.first, it.last, it.lines)).collect::<Vec<_>>(), [(3, 10, 0)]);
}

#[test]
fn a_file_that_someone_removes_is_a_gap_and_no_standstill() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(dir.path(), Limits { max_bytes: 4 << 20, ..Limits::default() }, &["a"]);
    while journal.stats().segments < 3 {
        journal.append(&[entry(1, 50_000)], &[], SECOND).unwrap();
        journal.maintain(SECOND).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().path()).collect();
    names.sort();
    std::fs::remove_file(&names[1]).unwrap();
    let (mut after, last, mut missing) = (0, journal.stats().last, 0);
    while after < last {
        let read = journal.read(after, 1 << 20).unwrap();
        missing += read.damaged.iter().map(|it| it.last - it.first + 1).sum::<u64>();
        after = read.through;
    }
    assert!((1..last).contains(&missing), "{missing} of {last}");
    journal.advance("a", last);
    journal.maintain(SECOND).unwrap();
    assert_eq!(journal.stats().segments, 1);
}

#[test]
fn many_threads_append_read_and_keep_house_at_once() {
    const APPENDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) =
        open_with(dir.path(), Limits { max_bytes: 64 << 20, ..Limits::default() }, &["a", "b"]);
    let all = 2 * APPENDS;
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let journal = &journal;
            scope.spawn(move || {
                for n in 0..APPENDS {
                    let it = Entry { span: (writer, n.cast_signed()), ..entry(n as usize, 7_000) };
                    assert_eq!(journal.append(&[it], &[], SECOND).unwrap().losses, []);
                }
            });
        }
        for reader in ["a", "b"] {
            let journal = &journal;
            scope.spawn(move || {
                let mut seen = [0, 0];
                let mut after = 0;
                while after < all {
                    let read = journal.read(after, 100_000).unwrap();
                    assert_eq!(read.damaged, []);
                    for (seq, it) in read.entries {
                        after += 1;
                        assert_eq!(seq, after);
                        // Each writer's entries in its order.
                        let seen = &mut seen[usize::try_from(it.span.0).unwrap()];
                        assert_eq!(it.span.1, *seen);
                        *seen += 1;
                    }
                    journal.advance(reader, after);
                }
            });
        }
        let journal = &journal;
        scope.spawn(move || {
            while journal.stats().readers.iter().any(|it| it.cursor < all) {
                assert_eq!(journal.maintain(SECOND).unwrap(), []);
            }
        });
    });
    journal.maintain(SECOND).unwrap();
    let stats = journal.stats();
    assert!(stats.segments == 1 && stats.damage.is_empty() && stats.last == all, "{stats:?}");
}
