//! Every field of every line against what `virsh` says of the same VM just before and just after the cycle.
//!
//! The expectation is made from the catalogue: of each field it tells the bulk key and the older call, and both are
//! looked up. So a field that is added there is compared here, and a field that a line lacks, or has too much, fails.

use std::collections::{BTreeMap, BTreeSet};

use telemetry::catalogue::{
    COLLECTOR_FIELDS, DISK_FIELDS, DISK_SUM_PREFIX, Field, Kind, Legacy, NIC_FIELDS, NIC_SUM_PREFIX,
    VM_FEATURES_FIELDS, VM_METRICS_FIELDS, VM_TOTALS_FIELDS, WHOLENESS_FIELDS,
};
use xtask::lab::{Lab, LabVm};

use crate::harness::{Cycle, Kvmetry, Point, lab_with, start_vms};

/// Balloon period of the guests, seconds: so long that at most one report falls between two looks.
const PERIOD: u32 = 5;

/// CPU times of different sources differ by this much even when nothing runs (spec: 20 ms).
const CPU_SLACK_NS: i64 = 20_000_000;

/// `virsh dominfo` prints CPU time in tenths of a second, rounded.
const DOMINFO_SLACK_NS: i64 = 100_000_000;

/// What a QEMU's resident memory goes up and down by on its own between two looks, KiB.
const RSS_SLACK_KIB: i64 = 2048;

/// Times that a comparison is tried again because the guest reported twice in between.
const TRIES: usize = 5;

/// All that `virsh` says of one VM at one moment.
#[derive(Debug)]
struct Said {
    bulk: BTreeMap<String, String>,
    /// By the names that the catalogue gives to the older calls' members.
    info: BTreeMap<&'static str, i64>,
    memory: BTreeMap<String, i64>,
    cpu: BTreeMap<String, i64>,
    nics: BTreeMap<String, BTreeMap<String, i64>>,
    disks: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Said {
    fn of(lab: &Lab, vm: &LabVm) -> Self {
        let bulk = lab.domstats(vm).unwrap();
        let virsh = |args: &[&str]| lab.virsh(args).unwrap();
        let names = |kind: &str| -> Vec<String> {
            let count: usize = bulk[&format!("{kind}.count")].parse().unwrap();
            (0..count).map(|n| bulk[&format!("{kind}.{n}.name")].clone()).collect()
        };
        // `vda rd_req 17`
        let device = |command: &str, name: &str| {
            let text = virsh(&[command, &vm.uuid, name]);
            text.lines().filter_map(|line| pair(line.strip_prefix(name)?, ' ')).collect()
        };
        Self {
            info: dominfo(&virsh(&["dominfo", &vm.uuid])),
            memory: virsh(&["dommemstat", &vm.uuid]).lines().filter_map(|line| pair(line, ' ')).collect(),
            cpu: virsh(&["cpu-stats", &vm.uuid, "--total"]).lines().filter_map(seconds).collect(),
            nics: names("net").into_iter().map(|it| (it.clone(), device("domifstat", &it))).collect(),
            disks: names("block").into_iter().map(|it| (it.clone(), device("domblkstat", &it))).collect(),
            bulk,
        }
    }

    /// What the bulk statistics say under a key; a key that they lack was never given, and is written as 0.
    fn by_bulk(&self, key: &str) -> i64 {
        self.bulk.get(key).map_or(0, |text| text.parse().unwrap_or_else(|e| panic!("{key}={text}: {e}")))
    }

    /// The key of a device's value: positions are not identities.
    fn device_key(&self, kind: &str, name: &str, tail: &str) -> String {
        let at =
            |key: &str| key.strip_prefix(kind)?.strip_prefix('.')?.strip_suffix(".name").map(str::to_owned);
        let found = self.bulk.iter().find_map(|(key, value)| at(key).filter(|_| value == name));
        format!("{kind}.{}.{tail}", found.unwrap_or_else(|| panic!("no {kind} {name:?} in {:?}", self.bulk)))
    }

    /// What the older call says, with the slack of its source. `None` where that call does not tell it.
    fn by_older(&self, legacy: Legacy, device: Option<&str>) -> Option<(i64, i64)> {
        match legacy {
            Legacy::None => None,
            Legacy::Info("cpuTime") => Some((self.info["cpuTime"], CPU_SLACK_NS + DOMINFO_SLACK_NS)),
            Legacy::Info(member) => Some((self.info[member], 0)),
            Legacy::MemoryStat(_, name) => Some((*self.memory.get(name)?, 0)),
            Legacy::CpuStat(name) => Some((*self.cpu.get(name)?, CPU_SLACK_NS)),
            Legacy::InterfaceStat(name) => Some((*self.nics[device?].get(name)?, 0)),
            Legacy::BlockStat(name) => Some((*self.disks[device?].get(name)?, 0)),
        }
    }

    fn last_report(&self) -> i64 {
        self.by_bulk("balloon.last-update")
    }
}

/// `key value`, where the value is a number.
fn pair(line: &str, separator: char) -> Option<(String, i64)> {
    let (key, value) = line.trim().split_once(separator)?;
    Some((key.trim().to_owned(), value.trim().parse().ok()?))
}

/// `user_time  0.123456789 seconds`, in ns.
fn seconds(line: &str) -> Option<(String, i64)> {
    let mut words = line.split_whitespace();
    let (key, value, "seconds") = (words.next()?, words.next()?, words.next()?) else { return None };
    Some((key.to_owned(), nanos(value)))
}

fn nanos(seconds: &str) -> i64 {
    (seconds.parse::<f64>().unwrap() * 1e9).round() as i64
}

/// `virsh dominfo`, by the member of virDomainInfo.
fn dominfo(text: &str) -> BTreeMap<&'static str, i64> {
    const STATES: [&str; 8] =
        ["no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"];
    let mut info = BTreeMap::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let number = || value.trim_end_matches(" KiB").parse::<i64>().unwrap();
        match key {
            "State" => {
                let code =
                    STATES.iter().position(|it| *it == value).unwrap_or_else(|| panic!("state {value:?}"));
                info.insert("state", code as i64)
            }
            "CPU(s)" => info.insert("nrVirtCpu", number()),
            "CPU time" => info.insert("cpuTime", nanos(value.trim_end_matches('s'))),
            "Max memory" => info.insert("maxMem", number()),
            "Used memory" => info.insert("memory", number()),
            _ => None,
        };
    }
    info
}

/// Compares one VM's lines of a cycle with what was said before and after it.
struct Comparison<'a> {
    before: &'a Said,
    after: &'a Said,
    /// Nothing but CPU time may have moved.
    still: bool,
}

impl Comparison<'_> {
    /// A value must be what was said, or between what was said before and after. `slack` is the source's own.
    fn check(&self, what: &str, kind: Kind, value: i64, said: (i64, i64), slack: i64) {
        let (before, after) = said;
        let own_slack = if what.contains("memrss") && !self.still { RSS_SLACK_KIB } else { 0 };
        if self.still && !what.contains("time") {
            assert_eq!(before, after, "{what}: virsh says that it moved, though the guest is paused");
        }
        if kind == Kind::Counter && slack == 0 {
            assert!(before <= after, "{what}: a counter that stepped back for virsh: {before}, {after}");
        }
        let slack = slack + own_slack;
        let (low, high) = (before.min(after) - slack, before.max(after) + slack);
        assert!(
            (low..=high).contains(&value),
            "{what}: {value}, but virsh says {before} before and {after} after"
        );
    }

    /// All fields of a line but `derived` ones.
    fn check_fields<T>(
        &self,
        point: &Point,
        prefix: &str,
        fields: &[Field<T>],
        device: Option<(&str, &str)>,
    ) {
        for field in fields {
            let name = format!("{prefix}{}", field.name);
            let what = format!("{} {} {name}", point.measurement, device.map_or("", |(_, name)| name));
            let value = point.int(&name).unwrap_or_else(|| panic!("{what} is missing in {point:?}"));
            assert!(!field.bulk.is_empty(), "{what}: the catalogue gives no bulk key");
            let bulk = |said: &Said| match device {
                Some((kind, name)) => said.by_bulk(&said.device_key(kind, name, field.bulk)),
                None => said.by_bulk(field.bulk),
            };
            self.check(&what, field.kind, value, (bulk(self.before), bulk(self.after)), 0);
            let older = |said: &Said| said.by_older(field.legacy, device.map(|(_, name)| name));
            if let (Some((before, slack)), Some((after, _))) = (older(self.before), older(self.after)) {
                let what = format!("{what} by the older call");
                self.check(&what, field.kind, value, (before, after), slack);
            } else {
                // Only what the hypervisor does not have at all.
                assert_eq!((field.name, value), ("errors", 0), "{what}: no older call tells it");
            }
        }
    }

    /// All sums of one kind of device.
    fn check_sums<T>(&self, totals: &Point, prefix: &str, fields: &[Field<T>], kind: &str) {
        for field in fields {
            let name = format!("{prefix}{}", field.name);
            let value = totals.int(&name).unwrap_or_else(|| panic!("{name} is missing in {totals:?}"));
            let sum = |said: &Said| -> i64 {
                let devices = if kind == "net" { &said.nics } else { &said.disks };
                devices.keys().map(|it| said.by_bulk(&said.device_key(kind, it, field.bulk))).sum()
            };
            self.check(&name, field.kind, value, (sum(self.before), sum(self.after)), 0);
        }
    }

    fn check_vm(&self, cycle: &Cycle, vm: &LabVm) {
        let metrics = cycle.line("vm_metrics", vm).expect("a vm_metrics line");
        check_names(metrics, VM_METRICS_FIELDS.iter().map(|it| it.name.to_owned()));
        self.check_fields(metrics, "", &VM_METRICS_FIELDS, None);

        let totals = cycle.totals(vm).expect("a vm_totals line");
        let net = NIC_FIELDS.iter().map(|it| format!("{NIC_SUM_PREFIX}{}", it.name));
        let disk = DISK_FIELDS.iter().map(|it| format!("{DISK_SUM_PREFIX}{}", it.name));
        let rest = VM_TOTALS_FIELDS.iter().map(|it| it.name).chain(WHOLENESS_FIELDS.iter().map(|it| it.name));
        check_names(totals, net.chain(disk).chain(rest.map(str::to_owned)));
        self.check_sums(totals, NIC_SUM_PREFIX, &NIC_FIELDS, "net");
        self.check_sums(totals, DISK_SUM_PREFIX, &DISK_FIELDS, "block");
        self.check_fields(totals, "", &VM_TOTALS_FIELDS, None);
        assert_eq!((totals.int("collect_ok"), totals.int("collect_age_s")), (Some(1), Some(0)));

        let devices: Vec<&Point> = cycle.of(vm).filter(|point| point.measurement == "vm_devices").collect();
        for device in &devices {
            let name = device.tag("device");
            if device.tag("devtype") == "nic" {
                check_names(device, NIC_FIELDS.iter().map(|it| it.name.to_owned()));
                self.check_fields(device, "", &NIC_FIELDS, Some(("net", name)));
            } else {
                assert_eq!(device.tag("devtype"), "disk");
                check_names(device, DISK_FIELDS.iter().map(|it| it.name.to_owned()));
                self.check_fields(device, "", &DISK_FIELDS, Some(("block", name)));
            }
        }
        let seen: BTreeSet<&str> = devices.iter().map(|device| device.tag("device")).collect();
        let said: BTreeSet<&str> =
            self.after.nics.keys().chain(self.after.disks.keys()).map(String::as_str).collect();
        assert_eq!((seen, devices.len()), (said.clone(), said.len()));

        for point in cycle.of(vm) {
            assert_eq!(point.tag("name"), vm.name);
            assert_eq!(point.tag("uuid"), vm.uuid);
        }
    }
}

/// A line has these fields and no other.
fn check_names(point: &Point, expect: impl Iterator<Item = String>) {
    let expect: BTreeSet<String> = expect.collect();
    assert_eq!(
        point.fields.keys().cloned().collect::<BTreeSet<_>>(),
        expect,
        "fields of {}",
        point.measurement
    );
}

#[test]
fn every_field_of_every_line_is_what_virsh_says() {
    let lab = lab_with("values", PERIOD);
    let running = lab.vm("values running").unwrap();
    let paused = lab.vm("values paused").unwrap();
    let mut bare = lab.vm("values bare").unwrap();
    (bare.nics, bare.disks, bare.balloon_period) = (Vec::new(), Vec::new(), 0);
    start_vms(&lab, &[running.clone(), paused.clone(), bare.clone()]);
    lab.pause(&paused).unwrap();

    let mut kvmetry = Kvmetry::run(&[]);
    kvmetry.next_cycle();
    let hostname = lab.virsh(&["hostname"]).unwrap();
    for (vm, still) in [(&running, false), (&paused, true), (&bare, false)] {
        let id = lab.virsh(&["domid", &vm.uuid]).unwrap();
        for tried in 1.. {
            let before = Said::of(&lab, vm);
            let cycle = kvmetry.next_cycle();
            let after = Said::of(&lab, vm);
            // "Between" says something of a value that goes up and down only if the guest reported at most once.
            if after.last_report() - before.last_report() > i64::from(PERIOD) + 1 {
                assert!(tried < TRIES, "{}: the guest reports more often than every {PERIOD} s", vm.name);
                continue;
            }
            Comparison { before: &before, after: &after, still }.check_vm(&cycle, vm);
            for point in cycle.of(vm) {
                assert_eq!((point.tag("VMID"), point.tag("host")), (id.trim(), hostname.trim()));
            }
            break;
        }
    }

    // The guests' work is in the numbers: this compared more than zeros.
    let cycle = kvmetry.next_cycle();
    let totals = cycle.totals(&running).unwrap();
    for field in NIC_FIELDS.iter().map(|it| format!("{NIC_SUM_PREFIX}{}", it.name)) {
        assert!(
            totals.int(&field) > Some(0) || field.ends_with("errors") || field.ends_with("drops"),
            "{field}"
        );
    }
    for field in DISK_FIELDS.iter().map(|it| format!("{DISK_SUM_PREFIX}{}", it.name)) {
        assert!(totals.int(&field) > Some(0) || field == "disk_errors", "{field}");
    }
    for field in VM_TOTALS_FIELDS.iter() {
        assert!(totals.int(field.name) > Some(0), "{}", field.name);
    }

    // The lines that virsh cannot say: the features once the guest has reported twice, and the collector's own.
    let features = kvmetry.wait_for("a vm_features line", crate::harness::SOON, |seen| {
        seen.cycles().iter().find_map(|cycle| cycle.line("vm_features", &running).cloned())
    });
    check_names(&features, VM_FEATURES_FIELDS.iter().map(|it| it.name.to_owned()));
    let (rate, angle) = (features.float("memory_rate_kb_per_sec"), features.float("memory_angle_deg"));
    assert_eq!(rate.map(|rate| (rate / 1024.0).atan().to_degrees()), angle);
    let collector = &cycle.collector;
    check_names(collector, COLLECTOR_FIELDS.iter().map(|it| it.name.to_owned()));
    assert_eq!(collector.int("lines"), Some(cycle.points.len() as i64), "the cycle's lines without its own");
    let cycle_ns = collector.int("cycle_ns").unwrap();
    assert!((1..1_000_000_000).contains(&cycle_ns), "{cycle_ns} ns");
    assert_eq!(collector.int("reconnects"), Some(0));
    assert!(collector.int("cache_hits") > Some(0) && collector.int("cache_misses") > Some(0));
    assert_eq!(collector.tag("host"), hostname.trim());

    // Another VM on this libvirtd may be stuck or gone, but of these three nothing was lost.
    let seen = kvmetry.stop("TERM");
    for cycle in seen.cycles() {
        for vm in [&running, &paused, &bare] {
            assert!(cycle.totals(vm).is_some(), "{} at {}", vm.name, cycle.time_ns);
        }
    }
}
