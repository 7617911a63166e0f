//! The public contract: which line each record of a real libvirt gives. The records are `virsh domstats` of running
//! domains, as libvirt 7.0, 9.0 (TCG and KVM) and 12.8 print them.

use telemetry::{CpuSource, DomainId, DomainInfo, Event, Sample, TagStyle, TrackerOptions, Uuid};

use crate::support::{Bench, EPOCH, Lines, Owned, Params, Parsed, RUNNING, UUID, domstats};

const V7: &str = include_str!("../data/domstats-7.0.txt");
const V9: &str = include_str!("../data/domstats-9.0.txt");
const V9_KVM: &str = include_str!("../data/domstats-kvm-9.0.txt");
const V9_USER_NIC: &str = include_str!("../data/domstats-user-nic-9.0.txt");
const V12: &str = include_str!("../data/domstats-12.8.txt");

/// Written by hand from domstats-9.0.txt: the names, the order, the zeros.
const V9_LINES: &str = "\
vm_metrics,VMID=7,host=h1,name=db,uuid=U state=1i,cpu_count=2i,memory_max_kb=32768i,memory_used_kb=32768i,cputime_ns=710137000i T
vm_devices,VMID=7,device=vnet401,devtype=nic,host=h1,name=db,uuid=U rxbytes=180i,rxpackets=2i,rxerrors=0i,rxdrops=0i,txbytes=128i,txpackets=2i,txerrors=0i,txdrops=0i T
vm_devices,VMID=7,device=vnet402,devtype=nic,host=h1,name=db,uuid=U rxbytes=180i,rxpackets=2i,rxerrors=0i,rxdrops=0i,txbytes=256i,txpackets=4i,txerrors=0i,txdrops=4i T
vm_devices,VMID=7,device=vda,devtype=disk,host=h1,name=db,uuid=U rd_req=2i,rd_bytes=16384i,wr_reqs=2i,wr_bytes=8192i,errors=0i T
vm_devices,VMID=7,device=vdb,devtype=disk,host=h1,name=db,uuid=U rd_req=2i,rd_bytes=16384i,wr_reqs=2i,wr_bytes=8192i,errors=0i T
vm_devices,VMID=7,device=vdc,devtype=disk,host=h1,name=db,uuid=U rd_req=2i,rd_bytes=16384i,wr_reqs=2i,wr_bytes=8192i,errors=0i T
vm_totals,VMID=7,host=h1,name=db,uuid=U net_rxbytes=360i,net_rxpackets=4i,net_rxerrors=0i,net_rxdrops=0i,net_txbytes=384i,net_txpackets=6i,net_txerrors=0i,net_txdrops=4i,\
disk_rd_req=6i,disk_rd_bytes=49152i,disk_wr_reqs=6i,disk_wr_bytes=24576i,disk_errors=0i,\
state=1i,cpus=2i,cputime=710137000i,timeusr=373116000i,timesys=337021000i,\
memactual=32768i,memrss=48280i,memavailable=32628i,memusable=24471i,memswap_in=8i,memswap_out=16i,memmajor_fault=6i,memminor_fault=2007i,memdisk_cache=4078i,\
collect_ok=1i,collect_age_s=0i T
";

#[test]
fn a_record_gives_these_very_lines() {
    let mut bench = Bench::new();
    bench.read(&domstats(V9));
    let (encoded, text) = bench.encode(0);
    assert_eq!(
        text,
        V9_LINES.replace("uuid=U", &format!("uuid={UUID}")).replace(" T\n", &format!(" {EPOCH}000000000\n"))
    );
    assert!(encoded.ok());

    // Five seconds later the guest reported again: 1024 KiB more are in use.
    let mut later = domstats(V9);
    set(&mut later, "balloon.last-update", 1_795_385_512);
    set(&mut later, "balloon.usable", 24471 - 1024 * 5);
    let (_, lines) = bench.cycle(5, &later);
    assert_eq!(lines.brief()["vm_features"], "memory_rate_kb_per_sec=1024.0 memory_angle_deg=45.0");
}

fn set(params: &mut Params, key: &str, value: u64) {
    params.iter_mut().filter(|(k, _)| k == key).for_each(|(_, old)| *old = Owned::UInt(value));
}

#[test]
fn every_version_of_libvirt_gives_its_values() {
    // Line and field, bulk key (or several to be summed).
    const FIELDS: &[(&str, &str, &[&str])] = &[
        ("vm_metrics", "state", &["state.state"]),
        ("vm_metrics", "cpu_count", &["vcpu.current"]),
        ("vm_metrics", "memory_max_kb", &["balloon.maximum"]),
        ("vm_metrics", "memory_used_kb", &["balloon.current"]),
        ("vm_totals", "memrss", &["balloon.rss"]),
        ("vm_totals", "memavailable", &["balloon.available"]),
        ("vm_totals", "memusable", &["balloon.usable"]),
        ("vm_totals", "memswap_in", &["balloon.swap_in"]),
        ("vm_totals", "memswap_out", &["balloon.swap_out"]),
        ("vm_totals", "memmajor_fault", &["balloon.major_fault"]),
        ("vm_totals", "memminor_fault", &["balloon.minor_fault"]),
        ("vm_totals", "memdisk_cache", &["balloon.disk_caches"]),
        ("vm_totals", "net_rxbytes", &["net.0.rx.bytes", "net.1.rx.bytes"]),
        ("vm_totals", "net_txdrops", &["net.0.tx.drop", "net.1.tx.drop"]),
        ("vm_totals", "disk_rd_bytes", &["block.0.rd.bytes", "block.1.rd.bytes", "block.2.rd.bytes"]),
        ("vm_totals", "disk_wr_reqs", &["block.0.wr.reqs", "block.1.wr.reqs", "block.2.wr.reqs"]),
    ];
    const CPU: &[(&str, &str, &[&str])] = &[
        ("vm_metrics", "cputime_ns", &["cpu.time"]),
        ("vm_totals", "cputime", &["cpu.time"]),
        ("vm_totals", "timeusr", &["cpu.user"]),
        ("vm_totals", "timesys", &["cpu.system"]),
    ];
    let check = |text: &str, fields: &[(&str, &str, &[&str])], lines_expected: usize| {
        let params = domstats(text);
        let mut bench = Bench::new();
        let (_, lines) = bench.cycle(0, &params);
        assert_eq!(lines.0.len(), lines_expected);
        for (measurement, field, keys) in fields {
            let number = |key: &&str| match params.iter().find(|(k, _)| k == key) {
                Some((_, Owned::UInt(number))) => *number as i64,
                other => panic!("{key}: {other:?}"),
            };
            let expect = keys.iter().map(number).sum();
            let got = lines.get(measurement).unwrap().field(field);
            assert_eq!(got, Some(&Parsed::Int(expect)), "{measurement} {field}");
        }
    };
    for text in [V9, V9_KVM, V12] {
        check(text, FIELDS, 7);
        check(text, CPU, 7);
    }
    check(V7, FIELDS, 7);
}

#[test]
fn without_a_bulk_cpu_time_it_comes_from_the_older_calls() {
    let info = DomainInfo {
        state: 1,
        max_memory_kib: 32768,
        memory_kib: 32768,
        vcpus: 2,
        cpu_time_ns: 5_990_000_000,
    };
    let mut bench = Bench::new();
    bench.read(&domstats(V7)).domain_info(&info);
    bench.sample.cpu_stats(None, None);
    let (encoded, text) = bench.encode(0);
    let lines = Lines::parse(&text);
    assert!(encoded.ok(), "{encoded:?}");
    let field = |measurement: &str, name: &str| lines.get(measurement).unwrap().field(name).cloned();
    assert_eq!(field("vm_metrics", "cputime_ns"), Some(Parsed::Int(5_990_000_000)));
    assert_eq!(field("vm_totals", "cputime"), Some(Parsed::Int(5_990_000_000)));
    assert_eq!(field("vm_totals", "timeusr"), Some(Parsed::Int(0)), "neither way gives it: never given");
    assert_eq!(bench.tracker.cpu_source(&UUID.parse().unwrap()), Some(CpuSource::Info));
}

#[test]
fn a_user_mode_nic_has_no_line_and_does_not_block_the_sum() {
    let (_, lines) = Bench::new().cycle(0, &domstats(V9_USER_NIC));
    let brief = lines.brief();
    assert_eq!(brief.keys().collect::<Vec<_>>(), ["vm_devices/vnet504", "vm_totals"]);
    assert!(brief["vm_totals"].starts_with("net_rxbytes=180 net_rxpackets=2"), "{brief:?}");
}

#[test]
fn the_older_calls_give_the_same_lines() {
    let bulk = Bench::new().cycle(0, &domstats(V9)).1.brief();

    let mut older = Bench::new();
    older.sample.begin(DomainId(7), UUID.parse().unwrap(), "db", telemetry::Groups::ALL);
    let sample = &mut older.sample;
    sample.domain_info(&DomainInfo {
        state: 1,
        max_memory_kib: 32768,
        memory_kib: 32768,
        vcpus: 2,
        cpu_time_ns: 710_137_000,
    });
    let memory = [
        (6, 32768),
        (0, 8),
        (1, 16),
        (2, 6),
        (3, 2007),
        (4, 16306),
        (5, 32628),
        (8, 24471),
        (9, 1_795_385_507),
        (10, 4078),
        (11, 0),
        (7, 48280),
        (99, 1),
    ];
    sample.memory_stats(memory);
    sample.cpu_stats(Some(373_116_000), Some(337_021_000));
    sample.list_nics();
    sample.nic("vnet401", &[180, 2, 0, 0, 128, 2, 0, 0]);
    sample.nic("vnet402", &[180, 2, 0, -1, 256, 4, 0, 4]);
    sample.list_disks();
    for disk in ["vda", "vdb", "vdc"] {
        sample.disk(disk, &[2, 16384, 2, 8192, -1]);
    }
    let (encoded, text) = older.encode(0);
    assert!(encoded.ok(), "{encoded:?}");
    assert_eq!(Lines::parse(&text).brief(), bulk);
}

#[test]
fn tags_follow_the_style_and_the_options() {
    let check = |options: TrackerOptions, expect: &str| {
        let mut bench = Bench::with(options);
        bench.read(&domstats("net.count=1\n net.0.name=vnet0\n net.0.rx.bytes=1"));
        let (_, text) = bench.encode(0);
        let expect = format!("{} rxbytes=1i,", expect.replace('$', UUID));
        assert!(text.starts_with(&expect), "{text}");
    };
    let reference = TrackerOptions { tag_style: TagStyle::Reference, ..TrackerOptions::default() };
    check(TrackerOptions::default(), "vm_devices,VMID=7,device=vnet0,devtype=nic,name=db,uuid=$");
    check(reference.clone(), "vm_devices,Dom=db,UUID=$,VMID=7,device=vnet0,devtype=nic");
    check(
        TrackerOptions { host: "h 1".to_owned(), ..reference },
        "vm_devices,Dom=db,UUID=$,VMID=7,device=vnet0,devtype=nic,host=h\\ 1",
    );
}

#[test]
fn tags_are_built_anew_when_what_they_say_changes() {
    let mut bench = Bench::new();
    let mut check = |change: fn(&mut Bench), id: &str, name: &str, host: Option<&str>| {
        change(&mut bench);
        let (_, lines) = bench.cycle(0, &domstats(RUNNING));
        assert_eq!(lines.0.len(), 5);
        for line in &lines.0 {
            assert_eq!((line.tag("VMID"), line.tag("name"), line.tag("host")), (Some(id), Some(name), host));
            assert!(line.tags.is_sorted(), "{line:?}");
        }
    };
    check(|_| {}, "7", "db", Some("h1"));
    check(|bench| bench.name = "db2".to_owned(), "7", "db2", Some("h1"));
    check(|bench| bench.id = 8, "8", "db2", Some("h1"));
    check(|bench| bench.tracker.set_host("h2"), "8", "db2", Some("h2"));
    check(|bench| bench.tracker.set_host(""), "8", "db2", None);
}

#[test]
fn only_live_domains_have_lines() {
    let mut bench = Bench::new();
    bench.id = -1;
    let (encoded, lines) = bench.cycle(0, &domstats(RUNNING));
    assert_eq!((encoded.lines, lines.0.len(), bench.tracker.domains()), (0, 0, 0));
}

#[test]
fn events_carry_the_last_live_id_and_times_of_their_own() {
    let mut bench = Bench::new();
    bench.cycle(0, &domstats(RUNNING));
    let mut out = Vec::new();
    let uuid: Uuid = UUID.parse().unwrap();
    let stopped =
        Event { uuid, name: "db", id: DomainId::NONE, event: "stopped", detail: "", reason: "say \"no\"\\" };
    let unknown = Event { uuid: Uuid::default(), name: "x", event: "started", reason: "booted", ..stopped };
    bench.tracker.event(&stopped, 100, &mut out);
    bench.tracker.event(&stopped, 100, &mut out);
    bench.tracker.event(&unknown, 50, &mut out);
    let lines = Lines::parse(std::str::from_utf8(&out).unwrap()).0;
    let got: Vec<_> = lines.iter().map(|l| (l.tag("VMID"), l.tag("event").unwrap(), l.timestamp)).collect();
    assert_eq!(got, [(Some("7"), "stopped", 100), (Some("7"), "stopped", 101), (None, "started", 102)]);
    // The clock was set back by an hour: events follow it.
    out.clear();
    bench.tracker.event(&stopped, 3_600_000_000_000, &mut out);
    bench.tracker.event(&stopped, 5, &mut out);
    bench.tracker.event(&stopped, 5, &mut out);
    let times: Vec<_> =
        Lines::parse(std::str::from_utf8(&out).unwrap()).0.iter().map(|l| l.timestamp).collect();
    assert_eq!(times, [3_600_000_000_000, 5, 6]);
    assert_eq!(lines[0].field("detail"), Some(&Parsed::Text(String::new())));
    assert_eq!(lines[0].field("reason"), Some(&Parsed::Text("say \"no\"\\\u{fffd}".to_owned())));
}

#[test]
fn the_collector_tells_about_itself() {
    let mut out = Vec::new();
    let collector = telemetry::Collector { cycle_ns: 1, lines: 2, stuck_vms: u64::MAX, ..Default::default() };
    Bench::new().tracker.collector(&collector, 5, &mut out);
    assert_eq!(
        std::str::from_utf8(&out).unwrap(),
        "kvmetry_collector,host=h1 cycle_ns=1i,lines=2i,failures=0i,stuck_vms=9223372036854775807i,cache_hits=0i,\
         cache_misses=0i,abandoned_calls=0i,reconnects=0i 5\n"
    );
}

#[test]
fn a_domain_is_forgotten_after_some_cycles() {
    let mut bench = Bench::new();
    bench.cycle(0, &domstats(RUNNING));
    for _ in 0..telemetry::FORGET_AFTER_CYCLES {
        bench.tracker.end_cycle();
        assert_eq!(bench.tracker.domains(), 1);
    }
    bench.tracker.end_cycle();
    assert_eq!(bench.tracker.domains(), 0);
}

#[test]
fn limits_hold() {
    let long = "n".repeat(telemetry::sample::MAX_DEVICE_NAME + 1);
    let check = |key: &str, value: Owned, skipped: u32| {
        let mut bench = Bench::new();
        let sample: &mut Sample = bench.read(&vec![(key.to_owned(), value)]);
        assert_eq!(sample.skipped, skipped, "{key}");
        assert_eq!(bench.encode(0).0.lines, 1, "only vm_totals: {key}");
    };
    check("net.1024.rx.bytes", Owned::UInt(1), 1);
    check("net.99999999999999999999999999.rx.bytes", Owned::UInt(1), 1);
    check("block.0.name", Owned::Str(long), 1);
    check("net.1023.rx.bytes", Owned::UInt(1), 0);
    check("net..rx.bytes", Owned::UInt(1), 0);
    check("net.0", Owned::UInt(1), 0);
    check("net.0.", Owned::UInt(1), 0);
    check("", Owned::UInt(1), 0);
    check("state.state", Owned::Str("1".to_owned()), 0);
    check("state.state", Owned::Int(-1), 0);

    let mut bench = Bench::new();
    bench.name = "ü".repeat(1000);
    let (_, lines) = bench.cycle(0, &domstats(RUNNING));
    assert_eq!(lines.0[0].tag("name"), Some("ü".repeat(512).as_str()));
}
