//! One connection's life: opened, registered for events, and asked once what its daemon can do.

use std::time::Duration;

use libvirt_rpc::{
    Access, Budget, Connection, Domain, Error, ErrorCode, EventKind, Groups, Options, StatsFlags, Uri,
    Version,
};
use telemetry::Driver;

/// What a cycle takes from the bulk record. Not among them is `vcpu`: up to 48 keys a vCPU, through the monitor,
/// for one number that domain info has too.
pub(crate) const BULK_GROUPS: Groups =
    Groups(Groups::STATE.0 | Groups::CPU_TOTAL.0 | Groups::BALLOON.0 | Groups::INTERFACE.0 | Groups::BLOCK.0);

/// An open connection and what is known of its daemon.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// The host name that the daemon tells.
    pub(crate) hostname: String,
    pub(crate) version: Version,
    /// CPU time of the host since it was started, idle time too, ns; `None` where the driver cannot tell.
    pub(crate) host_cpu_ns: Option<u64>,
    pub(crate) driver: Driver,
    /// Groups that come with the bulk record; empty where there is no bulk record at all. `None` until a domain
    /// was there to ask for.
    pub(crate) bulk: Option<Groups>,
    /// NOWAIT, where the daemon knows it.
    pub(crate) flags: StatsFlags,
    /// Kinds of event that the daemon does not offer.
    pub(crate) events_refused: Vec<EventKind>,
}

impl Session {
    /// Connects and registers for events; the domains are listed only after that, so that none is missed.
    pub(crate) async fn open(
        uri: &Uri,
        budget: &Budget,
        access: Access,
        connect_deadline: Duration,
        call_deadline: Duration,
    ) -> Result<Self, Error> {
        let options = Options { access, connect_deadline, call_deadline, budget: budget.clone() };
        let connection = Connection::open(uri, options).await?;
        let mut events_refused = Vec::new();
        for kind in EventKind::ALL {
            match connection.register_event(kind).await {
                Ok(()) => {}
                Err(Error::Remote { .. }) => events_refused.push(kind),
                Err(error) => return Err(error),
            }
        }
        let hostname = connection.hostname().await?;
        let version = connection.libvirt_version().await?;
        let driver = if connection.driver_type().await? == "QEMU" { Driver::Qemu } else { Driver::Other };
        let flags = StatsFlags::NOWAIT;
        let host_cpu_ns = host_cpu_ns(&connection).await?;
        Ok(Self { connection, hostname, version, host_cpu_ns, driver, bulk: None, flags, events_refused })
    }

    /// Learns, once, which groups the bulk record has, by asking for one domain without reaching its monitor.
    /// Flags that the daemon does not know are left out from then on.
    pub(crate) async fn probe(&mut self, domain: &Domain) -> Result<(), Error> {
        if self.bulk.is_some() {
            return Ok(());
        }
        loop {
            match self.connection.unsupported_groups(domain, BULK_GROUPS, self.flags).await {
                Ok(Some(unsupported)) => self.bulk = Some(BULK_GROUPS.without(unsupported)),
                // Not refused: the domain has just ended. The next one will tell.
                Ok(None) => {}
                Err(Error::Remote { code: ErrorCode::INVALID_ARG, message, .. })
                    if self.flags.contains(StatsFlags::NOWAIT) =>
                {
                    tracing::warn!(
                        peer = self.connection.peer(),
                        message,
                        "this libvirt is older than 4.5: without NOWAIT a busy VM can delay the others"
                    );
                    self.flags = self.flags.without(StatsFlags::NOWAIT);
                    continue;
                }
                // No such call, or not with this driver: the older calls for good.
                Err(Error::Remote { .. }) => self.bulk = Some(Groups::default()),
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    /// Reads the host's CPU time anew.
    pub(crate) async fn note_host_cpu(&mut self) -> Result<(), Error> {
        self.host_cpu_ns = host_cpu_ns(&self.connection).await?;
        Ok(())
    }

    /// A busy VM is skipped, not waited for.
    pub(crate) fn waits_never(&self) -> bool {
        self.flags.contains(StatsFlags::NOWAIT)
    }

    /// The groups to ask for in bulk. `state` alone is not worth a call: domain info is needed anyway then.
    pub(crate) fn bulk_groups(&self) -> Groups {
        match self.bulk {
            Some(groups) if Groups::STATE.contains(groups) => Groups::default(),
            Some(groups) => groups,
            None => BULK_GROUPS,
        }
    }

    /// What the older calls must give, because the bulk record does not.
    pub(crate) fn older_groups(&self) -> telemetry::Groups {
        let bulk = self.bulk_groups();
        [
            (Groups::STATE, telemetry::Groups::INFO),
            (Groups::CPU_TOTAL, telemetry::Groups::CPU),
            (Groups::BALLOON, telemetry::Groups::MEMORY.with(telemetry::Groups::INFO)),
            (Groups::INTERFACE, telemetry::Groups::NICS),
            (Groups::BLOCK, telemetry::Groups::DISKS),
        ]
        .into_iter()
        .filter(|(group, _)| !bulk.contains(*group))
        .fold(telemetry::Groups::NONE, |older, (_, group)| older.with(group))
    }
}

async fn host_cpu_ns(connection: &Connection) -> Result<Option<u64>, Error> {
    match connection.node_cpu_stats().await {
        Ok(stats) => Ok(Some(stats.iter().fold(0, |sum, (_, ns)| sum.saturating_add(*ns)))),
        Err(Error::Remote { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the host was started anew between two readings of its CPU time: that only grows while it is up.
pub(crate) fn was_rebooted(before: Option<u64>, now: Option<u64>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if now < before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_that_fell_tells_of_a_reboot() {
        for (before, now, expect) in [
            (None, Some(5), false),
            (Some(5), None, false),
            (Some(5), Some(5), false),
            (Some(5), Some(6), false),
            (Some(5), Some(4), true),
        ] {
            assert_eq!(was_rebooted(before, now), expect, "{before:?} {now:?}");
        }
    }
}
