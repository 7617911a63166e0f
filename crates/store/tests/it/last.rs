//! `last_cache`: the newest row of each series, whatever came late, was flushed, compacted or restarted between.

use store::sql::Format;

use crate::support::{Model, Point, ask, batch, engine, open, rows};

const DAY_NS: i64 = 86_400_000_000_000;
const HOUR_NS: i64 = 3_600_000_000_000;
/// Long over: times after the clock's are treated apart.
const START: i64 = 19_000 * DAY_NS;

fn random_points(random: &mut fastrand::Rng, hour: i64) -> Vec<Point> {
    let points = (0..random.usize(1..30)).map(|_| {
        let mut tags = vec![("name".to_owned(), format!("vm{}", random.u8(0..4)))];
        if random.u8(0..4) == 0 {
            tags.push(("device".to_owned(), "vda".to_owned()));
            tags.sort();
        }
        let fields = (0..random.usize(1..4)).map(|_| (format!("f{}", random.u8(0..4)), random.i64(0..100)));
        let mut fields: Vec<_> = fields.collect();
        fields.sort();
        fields.dedup_by(|a, b| a.0 == b.0);
        let late = if random.u8(0..3) == 0 { random.i64(0..8) } else { 0 };
        let time = START + (hour - late) * HOUR_NS + random.i64(0..6) * 5_000_000_000;
        Point { table: "t".to_owned(), tags, time, fields }
    });
    points.collect()
}

fn check(seed: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut store = open(dir.path());
    let mut sql = engine(&store);
    let mut journal: Vec<Vec<Point>> = Vec::new();
    let mut model = Model::default();
    let mut hour = 30;
    for step in 0..random.usize(5..40) {
        match random.u8(0..10) {
            0 => drop(store.flush(START).expect("it flushes")),
            1 => drop(store.compact(START).expect("it compacts")),
            2 => {
                store = open(dir.path());
                sql = engine(&store);
                for (seq, points) in (1..).zip(&journal).skip(store.cursor() as usize) {
                    store.apply(seq, "db", &batch(points)).expect("it takes them");
                }
            }
            _ => {
                hour += random.i64(0..2);
                let points = random_points(&mut random, hour);
                journal.push(points.clone());
                store.apply(journal.len() as u64, "db", &batch(&points)).expect("it takes them");
                model.apply(&points);
            }
        }
        // At some steps only: so that rows come before the first question, and between two.
        if !journal.is_empty() && random.u8(0..2) == 0 {
            let found = rows(&sql, "last_cache('t')", "");
            assert_eq!(found, model.newest("t", 4 * HOUR_NS), "seed {seed}, step {step}");
        }
    }
}

#[test]
fn the_newest_rows_are_those_of_the_model() {
    for seed in 0..30 {
        check(seed);
    }
}

fn point(table: &str, vm: &str, time: i64, value: i64) -> Point {
    let tags = vec![("name".to_owned(), vm.to_owned())];
    Point { table: table.to_owned(), tags, time, fields: vec![("v".to_owned(), value)] }
}

#[test]
fn a_time_far_ahead_takes_no_other_series_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as i64;
    let points = [
        point("t", "old", now - 6 * HOUR_NS, 1),
        point("t", "vm", now - HOUR_NS, 2),
        point("t", "ahead", i64::MAX, 3),
    ];
    store.apply(1, "db", &batch(&points)).expect("it takes them");
    let ask = |sql| ask(&engine(&store), "db", sql, Format::Csv);
    let sql = "SELECT name, v FROM last_cache('t') ORDER BY name";
    assert_eq!(ask(sql).expect("an answer"), "name,v\nahead,3\nvm,2\n");
}

#[test]
fn a_table_that_nobody_writes_to_any_more_keeps_its_last_values() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let points = [point("t", "old", START - 5 * HOUR_NS, 1), point("t", "vm", START, 2)];
    store.apply(1, "db", &batch(&points)).expect("it takes them");
    let sql = engine(&store);
    let ask = || ask(&sql, "db", "SELECT name, v FROM last_cache('t')", Format::Csv).expect("an answer");
    // The first only begins to count; the second finds that somebody asked, the third not.
    for now_ns in [START + DAY_NS, START + DAY_NS + HOUR_NS] {
        assert_eq!(ask(), "name,v\nvm,2\n");
        store.maintain(now_ns, 0).expect("it maintains");
    }
    assert_eq!(ask(), "name,v\nvm,2\n");
    for hours in [2, 3, 4] {
        store.maintain(START + DAY_NS + hours * HOUR_NS, 0).expect("it maintains");
    }
    assert_eq!(ask(), "name,v\nvm,2\n");
}

#[test]
fn columns_come_as_in_influxdb() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    store.apply(1, "db", &batch(&[point("t", "a", START, 1), point("t", "a", START + 1, 2)])).expect("so");
    let ask = |sql| ask(&engine(&store), "db", sql, Format::Csv);
    let newest = "name,v,time\na,2,2022-01-08T00:00:00.000000001\n";
    for sql in ["SELECT * FROM last_cache('t')", "SELECT * FROM last_cache('t', 't_name_last_cache')"] {
        assert_eq!(ask(sql).expect("an answer"), newest, "{sql}");
    }
    assert_eq!(ask("SELECT count(*) AS n FROM last_cache('t') WHERE v > 2").expect("an answer"), "n\n0\n");
    for (sql, told) in [
        ("SELECT * FROM last_cache('tt')", "table 'public.iox.tt' not found: did you mean t? (there are t)"),
        (
            "SELECT * FROM last_cache()",
            "last_cache wants the name of a table in single quotes: last_cache('vm_totals')",
        ),
        (
            "SELECT * FROM last_cache(1)",
            "last_cache wants the name of a table in single quotes: last_cache('vm_totals')",
        ),
        (
            "SELECT * FROM last_cache('t_1m')",
            "last_cache has no roll-ups: ask last_cache('t'), or t_1m itself",
        ),
    ] {
        assert_eq!(ask(sql).expect_err(sql), told);
    }
}

#[test]
fn more_series_than_are_held_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let sql = engine(&store);
    let ask = || ask(&sql, "db", "SELECT count(*) AS n FROM last_cache('t')", Format::Csv);
    let many: Vec<Point> = (0..30_000).map(|it| point("t", &format!("vm{it}"), START, 1)).collect();
    store.apply(1, "db", &series_batch(&many)).expect("so");
    assert_eq!(ask().expect("an answer"), "n\n30000\n");
    let more: Vec<Point> = (30_000..60_000).map(|it| point("t", &format!("vm{it}"), START, 1)).collect();
    store.apply(2, "db", &series_batch(&more)).expect("so");
    let told = ask().expect_err("too many");
    assert!(told.contains("last_cache('t') holds 50000 series at most, and t has more"), "{told}");
}

/// As [`batch`] of points of one table with a series each.
fn series_batch(points: &[Point]) -> telemetry::lines::Batch {
    let mut whole = batch(&points[..1]);
    let rows = &mut whole.tables[0];
    for (place, point) in points.iter().enumerate().skip(1) {
        rows.series.push(std::sync::Arc::new(telemetry::lines::SeriesKey { tags: point.tags.clone() }));
        rows.rows.push(place as u32);
        rows.times.push(point.time);
    }
    let len = points.len();
    rows.fields[0].values = telemetry::lines::Values::Integer(vec![1; len]);
    rows.fields[0].present = None;
    whole
}
