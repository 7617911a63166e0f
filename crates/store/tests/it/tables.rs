//! Which tables there are, and what many series take.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::RealDisk;
use store::sql::Format;
use store::{Options, Store, StoreError};
use telemetry::lines::{Catalog, Column, FieldType};

use crate::support::{Point, ask, batch, engine, rows};

const MINUTE: i64 = 60_000_000_000;
const START: i64 = 20_781 * 24 * 60 * MINUTE;

fn options() -> Options {
    let retention = Arc::new(|_: &str, _: &str| Duration::MAX);
    Options { retention, min_free: Some(0), ..Options::default() }
}

fn open(dir: &Path, options: Options) -> Store {
    Store::open(Arc::new(RealDisk), dir, options).expect("it opens").0
}

fn point(table: &str, series: usize, time: i64) -> Point {
    let tags = vec![("name".to_owned(), format!("vm{series}"))];
    Point { table: table.to_owned(), tags, time, fields: vec![("heat".to_owned(), 1)] }
}

/// The folder is new and the journal's catalogue is not: `x_1m` was written as such before there was an `x`.
#[test]
fn a_written_table_keeps_its_name_from_roll_ups() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut catalog = Catalog::default();
    for table in ["x", "x_1m", "y"] {
        catalog.add_column("db", table, "name", Column::Tag);
        catalog.add_column("db", table, "heat", Column::Field(FieldType::Integer));
    }
    let store = open(dir.path(), options());
    store.know(&catalog);
    for (seq, table) in (1..).zip(["x", "x_1m", "y"]) {
        store.apply(seq, "db", &batch(&[point(table, 1, START)])).expect("it takes them");
    }
    let sql = engine(&store);
    assert_eq!(rows(&sql, "x_1m", ""), [format!("heat=1 name=vm1 time={START} ")]);
    assert_eq!((rows(&sql, "x_1h", "").len(), rows(&sql, "y_1m", "").len()), (1, 1));
}

/// Roll-ups may be off for a table; when they are on again, they begin with the hour that goes on.
#[test]
fn roll_ups_can_be_switched_off() {
    let dir = tempfile::tempdir().expect("a folder");
    let off = Options { rollups: Arc::new(|database, table| (database, table) != ("db", "a")), ..options() };
    let store = open(dir.path(), off);
    for (seq, minute) in (1..).zip([0, 1, 120]) {
        let points = ["a", "b"].map(|table| point(table, 1, START + minute * MINUTE));
        store.apply(seq, "db", &batch(&points)).expect("it takes them");
    }
    let sql = engine(&store);
    let missing = ask(&sql, "db", "SELECT * FROM a_1m", Format::Csv).expect_err("there is no such table");
    assert!(missing.contains("a_1m"), "{missing}");
    store.flush(START + 130 * MINUTE).expect("it flushes");
    assert_eq!((rows(&sql, "a", "").len(), rows(&sql, "b_1m", "").len()), (3, 3));

    let store = open(dir.path(), options());
    store.apply(4, "db", &batch(&[point("a", 1, START + 180 * MINUTE)])).expect("it takes them");
    let sql = engine(&store);
    let expect = [120, 180].map(|it| {
        format!(
            "heat_last=1 heat_max=1 heat_mean=1.000000000 heat_min=1 name=vm1 time={} ",
            START + it * MINUTE
        )
    });
    assert_eq!(rows(&sql, "a_1h", ""), expect);
    store.flush(START + 300 * MINUTE).expect("it flushes");
    assert_eq!(rows(&sql, "a_1h", ""), expect);
    assert_eq!(rows(&sql, "a", "").len(), 4);
}

/// What is remembered of series counts as memory, and is given back where it is too much.
#[test]
fn many_series_take_no_more_memory_than_is_allowed() {
    const SERIES: usize = 3_000;
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options { memory: 3 << 19, ..options() };
    let store = open(dir.path(), options.clone());
    let all: Vec<_> = (0..SERIES).map(|series| point("t", series, START)).collect();
    store.apply(1, "db", &batch(&all)).expect("it takes them");
    assert!(store.stats().memory_bytes > 200 * SERIES, "{:?}", store.stats());
    store.flush(START).expect("it flushes");
    assert!(store.stats().memory_bytes < options.memory / 4, "{:?}", store.stats());
    // Each again, and a new point of each.
    let again: Vec<_> = (0..SERIES).map(|series| point("t", series, START)).collect();
    let next: Vec<_> = (0..SERIES).map(|series| point("t", series, START + 1)).collect();
    store.apply(2, "db", &batch(&again)).expect("it takes them");
    store.apply(3, "db", &batch(&next)).expect("it takes them");
    store.flush(START).expect("it flushes");
    let count = ask(&engine(&store), "db", "SELECT count(*) AS n FROM t", Format::Csv).expect("an answer");
    assert_eq!(count, format!("n\n{}\n", 2 * SERIES));
}

/// Below `min_free` a compaction that somebody asks for writes nothing, not even what is in memory.
#[test]
fn a_compaction_wants_room_before_it_begins() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), Options { min_free: Some(u64::MAX >> 1), ..options() });
    store.apply(1, "db", &batch(&[point("t", 1, START)])).expect("it takes them");
    let refused = store.compact(START).expect_err("there is no room");
    assert!(matches!(refused, StoreError::NoRoom { .. }) && refused.is_disk_full(), "{refused}");
    assert_eq!((store.stats().files, store.stats().memory_rows), (0, 1));
    assert_eq!(store.compact_some(START).expect("it waits"), 0);
}
