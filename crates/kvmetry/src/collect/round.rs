//! One reading of every VM over an open connection: who is asked what, and what is made up for afterwards.
//!
//! ```text
//!  bulk      shards (bulk) ────────────┐
//!            unanswered, stuck: apart ─┼▶ busy ones again ▸ unanswered ones without their monitor ─┐
//!            domain info (lane) ───────┘                                                           ├▶ judge
//!  older     XML where it is not known ────────────────────▶ call by call (older) ─────────────────┘
//! ```

use std::sync::Arc;

use libvirt_rpc::{Budget, Connection, Error, Late};
use telemetry::{CpuSource, Driver, Groups, HostTracker, SampleReader};
use tokio::time::Instant;

use super::failures::Failures;
use super::lane::Lane;
use super::session::Session;
use super::vm::{Asked, Turn, Vm};
use super::{Settings, bulk, older};

/// What a round is made with.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) session: &'a Session,
    pub(super) settings: &'a Settings,
    pub(super) budget: &'a Budget,
    pub(super) tracker: &'a HostTracker,
    pub(super) reader: &'a SampleReader,
    /// An earlier cycle's call over the VMs that are stuck, if it was given up.
    pub(super) aside_call: Option<&'a Late>,
}

/// What one cycle asks, and how.
pub(super) struct Round<'a> {
    connection: &'a Connection,
    around: Around<'a>,
    /// The shards; without groups all is read by the older calls.
    plan: bulk::Plan<'a>,
    /// The part of it that no monitor or job can hold up.
    job_free: bulk::Plan<'a>,
    /// What the older calls must give of every VM.
    older: Groups,
    /// VMs that are asked apart are not waited for longer than a shard's first try: one that is being destroyed answers
    /// nothing at all.
    aside_until: Instant,
    /// Where the reading begins: with the VMs that the last cycle did not reach.
    from: usize,
}

/// What a round came to, beside the samples.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Bulk calls that failed or were given up, and the last error of one.
    pub(super) failed_calls: u64,
    pub(super) bulk_error: Option<Error>,
    /// Single readings that failed.
    pub(super) failures: Failures,
    /// Look-ups of a VM's devices that needed no XML, and those that did.
    pub(super) cache_hits: u64,
    pub(super) cache_misses: u64,
    /// A VM that was listed has ended.
    pub(super) someone_is_gone: bool,
    /// VMs whose turn did not come before the cycle's end, and how many had theirs.
    pub(super) not_reached: usize,
    pub(super) reached: usize,
    /// The daemon did not answer even what needs no monitor.
    pub(super) is_silent: bool,
    /// The call over the VMs that are stuck, if it was given up.
    pub(super) aside_call: Option<Late>,
    /// VMs whose health has changed.
    pub(super) turns: Vec<(Arc<str>, Turn)>,
}

/// The VMs of a cycle by how they are asked.
#[derive(Default)]
struct Ways<'v> {
    /// In shards.
    usual: Vec<&'v mut Vm>,
    /// In shards of their own, since their last one was not answered: one of them may be to blame.
    doubtful: Vec<&'v mut Vm>,
    /// In one call of their own.
    stuck: Vec<&'v mut Vm>,
    /// Only for what needs no monitor.
    job_free: Vec<&'v mut Vm>,
}

impl<'a> Round<'a> {
    /// A round that began at `begun`, with the VM at position `from`.
    pub(super) fn new(around: Around<'a>, begun: Instant, from: usize) -> Self {
        let Around { session, settings, reader, .. } = around;
        let plan = bulk::Plan {
            groups: session.bulk_groups(),
            flags: session.flags,
            driver: session.driver,
            reader,
            wanted: Groups::ALL,
            patience: settings.deadline,
            end: begun + settings.cycle_end(),
        };
        // Whatever the driver: a job-free record says nothing of what is never given.
        let groups = plan.groups.and(libvirt_rpc::Groups::JOB_FREE);
        let end = begun + settings.cycle_last();
        let job_free = bulk::Plan { groups, driver: Driver::Qemu, end, ..plan };
        let older = session.older_groups();
        let aside_until = begun + settings.deadline;
        Self { connection: &session.connection, around, plan, job_free, older, aside_until, from }
    }

    /// Reads all of `vms`; those that were read have `taken` set.
    ///
    /// # Errors
    /// The connection was lost. What was read before is in the samples and in `tally`.
    pub(super) async fn read(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let now = Instant::now();
        for vm in vms.iter_mut() {
            vm.begin(self.plan.wanted);
            tally.cache_hits += u64::from(vm.fresh_facts(now).is_some());
        }
        if self.by_older_calls() {
            self.list_devices(vms, tally).await?;
        } else {
            self.read_in_bulk(vms, tally).await?;
        }
        self.fill_in(vms, tally).await?;
        for vm in vms {
            // With the older calls there is no record to be busy: a given-up call says the same.
            let busy = if self.by_older_calls() { vm.is_held() } else { vm.lacks_monitor() };
            tally.turns.extend(vm.judge(busy).map(|turn| (Arc::clone(&vm.domain.name), turn)));
            tally.someone_is_gone |= vm.is_gone();
        }
        Ok(())
    }

    fn by_older_calls(&self) -> bool {
        self.plan.groups.is_empty()
    }

    /// The older calls take the names of the devices from the XML.
    async fn list_devices(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let asked = if self.around.budget.is_exhausted() { Asked::No } else { Asked::Answered };
        vms.iter_mut().for_each(|vm| vm.asked = asked);
        let ttl = self.around.settings.device_cache_ttl;
        let end = self.plan.end;
        tally.cache_misses +=
            older::list_devices(self.connection, vms, usize::MAX, ttl, end, &mut tally.failures).await?;
        Ok(())
    }

    async fn read_in_bulk(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let mut lane = Lane::default();
        let mut ways = self.sort(vms, &mut lane);
        let failures = &mut tally.failures;
        let (connection, plan, until) = (self.connection, &self.plan, self.aside_until);
        // Side by side: what waits for monitors, and what needs none, one call at a time.
        let (outcome, of_stuck, laned) = tokio::join!(
            bulk::read(connection, &mut ways.usual, &mut ways.doubtful, plan),
            bulk::ask_once(connection, &mut ways.stuck, plan, until),
            async {
                lane.ask(connection, &mut ways.job_free, &self.job_free, until, failures).await?;
                lane.run(connection, self.job_free.end).await
            }
        );
        tally.reached = ways.usual.iter().filter(|vm| vm.asked != Asked::NotReached).count();
        tally.not_reached = ways.usual.len() - tally.reached;
        tally.aside_call = of_stuck.late.clone();
        let outcome = outcome.merge(of_stuck);
        tally.failed_calls += outcome.failures;
        tally.bulk_error = outcome.error;
        if let Some(error) = laned.err().or(outcome.lost) {
            return Err(error);
        }
        tally.failed_calls += bulk::ask_again(connection, vms, plan).await?;
        self.fall_back(vms, &mut lane, tally).await?;
        tally.is_silent = lane.is_blocked();
        lane.hand_out(vms, &|vm| self.by_info(vm), tally)
    }

    /// Sorts the VMs by how they are asked, and puts those into the lane whose domain info is wanted.
    fn sort<'v>(&self, vms: &'v mut [Vm], lane: &mut Lane) -> Ways<'v> {
        let now = Instant::now();
        let exhausted = self.around.budget.is_exhausted();
        // While one call over the stuck ones is unanswered there is no other.
        let stuck_are_asked = self.around.aside_call.is_none_or(Late::is_over);
        let mut ways = Ways::default();
        let mut first = None;
        for (at, vm) in vms.iter_mut().enumerate() {
            let was = std::mem::replace(&mut vm.asked, Asked::NotReached);
            if exhausted || vm.is_stuck() || vm.wants_vcpus(now) || self.by_info(vm) {
                lane.want(at, &vm.domain);
            }
            if exhausted || vm.is_stuck() && !stuck_are_asked {
                vm.asked = Asked::No;
                ways.job_free.push(vm);
            } else if vm.is_stuck() {
                ways.stuck.push(vm);
            } else if was == Asked::Unanswered {
                ways.doubtful.push(vm);
            } else {
                if at >= self.from {
                    first.get_or_insert(ways.usual.len());
                }
                ways.usual.push(vm);
            }
        }
        ways.usual.rotate_left(first.unwrap_or(0));
        ways
    }

    /// Reads what can be had without a monitor of the VMs that no shard answered for.
    async fn fall_back(&self, vms: &mut [Vm], lane: &mut Lane, tally: &mut Tally) -> Result<(), Error> {
        let mut unread = Vec::new();
        for (at, vm) in vms.iter_mut().enumerate() {
            if matches!(vm.asked, Asked::Unanswered | Asked::NotReached) {
                lane.want_too(at, &vm.domain);
                unread.push(vm);
            }
        }
        let end = self.job_free.end;
        lane.ask(self.connection, &mut unread, &self.job_free, end, &mut tally.failures).await?;
        lane.run(self.connection, end).await
    }

    /// Reads by the older calls what the bulk records do not have.
    async fn fill_in(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let exhausted = self.around.budget.is_exhausted();
        let needs = |vm: &Vm| {
            let cpu = if self.by_info(vm) || vm.lacks_cpu() { Groups::CPU } else { Groups::NONE };
            let groups = self.older.with(cpu);
            if exhausted { older::job_free_part(groups) } else { groups }
        };
        let (end, failures) = (self.plan.end, &mut tally.failures);
        let not_reached = older::read_all(self.connection, vms, self.from, needs, end, failures).await?;
        if self.by_older_calls() {
            tally.not_reached = not_reached;
            tally.reached = vms.len() - not_reached;
        }
        Ok(())
    }

    /// Its CPU time comes from domain info, for its life.
    fn by_info(&self, vm: &Vm) -> bool {
        self.around.tracker.cpu_source(&telemetry::Uuid(vm.domain.uuid)) == Some(CpuSource::Info)
    }
}
