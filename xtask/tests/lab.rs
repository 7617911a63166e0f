//! The lab itself, on the real libvirt: what other tests rely on. Needs the feature `real-libvirt`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use xtask::lab::{Format, Lab, LabGuard, LabOptions, NicKind, VmStatus};

/// For anything that a guest does at a balloon period of 1 s.
const PATIENCE: Duration = Duration::from_secs(30);

fn lab(name: &str) -> LabGuard {
    let options = LabOptions {
        prefix: format!("kvmetry-test-{name}-{}", std::process::id()),
        balloon_period: 1,
        ..LabOptions::default()
    };
    Lab::new(options).unwrap().guard()
}

/// The number behind the key that ends in `tail`, for the device (`net` or `block`) with this name.
fn counter(stats: &BTreeMap<String, String>, group: &str, name: &str, tail: &str) -> Option<u64> {
    let (key, _) = stats.iter().find(|(k, v)| k.starts_with(group) && k.ends_with(".name") && *v == name)?;
    stats.get(&format!("{}{tail}", key.trim_end_matches("name")))?.parse().ok()
}

/// Host-side name of the tap of the last network card.
fn last_tap(stats: &BTreeMap<String, String>) -> String {
    let last: usize = stats["net.count"].parse::<usize>().unwrap() - 1;
    stats[&format!("net.{last}.name")].clone()
}

fn states(lab: &Lab) -> Vec<String> {
    lab.status().unwrap().into_iter().map(|it: VmStatus| it.state).collect()
}

#[test]
fn devices_come_and_go_and_all_counters_move() {
    let lab = lab("devices");
    let vm = lab.vm("db,prod=1 \"<ü>\" 'x' & y").unwrap();
    lab.start_all(std::slice::from_ref(&vm)).unwrap();
    lab.wait_for_answers(std::slice::from_ref(&vm)).unwrap();

    // Every counter of every device moves, and so do the balloon's.
    let before = lab.domstats(&vm).unwrap();
    let moving: Vec<String> = before
        .keys()
        .filter(|key| {
            [
                "rx.bytes", "rx.pkts", "tx.bytes", "tx.pkts", "rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes",
                "fl.reqs",
            ]
            .iter()
            .any(|tail| key.ends_with(&format!(".{tail}")))
                || ["cpu.time", "balloon.last-update", "balloon.minor_fault"].contains(&key.as_str())
        })
        .cloned()
        .collect();
    assert_eq!(moving.len(), 2 * 4 + 3 * 5 + 3, "{moving:?}");
    let number = |stats: &BTreeMap<String, String>, key: &String| stats[key].parse::<u64>().unwrap();
    lab.wait_for_stats(&vm, "a step of every counter", PATIENCE, |now| {
        moving.iter().all(|key| number(now, key) > number(&before, key))
    })
    .unwrap();

    // A network card and a disk, plugged in, put to work, taken away; twice, since the slots are used again.
    let (nic, disk) =
        (vm.nic(7, NicKind::Bridge(lab.options().bridge.clone())), vm.disk("vdx", Format::Raw, 16));
    for _ in 0..2 {
        lab.attach_nic(&vm, &nic).unwrap();
        lab.attach_disk(&vm, &disk).unwrap();
        let stats = lab.domstats(&vm).unwrap();
        assert_eq!((stats["net.count"].as_str(), stats["block.count"].as_str()), ("3", "4"));
        let tap = last_tap(&stats);
        let sent = counter(&stats, "net.", &tap, "rx.bytes").unwrap();
        lab.wait_for_stats(&vm, "work of the new devices", PATIENCE, |now| {
            counter(now, "net.", &tap, "rx.bytes").unwrap() > sent
                && counter(now, "block.", "vdx", "wr.reqs").unwrap() > 0
        })
        .unwrap();
        lab.detach_nic(&vm, &nic).unwrap();
        lab.detach_disk(&vm, &disk).unwrap();
        let stats = lab.domstats(&vm).unwrap();
        assert_eq!((stats["net.count"].as_str(), stats["block.count"].as_str()), ("2", "3"));
    }

    // The rest goes on.
    let before = lab.domstats(&vm).unwrap();
    lab.wait_for_stats(&vm, "work after unplugging", PATIENCE, |now| {
        moving.iter().all(|key| number(now, key) > number(&before, key))
    })
    .unwrap();
}

#[test]
fn vms_are_paused_stopped_killed_and_removed() {
    let lab = lab("states");
    let vms = lab.up(2).unwrap();
    assert_eq!(states(&lab), ["running", "running"]);
    assert_eq!(vms[1].name, format!("{}-0002", lab.options().prefix));

    lab.pause(&vms[0]).unwrap();
    assert_eq!(states(&lab), ["paused", "running"]);
    lab.resume(&vms[0]).unwrap();
    lab.destroy(&vms[1]).unwrap();
    assert_eq!(states(&lab), ["running", "shut off"]);
    assert!(lab.pid(&vms[1]).is_err());
    lab.up(2).unwrap();
    assert_eq!(states(&lab), ["running", "running"]);

    // A stopped QEMU does not keep the lab from going down.
    let pid = lab.pid(&vms[0]).unwrap();
    lab.signal(&vms[0], "STOP").unwrap();
    lab.down().unwrap();
    assert!(lab.status().unwrap().is_empty());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!vms[0].dir.exists() && !vms[0].kernel.exists());
    lab.down().unwrap();
}

#[test]
fn half_a_lab_goes_down_whole() {
    let lab = lab("half");
    let good = lab.vm("half: defined only").unwrap();
    lab.make(&good).unwrap();
    let mut bad = lab.vm("half: refused").unwrap();
    bad.extra_devices = "<nonsense".into();
    let e = format!("{:#}", lab.start_all(&[bad]).unwrap_err());
    assert!(e.starts_with("cannot start \"half: refused\": virsh define: Failed to define domain"), "{e}");
    assert!(good.dir.exists());
    lab.down().unwrap();
    assert!(lab.status().unwrap().is_empty());
    assert!(!good.dir.exists() && !good.kernel.exists());
}

#[test]
fn foreign_vms_are_left_alone() {
    let (one, other) = (lab("one"), lab("other"));
    let vm = one.vm("the same name").unwrap();
    one.make(&vm).unwrap();
    let e = other.start_all(&[other.vm("the same name").unwrap()]).unwrap_err().to_string();
    assert_eq!(e, "a VM called \"the same name\" exists that this lab did not make: choose another --prefix");
    let e = other.start_all(std::slice::from_ref(&vm)).unwrap_err().to_string();
    assert_eq!(e, format!("\"the same name\" has the UUID {}, which this lab did not give", vm.uuid));
    other.down().unwrap();
    assert_eq!(states(&one), ["shut off"]);
    assert!(vm.dir.exists());
}

#[test]
fn a_network_card_can_have_counted_a_gigabyte() {
    let lab = lab("gigabyte");
    let mut vm = lab.vm(&format!("{}-0001", lab.options().prefix)).unwrap();
    vm.net_kib = 1 << 20;
    // No polls: one round at start, then nothing.
    vm.balloon_period = 0;
    lab.start_all(std::slice::from_ref(&vm)).unwrap();
    let sent = |now: &BTreeMap<String, String>, net: usize| {
        now.get(&format!("net.{net}.tx.bytes")).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0)
    };
    // Frames that fit end a little below the round number.
    lab.wait_for_stats(&vm, "a gigabyte", 4 * PATIENCE, |now| {
        (0..2).all(|net| sent(now, net) > (1 << 30) - 2000)
    })
    .unwrap();
}
