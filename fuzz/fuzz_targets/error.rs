//! The payload of an error reply. Inputs are whole frames, the header skipped unread.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvirt_rpc::decode;

fuzz_target!(|bytes: &[u8]| {
    let payload = bytes.get(28..).unwrap_or_default();
    if let Err(malformed) = decode::error(payload) {
        assert!(malformed.offset <= 28 + payload.len(), "{malformed:?}");
    }
});
