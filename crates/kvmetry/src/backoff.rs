//! How long to wait after a failure.

use std::time::Duration;

/// The pause after the first failure; it doubles with every further one up to [`MAX_PAUSE`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of our own making: how late something that works again may be noticed.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The pause where a person must act first (a wrong token, a missing database): asking more often only fills
/// the server's log.
pub(crate) const SLOW_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for (`Retry-After`).
pub(crate) const MAX_ASKED_PAUSE: Duration = Duration::from_secs(300);
/// Pauses are stretched or shortened by up to this part, percent, so that many collectors do not come back to
/// a restarted server in the same moment.
const JITTER_PERCENT: u32 = 25;

/// The pause after this many failures in a row (from 1).
pub(crate) fn pause(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    jitter(doubled.min(MAX_PAUSE))
}

/// The pause after this many failures in a row where the other side asked for one: it may ask for more patience
/// than ours, not for less ("0" would mean no pause at all), and never gets more than [`MAX_ASKED_PAUSE`].
pub(crate) fn asked_pause(failures: u32, asked: Option<Duration>) -> Duration {
    pause(failures).max(asked.unwrap_or_default().min(MAX_ASKED_PAUSE))
}

/// This pause, a little longer or shorter.
pub(crate) fn jitter(pause: Duration) -> Duration {
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
            check(pause(failures), expect);
        }
    }

    #[test]
    fn whoever_asks_gets_more_patience_but_not_less() {
        assert_eq!(asked_pause(1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(asked_pause(1, Some(Duration::from_secs(86_400))), MAX_ASKED_PAUSE);
        check(asked_pause(3, Some(Duration::ZERO)), 4.0);
        check(asked_pause(3, None), 4.0);
    }

    #[test]
    fn numbers_make_no_new_cause() {
        assert_eq!(cause("status 503, busy (request 7f3a-01)"), cause("status 502, busy (request 09bc-02)"));
        assert_ne!(cause("status 503, busy"), cause("status 503, starting"));
    }
}
