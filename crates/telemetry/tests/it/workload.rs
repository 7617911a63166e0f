//! Made-up telemetry is what `kvmetry run` would write of VMs that live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use telemetry::lines::{Batch, Catalog, Precision, TableBatch, Values, parse};
use telemetry::workload::{Options, Workload};

/// The lines of so many cycles.
fn generate(options: &Options, cycles: usize) -> String {
    let mut workload = Workload::new(options.clone());
    let mut out = Vec::new();
    let mut lines = 0;
    for _ in 0..cycles {
        lines += workload.cycle(&mut out);
    }
    let text = String::from_utf8(out).expect("line protocol is text");
    assert_eq!(text.lines().count(), lines as usize);
    text
}

/// The lines by column; every one of them has to be good.
fn read(text: &str) -> Batch {
    let parsed = parse(text, Precision::Nanosecond, i64::MAX);
    Catalog::default().admit("kvmetry", parsed, false).expect("good lines").batch
}

fn table<'b>(batch: &'b Batch, name: &str) -> &'b TableBatch {
    batch.tables.iter().find(|table| table.table == name).expect("the table")
}

/// Each series' tags, and the values of an integer field, with their times.
fn history(table: &TableBatch, field: &str) -> BTreeMap<BTreeMap<String, String>, Vec<(i64, i64)>> {
    let column = table.fields.iter().find(|column| column.name == field).expect("the field");
    let Values::Integer(values) = &column.values else { panic!("{field} is no integer") };
    let mut history = BTreeMap::<_, Vec<_>>::new();
    for (row, series) in table.rows.iter().enumerate().filter(|(row, _)| column.has(*row)) {
        let tags = table.series[*series as usize].tags.iter().cloned().collect();
        history.entry(tags).or_default().push((table.times[row], values[row]));
    }
    history
}

#[test]
fn ten_vms_give_eighty_lines_a_cycle() {
    let options = Options::default();
    let mut workload = Workload::new(options.clone());
    for cycle in 0..20 {
        assert_eq!(workload.next_tick_ns(), options.start_ns + cycle * 5_000_000_000);
        let mut out = Vec::new();
        assert_eq!(workload.cycle(&mut out), 80);
        let text = String::from_utf8(out).expect("text");
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.split(',').next().expect("a measurement")).or_insert(0) += 1;
            let time = format!(" {}", options.start_ns + cycle * 5_000_000_000);
            assert!(line.ends_with(&time), "{line}");
        }
        assert_eq!(
            counts,
            BTreeMap::from([("vm_devices", 50), ("vm_features", 10), ("vm_metrics", 10), ("vm_totals", 10)])
        );
        assert!((15_000..25_000).contains(&text.len()), "about 250 bytes a line: {}", text.len());
    }
}

#[test]
fn the_same_seed_gives_the_same_lines() {
    let options = Options { vms: 3, ..Options::default() };
    let lines = generate(&options, 50);
    assert_eq!(generate(&options, 50), lines);
    assert_ne!(generate(&Options { seed: 2, ..options }, 50), lines);
    // So that no change of the model changes unnoticed what a seed gives.
    let first = generate(&Options::default(), 1);
    assert_eq!(
        first.lines().next(),
        Some(
            "vm_metrics,VMID=1,host=kvm-01,name=web-01,uuid=5e41ab08-7439-411e-b18d-6ce93d6cf1ee state=1i,\
             cpu_count=2i,memory_max_kb=8388608i,memory_used_kb=8388608i,cputime_ns=419563995096000i \
             1767225600000000000"
        )
    );
}

#[test]
fn jitter_moves_a_cycle_and_not_its_lines() {
    let jitter_ns = 4_000_000;
    let options = Options { vms: 2, jitter_ns, ..Options::default() };
    let batch = read(&generate(&options, 100));
    let mut times = BTreeSet::new();
    for time in batch.tables.iter().flat_map(|table| &table.times) {
        assert!(((time - options.start_ns) % 5_000_000_000) < jitter_ns as i64);
        times.insert(*time);
    }
    assert_eq!(times.len(), 100);
    assert!(times.iter().filter(|time| *time % 1_000 != 0).count() > 90);
}

#[test]
fn counters_only_grow_while_a_vm_lives() {
    let options = Options { interval: Duration::from_secs(600), ..Options::default() };
    let batch = read(&generate(&options, 300));
    let counters = [
        ("vm_devices", "rxbytes rxpackets txbytes txpackets rd_req rd_bytes wr_reqs wr_bytes"),
        ("vm_totals", "cputime timeusr timesys memmajor_fault memminor_fault memswap_in memswap_out"),
    ];
    for (name, fields) in counters {
        for field in fields.split(' ') {
            for (tags, values) in history(table(&batch, name), field) {
                assert!(values.is_sorted(), "{field} of {tags:?} steps back");
            }
        }
    }
}

#[test]
fn idle_vms_rest_and_busy_ones_have_a_day() {
    // A Wednesday.
    let start_ns = 1_767_744_000_000_000_000;
    let options = Options { start_ns, vms: 7, interval: Duration::from_secs(120), ..Options::default() };
    let batch = read(&generate(&options, 30 * 24));
    let cputime = history(table(&batch, "vm_totals"), "cputime");
    // Of the time of all vCPUs, between two hours of the day.
    let load = |role: &str, from: i64, to: i64| {
        let (_, values) = cputime.iter().find(|(tags, _)| tags["name"].starts_with(role)).expect("a VM");
        let at = |hour: i64| values.iter().find(|(time, _)| *time >= start_ns + hour * 3_600_000_000_000);
        let (before, after) = (at(from).expect("a value"), at(to).expect("a value"));
        (after.1 - before.1) as f64 / (after.0 - before.0) as f64
    };
    assert!(load("test", 0, 23) < 0.05);
    assert!(load("db", 9, 16) > 4.0 * load("db", 20, 23));
    assert!(load("batch", 1, 5) > 10.0 * load("batch", 9, 16));

    let idle = history(table(&batch, "vm_devices"), "txbytes");
    let (_, values) = idle
        .iter()
        .find(|(tags, _)| tags["name"].starts_with("test") && tags["devtype"] == "nic")
        .expect("a NIC");
    let still = values.windows(2).filter(|pair| pair[0].1 == pair[1].1).count();
    assert!(still * 10 > values.len(), "an idle NIC sends nothing in {still} of {} cycles", values.len());
}

#[test]
fn vms_restart_under_a_new_id_and_get_and_lose_nics() {
    let interval = Duration::from_secs(1_200);
    let options = Options { vms: 40, nics: 1, disks: 0, interval, ..Options::default() };
    let batch = read(&generate(&options, 72 * 5));
    let mut lives = BTreeMap::<String, Vec<(i64, i64)>>::new();
    for (tags, values) in history(table(&batch, "vm_totals"), "cputime") {
        lives.entry(tags["uuid"].clone()).or_default().push(values[0]);
    }
    assert_eq!(lives.len(), 40);
    let mut restarts = 0;
    for lives in lives.values_mut() {
        lives.sort_unstable();
        for pair in lives.windows(2) {
            restarts += 1;
            // 16 vCPUs cannot use more than this between two cycles.
            assert!(pair[1].1 < 16 * 1_200_000_000_000, "its CPU time begins anew");
        }
    }
    assert!((4..60).contains(&restarts), "{restarts} restarts of 40 VMs in 5 days");

    // A hot-plugged NIC is seen after the VM, or ends before it.
    let nics = history(table(&batch, "vm_devices"), "rxpackets");
    let hours = |values: &[(i64, i64)]| (values[values.len() - 1].0 - values[0].0) / 3_600_000_000_000;
    let plugged = nics.values().filter(|values| hours(values) < 7 && values[0].0 > options.start_ns).count();
    assert!(plugged >= 2, "{plugged} NICs that came and went");
}

#[test]
fn guest_memory_changes_when_the_guest_reports() {
    let options = Options { vms: 4, balloon_period: Duration::from_secs(20), ..Options::default() };
    let text = generate(&options, 100);
    let batch = read(&text);
    for (tags, values) in history(table(&batch, "vm_totals"), "memminor_fault") {
        let changes = values.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
        assert!((20..=25).contains(&changes), "{changes} reports of {tags:?} in 500 s");
    }
    let features = text.lines().filter(|line| line.starts_with("vm_features")).count();
    assert!((80..=104).contains(&features), "{features} lines of features of 4 VMs in 500 s");
}
