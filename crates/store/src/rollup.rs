//! Roll-ups: `<table>_1m` and `<table>_1h`, a row for each series and minute or hour that has points.
//!
//! A bucket's row has the time of its start. Of a gauge it has `<field>_min`, `_max`, `_mean` and `_last`, of a counter
//! `<field>_increase`, `_rate_min` and `_rate_max` (of one step, a second, to a thousandth) and `_last`, of a text or
//! boolean `_last`. An increase is the sum of the steps from one value to the next; a step across the edge of a bucket
//! belongs to the later one; a step back, or one of more than [`STEP_LIMIT_NS`], is unknown and adds nothing; where no
//! step is known there is no increase. Nor is there an increase or a mean where its sum is beyond what its type can
//! hold. `time_increase` is the time from row to row that belongs to the bucket, ns: less than a bucket in a series'
//! first one, more in one behind a gap.
//!
//! ```text
//!  files' rows ──rebuild──▶ Carry ──advance(new rows)──▶ rows of buckets, Carry
//! ```
//!
//! [`Carry`] is what must be known of the rows that are in files to go on: each series' open buckets and last values.
//! It goes forward at each flush and is made anew from the files at a start. Rows that are later than all rows of
//! their series just go on; for the others ("late") the hours they fall into are computed anew from all raw rows.

mod anew;
mod finished;
mod summary;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::Array as _;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use telemetry::catalogue;
use telemetry::lines::SeriesKey;
use telemetry::lines::limits::ROLLUP_SUFFIXES;

use self::anew::{Anew, Recompute, leave_gaps};
use self::finished::Finished;
use self::summary::{Shape, Step, Summary, shape};
pub(crate) use self::summary::{Value, array, columns, value_at};
use crate::error::Result;
use crate::memory::{Chunk, Times, WantedTags, has_tags};
use crate::merge::{Chunks, Key, Source, merge, tag_names, times};
use crate::schema::{Columns, Kind};
use crate::table::{Snapshot, file_sources, sources};

const MINUTE_NS: i64 = 60_000_000_000;
const HOUR_NS: i64 = 60 * MINUTE_NS;

/// The sizes of buckets, and what a table of them is called.
pub(crate) const BUCKETS: [Bucket; ROLLUP_SUFFIXES.len()] = [
    Bucket { suffix: ROLLUP_SUFFIXES[0], ns: MINUTE_NS },
    Bucket { suffix: ROLLUP_SUFFIXES[1], ns: HOUR_NS },
];

/// A longer step between two values of a counter is unknown: so a bucket depends on the hour before it, not on more.
pub(crate) const STEP_LIMIT_NS: i64 = HOUR_NS;
/// A bucket is written once the table has rows this much later than its end: hosts are not read at the same moment.
const GRACE_NS: i64 = MINUTE_NS;
/// What a series takes between two flushes, bytes, roughly, beside its tags and fields; and a tag beside its texts, and a
/// field.
const CARRIED_SERIES_BYTES: usize = 400;
/// See [`CARRIED_SERIES_BYTES`].
const CARRIED_TAG_BYTES: usize = 2 * size_of::<String>();
/// See [`CARRIED_SERIES_BYTES`].
const CARRIED_FIELD_BYTES: usize = 2 * size_of::<Option<Summary>>() + size_of::<Option<(i64, Value)>>();

/// A size of buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) suffix: &'static str,
    pub(crate) ns: i64,
}

fn start_of(time: i64, ns: i64) -> i64 {
    time.saturating_sub(time.rem_euclid(ns))
}

/// A bucket of one series.
#[derive(Clone, Debug)]
struct Open {
    start: i64,
    /// The time from one of its rows to the next, the step to its first one too, ns; without longer steps than known ones.
    covered: Option<i64>,
    /// By field.
    fields: Vec<Option<Summary>>,
}

/// One series: what its next row needs.
#[derive(Clone, Debug, Default)]
struct Series {
    last_time: Option<i64>,
    /// A counter's last value and its time, by field.
    before: Vec<Option<(i64, Value)>>,
    open: [Option<Open>; 2],
}

/// What must be known of the rows in files, to go on with new ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carry {
    series: HashMap<Arc<SeriesKey>, Series>,
    /// The fields, in the order in which `series` has them: that of their coming.
    fields: Vec<String>,
    /// No row in files is later, apart from those of the future: buckets that end before it are in files.
    newest: Option<i64>,
    /// What `series` takes, bytes, roughly.
    bytes: usize,
    /// Up to this time files may have rows of series that were left out for want of room.
    left_out_until: Option<i64>,
    /// Series that were left out when it was made from the files.
    left_out: usize,
}

impl Carry {
    pub(crate) fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// What it takes in memory, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same of the series with these tags alone.
    pub(crate) fn only(&self, tags: &WantedTags) -> Self {
        let series = self.series.iter().filter(|it| has_tags(it.0, tags));
        let series = series.map(|(key, it)| (Arc::clone(key), it.clone())).collect();
        Self { series, fields: self.fields.clone(), ..*self }
    }

    /// Lets series go until they take no more than this. Returns how many.
    fn keep_within(&mut self, room: usize) -> usize {
        let (before, fields, mut bytes) = (self.series.len(), self.fields.len(), 0);
        self.series.retain(|name, it| {
            let own = series_bytes(name, fields) + it.text_bytes();
            let stays = bytes + own <= room;
            bytes += if stays { own } else { 0 };
            stays
        });
        self.bytes = bytes;
        before - self.series.len()
    }
}

/// What a series takes in [`Carry`] without the texts of its fields, bytes, roughly.
fn series_bytes(name: &SeriesKey, fields: usize) -> usize {
    let tags = name.tags.iter().map(|it| CARRIED_TAG_BYTES + it.0.len() + it.1.len());
    CARRIED_SERIES_BYTES + tags.sum::<usize>() + fields * CARRIED_FIELD_BYTES
}

impl Series {
    /// What its texts take, bytes: a bucket has the first one and the last one of each field.
    fn text_bytes(&self) -> usize {
        let summaries = self.open.iter().flatten().flat_map(|it| &it.fields).flatten();
        let text_len = |it: &Value| if let Value::Text(text) = it { text.len() } else { 0 };
        summaries.map(|it| text_len(&it.min) + text_len(&it.last)).sum()
    }
}

/// What [`advance`] gives.
pub(crate) struct Advanced {
    pub(crate) carry: Carry,
    /// By bucket size.
    pub(crate) rows: [Vec<Chunk>; 2],
    /// Series that were left out for want of room.
    pub(crate) left_out: usize,
}

/// Which buckets are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Give {
    /// Those that are over: the others go on in [`Carry`].
    Closed,
    /// All, as of now.
    All,
}

/// One table's fields and their columns.
struct Fields<'a> {
    schema: SchemaRef,
    tags: Vec<String>,
    names: Vec<(&'a str, Kind, Shape)>,
    /// Whether the table may have counters.
    has_counters: bool,
}

impl<'a> Fields<'a> {
    /// Those that are known stay where they are, new ones come behind them.
    fn new(table: &str, columns: &'a Columns, known: &[String]) -> Self {
        let schema = columns.resting_schema();
        let tags = tag_names(&schema);
        let old = known.iter().filter_map(|it| columns.fields.get_key_value(it));
        let new = columns.fields.iter().filter(|it| !known.contains(it.0));
        let names = old.chain(new).map(|(name, &kind)| (name.as_str(), kind, shape(table, name, kind)));
        Self { schema, tags, names: names.collect(), has_counters: catalogue::has_counters(table) }
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().map(|it| it.0.to_owned()).collect()
    }

    fn key(&self, key: &Key) -> Arc<SeriesKey> {
        let given = self.tags.iter().zip(key);
        let given = given.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        Arc::new(SeriesKey { tags: given.collect() })
    }
}

/// The carry of a table whose rows are all in files. It takes `room` bytes at most; further series are left out.
pub(crate) fn rebuild(table: &str, snapshot: &Snapshot, room: usize) -> Result<Carry> {
    let rolled_until = snapshot.mark.as_ref().and_then(|it| it.rolled_until);
    let newest = rolled_until.or_else(|| snapshot.files.iter().map(|it| it.entry.times.1).max());
    let fields = Fields::new(table, &snapshot.columns, &[]);
    let mut carry = Carry { fields: fields.names(), newest, ..Carry::default() };
    let Some(newest) = newest else { return Ok(carry) };
    // All that is not closed lies in this hour or the one before.
    let from = start_of(newest.saturating_sub(GRACE_NS), HOUR_NS).saturating_sub(STEP_LIMIT_NS);
    let files = Snapshot { chunks: Vec::new(), ..snapshot.clone() };
    let mut left_out: Option<Key> = None;
    read(&files, &fields, (from, i64::MAX), None, |key, rows| {
        let name = fields.key(key);
        if !carry.series.contains_key(&name) {
            let own = series_bytes(&name, carry.fields.len());
            if carry.bytes + own > room {
                // Its rows may come in pieces.
                carry.left_out += usize::from(left_out.as_ref() != Some(key));
                left_out = Some(key.clone());
                return Ok(());
            }
            carry.bytes += own;
        }
        let series = carry.series.entry(name).or_default();
        feed(series, &fields, rows, &mut |_, _| Ok(()))
    })?;
    for series in carry.series.values_mut() {
        for (bucket, open) in BUCKETS.iter().zip(&mut series.open) {
            open.take_if(|it| is_closed(it.start, *bucket, Some(newest)));
        }
    }
    carry.left_out += carry.keep_within(room);
    carry.left_out_until = Some(newest).filter(|_| carry.left_out > 0);
    Ok(carry)
}

/// Whether rows up to `newest` close a bucket.
fn is_closed(start: i64, bucket: Bucket, newest: Option<i64>) -> bool {
    let end = start.saturating_add(bucket.ns).saturating_add(GRACE_NS);
    newest.is_some_and(|newest| end <= newest)
}

/// Takes the chunks of a snapshot in, whose files are those of the carry.
///
/// Rows before `oldest` are left out: the raw rows around them are gone, and a bucket made of what is left would take the
/// place of a better one. Rows later than `now_ns` end no bucket of other series.
///
/// The new carry takes `room` bytes at most. Series that find no room get no buckets; as soon as there is room, the hour
/// that goes on is whole again, from the files.
pub(crate) fn advance(
    table: &str,
    carry: &Carry,
    snapshot: &Snapshot,
    oldest: i64,
    give: Give,
    now_ns: i64,
    room: usize,
) -> Result<Advanced> {
    let fields = Fields::new(table, &snapshot.columns, &carry.fields);
    let newest = snapshot.chunks.iter().map(|it| it.times.1.min(now_ns)).max().max(carry.newest);
    let mut next = carry.clone();
    next.fields = fields.names();
    next.newest = newest;
    let mut finished: [Finished; 2] = Default::default();
    let mut anew: BTreeMap<Key, Anew> = BTreeMap::new();
    let mut left_out = carry.left_out;
    next.left_out = 0;

    let new_rows = Snapshot { files: Arc::default(), ..snapshot.clone() };
    read(&new_rows, &fields, (oldest, i64::MAX), None, |key, rows| {
        let all = times(rows)?;
        let (Some(&first), Some(&last)) = (all.first(), all.last()) else { return Ok(()) };
        let name = fields.key(key);
        let known = next.series.get(&name).and_then(|it| it.last_time);
        if known.is_none() {
            let own = series_bytes(&name, next.fields.len());
            if next.bytes + own > room {
                left_out += 1;
                return Ok(());
            }
            next.bytes += own;
        }
        // Of one that is not known, files may have rows in the same hour, or a value that the next step begins at.
        let may_go_on =
            |until: i64| known.is_none() && first.saturating_sub(HOUR_NS.max(STEP_LIMIT_NS)) <= until;
        let is_late = known.is_some_and(|known| first <= known)
            || is_closed(start_of(first, MINUTE_NS), BUCKETS[0], carry.newest)
            || carry.left_out_until.is_some_and(may_go_on);
        if is_late {
            // The step to the next point may belong to the hour after.
            let hours = all.iter().map(|&time| start_of(time, HOUR_NS));
            let hours = hours.flat_map(|it| [it, it.saturating_add(HOUR_NS)]).collect();
            let last = Some(known.map_or(last, |it| it.max(last)));
            anew.insert(key.clone(), Anew { hours, known, last, rows: rows.clone() });
            return Ok(());
        }
        let series = next.series.entry(name.clone()).or_default();
        feed(series, &fields, rows, &mut |size, open| finished[size].push(&fields, &name, open))
    })?;
    leave_gaps(&fields, &mut anew, snapshot, carry.newest, &mut next, &mut finished)?;
    // A series that has no row any more needs no memory: after this time no step is known.
    let limit = newest.map(|it| it.saturating_sub(2 * STEP_LIMIT_NS));
    for it in anew.values_mut() {
        // Of a series that is not known, files have rows up to the hour of the limit at most: where its new ones end before
        // it, those of the files may go on behind them, in windows of their own; where they end after it, they do not.
        it.last = it.last.filter(|&last| it.known.is_some() || Some(last) >= limit);
    }
    let mut recompute = Recompute { fields: &fields, anew: &anew, next: &mut next, finished: &mut finished };
    recompute.run(snapshot)?;

    let computed: BTreeSet<Arc<SeriesKey>> = anew.keys().map(|it| fields.key(it)).collect();
    for (name, series) in &mut next.series {
        for (size, bucket) in BUCKETS.iter().enumerate() {
            let is_given = |it: &mut Open| give == Give::All || is_closed(it.start, *bucket, newest);
            let Some(open) = series.open[size].take_if(is_given) else { continue };
            if computed.contains(name) {
                finished[size].push_late(&fields, name, open)?;
            } else {
                finished[size].push(&fields, name, open)?;
            }
        }
    }
    next.series.retain(|_, it| it.open.iter().any(Option::is_some) || it.last_time >= limit);
    left_out += next.keep_within(room);
    if left_out > 0 {
        next.left_out_until = newest;
    }
    let [minutes, hours] = finished;
    let rows = [minutes.into_chunks(&fields)?, hours.into_chunks(&fields)?];
    Ok(Advanced { carry: next, rows, left_out })
}

/// All merged rows of a snapshot within these times, series by series, each in pieces by time. `chunks`: those of its
/// rows in memory, if they were sorted out before.
fn read(
    snapshot: &Snapshot,
    fields: &Fields<'_>,
    window: Times,
    chunks: Option<Option<Chunks>>,
    mut take: impl FnMut(&Key, &RecordBatch) -> Result<()>,
) -> Result<()> {
    let pieces = snapshot.pieces(window)?;
    let sources = match chunks {
        None => sources(&pieces, &fields.schema, window, &[])?,
        Some(chunks) => {
            let mut sources = file_sources(&pieces, &fields.schema, window, &[])?;
            sources.extend(chunks.map(|it| Box::new(it) as Box<dyn Source>));
            sources
        }
    };
    merge(&fields.schema, sources, crate::merge::Rule::Fields, |key, rows| {
        let all = times(&rows)?;
        let from = all.partition_point(|&time| time < window.0);
        let to = all.partition_point(|&time| time <= window.1);
        if from < to { take(key, &rows.slice(from, to - from)) } else { Ok(()) }
    })
}

/// Takes one series' rows in, by time; gives each bucket that a later row closes.
fn feed(
    series: &mut Series,
    fields: &Fields<'_>,
    rows: &RecordBatch,
    give: &mut dyn FnMut(usize, Open) -> Result<()>,
) -> Result<()> {
    let all = times(rows)?;
    let columns: Vec<_> = fields
        .names
        .iter()
        .enumerate()
        .filter_map(|(place, it)| Some((place, it.2, rows.column_by_name(it.0)?)))
        .filter(|it| it.2.null_count() < it.2.len())
        .collect();
    let count = fields.names.len();
    series.before.resize(count, None);
    for (row, &time) in all.iter().enumerate() {
        let since = series.last_time.replace(time).map(|it| time.saturating_sub(it));
        let since = since.filter(|it| *it <= STEP_LIMIT_NS);
        for (size, bucket) in BUCKETS.iter().enumerate() {
            let start = start_of(time, bucket.ns);
            if let Some(over) = series.open[size].take_if(|it| it.start != start) {
                give(size, over)?;
            }
            let open =
                series.open[size].get_or_insert_with(|| Open { start, covered: None, fields: Vec::new() });
            open.fields.resize(count, None);
            if let Some(since) = since {
                open.covered = Some(open.covered.unwrap_or(0).saturating_add(since));
            }
        }
        for (place, shape, column) in &columns {
            let Some(value) = value_at(column, row) else { continue };
            let mut step = None;
            if *shape == Shape::Counter {
                let before = series.before[*place].replace((time, value.clone()));
                step = before.and_then(|(at, before)| {
                    let ns = time.saturating_sub(at);
                    let increase = value.step_from(&before).filter(|_| (1..=STEP_LIMIT_NS).contains(&ns))?;
                    Some(Step { increase, ns })
                });
            }
            for open in series.open.iter_mut().flatten() {
                Summary::push(&mut open.fields[*place], &value, step.as_ref());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;
    use arrow::datatypes::Float64Type;
    use telemetry::lines::{Precision, parse};

    use super::*;
    use crate::memory::Memory;

    const HOUR: i64 = 3_600;

    /// Rows `vm=value second`, as a table of these rows only.
    fn rows(rows: &[(&str, f64, i64)]) -> Snapshot {
        let text: String = rows.iter().map(|(vm, v, time)| format!("t,vm={vm} v={v} {time}\n")).collect();
        snapshot(&text, Kind::Float)
    }

    /// Lines with the tag `vm` and the field `v`.
    fn snapshot(text: &str, kind: Kind) -> Snapshot {
        let (batch, bad) = parse(text, Precision::Second, i64::MAX).into_batch();
        assert_eq!(bad, 0);
        let mut memory = Memory::default();
        memory.append(&batch.tables[0]).expect("it takes them");
        let columns = Columns {
            tags: ["vm".to_owned()].into(),
            fields: [("v".to_owned(), kind)].into_iter().collect(),
        };
        let chunks = memory.show().expect("chunks");
        Snapshot { columns, files: Arc::default(), chunks, carry: None, gone: Vec::new(), mark: None }
    }

    /// VM, second and mean of the buckets of each size.
    fn found(advanced: &Advanced) -> [Vec<(String, i64, f64)>; 2] {
        [0, 1].map(|size| {
            let mut found = Vec::new();
            for chunk in &advanced.rows[size] {
                let means = chunk.rows.column_by_name("v_mean").expect("it").as_primitive::<Float64Type>();
                let starts = times(&chunk.rows).expect("times");
                for (row, &start) in starts.iter().enumerate() {
                    let vm = chunk.keys[chunk.series[row] as usize].tags[0].1.clone();
                    found.push((vm, start / 1_000_000_000, means.value(row)));
                }
            }
            found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.cmp(&b.1)));
            found
        })
    }

    /// After rows of which others are gone, one comes late: the buckets that it gives.
    #[track_caller]
    fn check_gap(known: &[(&str, f64, i64)], late: &[(&str, f64, i64)], expect: [&[(&str, i64, f64)]; 2]) {
        let known = rows(known);
        let advance = |carry: &Carry, snapshot: &Snapshot, give: Give| {
            advance("t", carry, snapshot, i64::MIN, give, i64::MAX, usize::MAX).expect("it goes on")
        };
        let carry = advance(&Carry::default(), &known, Give::Closed).carry;
        let mut late = rows(late);
        late.gone = vec![(11 * HOUR_NS, 11 * HOUR_NS + MINUTE_NS)];
        let mut found = found(&advance(&carry, &late, Give::All));
        found.iter_mut().for_each(|it| it.retain(|it| it.0 == "late"));
        let expect = expect.map(|it| it.iter().map(|it| (it.0.to_owned(), it.1, it.2)).collect::<Vec<_>>());
        assert_eq!(found, expect);
    }

    #[test]
    fn where_rows_are_gone_a_late_one_spoils_no_bucket_that_was_given() {
        let noon = 12 * HOUR;
        // The minute of the known row is over; its hour goes on, and takes the late rows in.
        check_gap(
            &[("late", 1.0, noon + 5), ("b", 1.0, noon + 1_800)],
            &[("late", 3.0, noon + 55), ("late", 5.0, noon + 600)],
            [&[("late", noon + 600, 5.0)], &[("late", noon, 3.0)]],
        );
        // So is its hour; a minute that had no row gets one.
        check_gap(
            &[("late", 1.0, noon + 5), ("b", 1.0, noon + 2 * HOUR)],
            &[("late", 3.0, noon + 55), ("late", 5.0, noon + 600)],
            [&[("late", noon + 600, 5.0)], &[]],
        );
    }

    /// Of one series, in an hour.
    #[track_caller]
    fn check_sum(table: &str, field: &str, kind: Kind, values: &[&str], column: &str, expect: Option<Value>) {
        let line = |(second, value): (usize, &&str)| format!("{table},vm=a {field}={value} {second}\n");
        let text: String = values.iter().enumerate().map(line).collect();
        let mut rows = snapshot(&text, kind);
        rows.columns.fields = [(field.to_owned(), kind)].into_iter().collect();
        let advanced =
            advance(table, &Carry::default(), &rows, i64::MIN, Give::All, i64::MAX, usize::MAX).expect("it");
        let found = advanced.rows[1][0].rows.column_by_name(column).expect("the column");
        assert_eq!(value_at(found, 0), expect, "{column} of {values:?}");
    }

    #[test]
    fn what_no_number_can_hold_is_left_out() {
        let (most, huge) = (i64::MAX, "1e308");
        let counter = |values: &[&str], expect| {
            check_sum("vm_totals", "net_rxbytes", Kind::Integer, values, "net_rxbytes_increase", expect);
        };
        counter(&["0i", "5i", "3i", "4i"], Some(Value::Integer(6)));
        let most = format!("{most}i");
        counter(&["0i", &most], Some(Value::Integer(i64::MAX)));
        counter(&["0i", &most, "0i", "1i"], None);
        counter(&["0i", &most, "0i", "1i", "2i"], None);
        check_sum("t", "v", Kind::Float, &["1", "2"], "v_mean", Some(Value::Float(1.5)));
        check_sum("t", "v", Kind::Float, &[huge, huge], "v_mean", None);
    }

    #[test]
    fn long_texts_find_no_room() {
        let carried = |carry: &Carry, len: usize, second: i64| {
            let lines = format!("t,vm=a v=\"{}\" {second}\nt,vm=b v=\"x\" {second}\n", "x".repeat(len));
            let rows = snapshot(&lines, Kind::String);
            let advanced = advance("t", carry, &rows, i64::MIN, Give::Closed, i64::MAX, 10_000);
            let advanced = advanced.expect("it goes on");
            (advanced.left_out, advanced.carry)
        };
        let (left_out, carry) = carried(&Carry::default(), 1_000, 0);
        assert_eq!((left_out, carry.series.len()), (0, 2));
        let (left_out, carry) = carried(&carry, 20_000, 5);
        assert_eq!((left_out, carry.series.len()), (1, 1));
        assert!((1..10_000).contains(&carry.bytes()), "{}", carry.bytes());
    }
}
