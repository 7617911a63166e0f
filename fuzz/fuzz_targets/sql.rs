//! A query: it gives an answer or an error within its limits, and never panics.
#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use disk::RealDisk;
use futures_util::StreamExt as _;
use libfuzzer_sys::fuzz_target;
use store::sql::{Engine, Format, QueryError, QueryLimits};
use store::{Options, Store};
use telemetry::lines::{Catalog, Precision, parse};
use telemetry::workload::{Options as VmOptions, Workload};
use tokio::runtime::{Builder, Runtime};

/// A minute of three VMs, half of it in files.
static ENGINE: LazyLock<(tempfile::TempDir, Engine)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options { retention: Arc::new(|_, _| Duration::MAX), ..Options::default() };
    let (store, _) = Store::open(Arc::new(RealDisk), dir.path(), options).expect("it opens");
    let mut workload = Workload::new(VmOptions { vms: 3, ..VmOptions::default() });
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
    let limits =
        QueryLimits { time: Duration::from_secs(5), memory: 32 << 20, rows: 100_000, ..QueryLimits::default() };
    (dir, Engine::new(&store, limits).expect("an engine"))
});
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

async fn outcome(sql: &str) -> Result<(), QueryError> {
    let mut answer = ENGINE.1.query("db", sql, HashMap::new(), true).await?.write(Format::JsonLines);
    while let Some(piece) = answer.next().await {
        piece?;
    }
    Ok(())
}

fuzz_target!(|sql: &str| {
    if let Err(QueryError::Panicked(text)) = RUNTIME.block_on(outcome(sql)) {
        panic!("{text}");
    }
});
