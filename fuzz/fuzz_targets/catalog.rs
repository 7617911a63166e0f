//! The catalogue of tables as the journal and the store keep it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use telemetry::lines::Catalog;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(catalog) = Catalog::from_bytes(bytes) {
        assert_eq!(Catalog::from_bytes(&catalog.to_bytes()), Ok(catalog));
    }
});
