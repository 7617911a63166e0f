//! What follows from two readings of one domain: the trend of its memory, and the increase of a counter.
//!
//! "Used memory" is the best reading that both samples have: what the guest says that it uses (available - usable,
//! else available - unused), else the process's resident memory, else the balloon. The guest's word is dated by the
//! balloon driver's report, in whole seconds, and not by the moment at which we asked: asking twice between two
//! reports shows no change, and asking once for two reports shows twice the change of one.
//!
//! ```text
//!   reports of the guest   10        15        20        25          (balloon period 5 s)
//!   our readings             11.9      16.9      21.9      26.9
//!   divisor                        15-10     20-15     25-20
//! ```
//!
//! No line is better than a false one: a first sample, a new id, a clock or a report that did not advance, a report
//! whose date does not fit the time that passed, and a reading without the monitor give none.

use std::time::Duration;

use crate::sample::Sample;
use crate::units::{DomainId, WallSeconds};

/// Reports missed before the guest's word is taken for absent.
pub const STALE_AFTER_PERIODS: u32 = 3;

/// The balloon period where it is neither known nor learnt yet: twice the usual setting of 5 s.
pub const ASSUMED_BALLOON_PERIOD: Duration = Duration::from_secs(10);

/// Seconds by which a report's date may disagree with the time that passed: dates are cut to whole seconds, and a
/// monitor may answer late. Beyond it the hypervisor's clock was set, and the step is not used.
pub const DATE_SLACK_S: f64 = 3.0;

/// When a reading was taken, by three clocks, all given by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the lines of this cycle are stamped with: ns since 1970.
    pub timestamp_ns: i64,
    /// When this reading was really taken, by a clock that never steps, since any fixed origin.
    pub taken: Duration,
    /// The same by the wall clock, whole seconds since 1970.
    pub wall_secs: i64,
}

/// Which reading of memory the features follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemorySource {
    /// The best that both samples have.
    #[default]
    Auto,
    /// Only what the guest says.
    Guest,
    /// Only the process's resident memory.
    Rss,
    /// Only the balloon.
    Balloon,
}

/// How features are derived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureOptions {
    /// Pins the source of used memory.
    pub memory_source: MemorySource,
    /// The rate, in KiB per second, that is shown as 45 degrees. Must be positive and finite; anything else counts as
    /// [`FeatureOptions::DEFAULT_ANGLE_SCALE`].
    pub angle_scale_kib_per_sec: f64,
}

impl FeatureOptions {
    /// 1 MiB/s.
    pub const DEFAULT_ANGLE_SCALE: f64 = 1024.0;
}

impl Default for FeatureOptions {
    fn default() -> Self {
        Self { memory_source: MemorySource::Auto, angle_scale_kib_per_sec: Self::DEFAULT_ANGLE_SCALE }
    }
}

/// The fields of `vm_features`; both finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features {
    /// Change of used memory, KiB per second.
    pub memory_rate: f64,
    /// The same as an angle in degrees, -90 to 90.
    pub memory_angle: f64,
}

/// What a counter grew by between two readings; `None` if one of them is absent or it stepped back, which is a reset:
/// what it grew by is then not known, and never the new value.
pub fn increase(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

/// The memory of one domain over time.
#[derive(Clone, Debug, Default)]
pub struct MemoryTrend {
    before: Option<Reading>,
    /// The guest's last report, also while it is too old to be used.
    report: Option<Report>,
    /// The last distance between two reports that was seen: the balloon period, or our interval if that is longer.
    learnt_period: Option<Duration>,
}

/// What the last usable sample said.
#[derive(Clone, Copy, Debug)]
struct Reading {
    id: DomainId,
    taken: Duration,
    guest_fresh: bool,
    rss: Option<u64>,
    balloon: Option<u64>,
}

/// A report of the guest. `used` is what the guest uses in KiB by each of both ways to tell.
#[derive(Clone, Copy, Debug)]
struct Report {
    date: WallSeconds,
    used_by_usable: Option<u64>,
    used_by_unused: Option<u64>,
    /// When we first saw it, and the reading before, which did not have it yet: it was made between them.
    seen: Duration,
    not_before: Option<Duration>,
}

impl MemoryTrend {
    /// Takes one sample and tells the features since the one before.
    ///
    /// A sample without its monitor's values (`held.memory` is false) is no reading of the memory: it gives no
    /// features, and the next one is compared with the one before it. Only the pinned balloon needs no monitor.
    pub fn step(&mut self, sample: &Sample, at: &Moment, options: &FeatureOptions) -> Option<Features> {
        if self.before.is_some_and(|before| before.id != sample.id) {
            *self = Self::default();
        }
        if !sample.held.memory && options.memory_source != MemorySource::Balloon {
            return None;
        }
        let before = self.before;
        let (guest_fresh, report_step) = self.take_report(sample, at);
        let now = Reading {
            id: sample.id,
            taken: at.taken,
            guest_fresh,
            rss: sample.memory.rss.map(u64::from),
            balloon: sample.memory.current.or(sample.memory.actual).map(u64::from),
        };
        self.before = Some(now);
        let before = before?;

        let elapsed = now.taken.checked_sub(before.taken).filter(|elapsed| !elapsed.is_zero())?.as_secs_f64();
        let guest = (before.guest_fresh && now.guest_fresh).then_some(report_step);
        let rss = both(before.rss, now.rss).map(|kib| (kib, elapsed));
        let balloon = both(before.balloon, now.balloon).map(|kib| (kib, elapsed));
        // The guest's word may be there and yet give no step, since it reported nothing new: then there is no line,
        // and not one from the second-best source.
        let (change_kib, seconds) = match options.memory_source {
            MemorySource::Auto => guest.unwrap_or(rss.or(balloon)),
            MemorySource::Guest => guest.flatten(),
            MemorySource::Rss => rss,
            MemorySource::Balloon => balloon,
        }?;
        Features::new(change_kib / seconds, options)
    }

    /// Takes the guest's report out of a sample. Tells whether the guest's word is there and fresh, and the change
    /// (KiB, seconds) since the report before, if this is a new one.
    fn take_report(&mut self, sample: &Sample, at: &Moment) -> (bool, Option<(f64, f64)>) {
        let memory = &sample.memory;
        let used = |left: Option<_>| Some(u64::from(memory.available?).saturating_sub(u64::from(left?)));
        let (used_by_usable, used_by_unused) = (used(memory.usable), used(memory.unused));
        let Some(date) = memory.last_update.filter(|date| date.0 > 0) else {
            self.report = None;
            return (false, None);
        };
        if used_by_usable.is_none() && used_by_unused.is_none() {
            self.report = None;
            return (false, None);
        }

        let last_reading = self.before.map(|before| before.taken);
        let new = Report { date, used_by_usable, used_by_unused, seen: at.taken, not_before: last_reading };
        match self.report {
            Some(old) if old.date == date => {
                // Nothing new. The older reading stays: what it saw is what this date stands for.
                (!self.is_stale(&old, sample, at), None)
            }
            Some(old) => {
                self.report = Some(new);
                let step = self.report_step(&old, &new, sample);
                (true, step)
            }
            None => {
                self.report = Some(new);
                (!self.is_stale(&new, sample, at), None)
            }
        }
    }

    /// The change between two reports, if their dates can be believed.
    fn report_step(&mut self, old: &Report, new: &Report, sample: &Sample) -> Option<(f64, f64)> {
        let seconds = new.date.0.checked_sub(old.date.0)?;
        // The new report was made after the last reading that did not have it, and before this one; the old one
        // likewise. Their distance must fit.
        let least = new.not_before.map_or(0.0, |from| from.saturating_sub(old.seen).as_secs_f64());
        let oldest = old.not_before.unwrap_or_else(|| old.seen.saturating_sub(self.stale_after(sample)));
        let most = new.seen.saturating_sub(oldest).as_secs_f64();
        let seconds_f = seconds as f64;
        if seconds_f < least - DATE_SLACK_S || seconds_f > most + DATE_SLACK_S {
            return None;
        }
        self.learnt_period = Some(Duration::from_secs(seconds));
        let change = both(old.used_by_usable, new.used_by_usable)
            .or_else(|| both(old.used_by_unused, new.used_by_unused))?;
        Some((change, seconds_f))
    }

    /// Whether a report is too old to stand for the guest's memory now.
    fn is_stale(&self, report: &Report, sample: &Sample, at: &Moment) -> bool {
        let waited = at.taken.saturating_sub(report.seen);
        let age = match report.not_before {
            // We saw it come, so its age is told by our own clock, however wrong the hypervisor's may be.
            Some(_) => waited,
            None => {
                let by_date = u64::try_from(at.wall_secs).unwrap_or(0).saturating_sub(report.date.0);
                waited.max(Duration::from_secs(by_date))
            }
        };
        age > self.stale_after(sample)
    }

    fn stale_after(&self, sample: &Sample) -> Duration {
        let known = sample.balloon_period.filter(|period| !period.is_zero());
        known.or(self.learnt_period).unwrap_or(ASSUMED_BALLOON_PERIOD).saturating_mul(STALE_AFTER_PERIODS)
    }
}

impl Features {
    fn new(rate: f64, options: &FeatureOptions) -> Option<Self> {
        let scale = options.angle_scale_kib_per_sec;
        let scale =
            if scale.is_finite() && scale > 0.0 { scale } else { FeatureOptions::DEFAULT_ANGLE_SCALE };
        let angle = (rate / scale).atan().to_degrees();
        (rate.is_finite() && angle.is_finite()).then_some(Self { memory_rate: rate, memory_angle: angle })
    }
}

/// The change between two readings, if both are there.
fn both(before: Option<u64>, now: Option<u64>) -> Option<f64> {
    Some(now? as f64 - before? as f64)
}
