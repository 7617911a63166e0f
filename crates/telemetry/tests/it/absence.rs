//! What is missing now is left out; what is never given is 0; a sum is whole or absent.

use telemetry::{CpuSource, DeviceReading, Driver, Groups, TrackerOptions};

use crate::support::{Bench, Lines, Owned, Params, Parsed, RUNNING, UUID, domstats, running_without};

/// What NOWAIT leaves of a busy domain's record: with QEMU, keys vanish, values do not become 0.
fn busy() -> Params {
    running_without(&["balloon.rss", ".rd.", ".wr."])
}

/// What is read without the job: state, interface, and the vCPU count from domain info.
fn job_free() -> Params {
    running_without(&["cpu.time", "cpu.user", "cpu.system", "balloon.", "block."])
}

fn totals(lines: &Lines) -> String {
    lines.brief().remove("vm_totals").unwrap_or_default()
}

#[test]
fn a_busy_domain_keeps_what_is_known_without_its_monitor() {
    let mut bench = Bench::new();
    bench.cycle(0, &domstats(RUNNING));
    let (encoded, lines) = bench.cycle(5, &busy());
    assert!(bench.sample.busy);
    assert_eq!(encoded.missing, Groups::MEMORY.with(Groups::DISKS));
    assert_eq!(encoded.missing.to_string(), "memory, disks");
    let uuid = UUID.parse().unwrap();
    assert_eq!(bench.tracker.unread_devices(&uuid).collect::<Vec<_>>(), ["vda", "vdb"]);
    let brief = lines.brief();
    assert_eq!(brief.keys().collect::<Vec<_>>(), ["vm_devices/vnet0", "vm_metrics", "vm_totals"]);
    assert_eq!(
        brief["vm_totals"],
        "net_rxbytes=1 net_rxpackets=2 net_rxerrors=3 net_rxdrops=4 \
         net_txbytes=5 net_txpackets=6 net_txerrors=7 net_txdrops=8 \
         state=1 cpus=2 cputime=700 timeusr=300 timesys=400 memactual=32768 collect_ok=0 collect_age_s=5"
    );
}

#[test]
fn a_stuck_domain_keeps_its_totals_line() {
    let mut bench = Bench::new();
    bench.cycle(0, &domstats(RUNNING));
    let (encoded, lines) = bench.cycle(12, &job_free());
    assert!(!encoded.ok());
    let expect = "net_rxbytes=1 net_rxpackets=2 net_rxerrors=3 net_rxdrops=4 \
                  net_txbytes=5 net_txpackets=6 net_txerrors=7 net_txdrops=8 \
                  state=1 cpus=2 collect_ok=0 collect_age_s=12";
    assert_eq!(totals(&lines), expect, "its CPU time came from the bulk record, so none is written");
    // Domain info does not change the source.
    bench.read(&job_free()).cpu.info_time = Some(telemetry::units::Nanos(699));
    assert_eq!(totals(&Lines::parse(&bench.encode(12).1)), expect);

    // It answers again.
    let (encoded, lines) = bench.cycle(15, &domstats(RUNNING));
    assert!(encoded.ok());
    assert!(totals(&lines).ends_with("collect_ok=1 collect_age_s=0"));
}

#[test]
fn a_domain_stuck_from_the_first_has_a_line_too() {
    let mut bench = Bench::new();
    let (encoded, lines) = bench.cycle(0, &domstats("state.state=1"));
    assert!(!encoded.ok());
    assert_eq!(totals(&lines), "state=1 collect_ok=0 collect_age_s=0");
    let (_, lines) = bench.cycle(7, &domstats("state.state=1"));
    assert_eq!(totals(&lines), "state=1 collect_ok=0 collect_age_s=7");
    assert_eq!(bench.tracker.cpu_source(&UUID.parse().unwrap()), None);
}

#[test]
fn what_is_never_given_is_zero() {
    // A guest without a balloon driver, read with its job held.
    let (encoded, lines) = Bench::new().cycle(0, &domstats(RUNNING));
    assert!(encoded.ok());
    assert!(totals(&lines).contains(
        "memrss=48000 memavailable=0 memusable=0 memswap_in=0 memswap_out=0 memmajor_fault=0 memminor_fault=0 \
         memdisk_cache=0 "
    ));
    // A domain without devices.
    let none = "net.count=0\n block.count=0\n balloon.rss=1";
    let line = totals(&Bench::new().cycle(0, &domstats(none)).1);
    assert!(line.starts_with("net_rxbytes=0 ") && line.contains(" disk_rd_req=0 "), "{line}");
    // A driver without resident memory in its records (LXC).
    let mut bench = Bench::new();
    bench.driver = Driver::Other;
    let (encoded, lines) = bench.cycle(0, &running_without(&["rss"]));
    assert!(encoded.ok());
    assert!(totals(&lines).contains("memactual=32768 memrss=0 memavailable=0"));
}

#[test]
fn a_failed_older_call_is_missing_now() {
    let mut bench = Bench::new();
    let read = |bench: &mut Bench, nic: Option<DeviceReading>, disk: Option<DeviceReading>| {
        let sample = bench.read(&Params::new());
        sample.memory_stats([(7, 1)]);
        sample.list_nics();
        sample.list_disks();
        match nic {
            None => sample.nic("vnet0", &[1 << 30, 0, 0, 0, 0, 0, 0, 0]),
            Some(lack) => sample.nic_lacks("vnet0", lack),
        }
        sample.disk("vda", &[1, 2, 3, 4, 5]);
        match disk {
            None => sample.disk("vdb", &[10, 20, 30, 40, -1]),
            Some(lack) => sample.disk_lacks("vdb", lack),
        }
    };
    // Device readings, whether each sum is there.
    let mut check = |seconds, nic, disk, net_sum, disk_sum| {
        read(&mut bench, nic, disk);
        let lines = Lines::parse(&bench.encode(seconds).1);
        let line = lines.get("vm_totals").unwrap();
        assert_eq!(line.field("net_rxbytes").is_some(), net_sum, "{nic:?}");
        assert_eq!(line.field("disk_errors"), disk_sum, "{disk:?}");
        assert_eq!(lines.0.iter().any(|line| line.tag("device") == Some("vnet0")), nic.is_none());
    };
    let whole = Some(&Parsed::Int(5));
    check(0, None, None, true, whole);
    // Whatever the reason: what has counted before is missing now, however often it fails.
    for (seconds, lack) in [
        (5, DeviceReading::NotRead),
        (10, DeviceReading::NoCounters),
        (15, DeviceReading::NoCounters),
        (20, DeviceReading::Unsupported),
    ] {
        check(seconds, Some(lack), None, false, whole);
    }
    check(25, None, Some(DeviceReading::NotRead), true, None);
    check(30, None, None, true, whole);
}

#[test]
fn a_device_that_never_counts_does_not_block_its_sum() {
    // Readings of a disk that has never given counters, and whether the sum of the others is written at the last one.
    let check = |readings: &[DeviceReading], expect: bool| {
        let mut bench = Bench::new();
        let mut there = None;
        for (at, reading) in readings.iter().enumerate() {
            let sample = bench.read(&Params::new());
            sample.list_disks();
            sample.disk("vda", &[1; 5]);
            sample.disk_lacks("vdb", *reading);
            let lines = Lines::parse(&bench.encode(at as u64 * 5).1);
            there = lines.get("vm_totals").unwrap().field("disk_rd_req").cloned();
        }
        assert_eq!(there, expect.then_some(Parsed::Int(1)), "{readings:?}");
    };
    use DeviceReading::{NoCounters, NotRead, Unsupported};
    check(&[Unsupported], true);
    check(&[NoCounters], false);
    check(&[NoCounters, NoCounters], true);
    check(&[NotRead, NotRead, NotRead], false);
    check(&[NoCounters, NotRead, NoCounters], true);
    check(&[Unsupported, NotRead], true);

    // In a bulk record the other disks show that the table was read, so one record is enough.
    let lines = Bench::new().cycle(0, &running_without(&["block.1.rd", "block.1.wr"])).1;
    assert_eq!(lines.get("vm_totals").unwrap().field("disk_rd_req"), Some(&Parsed::Int(10)));
    // A NIC with a name but without counters: at the second record.
    let mut bench = Bench::new();
    let silent = running_without(&["net.0.rx", "net.0.tx"]);
    assert_eq!(bench.cycle(0, &silent).1.get("vm_totals").unwrap().field("net_rxbytes"), None);
    assert_eq!(
        bench.cycle(5, &silent).1.get("vm_totals").unwrap().field("net_rxbytes"),
        Some(&Parsed::Int(0))
    );
}

#[test]
fn plugging_and_unplugging_show_in_the_next_cycle() {
    let mut bench = Bench::new();
    let sum = |bench: &mut Bench, seconds, params: &Params| {
        let (encoded, lines) = bench.cycle(seconds, params);
        assert!(encoded.ok());
        lines.get("vm_totals").unwrap().field("disk_rd_req").cloned()
    };
    let one_disk = running_without(&["block.1."]);
    assert_eq!(sum(&mut bench, 0, &domstats(RUNNING)), Some(Parsed::Int(30)));
    assert_eq!(
        sum(&mut bench, 5, &one_disk),
        Some(Parsed::Int(10)),
        "steps back: a reset for whoever reads it"
    );
    assert_eq!(sum(&mut bench, 10, &domstats(RUNNING)), Some(Parsed::Int(30)));
    // Positions are not identities: the first disk goes, the second moves up.
    let mut moved = running_without(&["block.0."]);
    moved.iter_mut().for_each(|(key, _)| *key = key.replace("block.1.", "block.0."));
    assert_eq!(sum(&mut bench, 15, &moved), Some(Parsed::Int(20)));
}

#[test]
fn a_name_that_comes_twice_counts_once() {
    let mut params = domstats(RUNNING);
    params
        .iter_mut()
        .filter(|(key, _)| key == "block.1.name")
        .for_each(|(_, name)| *name = Owned::Str("vda".into()));
    let lines = Bench::new().cycle(0, &params).1;
    assert_eq!(lines.get("vm_totals").unwrap().field("disk_rd_req"), Some(&Parsed::Int(10)));
    assert_eq!(lines.0.iter().filter(|line| line.tag("device") == Some("vda")).count(), 1);
}

#[test]
fn sums_stop_at_the_largest_integer() {
    let text = format!(
        "block.count=2\n block.0.name=a\n block.0.rd.reqs={0}\n block.1.name=b\n block.1.rd.reqs={0}",
        u64::MAX
    );
    let lines = Bench::new().cycle(0, &domstats(&text)).1;
    assert_eq!(lines.get("vm_totals").unwrap().field("disk_rd_req"), Some(&Parsed::Int(i64::MAX)));
}

#[test]
fn two_paces_take_cpu_time_from_domain_info_and_write_what_was_read() {
    let options = TrackerOptions { cpu_source: Some(CpuSource::Info), ..TrackerOptions::default() };
    let mut bench = Bench::with(options);
    bench.read(&domstats(RUNNING)).cpu.info_time = Some(telemetry::units::Nanos(699));
    assert!(bench.encode(0).1.contains("cputime=699i,timeusr=300i"));

    bench.wanted = Groups::INFO.with(Groups::NICS);
    bench.read(&job_free()).domain_info(&telemetry::DomainInfo {
        state: 1,
        max_memory_kib: 65536,
        memory_kib: 32768,
        vcpus: 2,
        cpu_time_ns: 800,
    });
    let (encoded, text) = bench.encode(1);
    assert!(encoded.ok() && !bench.sample.busy, "nothing else was wanted");
    assert_eq!(
        totals(&Lines::parse(&text)),
        "net_rxbytes=1 net_rxpackets=2 net_rxerrors=3 net_rxdrops=4 \
         net_txbytes=5 net_txpackets=6 net_txerrors=7 net_txdrops=8 \
         state=1 cpus=2 cputime=800 memactual=32768 collect_ok=1 collect_age_s=1"
    );
}

#[test]
fn a_restarted_domain_starts_anew() {
    let mut bench = Bench::new();
    let seven = running_without(&["cpu.time"]);
    bench.cycle(0, &domstats(RUNNING));
    assert_eq!(bench.tracker.cpu_source(&UUID.parse().unwrap()), Some(CpuSource::Bulk));
    bench.id = 8;
    bench.read(&seven).cpu_stats(None, None);
    bench.sample.cpu.info_time = Some(telemetry::units::Nanos(3));
    let (_, text) = bench.encode(5);
    assert!(text.contains("cputime_ns=3i") && !text.contains("vm_features"), "{text}");
    assert_eq!(bench.tracker.cpu_source(&UUID.parse().unwrap()), Some(CpuSource::Info));
}
