//! The charts of one VM over any span: from every reading, or from the roll-ups where those are too many.
//!
//! ```text
//!  readings ──lag, by VMID──▶ rates ──date_bin──▶ mean, least, greatest of each bucket ──▶ Panels
//!  roll-ups ──increase / time that it covers────────────▲
//! ```
//!
//! A rate is that of one step between two readings of the same start of the VM; it is unknown over a step back, and over
//! one that is too long. A bucket without a reading is a gap. So that a spike never disappears, each bucket has the least
//! and the greatest beside the mean.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::http::Uri;
use serde::Deserialize;
use serde_json::json;
use tokio::try_join;

use super::fleet::is_uuid;
use super::schema::Schema;
use super::source::{Params, Source, SourceError};
use super::types::{Fleet, Mark, Panel, Series, Table, Unit, VmPage};
use crate::http::{Params as UrlParams, Problem};

const MS: i64 = 1_000_000;
const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
/// The span that is shown where none is asked for.
const SPAN_MS: i64 = HOUR_MS;
/// The longest span: what roll-ups by the hour are kept for, and a day.
const MAX_SPAN_MS: i64 = 401 * DAY_MS;
/// Up to this span every reading is looked at: 26 hours of 5 s are 18,720.
const RAW_SPAN_MS: i64 = 26 * HOUR_MS;
/// Up to this one every minute.
const MINUTES_SPAN_MS: i64 = 8 * DAY_MS;
/// A longer step between two readings gives no rate, whatever the interval.
const STEP_LIMIT_MS: i64 = 300 * SECOND_MS;
/// How many points a chart may have.
const POINTS: std::ops::RangeInclusive<i64> = 50..=4_000;
const DEFAULT_POINTS: i64 = 800;
/// Marks on a chart: more than these nobody can tell apart. The newest are shown.
const MAX_MARKS: usize = 500;
/// Devices with charts.
const MAX_DEVICES: usize = 64;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    uuid: String,
    from: i64,
    to: i64,
    points: i64,
    /// The width of a bucket that is wanted, ms.
    step: Option<i64>,
}

/// How a line of a chart comes from a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// As it is.
    Gauge,
    /// A counter's increase a second.
    Rate,
    /// A counter of nanoseconds as percent of all vCPUs.
    Share,
}

/// A line of a chart.
struct Line {
    field: &'static str,
    label: &'static str,
    value: Value,
}

/// A chart.
struct Chart {
    id: &'static str,
    title: &'static str,
    unit: Unit,
    lines: &'static [Line],
}

const fn line(field: &'static str, label: &'static str, value: Value) -> Line {
    Line { field, label, value }
}

use Value::{Gauge, Rate, Share};

/// The chart whose parts are worked out, see [`parts_of_cpu`].
const CPU: &str = "cpu";

const TOTALS: &[Chart] = &[
    Chart {
        id: CPU,
        title: "CPU",
        unit: Unit::Percent,
        lines: &[
            line("cputime", "all", Share),
            line("timeusr", "user", Share),
            line("timesys", "system", Share),
        ],
    },
    Chart {
        id: "memory",
        title: "Memory",
        unit: Unit::Kib,
        lines: &[
            line("memactual", "assigned", Gauge),
            line("memrss", "resident on the host", Gauge),
            line("memavailable", "seen by the guest", Gauge),
            line("memusable", "usable in the guest", Gauge),
            line("memdisk_cache", "disk cache in the guest", Gauge),
        ],
    },
    Chart {
        id: "swap",
        title: "Swap of the guest",
        unit: Unit::KibPerSecond,
        lines: &[line("memswap_in", "in", Rate), line("memswap_out", "out", Rate)],
    },
    Chart {
        id: "faults",
        title: "Page faults of the guest",
        unit: Unit::CountPerSecond,
        lines: &[line("memmajor_fault", "major", Rate), line("memminor_fault", "minor", Rate)],
    },
    Chart {
        id: "net",
        title: "Network",
        unit: Unit::BytesPerSecond,
        lines: &[line("net_rxbytes", "received", Rate), line("net_txbytes", "sent", Rate)],
    },
    Chart {
        id: "net-packets",
        title: "Packets",
        unit: Unit::CountPerSecond,
        lines: &[line("net_rxpackets", "received", Rate), line("net_txpackets", "sent", Rate)],
    },
    Chart {
        id: "net-faults",
        title: "Network errors and drops",
        unit: Unit::CountPerSecond,
        lines: &[
            line("net_rxerrors", "receive errors", Rate),
            line("net_txerrors", "send errors", Rate),
            line("net_rxdrops", "receive drops", Rate),
            line("net_txdrops", "send drops", Rate),
        ],
    },
    Chart {
        id: "disk",
        title: "Disks",
        unit: Unit::BytesPerSecond,
        lines: &[line("disk_rd_bytes", "read", Rate), line("disk_wr_bytes", "written", Rate)],
    },
    Chart {
        id: "disk-requests",
        title: "Disk requests",
        unit: Unit::CountPerSecond,
        lines: &[line("disk_rd_req", "reads", Rate), line("disk_wr_reqs", "writes", Rate)],
    },
    Chart {
        id: "disk-errors",
        title: "Disk errors",
        unit: Unit::CountPerSecond,
        lines: &[line("disk_errors", "errors", Rate)],
    },
];

const FEATURES: &[Chart] = &[
    Chart {
        id: "trend",
        title: "Memory trend",
        unit: Unit::KibPerSecond,
        lines: &[line("memory_rate_kb_per_sec", "growth", Gauge)],
    },
    Chart {
        id: "angle",
        title: "Memory trend as an angle",
        unit: Unit::Degrees,
        lines: &[line("memory_angle_deg", "angle", Gauge)],
    },
];

const NIC: &[Chart] = &[
    Chart {
        id: "bytes",
        title: "bytes",
        unit: Unit::BytesPerSecond,
        lines: &[line("rxbytes", "received", Rate), line("txbytes", "sent", Rate)],
    },
    Chart {
        id: "packets",
        title: "packets",
        unit: Unit::CountPerSecond,
        lines: &[line("rxpackets", "received", Rate), line("txpackets", "sent", Rate)],
    },
    Chart {
        id: "faults",
        title: "errors and drops",
        unit: Unit::CountPerSecond,
        lines: &[
            line("rxerrors", "receive errors", Rate),
            line("txerrors", "send errors", Rate),
            line("rxdrops", "receive drops", Rate),
            line("txdrops", "send drops", Rate),
        ],
    },
];

const DISK: &[Chart] = &[
    Chart {
        id: "bytes",
        title: "bytes",
        unit: Unit::BytesPerSecond,
        lines: &[line("rd_bytes", "read", Rate), line("wr_bytes", "written", Rate)],
    },
    Chart {
        id: "requests",
        title: "requests",
        unit: Unit::CountPerSecond,
        lines: &[line("rd_req", "reads", Rate), line("wr_reqs", "writes", Rate)],
    },
    Chart {
        id: "errors",
        title: "errors",
        unit: Unit::CountPerSecond,
        lines: &[line("errors", "errors", Rate)],
    },
];

impl Wanted {
    /// # Errors
    /// What the client is told.
    pub(crate) fn of(uuid: String, uri: &Uri, now: i64) -> Result<Self, Problem> {
        if !is_uuid(&uuid) {
            return Err(Problem::wrong("a VM is named by its UUID: 36 digits and hyphens"));
        }
        let mut params = UrlParams::of(uri);
        let mut number = |name: &str, default: i64| match params.take(name) {
            None => Ok(default),
            Some(text) => text.parse::<i64>().map_err(|_| {
                Problem::wrong(format!("{name} must be a whole number: milliseconds since 1970 for a time"))
            }),
        };
        let to = number("to", now)?;
        let from = number("from", to.saturating_sub(SPAN_MS))?;
        let points = number("points", DEFAULT_POINTS)?.clamp(*POINTS.start(), *POINTS.end());
        let step = Some(number("step", 0)?).filter(|it| *it > 0);
        let in_time = |it: i64| (0..=i64::MAX / MS).contains(&it);
        if !in_time(from) || !in_time(to) || from >= to {
            return Err(Problem::wrong("from must be before to, both in milliseconds since 1970"));
        }
        if to - from > MAX_SPAN_MS {
            let days = MAX_SPAN_MS / DAY_MS;
            return Err(Problem::wrong(format!(
                "the span is longer than {days} days, for which points are kept"
            )));
        }
        if step.is_some_and(|it| it > MAX_SPAN_MS || (to - from) / it > *POINTS.end()) {
            return Err(Problem::wrong(format!(
                "step is so short that there are more than {} points",
                POINTS.end()
            )));
        }
        Ok(Self { uuid: uuid.to_ascii_lowercase(), from, to, points, step })
    }

    fn span(&self) -> i64 {
        self.to - self.from
    }

    fn params(&self) -> Params {
        Params::from_iter([("uuid".to_owned(), json!(self.uuid))])
    }
}

/// How a span is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    table: Table,
    /// The width of a bucket, ms; `None`: every reading.
    step: Option<i64>,
    /// A longer step gives no rate, ms.
    step_limit: i64,
}

impl Reading {
    fn of(wanted: &Wanted, interval: i64, schema: &Schema) -> Self {
        let table = match wanted.span() {
            span if span <= RAW_SPAN_MS => Table::Raw,
            span if span <= MINUTES_SPAN_MS => Table::Minutes,
            _ => Table::Hours,
        };
        // A server that makes no roll-ups is asked for readings.
        let table = if schema.has_table(&name_of("vm_totals", table)) { table } else { Table::Raw };
        Self::from(table, wanted, interval)
    }

    /// From the next coarser table, which is kept longer.
    fn coarser(self, wanted: &Wanted, interval: i64, schema: &Schema) -> Option<Self> {
        let table = match self.table {
            Table::Raw => Table::Minutes,
            Table::Minutes => Table::Hours,
            Table::Hours => return None,
        };
        schema.has_table(&name_of("vm_totals", table)).then(|| Self::from(table, wanted, interval))
    }

    fn from(table: Table, wanted: &Wanted, interval: i64) -> Self {
        let interval = interval.max(SECOND_MS);
        let least = match table {
            Table::Raw => interval,
            Table::Minutes => MINUTE_MS,
            Table::Hours => HOUR_MS,
        };
        let step_limit = STEP_LIMIT_MS.max(3 * interval).max(if table == Table::Raw { 0 } else { 3 * least });
        if let Some(step) = wanted.step {
            return Self { table, step: Some(step), step_limit };
        }
        let step = (wanted.span() / wanted.points).div_euclid(least).max(0) * least;
        let step = match table {
            Table::Raw => Some(step + least).filter(|_| step > 0),
            _ => Some(step + least),
        };
        Self { table, step, step_limit }
    }
}

/// A table or its roll-ups.
fn name_of(table: &str, of: Table) -> String {
    match of {
        Table::Raw => table.to_owned(),
        Table::Minutes => format!("{table}_1m"),
        Table::Hours => format!("{table}_1h"),
    }
}

/// The query of some charts. Its rows have the moment, the device where there are some, and all values in one list.
fn sql(table: &str, charts: &[&[Chart]], reading: Reading, wanted: &Wanted, schema: &Schema) -> String {
    let from_table = name_of(table, reading.table);
    let (uuid, host) = (schema.uuid(&from_table), schema.tag(&from_table, &["host"]));
    let by_device = table == "vm_devices";
    let tags = if by_device { "devtype, device, " } else { "" };
    let lines = charts.iter().flat_map(|it| it.iter()).flat_map(|it| it.lines);
    let (mut read, mut worked_out, mut list) = (String::new(), String::new(), Vec::new());
    if !by_device {
        let cpus = if reading.table == Table::Raw { "cpus" } else { "cpus_last" };
        let _ = write!(read, ", {} AS cpus", schema.field(&from_table, cpus));
    }
    for (place, line) in lines.enumerate() {
        let mut field = |tail: &str, name: String| {
            let field = schema.field(&from_table, &format!("{}{tail}", line.field));
            let _ = write!(read, ", CAST({field} AS DOUBLE) AS {name}");
            name
        };
        if line.value == Gauge && reading.table != Table::Raw {
            // As they are: the mean of means, the least of the least.
            let of = [("avg", "_mean", "a"), ("min", "_min", "b"), ("max", "_max", "c")];
            for (sum, tail, letter) in of {
                let name = field(tail, format!("f{place}{letter}"));
                let _ = write!(worked_out, ", {name}");
                list.push(format!("{sum}({name})"));
            }
            continue;
        }
        let increase = if reading.table == Table::Raw {
            let name = field("", format!("f{place}"));
            if line.value == Gauge { name } else { format!("{name} - lag({name}) OVER one") }
        } else {
            field("_increase", format!("f{place}"))
        };
        // Over the time that it covers, which after a gap is more than a bucket. In a branch, as `least` takes no notice of
        // what is unknown.
        let known = format!("step <= {} AND {increase} >= 0", reading.step_limit);
        let value = match line.value {
            Gauge => increase,
            Rate => format!("CASE WHEN {known} THEN ({increase}) / nullif(step, 0) * 1e3 END"),
            Share => {
                let share = format!("({increase}) / nullif(step, 0) / nullif(cpus, 0) / 1e4");
                format!("CASE WHEN {known} THEN CASE WHEN {share} > 100 THEN 100.0 ELSE {share} END END")
            }
        };
        let _ = write!(worked_out, ", {value} AS v{place}");
        match reading.step {
            Some(_) => list.extend(["avg", "min", "max"].map(|it| format!("{it}(v{place})"))),
            None => list.push(format!("v{place}")),
        }
    }
    let list = list.join(", ");
    let at = match reading.step {
        Some(step) => format!("date_bin(INTERVAL '{step} milliseconds', time)"),
        None => "time".to_owned(),
    };
    let grouped = match (reading.step, by_device) {
        (None, _) => "",
        (Some(_), true) => " GROUP BY 1, 2, 3",
        (Some(_), false) => " GROUP BY 1",
    };
    // Of the bucket that goes on there is a part only.
    let whole = match reading.table {
        Table::Raw => "",
        Table::Minutes => " AND time < date_bin(INTERVAL '1 minute', now())",
        Table::Hours => " AND time < date_bin(INTERVAL '1 hour', now())",
    };
    format!(
        "WITH readings AS (SELECT {tags}{host} AS host, \"VMID\" AS vmid, time{read} FROM {from_table} \
         WHERE {uuid} = $uuid AND {} AND {}{whole}), \
         timed AS (SELECT *, (CAST(time AS BIGINT) - CAST(lag(time) OVER one AS BIGINT)) / {MS} AS step \
         FROM readings WINDOW one AS (PARTITION BY {tags}host, vmid ORDER BY time)), \
         steps AS (SELECT {tags}time{worked_out} FROM timed \
         WINDOW one AS (PARTITION BY {tags}host, vmid ORDER BY time)) \
         SELECT CAST({at} AS BIGINT) AS at, {tags}make_array({list}) AS v FROM steps WHERE {}{grouped} ORDER BY 1",
        // The first step needs the reading before.
        since(wanted.from.saturating_sub(reading.step_limit)),
        before(wanted.to),
        since(wanted.from),
    )
}

fn since(ms: i64) -> String {
    format!("time >= arrow_cast({}, 'Timestamp(Nanosecond, None)')", ms.saturating_mul(MS))
}

fn before(ms: i64) -> String {
    format!("time < arrow_cast({}, 'Timestamp(Nanosecond, None)')", ms.saturating_mul(MS))
}

/// A point of some charts.
#[derive(Debug, Deserialize)]
struct Row {
    at: i64,
    #[serde(default)]
    devtype: Option<String>,
    #[serde(default)]
    device: Option<String>,
    v: Vec<Option<f64>>,
}

/// A start of the VM, as a name on a host.
#[derive(Debug, Deserialize)]
struct Life {
    name: Option<String>,
    host: Option<String>,
    vmid: Option<String>,
    begin: i64,
}

#[derive(Debug, Deserialize)]
struct EventRow {
    at: i64,
    event: Option<String>,
    detail: Option<String>,
    reason: Option<String>,
}

/// The charts; `None` where no such VM was read in that time.
///
/// # Errors
/// The source's.
pub(crate) async fn page(
    source: &Source,
    schema: &Schema,
    fleet: &Fleet,
    wanted: Wanted,
) -> Result<Option<VmPage>, SourceError> {
    let first = Reading::of(&wanted, fleet.interval, schema);
    let ask = Ask { source, schema, wanted: &wanted, interval: fleet.interval };
    let of_events = events(&wanted, schema);
    let ((reading, totals), (of_features, features), (of_devices, devices), events) = try_join!(
        ask.charts("vm_totals", &[TOTALS], first),
        ask.charts("vm_features", &[FEATURES], first),
        ask.charts("vm_devices", &[NIC, DISK], first),
        ask.rows::<EventRow>("vm_events", &of_events),
    )?;
    let lives: Vec<Life> = ask.rows("vm_totals", &lives(reading, &wanted, schema)).await?;
    let now = fleet.vms.iter().find(|it| it.uuid == wanted.uuid).cloned();
    if totals.is_empty() && now.is_none() && lives.is_empty() {
        return Ok(None);
    }
    let mut panels = Vec::new();
    let shown = |table: &str, chart: &Chart, reading: Reading| {
        let sql = sql(table, &[std::slice::from_ref(chart)], reading, &wanted, schema);
        sql.replace("$uuid", &format!("'{}'", wanted.uuid))
    };
    let show = |table: &'static str, reading: Reading| move |chart: &Chart| shown(table, chart, reading);
    charts(&mut panels, "", TOTALS, 0, &totals, reading, &wanted, &show("vm_totals", reading));
    charts(&mut panels, "", FEATURES, 0, &features, of_features, &wanted, &show("vm_features", of_features));
    let mut notes = Vec::new();
    let mut by_device: BTreeMap<(bool, String), Vec<Row>> = BTreeMap::new();
    for row in devices {
        let is_disk = row.devtype.as_deref() == Some("disk");
        let device = row.device.clone().unwrap_or_default();
        by_device.entry((is_disk, device)).or_default().push(row);
    }
    if by_device.len() > MAX_DEVICES {
        notes.push(format!("of {} devices {MAX_DEVICES} are shown", by_device.len()));
    }
    let of_nic = NIC.iter().map(|it| it.lines.len()).sum();
    for ((is_disk, device), rows) in by_device.iter().take(MAX_DEVICES) {
        let (kind, lines, skip) = if *is_disk { ("disk", DISK, of_nic) } else { ("nic", NIC, 0) };
        charts(
            &mut panels,
            &format!("{kind}:{device}:"),
            lines,
            skip,
            rows,
            of_devices,
            &wanted,
            &show("vm_devices", of_devices),
        );
    }
    let mut names: Vec<String> = lives.iter().rev().filter_map(|it| it.name.clone()).collect();
    names.extend(now.iter().map(|it| it.name.clone()));
    if let Some(now) = &now {
        names.insert(0, now.name.clone());
    }
    let mut seen = Vec::new();
    names.retain(|it| {
        !seen.contains(it) && {
            seen.push(it.clone());
            true
        }
    });
    let host = now.as_ref().map(|it| it.host.clone()).or_else(|| lives.last()?.host.clone());
    let marks = marks(&lives, events, wanted.from);
    Ok(Some(VmPage {
        uuid: wanted.uuid,
        names,
        host: host.unwrap_or_default(),
        from: wanted.from,
        to: wanted.to,
        step: reading.step,
        table: reading.table,
        now,
        panels,
        marks,
        notes,
    }))
}

/// What asks for the rows of a page.
struct Ask<'a> {
    source: &'a Source,
    schema: &'a Schema,
    wanted: &'a Wanted,
    interval: i64,
}

impl Ask<'_> {
    /// The points of some charts, from the first table that still has some: coarser ones are kept longer.
    async fn charts(
        &self,
        table: &str,
        charts: &[&[Chart]],
        mut reading: Reading,
    ) -> Result<(Reading, Vec<Row>), SourceError> {
        loop {
            let rows = self.rows(table, &sql(table, charts, reading, self.wanted, self.schema)).await?;
            match reading.coarser(self.wanted, self.interval, self.schema) {
                // A piece of a page goes with the rest of it.
                Some(coarser) if rows.is_empty() && self.wanted.step.is_none() => reading = coarser,
                _ => return Ok((reading, rows)),
            }
        }
    }

    async fn rows<T: serde::de::DeserializeOwned>(
        &self,
        table: &str,
        sql: &str,
    ) -> Result<Vec<T>, SourceError> {
        if !self.schema.has_table(table) {
            return Ok(Vec::new());
        }
        match self.source.rows(sql, self.wanted.params()).await {
            Err(SourceError::Empty) => Ok(Vec::new()),
            rows => rows,
        }
    }
}

/// Adds the charts of these rows, which are those of one device or have none. `skip`: values of other charts come first.
#[expect(clippy::too_many_arguments, reason = "what is shown, of what, as it was asked")]
fn charts(
    panels: &mut Vec<Panel>,
    prefix: &str,
    charts: &[Chart],
    skip: usize,
    rows: &[Row],
    reading: Reading,
    wanted: &Wanted,
    // The query of one chart alone, for whoever asks it elsewhere.
    sql: &dyn Fn(&Chart) -> String,
) {
    let (times, places) = moments(rows, reading, wanted);
    let width = if reading.step.is_some() { 3 } else { 1 };
    let mut at = skip * width;
    for chart in charts {
        let mut series = Vec::new();
        for line in chart.lines {
            let first = at;
            let column = |offset: usize| {
                let mut column = vec![None; times.len()];
                for (row, place) in rows.iter().zip(&places) {
                    if let Some(place) = place {
                        column[*place] =
                            row.v.get(first + offset).copied().flatten().filter(|it| it.is_finite());
                    }
                }
                column
            };
            let spread = width == 3;
            let mean = column(0);
            at += width;
            // What its hypervisor never tells is written as 0.
            let is_told =
                line.value != Gauge || chart.unit != Unit::Kib || mean.iter().flatten().any(|it| *it > 0.0);
            if !is_told {
                continue;
            }
            series.push(Series {
                id: line.field.to_owned(),
                label: line.label.to_owned(),
                mean,
                min: spread.then(|| column(1)),
                max: spread.then(|| column(2)),
            });
        }
        if chart.id == CPU {
            series = parts_of_cpu(series);
        }
        panels.push(Panel {
            id: format!("{prefix}{}", chart.id),
            title: chart.title.to_owned(),
            unit: chart.unit,
            times: times.clone(),
            series,
            sql: sql(chart),
        });
    }
}

/// User, system and what is left of all.
fn parts_of_cpu(series: Vec<Series>) -> Vec<Series> {
    let Ok([all, user, system]) = <[Series; 3]>::try_from(series) else { return Vec::new() };
    let parts = user.mean.iter().zip(&system.mean);
    let rest = all.mean.iter().zip(parts).map(|(all, (user, system))| {
        // The three were read a moment apart. Where the hypervisor tells no parts, all of it is left.
        Some(((*all)? - user.unwrap_or(0.0) - system.unwrap_or(0.0)).max(0.0))
    });
    let other = Series {
        id: "other".to_owned(),
        label: "other".to_owned(),
        mean: rest.collect(),
        min: None,
        max: None,
    };
    vec![user, system, other]
}

/// The moments of a chart, and the place of each row among them. Where readings are missing there are moments of gaps.
fn moments(rows: &[Row], reading: Reading, wanted: &Wanted) -> (Vec<i64>, Vec<Option<usize>>) {
    if let Some(step) = reading.step {
        let first = wanted.from.div_euclid(step) * step;
        let count = ((wanted.to - first).max(0) as usize).div_ceil(step as usize);
        let times: Vec<i64> = (0..count as i64).map(|it| first + it * step).collect();
        let place =
            |row: &Row| usize::try_from((row.at / MS - first).div_euclid(step)).ok().filter(|it| *it < count);
        return (times, rows.iter().map(place).collect());
    }
    let mut steps: Vec<i64> = rows.windows(2).map(|it| it[1].at - it[0].at).filter(|it| *it > 0).collect();
    steps.sort_unstable();
    let usual = steps.get(steps.len() / 2).copied().unwrap_or(i64::MAX);
    let (mut times, mut places): (Vec<i64>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        if number > 0 {
            let before = rows[number - 1].at;
            if row.at - before > usual.saturating_mul(3) {
                times.push((before + usual) / MS);
            }
        }
        if times.last() != Some(&(row.at / MS)) {
            times.push(row.at / MS);
        }
        places.push(Some(times.len() - 1));
    }
    (times, places)
}

/// Asks for the starts of the VM, its names and hosts, within the span.
fn lives(reading: Reading, wanted: &Wanted, schema: &Schema) -> String {
    let table = name_of("vm_totals", reading.table);
    let (uuid, name, host) = (schema.uuid(&table), schema.name(&table), schema.tag(&table, &["host"]));
    format!(
        "SELECT {name} AS name, {host} AS host, \"VMID\" AS vmid, CAST(min(time) AS BIGINT) AS begin FROM {table} \
         WHERE {uuid} = $uuid AND {} GROUP BY 1, 2, 3 ORDER BY 4",
        within(wanted)
    )
}

fn events(wanted: &Wanted, schema: &Schema) -> String {
    let table = "vm_events";
    let uuid = schema.uuid(table);
    let text = |name: &str| schema.tag(table, &[name]);
    format!(
        "SELECT CAST(time AS BIGINT) AS at, event, {} AS detail, {} AS reason FROM {table} WHERE {uuid} = $uuid AND {} \
         ORDER BY time DESC LIMIT {MAX_MARKS}",
        text("detail"),
        text("reason"),
        within(wanted)
    )
}

fn within(wanted: &Wanted) -> String {
    format!("{} AND {}", since(wanted.from), before(wanted.to))
}

fn marks(lives: &[Life], events: Vec<EventRow>, from: i64) -> Vec<Mark> {
    let mut marks: Vec<Mark> = events
        .into_iter()
        .map(|it| {
            let kind = it.event.unwrap_or_default();
            let more = [it.detail, it.reason].into_iter().flatten().filter(|it| !it.is_empty());
            let more: Vec<String> = more.collect();
            let words = kind.replace('_', " ");
            let text = if more.is_empty() { words } else { format!("{words}: {}", more.join(", ")) };
            Mark { at: it.at / MS, kind, text }
        })
        .collect();
    for pair in lives.windows(2) {
        let [before, now] = pair else { continue };
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        let mut add = |kind: &str, text: String| {
            marks.push(Mark { at: (now.begin / MS).max(from), kind: kind.to_owned(), text });
        };
        if before.host != now.host {
            add("moved", format!("moved from {} to {}", text(&before.host), text(&now.host)));
        } else if before.vmid != now.vmid {
            add("restarted", format!("restarted: domain {} became {}", text(&before.vmid), text(&now.vmid)));
        }
        if before.name != now.name {
            add("renamed", format!("renamed from {} to {}", text(&before.name), text(&now.name)));
        }
    }
    marks.sort_by_key(|it| it.at);
    let surplus = marks.len().saturating_sub(MAX_MARKS);
    marks.drain(..surplus);
    marks
}
