//! From the body of a write to admitted columns, this project's own lines, one core.
//!
//! `cargo bench -p telemetry --bench lines`: the column of items is lines per second. The yardstick is the bare parser,
//! which everything that reads line protocol pays: reading and admitting may cost at most 1.6 times as much.

use divan::counter::{BytesCount, ItemsCount};
use influxdb_line_protocol::parse_lines;
use telemetry::lines::{Catalog, Precision, parse};
use telemetry::workload::{Options, Workload};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// So many lines of so many VMs.
fn body(lines: usize, vms: u32) -> String {
    let mut workload = Workload::new(Options { vms, ..Options::default() });
    let mut out = Vec::new();
    let mut written = 0;
    while written < lines {
        written += workload.cycle(&mut out) as usize;
    }
    String::from_utf8(out).expect("line protocol is text").lines().take(lines).fold(
        String::new(),
        |mut body, line| {
            body.push_str(line);
            body.push('\n');
            body
        },
    )
}

/// Lines and VMs: what a collector sends that catches up, and one cycle, where every series is new.
const SIZES: [(usize, u32); 2] = [(5_000, 10), (800, 100)];

#[divan::bench(args = SIZES)]
fn bare_parser(bencher: divan::Bencher<'_, '_>, (lines, vms): (usize, u32)) {
    let body = body(lines, vms);
    bencher.counter(ItemsCount::new(lines)).counter(BytesCount::of_str(&body)).bench_local(|| {
        for line in parse_lines(&body) {
            divan::black_box(line).expect("a good line");
        }
    });
}

#[divan::bench(args = SIZES)]
fn parse_and_admit(bencher: divan::Bencher<'_, '_>, (lines, vms): (usize, u32)) {
    let body = body(lines, vms);
    let mut catalog = Catalog::default();
    bencher.counter(ItemsCount::new(lines)).counter(BytesCount::of_str(&body)).bench_local(|| {
        let parsed = parse(&body, Precision::Nanosecond, i64::MAX);
        catalog.admit("kvmetry", parsed, true).expect("good lines")
    });
}

/// What is done under the lock that orders writes.
#[divan::bench(args = SIZES)]
fn admit(bencher: divan::Bencher<'_, '_>, (lines, vms): (usize, u32)) {
    let body = body(lines, vms);
    let mut catalog = Catalog::default();
    bencher
        .counter(ItemsCount::new(lines))
        .with_inputs(|| parse(&body, Precision::Nanosecond, i64::MAX))
        .bench_local_values(|parsed| catalog.admit("kvmetry", parsed, true).expect("good lines"));
}

/// The same where a line disagrees with the schema, so that all are looked at one by one.
#[divan::bench(args = SIZES)]
fn admit_line_by_line(bencher: divan::Bencher<'_, '_>, (lines, vms): (usize, u32)) {
    let mut body = body(lines, vms);
    body.push_str("vm_totals,VMID=1 cputime=1.5 1\n");
    let mut catalog = Catalog::default();
    bencher
        .counter(ItemsCount::new(lines))
        .with_inputs(|| parse(&body, Precision::Nanosecond, i64::MAX))
        .bench_local_values(|parsed| catalog.admit("kvmetry", parsed, true).expect("good lines"));
}
