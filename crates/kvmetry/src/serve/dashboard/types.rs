//! What the pages get, as JSON. The pages' own types are made of these (`web/src/api.ts`; a test compares the two).
//!
//! Times are milliseconds since 1970, UTC. What is not known is null, never 0. Rates are worked out here, by
//! TELEMETRY.md's rules: a counter that steps back has begun anew, and its rate over that step is unknown.

use std::collections::BTreeMap;

use serde::Serialize;

/// `GET /api/fleet`, and the event `fleet` of `/api/live`: every VM's newest reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Fleet {
    /// This server's clock when it was made: "since" and "ago" are counted from it, as a browser's may be off.
    pub(crate) now: i64,
    /// The newest reading of all; null in an empty store.
    pub(crate) at: Option<i64>,
    /// How often most VMs are read, ms; each host may have its own.
    pub(crate) interval: i64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) vms: Vec<Vm>,
    /// What a person should do now, worst first.
    pub(crate) warnings: Vec<Warning>,
}

/// A hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Host {
    pub(crate) name: String,
    /// Its newest reading.
    pub(crate) at: Option<i64>,
    /// How often it is read, ms.
    pub(crate) interval: i64,
    /// No reading for three intervals.
    pub(crate) silent: bool,
    pub(crate) vms: usize,
    /// VMs whose monitor does not answer.
    pub(crate) stuck: usize,
    /// Wall time of its last cycle, ms.
    pub(crate) cycle: Option<f64>,
}

/// A VM's newest reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Vm {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) host: String,
    /// libvirt's domain id; it changes with each start.
    pub(crate) vmid: String,
    pub(crate) at: i64,
    /// How often its host is read, ms.
    pub(crate) interval: i64,
    /// 0 no state, 1 running, 2 blocked, 3 paused, 4 shutting down, 5 shut off, 6 crashed, 7 suspended by guest.
    pub(crate) state: Option<i64>,
    pub(crate) cpus: Option<i64>,
    /// Percent of all its vCPUs, 0 to 100.
    pub(crate) cpu: Option<f64>,
    /// Memory that it has, KiB.
    pub(crate) assigned: Option<i64>,
    /// Memory that it uses, KiB.
    pub(crate) used: Option<i64>,
    /// Whose figure `used` is.
    pub(crate) source: Option<MemorySource>,
    /// Change of used memory, KiB/s.
    pub(crate) growth: Option<f64>,
    /// Received, bytes/s.
    pub(crate) rx: Option<f64>,
    /// Sent, bytes/s.
    pub(crate) tx: Option<f64>,
    /// Read from disks, bytes/s.
    pub(crate) rd: Option<f64>,
    /// Written to disks, bytes/s.
    pub(crate) wr: Option<f64>,
    /// Of its NICs and disks, in the last 15 minutes.
    pub(crate) errors: Option<i64>,
    /// Packets that its NICs dropped in the last 15 minutes.
    pub(crate) drops: Option<i64>,
    /// Whether it was read whole in its last cycle; if not, its monitor does not answer.
    pub(crate) ok: bool,
    /// Seconds since it was read whole.
    pub(crate) age: Option<i64>,
}

/// Whose figure of used memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) enum MemorySource {
    /// The guest's own.
    Guest,
    /// What its QEMU has resident.
    Rss,
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Warning {
    pub(crate) level: Level,
    /// What is wrong, in a sentence.
    pub(crate) text: String,
    /// What to do about it, where that can be said.
    pub(crate) advice: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) enum Level {
    /// Data is missing, or a person is needed.
    Error,
    /// Nothing is lost.
    Warning,
}

/// `GET /api/fleet/history`: the CPU of each VM over the last 15 minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct FleetHistory {
    /// The start of the first bucket.
    pub(crate) from: i64,
    /// The width of a bucket, ms.
    pub(crate) step: i64,
    /// Percent of all vCPUs by VM, a value a bucket; null is a gap.
    pub(crate) cpu: BTreeMap<String, Vec<Option<f64>>>,
}

/// `GET /api/vm/{uuid}?from=&to=&points=&step=`: the charts of one VM. `points`: how many of them a chart has room for.
///
/// Where there are more readings, each point is a bucket of them, and its time the bucket's beginning, a multiple of `step`.
/// With `step` (that of an earlier answer) buckets are that wide whatever the points: a live view asks so for its newest
/// piece. The first rate is counted from the reading before `from`, so that pieces join without a gap.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct VmPage {
    pub(crate) uuid: String,
    /// The newest first.
    pub(crate) names: Vec<String>,
    pub(crate) host: String,
    pub(crate) from: i64,
    pub(crate) to: i64,
    /// The width of a bucket, ms; null where every reading is shown.
    pub(crate) step: Option<i64>,
    /// Where the points come from.
    pub(crate) table: Table,
    /// Its newest reading, if it lives.
    pub(crate) now: Option<Vm>,
    pub(crate) panels: Vec<Panel>,
    pub(crate) marks: Vec<Mark>,
    /// What is to be known of this answer: what is left out, where to get it.
    pub(crate) notes: Vec<String>,
}

/// Where points come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) enum Table {
    /// Every reading.
    #[default]
    #[serde(rename = "raw")]
    Raw,
    /// Roll-ups by the minute.
    #[serde(rename = "1m")]
    Minutes,
    /// Roll-ups by the hour.
    #[serde(rename = "1h")]
    Hours,
}

/// A chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Panel {
    /// `cpu`, `memory`, …; of a device `nic:vnet0:bytes`, `disk:vda:requests`, …
    pub(crate) id: String,
    pub(crate) title: String,
    /// `percent`, `KiB`, `KiB/s`, `bytes/s`, `count/s`, `degrees`.
    #[cfg_attr(test, ts(type = "string"))]
    pub(crate) unit: Unit,
    /// The moments of all its points.
    pub(crate) times: Vec<i64>,
    pub(crate) series: Vec<Series>,
    /// What it was asked with, to be asked again elsewhere.
    pub(crate) sql: String,
}

/// What a chart's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "percent")]
    Percent,
    #[serde(rename = "KiB")]
    Kib,
    #[serde(rename = "KiB/s")]
    KibPerSecond,
    #[serde(rename = "bytes/s")]
    BytesPerSecond,
    #[serde(rename = "count/s")]
    CountPerSecond,
    #[serde(rename = "degrees")]
    Degrees,
}

/// A line of a chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Series {
    pub(crate) id: String,
    pub(crate) label: String,
    /// Null is a gap.
    pub(crate) mean: Vec<Option<f64>>,
    /// The least and the greatest of each bucket; null where a point is one reading.
    pub(crate) min: Option<Vec<Option<f64>>>,
    pub(crate) max: Option<Vec<Option<f64>>>,
}

/// A moment that all charts show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Mark {
    pub(crate) at: i64,
    /// An event of `vm_events`, or `restarted`, `renamed`, `moved`; `state` where no event tells a change of it.
    pub(crate) kind: String,
    pub(crate) text: String,
}

/// `GET /api/collector`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Collector {
    pub(crate) version: String,
    /// What answers: the embedded store, or a server.
    pub(crate) source: String,
    /// Since when this process runs.
    pub(crate) since: i64,
    pub(crate) hypervisors: Vec<Hypervisor>,
    pub(crate) journal: Option<JournalState>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) store: Option<StoreState>,
    /// Points a second over the last minute.
    pub(crate) points: Option<f64>,
    pub(crate) warnings: Vec<Warning>,
}

/// How one hypervisor is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Hypervisor {
    pub(crate) host: String,
    /// As configured, without what may be secret; null of a hypervisor that another collector reads.
    pub(crate) uri: Option<String>,
    /// Null while there is no connection, or another collector's.
    pub(crate) connected_since: Option<i64>,
    /// libvirt's version there, when it was connected last.
    pub(crate) libvirt: Option<String>,
    /// Wall time of the last cycle, ms.
    pub(crate) cycle: Option<f64>,
    pub(crate) interval: i64,
    pub(crate) vms: usize,
    pub(crate) stuck: i64,
    /// Calls given up that its daemon still holds.
    pub(crate) abandoned: i64,
    /// Readings that failed, since its collector began.
    pub(crate) failures: i64,
    /// Part of the device names that were in the cache, 0 to 1.
    pub(crate) cache_hits: Option<f64>,
    /// Why it was not read in its last cycle.
    pub(crate) problem: Option<String>,
}

/// How full the journal is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct JournalState {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) max: u64,
    /// When its oldest entry was appended.
    pub(crate) oldest: Option<i64>,
}

/// How a server gets its points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Delivery {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) state: DeliveryState,
    pub(crate) waiting_entries: u64,
    pub(crate) delivered_lines: u64,
    pub(crate) refused_lines: u64,
    pub(crate) lost_lines: u64,
    /// Why it does not get on.
    pub(crate) trouble: Option<String>,
}

/// How a delivery fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) enum DeliveryState {
    Ok,
    /// It has more to bring than a few cycles.
    Behind,
    /// Its last request failed.
    Failing,
}

/// How full the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct StoreState {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) max: u64,
    pub(crate) free: u64,
    pub(crate) min_free: u64,
    pub(crate) rows: u64,
    pub(crate) memory_rows: usize,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use ts_rs::{Config, TS};

    use super::*;

    const HEAD: &str = "\
// The JSON of the dashboard's API, made from crates/kvmetry/src/serve/dashboard/types.rs by its test (KVMETRY_WRITE_DOCS=1).
//
// All times: whole milliseconds since 1970 UTC. What is not known is null, never 0. Rates are computed by the server.
//
// GET api/live: server-sent events. `id:` numbers pushes.
//   event: fleet  data: Fleet  at each cycle, whole; the first one at once
//   event: hole   data: {}     pushes were missed: ask for history again
//   event: trouble  data: {\"error\": \"…\"}  there is no newer fleet; without an id, over with the next one
//   event: beat   data: {}     every 15 s, without an id
//
// GET api/session: Session. POST api/session {\"token\": \"…\"}: 204 with a cookie, or 401. DELETE api/session: 204.
// Any other answer may be 401: show the login. Errors: {\"error\": \"what and what to do\"}.
//
// A long range of api/vm may be answered as application/x-ndjson: lines {\"done\": 3, \"of\": 15}, then the VmPage or an error.
";

    fn typescript() -> String {
        let config = Config::new().with_large_int("number");
        let mut text = HEAD.to_owned();
        macro_rules! add {
            ($($kind:ty),+) => {
                $(
                    text.push('\n');
                    text.push_str(<$kind as TS>::docs().unwrap_or_default().trim_end());
                    text.push_str("\nexport ");
                    text.push_str(&<$kind as TS>::decl(&config));
                    text.push('\n');
                )+
            };
        }
        add!(
            Fleet,
            Host,
            Vm,
            MemorySource,
            Warning,
            Level,
            FleetHistory,
            VmPage,
            Table,
            Panel,
            Series,
            Mark,
            Collector,
            Hypervisor,
            JournalState,
            Delivery,
            DeliveryState,
            StoreState,
            crate::http::session::Session
        );
        text
    }

    #[test]
    fn the_pages_have_these_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/src/api.ts");
        let made = typescript();
        if std::env::var_os("KVMETRY_WRITE_DOCS").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap();
        assert!(
            found == made,
            "web/src/api.ts is not made of these types: KVMETRY_WRITE_DOCS=1 writes it anew"
        );
    }
}
