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
//!
//! What there is to draw stands in [`charts`](mod@charts), what happened in [`marks`](mod@marks). A server that makes no
//! roll-ups is asked for a long span part by part; buckets never lie across two.

mod charts;
mod marks;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::http::Uri;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use tokio::try_join;

use self::charts::Value::{Gauge, Rate, Share};
use self::charts::{CPU, Chart, Group, Line, OF_DISKS, OF_NICS, OF_TREND, OF_VM};
use self::marks::{EventRow, Life, MAX_MARKS, StateRow, events, joined, lives, marks, states};
use super::fleet::is_uuid;
use super::schema::Schema;
use super::source::{MAX_PARTS, PART_MS, Params, Source, SourceError, some};
use super::types::{Fleet, Panel, Series, Table, Unit, VmPage};
use crate::http::{Params as UrlParams, Problem, Turn};

const MS: i64 = 1_000_000;
const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
/// The span that is shown where none is asked for.
const SPAN_MS: i64 = HOUR_MS;
/// The longest span: what roll-ups by the hour are kept for, and a day.
const MAX_SPAN_MS: i64 = 401 * DAY_MS;
/// Up to this span every reading is looked at where a point is less than a minute, and for changes of state: 26 hours of
/// 5 s are 18,720.
const RAW_SPAN_MS: i64 = 26 * HOUR_MS;
/// Up to this one every minute.
const MINUTES_SPAN_MS: i64 = 8 * DAY_MS;
/// A longer step between two readings gives no rate, whatever the interval.
const STEP_LIMIT_MS: i64 = 300 * SECOND_MS;
/// How many points a chart may have.
const POINTS: std::ops::RangeInclusive<i64> = 50..=4_000;
const DEFAULT_POINTS: i64 = 800;
/// NICs with charts, and disks.
const MAX_DEVICES: usize = 64;
/// Widths of buckets that fit a part, seconds.
const PART_STEPS_S: [i64; 25] = [
    1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 240, 300, 360, 600, 720, 900, 1_200, 1_800, 3_600, 7_200, 10_800,
    14_400, 21_600, 43_200, 86_400,
];

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
                let of = if matches!(name, "from" | "to") { ": milliseconds since 1970" } else { "" };
                Problem::wrong(format!("{name} must be a whole number{of}"))
            }),
        };
        let to = number("to", now)?;
        let span = number("span", SPAN_MS)?;
        let from = number("from", to.saturating_sub(span))?;
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

    /// The same, of this part of the span.
    fn part(&self, (from, to): (i64, i64)) -> Self {
        Self { from, to, ..self.clone() }
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
    /// A longer step gives no rate, ms. So far before the span is looked for the reading before its first.
    step_limit: i64,
}

impl Reading {
    fn of(wanted: &Wanted, interval: i64, schema: &Schema) -> Self {
        // A piece of a page, which has a step, is of its newest readings.
        let are_minutes = wanted.step.is_none() && wanted.span() / wanted.points >= MINUTE_MS;
        let table = match wanted.span() {
            span if span <= RAW_SPAN_MS && !are_minutes => Table::Raw,
            span if span <= MINUTES_SPAN_MS => Table::Minutes,
            _ => Table::Hours,
        };
        // A server that makes no roll-ups is asked for readings.
        let table = if schema.has_table(&name_of("vm_totals", table)) { table } else { Table::Raw };
        Self::from(table, wanted, interval)
    }

    /// From the tables that are asked where this one has nothing: coarser ones are kept longer, finer ones have what is not
    /// rolled up yet.
    fn others(self, wanted: &Wanted, interval: i64, schema: &Schema) -> Vec<Self> {
        let tables = match self.table {
            Table::Raw => [Table::Minutes, Table::Hours],
            Table::Minutes => [Table::Raw, Table::Hours],
            Table::Hours => [Table::Minutes, Table::Raw],
        };
        let there = tables.into_iter().filter(|it| schema.has_table(&name_of("vm_totals", *it)));
        there.map(|it| Self::from(it, wanted, interval)).collect()
    }

    fn from(table: Table, wanted: &Wanted, interval: i64) -> Self {
        let interval = interval.max(SECOND_MS);
        let least = table.width().unwrap_or(interval);
        let step_limit = STEP_LIMIT_MS.max(3 * interval);
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

/// How a page is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    wanted: Wanted,
    first: Reading,
    parts: Vec<(i64, i64)>,
    /// Between two readings of most VMs, ms.
    interval: i64,
}

impl Plan {
    /// # Errors
    /// [`SourceError::TooLong`].
    pub(crate) fn of(
        source: &Source,
        schema: &Schema,
        interval: i64,
        wanted: Wanted,
    ) -> Result<Self, SourceError> {
        Self::new(wanted, interval, schema, source.wants_parts())
    }

    fn new(wanted: Wanted, interval: i64, schema: &Schema, wants_parts: bool) -> Result<Self, SourceError> {
        let mut first = Reading::of(&wanted, interval, schema);
        if !wants_parts || first.table != Table::Raw || wanted.span() <= PART_MS {
            let parts = vec![(wanted.from, wanted.to)];
            return Ok(Self { wanted, first, parts, interval });
        }
        // Every reading is a bucket of its own, where there are so few.
        let least = first.step.unwrap_or(interval).max(SECOND_MS);
        let step = match wanted.step {
            Some(step) => Some(step).filter(|it| PART_MS % it == 0),
            None => PART_STEPS_S.iter().map(|it| it * SECOND_MS).find(|it| *it >= least),
        };
        let step = step.ok_or(SourceError::TooLong)?;
        first.step = Some(step);
        // The first whole bucket, so that a month is fifteen parts wherever it begins.
        let begin = wanted.from.saturating_add(step - 1).div_euclid(step) * step;
        let starts = (begin..wanted.to).step_by(PART_MS as usize);
        let parts: Vec<_> = starts.map(|it| (it, (it + PART_MS).min(wanted.to))).collect();
        if parts.len() > MAX_PARTS {
            return Err(SourceError::TooLong);
        }
        Ok(Self { wanted, first, parts, interval })
    }

    /// How many questions after another it takes.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }
}

impl Table {
    /// Of its buckets, ms; `None`: it has readings.
    fn width(self) -> Option<i64> {
        match self {
            Self::Raw => None,
            Self::Minutes => Some(MINUTE_MS),
            Self::Hours => Some(HOUR_MS),
        }
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

/// The query of some charts. Its rows have the moment, the device where there are some, and all values in one list: of
/// each line its mean, least and greatest, or its one value.
fn sql(group: &Group, charts: &[Chart], reading: Reading, wanted: &Wanted, schema: &Schema) -> String {
    let lines = charts.iter().flat_map(|it| it.lines);
    match (reading.table.width(), reading.step) {
        (Some(width), Some(step)) => of_rollups(group, lines, (reading, width, step), wanted, schema),
        _ => of_readings(group, lines, reading, wanted, schema),
    }
}

/// What the rows of a group are told apart by, and which are its.
fn tags_of(group: &Group) -> (&'static str, String) {
    match group.devices {
        Some(kind) => ("device, ", format!(" AND devtype = '{kind}'")),
        None => ("", String::new()),
    }
}

/// What groups rows by their moment, and by their device.
fn grouped_by(group: &Group) -> &'static str {
    if group.devices.is_some() { " GROUP BY 1, 2" } else { " GROUP BY 1" }
}

/// From the roll-ups of a table, whose rows are the buckets of this width, ms.
fn of_rollups<'a>(
    group: &Group,
    lines: impl Iterator<Item = &'a Line>,
    (reading, width, step): (Reading, i64, i64),
    wanted: &Wanted,
    schema: &Schema,
) -> String {
    let table = name_of(group.table, reading.table);
    let field = |name: &str, tail: &str| schema.field(&table, &format!("{name}{tail}"));
    // What the increases cover: after a gap more than a bucket. Older roll-ups do not tell, nor do they know the least and
    // the greatest rate.
    let counter = group.charts.iter().flat_map(|it| it.lines).find(|it| it.value != Gauge);
    let told = counter.map_or("NULL".to_owned(), |it| field(it.field, "_increase"));
    let covered = field("time", "_increase");
    let width = width * MS;
    let seconds = format!("coalesce({covered}, CASE WHEN {told} IS NOT NULL THEN {width} END) / 1e9");
    // Of a second, a hundredth of the time that its vCPUs have, ns.
    let percent = format!("(nullif({}, 0) * 1e7)", field("cpus", "_last"));
    let list = lines.map(|line| {
        let of = |tail: &str| field(line.field, tail);
        let (increase, least, most) = (of("_increase"), of("_rate_min"), of("_rate_max"));
        match line.value {
            Gauge => format!("avg({}), min({}), max({})", of("_mean"), of("_min"), of("_max")),
            Rate => format!("avg({increase}) / avg({seconds}), min({least}), max({most})"),
            Share => format!(
                "avg({increase}) / avg({seconds} * {percent}), min({least} / {percent}), max({most} / {percent})"
            ),
        }
    });
    let (tags, of_kind) = tags_of(group);
    format!(
        "SELECT CAST(date_bin(INTERVAL '{step} milliseconds', time) AS BIGINT) AS at, {tags}make_array({}) AS v \
         FROM {table} WHERE {} = $uuid{of_kind} AND {}{} ORDER BY 1",
        list.collect::<Vec<_>>().join(", "),
        schema.uuid(&table),
        within(wanted),
        grouped_by(group),
    )
}

/// From every reading.
fn of_readings<'a>(
    group: &Group,
    lines: impl Iterator<Item = &'a Line>,
    reading: Reading,
    wanted: &Wanted,
    schema: &Schema,
) -> String {
    let table = group.table;
    let (uuid, host) = (schema.uuid(table), schema.tag(table, &["host"]));
    let (tags, of_kind) = tags_of(group);
    let (mut read, mut worked_out, mut list) = (String::new(), String::new(), Vec::new());
    let mut has_share = false;
    for (place, line) in lines.enumerate() {
        let field = schema.field(table, line.field);
        // A division stands outside of its CASE: within, each row would be looked at for whether to divide.
        let _ = match line.value {
            Gauge => {
                write!(read, ", CAST({field} AS DOUBLE) AS v{place}").and(write!(worked_out, ", v{place}"))
            }
            Rate | Share => {
                has_share |= line.value == Share;
                let over = if line.value == Share { "room" } else { "seconds" };
                let _ = write!(read, ", {field} - lag({field}) OVER one AS d{place}");
                write!(worked_out, ", CASE WHEN d{place} >= 0 THEN d{place} END / {over} AS v{place}")
            }
        };
        match reading.step {
            Some(_) => list.extend(["avg", "min", "max"].map(|it| format!("{it}(v{place})"))),
            None => list.push(format!("v{place}")),
        }
    }
    let list = list.join(", ");
    let (at, grouped) = match reading.step {
        Some(step) => (format!("date_bin(INTERVAL '{step} milliseconds', time)"), grouped_by(group)),
        None => ("time".to_owned(), ""),
    };
    // A hundredth of the time that its vCPUs had, ns.
    let (cpus, steps, rated) = match has_share {
        true => (
            format!(", nullif({}, 0) AS cpus", schema.field(table, "cpus")),
            "rated",
            "rated AS (SELECT *, seconds * cpus * 1e7 AS room FROM timed), ",
        ),
        false => (String::new(), "timed", ""),
    };
    // `ntile` is 1 for every row. It needs all of a start at once, and so `lag` is worked out by columns, not row by row.
    format!(
        "WITH readings AS (SELECT {tags}time{cpus}{read}, \
         CAST(time AS BIGINT) - CAST(lag(time) OVER one AS BIGINT) AS step, ntile(1) OVER one AS one_start \
         FROM {table} WHERE {uuid} = $uuid{of_kind} AND {} AND {} \
         WINDOW one AS (PARTITION BY {tags}{host}, \"VMID\" ORDER BY time)), \
         timed AS (SELECT *, CASE WHEN step > 0 AND step <= {} THEN CAST(step AS DOUBLE) END / 1e9 AS seconds \
         FROM readings WHERE {} AND one_start = 1), \
         {rated}steps AS (SELECT {tags}time{worked_out} FROM {steps}) \
         SELECT CAST({at} AS BIGINT) AS at, {tags}make_array({list}) AS v FROM steps{grouped} ORDER BY 1",
        // The first step needs the reading before.
        since(wanted.from.saturating_sub(reading.step_limit)),
        before(wanted.to),
        reading.step_limit.saturating_mul(MS),
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
    device: Option<String>,
    v: Vec<Option<f64>>,
}

/// The rows that a page is made of.
#[derive(Default)]
struct Rows {
    totals: Vec<Row>,
    features: Vec<Row>,
    nics: Vec<Row>,
    disks: Vec<Row>,
    events: Vec<EventRow>,
    lives: Vec<Life>,
    states: Vec<StateRow>,
}

/// How each was read in the end.
struct Readings {
    totals: Reading,
    features: Reading,
    nics: Reading,
    disks: Reading,
}

/// The charts; `None` where no such VM was read in that time. `fleet`: the VMs that are read now. `told`: how many parts
/// are done.
///
/// # Errors
/// The source's.
pub(crate) async fn page(
    source: &Source,
    schema: &Schema,
    plan: Plan,
    turn: Turn,
    fleet: impl Future<Output = Result<Arc<Fleet>, SourceError>>,
    told: impl Fn(usize),
) -> Result<Option<VmPage>, SourceError> {
    let Plan { wanted, first, parts, interval } = plan;
    let is_whole = parts.len() == 1;
    let rows = async {
        // Not longer: the fleet may be waiting for it.
        let _turn = turn;
        let mut readings = Readings { totals: first, features: first, nics: first, disks: first };
        let mut all = Rows::default();
        for (done, part) in parts.into_iter().enumerate() {
            told(done);
            let part = wanted.part(part);
            let ask = Ask { source, schema, wanted: &part, interval, is_whole };
            readings = ask.part(&mut all, first).await?;
        }
        Ok((all, readings))
    };
    let ((all, readings), fleet) = try_join!(rows, fleet)?;
    let Rows { totals, features, nics, disks, events, lives, states } = all;
    let reading = readings.totals;
    let lives = joined(lives);
    let now = fleet.vms.iter().find(|it| it.uuid == wanted.uuid).cloned();
    if totals.is_empty() && now.is_none() && lives.is_empty() && events.is_empty() {
        return Ok(None);
    }
    let mut panels = Vec::new();
    let mut add = |group: &Group, prefix: &str, rows: &[Row], reading: Reading| {
        let shown = |chart: &Chart| {
            let sql = sql(group, std::slice::from_ref(chart), reading, &wanted, schema);
            sql.replace("$uuid", &format!("'{}'", wanted.uuid))
        };
        charts(&mut panels, prefix, group.charts, rows, reading, &wanted, &shown);
    };
    add(&OF_VM, "", &totals, reading);
    add(&OF_TREND, "", &features, readings.features);
    let mut notes = Vec::new();
    for (group, kind, rows, reading) in
        [(OF_NICS, "nic", nics, readings.nics), (OF_DISKS, "disk", disks, readings.disks)]
    {
        let mut by_device: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in rows {
            by_device.entry(row.device.clone().unwrap_or_default()).or_default().push(row);
        }
        if by_device.len() > MAX_DEVICES {
            notes.push(format!("there are more {kind}s; {MAX_DEVICES} of them are shown"));
        }
        for (device, rows) in by_device.iter().take(MAX_DEVICES) {
            add(&group, &format!("{kind}:{device}:"), rows, reading);
        }
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
    let mut marks = marks(&lives, events, &states, wanted.from);
    let surplus = marks.len().saturating_sub(MAX_MARKS);
    if surplus > 0 {
        marks.drain(..surplus);
        notes.push(format!("there are more events; the newest {MAX_MARKS} are shown"));
    }
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

/// What asks for the rows of a page, or of a part of it.
struct Ask<'a> {
    source: &'a Source,
    schema: &'a Schema,
    wanted: &'a Wanted,
    interval: i64,
    /// All of the page is asked for at once.
    is_whole: bool,
}

impl Ask<'_> {
    /// Adds the rows of this part.
    async fn part(&self, all: &mut Rows, first: Reading) -> Result<Readings, SourceError> {
        let of_events = events(self.wanted, self.schema);
        // Changes of state and name are looked for in all readings, if they are not too many.
        let exact = match self.wanted.span() <= RAW_SPAN_MS {
            true => Reading::from(Table::Raw, self.wanted, self.interval),
            false => first,
        };
        let ((totals, of_vm), (features, trends), (nics, of_nics), (disks, of_disks), events, episodes) = try_join!(
            self.charts(&OF_VM, first),
            self.charts(&OF_TREND, first),
            self.charts(&OF_NICS, first),
            self.charts(&OF_DISKS, first),
            self.rows::<EventRow>("vm_events", &of_events),
            self.episodes(exact),
        )?;
        let (lives, states) = match episodes.0.is_empty() && !of_vm.is_empty() {
            // Those are there no more.
            true => self.episodes(totals).await?,
            false => episodes,
        };
        all.lives.extend(lives);
        all.states.extend(states);
        all.totals.extend(of_vm);
        all.features.extend(trends);
        all.nics.extend(of_nics);
        all.disks.extend(of_disks);
        all.events.extend(events);
        Ok(Readings { totals, features, nics, disks })
    }

    /// The starts of the VM, and the changes of its state.
    async fn episodes(&self, reading: Reading) -> Result<(Vec<Life>, Vec<StateRow>), SourceError> {
        let table = name_of("vm_totals", reading.table);
        let (of_lives, of_states) =
            (lives(reading, self.wanted, self.schema), states(reading, self.wanted, self.schema));
        try_join!(self.rows(&table, &of_lives), self.rows(&table, &of_states))
    }

    /// The points of some charts, from the first table that has some.
    async fn charts(&self, group: &Group, first: Reading) -> Result<(Reading, Vec<Row>), SourceError> {
        let rows = self.points(group, first).await?;
        // A piece of a page goes with the rest of it.
        if !rows.is_empty() || !self.is_whole || self.wanted.step.is_some() {
            return Ok((first, rows));
        }
        let others = first.others(self.wanted, self.interval, self.schema);
        // A server without roll-ups is not asked: it might have to read all its files.
        if others.is_empty() || (first.table == Table::Raw && self.is_kept(group).await?) {
            return Ok((first, rows));
        }
        for reading in others {
            let rows = self.points(group, reading).await?;
            if !rows.is_empty() {
                return Ok((reading, rows));
            }
        }
        Ok((first, Vec::new()))
    }

    async fn points(&self, group: &Group, reading: Reading) -> Result<Vec<Row>, SourceError> {
        let mut sql = sql(group, group.charts, reading, self.wanted, self.schema);
        if group.devices.is_some() {
            sql = some_devices(&sql);
        }
        self.rows(&name_of(group.table, reading.table), &sql).await
    }

    /// Whether there are older readings of the VM: then those of the span are not gone, but never were.
    async fn is_kept(&self, group: &Group) -> Result<bool, SourceError> {
        let (table, uuid) = (group.table, self.schema.uuid(group.table));
        let sql = format!(
            "SELECT 1 AS there FROM {table} WHERE {uuid} = $uuid AND {} LIMIT 1",
            before(self.wanted.from)
        );
        Ok(!self.rows::<IgnoredAny>(table, &sql).await?.is_empty())
    }

    async fn rows<T: DeserializeOwned>(&self, table: &str, sql: &str) -> Result<Vec<T>, SourceError> {
        if !self.schema.has_table(table) {
            return Ok(Vec::new());
        }
        some(self.source.rows(table, sql, self.wanted.params()).await)
    }
}

/// The same rows, of no more devices than are shown, and of one more that tells so.
fn some_devices(sql: &str) -> String {
    format!(
        "SELECT at, device, v FROM (SELECT *, dense_rank() OVER (ORDER BY device) AS nth \
         FROM ({sql})) WHERE nth <= {} ORDER BY at",
        MAX_DEVICES + 1
    )
}

/// Adds the charts of these rows, which are those of one device or have none.
fn charts(
    panels: &mut Vec<Panel>,
    prefix: &str,
    charts: &[Chart],
    rows: &[Row],
    reading: Reading,
    wanted: &Wanted,
    // The query of one chart alone, for whoever asks it elsewhere.
    sql: &dyn Fn(&Chart) -> String,
) {
    let (times, places) = moments(rows, reading, wanted);
    let width = if reading.step.is_some() { 3 } else { 1 };
    let mut at = 0;
    for chart in charts {
        let mut series = Vec::new();
        for line in chart.lines {
            let first = at;
            let column = |offset: usize| {
                let mut column = vec![None; times.len()];
                for (row, place) in rows.iter().zip(&places) {
                    if let Some(place) = place {
                        let value = row.v.get(first + offset).copied().flatten();
                        column[*place] = value.filter(|it| it.is_finite()).map(|it| shown(it, line.value));
                    }
                }
                column
            };
            let spread = width == 3;
            let mean = column(0);
            // Where it is not known it is the mean.
            let column = |offset: usize| -> Vec<Option<f64>> {
                column(offset).into_iter().zip(&mean).map(|(it, mean)| it.or(*mean)).collect()
            };
            at += width;
            // What its hypervisor never tells is written as 0.
            let is_told =
                line.value != Gauge || chart.unit != Unit::Kib || mean.iter().flatten().any(|it| *it > 0.0);
            if !is_told {
                continue;
            }
            let (min, max) = (spread.then(|| column(1)), spread.then(|| column(2)));
            let mean = match (&min, &max) {
                (Some(min), Some(max)) => within_bounds(&mean, min, max),
                _ => mean,
            };
            series.push(Series { id: line.field.to_owned(), label: line.label.to_owned(), mean, min, max });
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

/// As a chart has it: with no more digits than anybody sees, as more of them take longer to send than to work out.
fn shown(value: f64, of: charts::Value) -> f64 {
    let value = if of == Share { value.min(100.0) } else { value };
    let scale = if value.abs() < 1_000.0 { 1e6 } else { 1e3 };
    (value * scale).round() / scale
}

/// Means between the least and the greatest. A counter that was absent while its VM was read has an increase over more
/// time than the roll-up's readings cover: over these alone it would be a spike that never was.
fn within_bounds(mean: &[Option<f64>], min: &[Option<f64>], max: &[Option<f64>]) -> Vec<Option<f64>> {
    let bounded = |((mean, min), max): ((&Option<f64>, &Option<f64>), &Option<f64>)| {
        let mean = (*mean)?;
        Some(mean.min(max.unwrap_or(mean)).max(min.unwrap_or(mean)))
    };
    mean.iter().zip(min).zip(max).map(bounded).collect()
}

/// User, system and what is left of all.
fn parts_of_cpu(series: Vec<Series>) -> Vec<Series> {
    let Ok([all, user, system]) = <[Series; 3]>::try_from(series) else { return Vec::new() };
    let parts = user.mean.iter().zip(&system.mean);
    let rest = all.mean.iter().zip(parts).map(|(all, (user, system))| {
        // The three were read a moment apart. Where the hypervisor tells no parts, all of it is left.
        Some(shown(((*all)? - user.unwrap_or(0.0) - system.unwrap_or(0.0)).max(0.0), Share))
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

fn within(wanted: &Wanted) -> String {
    format!("{} AND {}", since(wanted.from), before(wanted.to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> fastrand::Rng {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        fastrand::Rng::with_seed(seed)
    }

    /// Whatever is asked for is refused as the client's fault, or in bounds.
    #[test]
    fn any_question_is_in_bounds_or_refused() {
        const UUID: &str = "00000000-0000-4000-8000-000000000001";
        let mut random = random();
        let now = 1_790_000_000_000;
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let number = |random: &mut fastrand::Rng| match random.u8(..8) {
                0 => random.i64(..).to_string(),
                1 => (0..random.usize(..8)).map(|_| random.char('\0'..)).collect(),
                2 => String::new(),
                3 => format!("{};DROP TABLE vm_totals", random.i64(..)),
                _ => (now - random.i64(0..400 * DAY_MS)).to_string(),
            };
            let mut uuid = UUID.to_owned();
            if random.u8(..4) == 0 {
                let at = random.usize(..uuid.len());
                uuid.replace_range(at..=at, random.char('\0'..).encode_utf8(&mut [0; 4]));
            }
            let mut query = String::new();
            for name in ["from", "to", "span", "points", "step"] {
                if random.bool() {
                    let value = number(&mut random);
                    let value =
                        percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
                    let _ = write!(query, "{name}={value}&");
                }
            }
            let uri: Uri = format!("/api/vm/x?{query}").parse().unwrap();
            match Wanted::of(uuid.clone(), &uri, now) {
                Ok(wanted) => {
                    taken += 1;
                    assert!(is_uuid(&wanted.uuid) && wanted.uuid.eq_ignore_ascii_case(&uuid));
                    assert!((0..=MAX_SPAN_MS).contains(&wanted.span()) && POINTS.contains(&wanted.points));
                    let reading = Reading::of(&wanted, 5_000, &Schema::default());
                    let (times, _) =
                        moments(&[], Reading { step: reading.step.or(wanted.step), ..reading }, &wanted);
                    assert!(times.len() as i64 <= 2 * POINTS.end(), "{} points: {wanted:?}", times.len());
                }
                Err(problem) => {
                    refused += 1;
                    assert_eq!(problem.status(), axum::http::StatusCode::BAD_REQUEST, "{problem:?}");
                }
            }
        }
        assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused");
    }

    /// Parts follow one another without a gap, are as long as a server answers, and no bucket lies across two.
    #[test]
    fn a_plan_is_whole() {
        let mut random = random();
        let schema = Schema::default();
        for _ in 0..20_000 {
            let (from, span) = (random.i64(0..1 << 41), random.i64(1..=MAX_SPAN_MS));
            let step = random.bool().then(|| 1_000 * random.i64(1..200_000));
            let points = random.i64(POINTS);
            let wanted = Wanted { uuid: String::new(), from, to: from + span, points, step };
            let interval = 1_000 * random.i64(1..=60);
            let plan = Plan::new(wanted.clone(), interval, &schema, true);
            let Ok(plan) = plan else {
                let fits = step.is_none_or(|it| PART_MS % it == 0);
                assert!(span > MAX_PARTS as i64 * PART_MS || !fits, "{wanted:?} is refused");
                continue;
            };
            assert!(plan.parts.len() <= MAX_PARTS && !plan.parts.is_empty(), "{plan:?}");
            assert!(plan.parts.iter().all(|(from, to)| from < to && to - from <= PART_MS), "{plan:?}");
            assert!(plan.parts.windows(2).all(|it| it[0].1 == it[1].0), "{plan:?}");
            assert_eq!(plan.parts.last().unwrap().1, wanted.to);
            let begin = plan.parts[0].0;
            if plan.parts.len() == 1 && span <= PART_MS {
                assert_eq!(begin, from);
                continue;
            }
            let step = plan.first.step.unwrap();
            assert!(
                plan.parts.iter().all(|it| it.0 % step == 0) && (0..step).contains(&(begin - from)),
                "{plan:?}"
            );
            assert!(wanted.step.is_some() || span / step <= points, "{plan:?}");
        }
    }
}
