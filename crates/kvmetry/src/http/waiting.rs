//! Giving way: who waits for a place gets one of those that can be given up, and not all of them.

use std::time::Duration;

use tokio::sync::watch;

/// Those who wait; to each of them one place is given up.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(watch::Sender<Wanted>);

#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    places: usize,
    /// Given up for one that waits, and not taken yet.
    given: usize,
}

impl Waiting {
    /// One more waits, until this is dropped.
    pub(super) fn begin(&self) -> Waits {
        self.0.send_modify(|wanted| wanted.places += 1);
        Waits(self.clone())
    }

    /// Returns when the place of whoever calls is to be given up: none of those who call with a shorter time has one to
    /// give, for so long.
    pub(super) async fn takes_one(&self, after: Duration) {
        let mut wanted = self.0.subscribe();
        let take = |wanted: &mut Wanted| {
            let take = wanted.places > 0;
            if take {
                wanted.places -= 1;
                wanted.given += 1;
            }
            take
        };
        loop {
            // The sender is here.
            let _ = wanted.wait_for(|wanted| wanted.places > 0).await;
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            if self.0.send_if_modified(take) {
                return;
            }
        }
    }
}

/// One who waits.
pub(super) struct Waits(Waiting);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.send_modify(|wanted| {
            if wanted.given > 0 {
                wanted.given -= 1;
            } else {
                wanted.places = wanted.places.saturating_sub(1);
            }
        });
    }
}
