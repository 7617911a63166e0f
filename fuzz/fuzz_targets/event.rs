//! The payload of an event. Inputs are whole frames: the procedure is taken from the header, the rest of which is
//! skipped unread.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvirt_rpc::decode;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, payload)) = bytes.split_at_checked(28) else { return };
    let procedure = i32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    if let Err(malformed) = decode::event(procedure, payload) {
        assert!(malformed.offset <= 28 + payload.len(), "{malformed:?}");
    }
});
