//! VMs whose monitor does not answer, because their QEMU is stopped. The daemon is the test's own
//! ([`xtask::lab::daemon`]): hung calls take workers from everybody.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xtask::lab::daemon::{Daemon, DaemonOptions};
use xtask::lab::{Lab, LabVm};

use crate::harness::{Cycle, Kvmetry, SOON, now_ns, start_vms};
use crate::restart::{all_whole, collect_ok, lab_on, own};

const INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_NS: i64 = 5_000_000_000;

/// 1 of 10 is stopped for 2 minutes.
const ONE_STOPPED_CYCLES: usize = 24;
/// 6 of 10 are stopped for 3 minutes, and another client looks every 10 s.
const SIX_STOPPED: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Another client's call about a healthy VM answers within this.
const OTHERS_WAIT: Duration = Duration::from_secs(2);

fn ten_vms(lab: &Lab, name: &str) -> Vec<LabVm> {
    let vms: Vec<_> = (0..10).map(|n| lab.vm(&format!("{name}-{n}")).unwrap()).collect();
    start_vms(lab, &vms);
    vms
}

fn run(daemon: &Daemon, interval: &str) -> Kvmetry {
    Kvmetry::run_as(&["--uri", &daemon.uri_read_only(), "--interval", interval])
}

#[test]
fn one_stopped_vm_costs_the_others_nothing() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "one");
    let vms = ten_vms(&lab, "one");
    let stopped = &vms[3];
    let others: Vec<LabVm> = vms.iter().filter(|vm| vm.name != stopped.name).cloned().collect();

    // Stopped before the first cycle, which knows nothing of it yet.
    lab.signal(stopped, "STOP").unwrap();
    let mut kvmetry = run(&daemon, "5s");
    let patience = INTERVAL * (ONE_STOPPED_CYCLES as u32 + 2);
    let cycles = kvmetry.wait_for("cycles with a stopped VM", patience, |seen| {
        let cycles = seen.cycles();
        (cycles.len() > ONE_STOPPED_CYCLES).then_some(cycles)
    });
    for (number, cycle) in cycles.iter().enumerate() {
        let missing: Vec<_> =
            others.iter().filter(|vm| collect_ok(cycle, vm) != Some(1)).map(|vm| &vm.name).collect();
        assert!(missing.is_empty(), "cycle {number}: {missing:?} not read whole: {cycle:?}");
        assert_eq!(collect_ok(cycle, stopped), Some(0), "cycle {number}: {cycle:?}");
        // Its monitor's fields are left out, not written as 0; what is known without it is there.
        let totals = cycle.totals(stopped).unwrap();
        assert_eq!(totals.int("state"), Some(1), "cycle {number}: {totals:?}");
        for field in ["memrss", "disk_rd_req"] {
            assert_eq!(totals.int(field), None, "cycle {number}: {totals:?}");
        }
        assert!((1..=2).contains(&own(cycle, "abandoned_calls")), "cycle {number}: {:?}", cycle.collector);
        let stuck = i64::from(number >= 1);
        assert_eq!(own(cycle, "stuck_vms"), stuck, "cycle {number}: {:?}", cycle.collector);
    }
    // The first cycle stands on no tick; no later one was skipped.
    let times: Vec<_> = cycles[1..].iter().map(|it| it.time_ns).collect();
    assert!(times.windows(2).all(|it| it[1] - it[0] == INTERVAL_NS), "{times:?}");

    // Once it is set aside it costs no time.
    let longest = cycles[2..].iter().map(|it| own(it, "cycle_ns")).max().unwrap();
    assert!(longest < INTERVAL_NS * 2 / 5, "a cycle beside a stuck VM took {longest} ns");

    lab.signal(stopped, "CONT").unwrap();
    let back = kvmetry.next_cycles(2);
    assert_eq!(collect_ok(&back[1], stopped), Some(1), "two cycles after SIGCONT: {:?}", back[1]);
    assert!(all_whole(&back[1], &others));
    assert_eq!(
        [own(&back[1], "stuck_vms"), own(&back[1], "abandoned_calls")],
        [0, 0],
        "{:?}",
        back[1].collector
    );
    kvmetry.stop("TERM");
}

#[test]
fn six_stopped_vms_leave_the_daemon_to_others() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "six");
    let vms = ten_vms(&lab, "six");
    let (stopped, healthy) = vms.split_at(6);
    let mut kvmetry = run(&daemon, "5s");
    kvmetry.wait_for("all VMs", SOON, |seen| seen.last().filter(|it| all_whole(it, &vms)));

    stopped.iter().for_each(|vm| lab.signal(vm, "STOP").unwrap());
    let (begun, from) = (Instant::now(), now_ns());
    let mut look_at = begun;
    while begun.elapsed() < SIX_STOPPED {
        for (at, flags) in [(0, &["--state"][..]), (1, &[])] {
            let asked = Instant::now();
            let answer = lab.virsh(&[&["domstats", &healthy[at].uuid], flags].concat()).unwrap();
            let took = asked.elapsed();
            assert!(answer.contains("state.state=1"), "{answer}");
            assert!(
                took < OTHERS_WAIT,
                "virsh domstats {flags:?} took {took:?}, {:?} after the VMs were stopped",
                begun.elapsed()
            );
        }
        look_at += LOOK_EVERY;
        kvmetry.wait_for("the next look", LOOK_EVERY * 2, |_| (Instant::now() >= look_at).then_some(()));
    }
    let cycles = kvmetry.seen().cycles_after(from);
    for (number, cycle) in cycles.iter().enumerate() {
        let abandoned = own(cycle, "abandoned_calls");
        assert!(abandoned <= 4, "cycle {number}: {abandoned} calls given up");
        // What needs no monitor is known of every VM; a stopped one is never called whole.
        for vm in &vms {
            assert!(collect_ok(cycle, vm).is_some(), "cycle {number}: nothing of {}: {cycle:?}", vm.name);
        }
        // The first may have read some of them before they were stopped.
        let whole = stopped.iter().filter(|vm| number > 0 && collect_ok(cycle, vm) == Some(1)).count();
        assert_eq!(whole, 0, "cycle {number}: {cycle:?}");
    }
    assert!(cycles.iter().any(|it| own(it, "abandoned_calls") > 0), "no call was given up");
    assert!(
        kvmetry.stderr().contains("only state, interfaces and domain info are read"),
        "{}",
        kvmetry.stderr()
    );

    stopped.iter().for_each(|vm| lab.signal(vm, "CONT").unwrap());
    let back: Vec<Cycle> = kvmetry.next_cycles(4);
    assert!(all_whole(&back[3], &vms), "four cycles after SIGCONT: {:?}", back[3]);
    assert_eq!(own(&back[3], "abandoned_calls"), 0, "{:?}", back[3].collector);
    kvmetry.stop("TERM");
}

#[test]
fn one_of_two_stopped_vms_comes_back_and_is_read_while_the_other_still_hangs() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "two");
    let vms = ["two-a", "two-b", "two-c"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let [back, stopped, healthy] = &vms;
    // All three in one shard, and stopped before the first cycle: two calls hang in it, one over each.
    [back, stopped].into_iter().for_each(|vm| lab.signal(vm, "STOP").unwrap());
    let mut kvmetry = run(&daemon, "2s");
    let both =
        kvmetry.wait_for("two stuck VMs", SOON, |seen| seen.last().filter(|it| own(it, "stuck_vms") == 2));
    assert_eq!(own(&both, "abandoned_calls"), 2, "{:?}", both.collector);

    lab.signal(back, "CONT").unwrap();
    let cycles = kvmetry.next_cycles(3);
    for (number, cycle) in cycles.iter().enumerate() {
        assert_eq!([collect_ok(cycle, stopped), collect_ok(cycle, healthy)], [Some(0), Some(1)], "{cycle:?}");
        assert!(number == 0 || collect_ok(cycle, back) == Some(1), "two cycles after SIGCONT: {cycle:?}");
    }
    assert_eq!(own(&cycles[2], "stuck_vms"), 1, "{:?}", cycles[2].collector);

    lab.signal(stopped, "CONT").unwrap();
    let last = kvmetry.next_cycles(2).remove(1);
    assert!(all_whole(&last, &vms), "two cycles after SIGCONT: {last:?}");
    kvmetry.stop("TERM");
}

#[test]
fn a_vm_that_goes_on_is_read_though_the_call_over_it_now_hangs_over_another() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "relay");
    let vms = ["relay-a", "relay-b", "relay-c"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let [first, second, healthy] = &vms;
    let mut kvmetry = run(&daemon, "2s");
    kvmetry.wait_for("all VMs", SOON, |seen| seen.last().filter(|it| all_whole(it, &vms)));
    lab.signal(first, "STOP").unwrap();
    kvmetry.wait_for("a stuck VM", SOON, |seen| seen.last().filter(|it| own(it, "stuck_vms") == 1));
    // The call that waits for the first goes on through its list to the second.
    lab.signal(second, "STOP").unwrap();
    lab.signal(first, "CONT").unwrap();
    let cycles = kvmetry.next_cycles(4);
    for (number, cycle) in cycles.iter().enumerate() {
        assert!(number == 0 || collect_ok(cycle, first) == Some(1), "two cycles after SIGCONT: {cycle:?}");
        assert_eq!([collect_ok(cycle, second), collect_ok(cycle, healthy)], [Some(0), Some(1)], "{cycle:?}");
    }
    lab.signal(second, "CONT").unwrap();
    let last = kvmetry.next_cycles(2).remove(1);
    assert!(all_whole(&last, &vms), "two cycles after SIGCONT: {last:?}");
    kvmetry.stop("TERM");
}

/// While libvirtd destroys a VM whose QEMU hangs, 10 s and more, nothing that touches it is answered.
#[test]
fn destroying_a_hung_vm_that_another_client_holds_costs_the_others_nothing() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "doomed");
    let vms = ["doomed-a", "doomed-b", "doomed-c"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let [doomed, others @ ..] = &vms;
    lab.signal(doomed, "STOP").unwrap();
    let _holder = hold(&daemon, doomed);
    let mut kvmetry = run(&daemon, "2s");
    kvmetry.wait_for("a busy VM", SOON, |seen| seen.last().filter(|it| own(it, "stuck_vms") == 1));
    let from = now_ns();
    let destroying = Instant::now();
    lab.destroy(doomed).unwrap();
    assert!(destroying.elapsed() > Duration::from_secs(4), "too short to tell: {:?}", destroying.elapsed());
    kvmetry.next_cycles(2);
    let seen = kvmetry.stop("TERM");
    for cycle in seen.cycles_after(from) {
        assert!(all_whole(&cycle, others), "{cycle:?}");
        assert!(own(&cycle, "cycle_ns") < 2_000_000_000, "{:?}", cycle.collector);
        // Rule 7: once it is shut off it has no line.
        let state = cycle.totals(doomed).and_then(|totals| totals.int("state"));
        assert_ne!(state, Some(5), "{cycle:?}");
    }
    let stopped: Vec<_> = seen.events(doomed).filter(|it| it.tag("event") == "stopped").collect();
    assert!(matches!(&stopped[..], [one] if !one.tag("VMID").is_empty()), "{stopped:?}");
}

/// Another client's process, killed when it is dropped.
struct Other(Child);

/// Lets another client hold the job of a stopped VM.
fn hold(daemon: &Daemon, vm: &LabVm) -> Other {
    let virsh = Command::new("virsh")
        .args(["-c", &daemon.uri(), "domstats", &vm.uuid])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Other)
        .unwrap();
    // The job is held once nobody gets any more what needs it. Should this look be the first to reach the monitor, it
    // holds the job itself, and is another client too.
    let look = ["2", "virsh", "-c", &daemon.uri(), "domstats", "--balloon", "--nowait", &vm.uuid];
    let begun = Instant::now();
    while String::from_utf8_lossy(&Command::new("timeout").args(look).output().unwrap().stdout)
        .contains("balloon.rss")
    {
        assert!(begun.elapsed() < SOON, "no call hangs on a stopped VM");
    }
    virsh
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vm_held_by_another_client_is_asked_on() {
    let daemon = Daemon::running(DaemonOptions::default()).unwrap();
    let lab = lab_on(&daemon, "held");
    let vms = ["held-a", "held-b"].map(|name| lab.vm(name).unwrap());
    start_vms(&lab, &vms);
    let [held, other] = &vms;
    lab.signal(held, "STOP").unwrap();
    let virsh = hold(&daemon, held);
    let mut kvmetry = run(&daemon, "1s");
    let cycles = kvmetry.wait_for("cycles with a held VM", SOON, |seen| {
        let cycles = seen.cycles();
        (cycles.len() >= 5).then_some(cycles)
    });
    for cycle in &cycles {
        assert_eq!([collect_ok(cycle, held), collect_ok(cycle, other)], [Some(0), Some(1)], "{cycle:?}");
        // With NOWAIT a held VM answers at once: none of our calls hangs.
        assert_eq!(own(cycle, "abandoned_calls"), 0, "{:?}", cycle.collector);
    }
    lab.signal(held, "CONT").unwrap();
    let back = kvmetry.next_cycles(2);
    assert!(all_whole(&back[1], &vms), "two cycles after SIGCONT: {:?}", back[1]);
    drop(virsh);
    kvmetry.stop("TERM");
}
