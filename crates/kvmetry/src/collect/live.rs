//! Which VMs are live: kept in step by lifecycle events as they come, and by a list of all now and then.

use std::collections::HashMap;

use libvirt_rpc::Domain;

use super::vm::Vm;

/// Brings the VMs in step with a lifecycle event (`virDomainEventType`).
pub(super) fn follow(vms: &mut Vec<Vm>, domain: &Domain, event: i32) {
    const STARTED: i32 = 2;
    const STOPPED: i32 = 5;
    let is_live = domain.id > 0 && event != STOPPED;
    match vms.iter_mut().find(|vm| vm.domain.uuid == domain.uuid) {
        Some(vm) if event == STOPPED => vm.ended = true,
        Some(vm) if is_live => {
            vm.ended &= event != STARTED;
            if vm.domain.id != domain.id {
                // Another life than the one that was listed: what was read in this cycle may be of either.
                vm.restarted(domain.id);
            }
        }
        None if is_live => vms.push(Vm::new(domain.clone())),
        Some(_) | None => {}
    }
}

/// Brings the VMs in step with the list; new ones are added, those gone are dropped.
pub(super) fn relist(vms: &mut Vec<Vm>, listed: Vec<Domain>) {
    let mut by_uuid: HashMap<[u8; 16], Domain> =
        listed.into_iter().map(|domain| (domain.uuid, domain)).collect();
    vms.retain_mut(|vm| match by_uuid.remove(&vm.domain.uuid) {
        Some(domain) => {
            if domain.id != vm.domain.id {
                *vm = Vm::new(domain);
            } else if domain.name != vm.domain.name {
                vm.domain = domain;
            }
            vm.ended = false;
            true
        }
        None => false,
    });
    let mut new: Vec<Vm> = by_uuid.into_values().map(Vm::new).collect();
    new.sort_by_key(|vm| vm.domain.id);
    vms.append(&mut new);
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn domain(uuid: u8, id: i32) -> Domain {
        Domain { name: format!("vm {uuid}").into(), uuid: [uuid; 16], id }
    }

    /// UUID, id and whether it has ended.
    fn state(vms: &[Vm]) -> Vec<(u8, i32, bool)> {
        vms.iter().map(|vm| (vm.domain.uuid[0], vm.domain.id, vm.ended)).collect()
    }

    #[test]
    fn events_keep_the_vms_in_step() {
        let [defined, started, suspended, stopped] = [0, 2, 3, 5];
        let mut vms = Vec::new();
        let mut check = |domain: Domain, event: i32, expect: &[(u8, i32, bool)]| {
            follow(&mut vms, &domain, event);
            assert_eq!(state(&vms), expect, "event {event} of {domain:?}");
        };
        check(domain(1, -1), defined, &[]);
        check(domain(1, 7), started, &[(1, 7, false)]);
        check(domain(1, 7), suspended, &[(1, 7, false)]);
        check(domain(2, 8), suspended, &[(1, 7, false), (2, 8, false)]);
        check(domain(1, -1), stopped, &[(1, 7, true), (2, 8, false)]);
        check(domain(1, 9), started, &[(1, 9, false), (2, 8, false)]);
        check(domain(3, -1), stopped, &[(1, 9, false), (2, 8, false)]);
    }

    #[test]
    fn a_vm_that_restarts_in_a_cycle_is_not_read_in_it() {
        let mut vms = vec![Vm::new(domain(1, 7)), Vm::new(domain(2, 8))];
        vms.iter_mut().for_each(|vm| vm.taken = Some(Instant::now()));
        follow(&mut vms, &domain(1, 9), 2);
        // Its record was of the new life already.
        follow(&mut vms, &domain(2, 8), 2);
        assert_eq!(vms.iter().map(|vm| vm.taken.is_some()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_list_brings_the_vms_in_step() {
        let mut vms = vec![Vm::new(domain(1, 7)), Vm::new(domain(2, 8)), Vm::new(domain(3, 9))];
        vms[1].busy_cycles = 5;
        vms[2].ended = true;
        relist(&mut vms, vec![domain(4, 11), domain(3, 9), domain(2, 10)]);
        assert_eq!(state(&vms), [(2, 10, false), (3, 9, false), (4, 11, false)]);
        assert_eq!(vms[0].busy_cycles, 0, "another life");
    }
}
