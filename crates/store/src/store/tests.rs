//! Upkeep where something is amiss: what is told, what is kept, what is given back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;
use disk::double::{Double, Effect, Failure, Fault, Op};
use telemetry::lines::{Catalog, Precision, parse};

use super::{Options, Store};
use crate::error::StoreError;

const DAY_NS: i64 = 86_400_000_000_000;
const HOUR_NS: i64 = DAY_NS / 24;
const START: i64 = 20_781 * DAY_NS;

/// Keeps rows for ever, and never lacks room.
fn options() -> Options {
    let retention = Arc::new(|_: &str, _: &str| Duration::MAX);
    Options { retention, max_size: Some(u64::MAX), min_free: Some(0), ..Options::default() }
}

fn open(disk: &Double, options: &Options) -> Store {
    let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
    Store::open(disk, Path::new("/store"), options.clone()).expect("it opens").0
}

fn apply(store: &Store, seq: u64, lines: &str) {
    let parsed = parse(lines, Precision::Nanosecond, i64::MAX);
    let batch = Catalog::default().admit("db", parsed, false).expect("good lines").batch;
    store.apply_read(seq, "db", &batch).expect("it takes them");
}

/// A backup has no journal that could bring back what the store has given up: there is none until the store is whole, nor
/// one that takes of what must stay free.
#[test]
fn a_backup_has_all_rows_or_is_refused() {
    let disk = Double::new();
    let store = open(&disk, &Options { min_free: Some(1 << 20), memory: 64 << 10, ..options() });
    let refused = |store: &Store, is_meant: fn(&StoreError) -> bool| {
        let error = store.backup(Path::new("/backup"), START).expect_err("it is refused");
        assert!(is_meant(&error), "{error:?}");
        assert!(disk.list(Path::new("/backup")).is_err(), "nothing is written");
    };
    apply(&store, 1, &format!("t,vm=a v=1i {START}"));
    disk.set_space(Some(1 << 19));
    refused(&store, |it| matches!(it, StoreError::NoRoom { .. }));
    let many: String = (2..4_000).map(|it| format!("t,vm=a v=1i {}\n", START + it)).collect();
    apply(&store, 2, &many);
    assert_eq!(store.maintain(START, 0).expect("it goes on").dropped_rows, 3_999);
    disk.set_space(None);
    refused(&store, |it| matches!(it, StoreError::InJournalOnly));
    assert_eq!(store.read_again(), 0);
    apply(&store, 1, &format!("t,vm=a v=1i {START}"));
    refused(&store, |it| matches!(it, StoreError::InJournalOnly));
    apply(&store, 2, &many);
    assert!(store.caught_up(2));
    assert_eq!(store.backup(Path::new("/backup"), START).expect("all is there").cursor, 2);
}

/// What could not be removed is not said to be.
#[test]
fn days_are_told_as_removed_when_they_are() {
    let disk = Double::new();
    let store = open(&disk, &options());
    for day in 0..3 {
        apply(&store, day + 1, &format!("t,vm=a v=1i {}", START + day.cast_signed() * DAY_NS));
    }
    store.flush(START).expect("it flushes");
    let files = store.stats().files;
    drop(store);
    let store = open(&disk, &Options { max_size: Some(0), ..options() });
    disk.fault(Fault::every(Op::Write, Effect::Fail(Failure::Io)).on("manifest"));
    let (_, done) = *store.maintain(START, 0).expect_err("it cannot commit");
    assert_eq!((done.dropped_days, done.dropped_bytes, store.stats().files), (Vec::new(), 0, files));
    disk.heal();
    let done = store.maintain(START, 0).expect("it can again");
    // Those of hours go last.
    assert_eq!(done.dropped_days.len(), 5, "{done:?}");
    assert_eq!(store.stats().files, 0);
}

/// A day that there is no room for is left as it is; smaller ones are merged.
#[test]
fn a_day_without_room_holds_up_no_other() {
    let disk = Double::new();
    let store = open(&disk, &Options { min_free: Some(1 << 20), ..options() });
    let mut random = fastrand::Rng::with_seed(1);
    for (day, rows) in [(0, 4_000), (1, 1)] {
        for part in 0..2 {
            let time = |row: i64| START + day * DAY_NS + 2 * row + part;
            let lines: String =
                (0..rows).map(|it| format!("t v={}i {}\n", random.i64(..), time(it))).collect();
            apply(&store, (2 * day + part + 1).cast_unsigned(), &lines);
            store.flush(START).expect("it flushes");
        }
    }
    let of = |day: i32| {
        let table = store.inner.find("db", "t").expect("it is there");
        let files = Arc::clone(&table.lock().files);
        files.iter().filter(|it| it.entry.day == 20_781 + day).count()
    };
    let used = (1 << 40) - disk.space(Path::new("/store")).expect("it tells").free;
    disk.set_space(Some(used + (1 << 20) + (20 << 10)));
    let error = store.compact(START + 9 * DAY_NS).expect_err("there is no room for one");
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error:?}");
    assert_eq!((of(0), of(1)), (2, 1));
}

#[test]
fn for_ever_begins_with_time() {
    let store = open(&Double::new(), &options());
    apply(&store, 1, "t v=1i -9000000000000000000");
    assert_eq!(store.flush(START).expect("it flushes").flushed_rows, 1);
}

/// While nothing can be written, the newest rows that somebody asks for are held as ever.
#[test]
fn a_disk_that_fails_takes_no_last_values() {
    let disk = Double::new();
    let store = open(&disk, &options());
    apply(&store, 1, &format!("t v=1i {START}"));
    store.maintain(START, 0).expect("nothing is due");
    let table = store.inner.find("db", "t").expect("it is there");
    let columns = crate::last::schema(&table.lock().columns.clone());
    table.last_rows(&columns, START).expect("an answer");
    disk.fault(Fault::every(Op::Write, Effect::Fail(Failure::Io)));
    for second in 0..3 {
        store.maintain(START + HOUR_NS + second, 0).expect_err("it cannot write");
    }
    assert!(!table.must_fill_last(), "they were asked for within the hour");
}

/// A flush believes the clock no more than retention does, and tells what it leaves out for being too old.
#[test]
fn a_flush_tells_the_rows_that_are_too_old() {
    let retention = Arc::new(|_: &str, _: &str| Duration::from_secs(30 * 86_400));
    let store = open(&Double::new(), &Options { retention, ..options() });
    apply(&store, 1, &format!("t v=1i {START}"));
    let ahead = START + 40 * DAY_NS;
    assert_eq!(store.flush(ahead).expect("it flushes").flushed_rows, 1);
    apply(&store, 2, &format!("t v=1i {}\nt v=1i {}", START - 31 * DAY_NS, START - 29 * DAY_NS));
    assert_eq!(store.flush(ahead).expect("it flushes").flushed_rows, 1);
    let expired = || store.maintain(ahead, 0).expect("nothing is due").expired_rows;
    assert_eq!((expired(), expired()), (1, 0));
}

/// After an outage that is longer than the retention of raw rows, the hour in which it began gets its roll-up: where rows
/// go before there is room to write, and where the power goes in between.
#[test]
fn an_outage_longer_than_retention_takes_no_hour() {
    let days = |table: &str| if table == "t" { 7 } else { 400 };
    let retention = Arc::new(move |_: &str, table: &str| Duration::from_secs(days(table) * 86_400));
    let options = Options { retention, min_free: Some(1 << 20), ..options() };
    let now = START + 9 * DAY_NS;
    for has_room in [false, true] {
        let disk = Double::new();
        let store = open(&disk, &options);
        apply(&store, 1, &format!("t v=1i {START}"));
        store.flush(START).expect("it flushes");
        drop(store);
        let start = || {
            let store = open(&disk, &options);
            apply(&store, 2, &format!("t v=2i {now}"));
            store.maintain(now, 0).expect("nothing is due");
            store
        };
        let mut store = start();
        if has_room {
            disk.fault(Fault::every(Op::Write, Effect::PowerOff).on(".parquet"));
            store.maintain(now + HOUR_NS, 0).expect_err("the power goes");
            disk.crash(1);
            disk.heal();
            store = start();
        } else {
            disk.set_space(Some(1 << 19));
            assert_eq!(store.maintain(now + HOUR_NS, 0).expect("it goes on").expired_files, 1);
            disk.set_space(None);
        }
        store.maintain(now + HOUR_NS, 0).expect("it flushes");
        let hours = Arc::clone(&store.inner.find("db", "t_1h").expect("roll-ups").lock().files);
        let found: Vec<_> = hours.iter().map(|it| it.entry.times).collect();
        assert_eq!(found, [(START, START)], "{has_room}");
    }
}

/// Each entry has a series of its own, and there is no room to write: the series are given up with their rows.
#[test]
fn series_without_room_take_no_more_memory_than_is_allowed() {
    let disk = Double::new();
    let options = Options { memory: 64 << 10, min_free: Some(1 << 20), ..options() };
    let store = open(&disk, &options);
    disk.set_space(Some(1 << 19));
    for entry in 0..2_000 {
        apply(&store, entry + 1, &format!("t,vm=vm{entry} v=1i {START}"));
        store.maintain(START, 0).expect("it goes on");
        assert!(!store.is_behind(), "after {entry}: {:?}", store.stats());
    }
    assert!(store.stats().memory_rows > 10, "{:?}", store.stats());
}

/// A tag takes a place for each series that was there before it.
#[test]
fn series_with_a_tag_of_their_own_are_counted() {
    let store = open(&Double::new(), &options());
    let bytes_of = |seq, lines: String| {
        let before = store.stats().memory_bytes;
        apply(&store, seq, &lines);
        store.stats().memory_bytes - before
    };
    bytes_of(1, (0..4_000).map(|it| format!("t,vm=vm{it} v=1i {START}\n")).collect());
    let bytes = bytes_of(2, (0..100).map(|it| format!("t,own{it}=a v=1i {START}\n")).collect());
    assert!(bytes > 100 * 4_000 * 8, "{bytes}");
}

/// However much others take, the files may take half of the limit.
#[test]
fn others_do_not_take_all_days() {
    let disk = Double::new();
    let store = open(&disk, &options());
    apply(&store, 1, &format!("t v=1i {START}\nt v=1i {}", START + DAY_NS));
    store.flush(START).expect("it flushes");
    let bytes = store.stats().file_bytes;
    drop(store);
    for (max_size, is_enough) in [(2 * bytes, true), (2 * bytes - 2, false)] {
        let store = open(&disk, &Options { max_size: Some(max_size), ..options() });
        let done = store.maintain(START, u64::MAX).expect("it keeps within");
        assert_eq!(done.dropped_days.is_empty(), is_enough, "{done:?}");
        assert!(store.stats().files > 0);
    }
}

/// A flush makes the list of series anew where some are forgotten, and only there: whoever takes rows in waits for it.
#[test]
fn a_flush_leaves_the_series_that_go_on_as_they_are() {
    let store = open(&Double::new(), &options());
    let series_after = |seq, lines: &str| {
        apply(&store, seq, lines);
        let table = store.inner.find("db", "t").expect("it is there");
        let chunks = table.snapshot().expect("a snapshot").chunks;
        store.flush(START + DAY_NS).expect("it flushes");
        Arc::clone(&chunks[0].keys)
    };
    let lines = |after: i64| format!("t,vm=a v=1i {}\nt,vm=b v=1i {}", START + after, START + after);
    let (first, again) = (series_after(1, &lines(0)), series_after(2, &lines(1)));
    assert!(Arc::ptr_eq(&first, &again));
    let bytes = store.stats().memory_bytes;
    let one = series_after(3, &format!("t,vm=a v=1i {}", START + 2 * HOUR_NS));
    assert!(Arc::ptr_eq(&first, &one), "b is forgotten at the end of it");
    assert!(store.stats().memory_bytes < bytes, "{} of {bytes}", store.stats().memory_bytes);
    assert_eq!(series_after(4, &format!("t,vm=a v=1i {}", START + 3 * HOUR_NS)).len(), 1);
}

/// In a new table no row is late, whenever it was.
#[test]
fn rows_from_before_1970_are_late_for_none() {
    let store = open(&Double::new(), &options());
    apply(&store, 1, "t,vm=a v=1i -5\nt,vm=b v=1i -5\nt,vm=a v=1i -4");
    let table = store.inner.find("db", "t").expect("it is there");
    assert_eq!(table.snapshot().expect("a snapshot").chunks[0].late, None);
}

/// The first format is 1: a manifest that says 0 is none.
#[test]
fn a_manifest_of_no_format_is_refused() {
    let disk = Double::new();
    let store = open(&disk, &options());
    apply(&store, 1, &format!("t v=1i {START}"));
    store.flush(START).expect("it flushes");
    drop(store);
    let file = disk.open(Path::new("/store/manifest.json")).expect("it is there");
    file.write_all_at(b"{\"format\":0", 0).expect("it can be written");
    let opened = Store::open(Arc::new(disk.clone()) as Arc<dyn Disk>, Path::new("/store"), options());
    assert!(matches!(opened, Err(StoreError::Damaged { .. })), "{opened:?}");
}

/// A file is left out once three readings have failed between which none went well; a start may find it again.
#[test]
fn failures_that_pass_leave_no_file_out() {
    let disk = Double::new();
    let store = open(&disk, &options());
    apply(&store, 1, &format!("t,vm=a v=1i {START}"));
    store.flush(START).expect("it flushes");
    let file = Arc::clone(&store.inner.find("db", "t").expect("it is there").lock().files[0]);
    assert!((0..5).all(|_| !file.doubt()), "it is whole");
    let fail = || disk.fault(Fault::every(Op::Read, Effect::Fail(Failure::Io)).on(".parquet"));
    fail();
    assert_eq!([file.doubt(), file.doubt()], [false, false]);
    disk.heal();
    assert!(!file.doubt());
    fail();
    assert_eq!([file.doubt(), file.doubt(), file.doubt()], [false, false, true]);
    assert!(!file.is_damaged(), "it is only not to be had");
}
