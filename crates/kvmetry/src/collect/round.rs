//! One reading of every VM over an open connection: who is asked what, and what is made up for afterwards.
//!
//! ```text
//!  bulk      shards of those asked (bulk) ─┐
//!            those set aside, domain info ─┴▶ busy ones once more ▸ unanswered ones without their monitor ─┐
//!               (lane)                                                                                      ├▶ judge
//!  older     XML where it is not known ───────────────────────────────────▶ call by call (older) ──────────┘
//! ```

use libvirt_rpc::{Budget, Connection, Error};
use telemetry::{CpuSource, Driver, Groups, HostTracker, SampleReader};
use tokio::time::Instant;

use super::failures::Failures;
use super::lane::{self, Lane};
use super::session::Session;
use super::vm::Vm;
use super::{Settings, bulk, older};

/// What one cycle asks, and how.
pub(super) struct Round<'a> {
    connection: &'a Connection,
    budget: &'a Budget,
    tracker: &'a HostTracker,
    settings: &'a Settings,
    /// The shards; without groups all is read by the older calls.
    plan: bulk::Plan<'a>,
    /// The part of it that no monitor or job can hold up.
    job_free: bulk::Plan<'a>,
    /// What the older calls must give of every VM.
    older: Groups,
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
}

impl<'a> Round<'a> {
    /// A round that began at `begun`.
    pub(super) fn new(
        session: &'a Session,
        settings: &'a Settings,
        budget: &'a Budget,
        tracker: &'a HostTracker,
        reader: &'a SampleReader,
        begun: Instant,
    ) -> Self {
        let (deadline, end) = (settings.deadline, settings.cycle_end());
        let plan = bulk::Plan {
            groups: session.bulk_groups(),
            flags: session.flags,
            driver: session.driver,
            reader,
            wanted: Groups::ALL,
            deadlines: [begun + deadline, begun + (deadline + end) / 2, begun + end],
        };
        // Whatever the driver: a job-free record says nothing of what is never given.
        let groups = plan.groups.and(libvirt_rpc::Groups::JOB_FREE);
        let job_free = bulk::Plan { groups, driver: Driver::Qemu, ..plan };
        let older = session.older_groups();
        Self { connection: &session.connection, budget, tracker, settings, plan, job_free, older }
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
            let busy =
                if self.by_older_calls() { vm.is_held() } else { vm.taken.is_none() || vm.sample.busy };
            vm.judge(busy);
            tally.someone_is_gone |= vm.taken.is_none() && vm.asked && !vm.unanswered;
        }
        Ok(())
    }

    fn by_older_calls(&self) -> bool {
        self.plan.groups.is_empty()
    }

    /// The older calls take the names of the devices from the XML.
    async fn list_devices(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let exhausted = self.budget.is_exhausted();
        vms.iter_mut().for_each(|vm| vm.asked = !exhausted);
        let end = self.plan.deadlines[2];
        let ttl = self.settings.device_cache_ttl;
        tally.cache_misses +=
            older::list_devices(self.connection, vms, usize::MAX, ttl, end, &mut tally.failures).await?;
        Ok(())
    }

    async fn read_in_bulk(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let now = Instant::now();
        let exhausted = self.budget.is_exhausted();
        let mut lane = Lane::default();
        let mut asked = Vec::new();
        let mut aside = Vec::new();
        for (at, vm) in vms.iter_mut().enumerate() {
            let set_aside = vm.is_set_aside() || exhausted;
            if set_aside || vm.wants_vcpus(now) || self.by_info(vm) {
                lane.info.push((at, vm.domain.clone()));
            }
            vm.asked = !set_aside;
            if set_aside { aside.push(vm) } else { asked.push(vm) }
        }
        // Side by side: the shards, which wait for monitors, and what needs none, one call at a time.
        let (outcome, laned) = tokio::join!(
            bulk::read(self.connection, &mut asked, &self.plan),
            lane.run(self.connection, &mut aside, &self.job_free)
        );
        drop((asked, aside));
        lane.hand_out(vms, &|vm| self.by_info(vm), tally)?;
        tally.failed_calls += outcome.failures;
        tally.bulk_error = outcome.error.or(tally.bulk_error.take());
        laned?;
        if let Some(error) = outcome.lost {
            return Err(error);
        }
        tally.failed_calls += bulk::ask_again(self.connection, vms, &self.plan).await?;
        lane::fall_back(self.connection, vms, &self.job_free, &mut tally.failures).await
    }

    /// Reads by the older calls what the bulk records do not have.
    async fn fill_in(&self, vms: &mut [Vm], tally: &mut Tally) -> Result<(), Error> {
        let exhausted = self.budget.is_exhausted();
        let needs = |vm: &Vm| {
            let cpu = if self.by_info(vm) || vm.lacks_cpu() { Groups::CPU } else { Groups::NONE };
            let groups = self.older.with(cpu);
            if exhausted { older::job_free_part(groups) } else { groups }
        };
        older::read_all(self.connection, vms, needs, self.plan.deadlines[2], &mut tally.failures).await
    }

    /// Its CPU time comes from domain info, for its life.
    fn by_info(&self, vm: &Vm) -> bool {
        self.tracker.cpu_source(&telemetry::Uuid(vm.domain.uuid)) == Some(CpuSource::Info)
    }
}
