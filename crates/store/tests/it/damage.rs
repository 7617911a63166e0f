//! Rows that are gone: damaged files, days that made room. What is left goes on, and roll-ups keep what they had.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disk::RealDisk;
use store::{Options, Store};

use crate::support::{Point, batch, engine, rows};

const DAY: i64 = 86_400_000_000_000;
const HOUR: i64 = DAY / 24;
const START: i64 = 20_781 * DAY;

fn open(dir: &Path, max_size: Option<u64>) -> (Store, Vec<String>) {
    let retention = Arc::new(|_: &str, _: &str| Duration::MAX);
    let options = Options { retention, max_size, min_free: Some(0), ..Options::default() };
    Store::open(Arc::new(RealDisk), dir, options).expect("it opens")
}

/// A store and what was applied to it.
struct Fed {
    store: Store,
    seq: u64,
}

impl Fed {
    /// A point a minute for all of an hour.
    fn hour(&mut self, table: &str, start: i64) {
        let points: Vec<_> = (0..60).map(|it| point(table, start + it * HOUR / 60, it)).collect();
        self.apply(&points);
    }

    fn apply(&mut self, points: &[Point]) {
        self.seq += 1;
        self.store.apply(self.seq, "db", &batch(points)).expect("it takes them");
    }

    fn rows(&self, table: &str) -> Vec<String> {
        rows(&engine(&self.store), table, "")
    }
}

fn point(table: &str, time: i64, value: i64) -> Point {
    let tags = vec![("name".to_owned(), "vm".to_owned())];
    Point { table: table.to_owned(), tags, time, fields: vec![("heat".to_owned(), value)] }
}

/// Files of a table whose names end so.
fn files(dir: &Path, table: &str, tail: &str) -> Vec<PathBuf> {
    let days = std::fs::read_dir(dir.join("db").join(table)).expect("a folder");
    let files = days.flat_map(|day| std::fs::read_dir(day.expect("a day").path()).expect("its files"));
    let mut files: Vec<_> = files.map(|it| it.expect("a file").path()).collect();
    files.retain(|it| it.to_string_lossy().ends_with(tail));
    files.sort();
    files
}

/// All but the footer becomes other bytes: it was checked before, and is no more what it was.
fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).expect("it is there");
    let end = bytes.len() / 2;
    bytes[4..end].fill(0x55);
    std::fs::write(file, bytes).expect("it can be written");
}

/// Late rows and compactions come upon a file that was whole when it was read first. They go on without it, it is set
/// aside, its hours keep their roll-ups, and a start knows all that.
#[test]
fn a_file_that_gets_damaged_later_holds_nothing_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut fed = Fed { store: open(dir.path(), None).0, seq: 0 };
    for hour in [0, 2, 6] {
        for table in ["a", "b"] {
            fed.hour(table, START + hour * HOUR);
        }
        fed.store.flush(START).expect("it flushes");
    }
    let (raw, hours) = (fed.rows("a"), fed.rows("a_1h"));
    assert_eq!((raw.len(), hours.len()), (180, 3));
    damage(&files(dir.path(), "a", ".parquet")[0]);

    let late = point("a", START + 90, 1_000);
    fed.apply(&[late, point("a", START + 2 * HOUR + 90, 2_000)]);
    fed.store.flush(START).expect("it flushes without the damaged file");
    fed.store.maintain(START, 0).expect("it sets the file aside");
    assert_eq!(files(dir.path(), "a", ".damaged").len(), 1);
    fed.store.compact(START + DAY).expect("it compacts without the damaged file");
    assert_eq!((files(dir.path(), "a", ".parquet").len(), files(dir.path(), "b", ".parquet").len()), (1, 1));
    let check = |fed: &Fed| {
        assert_eq!(fed.rows("a").len(), 122);
        let now = fed.rows("a_1h");
        let same: Vec<_> = now.iter().filter(|it| hours.contains(it)).collect();
        assert_eq!(same.len(), 2, "the damaged hour and the last one are as they were: {now:#?}");
        assert!(now.iter().any(|it| it.contains("heat_max=2000")), "the other one is made anew: {now:#?}");
    };
    check(&fed);

    let (store, complaints) = open(dir.path(), None);
    assert_eq!(complaints, Vec::<String>::new(), "it was told before");
    fed.store = store;
    check(&fed);
    fed.apply(&[point("a", START + 100, 3_000)]);
    fed.store.flush(START).expect("it flushes");
    assert_eq!(fed.rows("a_1h").iter().filter(|it| it.contains("heat_max=3000")).count(), 0);
}

/// A damaged file of one table does not keep the others from being compacted.
#[test]
fn compaction_goes_on_with_the_next_day_and_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut fed = Fed { store: open(dir.path(), None).0, seq: 0 };
    for hour in 0..3 {
        for table in ["a", "b"] {
            fed.hour(table, START + hour * HOUR);
        }
        fed.store.flush(START).expect("it flushes");
    }
    assert_eq!(fed.rows("a").len(), 180);
    damage(&files(dir.path(), "a", ".parquet")[1]);
    fed.store.compact(START + DAY).expect("it compacts");
    assert_eq!(files(dir.path(), "a", ".parquet").len(), 1);
    assert_eq!(files(dir.path(), "a", ".damaged").len(), 1);
    assert_eq!(files(dir.path(), "b", ".parquet").len(), 1);
    assert_eq!((fed.rows("a").len(), fed.rows("b").len()), (120, 180));
}

/// A file that is away for a time: what is merged meanwhile is not merged across it, so its rows are where they were when
/// it is back, and a point that was repeated is one.
#[test]
fn a_file_that_comes_back_stands_where_it_stood() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut fed = Fed { store: open(dir.path(), None).0, seq: 0 };
    for (minute, value) in [(0, 1), (1, 2), (2, 3), (1, 4), (3, 5)] {
        fed.apply(&[point("a", START + minute * HOUR / 60, value)]);
        fed.store.flush(START).expect("it flushes");
    }
    let rows = fed.rows("a");
    assert_eq!(rows.len(), 4);
    drop(fed.store);
    // That of the third row: the point that is repeated is before it and after it.
    for place in [1, 2] {
        let file = files(dir.path(), "a", ".parquet").remove(place);
        let away = dir.path().join("away");
        std::fs::rename(&file, &away).expect("it goes");
        let store = open(dir.path(), None).0;
        store.compact(START + DAY).expect("it compacts");
        drop(store);
        std::fs::rename(&away, &file).expect("it comes back");
        fed.store = open(dir.path(), None).0;
        assert_eq!(fed.rows("a"), rows, "without {}", file.display());
        drop(fed.store);
    }
}

/// Days that went to make room: the roll-ups by the hour that are left stay what they were when a late point comes.
#[test]
fn a_late_point_does_not_spoil_the_hours_of_a_removed_day() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut fed = Fed { store: open(dir.path(), None).0, seq: 0 };
    for day in 0..3 {
        fed.hour("a", START + day * DAY);
        fed.hour("a", START + day * DAY + 5 * HOUR);
    }
    fed.apply(&[point("a", START + 2 * DAY + 12 * HOUR, 1)]);
    fed.store.flush(START).expect("it flushes");
    let hours = fed.rows("a_1h");
    let raw_bytes =
        files(dir.path(), "a", ".parquet").into_iter().map(|it| it.metadata().expect("it is there").len());
    let (raw_bytes, seq) = (raw_bytes.sum::<u64>(), fed.seq);

    fed = Fed { store: open(dir.path(), Some(fed.store.stats().file_bytes - raw_bytes / 6)).0, seq };
    let done = fed.store.maintain(START, 0).expect("it goes on");
    assert_eq!(done.dropped_days, ["2026-11-24"]);
    assert_eq!(fed.rows("a_1h"), hours);

    // It comes without limit again, so that nothing else goes.
    fed = Fed { store: open(dir.path(), None).0, seq };
    fed.apply(&[point("a", START + 60, 1_000), point("a", START + DAY + 60, 2_000)]);
    fed.store.flush(START).expect("it flushes");
    let now = fed.rows("a_1h");
    assert_eq!(now.iter().filter(|it| hours.contains(it)).count(), hours.len() - 1, "{now:#?}");
    assert!(now.iter().any(|it| it.contains("heat_max=2000")), "the day that is left is as ever: {now:#?}");
}
