//! Random points in random order, flushes, compactions and restarts: the store holds what a plain model holds.

use crate::support::{Model, Point, batch, engine, open, rows};

const DAY_NS: i64 = 86_400_000_000_000;
const START: i64 = 20_781 * DAY_NS;

/// Few tables, series and times, so that points repeat.
fn random_points(random: &mut fastrand::Rng) -> Vec<Point> {
    let mut points = Vec::new();
    for _ in 0..random.usize(1..30) {
        let mut tags = vec![("name".to_owned(), format!("vm{}", random.u8(0..3)))];
        if random.u8(0..4) == 0 {
            tags.push(("device".to_owned(), format!("vda{}", random.u8(0..2))));
        }
        tags.sort();
        let fields = (0..random.usize(1..4)).map(|_| (format!("f{}", random.u8(0..5)), random.i64(0..100)));
        let mut fields: Vec<_> = fields.collect();
        fields.sort();
        fields.dedup_by(|a, b| a.0 == b.0);
        let time = START + random.i64(0..3) * DAY_NS + random.i64(0..20) * 5_000_000_000;
        points.push(Point { table: format!("t{}", random.u8(0..2)), tags, time, fields });
    }
    points
}

/// One random history.
fn check(seed: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut store = open(dir.path());
    let mut sql = engine(&store);
    let mut journal: Vec<Vec<Point>> = Vec::new();
    let mut model = Model::default();
    for step in 0..random.usize(5..25) {
        match random.u8(0..10) {
            0 | 1 => drop(store.flush(START).expect("it flushes")),
            2 => drop(store.compact(START + 2 * DAY_NS).expect("it compacts")),
            3 => {
                store = open(dir.path());
                sql = engine(&store);
                for (seq, points) in (1..).zip(&journal).skip(store.cursor() as usize) {
                    store.apply(seq, "db", &batch(points)).expect("it takes them");
                }
            }
            _ => {
                let points = random_points(&mut random);
                journal.push(points.clone());
                store.apply(journal.len() as u64, "db", &batch(&points)).expect("it takes them");
                model.apply(&points);
            }
        }
        for table in model.tables() {
            let found = rows(&sql, table, "");
            assert_eq!(found, model.rows(table, i64::MIN..i64::MAX), "seed {seed}, step {step}, {table}");
            let (from, to) = (START + DAY_NS, START + DAY_NS + 50_000_000_000);
            let filter =
                format!("WHERE time >= to_timestamp_nanos({from}) AND time < to_timestamp_nanos({to})");
            let found = rows(&sql, table, &filter);
            assert_eq!(found, model.rows(table, from..to), "seed {seed}, step {step}, {table}, one day");
        }
    }
}

#[test]
fn random_histories_equal_the_model() {
    for seed in 0..20 {
        check(seed);
    }
}
