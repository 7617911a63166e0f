//! Points, batches of them, and a plain model of what a store holds.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::RealDisk;
use futures_util::StreamExt as _;
use store::sql::{Engine, Format, QueryLimits};
use store::{Options, Store};
use telemetry::lines::{Batch, FieldColumn, SeriesKey, TableBatch, Values};

/// The store in this folder, whole, which keeps rows for ever.
pub(crate) fn open(dir: &Path) -> Store {
    let options = Options { retention: Arc::new(|_, _| Duration::MAX), ..Options::default() };
    let (store, complaints) = Store::open(Arc::new(RealDisk), dir, options).expect("it opens");
    assert!(complaints.is_empty(), "{complaints:?}");
    store
}

/// A point: one row, some of whose fields are given.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) table: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) time: i64,
    pub(crate) fields: Vec<(String, i64)>,
}

/// Points as parsing would give them.
pub(crate) fn batch(points: &[Point]) -> Batch {
    let mut batch = Batch::default();
    for point in points {
        let place = batch.tables.iter().position(|it| it.table == point.table).unwrap_or_else(|| {
            batch.tables.push(TableBatch { table: point.table.clone(), ..TableBatch::default() });
            batch.tables.len() - 1
        });
        let rows = &mut batch.tables[place];
        let key = Arc::new(SeriesKey { tags: point.tags.clone() });
        let series = rows.series.iter().position(|it| *it == key).unwrap_or_else(|| {
            rows.series.push(key);
            rows.series.len() - 1
        });
        let before = rows.times.len();
        rows.rows.push(series as u32);
        rows.times.push(point.time);
        for (name, value) in &point.fields {
            let column = rows.fields.iter().position(|it| it.name == *name).unwrap_or_else(|| {
                let name = name.clone();
                let values = Values::Integer(vec![0; before]);
                rows.fields.push(FieldColumn { name, values, present: Some(vec![false; before]) });
                rows.fields.len() - 1
            });
            let column = &mut rows.fields[column];
            let Values::Integer(values) = &mut column.values else { panic!("all are integers") };
            values.push(*value);
            column.present.as_mut().expect("made so").push(true);
        }
        for column in &mut rows.fields {
            let Values::Integer(values) = &mut column.values else { panic!("all are integers") };
            values.resize(before + 1, 0);
            column.present.as_mut().expect("made so").resize(before + 1, false);
        }
        batch.lines += 1;
    }
    batch
}

type Fields = BTreeMap<String, i64>;
type Series = (Vec<(String, String)>, i64);

/// What a store must hold: per table, per tags and time, the last value of each field.
#[derive(Debug, Default)]
pub(crate) struct Model {
    tables: BTreeMap<String, BTreeMap<Series, Fields>>,
}

impl Model {
    pub(crate) fn apply(&mut self, points: &[Point]) {
        for point in points {
            let rows = self.tables.entry(point.table.clone()).or_default();
            let row = rows.entry((point.tags.clone(), point.time)).or_default();
            row.extend(point.fields.iter().cloned());
        }
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &String> {
        self.tables.keys()
    }

    /// Rows as `name=value …`, absent ones left out, sorted.
    pub(crate) fn rows(&self, table: &str, times: std::ops::Range<i64>) -> Vec<String> {
        lines(self.tables[table].iter().filter(|(key, _)| times.contains(&key.1)))
    }

    /// The newest row of each series, where it is no more than this older than the newest of all.
    pub(crate) fn newest(&self, table: &str, kept_ns: i64) -> Vec<String> {
        let rows = &self.tables[table];
        let newest = rows.keys().map(|it| it.1).max().expect("a row");
        let of_series: BTreeMap<_, _> = rows.iter().map(|row| (&row.0.0, row)).collect();
        lines(of_series.into_values().filter(|(key, _)| key.1 >= newest - kept_ns))
    }
}

fn lines<'a>(rows: impl Iterator<Item = (&'a Series, &'a Fields)>) -> Vec<String> {
    let mut rows: Vec<String> = rows
        .map(|((tags, time), fields)| {
            let mut all: BTreeMap<&str, String> = BTreeMap::new();
            all.extend(tags.iter().map(|(name, value)| (name.as_str(), value.clone())));
            all.extend(fields.iter().map(|(name, value)| (name.as_str(), value.to_string())));
            all.insert("time", time.to_string());
            line(&all)
        })
        .collect();
    rows.sort();
    rows
}

fn line(columns: &BTreeMap<&str, String>) -> String {
    columns.iter().fold(String::new(), |mut line, (name, value)| {
        let _ = write!(line, "{name}={value} ");
        line
    })
}

/// The answer to a query, as text in this format.
pub(crate) fn ask(engine: &Engine, database: &str, sql: &str, format: Format) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let rows = engine.query(database, sql, HashMap::new(), false).await.map_err(|it| it.to_string())?;
        let mut answer = rows.write(format);
        let mut text = Vec::new();
        while let Some(bytes) = answer.next().await {
            text.extend_from_slice(&bytes.map_err(|it| it.to_string())?);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    })
}

pub(crate) fn engine(store: &Store) -> Engine {
    Engine::new(store, QueryLimits::default()).expect("an engine")
}

/// What the store holds, in the form of [`Model::rows`].
pub(crate) fn rows(engine: &Engine, table: &str, filter: &str) -> Vec<String> {
    let sql = format!("SELECT *, CAST(time AS BIGINT) AS ns FROM {table} {filter}");
    let text = ask(engine, "db", &sql, Format::JsonLines).expect("an answer");
    let mut rows: Vec<String> = text
        .lines()
        .map(|text| {
            let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).expect("JSON");
            let mut all: BTreeMap<&str, String> = BTreeMap::new();
            for (name, value) in &row {
                let value = match value {
                    serde_json::Value::String(text) => text.clone(),
                    // Nine digits: JSON readers differ in the last ones.
                    value if value.is_f64() => format!("{:.9}", value.as_f64().expect("so")),
                    value => value.to_string(),
                };
                match name.as_str() {
                    "time" => {}
                    "ns" => {
                        all.insert("time", value);
                    }
                    name => {
                        all.insert(name, value);
                    }
                }
            }
            line(&all)
        })
        .collect();
    rows.sort();
    rows
}
