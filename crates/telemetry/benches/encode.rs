//! From the parameters of a bulk record to line protocol, 100 domains of 2 NICs and 3 disks, one core.
//!
//! `cargo bench -p telemetry`: the column of items is lines per second. The target is 1,000,000 with the parameters
//! already decoded (the keys as libvirt 9.0 gives them, without the `vcpu` group). The allocations shown are those of a
//! cycle in the steady state: none.

use std::time::Duration;

use divan::counter::ItemsCount;
use telemetry::{
    DomainId, Driver, Groups, HostTracker, Moment, Sample, SampleReader, TrackerOptions, Uuid, Value,
};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

const RECORD: &str = include_str!("../tests/data/domstats-9.0.txt");

/// The groups that a cycle asks for.
const GROUPS: [&str; 5] = ["state.", "cpu.", "balloon.", "net.", "block."];

const DOMAINS: u32 = 100;
const LINES_A_DOMAIN: usize = 8;

fn main() {
    divan::main();
}

fn number_or_text(text: &str) -> Value<'_> {
    text.parse().map_or(Value::Str(text), Value::UInt)
}

/// The parameters of a bulk record, decoded.
type Params = Vec<(&'static str, Value<'static>)>;

/// One cycle's collector: what is kept from cycle to cycle.
struct Host {
    domains: Vec<(DomainId, Uuid, String, Params)>,
    reader: SampleReader,
    sample: Sample,
    tracker: HostTracker,
    out: Vec<u8>,
    cycle: u64,
}

impl Host {
    fn new() -> Self {
        let pairs = RECORD.lines().filter_map(|line| line.trim().split_once('='));
        let asked = pairs.filter(|(key, _)| GROUPS.iter().any(|group| key.starts_with(group)));
        let params: Params = asked.map(|(key, text)| (key, number_or_text(text))).collect();
        let domain = |n: u32| {
            (DomainId(n as i32), Uuid(u128::from(n).to_be_bytes()), format!("lab-{n:04}"), params.clone())
        };
        let options = TrackerOptions { host: "hypervisor-17".to_owned(), ..TrackerOptions::default() };
        let mut host = Self {
            domains: (0..DOMAINS).map(domain).collect(),
            reader: SampleReader::new(),
            sample: Sample::default(),
            tracker: HostTracker::new(options),
            out: Vec::new(),
            cycle: 0,
        };
        host.cycle();
        host.cycle();
        host
    }

    fn cycle(&mut self) -> usize {
        self.cycle += 1;
        let now = 1_795_385_500 + 5 * self.cycle;
        let at = Moment {
            timestamp_ns: now as i64 * 1_000_000_000,
            taken: Duration::from_secs(now),
            wall_secs: now as i64,
        };
        self.out.clear();
        let mut lines = 0;
        for (id, uuid, name, params) in &self.domains {
            self.sample.begin(*id, *uuid, name, Groups::ALL);
            for (key, value) in params {
                self.reader.param(&mut self.sample, key, *value);
            }
            self.reader.finish(&mut self.sample, Driver::Qemu);
            self.sample.vcpus = Some(2.into());
            // The guest reports in every cycle, so that there is a line of features.
            self.sample.memory.last_update = Some(now.into());
            lines += self.tracker.encode(&mut self.sample, &at, &mut self.out).lines as usize;
        }
        self.tracker.end_cycle();
        lines
    }

    /// Reading alone.
    fn read(&mut self) {
        for (id, uuid, name, params) in &self.domains {
            self.sample.begin(*id, *uuid, name, Groups::ALL);
            for (key, value) in params {
                self.reader.param(&mut self.sample, key, *value);
            }
            self.reader.finish(&mut self.sample, Driver::Qemu);
            divan::black_box(&self.sample);
        }
    }
}

/// Reading and writing.
#[divan::bench]
fn parameters_to_lines(bencher: divan::Bencher<'_, '_>) {
    let mut host = Host::new();
    let lines = host.cycle();
    assert_eq!(lines, DOMAINS as usize * LINES_A_DOMAIN);
    bencher.counter(ItemsCount::new(lines)).bench_local(|| host.cycle());
}

/// Reading alone; items are parameters.
#[divan::bench]
fn parameters_to_samples(bencher: divan::Bencher<'_, '_>) {
    let mut host = Host::new();
    let params: usize = host.domains.iter().map(|(.., params)| params.len()).sum();
    bencher.counter(ItemsCount::new(params)).bench_local(|| host.read());
}
