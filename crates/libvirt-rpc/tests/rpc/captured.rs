//! Frames captured from libvirt 9.0 with QEMU guests (`tests/data`), decoded as they are.
//!
//! `bulk-3.bin` is the reply to a bulk call for three domains of two NICs and three disks, groups state, cpu-total,
//! balloon, interface and block. `error.bin` answers a look-up of a domain that is not there. The rest are events, a
//! keepalive PING and replies to the older calls.

use libvirt_rpc::{CpuTotals, DomainInfo, DomainRef, ErrorCode, Event, StatsVisitor, Value, decode};

pub(crate) const BULK: &[u8] = include_bytes!("../data/bulk-3.bin");
pub(crate) const ERROR: &[u8] = include_bytes!("../data/error.bin");
pub(crate) const LIFECYCLE: &[u8] = include_bytes!("../data/lifecycle.bin");
pub(crate) const DEVICE_ADDED: &[u8] = include_bytes!("../data/device-added.bin");
pub(crate) const DEVICE_REMOVED: &[u8] = include_bytes!("../data/device-removed.bin");
pub(crate) const BALLOON_CHANGE: &[u8] = include_bytes!("../data/balloon-change.bin");
pub(crate) const PING: &[u8] = include_bytes!("../data/ping.bin");
pub(crate) const MEMORY_STATS: &[u8] = include_bytes!("../data/memory-stats.bin");
pub(crate) const CPU_STATS: &[u8] = include_bytes!("../data/cpu-stats.bin");
pub(crate) const DOMAIN_INFO: &[u8] = include_bytes!("../data/domain-info.bin");

#[derive(Default)]
struct Text(String);

impl StatsVisitor for Text {
    fn begin(&mut self, domain: DomainRef<'_>) {
        self.0 += &format!("Domain: {} {}\n", domain.name, domain.id);
    }

    fn param(&mut self, key: &str, value: Value<'_>) {
        self.0 += &format!("  {key}={value:?}\n");
    }

    fn end(&mut self) {
        self.0 += ".\n";
    }
}

#[test]
fn a_bulk_reply_is_visited_whole() {
    let mut text = Text::default();
    assert_eq!(decode::bulk_reply(decode::frame(BULK).expect("a frame"), &mut text), Ok(3));
    let text = text.0;
    let keys = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(keys("Domain: guest-000"), 3);
    assert_eq!(keys("."), 3);
    // virsh counted as many.
    assert_eq!(keys("  "), 246);
    for line in [
        "  state.state=Int(1)",
        "  net.count=UInt(2)",
        "  block.count=UInt(3)",
        "  block.0.name=Str(\"vda\")",
    ] {
        assert_eq!(text.lines().filter(|l| *l == line).count(), 3, "{line}");
    }
    assert_eq!(keys("  balloon.current=UInt(32768)"), 3);
    assert_eq!(keys("  net.0.name=Str(\"vnet"), 3);
    assert_eq!(keys("  cpu.time=UInt("), 3);
}

/// One guest of 32 MiB and two vCPUs, asked by the older calls.
#[test]
fn replies_to_the_older_calls_are_read() {
    let payload = |frame| decode::frame(frame).expect("a frame");
    let info =
        DomainInfo { state: 1, max_mem_kib: 32_768, memory_kib: 32_768, vcpus: 2, cpu_time_ns: 310_000_000 };
    assert_eq!(decode::domain_info(payload(DOMAIN_INFO)), Ok(info));
    // By virDomainMemoryStatTags: all but the huge pages.
    let stats = vec![
        (6, 32_768),
        (0, 12),
        (1, 24),
        (2, 9),
        (3, 3_007),
        (4, 16_122),
        (5, 32_628),
        (8, 24_279),
        (9, 1_795_392_469),
        (10, 4_078),
        (7, 50_216),
    ];
    assert_eq!(decode::memory_stats(payload(MEMORY_STATS)), Ok(stats));
    let totals = CpuTotals {
        cpu_time_ns: Some(263_462_000),
        user_time_ns: Some(156_602_000),
        system_time_ns: Some(106_859_000),
    };
    assert_eq!(decode::cpu_stats(payload(CPU_STATS)), Ok(totals));
}

#[test]
fn an_error_is_read() {
    let (code, domain, message) = decode::error(decode::frame(ERROR).expect("a frame")).expect("an error");
    assert_eq!((code, domain), (ErrorCode::NO_DOMAIN, 10));
    assert_eq!(message, "Domain not found: no domain with matching name 'nosuch'");
}

#[test]
fn events_are_read() {
    let event = |bytes: &[u8]| {
        let procedure = i32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        decode::event(procedure, decode::frame(bytes).expect("a frame"))
            .expect("well formed")
            .expect("an event")
    };
    match event(LIFECYCLE) {
        Event::Lifecycle { domain, event: 3, detail: 0 } => {
            assert_eq!((&*domain.name, domain.id), ("guest-0002", 363))
        }
        other => panic!("{other:?}"),
    }
    match event(DEVICE_ADDED) {
        Event::DeviceAdded { domain, alias } => assert_eq!((&*domain.name, &*alias), ("guest-0003", "net2")),
        other => panic!("{other:?}"),
    }
    match event(DEVICE_REMOVED) {
        Event::DeviceRemoved { domain, alias } => {
            assert_eq!((&*domain.name, &*alias), ("guest-0003", "net2"))
        }
        other => panic!("{other:?}"),
    }
    match event(BALLOON_CHANGE) {
        Event::BalloonChange { domain, actual_kib } => {
            assert_eq!((&*domain.name, actual_kib), ("guest-0003", 30_000))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(decode::frame(PING), Ok(&[][..]));
    assert_eq!(decode::event(1, &[]), Ok(None));
}

/// Every byte of a real frame is needed: none can be cut off, none added.
#[test]
fn no_real_frame_can_be_shorter_or_longer() {
    let mut seen = crate::daemon::Count::default();
    let payload = decode::frame(BULK).expect("a frame");
    for end in 0..payload.len() {
        let error = decode::bulk_reply(&payload[..end], &mut seen).expect_err("cut off");
        assert!(error.offset <= 28 + end, "{error:?} of {end} bytes");
    }
    let longer = [payload, &[0]].concat();
    assert_eq!(decode::bulk_reply(&longer, &mut seen).expect_err("longer").offset, BULK.len());
    let payload = decode::frame(ERROR).expect("a frame");
    for end in 0..payload.len() {
        assert!(decode::error(&payload[..end]).is_err(), "{end}");
    }
    assert!(decode::error(&[payload, &[0]].concat()).is_err());
    type Decode = fn(&[u8]) -> bool;
    let older: [(&[u8], Decode); 3] = [
        (DOMAIN_INFO, |payload| decode::domain_info(payload).is_ok()),
        (MEMORY_STATS, |payload| decode::memory_stats(payload).is_ok()),
        (CPU_STATS, |payload| decode::cpu_stats(payload).is_ok()),
    ];
    for (frame, is_read) in older {
        let payload = decode::frame(frame).expect("a frame");
        assert!((0..payload.len()).all(|end| !is_read(&payload[..end])));
        assert!(!is_read(&[payload, &[0]].concat()));
    }
}
