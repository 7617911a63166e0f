//! How many lines a cycle has, when it is, and which devices count.

use crate::harness::{Cycle, Kvmetry, Point, lab, start_vm, start_vms};

const SECOND_NS: i64 = 1_000_000_000;

#[test]
fn ten_vms_make_eighty_lines_a_cycle_all_at_the_tick() {
    let lab = lab("counting");
    let vms = lab.up(10).unwrap();
    let mut kvmetry = Kvmetry::run(&[]);
    let count = |cycle: &Cycle, measurement: &str, devtype: &str| {
        let is_it = |it: &&Point| it.measurement == measurement && it.tag("devtype") == devtype;
        vms.iter().map(|vm| cycle.of(vm).filter(is_it).count()).sum::<usize>()
    };
    let lines = |cycle: &Cycle| {
        [
            ("vm_metrics", ""),
            ("vm_devices", "nic"),
            ("vm_devices", "disk"),
            ("vm_totals", ""),
            ("vm_features", ""),
        ]
        .map(|(measurement, devtype)| count(cycle, measurement, devtype))
    };
    let cycles = kvmetry.next_cycles(8);
    for cycle in &cycles {
        // A guest that did not report since the cycle before gives no features line, and never a false one.
        let [metrics, nics, disks, totals, features] = lines(cycle);
        assert_eq!([metrics, nics, disks, totals], [10, 20, 30, 10]);
        assert!(features <= 10);
        assert_eq!(cycle.collector.int("lines"), Some(cycle.points.len() as i64));
    }
    let most = cycles.iter().map(|cycle| lines(cycle).iter().sum::<usize>()).max();
    assert_eq!(
        most,
        Some(80),
        "10 domains with 2 NICs and 3 disks: {:?}",
        cycles.iter().map(lines).collect::<Vec<_>>()
    );

    let seen = kvmetry.stop("TERM");
    let cycles = seen.cycles();
    for (number, cycle) in cycles.iter().enumerate().skip(1) {
        assert_eq!(cycle.time_ns % SECOND_NS, 0, "cycle {number} at {} is not on the tick", cycle.time_ns);
        assert!(cycle.time_ns > cycles[number - 1].time_ns);
    }
    // No line stands outside a cycle: all of a host's cycle have the time of its collector's line.
    let in_cycles: usize = cycles.iter().map(|cycle| cycle.points.len() + 1).sum();
    let all = seen.points.iter().filter(|point| point.measurement != "vm_events").count();
    assert_eq!(all, in_cycles);
}

#[test]
fn nics_without_counters_have_no_line_and_drives_count_as_disks() {
    let lab = lab("kinds");
    let usual = start_vm(&lab, "kinds usual");
    let mut vm = lab.vm("kinds").unwrap();
    vm.extra_devices = "<interface type='user'><model type='virtio'/></interface>\
                        <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>\
                        <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>"
        .into();
    start_vms(&lab, std::slice::from_ref(&vm));
    let mut kvmetry = Kvmetry::run(&[]);
    let cycle = kvmetry.next_cycles(3).pop().unwrap();
    let devices = |devtype: &str| {
        let of_kind = cycle.of(&vm).filter(|it| it.tag("devtype") == devtype);
        let mut names: Vec<_> = of_kind.map(|it| it.tag("device").to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(devices("disk"), ["fda", "hdc", "vda", "vdb", "vdc"]);
    let taps = lab.virsh(&["domiflist", &vm.uuid]).unwrap();
    assert_eq!(taps.lines().filter(|line| !line.trim().is_empty()).count(), 3, "{taps}");
    assert_eq!(devices("nic").len(), 2);

    // Its sums are whole, and so is the VM, as is the one beside it.
    let totals = cycle.totals(&vm).unwrap();
    let sum: i64 = cycle.of(&vm).filter_map(|it| it.int("rxbytes")).sum();
    assert_eq!(totals.int("net_rxbytes"), Some(sum));
    let sum: i64 = cycle.of(&vm).filter_map(|it| it.int("wr_bytes")).sum();
    assert_eq!(totals.int("disk_wr_bytes"), Some(sum));
    assert_eq!(totals.int("collect_ok"), Some(1));
    assert_eq!(cycle.totals(&usual).unwrap().int("collect_ok"), Some(1));
    kvmetry.stop("INT");
}
