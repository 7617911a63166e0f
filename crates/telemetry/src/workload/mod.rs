//! Telemetry as real VMs give it, made up: for trying, for load and for measuring.
//!
//! A [`Workload`] is one hypervisor with its VMs. Each of its cycles appends the lines that `kvmetry run` would, by the
//! same encoder: `vm_metrics`, `vm_devices`, `vm_totals`, `vm_features`. What makes it real is in `vm`: VMs of several
//! roles with their days and weekends, idle ones, bursts, counters with noise in their low bits, guest memory that
//! changes when the balloon driver reports, restarts that begin counters anew under a new id, and now and then a NIC
//! that comes and goes.
//!
//! The same options give the same bytes, on every machine. (But for the last digit of `memory_angle_deg`, which is the
//! machine's arc tangent.)

mod random;
mod vm;

use std::time::Duration;

use crate::derive::Moment;
use crate::sample::Sample;
use crate::tracker::{HostTracker, TrackerOptions};
use random::Random;
use vm::{Host, Vm};

/// What is made up.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Another seed, another hypervisor.
    pub seed: u64,
    /// The tag `host`.
    pub host: String,
    /// How many VMs; at most [`MAX_VMS`].
    pub vms: u32,
    /// NICs of each VM; at most [`MAX_DEVICES`]. A hot-plugged one comes on top.
    pub nics: u32,
    /// Disks of each VM; at most [`MAX_DEVICES`].
    pub disks: u32,
    /// Between two cycles; at least 1 ms.
    pub interval: Duration,
    /// Between two reports of a guest on its memory, in whole seconds, at least one. With the interval's length every
    /// cycle has a line of `vm_features`.
    pub balloon_period: Duration,
    /// The time of the first cycle, ns since 1970.
    pub start_ns: i64,
    /// By how much a cycle may begin after its tick; its lines carry the moment it began. 0: the tick.
    pub jitter_ns: u64,
}

/// VMs of one hypervisor: more than any has.
pub const MAX_VMS: u32 = 100_000;
/// NICs and disks of a VM, each.
pub const MAX_DEVICES: u32 = 256;

impl Default for Options {
    /// 10 VMs of 2 NICs and 3 disks from the first of January 2026 on, every 5 s, on the tick: 80 lines a cycle.
    fn default() -> Self {
        Self {
            seed: 1,
            host: "kvm-01".to_owned(),
            vms: 10,
            nics: 2,
            disks: 3,
            interval: Duration::from_secs(5),
            balloon_period: Duration::from_secs(5),
            start_ns: 1_767_225_600_000_000_000,
            jitter_ns: 0,
        }
    }
}

/// A hypervisor whose VMs are made up.
#[derive(Debug)]
pub struct Workload {
    options: Options,
    random: Random,
    host: Host,
    vms: Vec<Vm>,
    tracker: HostTracker,
    sample: Sample,
    /// Time since the first cycle.
    elapsed: Duration,
}

impl Workload {
    /// At the first cycle. The VMs have been running for hours to weeks.
    pub fn new(options: Options) -> Self {
        let options = Options {
            vms: options.vms.min(MAX_VMS),
            nics: options.nics.min(MAX_DEVICES),
            disks: options.disks.min(MAX_DEVICES),
            interval: options.interval.max(Duration::from_millis(1)),
            balloon_period: Duration::from_secs(options.balloon_period.as_secs().max(1)),
            ..options
        };
        let mut random = Random::new(options.seed);
        let mut host = Host::default();
        let vms = (0..options.vms).map(|n| Vm::new(n, &options, &mut host, random.split())).collect();
        let tracker =
            HostTracker::new(TrackerOptions { host: options.host.clone(), ..TrackerOptions::default() });
        let mut workload =
            Self { random, host, vms, tracker, sample: Sample::default(), elapsed: Duration::ZERO, options };
        // The cycle before the first, so that the first has its line of features.
        let before = workload.options.start_ns.saturating_sub(nanos(workload.options.interval));
        workload.read(before, Duration::ZERO, &mut Vec::new());
        workload
    }

    /// The tick of the next cycle, ns since 1970.
    pub fn next_tick_ns(&self) -> i64 {
        self.options.start_ns.saturating_add(nanos(self.elapsed))
    }

    /// Appends the lines of a cycle. Tells how many.
    pub fn cycle(&mut self, out: &mut Vec<u8>) -> u32 {
        let jitter = self.random.below(self.options.jitter_ns);
        let at_ns = self.next_tick_ns().saturating_add_unsigned(jitter);
        self.elapsed = self.elapsed.saturating_add(self.options.interval);
        let taken = self.elapsed.saturating_add(Duration::from_nanos(jitter));
        self.read(at_ns, taken, out)
    }

    /// Lets every VM run up to a moment, and reads it.
    fn read(&mut self, at_ns: i64, taken: Duration, out: &mut Vec<u8>) -> u32 {
        let at = Moment { timestamp_ns: at_ns, taken, wall_secs: at_ns.div_euclid(NANOS) };
        let mut lines = 0;
        for vm in &mut self.vms {
            vm.run_until(at_ns, &self.options, &mut self.host);
            if vm.read(&mut self.sample, &self.options) {
                lines += self.tracker.encode(&mut self.sample, &at, out).lines;
            }
        }
        self.tracker.end_cycle();
        lines
    }
}

const NANOS: i64 = 1_000_000_000;

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
