//! The body of a write: what is taken of it is taken whole, and the same, when it is written again; and InfluxDB's
//! parser sees as many lines in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use telemetry::lines::{Catalog, Precision, parse, text};

const NOW: i64 = 1_795_385_500_000_000_000;

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = text(bytes) else { return };
    let mut catalog = Catalog::default();
    let Ok(admitted) = catalog.admit("fuzz", parse(body, Precision::Auto, NOW), true) else { return };
    assert_eq!(Catalog::from_bytes(&catalog.to_bytes()).as_ref(), Ok(&catalog));
    if admitted.batch.lines == 0 {
        assert_eq!((&*admitted.text, catalog), ("", Catalog::default()));
        return;
    }
    let mut catalog_again = Catalog::default();
    let parsed = parse(&admitted.text, Precision::Nanosecond, i64::MAX);
    let again = catalog_again.admit("fuzz", parsed, false).expect("lines that were taken");
    assert_eq!(again.text, admitted.text);
    assert_eq!((again.batch.lines, again.batch.span), (admitted.batch.lines, admitted.batch.span));
    assert_eq!(catalog_again, catalog);
    let seen: Result<Vec<_>, _> = influxdb_line_protocol::parse_lines(&admitted.text).collect();
    assert_eq!(seen.expect("lines").len(), admitted.batch.lines as usize);
});
