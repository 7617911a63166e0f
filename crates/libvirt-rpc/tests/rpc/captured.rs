//! Frames captured from libvirt 9.0 with QEMU guests (`tests/data`), decoded as they are.
//!
//! `bulk-3.bin` is the reply to a bulk call for three domains of two NICs and three disks, groups state, cpu-total,
//! balloon, interface and block. `error.bin` answers a look-up of a domain that is not there. The rest are events, a
//! keepalive PING and replies to the older calls.

use libvirt_rpc::{DomainRef, ErrorCode, Event, StatsVisitor, Value, decode};

pub(crate) const BULK: &[u8] = include_bytes!("../data/bulk-3.bin");
pub(crate) const ERROR: &[u8] = include_bytes!("../data/error.bin");
pub(crate) const LIFECYCLE: &[u8] = include_bytes!("../data/lifecycle.bin");
pub(crate) const DEVICE_ADDED: &[u8] = include_bytes!("../data/device-added.bin");
pub(crate) const DEVICE_REMOVED: &[u8] = include_bytes!("../data/device-removed.bin");
pub(crate) const BALLOON_CHANGE: &[u8] = include_bytes!("../data/balloon-change.bin");
pub(crate) const PING: &[u8] = include_bytes!("../data/ping.bin");
pub(crate) const OLDER: [&[u8]; 3] = [
    include_bytes!("../data/memory-stats.bin"),
    include_bytes!("../data/cpu-stats.bin"),
    include_bytes!("../data/domain-info.bin"),
];

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
}
