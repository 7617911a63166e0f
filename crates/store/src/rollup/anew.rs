//! Buckets that late rows fall into: they are computed anew from all raw rows.

use std::collections::{BTreeMap, BTreeSet};

use arrow::record_batch::RecordBatch;

use super::{
    BUCKETS, Carry, Fields, Finished, HOUR_NS, MINUTE_NS, Open, STEP_LIMIT_NS, Series, feed, is_closed, read,
    start_of,
};
use crate::error::Result;
use crate::memory::{Times, overlap};
use crate::merge::{Chunks, Key, times};
use crate::table::Snapshot;

/// Late rows that are scattered over the past are computed anew in so many readings of files at most: where there are
/// more, those that are nearest to each other become one, so that a flush reads each raw file once at most.
const MAX_READINGS: usize = 32;

/// What is to be computed anew of a series with late rows.
pub(super) struct Anew {
    /// The starts of the hours.
    pub(super) hours: BTreeSet<i64>,
    /// The time of the last row that was known.
    pub(super) known: Option<i64>,
    /// The time of its last row; `None` where the series goes on from what was known, if anything was.
    pub(super) last: Option<i64>,
    /// Its new rows.
    pub(super) rows: RecordBatch,
}

/// Hours of which raw rows are gone keep the roll-ups that they have: what is left would make worse ones. A series whose
/// last hour is such a one goes on from what was known.
pub(super) fn leave_gaps(
    fields: &Fields<'_>,
    anew: &mut BTreeMap<Key, Anew>,
    snapshot: &Snapshot,
    newest: Option<i64>,
    next: &mut Carry,
    finished: &mut [Finished; 2],
) -> Result<()> {
    // An hour's first step depends on the hour before.
    let needed = |hour: i64| (hour.saturating_sub(STEP_LIMIT_NS), hour.saturating_add(HOUR_NS - 1));
    let hours: BTreeSet<i64> = anew.values().flat_map(|it| it.hours.iter().copied()).collect();
    let spans: Vec<Times> = side_by_side(&hours).iter().map(|it| (needed(it.0).0, it.1 - 1)).collect();
    let gaps = snapshot.gaps(&spans)?;
    if gaps.is_empty() {
        return Ok(());
    }
    for (key, it) in anew {
        it.hours.retain(|&hour| !gaps.iter().any(|&gap| overlap(gap, needed(hour))));
        let Some(last) = it.last else { continue };
        if it.hours.contains(&start_of(last, HOUR_NS)) {
            continue;
        }
        it.last = None;
        let is_late = |&time: &i64| match it.known {
            Some(known) => time <= known,
            None => is_closed(start_of(time, MINUTE_NS), BUCKETS[0], newest),
        };
        let from = times(&it.rows)?.partition_point(is_late);
        let rows = it.rows.slice(from, it.rows.num_rows() - from);
        if rows.num_rows() > 0 {
            let name = fields.key(key);
            let series = next.series.entry(name.clone()).or_default();
            // What was given of the last known row's bucket is better than one of the rows behind it alone.
            let was_given = |size: usize, open: &Open| {
                let bucket = BUCKETS[size];
                let is_of_known = it.known.is_some_and(|known| start_of(known, bucket.ns) == open.start);
                is_of_known && is_closed(open.start, bucket, newest)
            };
            feed(series, fields, &rows, &mut |size, open| match was_given(size, &open) {
                true => Ok(()),
                false => finished[size].push(fields, &name, open),
            })?;
            for (size, open) in series.open.iter_mut().enumerate() {
                open.take_if(|it| was_given(size, it));
            }
        }
    }
    Ok(())
}

/// Computes hours of series anew from all raw rows.
pub(super) struct Recompute<'a> {
    pub(super) fields: &'a Fields<'a>,
    pub(super) anew: &'a BTreeMap<Key, Anew>,
    pub(super) next: &'a mut Carry,
    pub(super) finished: &'a mut [Finished; 2],
}

impl Recompute<'_> {
    pub(super) fn run(&mut self, snapshot: &Snapshot) -> Result<()> {
        let hours: BTreeSet<i64> = self.anew.values().flat_map(|it| it.hours.iter().copied()).collect();
        // They do not overlap: between two spans there is an hour at least.
        let windows: Vec<Times> = few(side_by_side(&hours), MAX_READINGS)
            .into_iter()
            .map(|it| (it.0.saturating_sub(STEP_LIMIT_NS), it.1.saturating_sub(1)))
            .collect();
        let window_of = |time: i64| {
            let place = windows.partition_point(|it| it.1 < time);
            windows.get(place).filter(|it| it.0 <= time).map(|_| place)
        };
        let mut chunks = Chunks::by(&self.fields.schema, &snapshot.chunks, window_of)?;
        for (place, &window) in windows.iter().enumerate() {
            let mut current: Option<(Key, Series)> = None;
            let fields = self.fields;
            read(snapshot, fields, window, Some(chunks.remove(&place)), |key, rows| {
                if !self.anew.contains_key(key) {
                    return Ok(());
                }
                if let Some((key, series)) = current.take_if(|it| it.0 != *key) {
                    self.end(&key, series)?;
                }
                let (_, series) = current.get_or_insert_with(|| (key.clone(), Series::default()));
                feed(series, fields, rows, &mut |size, open| self.give(key, size, open))
            })?;
            if let Some((key, series)) = current {
                self.end(&key, series)?;
            }
        }
        Ok(())
    }

    /// A bucket that is over, if it is one of those that were asked for.
    fn give(&mut self, key: &Key, size: usize, open: Open) -> Result<()> {
        if self.anew.get(key).is_some_and(|it| it.hours.contains(&start_of(open.start, HOUR_NS))) {
            self.finished[size].push_late(self.fields, &self.fields.key(key), open)?;
        }
        Ok(())
    }

    /// The end of a window.
    fn end(&mut self, key: &Key, series: Series) -> Result<()> {
        let Some(wanted) = self.anew.get(key) else { return Ok(()) };
        if wanted.last.is_none_or(|last| series.last_time < Some(last)) {
            // The series goes on after the window; what is open here is over.
            for (size, open) in series.open.into_iter().enumerate() {
                open.map_or(Ok(()), |it| self.give(key, size, it))?;
            }
            return Ok(());
        }
        let name = self.fields.key(key);
        let open = [0, 1].map(|size| series.open[size].as_ref().map(|it| it.start));
        let before = self.next.series.insert(name.clone(), series);
        // What was open and is neither now nor was computed anew is over: there are later rows.
        for (size, was) in before.into_iter().flat_map(|it| it.open).enumerate() {
            let is_over = |it: &Open| {
                open[size] != Some(it.start) && !wanted.hours.contains(&start_of(it.start, HOUR_NS))
            };
            if let Some(was) = was.filter(is_over) {
                self.finished[size].push(self.fields, &name, was)?;
            }
        }
        Ok(())
    }
}

/// Hours that follow each other, as spans from the first's start to the last's end.
fn side_by_side(hours: &BTreeSet<i64>) -> Vec<Times> {
    let mut spans: Vec<Times> = Vec::new();
    for &hour in hours {
        match spans.last_mut() {
            Some(span) if span.1 == hour => span.1 = hour.saturating_add(HOUR_NS),
            _ => spans.push((hour, hour.saturating_add(HOUR_NS))),
        }
    }
    spans
}

/// So many spans at most: those with the least between them become one.
fn few(spans: Vec<Times>, most: usize) -> Vec<Times> {
    let mut between: Vec<i64> = spans.windows(2).map(|it| it[1].0.saturating_sub(it[0].1)).collect();
    if between.len() < most {
        return spans;
    }
    between.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = most - 1;
    let least = between[left];
    let mut joined: Vec<Times> = Vec::with_capacity(most);
    for span in spans {
        match joined.last_mut() {
            Some(last) if left == 0 || span.0.saturating_sub(last.1) <= least => last.1 = span.1,
            Some(_) => {
                left -= 1;
                joined.push(span);
            }
            None => joined.push(span),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_hours_are_read_in_few_spans() {
        let spans = || vec![(0, 1), (3, 4), (5, 6), (20, 21), (24, 25)];
        for (most, expect) in [
            (9, spans()),
            (5, spans()),
            (4, vec![(0, 1), (3, 6), (20, 21), (24, 25)]),
            (3, vec![(0, 6), (20, 21), (24, 25)]),
            (2, vec![(0, 6), (20, 25)]),
            (1, vec![(0, 25)]),
        ] {
            assert_eq!(few(spans(), most), expect, "{most} at most");
        }
        // All as far from each other.
        let even: Vec<Times> = (0..100).map(|it| (it * 10, it * 10 + 1)).collect();
        let few = few(even, 3);
        assert!(few.len() <= 3 && few[0].0 == 0 && few[few.len() - 1].1 == 991, "{few:?}");
    }
}
