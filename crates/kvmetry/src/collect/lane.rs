//! What needs no monitor, one call at a time over the place kept for it: domain info beside the shards, and
//! whatever can be had of VMs that no shard is asked for or answered for.

use std::time::Duration;

use libvirt_rpc::{Connection, Domain, DomainInfo, Error};
use tokio::time::Instant;

use super::failures::Failures;
use super::round::Tally;
use super::vm::{self, Vm};
use super::{bulk, older};

/// The calls of a cycle's job-free lane: one at a time, over the place kept for them.
#[derive(Default)]
pub(super) struct Lane {
    /// Whose domain info is wanted, by position.
    pub(super) info: Vec<(usize, Domain)>,
    answers: Vec<(usize, Result<DomainInfo, Error>)>,
    /// Why the job-free part of the bulk record could not be had.
    failed: Option<Error>,
}

impl Lane {
    /// Makes the calls; an error is one that ends the connection. Where one has no answer in time, the rest is left to
    /// the next cycle: there is one place for them all, and that call keeps it.
    pub(super) async fn run(
        &mut self,
        connection: &Connection,
        aside: &mut [&mut Vm],
        job_free: &bulk::Plan<'_>,
    ) -> Result<(), Error> {
        match bulk::ask(connection, aside, job_free, job_free.deadlines[2]).await {
            Err(error) if error.is_connection_lost() => return Err(error),
            Err(error) => self.failed = Some(error),
            Ok(()) => {}
        }
        for (at, domain) in self.info.drain(..) {
            let answer = connection.domain_info(&domain).await;
            let unanswered = matches!(answer, Err(Error::Deadline { .. }));
            match answer {
                Err(error) if error.is_connection_lost() => return Err(error),
                answer => self.answers.push((at, answer)),
            }
            if unanswered {
                break;
            }
        }
        Ok(())
    }

    /// Puts the answers where they belong.
    pub(super) fn hand_out(
        self,
        vms: &mut [Vm],
        by_info: &impl Fn(&Vm) -> bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        if let Some(error) = self.failed {
            tally.failed_calls += 1;
            tally.bulk_error = Some(error);
        }
        let now = Instant::now();
        for (at, answer) in self.answers {
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
                Err(error) => tally.failures.add(&vm.domain.name, "domain info", error)?,
            }
        }
        Ok(())
    }
}

/// Reads what can be had without a monitor of the VMs that no shard answered for.
pub(super) async fn fall_back(
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
