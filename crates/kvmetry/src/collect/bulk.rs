//! Bulk statistics in shards (DESIGN.md, decision 3).
//!
//! The daemon answers one bulk call domain by domain, mostly waiting on monitors. A few concurrent calls over
//! disjoint lists are faster, and keep trouble apart:
//!
//! ```text
//!  0 %              40 %             60 %        80 % of the interval
//!  ├─ shard 1 ──▶ answered
//!  ├─ shard 2 ───────┤ given up: a QEMU in it is stuck. The call stays with the daemon as a sentinel, and
//!  │                 │ holds that VM's job
//!  │                 ├─ shard 2 again ─▶ answers at once, without the stuck VM's monitor keys
//!  │                 │                   (or meets a second stuck VM, and then once more)
//! ```
//!
//! Always NOWAIT: a VM whose job is held is skipped, not waited for.

use std::time::Duration;

use futures_util::future::join_all;
use libvirt_rpc::{
    Connection, Domain, DomainRef, Error, Groups, MONITOR_CALLS, StatsFlags, StatsVisitor, Value,
};
use telemetry::{Driver, SampleReader};
use tokio::time::Instant;

use super::vm::Vm;

/// VMs in a shard, at least: smaller ones cost more in calls than they win in time.
const SMALLEST_SHARD: usize = 10;

/// A VM that is busy only because somebody else's call holds its job is asked once more after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What to ask for, and how long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) groups: Groups,
    pub(crate) flags: StatsFlags,
    pub(crate) driver: Driver,
    pub(crate) reader: &'a SampleReader,
    /// What a whole reading holds.
    pub(crate) wanted: telemetry::Groups,
    /// When the first try, the second and the third are given up.
    pub(crate) deadlines: [Instant; 3],
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
}

impl Outcome {
    fn merge(mut self, other: Self) -> Self {
        self.failures += other.failures;
        self.lost = self.lost.or(other.lost);
        self.error = self.error.or(other.error);
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

/// Reads all of `vms`, up to [`MONITOR_CALLS`] shards at a time. Those with an answer have `taken` set.
pub(crate) async fn read(connection: &Connection, vms: &mut [&mut Vm], plan: &Plan<'_>) -> Outcome {
    let shards = vms.len().div_ceil(SMALLEST_SHARD).clamp(1, MONITOR_CALLS);
    let shards = vms.chunks_mut(vms.len().div_ceil(shards).max(1));
    let outcomes = join_all(shards.map(|vms| read_shard(connection, vms, plan))).await;
    outcomes.into_iter().fold(Outcome::default(), Outcome::merge)
}

async fn read_shard(connection: &Connection, vms: &mut [&mut Vm], plan: &Plan<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    for deadline in plan.deadlines {
        match ask(connection, vms, plan, deadline).await {
            Ok(()) => return outcome,
            Err(Error::Deadline { late, .. }) => {
                outcome.failures += 1;
                vms.iter_mut().for_each(|vm| vm.held(&late));
            }
            // One domain can make the daemon refuse the whole call: then each is asked by itself.
            Err(error @ Error::Remote { .. }) if vms.len() > 1 => {
                outcome.failed(error);
                for vm in vms.iter_mut() {
                    if let Err(error) = ask(connection, std::slice::from_mut(vm), plan, deadline).await {
                        note_late(vm, &error);
                        vm.unanswered = true;
                        outcome.failed(error);
                    }
                }
                return outcome;
            }
            Err(error) => {
                outcome.failed(error);
                break;
            }
        }
    }
    vms.iter_mut().for_each(|vm| vm.unanswered = true);
    outcome
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
    for vm in vms.iter_mut().filter(|vm| vm.taken.is_some()) {
        position += 1;
        vm.taken = Some(sent + took * position / seen.max(1));
    }
    Ok(())
}

/// Asks once more for the VMs that were busy though no call of ours holds them: another client had their job for
/// the moment.
pub(crate) async fn ask_again(
    connection: &Connection,
    vms: &mut [Vm],
    plan: &Plan<'_>,
) -> Result<u64, Error> {
    let mut busy: Vec<&mut Vm> = vms
        .iter_mut()
        .filter(|vm| vm.taken.is_some() && vm.sample.busy)
        .filter_map(|vm| (!vm.is_held()).then_some(vm))
        .collect();
    let end = plan.deadlines[2];
    if busy.is_empty() || Instant::now() + ASK_AGAIN_AFTER >= end {
        return Ok(0);
    }
    tokio::time::sleep(ASK_AGAIN_AFTER).await;
    match ask(connection, &mut busy, plan, end).await {
        Ok(()) => Ok(0),
        Err(error) if error.is_connection_lost() => Err(error),
        Err(error) => {
            for vm in busy {
                note_late(vm, &error);
            }
            Ok(1)
        }
    }
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
            // A domain that restarted between the list and the reading has a new id, and is another life.
            vm.domain.id = domain.id;
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
    if let Error::Deadline { late, .. } = error {
        vm.held(late);
    }
}
