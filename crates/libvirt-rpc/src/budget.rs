//! How many unanswered calls a daemon may hold for us.
//!
//! A call that meets a stuck QEMU keeps one of the daemon's workers (20 by default) for as long as that QEMU
//! is stuck. Closing the socket does not free the worker. A client that gives up, reconnects and asks again
//! therefore hangs the daemon for everyone. So every call that can reach a monitor takes a place here, and
//! keeps it past its deadline, until the reply comes. If the socket dies first, the place is an *orphan*: it
//! is kept until the daemon is known to be a new process, else one orphan is let go every ten minutes.
//!
//! One [`Budget`] belongs to one host and outlives its connections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Given-up calls that a host may hold for us, unless configured: a fifth of a daemon's 20 workers.
pub const DEFAULT_MAX_ABANDONED: usize = 4;

/// How often one orphan is let go where nothing tells that the daemon is a new process (TCP, TLS, SSH).
pub const ORPHAN_RELEASE: Duration = Duration::from_secs(600);

/// The places of one host, shared by all its connections, one after another.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    places: Arc<Semaphore>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// Calls past their deadline whose reply has not come and whose socket lives.
    given_up: usize,
    /// Those whose socket died, oldest first.
    orphans: Vec<Orphan>,
    /// The daemon process that held the orphans, where the transport tells.
    pid: Option<i32>,
    /// When the last orphan came or was let go.
    orphans_since: Option<Instant>,
}

/// One place, held from before the call is sent until its reply has come.
#[derive(Debug)]
pub(crate) struct Place {
    budget: Arc<Shared>,
    given_up: bool,
    /// `None` once an orphan has it.
    permit: Option<OwnedSemaphorePermit>,
}

/// What is left of a given-up call whose socket died. It does not point back to the budget that keeps it: that would
/// be a ring of pointers, which is never freed.
#[derive(Debug)]
struct Orphan {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// Room for `max_abandoned` calls (at least one), which may all be given up in the end: no more than that
    /// can be in flight at once either.
    pub fn new(max_abandoned: usize) -> Self {
        let limit = max_abandoned.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared { limit, places: Arc::new(Semaphore::new(limit)), ledger: Mutex::default() }))
    }

    /// Calls past their deadline that the daemon has not answered yet.
    pub fn abandoned(&self) -> usize {
        let ledger = self.0.ledger();
        ledger.given_up + ledger.orphans.len()
    }

    /// True where no call that can reach a monitor may be sent: only job-free ones.
    pub fn is_exhausted(&self) -> bool {
        self.abandoned() >= self.0.limit
    }

    /// Tells which process the daemon is now, after a (re)connect; `None` where the transport cannot know.
    /// A new process holds none of the old one's calls. Returns the number of orphans let go.
    pub fn daemon_is(&self, pid: Option<i32>) -> usize {
        let mut ledger = self.0.ledger();
        let renewed = pid.is_some() && ledger.pid.is_some() && pid != ledger.pid;
        if pid.is_some() {
            ledger.pid = pid;
        }
        if renewed { std::mem::take(&mut ledger.orphans).len() } else { 0 }
    }

    /// Lets the oldest orphan go if [`ORPHAN_RELEASE`] has passed since the last one came or went.
    /// To be called now and then, once a cycle say. Returns true if one was let go.
    pub fn release_due(&self) -> bool {
        let mut ledger = self.0.ledger();
        match ledger.orphans_since {
            Some(since) if !ledger.orphans.is_empty() && since.elapsed() >= ORPHAN_RELEASE => {
                ledger.orphans_since = Some(Instant::now());
                ledger.orphans.remove(0);
                true
            }
            _ => false,
        }
    }

    /// A place for a call, as soon as one is free; `None` where all are taken by given-up calls.
    pub(crate) async fn place(&self) -> Option<Place> {
        if self.is_exhausted() {
            return None;
        }
        let permit = Arc::clone(&self.0.places).acquire_owned().await.ok()?;
        Some(Place { budget: Arc::clone(&self.0), given_up: false, permit: Some(permit) })
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The call is past its deadline.
    pub(crate) fn give_up(&mut self) {
        if !self.given_up {
            self.given_up = true;
            self.budget.ledger().given_up += 1;
        }
    }

    /// True once the call is past its deadline.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// The socket died. A call within its deadline leaves its place; a given-up one becomes an orphan.
    pub(crate) fn socket_died(mut self) {
        if let Some(permit) = self.permit.take_if(|_| self.given_up) {
            let mut ledger = self.budget.ledger();
            ledger.given_up -= 1;
            self.given_up = false;
            ledger.orphans_since = Some(Instant::now());
            ledger.orphans.push(Orphan { _permit: permit });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.given_up {
            self.budget.ledger().given_up -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn given_up_calls_keep_their_places_until_they_are_answered() {
        let budget = Budget::new(2);
        let mut a = budget.place().await.expect("first place");
        let mut b = budget.place().await.expect("second place");
        // Both in flight: a third has to wait, it is not refused.
        assert!(tokio::time::timeout(Duration::from_secs(9), budget.place()).await.is_err());
        a.give_up();
        a.give_up();
        b.give_up();
        assert_eq!(budget.abandoned(), 2);
        assert!(budget.place().await.is_none(), "refused at once while both are given up");
        drop(a);
        assert_eq!(budget.abandoned(), 1);
        assert!(budget.place().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn orphans_go_with_the_daemon_process() {
        let budget = Budget::new(2);
        budget.daemon_is(Some(100));
        let mut stuck = budget.place().await.expect("place");
        let fine = budget.place().await.expect("place");
        stuck.give_up();
        stuck.socket_died();
        fine.socket_died();
        assert_eq!(budget.abandoned(), 1, "a call within its deadline leaves no orphan");
        assert_eq!(budget.daemon_is(Some(100)), 0, "the same process still holds it");
        assert_eq!(budget.abandoned(), 1);
        assert_eq!(budget.daemon_is(Some(101)), 1);
        assert_eq!(budget.abandoned(), 0);
    }

    #[tokio::test]
    async fn orphans_do_not_keep_their_budget_alive() {
        let budget = Budget::new(2);
        let mut place = budget.place().await.expect("place");
        place.give_up();
        place.socket_died();
        assert_eq!(budget.abandoned(), 1);
        let shared = Arc::downgrade(&budget.0);
        drop(budget);
        assert!(shared.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_pid_one_orphan_goes_every_ten_minutes() {
        let budget = Budget::new(2);
        for _ in 0..2 {
            let mut place = budget.place().await.expect("place");
            place.give_up();
            place.socket_died();
        }
        assert_eq!(budget.daemon_is(None), 0);
        assert!(!budget.release_due());
        for left in [1, 0] {
            tokio::time::advance(ORPHAN_RELEASE).await;
            assert!(budget.release_due());
            assert!(!budget.release_due());
            assert_eq!(budget.abandoned(), left);
        }
    }
}
