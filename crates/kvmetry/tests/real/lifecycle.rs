//! VMs that are paused, resumed, destroyed, restarted, and killed.

use xtask::lab::LabVm;

use crate::harness::{Kvmetry, Point, SOON, Seen, lab, now_ns, start_vm, start_vms};

/// State codes of the contract.
const RUNNING: Option<i64> = Some(1);
const PAUSED: Option<i64> = Some(3);

fn wait_for_event(kvmetry: &mut Kvmetry, vm: &LabVm, event: &str, nth: usize) -> Point {
    kvmetry.wait_for(&format!("event {event:?}, number {nth}"), SOON, |seen| {
        seen.events(vm).filter(|it| it.tag("event") == event).nth(nth).cloned()
    })
}

#[test]
fn pause_resume_destroy_and_restart_are_told_and_derive_nothing_false() {
    let lab = lab("lifecycle");
    let vm = start_vm(&lab, "lifecycle");
    let mut kvmetry = Kvmetry::run(&[]);
    let check_state = |kvmetry: &mut Kvmetry, expect: Option<i64>| {
        let cycle = kvmetry.next_cycle();
        assert_eq!(cycle.line("vm_metrics", &vm).unwrap().int("state"), expect);
        assert_eq!(cycle.totals(&vm).unwrap().int("state"), expect);
        cycle.totals(&vm).unwrap().tag("VMID").to_owned()
    };
    let first_id = check_state(&mut kvmetry, RUNNING);
    lab.pause(&vm).unwrap();
    assert_eq!(check_state(&mut kvmetry, PAUSED), first_id);
    lab.resume(&vm).unwrap();
    assert_eq!(check_state(&mut kvmetry, RUNNING), first_id);

    lab.destroy(&vm).unwrap();
    let gone = kvmetry.next_cycle();
    assert_eq!(gone.of(&vm).count(), 0, "a shut-off domain gives no lines: {gone:?}");
    let stopped = wait_for_event(&mut kvmetry, &vm, "stopped", 0);
    assert_eq!((stopped.tag("VMID"), stopped.text("reason")), (first_id.as_str(), "destroyed"));

    lab.start(&vm).unwrap();
    let second_id = check_state(&mut kvmetry, RUNNING);
    assert_ne!(second_id, first_id);

    // Down and up again as fast as it goes: there may be no cycle in between that lacks it.
    lab.destroy(&vm).unwrap();
    lab.start(&vm).unwrap();
    let third_id = check_state(&mut kvmetry, RUNNING);
    assert_ne!(third_id, second_id);
    wait_for_event(&mut kvmetry, &vm, "started", 1);
    kvmetry.wait_for("features of the third life", SOON * 2, |seen| {
        seen.cycles()
            .iter()
            .any(|it| it.line("vm_features", &vm).is_some_and(|it| it.tag("VMID") == third_id))
            .then_some(())
    });

    let seen = kvmetry.stop("TERM");
    let (one, two, three) = (first_id.as_str(), second_id.as_str(), third_id.as_str());
    // Versions of libvirt differ in how a power cut and the start of a guest's processors are told beside.
    let beside =
        |it: &&Point| it.tag("event") == "shutdown" || it.tag("event") == "resumed" && it.tag("VMID") != one;
    let told = seen.events(&vm).filter(|it| !beside(it));
    let told: Vec<_> = told.map(|it| (it.tag("event"), it.text("reason"), it.tag("VMID"))).collect();
    let expect = [
        ("paused", "paused", one),
        ("resumed", "unpaused", one),
        ("stopped", "destroyed", one),
        ("started", "booted", two),
        ("stopped", "destroyed", two),
        ("started", "booted", three),
    ];
    assert_eq!(told, expect);
    let times: Vec<i64> = seen.events(&vm).map(|it| it.time_ns).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "each event has a time of its own: {times:?}");
    assert_features_have_two_readings(&seen, &vm);
}

/// A features line needs a reading before it in the same life.
fn assert_features_have_two_readings(seen: &Seen, vm: &LabVm) {
    let mut last_id = None;
    for cycle in seen.cycles() {
        let id = cycle.totals(vm).map(|it| it.tag("VMID").to_owned());
        if let Some(features) = cycle.line("vm_features", vm) {
            assert_eq!(
                Some(features.tag("VMID")),
                last_id.as_deref(),
                "a rate across a restart: {features:?}"
            );
        }
        last_id = id.or(last_id);
    }
}

#[test]
fn a_killed_qemu_disappears_and_the_others_lose_nothing() {
    let lab = lab("killed");
    let vms: Vec<_> = (1..=3).map(|n| lab.vm(&format!("killed {n}")).unwrap()).collect();
    start_vms(&lab, &vms);
    let (victim, others) = (&vms[1], [&vms[0], &vms[2]]);
    let mut kvmetry = Kvmetry::run(&[]);
    let before = kvmetry.next_cycles(2).pop().unwrap();
    let id = before.totals(victim).unwrap().tag("VMID").to_owned();

    lab.signal(victim, "KILL").unwrap();
    let killed_ns = now_ns();
    let end = wait_for_event(&mut kvmetry, victim, "stopped", 0);
    assert_eq!((end.tag("VMID"), end.text("reason")), (id.as_str(), "failed"));
    kvmetry.next_cycles(3);

    let seen = kvmetry.stop("INT");
    let after = seen.cycles_after(killed_ns);
    let lingering = after.iter().filter(|cycle| cycle.of(victim).next().is_some()).count();
    assert!(lingering <= 2, "still there in {lingering} cycles after its end");
    assert_eq!(after.last().unwrap().of(victim).count(), 0);
    for cycle in seen.cycles() {
        for vm in others {
            let totals =
                cycle.totals(vm).unwrap_or_else(|| panic!("{} has no line at {}", vm.name, cycle.time_ns));
            assert_eq!(totals.int("collect_ok"), Some(1), "{totals:?}");
        }
    }
    // One cycle a second, with no second left out.
    let times: Vec<i64> = after.iter().map(|it| it.time_ns).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 1_900_000_000), "a cycle is missing: {times:?}");
}
