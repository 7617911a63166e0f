//! The clocks: the only module that reads the time of day.
//!
//! Everything else takes times as arguments, so that it can be tested at any moment in time (clippy refuses
//! `SystemTime::now` elsewhere). Two clocks, because they answer two questions:
//!
//! - [`Clock::wall_ns`]: what o'clock is it? It stamps the points, and it may jump.
//! - [`Clock::monotonic`]: how long did it take? It never goes back.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the time comes from.
pub(crate) trait Clock: Send + Sync {
    /// Nanoseconds since 1970-01-01 UTC. It may jump in either direction. A clock set before 1970 or after
    /// 2262 gives the nearest end of what line protocol can carry.
    fn wall_ns(&self) -> i64;

    /// Time since the first reading of this clock in this process. It never goes back, and tokio's timers
    /// run by the same clock.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the module that reads the wall clock")]
    fn wall_ns(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        }
    }

    fn monotonic(&self) -> Duration {
        // tokio's instant, not the standard library's: tests that pause tokio's time pause this clock too.
        static START: OnceLock<tokio::time::Instant> = OnceLock::new();
        START.get_or_init(tokio::time::Instant::now).elapsed()
    }
}

/// A moment, nanoseconds since 1970, for a person: UTC, to the second.
pub(crate) fn rfc3339(at_ns: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(at_ns).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// A clock that stands still until it is told to move.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct ManualClock(std::sync::Mutex<(i64, Duration)>);

#[cfg(test)]
impl ManualClock {
    /// A clock at this wall time; its monotonic time is zero.
    pub(crate) fn at(wall_ns: i64) -> Self {
        Self(std::sync::Mutex::new((wall_ns, Duration::ZERO)))
    }

    /// Time goes by: both clocks move.
    pub(crate) fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        now.0 += i64::try_from(by.as_nanos()).unwrap();
        now.1 += by;
    }

    /// Somebody sets the time of day: only the wall clock moves.
    pub(crate) fn set_wall_ns(&self, wall_ns: i64) {
        self.0.lock().unwrap().0 = wall_ns;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn wall_ns(&self) -> i64 {
        self.0.lock().unwrap().0
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_is_in_this_century_and_does_not_go_back() {
        let clock = SystemClock;
        let year_2020_ns = 1_577_836_800_000_000_000;
        assert!(clock.wall_ns() > year_2020_ns);
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::at(1_000);
        clock.advance(Duration::from_nanos(5));
        assert_eq!((clock.wall_ns(), clock.monotonic()), (1_005, Duration::from_nanos(5)));
        clock.set_wall_ns(7);
        assert_eq!((clock.wall_ns(), clock.monotonic()), (7, Duration::from_nanos(5)));
    }
}
