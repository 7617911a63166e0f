//! What a query may take: memory that DataFusion does not see by itself is counted, too.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use store::Store;
use store::sql::{Engine, Format, QueryError, QueryLimits};

use crate::support::{Point, batch, open};

const START: i64 = 20_000 * 86_400_000_000_000;
const SECOND: i64 = 1_000_000_000;

fn ask(store: &Store, memory: usize, sql: &str) -> Result<String, QueryError> {
    let engine =
        Engine::new(store, QueryLimits { memory, threads: 1, ..QueryLimits::default() }).expect("an engine");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut answer = engine.query("db", sql, HashMap::new(), false).await?.write(Format::Csv);
        let mut text = Vec::new();
        while let Some(piece) = answer.next().await {
            text.extend_from_slice(&piece?);
        }
        Ok(String::from_utf8(text).expect("UTF-8"))
    })
}

fn points(count: i64, value: i64) -> Vec<Point> {
    (0..count)
        .map(|it| Point {
            table: "t".to_owned(),
            tags: vec![("name".to_owned(), "vm".to_owned())],
            time: START + it * SECOND,
            fields: vec![("v".to_owned(), value)],
        })
        .collect()
}

#[test]
fn merging_and_roll_ups_and_filled_gaps_count_as_memory_of_queries() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let rows = 40_000;
    // Every point again: all are merged, as one series.
    for (seq, value) in [(1, 1), (2, 2)] {
        store.apply(seq, "db", &batch(&points(rows, value))).expect("it takes them");
    }
    let far = "date_bin_gapfill(INTERVAL '1 second', time)";
    let gaps = format!(
        "SELECT count(*) AS n FROM (SELECT {far}, count(*) FROM one WHERE time >= '2024-10-04' \
                        AND time < '2024-10-05' GROUP BY 1)"
    );
    let one = Point { table: "one".to_owned(), ..points(1, 1).remove(0) };
    store.apply(3, "db", &batch(&[one])).expect("it takes it");
    // Carried on, a text is there once for each bucket.
    let texts = format!(
        "SELECT min(length(x)) AS n FROM (SELECT {far}, locf(max(repeat('x', CAST(v AS INT) * 400))) AS x FROM one \
                        WHERE time >= '2024-10-04' AND time < '2024-10-05' GROUP BY 1)"
    );
    let refused = ask(&store, 32 << 20, &texts);
    assert!(matches!(refused, Err(QueryError::TooMuchMemory(_))), "{refused:?}");
    assert_eq!(ask(&store, 256 << 20, &texts).expect("an answer"), "n\n400\n");
    for (sql, expect) in [
        ("SELECT count(v) AS n, min(v) AS v FROM t", "n,v\n40000,2\n"),
        ("SELECT sum(v_max) AS v FROM t_1h", "v\n24\n"),
        (&gaps, "n\n86400\n"),
    ] {
        assert_eq!(ask(&store, 256 << 20, sql).expect("an answer"), expect, "{sql}");
        let refused = ask(&store, 256 << 10, sql);
        assert!(matches!(refused, Err(QueryError::TooMuchMemory(_))), "{sql}: {refused:?}");
    }
}
