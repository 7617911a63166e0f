//! Roll-ups equal the same computed from the raw points, whatever came late, was flushed or restarted between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::RealDisk;
use store::sql::Engine;
use store::{Options, Store};

use crate::support::{Point, batch, engine, open, rows};

const START: i64 = 20_781 * 86_400_000_000_000;
const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3_600 * SECOND;

/// `vm_devices` with a counter and a field that the catalogue does not know, which counts as a gauge.
fn random_points(random: &mut fastrand::Rng, from: i64, to: i64) -> Vec<Point> {
    let points = (0..random.usize(1..40)).map(|_| {
        let mut fields = Vec::new();
        if random.u8(0..5) > 0 {
            fields.push(("rxbytes".to_owned(), random.i64(0..1_000)));
        }
        // A field that comes later, and before the others by name.
        if from > 100 && random.u8(0..8) == 0 {
            fields.push(("age".to_owned(), random.i64(0..9)));
        }
        if random.u8(0..5) > 0 || fields.is_empty() {
            fields.push(("heat".to_owned(), random.i64(-10..10)));
        }
        Point {
            table: "vm_devices".to_owned(),
            tags: vec![("name".to_owned(), format!("vm{}", random.u8(0..3)))],
            time: START + random.i64(from..to) * 20 * SECOND,
            fields,
        }
    });
    points.collect()
}

/// Tags and time.
type Place = (Vec<(String, String)>, i64);
/// The fields of points.
type Raw = BTreeMap<Place, BTreeMap<String, i64>>;

/// The roll-ups of all points, written as [`rows`] writes what it finds.
fn expected(points: &[Point], ns: i64) -> Vec<String> {
    let mut raw: Raw = BTreeMap::new();
    for point in points {
        let row = raw.entry((point.tags.clone(), point.time)).or_default();
        row.extend(point.fields.iter().cloned());
    }
    let mut buckets: BTreeMap<Place, BTreeMap<String, Vec<i64>>> = BTreeMap::new();
    let mut increases: BTreeMap<Place, i64> = BTreeMap::new();
    let mut rates: BTreeMap<Place, Vec<f64>> = BTreeMap::new();
    let mut covered: BTreeMap<Place, i64> = BTreeMap::new();
    let mut before: BTreeMap<Vec<(String, String)>, (i64, i64)> = BTreeMap::new();
    let mut last: BTreeMap<Vec<(String, String)>, i64> = BTreeMap::new();
    for ((tags, time), fields) in &raw {
        let key = (tags.clone(), time - time.rem_euclid(ns));
        let bucket = buckets.entry(key.clone()).or_default();
        if let Some(at) = last.insert(tags.clone(), *time)
            && time - at <= HOUR
        {
            *covered.entry(key.clone()).or_default() += time - at;
        }
        for (name, value) in fields {
            bucket.entry(name.clone()).or_default().push(*value);
            if name == "rxbytes"
                && let Some((at, old)) = before.insert(tags.clone(), (*time, *value))
                && time - at <= HOUR
                && *value >= old
            {
                *increases.entry(key.clone()).or_default() += value - old;
                let rate = (value - old) as f64 * 1e9 / (time - at) as f64;
                rates.entry(key.clone()).or_default().push(rate);
            }
        }
    }
    let mut lines: Vec<String> = buckets
        .into_iter()
        .map(|(key, fields)| {
            let mut all: BTreeMap<String, String> = key.0.iter().cloned().collect();
            all.insert("time".to_owned(), key.1.to_string());
            covered.get(&key).map(|it| all.insert("time_increase".to_owned(), it.to_string()));
            for (name, values) in fields {
                let mut add = |tail: &str, value: String| all.insert(format!("{name}_{tail}"), value);
                add("last", values[values.len() - 1].to_string());
                if name == "rxbytes" {
                    increases.get(&key).map(|it| add("increase", it.to_string()));
                    let rates = rates.get(&key).into_iter().flatten().copied();
                    let rates = rates.map(|it| (it, it)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
                    // To ten bits behind the first, downwards and upwards.
                    let dropped = (1_u64 << 42) - 1;
                    let low = |it: f64| f64::from_bits(it.to_bits() & !dropped);
                    let high = |it: f64| f64::from_bits((it.to_bits() + dropped) & !dropped);
                    rates.map(|it| add("rate_min", format!("{:.9}", low(it.0))));
                    rates.map(|it| add("rate_max", format!("{:.9}", high(it.1))));
                } else {
                    add("min", values.iter().min().expect("one").to_string());
                    add("max", values.iter().max().expect("one").to_string());
                    let mean = values.iter().sum::<i64>() as f64 / values.len() as f64;
                    add("mean", format!("{mean:.9}"));
                }
            }
            all.iter().fold(String::new(), |line, (name, value)| format!("{line}{name}={value} "))
        })
        .collect();
    lines.sort();
    lines
}

/// The roll-ups are those of all these points.
#[track_caller]
fn compare(sql: &Engine, all: &[Point], context: &str) {
    for (table, ns) in [("vm_devices_1m", 60 * SECOND), ("vm_devices_1h", HOUR)] {
        let (found, expect) = (rows(sql, table, ""), expected(all, ns));
        let missing: Vec<_> = expect.iter().filter(|it| !found.contains(it)).collect();
        let twice = found.windows(2).filter(|it| it[0] == it[1]).map(|it| &it[0]);
        let false_ones: Vec<_> = found.iter().filter(|it| !expect.contains(it)).chain(twice).collect();
        assert!(found == expect, "{context}, {table}: missing {missing:#?}, false {false_ones:#?}");
        // Those of one series are worked out for themselves.
        let of_one = |it: &&String| it.contains("name=vm1 ");
        let found = rows(sql, table, "WHERE name = 'vm1'");
        assert!(found.iter().eq(expect.iter().filter(of_one)), "{context}, {table}: {found:#?} of vm1");
    }
    let (all, of_one) = (rows(sql, "vm_devices", ""), rows(sql, "vm_devices", "WHERE name = 'vm1'"));
    assert!(
        of_one.iter().eq(all.iter().filter(|it| it.contains("name=vm1 "))),
        "{context}: {of_one:#?} of vm1"
    );
}

fn check(seed: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut store = open(dir.path());
    let mut sql = engine(&store);
    let mut journal: Vec<Vec<Point>> = Vec::new();
    let mut now = 0;
    for step in 0..random.usize(4..20) {
        let what = random.u8(0..12);
        if std::env::var_os("KVMETRY_SEEDS").is_some() {
            eprintln!("step {step}: {what} now {now}");
        }
        match what {
            // The clock may be ahead of the rows, or behind.
            0..3 => drop(store.flush(START + random.i64(0..800) * 20 * SECOND).expect("it flushes")),
            3 => drop(store.compact(START).expect("it compacts")),
            4 => {
                store = open(dir.path());
                sql = engine(&store);
                for (seq, points) in (1..).zip(&journal).skip(store.cursor() as usize) {
                    store.apply(seq, "db", &batch(points)).expect("it takes them");
                }
            }
            what => {
                // Mostly newer and newer ones, sometimes late ones or with a gap.
                let (from, to) = match what {
                    5 => (0, 700),
                    6 => (now + 250, now + 260),
                    _ => (now, now + 15),
                };
                now = now.max(to);
                let points = random_points(&mut random, from, to);
                store.apply(journal.len() as u64 + 1, "db", &batch(&points)).expect("it takes them");
                journal.push(points);
            }
        }
        if journal.is_empty() {
            continue;
        }
        compare(&sql, &journal.concat(), &format!("seed {seed}, step {step}"));
    }
}

/// How many histories: `KVMETRY_SEEDS=from..to` for more.
fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("KVMETRY_SEEDS").ok();
    let given = given.and_then(|it| {
        let (from, to) = it.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    given.unwrap_or(0..40)
}

#[test]
fn roll_ups_equal_those_of_the_raw_points() {
    for seed in seeds() {
        check(seed);
    }
}

/// Points that come late, of series that have rested for so long that nothing is known of them but what is in files: as
/// flush by flush VM, minute and second.
#[test]
fn late_points_of_series_that_rested_are_in_their_hours() {
    type Flush = &'static [(&'static str, i64, i64)];
    let histories: [&[Flush]; 4] = [
        // In two spans of hours, of which each has rows of `a`, the first one the new row.
        &[&[("a", 110, 0), ("a", 270, 0), ("b", 600, 0)], &[("a", 115, 0), ("b", 245, 0)]],
        // The same, where hours that nobody asked for have rows.
        &[&[("a", 110, 0), ("a", 350, 0), ("a", 470, 0), ("b", 900, 0)], &[("a", 115, 0), ("b", 365, 0)]],
        // A new one whose hour is over, and that goes on.
        &[&[("b", 541, 0)], &[("a", 539, 55)], &[("a", 540, 5), ("b", 541, 5)], &[("a", 544, 0)]],
        // One that was forgotten, and goes on.
        &[
            &[("a", 10, 0), ("b", 400, 0)],
            &[("a", 398, 0)],
            &[("a", 400, 5)],
            &[("a", 404, 0), ("b", 550, 0)],
        ],
    ];
    for (number, flushes) in histories.iter().enumerate() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(dir.path());
        let sql = engine(&store);
        let mut all = Vec::new();
        for (seq, rows) in (1..).zip(*flushes) {
            let point = |&(vm, minute, second): &(&str, i64, i64)| Point {
                table: "vm_devices".to_owned(),
                tags: vec![("name".to_owned(), vm.to_owned())],
                time: START + (60 * minute + second) * SECOND,
                fields: vec![("rxbytes".to_owned(), 60 * minute + second), ("heat".to_owned(), minute)],
            };
            let points: Vec<_> = rows.iter().map(point).collect();
            store.apply(seq, "db", &batch(&points)).expect("it takes them");
            all.extend(points);
            compare(&sql, &all, &format!("history {number}, rows {seq}"));
            store.flush(START + 86_400 * SECOND).expect("it flushes");
            compare(&sql, &all, &format!("history {number}, flush {seq}"));
        }
    }
}

/// A tag that is called as a column of the roll-ups, which has been a field in their files before: there it is absent.
#[test]
fn a_tag_may_have_the_name_of_a_column_that_files_have() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let sql = engine(&store);
    let now = START + 24 * HOUR;
    let point = |hour: i64, tag: Option<&str>| {
        let tags = [("name", Some("vm")), ("v_last", tag)];
        let tags = tags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let (time, fields) = (START + hour * HOUR, vec![("v".to_owned(), 90 - hour)]);
        Point { table: "t".to_owned(), tags: tags.collect(), time, fields }
    };
    let old: Vec<_> = (0..4).map(|hour| point(hour, None)).collect();
    store.apply(1, "db", &batch(&old)).expect("it takes them");
    store.flush(now).expect("it flushes");
    store.apply(2, "db", &batch(&[point(4, Some("x")), point(6, None)])).expect("it takes them");
    // From files of one kind, of both, and of one that was merged.
    let check = |context: &str| {
        let row = |hour: i64, tag: &str| {
            let (v, start) = (90 - hour, START + hour * HOUR);
            format!("name=vm time={start} {tag}v_max={v} v_mean={v}.000000000 v_min={v} ")
        };
        let expect: Vec<_> = (0..7).map(|hour| row(hour, if hour == 4 { "v_last=x " } else { "" })).collect();
        let found = rows(&sql, "t_1h", "");
        assert_eq!(found, [&expect[..5], &expect[6..]].concat(), "{context}");
        assert_eq!(rows(&sql, "t_1h", "WHERE v_last = 'x'"), [expect[4].clone()], "{context}");
    };
    check("in memory");
    store.flush(now).expect("it flushes");
    check("in two files");
    assert!(store.compact(now).expect("it compacts").compacted_files > 0);
    check("in one file");
    store.maintain(now, 0).expect("nothing is set aside");
    assert_eq!(store.stats().file_rows, 6 + 5 + 5, "rows, minutes and hours, but for the last ones");
}

/// More series than there is memory for: some have no roll-ups, and that is told. Where there is room again, the hour that
/// goes on is whole, also after a start.
#[test]
fn series_that_find_no_room_are_left_out_of_roll_ups() {
    const ROOM: usize = 20_000;
    let open = |dir: &Path, rollup_memory: usize| {
        let retention = Arc::new(|_: &str, _: &str| Duration::MAX);
        let options = Options { retention, rollup_memory, min_free: Some(0), ..Options::default() };
        Store::open(Arc::new(RealDisk), dir, options).expect("it opens").0
    };
    let points = |table: &str, kind: &str, count: i64, minute: i64| {
        let point = |number: i64| Point {
            table: table.to_owned(),
            tags: vec![("name".to_owned(), format!("{kind}{number}"))],
            time: START + minute * 60 * SECOND,
            fields: vec![("heat".to_owned(), minute), ("rxbytes".to_owned(), 7 * minute)],
        };
        (0..count).map(point).collect::<Vec<_>>()
    };
    let now = START + 24 * HOUR;
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = open(dir.path(), ROOM);
    let mut all = Vec::new();
    let mut write = |store: &Store, points: Vec<Point>| {
        store.apply(all.len() as u64 + 1, "db", &batch(&points)).expect("it takes them");
        let live = rows(&engine(store), "vm_devices_1h", "").len();
        store.flush(now).expect("it flushes");
        all.push(points);
        let left_out = store.maintain(now, 0).expect("nothing is due").left_out_series;
        assert!(store.stats().rollup_bytes <= ROOM, "{:?}", store.stats());
        (live, left_out)
    };
    let (live, left_out) = write(&store, points("vm_devices", "a", 50, 0));
    assert!((10..40).contains(&live) && live + left_out == 50, "{live} live, {left_out} left out");
    // Other tables have what is left.
    assert_eq!(write(&store, points("other", "o", 50, 0)).1, 50);
    // The same ones go on, and no others.
    assert_eq!(write(&store, points("vm_devices", "a", 50, 1)), (live, left_out));
    assert_eq!(write(&store, points("vm_devices", "b", 5, 110)).1, 5);
    assert_eq!(write(&store, points("vm_devices", "b", 5, 122)).1, 5);
    // Those that rest have made room now.
    assert_eq!(write(&store, points("vm_devices", "b", 5, 123)).1, 0);
    let check = |store: &Store, all: &[Vec<Point>], vm: &str| {
        for (table, ns) in [("vm_devices_1m", 60 * SECOND), ("vm_devices_1h", HOUR)] {
            let from = START + 2 * HOUR;
            let sql = format!("WHERE name LIKE '{vm}%' AND CAST(time AS BIGINT) >= {from}");
            let is_asked = |it: &&Point| it.tags[0].1.starts_with(vm);
            let all: Vec<Point> = all.iter().flatten().filter(is_asked).cloned().collect();
            let start = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse::<i64>().ok();
            let mut expect = expected(&all, ns);
            expect.retain(|it| start(it) >= Some(from));
            assert_eq!(rows(&engine(store), table, &sql), expect, "{table} of {vm}");
        }
    };
    check(&store, &all, "b");
    // A start with less room, and one with more.
    store = open(dir.path(), ROOM / 10);
    store.apply(7, "db", &batch(&points("vm_devices", "b", 5, 124))).expect("it takes them");
    all.push(points("vm_devices", "b", 5, 124));
    store.flush(now).expect("it flushes");
    assert!((1..=ROOM / 10).contains(&store.stats().rollup_bytes), "{:?}", store.stats());
    drop(store);
    store = open(dir.path(), ROOM);
    store.apply(8, "db", &batch(&points("vm_devices", "b", 5, 125))).expect("it takes them");
    all.push(points("vm_devices", "b", 5, 125));
    let hours = rows(&engine(&store), "vm_devices_1h", "WHERE name LIKE 'b%' AND heat_last = 125");
    assert!(hours.len() == 5 && hours.iter().all(|it| it.contains("heat_min=122 ")), "{hours:#?}");
}

/// What no file will get shows in no roll-up before, either.
#[test]
fn points_beyond_retention_make_no_roll_ups() {
    let dir = tempfile::tempdir().expect("a folder");
    let retention = Arc::new(|_: &str, _: &str| Duration::from_secs(30 * 86_400));
    let options = Options { retention, min_free: Some(0), ..Options::default() };
    let store = Store::open(Arc::new(RealDisk), dir.path(), options).expect("it opens").0;
    let point = |table: &str, days: i64| Point {
        table: table.to_owned(),
        tags: Vec::new(),
        time: START - days * 24 * HOUR,
        fields: vec![("v".to_owned(), 1)],
    };
    let points = [point("now", 0), point("old", 31), point("young", 29)];
    store.apply(1, "db", &batch(&points)).expect("it takes them");
    let engine = engine(&store);
    let count = |table: &str| rows(&engine, table, "").len();
    for _ in 0..2 {
        assert_eq!(["now_1h", "old_1m", "old_1h", "young_1m", "young_1h"].map(count), [1, 0, 0, 1, 1]);
        store.flush(START).expect("it flushes");
    }
}
