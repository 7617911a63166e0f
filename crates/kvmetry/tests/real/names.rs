//! Names that line protocol, a shell or a terminal would stumble over.

use telemetry::map_text;

use crate::harness::{Kvmetry, lab_with, start_vms};

#[test]
fn odd_names_come_through_as_they_are() {
    let lab = lab_with("names", 0);
    let names = [
        "db,prod=1 \"ü\"",
        " two  spaces ",
        "back\\slash \\, \\= \\\" \\\\",
        "penguin 🐧 and family 👨‍👩‍👧",
        "trailing\\",
        "'; $(touch x) `y` %s {} #",
    ];
    let vms = names.map(|name| {
        let mut vm = lab.vm(name).unwrap();
        vm.disks.truncate(1);
        vm.nics.truncate(1);
        vm
    });
    start_vms(&lab, &vms);
    let mut kvmetry = Kvmetry::run(&[]);
    // That every line parses is what reading them asserts.
    let cycle = kvmetry.next_cycle();
    for (vm, name) in vms.iter().zip(names) {
        assert_eq!(
            lab.virsh(&["domname", &vm.uuid]).unwrap().trim_end_matches('\n'),
            name,
            "libvirt has the name"
        );
        let lines: Vec<_> = cycle.of(vm).collect();
        assert_eq!(lines.len(), 4, "vm_metrics, a NIC, a disk, vm_totals: {lines:?}");
        for line in lines {
            assert_eq!(line.tag("name"), map_text(name));
        }
    }
    // In an event, too.
    lab.pause(&vms[4]).unwrap();
    let paused =
        kvmetry.wait_for("the event", crate::harness::SOON, |seen| seen.events(&vms[4]).next().cloned());
    assert_eq!((paused.tag("event"), paused.tag("name")), ("paused", "trailing\\\u{fffd}"));
    kvmetry.stop("TERM");
}
