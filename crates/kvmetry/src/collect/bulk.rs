//! Bulk statistics in shards (DESIGN.md, decision 3; docs/decisions/0003-shards.md).
//!
//! The daemon answers one bulk call domain by domain, mostly waiting on monitors. A few concurrent calls over
//! disjoint lists are faster, and keep trouble apart. The lists wait in a queue, so that a call takes a fraction of a
//! second however many VMs there are, and its deadline tells a VM that hangs from a daemon that is slow:
//!
//! ```text
//!  0 %              40 %             60 %        80 % of the interval
//!  ├─ shard 1 ──▶ shard 5 ──▶ …
//!  ├─ shard 2 ───────┤ given up: a QEMU in it is stuck. The call stays with the daemon as a sentinel, and
//!  │                 │ holds that VM's job
//!  │                 ├─ shard 2 again ─▶ answers at once, without the stuck VM's monitor keys
//!  │                 │                   (or meets a second stuck VM, or one that is being destroyed, which answers
//!  │                 │                   nothing at all; then all are asked one by one)
//! ```
//!
//! VMs that were not answered for, and those that are stuck, are asked in calls of their own, once a cycle: whatever
//! holds them up holds up nobody else.
//!
//! Always NOWAIT: a VM whose job is held is skipped, not waited for.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use libvirt_rpc::{
    Connection, Domain, DomainRef, Error, Groups, Late, MONITOR_CALLS, StatsFlags, StatsVisitor, Value,
};
use telemetry::{Driver, SampleReader};
use tokio::time::Instant;

use super::vm::{Asked, Vm};

/// VMs in a shard, at least: smaller ones cost more in calls than they win in time.
const SMALLEST_SHARD: usize = 10;
/// VMs in a shard, at most: a third of a second of a slow daemon's time.
const LARGEST_SHARD: usize = 32;

/// VMs that are busy, most likely because somebody else's call holds their job, are asked again after these pauses:
/// another collector's call takes up to a second.
const ASK_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// What to ask for, and how long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) groups: Groups,
    pub(crate) flags: StatsFlags,
    pub(crate) driver: Driver,
    pub(crate) reader: &'a SampleReader,
    /// What a whole reading holds.
    pub(crate) wanted: telemetry::Groups,
    /// How long the first try of a shard is waited for.
    pub(crate) patience: Duration,
    /// When no shard is waited for any more: 80 % of the interval.
    pub(crate) end: Instant,
}

impl Plan<'_> {
    /// When the first try of a shard that begins now is given up.
    fn first_deadline(&self) -> Instant {
        (Instant::now() + self.patience).min(self.end)
    }
}

/// What became of the shards.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Calls that failed or were given up.
    pub(crate) failures: u64,
    /// The connection is of no use any more.
    pub(crate) lost: Option<Error>,
    /// The last error that concerned one call only.
    pub(crate) error: Option<Error>,
    /// A call that was given up, if it was one call.
    pub(crate) late: Option<Late>,
}

impl Outcome {
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.failures += other.failures;
        self.lost = self.lost.or(other.lost);
        self.error = self.error.or(other.error);
        self.late = None;
        self
    }

    fn failed(&mut self, error: Error) {
        self.failures += 1;
        if error.is_connection_lost() {
            self.lost = Some(error);
        } else {
            self.error = Some(error);
        }
    }
}

/// Reads all of `vms` and then the `doubtful` ones, in order, up to [`MONITOR_CALLS`] shards at a time. Those with an
/// answer have `taken` set. A shard of doubtful VMs has one try.
pub(crate) async fn read<'v>(
    connection: &Connection,
    vms: &mut [&'v mut Vm],
    doubtful: &mut [&'v mut Vm],
    plan: &Plan<'_>,
) -> Outcome {
    let (size, size_of_doubtful) = (shard_size(vms.len()), shard_size(doubtful.len()));
    let usual = vms.chunks_mut(size).map(|shard| (shard, false));
    let shards = Mutex::new(usual.chain(doubtful.chunks_mut(size_of_doubtful).map(|shard| (shard, true))));
    let next = || shards.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = async || {
        let mut outcome = Outcome::default();
        while let Some((vms, is_doubtful)) = next() {
            // What is begun too late would be given up at once, and hold a worker of the daemon's for nothing.
            let of_shard = if outcome.lost.is_some() || Instant::now() + plan.patience / 4 > plan.end {
                vms.iter_mut().for_each(|vm| vm.asked = Asked::NotReached);
                Outcome::default()
            } else if is_doubtful {
                ask_once(connection, vms, plan, plan.first_deadline()).await
            } else {
                read_shard(connection, vms, plan).await
            };
            outcome = outcome.merge(of_shard);
        }
        outcome
    };
    let outcomes = join_all((0..MONITOR_CALLS).map(|_| worker())).await;
    outcomes.into_iter().fold(Outcome::default(), Outcome::merge)
}

/// VMs in a shard: as few shards as there can be calls at once, but none too small or too large.
fn shard_size(vms: usize) -> usize {
    let at_once = vms.div_ceil(SMALLEST_SHARD).min(MONITOR_CALLS);
    let shards = vms.div_ceil(LARGEST_SHARD).max(at_once).max(1);
    vms.div_ceil(shards).max(1)
}

async fn read_shard(connection: &Connection, vms: &mut [&mut Vm], plan: &Plan<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let first = plan.first_deadline();
    let mut given_up = Vec::new();
    for deadline in [first, first + (plan.end - first) / 2] {
        match ask(connection, vms, plan, deadline).await {
            Ok(()) => {
                blame(vms, &given_up);
                return outcome;
            }
            Err(error) => {
                let late = late(&error).cloned();
                outcome.failed(error);
                let Some(late) = late else { break };
                given_up.push(late);
            }
        }
    }
    if outcome.lost.is_some() {
        return outcome;
    }
    // One of them makes the daemon refuse the call for all, or holds it up although it is to be skipped: it is being
    // destroyed. Asked one by one, as places are free, the others answer.
    let one_by_one = vms.iter_mut().map(|vm| ask_once(connection, std::slice::from_mut(vm), plan, plan.end));
    join_all(one_by_one).await.into_iter().fold(outcome, Outcome::merge)
}

/// Asks for `vms` with one try, in one call. The unanswered are told by [`Asked::Unanswered`].
pub(crate) async fn ask_once(
    connection: &Connection,
    vms: &mut [&mut Vm],
    plan: &Plan<'_>,
    deadline: Instant,
) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err(error) = ask(connection, vms, plan, deadline).await {
        vms.iter_mut().for_each(|vm| vm.asked = Asked::Unanswered);
        outcome.late = late(&error).cloned();
        outcome.failed(error);
    }
    outcome
}

/// Puts the given-up calls over a shard down to the VMs that hold them up: those that are busy now.
fn blame(vms: &mut [&mut Vm], given_up: &[Late]) {
    let busy = |vm: &&mut &mut Vm| vm.taken.is_some() && vm.sample.busy;
    let unanswered = given_up.iter().filter(|late| !late.is_over()).count();
    if is_clear(vms.iter_mut().filter(busy).count(), unanswered) {
        for vm in vms.iter_mut().filter(busy) {
            given_up.iter().for_each(|late| vm.held(late));
        }
    }
}

/// Whether it is clear that the busy VMs of a shard are those that hold up its unanswered calls: each call is held up by
/// one. Where more are busy, another client has the job of some, and which is not known: then all are asked on, which
/// costs nothing as long as a job is held.
fn is_clear(busy: usize, unanswered: usize) -> bool {
    busy <= unanswered
}

/// Asks once for all of `vms`. Job-free if the plan's groups are.
pub(crate) async fn ask(
    connection: &Connection,
    vms: &mut [&mut Vm],
    plan: &Plan<'_>,
    deadline: Instant,
) -> Result<(), Error> {
    if vms.is_empty() || plan.groups.is_empty() {
        return Ok(());
    }
    let domains: Vec<Domain> = vms.iter().map(|vm| vm.domain.clone()).collect();
    let sent = Instant::now();
    let mut records = Records { vms, plan, at: 0, current: None, seen: 0 };
    connection.stats(&domains, plan.groups, plan.flags, deadline, &mut records).await?;
    let seen = records.seen;
    // The daemon reads domain after domain: each was read at about its share of the call's time.
    let took = sent.elapsed();
    let mut position = 0_u32;
    let is_whole = !Groups::JOB_FREE.contains(plan.groups);
    for vm in vms.iter_mut() {
        if is_whole {
            vm.asked = Asked::Answered;
        }
        if vm.taken.is_some() {
            position += 1;
            vm.taken = Some(sent + took * position / seen.max(1));
        }
    }
    Ok(())
}

/// Asks again for the VMs that were busy: another client had their job for the moment, or a given-up call of ours that
/// was just going on through its list. Those that a call of ours still holds after the first pause are let be. Returns
/// how many calls failed.
pub(crate) async fn ask_again(
    connection: &Connection,
    vms: &mut [Vm],
    plan: &Plan<'_>,
) -> Result<u64, Error> {
    for (nth, pause) in ASK_AGAIN_AFTER.into_iter().enumerate() {
        // One that is stuck is asked in every cycle anyway, and its holder hardly ends within this one.
        let is_busy =
            |vm: &Vm| vm.asked == Asked::Answered && vm.sample.busy && vm.taken.is_some() && !vm.is_stuck();
        let busy = vms.iter_mut().filter(|vm| is_busy(vm));
        let mut busy: Vec<&mut Vm> =
            busy.filter_map(|vm| (nth == 0 || !vm.is_held()).then_some(vm)).collect();
        if busy.is_empty() || Instant::now() + pause >= plan.end {
            return Ok(0);
        }
        tokio::time::sleep(pause).await;
        match ask(connection, &mut busy, plan, plan.end).await {
            Ok(()) => {}
            Err(error) if error.is_connection_lost() => return Err(error),
            Err(error) => {
                for vm in busy {
                    note_late(vm, &error);
                }
                return Ok(1);
            }
        }
    }
    Ok(0)
}

/// Sorts the records of a reply to their VMs. The reply keeps the order of the list, without those that are gone.
struct Records<'a, 'b> {
    vms: &'a mut [&'b mut Vm],
    plan: &'a Plan<'a>,
    /// Where the next record's VM is looked for first.
    at: usize,
    current: Option<usize>,
    seen: u32,
}

impl StatsVisitor for Records<'_, '_> {
    fn begin(&mut self, domain: DomainRef<'_>) {
        let is_it = |vm: &&mut Vm| vm.domain.uuid == domain.uuid;
        let later = self.vms[self.at..].iter().position(is_it).map(|ahead| self.at + ahead);
        self.current = later.or_else(|| self.vms.iter().position(is_it));
        if let Some(at) = self.current {
            self.at = at + 1;
            self.seen += 1;
            let vm = &mut self.vms[at];
            // Restarted between the list and the reading.
            if vm.domain.id != domain.id {
                vm.restarted(domain.id);
            }
            vm.begin(self.plan.wanted);
            vm.taken = Some(Instant::now());
        }
    }

    #[inline]
    fn param(&mut self, key: &str, value: Value<'_>) {
        if let Some(at) = self.current {
            self.plan.reader.param(&mut self.vms[at].sample, key, bridge(value));
        }
    }

    fn end(&mut self) {
        if let Some(at) = self.current.take() {
            self.plan.reader.finish(&mut self.vms[at].sample, self.plan.driver);
        }
    }
}

/// The two crates know nothing of each other; here their words for the same thing meet.
#[inline]
pub(crate) fn bridge(value: Value<'_>) -> telemetry::Value<'_> {
    match value {
        Value::Int(v) => telemetry::Value::Int(v),
        Value::UInt(v) => telemetry::Value::UInt(v),
        Value::Double(v) => telemetry::Value::Double(v),
        Value::Bool(v) => telemetry::Value::Bool(v),
        Value::Str(v) => telemetry::Value::Str(v),
    }
}

/// Notes a call over this VM, if it was one that was given up.
pub(crate) fn note_late(vm: &mut Vm, error: &Error) {
    if let Some(late) = late(error) {
        vm.held(late);
    }
}

/// The call that was given up, if that is what happened.
fn late(error: &Error) -> Option<&Late> {
    match error {
        Error::Deadline { late, .. } => Some(late),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_few_and_neither_small_nor_large() {
        for (vms, size) in
            [(0, 1), (1, 1), (10, 10), (11, 6), (40, 10), (100, 25), (128, 32), (129, 26), (1000, 32)]
        {
            assert_eq!(shard_size(vms), size, "{vms} VMs");
        }
    }

    #[test]
    fn a_call_is_held_up_by_one_vm() {
        for (busy, unanswered, clear) in
            [(1, 1, true), (2, 2, true), (1, 2, true), (2, 1, false), (1, 0, false)]
        {
            assert_eq!(is_clear(busy, unanswered), clear, "{busy} busy, {unanswered} calls unanswered");
        }
    }
}
