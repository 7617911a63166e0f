//! `cargo xtask fixture`: a small data directory as this release leaves it when it is killed. It is committed, and every
//! later release must open it and give the same answers.
//!
//! ```text
//! DIR/data/          the data directory, without `lock`
//!     answers.json   [{"database":…,"sql":…,"csv":…}]: what this release answered, before it was killed
//! ```

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use telemetry::workload::Options;

use crate::store_perf::Server;

/// Every type of field, an absent tag, names that are not plain, a counter that goes back, a point that comes again.
const IN_FILES: &str = "\
types,host=a i=-1i,u=2u,f=1.5,b=true,s=\"x y\" 1767225600000000000
types i=3i,f=-0.25 1767225601000000000
types,host=a i=9i 1767312000000000000
types,host=a f=2.5 1767225600000000000
odd\\ name,a\\=b=c\\,d v=\"\\\"\" 1767225600000000000
";
/// Later than the last flush: they are in the journal only. One is of a new table, one brings a new field, one is of
/// a time that is in a file.
const IN_JOURNAL: &str = "\
types,host=a new=7i 1767225600000000000
types,host=b i=4i 1767312001000000000
late v=1i 1767225600000000000
";
const QUESTIONS: [(&str, &str); 7] = [
    ("own", "SELECT host, i, u, f, b, s, new, time FROM types ORDER BY time, host"),
    ("own", "SELECT * FROM \"odd name\""),
    ("own", "SELECT * FROM late"),
    ("kvmetry", "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox' ORDER BY 1"),
    (
        "kvmetry",
        "SELECT name, count(*) AS n, sum(memrss) AS m, max(time) AS t FROM vm_totals GROUP BY name ORDER BY name",
    ),
    ("kvmetry", "SELECT name, time, memrss_mean, cputime_increase FROM vm_totals_1h ORDER BY name, time"),
    ("kvmetry", "SELECT count(*) AS n, sum(memrss_max) AS m FROM vm_totals_1m"),
];

/// Makes it.
///
/// # Errors
/// It is there already; the binary does not start or does not answer as it should.
pub fn run(binary: &Path, dir: &Path) -> Result<()> {
    if dir.exists() {
        bail!("{} is there already, and what a release has left must not change", dir.display());
    }
    let data = dir.join("data");
    let mut server = Server::start(binary, &data)?;
    let write = "/api/v3/write_lp?db=own&precision=ns";
    server.post("/api/v3/configure/database", br#"{"db":"kept","retention_period":"7d"}"#)?;
    server.post(write, IN_FILES.as_bytes())?;
    let half_an_hour = Duration::from_secs(1_800);
    let few = Options { vms: 2, nics: 1, disks: 1, interval: half_an_hour, ..Options::default() };
    let few = Options { balloon_period: half_an_hour, ..few };
    server.feed("kvmetry", few, Duration::from_secs(2 * 3_600))?;
    server.post("/api/v3/compact", b"")?;
    server.post(write, IN_JOURNAL.as_bytes())?;
    let mut answers = Vec::new();
    for (database, sql) in QUESTIONS {
        answers.push(json!({ "database": database, "sql": sql, "csv": server.ask(database, sql)? }));
    }
    // Killed, so that the journal keeps what no file has.
    drop(server);
    for file in ["lock", "journal/spare.redb"] {
        match fs::remove_file(data.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let answers = serde_json::to_string_pretty(&answers)?;
    fs::write(dir.join("answers.json"), answers + "\n").context("writing answers.json")
}
