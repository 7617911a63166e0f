//! The store within what it may take of the disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disk::Disk;
use disk::double::{Double, Effect, Failure, Fault, Op};
use telemetry::lines::{Catalog, Precision, parse};

use crate::store::{Options, Room, Store};

const DAY_NS: i64 = 86_400_000_000_000;
const START: i64 = 20_781 * DAY_NS;

fn open(disk: &Double, max_size: u64, min_free: u64) -> Store {
    let options = Options {
        retention: Arc::new(|_, _| Duration::MAX),
        max_size: Some(max_size),
        min_free: Some(min_free),
        ..Options::default()
    };
    let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
    Store::open(disk, Path::new("/store"), options).expect("it opens").0
}

/// A row on each of so many days, in files.
fn fill(store: &Store, days: i64) {
    for day in 0..days {
        apply(store, day.cast_unsigned() + 1, day);
        store.flush(START).expect("it flushes");
    }
}

fn apply(store: &Store, seq: u64, day: i64) {
    let line = format!("t,vm=a v=1i {}", START + day * DAY_NS);
    let parsed = parse(&line, Precision::Nanosecond, i64::MAX);
    let batch = Catalog::default().admit("db", parsed, false).expect("good lines").batch;
    store.apply(seq, "db", &batch).expect("it takes them");
}

/// The days that go where the files, `others` and what is `merging` are to take no more than the files do.
#[track_caller]
fn check(others: u64, merging: u64, expect: &[&str]) {
    let disk = Double::new();
    let store = open(&disk, u64::MAX, 0);
    fill(&store, 5);
    let bytes = store.stats().file_bytes;
    drop(store);
    let store = open(&disk, bytes, 0);
    store.inner.merging.store(merging, Ordering::Relaxed);
    let done = store.maintain(START, others).expect("it keeps within");
    assert_eq!(done.dropped_days, expect);
    assert_eq!(store.stats().file_bytes, bytes - done.dropped_bytes);
}

#[test]
fn all_that_is_ours_counts_and_the_oldest_days_go() {
    check(0, 0, &[]);
    check(1, 0, &["2026-11-24"]);
    check(0, 1, &["2026-11-24"]);
    // A day is some 3 KiB, the roll-ups by the minute with it; those by the hour go last.
    check(2 << 10, 2 << 10, &["2026-11-24", "2026-11-25"]);
}

#[test]
fn nothing_is_said_to_be_merged_when_it_is_over() {
    let store = open(&Double::new(), u64::MAX, 0);
    fill(&store, 1);
    apply(&store, 2, 0);
    let done = store.compact(START).expect("it compacts");
    assert_eq!(done.compacted_files, 2);
    assert_eq!(store.inner.merging.load(Ordering::Relaxed), 0);
}

#[test]
fn below_min_free_it_stops_growing_and_goes_on_by_itself() {
    let disk = Double::new();
    let store = open(&disk, u64::MAX, 1 << 20);
    apply(&store, 1, 0);
    disk.set_space(Some(1 << 19));
    let far = START + 3_600_000_000_000;
    store.maintain(START, 0).expect("nothing is due");
    let done = store.maintain(far, 0).expect("that is no failure");
    assert!(matches!(done.room, Room::Short { min_free: 1_048_576, .. }), "{done:?}");
    assert_eq!((done.flushed_rows, store.stats().memory_rows), (0, 1));
    disk.set_space(Some(1 << 30));
    let done = store.maintain(far, 0).expect("there is room");
    assert_eq!((done.room, done.flushed_rows, store.stats().memory_rows), (Room::Enough, 1, 0));
}

/// EIO, a disk remounted to read only, a full one: each is an error that names the place, no row goes, and what failed
/// is made good by itself.
#[test]
fn a_failing_disk_is_told_and_costs_nothing() {
    for failure in [Failure::Io, Failure::ReadOnly, Failure::NoSpace] {
        let disk = Double::new();
        let store = open(&disk, u64::MAX, 0);
        apply(&store, 1, 0);
        store.maintain(START, 0).expect("nothing is due");
        let far = START + 3_600_000_000_000;
        disk.fault(Fault::every(Op::Write, Effect::Fail(failure)));
        let (error, done) = *store.maintain(far, 0).expect_err("it cannot write");
        let source = std::error::Error::source(&error).expect("what the system says").to_string();
        let (words, is_full) = match failure {
            Failure::Io => ("Input/output error", false),
            Failure::ReadOnly => ("Read-only file system", false),
            Failure::NoSpace => ("No space left on device", true),
        };
        assert!(source.contains(words) && error.to_string().contains("/store/db/t"), "{error}: {source}");
        assert_eq!((error.is_disk_full(), done.cursor, done.dropped_rows), (is_full, 0, 0));
        disk.heal();
        let done = store.maintain(far, 0).expect("it can again");
        assert_eq!((done.cursor, store.stats().memory_rows), (1, 0));
    }
}
