//! The payload of a bulk reply. Inputs are whole frames, so that captured ones serve as seeds; the header is skipped
//! unread, since a wrong length word would keep everything else from being tried.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvirt_rpc::{DomainRef, StatsVisitor, Value, decode};

#[derive(Default)]
struct Count {
    begun: usize,
    params: usize,
    ended: usize,
}

impl StatsVisitor for Count {
    fn begin(&mut self, _: DomainRef<'_>) {
        self.begun += 1;
    }

    fn param(&mut self, _: &str, _: Value<'_>) {
        self.params += 1;
    }

    fn end(&mut self) {
        self.ended += 1;
    }
}

fuzz_target!(|bytes: &[u8]| {
    let payload = bytes.get(28..).unwrap_or_default();
    let mut seen = Count::default();
    match decode::bulk_reply(payload, &mut seen) {
        Ok(records) => assert_eq!((seen.begun, seen.ended), (records, records)),
        Err(malformed) => {
            assert!(malformed.offset <= 28 + payload.len(), "{malformed:?}");
            assert!(seen.ended <= seen.begun && seen.begun <= seen.ended + 1);
        }
    }
    assert!(seen.params * 12 <= payload.len());
});
