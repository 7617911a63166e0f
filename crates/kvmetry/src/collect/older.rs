//! The older calls, one domain and one device at a time: where a daemon lacks bulk statistics, or a group of them.
//!
//! There is no NOWAIT here: a call over a stuck VM hangs. One hanging call a VM is enough: the rest of that VM's
//! readings are left out, and it is not asked again before the call has returned.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use libvirt_rpc::{Connection, Domain, Error, ErrorCode, MONITOR_CALLS};
use telemetry::{DeviceReading, Groups};
use tokio::time::{Instant, timeout_at};

use super::bulk::note_late;
use super::devices::DomainFacts;
use super::failures::{Failures, Next};
use super::vm::{Asked, Vm};

/// When XML that could not be had is asked for again, at the soonest.
const XML_RETRY: Duration = Duration::from_secs(60);

/// All active domains.
pub(crate) async fn live_vms(connection: &Connection) -> Result<Vec<Domain>, Error> {
    connection.list_active().await
}

/// Reads the XML of the VMs whose devices are not known or may have changed: of at most `most` of them, until `end`.
/// Returns how many were read.
pub(crate) async fn list_devices(
    connection: &Connection,
    vms: &mut [Vm],
    most: usize,
    ttl: Duration,
    end: Instant,
    failures: &mut Failures,
) -> Result<u64, Error> {
    let now = Instant::now();
    let mut read = 0;
    for vm in vms.iter_mut().filter(|vm| now >= vm.facts_due).take(most) {
        // A call that is still unanswered at the end keeps the one place there is for its like.
        let Ok(answer) = timeout_at(end, devices_for_vm(connection, &vm.domain)).await else { break };
        read += 1;
        vm.balloon_tried = false;
        match answer.map(|xml| DomainFacts::parse(&xml)) {
            Ok(Ok(facts)) => {
                vm.facts = Some(facts);
                vm.facts_due = now + ttl;
            }
            Ok(Err(error)) => {
                vm.facts_due = now + ttl;
                failures.note(&vm.domain.name, "domain XML", format!("it makes no sense: {error}"));
            }
            Err(error) => {
                vm.facts_due = now + XML_RETRY.min(ttl);
                if failures.add(&vm.domain.name, "domain XML", error)? == Next::Stop {
                    break;
                }
            }
        }
    }
    Ok(read)
}

/// The XML that names a domain's devices.
async fn devices_for_vm(connection: &Connection, domain: &Domain) -> Result<String, Error> {
    connection.domain_xml(domain).await
}

/// Reads by the older calls what `needs` says of each VM, in order from position `from` on, several VMs at a time, until
/// `end`. Returns how many were not reached.
pub(crate) async fn read_all(
    connection: &Connection,
    vms: &mut [Vm],
    from: usize,
    needs: impl Fn(&Vm) -> Groups,
    end: Instant,
    failures: &mut Failures,
) -> Result<usize, Error> {
    let all = vms.len();
    let mut queue: Vec<(&mut Vm, Groups)> = vms
        .iter_mut()
        .map(|vm| {
            let groups = needs(vm);
            (vm, groups)
        })
        .collect();
    queue.rotate_left(from.min(all));
    queue.retain(|(_, groups)| !groups.is_empty());
    let queue = Mutex::new(queue.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = async || {
        let mut failures = Failures::default();
        let mut not_reached = 0;
        while let Some((vm, groups)) = next() {
            if Instant::now() >= end {
                not_reached += 1;
                if vm.taken.is_none() {
                    vm.asked = Asked::NotReached;
                }
                continue;
            }
            // A VM that a given-up call holds, or may hold, is not asked again before that call returns.
            let is_free = !vm.is_held() && vm.asked == Asked::Answered;
            let groups = if is_free { groups } else { job_free_part(groups) };
            read(connection, vm, groups, &mut failures).await?;
        }
        Ok::<_, Error>((failures, not_reached))
    };
    let mut not_reached = 0;
    for done in join_all((0..MONITOR_CALLS).map(|_| worker())).await {
        let (failed, left) = done?;
        failures.0.extend(failed.0);
        not_reached += left;
    }
    Ok(not_reached)
}

/// The part of the older calls' groups that no monitor or job can hold up.
pub(crate) fn job_free_part(groups: Groups) -> Groups {
    [Groups::INFO, Groups::NICS]
        .into_iter()
        .filter(|group| groups.contains(*group))
        .fold(Groups::NONE, Groups::with)
}

/// Reads `groups` of one VM into its sample, over what is there already. Returns the connection's error if it was
/// lost; any other failure concerns one reading, is added to `failures`, and leaves that reading absent.
async fn read(
    connection: &Connection,
    vm: &mut Vm,
    groups: Groups,
    failures: &mut Failures,
) -> Result<(), Error> {
    let domain = vm.domain.clone();
    if groups.contains(Groups::INFO) {
        match connection.domain_info(&domain).await {
            Ok(info) => take_info(vm, &info),
            // It has just ended.
            Err(error) if error.remote_code() == Some(ErrorCode::NO_DOMAIN) => return Ok(()),
            Err(error) => {
                if failures.add(&domain.name, "domain info", error)? == Next::Stop {
                    return Ok(());
                }
            }
        }
    }
    vm.taken.get_or_insert_with(Instant::now);
    if groups.contains(Groups::NICS)
        && interface_stats(connection, vm, &domain, failures).await? == Next::Stop
    {
        return Ok(());
    }
    // From here on a monitor or a job may be in the way.
    if groups.contains(Groups::CPU) {
        cpu_stats(connection, vm, &domain, failures).await?;
    }
    if groups.contains(Groups::MEMORY) && !vm.is_held() {
        memory_stats(connection, vm, &domain, failures).await?;
    }
    if groups.contains(Groups::DISKS) && !vm.is_held() {
        block_stats(connection, vm, &domain, failures).await?;
    }
    Ok(())
}

/// Domain info into the sample, its vCPU count to be kept.
pub(crate) fn take_info(vm: &mut Vm, info: &libvirt_rpc::DomainInfo) {
    vm.vcpus = Some((info.vcpus, Instant::now() + super::vm::VCPUS_TTL));
    vm.sample.domain_info(&telemetry::DomainInfo {
        state: info.state,
        max_memory_kib: info.max_mem_kib,
        memory_kib: info.memory_kib,
        vcpus: info.vcpus,
        cpu_time_ns: info.cpu_time_ns,
    });
}

async fn cpu_stats(
    connection: &Connection,
    vm: &mut Vm,
    domain: &Domain,
    failures: &mut Failures,
) -> Result<(), Error> {
    match connection.cpu_stats(domain).await {
        Ok(totals) => vm.sample.cpu_stats(totals.user_time_ns, totals.system_time_ns),
        // Without cgroups there are none, ever: written as 0 (TELEMETRY.md, rule 5).
        Err(Error::Remote { code, message, .. }) if is_never(code) || has_no_cgroups(code, &message) => {
            vm.sample.cpu_stats(None, None)
        }
        Err(error) => failed(vm, failures, "CPU statistics", error)?,
    }
    Ok(())
}

async fn memory_stats(
    connection: &Connection,
    vm: &mut Vm,
    domain: &Domain,
    failures: &mut Failures,
) -> Result<(), Error> {
    match connection.memory_stats(domain).await {
        Ok(stats) => vm.sample.memory_stats(stats),
        Err(Error::Remote { code: ErrorCode::NO_SUPPORT, .. }) => vm.sample.memory_stats([]),
        Err(error) => failed(vm, failures, "memory statistics", error)?,
    }
    Ok(())
}

async fn interface_stats(
    connection: &Connection,
    vm: &mut Vm,
    domain: &Domain,
    failures: &mut Failures,
) -> Result<Next, Error> {
    let Some(nics) = vm.facts.as_ref().map(|facts| facts.nics.clone()) else { return Ok(Next::GoOn) };
    vm.sample.list_nics();
    let mut next = Next::GoOn;
    for nic in nics {
        if next == Next::Stop {
            vm.sample.nic_lacks(&nic, DeviceReading::NotRead);
            continue;
        }
        match connection.interface_stats(domain, &nic).await {
            Ok(s) => vm.sample.nic(
                &nic,
                &[
                    s.rx_bytes,
                    s.rx_packets,
                    s.rx_errs,
                    s.rx_drop,
                    s.tx_bytes,
                    s.tx_packets,
                    s.tx_errs,
                    s.tx_drop,
                ],
            ),
            Err(error) => {
                vm.sample.nic_lacks(&nic, lacks(&error));
                next = failures.add(&domain.name, &nic, error)?;
            }
        }
    }
    Ok(next)
}

async fn block_stats(
    connection: &Connection,
    vm: &mut Vm,
    domain: &Domain,
    failures: &mut Failures,
) -> Result<(), Error> {
    let Some(disks) = vm.facts.as_ref().map(|facts| facts.disks.clone()) else { return Ok(()) };
    vm.sample.list_disks();
    for disk in disks {
        if vm.is_held() {
            vm.sample.disk_lacks(&disk, DeviceReading::NotRead);
            continue;
        }
        match connection.block_stats(domain, &disk).await {
            Ok(s) => vm.sample.disk(&disk, &[s.rd_req, s.rd_bytes, s.wr_req, s.wr_bytes, s.errs]),
            Err(error) => {
                vm.sample.disk_lacks(&disk, lacks(&error));
                failed(vm, failures, &disk, error)?;
            }
        }
    }
    Ok(())
}

/// What a failed device call says of the device.
fn lacks(error: &Error) -> DeviceReading {
    match error {
        Error::Remote { code, .. } if is_never(*code) => DeviceReading::Unsupported,
        Error::Remote { .. } => DeviceReading::NoCounters,
        _ => DeviceReading::NotRead,
    }
}

/// The hypervisor says that it has no such statistics at all.
fn is_never(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NO_SUPPORT | ErrorCode::CONFIG_UNSUPPORTED | ErrorCode::ARGUMENT_UNSUPPORTED)
}

/// What QEMU's driver says of CPU statistics where the host has no cgroups. A domain that has just ended is refused with
/// the same code.
fn has_no_cgroups(code: ErrorCode, message: &str) -> bool {
    code == ErrorCode::OPERATION_INVALID && !message.contains("not running")
}

/// Notes a failed reading that a monitor may hold up, and the call if it was given up; hands on what ends the
/// connection.
fn failed(vm: &mut Vm, failures: &mut Failures, what: &str, error: Error) -> Result<(), Error> {
    note_late(vm, &error);
    failures.add(&vm.domain.name, what, error).map(drop)
}

/// Sets the configured period on balloons that report nothing, until `end`.
pub(crate) async fn set_balloon_periods(
    connection: &Connection,
    period: Duration,
    vms: &mut [Vm],
    end: Instant,
    failures: &mut Failures,
) -> Result<(), Error> {
    if period.is_zero() {
        return Ok(());
    }
    for vm in vms {
        if Instant::now() >= end {
            break;
        }
        let has_none = |facts: &DomainFacts| {
            facts.has_balloon && facts.balloon_period.is_none_or(|period| period.is_zero())
        };
        if vm.balloon_tried || vm.is_held() || !vm.facts.as_ref().is_some_and(has_none) {
            continue;
        }
        // Whatever comes of it: not again before the XML is read anew.
        vm.balloon_tried = true;
        match connection.set_memory_stats_period(&vm.domain, period).await {
            Ok(()) => {
                tracing::info!(domain = &*vm.domain.name, ?period, "balloon period set");
                if let Some(facts) = &mut vm.facts {
                    facts.balloon_period = Some(period);
                }
            }
            Err(error) => failed(vm, failures, "setting the balloon period", error)?,
        }
    }
    Ok(())
}
