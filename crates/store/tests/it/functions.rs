//! SQL functions that InfluxDB 3 adds to DataFusion's, and the messages of what is not there.

use std::collections::HashMap;
use std::sync::Arc;

use disk::RealDisk;
use futures_util::TryStreamExt as _;
use store::sql::{Engine, Format, QueryError};
use store::{Options, Store};
use telemetry::lines::{Catalog, Precision, parse};

use crate::support::{self, ask, engine};

const LINES: &str = r#"
cpu,vm=a v=2.5,n=7i,u=7u,s="x",b=true 1000000000
cpu,vm=a v=9.5,n=9i 3000000000
cpu,vm=b v=1.5,u=3u 2000000000
cpu,vm=b v=9.5,s="z",b=false 2500000000
cpu,vm=b n=1i 4000000000
"#;

fn open(lines: &str) -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = support::open(dir.path());
    let parsed = parse(lines, Precision::Nanosecond, i64::MAX);
    let admitted = Catalog::default().admit("db", parsed, false).expect("good lines");
    store.apply(1, "db", &admitted.batch).expect("it takes them");
    let engine = engine(&store);
    (dir, engine)
}

fn answers(cases: &[(&str, &str)]) {
    let (_dir, engine) = open(LINES);
    for (sql, expect) in cases {
        let found = ask(&engine, "db", &format!("SELECT {sql} FROM cpu"), Format::JsonLines);
        assert_eq!(found.expect(sql).trim_end(), *expect, "{sql}");
    }
}

fn refusals(cases: &[(&str, &str)]) {
    let (_dir, engine) = open(LINES);
    for (sql, expect) in cases {
        assert_eq!(ask(&engine, "db", sql, Format::Csv).expect_err(sql), *expect, "{sql}");
    }
}

#[test]
fn selectors_give_a_value_and_its_time() {
    answers(&[
        ("selector_last(v, time) AS it", r#"{"it":{"value":9.5,"time":"1970-01-01T00:00:03"}}"#),
        ("selector_first(v, time) AS it", r#"{"it":{"value":2.5,"time":"1970-01-01T00:00:01"}}"#),
        ("selector_min(v, time) AS it", r#"{"it":{"value":1.5,"time":"1970-01-01T00:00:02"}}"#),
        // Of equal values the earliest.
        ("selector_max(v, time) AS it", r#"{"it":{"value":9.5,"time":"1970-01-01T00:00:02.500"}}"#),
        // Nulls do not count, also where their time is the last.
        ("selector_last(u, time)['value'] AS it", r#"{"it":3}"#),
        ("selector_last(n, time)['value'] AS it", r#"{"it":1}"#),
        ("selector_max(s, time)['value'] AS it", r#"{"it":"z"}"#),
        ("selector_first(b, time)['value'] AS it", r#"{"it":true}"#),
        ("selector_last(vm, time)['value'] AS it", r#"{"it":"b"}"#),
        ("selector_last(v, time)['time'] AS it", r#"{"it":"1970-01-01T00:00:03"}"#),
        ("selector_max(v * 2, time)['value'] AS it", r#"{"it":19.0}"#),
        ("selector_last(v, tz(time))['time'] AS it", r#"{"it":"1970-01-01T00:00:03Z"}"#),
        ("selector_last(v, time) FILTER (WHERE false) AS it", r#"{"it":{}}"#),
        ("selector_last(NULL, time) AS it", r#"{"it":{}}"#),
    ]);
    let (_dir, engine) = open(LINES);
    let sql = "SELECT vm, selector_last(v, time)['value'] AS v, selector_min(v, time)['time'] AS at FROM cpu \
               GROUP BY vm ORDER BY vm";
    let expect = "vm,v,at\na,9.5,1970-01-01T00:00:01\nb,9.5,1970-01-01T00:00:02\n";
    assert_eq!(ask(&engine, "db", sql, Format::Csv).expect("an answer"), expect);
    refusals(&[
        (
            "SELECT selector_last(v) FROM cpu",
            "selector_last wants a value and a time: selector_last(memrss, time)",
        ),
        (
            "SELECT selector_last(time, v) FROM cpu",
            "selector_last: its second argument must be a time, and is Float64: selector_last(memrss, time)",
        ),
    ]);
}

/// Two groups of threads each give a part: the parts together give what the whole gives.
#[test]
fn selectors_of_many_rows_equal_those_of_sorted_rows() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut points: Vec<(u8, i64, Option<i64>)> = Vec::new();
    let mut lines = String::new();
    for time in 0..40_000 {
        let (vm, value) = (random.u8(0..7), (random.u8(0..4) > 0).then(|| random.i64(0..50)));
        points.push((vm, time, value));
        let value = value.map_or(String::new(), |it| format!(",v={it}i"));
        lines.push_str(&format!("t,vm=vm{vm} w=1i{value} {time}\n"));
    }
    let (_dir, engine) = open(&lines);
    for (name, key) in [
        ("first", (|time, _| (time, 0)) as fn(i64, i64) -> (i64, i64)),
        ("last", |time, _| (-time, 0)),
        ("min", |time, value| (value, time)),
        ("max", |time, value| (-value, time)),
    ] {
        let mut expect = "vm,v,at\n".to_owned();
        for vm in 0..7 {
            let of_vm = points.iter().filter(|it| it.0 == vm).filter_map(|it| Some((it.1, it.2?)));
            let (time, value) = of_vm.min_by_key(|&(time, value)| key(time, value)).expect("a point");
            expect.push_str(&format!("vm{vm},{value},{time}\n"));
        }
        let sql = format!(
            "SELECT vm, s['value'] AS v, CAST(s['time'] AS BIGINT) AS at FROM \
             (SELECT vm, selector_{name}(v, time) AS s FROM t GROUP BY vm) ORDER BY vm"
        );
        assert_eq!(ask(&engine, "db", &sql, Format::Csv).expect("an answer"), expect, "{name}");
    }
}

#[test]
fn tz_shows_the_same_moment_in_a_zone() {
    answers(&[
        ("tz(max(time), 'Europe/Berlin') AS it", r#"{"it":"1970-01-01T01:00:04+01:00"}"#),
        ("tz(max(time), '-03:30') AS it", r#"{"it":"1969-12-31T20:30:04-03:30"}"#),
        ("tz(max(time)) AS it", r#"{"it":"1970-01-01T00:00:04Z"}"#),
        ("tz(tz(max(time), 'Asia/Tokyo'), 'Europe/Berlin') AS it", r#"{"it":"1970-01-01T01:00:04+01:00"}"#),
        ("max(tz('2026-07-01T12:00:00Z', 'Europe/Berlin')) AS it", r#"{"it":"2026-07-01T14:00:00+02:00"}"#),
    ]);
    refusals(&[
        (
            "SELECT tz(time, 'Berlin') FROM cpu",
            "tz: \"Berlin\" is no time zone: write it as Europe/Berlin or as +01:00",
        ),
        ("SELECT tz(v) FROM cpu", "tz: its first argument must be a time, and is Float64"),
        (
            "SELECT tz(time, vm) FROM cpu",
            "tz: its second argument must be a time zone in single quotes: 'Europe/Berlin'",
        ),
    ]);
}

#[test]
fn unknown_names_are_told_with_those_that_there_are() {
    refusals(&[
        ("SELECT * FROM cpus", "table 'public.iox.cpus' not found: did you mean cpu? (there are cpu)"),
        ("SELECT * FROM network", "table 'public.iox.network' not found: there are cpu"),
        ("SELECT VM2 FROM cpu", "no column is called vm2: did you mean vm?"),
        ("SELECT nothing_alike FROM cpu", "no column is called nothing_alike"),
        (
            "SELECT v FROM other.cpu",
            "table 'public.other.cpu' not found: did you mean public.iox.cpu? (there are cpu)",
        ),
        (
            "SELECT v FROM cpu WHERE time > '2025'",
            "Parser error: Error parsing timestamp from '2025': timestamp must contain at least 10 characters",
        ),
        ("SELECT n / (n - n) FROM cpu", "Divide by zero error"),
        (
            "SELECT VMID FROM (SELECT vm AS \"VMID\" FROM cpu)",
            "no column is called vmid: upper-case letters need double quotes, \"VMID\"",
        ),
        ("SELECT frobnicate(v) FROM cpu", "no function is called frobnicate"),
        (
            "SELECT selector_lasst(v, time) FROM cpu",
            "no function is called selector_lasst: did you mean selector_last?",
        ),
    ]);
}

#[test]
fn an_empty_database_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let (store, _) = Store::open(Arc::new(RealDisk), dir.path(), Options::default()).expect("it opens");
    let engine = engine(&store);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let asked = |exists| {
        let asked = engine.query("db", "SELECT * FROM cpu", Default::default(), exists);
        runtime.block_on(asked).expect_err("no table").to_string()
    };
    assert_eq!(asked(true), "table 'public.iox.cpu' not found: there are no points in this database yet");
    assert_eq!(asked(false), "database not found: db");
}

#[test]
fn a_list_of_tables_is_bounded_and_has_no_roll_ups() {
    let lines: String = (0..25).map(|it| format!("Table{it:02} v=1 1\n")).collect();
    let (_dir, engine) = open(&lines);
    let told = ask(&engine, "db", "SELECT * FROM nothing_alike", Format::Csv).expect_err("no table");
    let listed: Vec<String> = (0..20).map(|it| format!("Table{it:02}")).collect();
    let listed = listed.join(", ");
    let expect = format!(
        "table 'public.iox.nothing_alike' not found: there are {listed} and 5 more: SHOW TABLES lists them"
    );
    assert_eq!(told, expect);
    let told = ask(&engine, "db", "SELECT * FROM Table01", Format::Csv).expect_err("no table");
    assert!(told.contains("upper-case letters need double quotes, \"Table01\""), "{told}");
}

/// InfluxDB's own example of its page on filling gaps, with its answers.
const HOME: &str = "
home,room=Kitchen temp=21.0,co=1i 1641024000
home,room=Kitchen temp=23.0,co=4i 1641027600
home,room=Kitchen temp=22.7,co=9i 1641031200
home,room=Living\\ Room temp=21.1 1641024000
home,room=Living\\ Room temp=21.4 1641027600
home,room=Living\\ Room temp=21.8 1641031200
";
const TWO_HOURS: &str = "time >= '2022-01-01T08:00:00Z' AND time <= '2022-01-01T10:00:00Z'";

fn home() -> (tempfile::TempDir, Engine) {
    open(&HOME.replace("00\n", "00000000000\n"))
}

#[test]
fn gaps_are_filled_as_influxdb_fills_them() {
    let (_dir, engine) = home();
    for (value, expect) in [
        ("avg(temp)", ["21.0,,23.0,,22.7", "21.1,,21.4,,21.8"]),
        ("locf(avg(temp))", ["21.0,21.0,23.0,23.0,22.7", "21.1,21.1,21.4,21.4,21.8"]),
        ("round(interpolate(avg(temp)), 3)", ["21.0,22.0,23.0,22.85,22.7", "21.1,21.25,21.4,21.6,21.8"]),
        // Whole numbers stay whole; what has no value at all has none between.
        ("interpolate(max(co))", ["1,2,4,6,9", ",,,,"]),
        ("coalesce(count(*), 0)", ["1,0,1,0,1", "1,0,1,0,1"]),
        (
            "locf(selector_last(temp, time))['value']",
            ["21.0,21.0,23.0,23.0,22.7", "21.1,21.1,21.4,21.4,21.8"],
        ),
        (
            "round(locf(avg(temp)) - interpolate(avg(temp)), 3)",
            ["0.0,-1.0,0.0,0.15,0.0", "0.0,-0.15,0.0,-0.2,0.0"],
        ),
    ] {
        let sql = format!(
            "SELECT date_bin_gapfill(INTERVAL '30 minutes', time) AS t, room, {value} AS v FROM home \
             WHERE {TWO_HOURS} GROUP BY 1, room ORDER BY room, t"
        );
        let found = ask(&engine, "db", &sql, Format::Csv).expect(value);
        let mut lines = "t,room,v\n".to_owned();
        for (room, values) in ["Kitchen", "Living Room"].iter().zip(expect) {
            for (place, value) in values.split(',').enumerate() {
                let (hour, minute) = (8 + place / 2, place % 2 * 30);
                lines.push_str(&format!("2022-01-01T{hour:02}:{minute:02}:00,{room},{value}\n"));
            }
        }
        assert_eq!(found, lines, "{value}");
    }
}

#[test]
fn gaps_are_filled_without_groups_beside_having_and_in_parts() {
    let (_dir, engine) = home();
    let bucket = "date_bin_gapfill(INTERVAL '1 hour', time)";
    for (sql, expect) in [
        // Without groups; the end is left out.
        (
            format!(
                "SELECT {bucket} AS t, count(*) AS n FROM home WHERE time >= '2022-01-01T07:30:00Z' AND time < '2022-01-01T10:00:00Z' GROUP BY t"
            ),
            "t,n\n2022-01-01T07:00:00,\n2022-01-01T08:00:00,2\n2022-01-01T09:00:00,2\n",
        ),
        // No end is now: far more than three years of hours.
        (
            format!(
                "SELECT count(*) > 26000 AS n FROM (SELECT {bucket}, count(*) FROM home WHERE time >= '2022-01-01T08:00:00Z' GROUP BY 1)"
            ),
            "n\ntrue\n",
        ),
        // No series, no rows.
        (
            format!(
                "SELECT {bucket} AS t, room, locf(max(co)) AS c FROM home WHERE {TWO_HOURS} AND room = 'Attic' GROUP BY t, room"
            ),
            "t,room,c\n",
        ),
        (
            format!(
                "SELECT {bucket} AS t, room, locf(avg(temp)) AS v FROM home WHERE {TWO_HOURS} GROUP BY t, room HAVING avg(temp) > 22 ORDER BY t"
            ),
            "t,room,v\n2022-01-01T09:00:00,Kitchen,23.0\n2022-01-01T10:00:00,Kitchen,22.7\n",
        ),
        // With an origin; and a part of a larger query, with a filter that may not be pushed below the filling.
        (
            format!(
                "WITH f AS (SELECT date_bin_gapfill(INTERVAL '1 hour', time, TIMESTAMP '2022-01-01T00:15:00') AS t, locf(sum(co)) AS c \
                     FROM home WHERE {TWO_HOURS} GROUP BY 1) SELECT f.t, f.c FROM f WHERE f.t > '2022-01-01T08:30:00Z'"
            ),
            "t,c\n2022-01-01T09:15:00,9\n",
        ),
        (
            format!(
                "SELECT {bucket} AS t, avg(temp) AS a, locf(avg(temp)) FROM home WHERE {TWO_HOURS} AND room = 'Kitchen' GROUP BY 1 ORDER BY 2 LIMIT 1"
            ),
            "t,a,locf(avg(home.temp))\n2022-01-01T08:00:00,21.0,21.0\n",
        ),
        // The range may stand in a query within; windows go over the filled buckets.
        (
            format!(
                "WITH h AS (SELECT time, temp FROM home WHERE {TWO_HOURS}) SELECT {bucket} AS t, locf(max(temp)) AS v, \
                     row_number() OVER (ORDER BY max(temp)) AS place FROM h GROUP BY 1 ORDER BY t"
            ),
            "t,v,place\n2022-01-01T08:00:00,21.1,1\n2022-01-01T09:00:00,23.0,3\n2022-01-01T10:00:00,22.7,2\n",
        ),
        // Two windows, one over the other, and what picks by them.
        (
            format!(
                "SELECT {bucket} AS t, locf(max(temp)) AS v, row_number() OVER (ORDER BY max(temp)) AS a, \
                     row_number() OVER (ORDER BY min(temp) DESC) AS b FROM home WHERE {TWO_HOURS} GROUP BY 1 \
                     QUALIFY a < 3 ORDER BY t"
            ),
            "t,v,a,b\n2022-01-01T08:00:00,21.1,1,3\n2022-01-01T10:00:00,22.7,2,1\n",
        ),
        // Of a join the times of the table whose time is grouped by.
        (
            "SELECT date_bin_gapfill(INTERVAL '1 hour', a.time) AS t, count(*) AS n FROM home a JOIN home b USING (room) \
                 WHERE a.time >= '2022-01-01T07:00:00Z' AND a.time < '2022-01-01T10:00:00Z' \
                 AND b.time >= '2022-01-01T09:00:00Z' AND b.time < '2022-01-01T10:00:00Z' GROUP BY t ORDER BY t"
                .to_owned(),
            "t,n\n2022-01-01T07:00:00,\n2022-01-01T08:00:00,2\n2022-01-01T09:00:00,2\n",
        ),
    ] {
        assert_eq!(ask(&engine, "db", &sql, Format::Csv).expect(&sql), expect, "{sql}");
    }
    let explained = ask(
        &engine,
        "db",
        &format!("EXPLAIN SELECT {bucket}, locf(avg(temp)) FROM home WHERE {TWO_HOURS} GROUP BY 1"),
        Format::Csv,
    );
    assert!(explained.expect("a plan").contains("GapFill: buckets=3, filled=[locf(avg(home.temp))]"));
}

#[test]
fn gaps_that_cannot_be_filled_are_refused() {
    refusals(&[
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time), avg(v) FROM cpu GROUP BY 1",
            "date_bin_gapfill wants to know where to begin: WHERE cpu.time >= …",
        ),
        // The times of another table say nothing.
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', a.time), count(*) FROM cpu a JOIN cpu b ON a.vm = b.vm \
             WHERE b.time >= '1970-01-01' AND b.time < '1970-01-02' GROUP BY 1",
            "date_bin_gapfill wants to know where to begin: WHERE a.time >= …",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time, TIMESTAMP '2262-01-01'), count(*) FROM \
             (SELECT CASE WHEN vm = 'a' THEN time END AS time FROM cpu) c WHERE time >= '1970-01-01' OR time IS NULL \
             GROUP BY 1",
            "date_bin_gapfill wants to know where to begin: WHERE c.time >= …",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 month', time), avg(v) FROM cpu WHERE time > now() GROUP BY 1",
            "date_bin_gapfill: its interval must be a constant of days, hours, minutes or seconds",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time), avg(v) FROM cpu WHERE time > '1970-01-01' GROUP BY 1",
            "date_bin_gapfill: more than 1000000 buckets: a longer interval, or a shorter range of time",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time) FROM cpu",
            "date_bin_gapfill must be what the query groups by: GROUP BY 1, and once only",
        ),
        (
            "SELECT locf(v) FROM cpu",
            "locf wants an aggregate of the same SELECT as date_bin_gapfill, and nothing else: locf(avg(memrss)); \
             filter, sort and window what it gives in a query around that one",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time) FROM cpu WHERE time >= '1970-01-01' AND time < '1970-01-02' \
             GROUP BY 1 HAVING locf(max(v)) > 2",
            "locf wants an aggregate of the same SELECT as date_bin_gapfill, and nothing else: locf(avg(memrss)); \
             filter, sort and window what it gives in a query around that one",
        ),
        (
            "SELECT date_bin_gapfill(INTERVAL '1 second', time), interpolate(max(s)) FROM cpu \
             WHERE time >= '1970-01-01' AND time < '1970-01-02' GROUP BY 1",
            "interpolate wants numbers, and has Utf8: use locf",
        ),
        (
            "SELECT date_bin_gapfill('1 second', v) FROM cpu GROUP BY 1",
            "date_bin_gapfill wants an interval and time: date_bin_gapfill(INTERVAL '1 minute', time)",
        ),
        (
            "SELECT date_bin_gapfill('1 second', min(time)) FROM (SELECT time, v FROM cpu) GROUP BY v",
            "date_bin_gapfill must be what the query groups by: GROUP BY 1, and once only",
        ),
    ]);
}

#[test]
fn a_line_may_be_longer_than_i64_has_nanoseconds() {
    let (_dir, engine) = open("t v=0i -8000000000000000000\nt v=15i 8000000000000000000\n");
    let sql = "SELECT sum(v) AS v, count(v) AS n FROM (SELECT date_bin_gapfill(INTERVAL '46297 days', time) AS t, \
               interpolate(max(v)) AS v FROM t WHERE time >= '1716-06-28T00:00:00' AND time < '2223-07-07' GROUP BY 1)";
    assert_eq!(ask(&engine, "db", sql, Format::Csv).expect("an answer"), "v,n\n30,4\n");
}

#[test]
fn a_row_in_no_bucket_is_refused() {
    let (_dir, engine) = open("t v=1i -9000000000000000000\n");
    let sql = "SELECT date_bin_gapfill(INTERVAL '30000 days', time, TIMESTAMP '2262-01-01'), max(v) FROM t \
               WHERE time >= '1680-01-01' AND time < '1690-01-01' GROUP BY 1";
    let told = ask(&engine, "db", sql, Format::Csv).expect_err("no bucket");
    assert_eq!(told, "a row is in no bucket: its time is null, or too far from the origin of the buckets");
}

#[test]
fn texts_that_would_fill_the_memory_are_refused() {
    answers(&[
        ("repeat(min(s), 3) AS it", r#"{"it":"xxx"}"#),
        ("lpad(min(s), 3, '-') AS it", r#"{"it":"--x"}"#),
        ("rpad(min(s), 2) || repeat(min(s), NULL) AS it", r#"{}"#),
        ("length(repeat('x', 65536)) AS it FROM cpu LIMIT 1 --", r#"{"it":65536}"#),
        ("max(length(repeat(s, 1000000))) AS it", r#"{"it":1000000}"#),
        ("replace(min(s), 'x', repeat('y', 4)) || min(vm) || max(n) AS it", r#"{"it":"yyyya9"}"#),
        ("min(s) || NULL AS it", "{}"),
        ("regexp_replace(min(vm), '(.)', '<\\1>', 'g') AS it", r#"{"it":"<a>"}"#),
        ("concat(min(s), 1, NULL) || concat_ws('-', 'a', min(vm)) AS it", r#"{"it":"x1a-a"}"#),
        ("array_to_string([1, 2] || [3], '+') AS it FROM cpu LIMIT 1 --", r#"{"it":"1+2+3"}"#),
        ("to_char(max(time), '%H:%M:%S') AS it", r#"{"it":"00:00:04"}"#),
        ("string_agg(vm, ', ' ORDER BY time) AS it", r#"{"it":"a, b, b, a, b"}"#),
        ("arrow_cast(max(n), 'Utf8') || encode(min(vm), 'hex') AS it", r#"{"it":"961"}"#),
        ("'a' || 'b' FROM cpu LIMIT 1 --", r#"{"Utf8(\"a\") || Utf8(\"b\")":"ab"}"#),
    ]);
    let (_dir, engine) = open(LINES);
    for sql in [
        "SELECT rpad(s, n * 1000000000) FROM cpu",
        "SELECT repeat(s, 1000000000) FROM cpu",
        "SELECT count(repeat('xx', CAST(value AS INT) * 1000)) FROM generate_series(1, 100000)",
        "SELECT replace(arrow_cast(repeat(s, 1000000), 'LargeUtf8'), 'x', repeat(s, 1000000)) FROM cpu",
        "SELECT regexp_replace(repeat(s, 1000000), '.', repeat('y', 1000), 'g') FROM cpu",
        "SELECT regexp_replace(repeat(s, 1000000), '.*', repeat('\\0', 100)) FROM cpu",
        "SELECT to_char(time, repeat('%' || s, 3000000)) FROM cpu",
        "SELECT array_to_string([1, 2, 3], repeat(s, 4000000)) FROM cpu",
        "SELECT concat_ws(repeat(vm, 6000000), '', '', '') FROM cpu",
        "WITH a AS (SELECT repeat(vm, 6000000) AS x FROM cpu), b AS (SELECT x || x AS x FROM a) SELECT x || x FROM b",
        "WITH a AS (SELECT repeat(vm, 6000000) AS x FROM cpu) SELECT concat(x, x, x) FROM a",
        "WITH a AS (SELECT repeat(vm, 6000000) AS x FROM cpu) SELECT [x, x, x] FROM a",
        "WITH a AS (SELECT [repeat(vm, 6000000)] AS x FROM cpu) SELECT x || x || x FROM a",
        "WITH a AS (SELECT repeat(vm, 8000000) AS x FROM cpu) SELECT encode(x, 'hex') FROM a",
    ] {
        // Not `expect_err`: it would show an answer that is there.
        let Some(told) = ask(&engine, "db", sql, Format::Csv).err() else { panic!("{sql} is answered") };
        assert!(told.contains("bytes, 67108864 is the limit"), "{sql}: {told}");
    }
    // What the planner has would be copied, and written into names.
    for sql in [
        "SELECT repeat('x', 2000000000)",
        "SELECT lpad('x', 2000000000)",
        "SELECT length(encode(CAST(repeat('x', 60000000) AS BYTEA), 'hex'))",
        "SELECT named_struct('a', repeat('x', 60000000)) FROM cpu",
        "SELECT repeat('x', 40000) || repeat('x', 40000)",
    ] {
        let Some(told) = ask(&engine, "db", sql, Format::Csv).err() else { panic!("{sql} is answered") };
        assert!(told.contains("bytes of constants, 65536 is the limit"), "{sql}: {told}");
    }
    refusals(&[
        (
            "SELECT cardinality(range(0, 5000000000))",
            "range is left out here: its list may be as long as its caller says; rows come FROM generate_series(…)",
        ),
        (
            "SELECT cardinality(generate_series(0, 5000000000))",
            "generate_series is left out here: its list may be as long as its caller says; rows come FROM generate_series(…)",
        ),
        (
            "SELECT array_repeat(array_repeat(1, 100000), 100000)",
            "array_repeat is left out here: its list may be as long as its caller says; rows come FROM generate_series(…)",
        ),
        (
            "SELECT array_resize([1], 5000000000)",
            "array_resize is left out here: its list may be as long as its caller says; rows come FROM generate_series(…)",
        ),
        (
            "SELECT levenshtein(repeat('x', 3000000), repeat('y', 3000000))",
            "levenshtein is left out here: it would go on for hours on long texts, and cannot be ended",
        ),
        (
            "SELECT string_agg(vm, repeat('x', 60000000)) FROM cpu",
            "string_agg: its second argument must be a text of 1024 bytes at most, in single quotes",
        ),
        (
            "SELECT arrow_cast(NULL, 'FixedSizeBinary(2147483647)') FROM cpu",
            "arrow_cast: a value would have 2147483647 bytes, 1024 is the limit",
        ),
    ]);
}

#[test]
fn a_table_for_people_is_refused_where_csv_is_not() {
    let (_dir, engine) = open(LINES);
    // One wide value makes all lines as long; a column more costs, too.
    for sql in [
        "SELECT repeat('x', 5000) AS x FROM generate_series(1, 60000)",
        "SELECT CASE WHEN value = 7 THEN repeat('x', 5000) END AS x FROM generate_series(1, 60000)",
    ] {
        let told = ask(&engine, "db", sql, Format::Pretty).expect_err(sql);
        assert!(told.contains("134217728 bytes at most; csv and jsonl are not"), "{told}");
        let found = ask(&engine, "db", sql, Format::Csv).expect(sql);
        assert_eq!(found.lines().count(), 60_001, "{sql}");
    }
    let found = ask(&engine, "db", "SELECT vm, n FROM cpu WHERE n = 9", Format::Pretty).expect("an answer");
    assert_eq!(found, "+----+---+\n| vm | n |\n+----+---+\n| a  | 9 |\n+----+---+\n");
}

/// What the one who asks can mend is told as such, also where it shows only while the query runs.
#[test]
fn what_a_function_refuses_is_the_querys_fault() {
    let (_dir, engine) = open(LINES);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for sql in [
        "SELECT date_bin(INTERVAL '0 seconds', time) FROM cpu",
        "SELECT factorial(100)",
        "SELECT factorial(n * 100) FROM cpu",
        "SELECT vm ~ '(((a{1,1000}){1,1000}){1,1000})' FROM cpu",
        "SELECT regexp_like(vm, '(((a{1,1000}){1,1000}){1,1000})') FROM cpu",
        "SELECT regexp_replace(vm, '(((a{1,1000}){1,1000}){1,1000})', 'x') FROM cpu",
        "SELECT regexp_like(vm, '(' || vm) FROM cpu",
        "SELECT regexp_like('a', '(')",
        "EXPLAIN COPY cpu TO 'x'",
        "SELECT repeat('x', 100000)",
        "SELECT n / 0 FROM cpu",
        "SELECT CAST(vm AS BIGINT) FROM cpu",
        "SELECT to_timestamp(vm) FROM cpu",
        "SELECT arrow_cast(n, 'Nothing') FROM cpu",
    ] {
        let told = runtime.block_on(async {
            let rows = engine.query("db", sql, HashMap::new(), false).await?;
            rows.try_for_each(async |_| Ok(())).await
        });
        assert!(matches!(told, Err(QueryError::Invalid(_))), "{sql}: {told:?}");
    }
}
