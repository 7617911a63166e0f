//! What needs no monitor, one call at a time over the place kept for it: domain info and XML beside the shards,
//! and whatever can be had of VMs that no shard answered for.

use std::time::Duration;

use libvirt_rpc::{Connection, Domain, DomainInfo, Error};
use tokio::time::Instant;

use super::devices::DomainFacts;
use super::failures::Failures;
use super::vm::{self, Vm};
use super::{bulk, older};

/// The older calls of a cycle's job-free lane: one at a time, over the place kept for them.
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) info: Vec<(usize, Domain)>,
    pub(crate) xml: Vec<(usize, Domain)>,
    infos: Vec<(usize, Result<DomainInfo, Error>)>,
    facts: Vec<(usize, Result<Option<DomainFacts>, Error>)>,
    /// Why the job-free part of the bulk record could not be had.
    pub(crate) failed: Option<Error>,
}

impl Lane {
    /// Makes the calls; an error is one that ends the connection. Where one has no answer in time, the rest is left to
    /// the next cycle: there is one place for them all, and that call keeps it.
    pub(crate) async fn run(&mut self, connection: &Connection) -> Result<(), Error> {
        for (at, domain) in self.info.drain(..) {
            let answer = connection.domain_info(&domain).await;
            let unanswered = matches!(answer, Err(Error::Deadline { .. }));
            match answer {
                Err(error) if error.is_connection_lost() => return Err(error),
                answer => self.infos.push((at, answer)),
            }
            if unanswered {
                return Ok(());
            }
        }
        for (at, domain) in self.xml.drain(..) {
            let answer = older::devices_for_vm(connection, &domain).await;
            let unanswered = matches!(answer, Err(Error::Deadline { .. }));
            match answer {
                Err(error) if error.is_connection_lost() => return Err(error),
                answer => self.facts.push((at, answer)),
            }
            if unanswered {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Puts the answers where they belong.
    pub(crate) fn hand_out(
        self,
        vms: &mut [Vm],
        by_info: &impl Fn(&Vm) -> bool,
        ttl: Duration,
        failures: &mut Failures,
    ) -> Result<(), Error> {
        let now = Instant::now();
        for (at, answer) in self.infos {
            let vm = &mut vms[at];
            match answer {
                Ok(info) if vm.taken.is_none() || by_info(vm) || vm.lacks_cpu() || vm.is_stuck() => {
                    older::take_info(vm, &info);
                    vm.taken.get_or_insert(now);
                }
                Ok(info) => {
                    // Ages differ, so that the counts of all VMs do not come due in the same cycle.
                    let spread = Duration::from_millis(u64::from(vm.domain.uuid[15]) * 100);
                    vm.vcpus = Some((info.vcpus, now + vm::VCPUS_TTL - spread));
                }
                Err(error) => failures.add(&vm.domain.name, "domain info", error)?,
            }
        }
        for (at, answer) in self.facts {
            let vm = &mut vms[at];
            match answer {
                Ok(facts) => vm.facts = facts.map(|facts| (facts, now + ttl)),
                Err(error) => failures.add(&vm.domain.name, "domain XML", error)?,
            }
        }
        Ok(())
    }
}

/// Reads what can be had without a monitor of the VMs that no shard answered for.
pub(crate) async fn fall_back(
    connection: &Connection,
    vms: &mut [Vm],
    job_free: &bulk::Plan<'_>,
    failures: &mut Failures,
) -> Result<(), Error> {
    let mut unread: Vec<&mut Vm> = vms.iter_mut().filter(|vm| vm.unanswered && vm.taken.is_none()).collect();
    if unread.is_empty() {
        return Ok(());
    }
    let end = Instant::now() + (job_free.deadlines[1] - job_free.deadlines[0]);
    if let Err(error) = bulk::ask(connection, &mut unread, job_free, end).await {
        let unanswered = matches!(error, Error::Deadline { .. });
        failures.add(&unread[0].domain.name, "state and interfaces", error)?;
        if unanswered {
            return Ok(()); // domain info would wait behind it
        }
    }
    for vm in unread {
        let before = failures.0.len();
        older::read(connection, vm, telemetry::Groups::INFO, failures).await?;
        if failures.0[before..].iter().any(|failure| matches!(failure.error, Error::Deadline { .. })) {
            break;
        }
    }
    Ok(())
}
