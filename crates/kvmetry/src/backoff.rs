//! How long to wait after a failure.

use std::time::Duration;

/// The longest pause that a server may ask for (`Retry-After`).
pub(crate) const MAX_ASKED_PAUSE: Duration = Duration::from_secs(300);
/// Pauses are stretched or shortened by up to this part, percent, so that many collectors do not come back to
/// a restarted server in the same moment.
const JITTER_PERCENT: u32 = 25;

/// The pauses between tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    /// After the first failure; it doubles with every further one.
    first: Duration,
    /// The longest of our own making: how late something that works again may be noticed.
    longest: Duration,
    /// Where a person must act first (a wrong token, a missing database): asking more often only fills the server's
    /// log.
    slow: Duration,
}

impl Pauses {
    /// Those of a running program.
    pub(crate) const NORMAL: Self = Self {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(30),
        slow: Duration::from_secs(60),
    };

    /// For tests that fail often.
    #[cfg(test)]
    pub(crate) const SHORT: Self = Self {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(2),
        slow: Duration::from_millis(3),
    };

    /// The pause after this many failures in a row (from 1).
    pub(crate) fn after(self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        jitter(doubled.min(self.longest))
    }

    /// The same where the other side asked for a pause: it may ask for more patience than ours, not for less ("0"
    /// would mean no pause at all), and never gets more than [`MAX_ASKED_PAUSE`].
    pub(crate) fn asked(self, failures: u32, asked: Option<Duration>) -> Duration {
        self.after(failures).max(asked.unwrap_or_default().min(MAX_ASKED_PAUSE))
    }

    /// The pause where a person must act first.
    pub(crate) fn slow(self) -> Duration {
        jitter(self.slow)
    }
}

/// This pause, a little longer or shorter.
fn jitter(pause: Duration) -> Duration {
    pause * fastrand::u32(100 - JITTER_PERCENT..=100 + JITTER_PERCENT) / 100
}

/// A reason without the words that have digits: line numbers, times and a request's id make no new cause.
pub(crate) fn cause(why: &str) -> String {
    let words = why.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within the jitter of so many seconds.
    #[track_caller]
    fn check(pause: Duration, expect: f64) {
        let found = pause.as_secs_f64();
        assert!((expect * 0.74..=expect * 1.26).contains(&found), "{found} s instead of {expect} s");
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        for (failures, expect) in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (u32::MAX, 30.0)] {
            check(Pauses::NORMAL.after(failures), expect);
        }
        check(Pauses::NORMAL.slow(), 60.0);
        let some: Vec<_> = (0..20).map(|_| Pauses::NORMAL.after(6)).collect();
        assert!(some.iter().any(|pause| *pause != some[0]), "they differ");
    }

    #[test]
    fn whoever_asks_gets_more_patience_but_not_less() {
        let asked =
            |failures, seconds: Option<u64>| Pauses::NORMAL.asked(failures, seconds.map(Duration::from_secs));
        assert_eq!(asked(1, Some(7)), Duration::from_secs(7));
        assert_eq!(asked(1, Some(86_400)), MAX_ASKED_PAUSE);
        check(asked(3, Some(0)), 4.0);
        check(asked(3, None), 4.0);
    }

    #[test]
    fn numbers_make_no_new_cause() {
        assert_eq!(cause("status 503, busy (request 7f3a-01)"), cause("status 502, busy (request 09bc-02)"));
        assert_ne!(cause("status 503, busy"), cause("status 503, starting"));
    }
}
