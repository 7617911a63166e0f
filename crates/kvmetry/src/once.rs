//! `kvmetry once`: one cycle of every hypervisor, to stdout: as lines, as JSON, or as a table for people.
//!
//! The table takes a second cycle a second later: what people want to see there is how fast counters grow.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines};
use serde_json::{Map, Value, json};

use crate::cli::{Format, print};
use crate::clock::{Clock, SystemClock};
use crate::collect::{Host, HostNames, Settings, Statuses};
use crate::config::Config;
use crate::{logging, table};

/// Between the two cycles of a table.
const TABLE_SPAN: Duration = Duration::from_secs(1);

/// Reads and prints.
///
/// # Errors
/// A hypervisor that could not be read; the others are printed all the same. Standard output that failed.
pub(crate) async fn once(config: &Config, format: Format) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut hosts = Vec::new();
    let names = HostNames::default();
    for (place, hypervisor) in config.hypervisors.iter().enumerate() {
        let (settings, statuses) = (Settings::of(config, hypervisor)?, Statuses::default());
        hosts.push(Host::new(settings, place, names.clone(), statuses, Arc::clone(&clock)));
    }
    let (first, mut unread) = cycle(&mut hosts, &clock).await;
    let printed = match format {
        Format::Line => print(&first),
        Format::Json => parse_lines(std::str::from_utf8(&first)?)
            .try_for_each(|line| print(format!("{}\n", to_json(&line?)).as_bytes())),
        Format::Table => {
            tokio::time::sleep(TABLE_SPAN).await;
            let (second, unread_now) = cycle(&mut hosts, &clock).await;
            unread = unread_now;
            let rows = table::rows(std::str::from_utf8(&first)?, std::str::from_utf8(&second)?)?;
            // Of a host that could not be read nobody knows whether it has live VMs.
            if rows.is_empty() && !unread.is_empty() {
                Ok(())
            } else {
                print(table::render(&rows, logging::colours(io::stdout().is_terminal())).as_bytes())
            }
        }
    };
    for host in &mut hosts {
        host.close().await;
    }
    printed?;
    match (unread.as_slice(), hosts.len()) {
        ([], _) => Ok(()),
        ([only], 1) => bail!("{only}"),
        (unread, all) => bail!("{} of {all} hypervisors not read: {}", unread.len(), unread.join("; ")),
    }
}

/// One cycle of all hosts side by side; also why some could not be read.
async fn cycle(hosts: &mut [Host], clock: &Arc<dyn Clock>) -> (Vec<u8>, Vec<String>) {
    let mut lines = Vec::new();
    let mut unread = Vec::new();
    let cycles = hosts.iter_mut().map(|host| async {
        let mut lines = Vec::new();
        let report = host.cycle(clock.wall_ns(), &mut lines).await;
        if report.whole == 0 && report.down.is_some() {
            lines.clear(); // nothing but the collector's own line
        }
        (lines, report.down)
    });
    for done in join_all(cycles).await {
        lines.extend(done.0);
        unread.extend(done.1);
    }
    (lines, unread)
}

fn to_json(line: &ParsedLine<'_>) -> Value {
    let tags = line.series.tag_set.iter().flatten();
    let tags: Map<_, _> = tags.map(|(key, value)| (key.to_string(), json!(value.as_str()))).collect();
    let fields = line.field_set.iter().map(|(key, value)| {
        let value = match value {
            FieldValue::I64(v) => json!(v),
            FieldValue::U64(v) => json!(v),
            FieldValue::F64(v) => json!(v),
            FieldValue::String(v) => json!(v.as_str()),
            FieldValue::Boolean(v) => json!(v),
        };
        (key.to_string(), value)
    });
    json!({
        "measurement": line.series.measurement.as_str(),
        "tags": tags,
        "fields": fields.collect::<Map<_, _>>(),
        "time_ns": line.timestamp,
    })
}
