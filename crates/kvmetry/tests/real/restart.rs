//! libvirtd comes late, restarts and dies while `kvmetry run` goes on: a gap in the data, nothing else. The daemon is
//! the test's own ([`xtask::lab::daemon`]).

use std::time::Duration;

use xtask::lab::daemon::{Daemon, DaemonOptions};
use xtask::lab::{Lab, LabGuard, LabOptions, LabVm};

use crate::harness::{Cycle, Kvmetry, SOON, Seen, now_ns, start_vms};

/// After some seconds without a daemon the next try is at most this far away: waits double from half a second.
const BACK_OFF: Duration = Duration::from_secs(35);

/// What is logged, at the level debug, whenever a try to connect has failed.
const FAILED_TRY: &str = "before the next try to connect";

/// A lab on a daemon of the test's own, which must be dropped after it.
pub(crate) fn lab_on(daemon: &Daemon, name: &str) -> LabGuard {
    let options = LabOptions {
        prefix: format!("kvmetry-real-{name}-{}", std::process::id()),
        uri: daemon.uri(),
        balloon_period: 1,
        quiet: true,
        ..LabOptions::default()
    };
    Lab::new(options).unwrap().guard()
}

/// Whether this VM was read whole: 1 or 0, and `None` where it has no line.
pub(crate) fn collect_ok(cycle: &Cycle, vm: &LabVm) -> Option<i64> {
    cycle.totals(vm).map(|line| line.int("collect_ok").unwrap())
}

/// All of these VMs were read whole.
pub(crate) fn all_whole(cycle: &Cycle, vms: &[LabVm]) -> bool {
    vms.iter().all(|vm| collect_ok(cycle, vm) == Some(1))
}

/// A number of the collector's own.
pub(crate) fn own(cycle: &Cycle, field: &str) -> i64 {
    cycle.collector.int(field).unwrap_or_else(|| panic!("no {field} in {:?}", cycle.collector))
}

/// The first cycle in which all of these VMs were read whole after this many reconnects.
fn read_again<'a>(vms: &'a [LabVm], reconnects: i64) -> impl Fn(&Seen) -> Option<Cycle> + 'a {
    move |seen| seen.cycles().into_iter().find(|it| own(it, "reconnects") == reconnects && all_whole(it, vms))
}

#[test]
fn a_daemon_comes_late_restarts_and_dies() {
    let mut daemon = Daemon::new(DaemonOptions::default()).unwrap();
    let args = ["--uri", &daemon.uri_read_only(), "--interval", "1s"];
    let mut kvmetry = Kvmetry::run_telling_all(&args);
    let absent = "no such socket: is the daemon running";
    kvmetry.wait_for_stderr_times(FAILED_TRY, 3, SOON);
    assert!(kvmetry.seen().points.is_empty(), "nobody knows yet whose lines these are: {:?}", kvmetry.seen());
    assert_eq!(
        kvmetry.stderr().matches(absent).count(),
        1,
        "told once, not every cycle:\n{}",
        kvmetry.stderr()
    );

    // It comes: reading begins by itself.
    daemon.start().unwrap();
    kvmetry.wait_for_stderr("connected host=", BACK_OFF);
    let lab = lab_on(&daemon, "restart");
    let vms = ["restart-a", "restart-b"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let first = kvmetry.wait_for("both VMs", SOON, read_again(&vms, 0));

    // It restarts as for an upgrade.
    daemon.restart().unwrap();
    let second = kvmetry.wait_for("both VMs after the restart", BACK_OFF, read_again(&vms, 1));

    // It dies and stays away a while.
    daemon.kill().unwrap();
    let killed = now_ns();
    kvmetry.wait_for("a cycle that reads nothing", SOON, |seen| {
        seen.cycles_after(killed).into_iter().find(|it| it.points.is_empty())
    });
    let tries = kvmetry.stderr().matches(FAILED_TRY).count();
    kvmetry.wait_for_stderr_times(FAILED_TRY, tries + 2, SOON);
    daemon.start().unwrap();
    let third = kvmetry.wait_for("both VMs after the daemon's death", BACK_OFF, read_again(&vms, 2));
    assert_eq!(kvmetry.stderr().matches("nobody listens").count(), 1, "told once: {}", kvmetry.stderr());

    // The VMs are the same, and none of their counters was taken for a new one.
    for vm in &vms {
        let [first, second, third] = [&first, &second, &third].map(|it| it.totals(vm).unwrap());
        assert_eq!([first.tag("VMID"), second.tag("VMID")], [third.tag("VMID"); 2]);
        for field in ["cputime", "disk_wr_bytes", "net_txbytes"] {
            let [first, second, third] = [first, second, third].map(|it| it.int(field).unwrap());
            assert!(first <= second && second <= third, "{field}: {first}, {second}, {third}");
        }
    }
    let seen = kvmetry.stop("TERM");
    // A gap and nothing else: no cycle twice, no VM twice in a cycle, no half-read VM.
    let cycles = seen.cycles();
    assert!(cycles.is_sorted_by(|a, b| a.time_ns < b.time_ns));
    for cycle in &cycles {
        for vm in &vms {
            let lines = cycle.of(vm).filter(|it| it.measurement == "vm_totals").count();
            assert!(lines <= 1, "{lines} lines in {cycle:?}");
        }
    }
}

#[test]
fn given_up_calls_end_with_the_daemon_that_held_them() {
    let mut daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "given-up");
    let vms = ["given-up-a", "given-up-b", "given-up-c"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let [stopped, others @ ..] = &vms;
    let mut kvmetry = Kvmetry::run_as(&["--uri", &daemon.uri_read_only(), "--interval", "1s"]);
    kvmetry.wait_for("all VMs", SOON, read_again(&vms, 0));
    lab.signal(stopped, "STOP").unwrap();
    kvmetry.wait_for("a given-up call", SOON, |seen| seen.last().filter(|it| own(it, "abandoned_calls") > 0));

    // One worker of this daemon hangs, so it does not end by itself, and is killed as its service would do. The new
    // process holds none of the old one's calls; it holds the stopped VM's job itself, waiting for the monitor, so that
    // no call of ours hangs there.
    daemon.restart().unwrap();
    kvmetry.wait_for("the others after the restart, and no given-up call", BACK_OFF, |seen| {
        let none_given_up = |it: &Cycle| own(it, "reconnects") == 1 && own(it, "abandoned_calls") == 0;
        seen.last().filter(|it| none_given_up(it) && all_whole(it, others))
    });
    for cycle in kvmetry.next_cycles(5) {
        assert!(all_whole(&cycle, others), "{cycle:?}");
        assert_eq!(collect_ok(&cycle, stopped), Some(0), "{cycle:?}");
        assert_eq!(own(&cycle, "abandoned_calls"), 0, "{:?}", cycle.collector);
    }
    lab.signal(stopped, "CONT").unwrap();
    kvmetry.wait_for("all VMs again", SOON, |seen| seen.last().filter(|it| all_whole(it, &vms)));
    kvmetry.stop("TERM");
}
