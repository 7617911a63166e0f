//! A captured bulk reply, all the way to line protocol, on one core: what a cycle costs beyond the socket.
//!
//! `cargo bench -p xtask --bench reply_to_lines`. The column of items is lines per second in all three benches, so that
//! the stages can be compared: visiting alone, visiting and reading into samples, and everything. The target for
//! everything is 1,000,000.
//!
//! The reply is that of libvirt 9.0 to a bulk call (state, cpu-total, balloon, interface, block) for three QEMU
//! guests of two NICs and three disks each, `crates/libvirt-rpc/tests/data/bulk-3.bin`. It is made into one of
//! [`DOMAINS`] domains by repeating its records with new names, UUIDs and ids, byte for byte otherwise. Before each
//! cycle the guests' `balloon.last-update` is moved on in place, as if they had reported, so that the line of features
//! is there too. The output buffer, the sample and what is remembered of the domains are reused from cycle to cycle.

use std::time::Duration;

use divan::{Bencher, black_box, counter::ItemsCount};
use libvirt_rpc::{DomainRef, StatsVisitor, decode};
use telemetry::{
    DomainId, Driver, Groups, HostTracker, Moment, Sample, SampleReader, TrackerOptions, Uuid, Value,
};

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

const CAPTURED: &[u8] = include_bytes!("../../crates/libvirt-rpc/tests/data/bulk-3.bin");

const DOMAINS: u32 = 100;
/// `vm_metrics`, two NICs, three disks, `vm_totals`, `vm_features`.
const LINES: usize = DOMAINS as usize * 8;

/// Where the payload begins in a frame.
const HEADER: usize = 28;

fn main() {
    divan::main();
}

/// A bulk reply's payload, and where the values of `balloon.last-update` stand in it.
struct Reply {
    payload: Vec<u8>,
    last_updates: Vec<usize>,
}

impl Reply {
    fn new() -> Self {
        let mut at = HEADER;
        let count = word(&mut at);
        let mut templates = Vec::new();
        for _ in 0..count {
            let start = at;
            let last_update = walk_record(&mut at) - start;
            templates.push((&CAPTURED[start..at], last_update));
        }
        assert_eq!(at, CAPTURED.len());

        let mut payload = DOMAINS.to_be_bytes().to_vec();
        let mut last_updates = Vec::new();
        for (n, (record, last_update)) in (1..=DOMAINS).zip(templates.iter().cycle()) {
            let start = payload.len();
            payload.extend_from_slice(record);
            last_updates.push(start + last_update);
            // `guest-0001` and its like: ten bytes and two of padding, then the UUID, then the id.
            let name = format!("guest-{n:04}");
            payload[start + 4..start + 14].copy_from_slice(name.as_bytes());
            payload[start + 28..start + 32].copy_from_slice(&n.to_be_bytes());
            payload[start + 32..start + 36].copy_from_slice(&n.to_be_bytes());
        }
        Self { payload, last_updates }
    }

    /// Every guest reports at this second.
    fn report(&mut self, second: u64) {
        for at in &self.last_updates {
            self.payload[*at..at + 8].copy_from_slice(&second.to_be_bytes());
        }
    }
}

/// The captured word at an offset, which moves on.
fn word(at: &mut usize) -> u32 {
    let bytes = &CAPTURED[*at..*at + 4];
    *at += 4;
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn text(at: &mut usize) -> &'static [u8] {
    let len = word(at) as usize;
    let text = &CAPTURED[*at..*at + len];
    *at += len.next_multiple_of(4);
    text
}

/// Moves behind a captured record; returns where its `balloon.last-update` stands.
fn walk_record(at: &mut usize) -> usize {
    let mut last_update = None;
    text(at);
    *at += 16 + 4;
    for _ in 0..word(at) {
        let key = text(at);
        let kind = word(at);
        if key == b"balloon.last-update" {
            assert_eq!(kind, 4, "an unsigned hyper integer");
            last_update = Some(*at);
        }
        match kind {
            1 | 2 | 6 => *at += 4,
            3..=5 => *at += 8,
            7 => {
                text(at);
            }
            other => panic!("type {other}"),
        }
    }
    last_update.expect("the guests reported")
}

/// Looks at everything and keeps nothing.
struct Look;

impl StatsVisitor for Look {
    fn begin(&mut self, domain: DomainRef<'_>) {
        black_box(domain);
    }

    fn param(&mut self, key: &str, value: libvirt_rpc::Value<'_>) {
        black_box((key, value));
    }

    fn end(&mut self) {}
}

/// One host's collector: what is kept from cycle to cycle.
struct Host {
    reply: Reply,
    reader: SampleReader,
    sample: Sample,
    tracker: HostTracker,
    out: Vec<u8>,
    second: u64,
}

/// A cycle under way.
struct Cycle<'a> {
    reader: &'a SampleReader,
    sample: &'a mut Sample,
    /// Absent where samples are only read.
    encoding: Option<(&'a mut HostTracker, Moment, &'a mut Vec<u8>)>,
    lines: usize,
}

impl StatsVisitor for Cycle<'_> {
    fn begin(&mut self, domain: DomainRef<'_>) {
        self.sample.begin(DomainId(domain.id), Uuid(domain.uuid), domain.name, Groups::ALL);
    }

    #[inline]
    fn param(&mut self, key: &str, value: libvirt_rpc::Value<'_>) {
        let value = match value {
            libvirt_rpc::Value::Int(v) => Value::Int(v),
            libvirt_rpc::Value::UInt(v) => Value::UInt(v),
            libvirt_rpc::Value::Double(v) => Value::Double(v),
            libvirt_rpc::Value::Bool(v) => Value::Bool(v),
            libvirt_rpc::Value::Str(v) => Value::Str(v),
        };
        self.reader.param(self.sample, key, value);
    }

    fn end(&mut self) {
        self.reader.finish(self.sample, Driver::Qemu);
        self.sample.vcpus = Some(2.into());
        match &mut self.encoding {
            Some((tracker, at, out)) => self.lines += tracker.encode(self.sample, at, out).lines as usize,
            None => {
                black_box(&self.sample);
            }
        }
    }
}

impl Host {
    fn new() -> Self {
        let options = TrackerOptions { host: "hypervisor-17".to_owned(), ..TrackerOptions::default() };
        let mut host = Self {
            reply: Reply::new(),
            reader: SampleReader::new(),
            sample: Sample::default(),
            tracker: HostTracker::new(options),
            out: Vec::new(),
            second: 1_795_385_500,
        };
        // The first cycle has no features; from the second on all is as it stays.
        host.cycle();
        assert_eq!(host.cycle(), LINES);
        host
    }

    fn read(&mut self) {
        let mut cycle = Cycle { reader: &self.reader, sample: &mut self.sample, encoding: None, lines: 0 };
        let records = decode::bulk_reply(&self.reply.payload, &mut cycle).expect("well formed");
        assert_eq!(records, DOMAINS as usize);
    }

    fn cycle(&mut self) -> usize {
        self.second += 5;
        self.reply.report(self.second);
        self.out.clear();
        let at = Moment {
            timestamp_ns: self.second as i64 * 1_000_000_000,
            taken: Duration::from_secs(self.second),
            wall_secs: self.second as i64,
        };
        let mut cycle = Cycle {
            reader: &self.reader,
            sample: &mut self.sample,
            encoding: Some((&mut self.tracker, at, &mut self.out)),
            lines: 0,
        };
        decode::bulk_reply(&self.reply.payload, &mut cycle).expect("well formed");
        let lines = cycle.lines;
        self.tracker.end_cycle();
        lines
    }
}

#[divan::bench]
fn a_visit(bencher: Bencher<'_, '_>) {
    let reply = Reply::new();
    bencher
        .counter(ItemsCount::new(LINES))
        .bench_local(|| decode::bulk_reply(black_box(&reply.payload), &mut Look).expect("well formed"));
}

#[divan::bench]
fn b_visit_and_read(bencher: Bencher<'_, '_>) {
    let mut host = Host::new();
    bencher.counter(ItemsCount::new(LINES)).bench_local(|| host.read());
}

#[divan::bench]
fn c_reply_to_lines(bencher: Bencher<'_, '_>) {
    let mut host = Host::new();
    bencher.counter(ItemsCount::new(LINES)).bench_local(|| host.cycle());
}
