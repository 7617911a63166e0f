//! The header of a frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libvirt_rpc::decode;

fuzz_target!(|bytes: &[u8]| {
    match decode::frame(bytes) {
        Ok(payload) => assert_eq!(payload.len() + 28, bytes.len()),
        Err(malformed) => assert!(malformed.offset <= bytes.len(), "{malformed:?}"),
    }
});
