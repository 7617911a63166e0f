//! How each hypervisor of this process fares now, for whoever shows it. One status a hypervisor: as many as are configured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libvirt_rpc::Version;

/// What is known of one hypervisor.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Status {
    /// Its name: the configured one, else the daemon's; its URI as long as that is not known.
    pub(crate) name: String,
    /// The tag `host` of its lines, empty where they have none; `None`: it has never been read, so there is no line.
    pub(crate) tag: Option<String>,
    /// As configured, without what may be secret.
    pub(crate) uri: String,
    pub(crate) interval: Duration,
    pub(crate) max_abandoned: usize,
    /// The period of balloons that have none is set.
    pub(crate) sets_balloons: bool,
    /// Since when there is a connection, nanoseconds since 1970.
    pub(crate) connected_ns: Option<i64>,
    /// libvirt's version there, when it was connected last.
    pub(crate) libvirt: Option<Version>,
    /// Why it was not read in its last cycle.
    pub(crate) problem: Option<String>,
    /// The wall time of its last cycle, if something was read in it.
    pub(crate) cycle: Option<Duration>,
    /// Live VMs, as they were listed last.
    pub(crate) vms: usize,
    pub(crate) stuck: usize,
    /// Calls given up that its daemon still holds.
    pub(crate) abandoned: usize,
    /// Readings that failed since the start.
    pub(crate) failures: u64,
    /// Part of the look-ups of devices that needed no XML; `None` before the first.
    pub(crate) hit_rate: Option<f64>,
}

/// Those of all hypervisors, by their place in the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statuses(Arc<Mutex<BTreeMap<usize, Status>>>);

impl Statuses {
    /// Puts one in place of the one before.
    pub(crate) fn publish(&self, place: usize, status: Status) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, status);
    }

    /// All, in the order of the configuration.
    pub(crate) fn now(&self) -> Vec<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
