//! libvirtd goes away and comes back. The daemon is the test's own ([`xtask::lab::daemon`]).

use std::time::Duration;

use xtask::lab::daemon::{Daemon, DaemonOptions};
use xtask::lab::{Lab, LabGuard, LabOptions, LabVm};

use crate::harness::{Cycle, Kvmetry, SOON, start_vms};

/// A lab on a daemon of the test's own. Drop it before the daemon.
pub fn lab_on(daemon: &Daemon, name: &str) -> LabGuard {
    let options = LabOptions {
        prefix: format!("kvmetry-real-{name}-{}", std::process::id()),
        uri: daemon.uri(),
        quiet: true,
        ..LabOptions::default()
    };
    Lab::new(options).unwrap().guard()
}

/// All of these VMs were read whole.
pub fn all_whole(cycle: &Cycle, vms: &[LabVm]) -> bool {
    vms.iter().all(|vm| is_whole(cycle, vm))
}

/// This VM was read whole.
pub fn is_whole(cycle: &Cycle, vm: &LabVm) -> bool {
    cycle.totals(vm).is_some_and(|line| line.int("collect_ok") == Some(1))
}

#[test]
fn smoke() {
    let mut daemon =
        Daemon::running(DaemonOptions::default().set("log_outputs", "1:file:/tmp/scratch-faults/dlog").set(
            "log_filters",
            "1:qemu.qemu_monitor 1:rpc.rpcserver 1:remote 3:util 3:event 3:rpc 1:qemu 3:conf",
        ))
        .unwrap();
    let lab = lab_on(&daemon, "restart");
    let vms = ["a", "b", "c"].map(|name| lab.vm(&format!("restart-{name}")).unwrap());
    start_vms(&lab, &vms);
    let mut kvmetry = Kvmetry::run_as(&["--uri", &daemon.uri_read_only(), "--interval", "1s"]);
    kvmetry.wait_for("all", SOON, |seen| seen.last().filter(|it| all_whole(it, &vms)));
    kvmetry.fail("x");
    lab.signal(&vms[0], "STOP").unwrap();
    std::thread::sleep(Duration::from_secs(5));
    eprintln!("{:?}", kvmetry.next_cycle().collector);
    let b = std::time::Instant::now();
    daemon.stop().unwrap();
    eprintln!("stop {:?}", b.elapsed());
    let b = std::time::Instant::now();
    daemon.start().unwrap();
    eprintln!("start {:?}", b.elapsed());
    for _ in 0..20 {
        let c = kvmetry.next_cycle();
        eprintln!(
            "{:?} {:?} {:?}",
            b.elapsed(),
            c.collector.fields,
            vms.iter().map(|v| c.totals(v).map(|x| x.int("collect_ok"))).collect::<Vec<_>>()
        );
    }
    lab.signal(&vms[0], "CONT").unwrap();
    for _ in 0..6 {
        let c = kvmetry.next_cycle();
        eprintln!(
            "{:?} {:?} {:?}",
            b.elapsed(),
            c.collector.fields,
            vms.iter().map(|v| c.totals(v).map(|x| x.int("collect_ok"))).collect::<Vec<_>>()
        );
    }
    kvmetry.fail("look");
}
