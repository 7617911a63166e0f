//! What needs no monitor, one call at a time over the place kept for it: domain info beside the shards, and
//! whatever can be had of VMs that no shard is asked for or answered for.

use std::time::Duration;

use libvirt_rpc::{Connection, Domain, DomainInfo, Error};
use tokio::time::{Instant, timeout_at};

use super::failures::{Failures, Next};
use super::round::Tally;
use super::vm::{self, Vm};
use super::{bulk, older};

/// The domain info of a cycle.
#[derive(Default)]
pub(super) struct Lane {
    /// Whose is wanted, by position.
    wanted: Vec<(usize, Domain)>,
    answers: Vec<(usize, Result<DomainInfo, Error>)>,
    /// A call has no answer: there is one place for them all, and it keeps it.
    blocked: bool,
}

impl Lane {
    /// Puts a VM into the queue.
    pub(super) fn want(&mut self, at: usize, domain: &Domain) {
        self.wanted.push((at, domain.clone()));
    }

    /// The same, unless it was asked for already.
    pub(super) fn want_too(&mut self, at: usize, domain: &Domain) {
        if !self.answers.iter().any(|(asked, _)| *asked == at) {
            self.want(at, domain);
        }
    }

    /// True where the daemon does not answer even what needs no monitor.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Asks for the record's job-free part of `vms`, until `deadline`. An error is one that ends the connection.
    pub(super) async fn ask(
        &mut self,
        connection: &Connection,
        vms: &mut [&mut Vm],
        job_free: &bulk::Plan<'_>,
        deadline: Instant,
        failures: &mut Failures,
    ) -> Result<(), Error> {
        if let Err(error) = bulk::ask(connection, vms, job_free, deadline).await {
            let of = vms.first().map_or_else(|| "".into(), |vm| vm.domain.name.clone());
            self.blocked |= failures.add(&of, "state and interfaces", error)? == Next::Stop;
        }
        Ok(())
    }

    /// Asks for the domain info that is wanted, until `end`; an error is one that ends the connection. What is not
    /// reached is left to the next cycle.
    pub(super) async fn run(&mut self, connection: &Connection, end: Instant) -> Result<(), Error> {
        for (at, domain) in self.wanted.drain(..) {
            if self.blocked {
                break;
            }
            // Giving it up keeps its place taken: until it is answered, nothing else is sent over it.
            let Ok(answer) = timeout_at(end, connection.domain_info(&domain)).await else {
                self.blocked = true;
                break;
            };
            match answer {
                Err(error) if error.is_connection_lost() => return Err(error),
                answer => {
                    self.blocked = matches!(answer, Err(Error::Deadline { .. }));
                    self.answers.push((at, answer));
                }
            }
        }
        Ok(())
    }

    /// Puts the answers where they belong: into the sample of a VM of which no monitor told anything, else only the
    /// number of vCPUs is kept.
    pub(super) fn hand_out(
        self,
        vms: &mut [Vm],
        by_info: &impl Fn(&Vm) -> bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let now = Instant::now();
        for (at, answer) in self.answers {
            let vm = &mut vms[at];
            match answer {
                Ok(info) if vm.lacks_monitor() || by_info(vm) || vm.lacks_cpu() => {
                    older::take_info(vm, &info);
                    vm.taken.get_or_insert(now);
                }
                Ok(info) => {
                    // Ages differ, so that the counts of all VMs do not come due in the same cycle.
                    let spread = Duration::from_millis(u64::from(vm.domain.uuid[15]) * 100);
                    vm.vcpus = Some((info.vcpus, now + vm::VCPUS_TTL - spread));
                }
                Err(error) => {
                    tally.failures.add(&vm.domain.name, "domain info", error)?;
                }
            }
        }
        Ok(())
    }
}
