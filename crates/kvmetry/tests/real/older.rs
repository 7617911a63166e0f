//! The older calls, one a VM and device, tell what the bulk statistics tell.

use std::fmt::Write as _;
use std::time::Duration;

use telemetry::catalogue::{COLLECTOR_FIELDS, DISK_FIELDS, NIC_FIELDS, VM_METRICS_FIELDS};

use xtask::lab::daemon::{Daemon, DaemonOptions};

use crate::harness::{Kvmetry, Point, URI, Value, lab, start_vm, start_vms};
use crate::restart::lab_on;

/// The two ways' CPU times of a paused guest differ by this much at most: they come from different places, and the
/// asking itself takes QEMU some time.
const CPU_SLACK_NS: u64 = 20_000_000;

/// Domains of libvirt's test driver.
const TEST_DOMAINS: usize = 200;

/// Cycles over which the device cache is judged, and the share of look-ups that it must answer.
const CACHE_CYCLES: usize = 60;
const CACHE_HIT_RATE: f64 = 0.95;

/// `[[hypervisor]]` with this URI, read by the older calls only.
fn by_older_calls(uri: &str) -> String {
    format!("[collect]\ninterval = \"1s\"\n[[hypervisor]]\nuri = \"{uri}\"\nolder_calls = true\n")
}

#[test]
fn both_ways_of_reading_give_equal_lines_of_paused_guests() {
    let lab = lab("ways");
    let vms: Vec<_> = (1..=3)
        .map(|n| {
            let mut vm = lab.vm(&format!("ways {n}")).unwrap();
            // One that both ways must read alike with a user-mode NIC, which has no counters, and a CD-ROM.
            if n == 3 {
                vm.extra_devices = "<interface type='user'><model type='virtio'/></interface>\
                                    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"
                    .into();
            }
            vm
        })
        .collect();
    start_vms(&lab, &vms);
    vms.iter().for_each(|vm| lab.pause(vm).unwrap());

    let mut bulk = Kvmetry::run(&[]);
    let mut older = Kvmetry::run_with(&by_older_calls(URI), &[]);
    // Not the first: a device without counters is taken for one that never has any only at its second answer.
    bulk.next_cycles(2);
    older.next_cycles(2);
    let (bulk_cycle, older_cycle) = (bulk.next_cycle(), older.next_cycle());
    for vm in &vms {
        let sorted = |points: Vec<&Point>| {
            let mut points: Vec<Point> = points.into_iter().cloned().collect();
            points.iter_mut().for_each(|point| point.time_ns = 0);
            points.sort_by(|a, b| (&a.measurement, &a.tags).cmp(&(&b.measurement, &b.tags)));
            points
        };
        // Of a paused guest the memory's trend comes from QEMU itself, whose resident memory moves a little.
        let lines = |cycle: &crate::harness::Cycle| {
            sorted(cycle.of(vm).filter(|point| point.measurement != "vm_features").collect())
        };
        let (bulk, older) = (lines(&bulk_cycle), lines(&older_cycle));
        let heads = |points: &[Point]| -> Vec<_> {
            points.iter().map(|it| (it.measurement.clone(), it.tags.clone())).collect()
        };
        assert_eq!(heads(&bulk), heads(&older), "{}", vm.name);
        assert!(bulk.iter().filter(|point| point.measurement == "vm_devices").count() >= 5);
        for (bulk, older) in bulk.iter().zip(&older) {
            for (name, value) in &bulk.fields {
                let what = format!("{} {} {name} of {}", bulk.measurement, bulk.tag("device"), vm.name);
                let other = older
                    .fields
                    .get(name)
                    .unwrap_or_else(|| panic!("{what} is not there by the older calls"));
                match (value, other) {
                    (Value::Int(bulk), Value::Int(older)) if name.contains("time") => {
                        assert!(
                            bulk.abs_diff(*older) <= CPU_SLACK_NS,
                            "{what}: {bulk} in bulk, {older} by older calls"
                        );
                    }
                    _ => assert_eq!(value, other, "{what}"),
                }
            }
            assert_eq!(bulk.fields.len(), older.fields.len(), "{bulk:?} {older:?}");
        }
        assert_eq!(older_cycle.totals(vm).unwrap().int("collect_ok"), Some(1));
    }
    bulk.stop("TERM");
    older.stop("TERM");
}

/// What libvirt's test driver reads: a node with this many running domains, each with a NIC and two disks.
fn test_node(domains: usize) -> String {
    let mut xml = String::from("<node>\n");
    for n in 0..domains {
        let _ = writeln!(
            xml,
            "<domain type='test'><name>test {n}</name><uuid>7e57d0a1-0000-4000-8000-{n:012x}</uuid>\
             <memory>1048576</memory><currentMemory>524288</currentMemory><vcpu>2</vcpu><os><type>hvm</type></os>\
             <devices>\
             <interface type='network'><mac address='52:54:00:00:{:02x}:{:02x}'/><source network='default'/>\
             <target dev='test{n}'/></interface>\
             <disk type='file' device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>\
             <disk type='file' device='cdrom'><source file='/b'/><target dev='hdc' bus='ide'/></disk>\
             <memballoon model='virtio'/>\
             </devices></domain>",
            n / 256,
            n % 256
        );
    }
    xml + "</node>\n"
}

#[test]
fn a_driver_without_bulk_statistics_is_read_whole_and_device_names_come_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node.xml");
    std::fs::write(&node, test_node(TEST_DOMAINS)).unwrap();
    let uri = format!("test+unix://{}", node.display());
    let mut kvmetry = Kvmetry::run_as(&["--uri", &uri, "--interval", "1s"]);
    let cycles = kvmetry.wait_for("60 cycles", Duration::from_secs(90), |seen| {
        let cycles = seen.cycles();
        (cycles.len() >= CACHE_CYCLES).then_some(cycles)
    });

    for (number, cycle) in cycles.iter().enumerate() {
        let count =
            |measurement: &str| cycle.points.iter().filter(|it| it.measurement == measurement).count();
        let counts = (count("vm_metrics"), count("vm_devices"), count("vm_totals"));
        assert_eq!(counts, (TEST_DOMAINS, 3 * TEST_DOMAINS, TEST_DOMAINS), "cycle {number}");
        for totals in cycle.points.iter().filter(|it| it.measurement == "vm_totals") {
            assert_eq!(totals.int("collect_ok"), Some(1), "cycle {number}: {totals:?}");
        }
    }
    let last = cycles.last().unwrap();
    let of = |n: usize, measurement: &str| {
        let name = format!("test {n}");
        last.points.iter().find(|it| it.measurement == measurement && it.tag("name") == name).unwrap()
    };
    let metrics = of(TEST_DOMAINS - 1, "vm_metrics");
    let said = VM_METRICS_FIELDS.each_ref().map(|field| (field.name, metrics.int(field.name)));
    assert_eq!(
        said[..4].iter().map(|it| it.1.unwrap()).collect::<Vec<_>>(),
        [1, 2, 1_048_576, 524_288],
        "{said:?}"
    );
    for (devtype, device, fields) in [
        ("nic", "test7", NIC_FIELDS.each_ref().map(|field| field.name).to_vec()),
        ("disk", "vda", DISK_FIELDS.each_ref().map(|field| field.name).to_vec()),
        ("disk", "hdc", DISK_FIELDS.each_ref().map(|field| field.name).to_vec()),
    ] {
        let is_it = |it: &&Point| it.tag("name") == "test 7" && it.tag("device") == device;
        let point = last.points.iter().find(is_it).unwrap();
        assert_eq!(point.tag("devtype"), devtype);
        assert!(fields.iter().all(|field| point.int(field).is_some()), "{point:?}");
    }

    let counted = COLLECTOR_FIELDS.iter().map(|it| it.name).filter(|it| it.starts_with("cache_"));
    let counted: Vec<i64> = counted.map(|name| last.collector.int(name).unwrap()).collect();
    let [hits, misses] = counted[..] else { panic!("{counted:?}") };
    assert_eq!((hits + misses) as usize, cycles.len() * TEST_DOMAINS, "one look-up a domain and cycle");
    let rate = hits as f64 / (hits + misses) as f64;
    assert!(rate >= CACHE_HIT_RATE, "hit rate {rate}: {hits} hits, {misses} misses");
    assert_eq!(last.collector.int("failures"), Some(0));
    kvmetry.stop("INT");
}

#[test]
fn without_cgroups_cpu_time_comes_from_domain_info_and_vms_are_whole() {
    let options = DaemonOptions { qemu_conf: "cgroup_controllers = [ ]".into(), ..DaemonOptions::default() };
    let daemon = Daemon::running(options).unwrap();
    let lab = lab_on(&daemon, "no-cgroups");
    let vm = start_vm(&lab, "no cgroups");
    let refused = lab.virsh(&["cpu-stats", &vm.uuid, "--total"]).unwrap_err().to_string();
    assert!(refused.contains("operation is not valid"), "this libvirt has CPU statistics: {refused}");

    let mut kvmetry = Kvmetry::run_with(&by_older_calls(&daemon.uri_read_only()), &[]);
    for cycle in kvmetry.next_cycles(3) {
        let (metrics, totals) = (cycle.line("vm_metrics", &vm).unwrap(), cycle.totals(&vm).unwrap());
        assert_eq!(totals.int("collect_ok"), Some(1), "{totals:?}");
        assert!(metrics.int("cputime_ns") > Some(0), "{metrics:?}");
        assert_eq!(metrics.int("cputime_ns"), totals.int("cputime"));
        // What is never given is written as 0.
        assert_eq!([totals.int("timeusr"), totals.int("timesys")], [Some(0); 2], "{totals:?}");
    }
    assert!(!kvmetry.stderr().contains("WARN"), "{}", kvmetry.stderr());
    kvmetry.stop("TERM");
}
