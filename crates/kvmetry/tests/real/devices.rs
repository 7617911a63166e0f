//! NICs and disks that come and go while the VM runs, and a NIC whose reading fails once: the sums step back or are
//! absent, and no increase is ever more than what was really sent.
//!
//! The NICs count a GiB each, so that a sum taken over the wrong devices jumps by a thousand times what is normal.

use std::collections::BTreeMap;
use std::time::Duration;

use telemetry::catalogue::{DISK_FIELDS, DISK_SUM_PREFIX, NIC_FIELDS, NIC_SUM_PREFIX};
use telemetry::increase;
use xtask::lab::{Format, Lab, LabVm, NicKind};

use crate::harness::{Cycle, Kvmetry, SOON, lab_with, sudo};

/// What every NIC sends when the VM starts, and again when a device is plugged in, KiB.
const SENT_KIB: u64 = 1 << 20;

/// For a guest to send that, also without KVM on a busy machine.
const SENT_WITHIN: Duration = Duration::from_secs(90);

/// By what a guest at rest, and a bridge with nobody on it, moves a counter between two cycles.
const TRICKLE: u64 = 64 << 10;

/// Bytes that NICs counted in either direction, by their taps. (Which is received and which is sent depends on the
/// side from which one looks; libvirt takes the guest's.)
fn counted(lab: &Lab, vm: &LabVm) -> BTreeMap<String, u64> {
    let stats = lab.domstats(vm).unwrap();
    let number = |key: &str| stats.get(key).map_or(0, |text| text.parse::<u64>().unwrap());
    let nics = (0..number("net.count")).map(|n| {
        let bytes = number(&format!("net.{n}.rx.bytes")) + number(&format!("net.{n}.tx.bytes"));
        (stats[&format!("net.{n}.name")].clone(), bytes)
    });
    nics.collect()
}

/// Waits until every NIC has counted this many KiB and all are at rest, and returns what they counted.
fn wait_until_sent(lab: &Lab, vm: &LabVm, kib: &[u64]) -> BTreeMap<String, u64> {
    let mut last = None;
    let stats = lab.wait_for_stats(vm, "all bytes sent", SENT_WITHIN, |stats| {
        kib.iter().enumerate().all(|(n, kib)| {
            // Frames are whole: up to one less.
            let bytes =
                |way| stats.get(&format!("net.{n}.{way}.bytes")).map_or(0, |it| it.parse::<u64>().unwrap());
            bytes("rx").max(bytes("tx")) >= (kib << 10) - 2048
        })
    });
    drop(stats);
    loop {
        let now = counted(lab, vm);
        let moved =
            |last: &BTreeMap<String, u64>| now.iter().any(|(nic, it)| it.abs_diff(last[nic]) > TRICKLE);
        if last.as_ref().is_some_and(|last| !moved(last)) {
            return now;
        }
        last = Some(now);
    }
}

/// What a sum grew by between two cycles: a gap where it was not there, or stepped back.
fn grown(before: &Cycle, now: &Cycle, vm: &LabVm, field: &str) -> Option<u64> {
    let sum = |cycle: &Cycle| cycle.totals(vm)?.int(field)?.try_into().ok();
    increase(sum(before), sum(now))
}

fn net_bytes() -> impl Iterator<Item = String> {
    ["rxbytes", "txbytes"].into_iter().map(|name| {
        assert!(NIC_FIELDS.iter().any(|field| field.name == name));
        format!("{NIC_SUM_PREFIX}{name}")
    })
}

fn has_sums(cycle: &Cycle, vm: &LabVm, prefix: &str) -> bool {
    let totals = cycle.totals(vm).expect("a vm_totals line");
    let names: Vec<String> = match prefix {
        NIC_SUM_PREFIX => NIC_FIELDS.iter().map(|it| format!("{prefix}{}", it.name)).collect(),
        _ => DISK_FIELDS.iter().map(|it| format!("{prefix}{}", it.name)).collect(),
    };
    let there = names.iter().filter(|name| totals.int(name).is_some()).count();
    assert!(there == 0 || there == names.len(), "some sums of {prefix} but not all: {totals:?}");
    there > 0
}

#[test]
fn devices_come_and_go_and_fail_and_no_increase_is_more_than_was_sent() {
    // No balloon period: the guest works once at its start and once when a device comes.
    let lab = lab_with("devices", 0);
    let mut vm = lab.vm("devices").unwrap();
    vm.nics.truncate(1);
    vm.net_kib = SENT_KIB;
    lab.start_all(std::slice::from_ref(&vm)).unwrap();
    let at_start = wait_until_sent(&lab, &vm, &[SENT_KIB]);
    let first_tap = at_start.keys().next().unwrap().clone();

    let mut kvmetry = Kvmetry::run(&[]);
    let cycle = kvmetry.next_cycle();
    assert!(has_sums(&cycle, &vm, NIC_SUM_PREFIX));
    assert!(cycle.device(&vm, &first_tap).is_some());

    // Plugged in: there in the next cycle.
    let nic = vm.nic(7, NicKind::Bridge(lab.options().bridge.clone()));
    let disk = vm.disk("vdx", Format::Raw, 16);
    lab.attach_nic(&vm, &nic).unwrap();
    let cycle = kvmetry.next_cycle();
    let second_tap = cycle
        .of(&vm)
        .find(|it| it.tag("devtype") == "nic" && it.tag("device") != first_tap)
        .unwrap_or_else(|| kvmetry.fail("the new NIC is not in the next cycle"))
        .tag("device")
        .to_owned();
    let after_nic = wait_until_sent(&lab, &vm, &[2 * SENT_KIB, SENT_KIB]);
    lab.attach_disk(&vm, &disk).unwrap();
    let cycle = kvmetry.next_cycle();
    assert_eq!(cycle.device(&vm, "vdx").expect("the new disk in the next cycle").tag("devtype"), "disk");
    let after_disk = wait_until_sent(&lab, &vm, &[3 * SENT_KIB, 2 * SENT_KIB]);
    let resting = kvmetry.next_cycle();

    // A reading that fails once: the tap goes by another name for a moment.
    let rename = |from: &str, to: &str| {
        sudo(&["ip", "link", "set", from, "down"]);
        sudo(&["ip", "link", "set", from, "name", to]);
        sudo(&["ip", "link", "set", to, "up"]);
    };
    let hidden = format!("{first_tap}x");
    rename(&first_tap, &hidden);
    let failed = kvmetry.next_cycle();
    rename(&hidden, &first_tap);
    let totals = failed.totals(&vm).unwrap();
    assert!(failed.device(&vm, &first_tap).is_none(), "no line of a NIC that could not be read");
    assert!(failed.device(&vm, &second_tap).is_some(), "the other NIC's line all the same");
    assert!(!has_sums(&failed, &vm, NIC_SUM_PREFIX) && has_sums(&failed, &vm, DISK_SUM_PREFIX), "{totals:?}");
    assert_eq!(totals.int("collect_ok"), Some(0));
    let back = kvmetry.next_cycle();
    assert_eq!(back.totals(&vm).unwrap().int("collect_ok"), Some(1));
    for field in net_bytes() {
        assert_eq!(grown(&resting, &failed, &vm, &field), None);
        assert_eq!(grown(&failed, &back, &vm, &field), None);
        // The reading before the failed one and the one after it show that nothing was lost.
        assert!(grown(&resting, &back, &vm, &field).is_some_and(|it| it <= TRICKLE), "{field}");
    }
    let stderr = kvmetry.stderr();
    let told = stderr.lines().filter(|line| line.contains("WARN") && line.contains(&first_tap)).count();
    assert_eq!(told, 1, "the failure is told once, with domain and device: {stderr}");

    // Unplugged: gone in the next cycle, and the sum steps back, which is a gap.
    let before = kvmetry.next_cycle();
    lab.detach_nic(&vm, &nic).unwrap();
    let gone = kvmetry.next_cycle();
    assert!(gone.device(&vm, &second_tap).is_none());
    assert!(has_sums(&gone, &vm, NIC_SUM_PREFIX));
    lab.detach_disk(&vm, &disk).unwrap();
    let bare = kvmetry.next_cycle();
    assert!(bare.device(&vm, "vdx").is_none());
    assert!(has_sums(&bare, &vm, DISK_SUM_PREFIX));
    let stepped = net_bytes().filter(|field| grown(&before, &gone, &vm, field).is_none()).count();
    assert!(stepped >= 1, "a NIC with a GiB went away, and its sum did not step back");
    assert_eq!(grown(&gone, &bare, &vm, &format!("{DISK_SUM_PREFIX}wr_bytes")), None);

    for (event, times) in [("device_added", 2), ("device_removed", 2)] {
        kvmetry.wait_for(&format!("{times} events {event:?}"), SOON, |seen| {
            let details: Vec<_> = seen
                .events(&vm)
                .filter(|it| it.tag("event") == event)
                .map(|it| it.text("detail").to_owned())
                .collect();
            let devices =
                details.iter().filter(|it| it.starts_with("net") || it.starts_with("virtio-disk")).count();
            (devices == times).then_some(())
        });
    }

    // Over the whole run: all increases together are not more than what the NICs really counted.
    let at_end = counted(&lab, &vm);
    let really = (at_end[&first_tap] - at_start[&first_tap]) + after_disk[&second_tap] + TRICKLE;
    assert!(after_nic[&second_tap] >= SENT_KIB << 10 >> 1, "{after_nic:?}");
    let seen = kvmetry.stop("TERM");
    let cycles = seen.cycles();
    let all: u64 = cycles
        .windows(2)
        .map(|pair| net_bytes().filter_map(|field| grown(&pair[0], &pair[1], &vm, &field)).sum::<u64>())
        .sum();
    assert!(all <= really, "increases of {all} bytes, but only {really} were counted");
    assert!(
        all >= 3 * (SENT_KIB << 10),
        "three and more GiB were sent while it ran, only {all} bytes were seen"
    );
}
