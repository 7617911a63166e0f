//! When a host is read: pure tick arithmetic, no clock and no timer.
//!
//! ```text
//! wall clock   ──┬─────────────────┬─────────────────┬─────────────────┬──▶
//!             boundary          boundary          boundary          boundary     (multiples of the interval)
//!                ├─phase─▶tick     ├─phase─▶tick     ├─phase─▶tick
//! ```
//!
//! A tick is the interval's boundary on the wall clock plus the host's phase, so that the series of all hosts
//! line up and equal steps compress to nothing. The phase is 0 for up to [`HOSTS_IN_STEP`] hosts; beyond, the
//! hosts are spread over [`SPREAD_PERCENT`] of the interval so that they do not all answer in the same
//! moment; a host's place is fixed by its name, so that it survives restarts.
//!
//! The first reading starts at once: a person who just typed the command does not wait an interval for it.

use std::time::Duration;

/// Up to this many hosts are read at the boundary itself: so few replies at once are no burden.
pub(crate) const HOSTS_IN_STEP: usize = 20;
/// More hosts are spread over this part of the interval: wide enough to level the load, narrow enough that
/// the 80 % which a cycle may take still ends before the next tick.
pub(crate) const SPREAD_PERCENT: i64 = 20;
/// A reading that begins this close to its tick carries the tick's time, else the moment it began.
pub(crate) const BEGIN_WINDOW_NS: i64 = 100_000_000;

const NS_PER_MS: i64 = 1_000_000;

/// A moment on both clocks (see [`crate::clock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Wall clock, nanoseconds since 1970.
    pub(crate) wall_ns: i64,
    /// Monotonic clock.
    pub(crate) monotonic: Duration,
}

impl Now {
    /// Reads both clocks.
    pub(crate) fn of(clock: &dyn crate::clock::Clock) -> Self {
        Self { wall_ns: clock.wall_ns(), monotonic: clock.monotonic() }
    }
}

/// The next reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick {
    /// The scheduled moment on the wall clock, nanoseconds since 1970.
    pub(crate) at_ns: i64,
    /// How long to wait for it; zero when it is due.
    pub(crate) wait: Duration,
    /// Ticks that went by unread since the one before, because reading took too long. A tick that the wall
    /// clock jumped over is not counted: nobody was late.
    pub(crate) missed: u64,
}

/// The time that a reading's points carry: the scheduled tick when the reading began within [`BEGIN_WINDOW_NS`]
/// of it, else the moment it began (nanoseconds since 1970).
pub(crate) fn timestamp_ns(tick_ns: i64, began_ns: i64) -> i64 {
    if began_ns.abs_diff(tick_ns) <= BEGIN_WINDOW_NS.unsigned_abs() { tick_ns } else { began_ns }
}

/// One host's ticks.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    interval_ns: i64,
    phase_ns: i64,
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    tick_ns: i64,
    monotonic: Duration,
    /// The immediate first reading, which stands on no boundary.
    off_grid: bool,
}

impl Schedule {
    /// The ticks of the host `name`, one of `hosts`. The interval is taken from the checked configuration;
    /// one below a nanosecond counts as a nanosecond.
    pub(crate) fn new(interval: Duration, hosts: usize, name: &str) -> Self {
        let interval_ns = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX).max(1);
        Self { interval_ns, phase_ns: phase_ns(interval_ns, hosts, name), last: None }
    }

    /// The next tick, seen from `now`. Call it once for every reading, when the one before has ended.
    ///
    /// - The first tick is now.
    /// - The second is the first one at least half an interval away, so that the first rates have a span to
    ///   be computed over.
    /// - After an overrun the ticks that went by are skipped and counted; one that is not older than
    ///   [`BEGIN_WINDOW_NS`] is still read.
    /// - If the wall clock was set back by more than an interval the schedule starts anew on the new time,
    ///   instead of waiting for the old one to come again.
    pub(crate) fn next_tick(&mut self, now: Now) -> Tick {
        let Some(last) = self.last else {
            self.last = Some(Last { tick_ns: now.wall_ns, monotonic: now.monotonic, off_grid: true });
            return Tick { at_ns: now.wall_ns, wait: Duration::ZERO, missed: 0 };
        };
        let set_back = last.tick_ns.saturating_sub(now.wall_ns) > self.interval_ns;
        let at_ns = if set_back {
            self.boundary_from(now.wall_ns)
        } else if last.off_grid {
            let second_ns = last.tick_ns.saturating_add(self.interval_ns / 2);
            self.boundary_from(second_ns.max(now.wall_ns.saturating_sub(BEGIN_WINDOW_NS)))
        } else {
            let due_ns = now.wall_ns.saturating_sub(BEGIN_WINDOW_NS);
            self.boundary_from(last.tick_ns.saturating_add(1).max(due_ns))
        };
        let by_wall = at_ns.saturating_sub(last.tick_ns).saturating_sub(1) / self.interval_ns;
        let elapsed = now.monotonic.saturating_sub(last.monotonic).as_nanos();
        let by_monotonic = elapsed / u128::from(self.interval_ns.unsigned_abs());
        let missed = u64::try_from(by_wall.max(0)).unwrap_or(0);
        let missed = missed.min(u64::try_from(by_monotonic).unwrap_or(u64::MAX));
        let wait_ns = at_ns.saturating_sub(now.wall_ns).max(0);
        let wait = Duration::from_nanos(wait_ns.unsigned_abs());
        self.last = Some(Last { tick_ns: at_ns, monotonic: now.monotonic + wait, off_grid: false });
        Tick { at_ns, wait, missed }
    }

    /// The first tick that is not before this moment.
    fn boundary_from(&self, from_ns: i64) -> i64 {
        let offset = from_ns.saturating_sub(self.phase_ns);
        let into = offset.rem_euclid(self.interval_ns);
        if into == 0 { from_ns } else { from_ns.saturating_add(self.interval_ns - into) }
    }
}

/// Whole milliseconds, 0 up to [`SPREAD_PERCENT`] of the interval.
fn phase_ns(interval_ns: i64, hosts: usize, name: &str) -> i64 {
    let spread_ms = interval_ns / NS_PER_MS * SPREAD_PERCENT / 100;
    if hosts <= HOSTS_IN_STEP || spread_ms == 0 {
        return 0;
    }
    let place = fnv1a(name.as_bytes()) % spread_ms.unsigned_abs();
    i64::try_from(place).unwrap_or(0) * NS_PER_MS
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the standard library's hash may change
/// between versions, and a host's phase must not.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const S: i64 = 1_000_000_000;
    const MS: i64 = 1_000_000;

    fn at(wall_ns: i64, monotonic_ns: i64) -> Now {
        Now { wall_ns, monotonic: Duration::from_nanos(monotonic_ns.unsigned_abs()) }
    }

    /// Calls at these moments (wall clock, monotonic clock) give these ticks (moment, wait, missed).
    #[track_caller]
    fn check(calls: &[(i64, i64)], expect: &[(i64, i64, u64)]) {
        let mut schedule = Schedule::new(Duration::from_secs(5), 1, "host");
        let ticks: Vec<_> = calls
            .iter()
            .map(|&(wall, monotonic)| {
                let tick = schedule.next_tick(at(wall, monotonic));
                (tick.at_ns, i64::try_from(tick.wait.as_nanos()).unwrap(), tick.missed)
            })
            .collect();
        assert_eq!(ticks, expect);
    }

    #[test]
    fn ticks_stand_on_the_boundaries() {
        // First at once, then the boundaries.
        check(
            &[(101 * S, 0), (101 * S + 20 * MS, 20 * MS), (105 * S + 20 * MS, 4 * S)],
            &[(101 * S, 0, 0), (105 * S, 4 * S - 20 * MS, 0), (110 * S, 5 * S - 20 * MS, 0)],
        );
        // The second is not closer than half an interval.
        check(&[(104 * S, 0), (104 * S + MS, MS)], &[(104 * S, 0, 0), (110 * S, 6 * S - MS, 0)]);
        check(&[(100 * S, 0), (100 * S + MS, MS)], &[(100 * S, 0, 0), (105 * S, 5 * S - MS, 0)]);
        // Before 1970 the grid is the same.
        check(&[(-9 * S, 0), (-9 * S, 0)], &[(-9 * S, 0, 0), (-5 * S, 4 * S, 0)]);
    }

    #[test]
    fn overruns_are_skipped_and_counted() {
        let start = (100 * S, 0);
        // The reading of 105 ended at 105+5.09: the tick at 110 is still near enough.
        check(
            &[start, (100 * S, 0), (110 * S + 90 * MS, 10 * S + 90 * MS)],
            &[(100 * S, 0, 0), (105 * S, 5 * S, 0), (110 * S, 0, 0)],
        );
        // ... 20 ms later it is not.
        check(
            &[start, (100 * S, 0), (110 * S + 110 * MS, 10 * S + 110 * MS)],
            &[(100 * S, 0, 0), (105 * S, 5 * S, 0), (115 * S, 5 * S - 110 * MS, 1)],
        );
        check(
            &[start, (100 * S, 0), (131 * S, 31 * S)],
            &[(100 * S, 0, 0), (105 * S, 5 * S, 0), (135 * S, 4 * S, 5)],
        );
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_not_an_overrun() {
        let (start, second) = ((100 * S, 0), (100 * S, 0));
        let ticks = [(100 * S, 0, 0), (105 * S, 5 * S, 0)];
        // An hour forward while the reading of 105 took a second.
        check(&[start, second, (3706 * S, 6 * S)], &[ticks[0], ticks[1], (3710 * S, 4 * S, 0)]);
        // An hour back: the grid of the new time, at once.
        check(&[start, second, (106 * S - 3600 * S, 6 * S)], &[ticks[0], ticks[1], (-3490 * S, 4 * S, 0)]);
        // Two seconds back, less than an interval: no second point on the same tick.
        check(&[start, second, (104 * S, 6 * S)], &[ticks[0], ticks[1], (110 * S, 6 * S, 0)]);
    }

    #[test]
    fn a_point_carries_its_tick_if_it_began_in_time() {
        for (began, expect) in [
            (100 * S, 100 * S),
            (100 * S + 100 * MS, 100 * S),
            (100 * S + 100 * MS + 1, 100 * S + 100 * MS + 1),
            (100 * S - 100 * MS, 100 * S),
            (90 * S, 90 * S),
            (i64::MIN, i64::MIN),
        ] {
            assert_eq!(timestamp_ns(100 * S, began), expect, "began at {began}");
        }
    }

    #[test]
    fn few_hosts_are_in_step_and_many_are_spread() {
        let interval = 5 * S;
        assert_eq!(phase_ns(interval, HOSTS_IN_STEP, "kvm7"), 0);
        let phases: Vec<_> =
            (0..1000).map(|n| phase_ns(interval, HOSTS_IN_STEP + 1, &format!("kvm{n}"))).collect();
        assert!(phases.iter().all(|phase| (0..S).contains(phase) && phase % MS == 0));
        // Every tenth of the spread has about a tenth of the hosts.
        for tenth in 0..10 {
            let range = tenth * S / 10..(tenth + 1) * S / 10;
            let hosts = phases.iter().filter(|phase| range.contains(phase)).count();
            assert!((60..140).contains(&hosts), "{hosts} of 1000 hosts in tenth {tenth}");
        }
        // A host keeps its place for ever: this value may not change from version to version.
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(
            phase_ns(interval, 21, "a"),
            i64::try_from(0xaf63_dc4c_8601_ec8c_u64 % 1000).unwrap() * MS
        );
    }

    #[test]
    fn a_host_with_a_phase_ticks_beside_the_boundary() {
        let clock = ManualClock::at(100 * S);
        let mut schedule = Schedule::new(Duration::from_secs(5), 21, "a");
        let phase = phase_ns(5 * S, 21, "a");
        assert!(phase > 0);
        schedule.next_tick(Now::of(&clock));
        for n in 1..4 {
            let tick = schedule.next_tick(Now::of(&clock));
            assert_eq!(tick.at_ns, 100 * S + n * 5 * S + phase);
            clock.advance(tick.wait);
        }
        clock.set_wall_ns(50 * S);
        assert_eq!(schedule.next_tick(Now::of(&clock)).at_ns, 50 * S + phase);
    }
}
