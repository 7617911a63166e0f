//! When to try again: doubling waits with jitter. The policy is the caller's; this only counts.

use std::time::Duration;

/// Waits that double from `first` to `longest`, each shortened by up to a half at random, so that a thousand
/// collectors do not come back to a restarted daemon in the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits begin at `first` and grow to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// It went well: begin again at `first`.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        for whole in [200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait().as_millis();
            assert!((whole / 2..=whole).contains(&wait), "{wait} ms is not within {whole} ms");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(200));
    }
}
