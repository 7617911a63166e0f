//! How many unanswered calls a daemon may hold for us.
//!
//! A call that meets a stuck QEMU keeps one of the daemon's workers (20 by default) for as long as that QEMU
//! is stuck. Closing the socket does not free the worker. A client that gives up, reconnects and asks again
//! therefore hangs the daemon for everyone. So every call that can reach a monitor takes a place here, and
//! keeps it past its deadline, until the reply comes. If the socket dies first, the place is an *orphan*: nobody
//! will ever see its reply. Where the daemon's process is known, a call within its deadline becomes one too, for the
//! daemon hangs on it all the same unless it is the daemon that ended, which will show. Where no process is known it
//! leaves its place: there each fault of the network would hold up all reading for up to 40 minutes.
//!
//! Orphans go
//!
//! - all that were left at a process which no longer exists, or which is not the daemon any more, where the process
//!   is known (see [`DaemonProcess`]);
//! - all, when the caller says that it is a new daemon ([`Budget::daemon_is_new`]);
//! - one every ten minutes, whatever is known: the calls of a daemon that stays may have ended long ago, and time is
//!   the only evidence that is left.
//!
//! One [`Budget`] belongs to one host and outlives its connections.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::transport::{DaemonProcess, PROC};

/// Given-up calls that a host may hold for us, unless configured: a fifth of a daemon's 20 workers.
pub const DEFAULT_MAX_ABANDONED: usize = 4;

/// How often one orphan is let go, also where the daemon is known to be the same process: its call may have ended since,
/// and the reply went to a dead socket. A call that still hangs then costs the daemon one worker more than we count, at
/// most one each ten minutes.
pub const ORPHAN_RELEASE: Duration = Duration::from_secs(600);

/// The places of one host, shared by all its connections, one after another.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    places: Arc<Semaphore>,
    ledger: Mutex<Ledger>,
    /// `/proc`.
    proc: PathBuf,
}

#[derive(Debug, Default)]
struct Ledger {
    /// Calls past their deadline whose reply has not come and whose socket lives.
    given_up: usize,
    /// Calls whose socket died and that may still hang, oldest first.
    orphans: Vec<Orphan>,
    /// When the last orphan came or was let go because its time had come.
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

/// What is left of a call whose socket died. It does not point back to the budget that keeps it: that would
/// be a ring of pointers, which is never freed.
#[derive(Debug)]
struct Orphan {
    /// The process that has the call, where it is known.
    process: Option<DaemonProcess>,
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    /// Room for `max_abandoned` calls (at least one), which may all be given up in the end: no more than that
    /// can be in flight at once either.
    pub fn new(max_abandoned: usize) -> Self {
        Self::beside(max_abandoned, PROC.into())
    }

    /// [`Self::new`], with the processes that are found in `proc`.
    fn beside(max_abandoned: usize, proc: PathBuf) -> Self {
        let limit = max_abandoned.clamp(1, Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(limit));
        Self(Arc::new(Shared { limit, places, ledger: Mutex::default(), proc }))
    }

    /// Calls that the daemon may still be at and nobody waits for any more: past their deadline, or orphaned.
    pub fn abandoned(&self) -> usize {
        let ledger = self.0.ledger();
        ledger.given_up + ledger.orphans.len()
    }

    /// True where no call that can reach a monitor may be sent: only job-free ones.
    pub fn is_exhausted(&self) -> bool {
        self.abandoned() >= self.0.limit
    }

    /// Tells which process the daemon is now, after a (re)connect; `None` where nothing tells. Orphans that were
    /// left at another process go, and those whose process no longer exists. Returns how many.
    pub fn daemon_is(&self, process: Option<DaemonProcess>) -> usize {
        let is_another = |left_at: DaemonProcess| process.is_some_and(|now| now != left_at);
        self.0.release(|left_at| is_another(left_at) || left_at.is_gone(&self.0.proc))
    }

    /// For a caller with other evidence that the daemon is a new process, as a host that was started again: all
    /// orphans go. Returns how many.
    pub fn daemon_is_new(&self) -> usize {
        std::mem::take(&mut self.0.ledger().orphans).len()
    }

    /// Lets those orphans go whose process no longer exists, and the oldest of the others if [`ORPHAN_RELEASE`] has
    /// passed since the last one came or was due. To be called now and then, once a cycle say. Returns how many went.
    pub fn release_due(&self) -> usize {
        let gone = self.0.release(|left_at| left_at.is_gone(&self.0.proc));
        let mut ledger = self.0.ledger();
        match ledger.orphans_since {
            Some(since) if !ledger.orphans.is_empty() && since.elapsed() >= ORPHAN_RELEASE => {
                ledger.orphans_since = Some(Instant::now());
                ledger.orphans.remove(0);
                gone + 1
            }
            _ => gone,
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

    /// Lets the orphans go whose process is known and for which `is_over` holds. Returns how many.
    fn release(&self, is_over: impl Fn(DaemonProcess) -> bool) -> usize {
        let mut ledger = self.ledger();
        let before = ledger.orphans.len();
        ledger.orphans.retain(|orphan| !orphan.process.is_some_and(&is_over));
        before - ledger.orphans.len()
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

    /// The socket died, whose other end was `process`. A call that may still hang there becomes an orphan: a given-up
    /// one, and one within its deadline if it will be seen when the process ends. Any other leaves its place.
    pub(crate) fn socket_died(mut self, process: Option<DaemonProcess>) {
        let may_hang = self.given_up || process.is_some();
        if let Some(permit) = self.permit.take_if(|_| may_hang) {
            let mut ledger = self.budget.ledger();
            if std::mem::take(&mut self.given_up) {
                ledger.given_up -= 1;
            }
            ledger.orphans_since = Some(Instant::now());
            ledger.orphans.push(Orphan { process, _permit: permit });
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
    use std::fs;

    use super::*;

    /// A `/proc` with daemons in it.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn budget(&self, max_abandoned: usize) -> Budget {
            Budget::beside(max_abandoned, self.0.path().to_owned())
        }

        /// A daemon begins.
        fn daemon(&self, pid: i32) -> DaemonProcess {
            let dir = self.0.path().join(pid.to_string());
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join("comm"), "libvirtd\n").expect("a file");
            let stat = format!("{pid} (libvirtd) S{} 4711\n", " 0".repeat(18));
            fs::write(dir.join("stat"), stat).expect("a file");
            DaemonProcess::of(self.0.path(), pid).expect("a daemon")
        }

        fn end(&self, daemon: DaemonProcess) {
            fs::remove_dir_all(self.0.path().join(daemon.pid.to_string())).expect("removed");
        }
    }

    /// A call is given up, then its socket dies.
    async fn orphan(budget: &Budget, process: Option<DaemonProcess>) {
        let mut place = budget.place().await.expect("place");
        place.give_up();
        place.socket_died(process);
    }

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
        let machine = Machine::new();
        let budget = machine.budget(3);
        let (old, new) = (machine.daemon(100), machine.daemon(101));
        budget.daemon_is(Some(old));
        orphan(&budget, Some(old)).await;
        orphan(&budget, Some(old)).await;
        orphan(&budget, None).await;
        assert_eq!(budget.daemon_is(Some(old)), 0, "the same process still holds them");
        assert_eq!(budget.daemon_is(None), 0, "nothing is known");
        assert_eq!(budget.abandoned(), 3);
        assert_eq!(budget.daemon_is(Some(new)), 2);
        assert_eq!(budget.abandoned(), 1, "nobody knows where this one was left");
    }

    /// Its waiter is told that the connection is lost; whether the daemon is done with it nobody knows.
    #[tokio::test(start_paused = true)]
    async fn a_call_within_its_deadline_is_orphaned_where_the_process_is_known() {
        let machine = Machine::new();
        let budget = machine.budget(1);
        let daemon = machine.daemon(100);
        budget.place().await.expect("place").socket_died(None);
        assert_eq!(budget.abandoned(), 0);
        budget.place().await.expect("place").socket_died(Some(daemon));
        assert_eq!(budget.abandoned(), 1);
        assert!(budget.place().await.is_none(), "the only place is taken");
        machine.end(daemon);
        assert_eq!(budget.release_due(), 1);
        assert!(budget.place().await.is_some());
    }

    /// The daemon is restarted, and what the next connection sees of it tells nothing.
    #[tokio::test(start_paused = true)]
    async fn orphans_go_when_their_process_no_longer_exists() {
        type Ask = fn(&Budget) -> usize;
        let asks: [Ask; 2] = [Budget::release_due, |budget| budget.daemon_is(None)];
        for ask in asks {
            let machine = Machine::new();
            let budget = machine.budget(3);
            let old = machine.daemon(100);
            orphan(&budget, Some(old)).await;
            orphan(&budget, Some(old)).await;
            orphan(&budget, None).await;
            assert_eq!(ask(&budget), 0);
            machine.end(old);
            assert_eq!(ask(&budget), 2);
            assert_eq!(budget.abandoned(), 1);
        }
    }

    #[tokio::test]
    async fn a_new_daemon_holds_no_orphan_and_still_what_it_was_sent() {
        let machine = Machine::new();
        let budget = machine.budget(3);
        orphan(&budget, None).await;
        orphan(&budget, Some(machine.daemon(100))).await;
        let mut sent = budget.place().await.expect("place");
        sent.give_up();
        assert_eq!(budget.daemon_is_new(), 2);
        assert_eq!(budget.abandoned(), 1);
        assert_eq!(budget.daemon_is_new(), 0);
    }

    #[tokio::test]
    async fn orphans_do_not_keep_their_budget_alive() {
        let budget = Budget::new(2);
        orphan(&budget, None).await;
        assert_eq!(budget.abandoned(), 1);
        let shared = Arc::downgrade(&budget.0);
        drop(budget);
        assert!(shared.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_orphan_goes_every_ten_minutes_whatever_is_known() {
        let machine = Machine::new();
        let budget = machine.budget(2);
        orphan(&budget, None).await;
        orphan(&budget, Some(machine.daemon(100))).await;
        assert_eq!(budget.release_due(), 0);
        for left in [1, 0] {
            tokio::time::advance(ORPHAN_RELEASE).await;
            assert_eq!(budget.release_due(), 1);
            assert_eq!(budget.release_due(), 0);
            assert_eq!(budget.abandoned(), left);
        }
    }
}
