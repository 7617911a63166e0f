//! The memory's trend: right or absent, whatever the balloon period.

use std::time::Duration;

use telemetry::derive::MemoryTrend;
use telemetry::units::{Kib, WallSeconds};
use telemetry::{DomainId, FeatureOptions, MemorySource, Moment, Sample, increase};

/// One reading: memory values in KiB, all optional.
#[derive(Clone, Copy, Default)]
struct At {
    /// Seconds since the start, by the clock that never steps.
    taken: f64,
    id: i32,
    /// available - usable, and the report's date in seconds since the start.
    guest: Option<(u64, i64)>,
    rss: Option<u64>,
    balloon: Option<u64>,
    busy: bool,
    period: Option<u64>,
}

const WALL: i64 = 1_795_000_000;
const AVAILABLE: u64 = 1 << 30;

impl At {
    fn step(&self, trend: &mut MemoryTrend, options: &FeatureOptions) -> Option<f64> {
        let mut sample = Sample { id: DomainId(self.id), ..Sample::default() };
        sample.held.memory = !self.busy;
        sample.memory.rss = self.rss.map(Kib);
        sample.memory.current = self.balloon.map(Kib);
        sample.balloon_period = self.period.map(Duration::from_secs);
        if let Some((used, date)) = self.guest {
            sample.memory.available = Some(Kib(AVAILABLE));
            sample.memory.usable = Some(Kib(AVAILABLE - used));
            sample.memory.last_update = Some(WallSeconds((WALL + date) as u64));
        }
        let moment = Moment {
            timestamp_ns: 0,
            taken: Duration::from_secs_f64(1e6 + self.taken),
            wall_secs: WALL + self.taken as i64,
        };
        let features = trend.step(&sample, &moment, options)?;
        assert!(features.memory_rate.is_finite() && (-90.0..=90.0).contains(&features.memory_angle));
        Some(features.memory_rate)
    }
}

fn check(what: &str, source: MemorySource, readings: &[At], expect: &[Option<f64>]) {
    let options = FeatureOptions { memory_source: source, ..FeatureOptions::default() };
    let mut trend = MemoryTrend::default();
    let got: Vec<_> = readings.iter().map(|at| at.step(&mut trend, &options)).collect();
    assert_eq!(got, expect, "{what}");
}

#[test]
fn the_best_reading_that_both_have() {
    use MemorySource::{Auto, Balloon, Guest, Rss};
    let all = |taken: f64, guest: u64, rss: u64, balloon: u64| At {
        taken,
        guest: Some((guest, taken as i64)),
        rss: Some(rss),
        balloon: Some(balloon),
        ..At::default()
    };
    let both = [all(0.0, 100, 1000, 10000), all(5.0, 150, 1500, 15000)];
    check("guest first", Auto, &both, &[None, Some(10.0)]);
    check("pinned guest", Guest, &both, &[None, Some(10.0)]);
    check("pinned rss", Rss, &both, &[None, Some(100.0)]);
    check("pinned balloon", Balloon, &both, &[None, Some(1000.0)]);

    let [first, second] = both;
    let no_guest = At { guest: None, ..second };
    check("the second lacks the guest's word", Auto, &[first, no_guest], &[None, Some(100.0)]);
    check("the first lacks it", Auto, &[At { guest: None, ..first }, second], &[None, Some(100.0)]);
    check("pinned and lacking", Guest, &[first, no_guest], &[None, None]);
    let only_balloon = At { rss: None, ..no_guest };
    check("only the balloon", Auto, &[first, only_balloon], &[None, Some(1000.0)]);
    check("nothing", Auto, &[first, At { balloon: None, ..only_balloon }], &[None, None]);
    check("shrinking", Auto, &[all(0.0, 500, 0, 0), all(5.0, 0, 0, 0)], &[None, Some(-100.0)]);
}

#[test]
fn no_false_line() {
    use MemorySource::{Auto, Balloon};
    let rss = |taken: f64, rss: u64| At { taken, rss: Some(rss), balloon: Some(0), ..At::default() };
    let guest = |taken: f64, used: u64, date: i64| At { guest: Some((used, date)), ..rss(taken, 7) };
    let restarted = At { id: 1, ..rss(5.0, 500) };
    check("another id", Auto, &[rss(0.0, 0), restarted], &[None, None]);
    check("a clock that stands", Auto, &[rss(5.0, 0), rss(5.0, 9)], &[None, None]);
    check(
        "a clock that steps back",
        Auto,
        &[rss(5.0, 0), rss(0.0, 9), rss(5.0, 14)],
        &[None, None, Some(1.0)],
    );
    check("a report that did not advance", Auto, &[guest(0.0, 0, 0), guest(5.0, 50, 0)], &[None, None]);
    check(
        "one report between two readings, asked again",
        Auto,
        &[guest(0.0, 0, 0), guest(5.0, 0, 0), guest(10.0, 100, 10), guest(15.0, 100, 10)],
        &[None, None, Some(10.0), None],
    );
    check(
        "the hypervisor's clock set forward, backward",
        Auto,
        &[guest(0.0, 0, 0), guest(5.0, 50, 3605), guest(10.0, 100, 10), guest(15.0, 150, 15)],
        &[None, None, None, Some(10.0)],
    );
    let busy = |taken| At { busy: true, balloon: Some(0), taken, ..At::default() };
    check(
        "a busy domain, and the average over the gap after it",
        Auto,
        &[rss(0.0, 0), busy(5.0), busy(10.0), rss(15.0, 150)],
        &[None, None, None, Some(10.0)],
    );
    check("the balloon needs no monitor", Balloon, &[busy(0.0), busy(5.0)], &[None, Some(0.0)]);
}

#[test]
fn an_old_report_counts_as_absent() {
    use MemorySource::Auto;
    let at = |taken: f64, rss: u64, date: i64| At {
        taken,
        rss: Some(rss),
        guest: Some((0, date)),
        period: Some(5),
        ..At::default()
    };
    // The guest's driver stops reporting at second 5: absent more than 3 periods after, and then rss is compared.
    let readings =
        [at(0.0, 0, 0), at(5.0, 0, 5), at(10.0, 0, 5), at(15.0, 0, 5), at(20.0, 0, 5), at(25.0, 10, 5)];
    let back = [at(30.0, 20, 30), at(35.0, 30, 35)];
    check(
        "stops and comes back",
        Auto,
        &[readings.as_slice(), &back].concat(),
        &[None, Some(0.0), None, None, None, Some(2.0), Some(2.0), Some(0.0)],
    );
    check("a report of another day", Auto, &[at(0.0, 0, -86400), at(5.0, 5, -86400)], &[None, Some(1.0)]);
    // A hypervisor whose clock is an hour behind ours: its reports come, so they are fresh.
    let behind = |taken: f64, used| At { guest: Some((used, taken as i64 - 3600)), ..at(taken, 0, 0) };
    check(
        "a hypervisor's clock that is behind",
        Auto,
        &[behind(0.0, 0), behind(5.0, 50), behind(10.0, 100), behind(15.0, 150)],
        &[None, Some(0.0), Some(10.0), Some(10.0)],
    );
}

/// A guest whose used memory grows by 100 KiB/s, whose balloon reports each `period`, asked each `interval`.
#[test]
fn any_balloon_period_gives_the_right_rate_or_none() {
    const RATE: f64 = 100.0;
    let check = |period: f64, known: bool, interval: f64, phase: f64, expect_lines: bool| {
        let options = FeatureOptions { memory_source: MemorySource::Guest, ..FeatureOptions::default() };
        let mut trend = MemoryTrend::default();
        let mut lines = 0;
        for cycle in 0..200 {
            let taken = f64::from(cycle) * interval;
            // The timer starts anew after each report, so periods are a little long.
            let reported = ((taken - phase) / (period + 0.003)).floor() * (period + 0.003) + phase;
            let guest = (period > 0.0 && reported >= 0.0)
                .then_some((10_000 + (reported * RATE) as u64, reported as i64));
            let at = At { taken, guest, period: known.then_some(period as u64), ..At::default() };
            if let Some(rate) = at.step(&mut trend, &options) {
                lines += 1;
                // Dates are whole seconds: a distance of n may be up to one second off.
                let apart = interval.max(period);
                let (least, most) = (RATE * (apart - 1.0) / apart, RATE * (apart + 1.0) / apart);
                let context = format!("period {period}, interval {interval}, phase {phase}: {rate}");
                if apart > 1.0 {
                    assert!(rate > least * 0.98 && rate < most * 1.02, "{context}");
                }
                assert!(rate < 1.9 * RATE, "doubled: {context}");
            }
        }
        let enough = 190.0 * (interval / period).min(1.0);
        let is_enough = if expect_lines { f64::from(lines) >= enough * 0.9 } else { lines == 0 };
        assert!(is_enough, "period {period}, interval {interval}, phase {phase}: {lines} lines");
    };
    for known in [true, false] {
        for phase in [0.0, 0.4, 0.99, 2.5, 4.99] {
            check(0.0, known, 5.0, phase, false);
            check(5.0, known, 5.0, phase, true);
            check(10.0, known, 5.0, phase, true);
            check(1.0, known, 5.0, phase, true);
            check(60.0, true, 5.0, phase, true);
        }
        check(2.0, known, 1.0, 0.3, true);
        check(5.0, known, 1.0, 0.3, true);
    }
}

#[test]
fn the_angle_follows_its_scale() {
    let check = |scale: f64, rate: u64, expect: f64| {
        let options = FeatureOptions { angle_scale_kib_per_sec: scale, ..FeatureOptions::default() };
        let mut trend = MemoryTrend::default();
        let mut angle = None;
        for (taken, rss) in [(0, 0), (1, rate)] {
            let mut sample = Sample::default();
            sample.held.memory = true;
            sample.memory.rss = Some(Kib(rss));
            let at = Moment { timestamp_ns: 0, taken: Duration::from_secs(taken), wall_secs: 0 };
            angle = trend.step(&sample, &at, &options).map(|features| features.memory_angle);
        }
        let angle = angle.unwrap();
        assert!((angle - expect).abs() < 1e-3, "{scale} {rate}: {angle}");
    };
    check(1024.0, 1024, 45.0);
    check(1024.0, 0, 0.0);
    check(512.0, 1024, 63.4349);
    check(1024.0, u64::MAX, 90.0);
    // A scale that makes no sense is the default one.
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        check(scale, 1024, 45.0);
    }
}

#[test]
fn a_step_back_is_no_increase() {
    assert_eq!(increase(Some(1), Some(3)), Some(2));
    assert_eq!(increase(Some(3), Some(3)), Some(0));
    assert_eq!(increase(Some(3), Some(1)), None);
    assert_eq!(increase(None, Some(1)), None);
    assert_eq!(increase(Some(1), None), None);
}
