//! Queries with pieces missing, doubled, exchanged and replaced: each gives an answer or an error, and none a panic. The
//! same entry point as `fuzz/fuzz_targets/sql.rs`, on stable, bounded; `KVMETRY_SEEDS=from..to` for more.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use store::Store;
use store::sql::{Engine, Format, QueryError, QueryLimits};
use telemetry::lines::{Catalog, Precision, parse};
use telemetry::workload::{Options, Workload};

use crate::support::open;

/// Beside those of docs/QUERIES.md.
const QUERIES: [&str; 12] = [
    "SELECT date_bin_gapfill(INTERVAL '5 seconds', time) AS t, name, locf(avg(memrss)), interpolate(max(cputime)) \
     FROM vm_totals WHERE time >= TIMESTAMP '2026-01-01T00:00:00' AND time < TIMESTAMP '2026-01-01T00:01:00' GROUP BY t, name",
    "SELECT date_bin_gapfill(INTERVAL '1 second', time, TIMESTAMP '1970-01-01'), count(*) FROM vm_devices \
     WHERE time BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T00:00:20Z' GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 3",
    "SELECT selector_first(memrss, time)['value'], selector_min(state, time)['time'], selector_max(name, tz(time, 'Asia/Tokyo')) FROM vm_totals",
    "SELECT tz(time, '+05:30'), tz(max(time)) OVER (PARTITION BY \"VMID\") FROM vm_metrics",
    "SELECT * FROM last_cache('vm_devices') a JOIN last_cache('vm_totals', 'any') b USING (uuid) WHERE a.time = b.time",
    "SELECT * FROM information_schema.columns WHERE table_name LIKE 'vm%' AND data_type = 'Int64'",
    "SHOW COLUMNS FROM vm_totals",
    "EXPLAIN ANALYZE SELECT count(DISTINCT uuid) FROM vm_totals_1m UNION SELECT sum(rxbytes_increase) FROM vm_devices_1h",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT i FROM n",
    "SELECT CAST(memrss AS VARCHAR) || name, $1, -9223372036854775808 % -1, 1 / 0 FROM vm_totals WHERE time < now()",
    "SELECT approx_percentile_cont(cycle, 0.9) FROM (SELECT time - lag(time) OVER (ORDER BY time) AS cycle FROM vm_totals)",
    "INSERT INTO vm_totals VALUES (1); DROP TABLE vm_totals",
];
/// What stands in the place of a piece.
const PIECES: [&str; 24] = [
    "(",
    ")",
    ",",
    "*",
    "NULL",
    "time",
    "name",
    "\"VMID\"",
    "''",
    "'",
    "\"",
    "0",
    "-1",
    "9223372036854775807",
    "1e308",
    "18446744073709551616",
    "INTERVAL '1 month'",
    "INTERVAL '-1 second'",
    "vm_totals",
    "vm_devices_1m",
    "locf(",
    "date_bin_gapfill(",
    "GROUP BY 1",
    "\u{0}",
];

fn mutated(random: &mut fastrand::Rng, query: &str) -> String {
    let is_word = |it: char| it.is_alphanumeric() || it == '_';
    let mut pieces: Vec<&str> = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|it| is_word(it) != is_word(first)).unwrap_or(rest.len());
        let end = if is_word(first) { end } else { first.len_utf8() };
        pieces.push(&rest[..end]);
        rest = &rest[end..];
    }
    for _ in 0..random.usize(1..4) {
        let (at, other) = (random.usize(0..pieces.len()), random.usize(0..pieces.len()));
        match random.u8(0..5) {
            0 if pieces.len() > 1 => drop(pieces.remove(at)),
            1 => pieces.insert(at, pieces[other]),
            2 => pieces.swap(at, other),
            3 => pieces.truncate(at.max(1)),
            _ => pieces[at] = PIECES[random.usize(0..PIECES.len())],
        }
    }
    pieces.concat()
}

fn filled(dir: &std::path::Path) -> Store {
    let store = open(dir);
    let mut workload = Workload::new(Options { vms: 3, ..Options::default() });
    for seq in 1..=12 {
        let mut lines = Vec::new();
        workload.cycle(&mut lines);
        let lines = String::from_utf8(lines).expect("UTF-8");
        let admitted = Catalog::default().admit("db", parse(&lines, Precision::Nanosecond, i64::MAX), false);
        store.apply(seq, "db", &admitted.expect("good lines").batch).expect("it takes them");
        if seq == 6 {
            store.flush(0).expect("it flushes");
        }
    }
    store
}

async fn outcome(engine: &Engine, sql: &str) -> Result<usize, QueryError> {
    let rows = engine.query("db", sql, HashMap::new(), true).await?;
    let mut answer = rows.write(Format::JsonLines);
    let mut bytes = 0;
    while let Some(piece) = answer.next().await {
        bytes += piece?.len();
    }
    Ok(bytes)
}

#[test]
fn mutated_queries_give_an_answer_or_an_error() {
    let page = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join("../../docs/QUERIES.md");
    let page = std::fs::read_to_string(page).expect("docs/QUERIES.md");
    let of_page = page.split("```sql\n").skip(1).filter_map(|it| it.split("\n```").next());
    let queries: Vec<&str> = QUERIES.into_iter().chain(of_page).collect();
    let dir = tempfile::tempdir().expect("a folder");
    let store = filled(dir.path());
    let limits = QueryLimits {
        time: Duration::from_secs(5),
        memory: 32 << 20,
        rows: 100_000,
        ..QueryLimits::default()
    };
    let engine = Engine::new(&store, limits).expect("an engine");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (mut answers, mut errors) = (0, 0);
    let seeds = std::env::var("KVMETRY_SEEDS").ok().and_then(|it| {
        let (from, to) = it.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    for seed in seeds.unwrap_or(0..400) {
        let mut random = fastrand::Rng::with_seed(seed);
        let query = queries[random.usize(0..queries.len())];
        let sql = mutated(&mut random, query);
        match runtime.block_on(outcome(&engine, &sql)) {
            Ok(_) => answers += 1,
            Err(QueryError::Panicked(text)) => panic!("seed {seed}: {text}\n{sql}"),
            // DataFusion's word for a fault of its own; what this store adds must not be one.
            Err(error) if error.to_string().contains("StoreError") => panic!("seed {seed}: {error}\n{sql}"),
            Err(_) => errors += 1,
        }
    }
    assert!(answers > 0 && errors > 0, "{answers} answers, {errors} errors");
}
