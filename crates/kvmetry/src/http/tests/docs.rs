//! docs/API.md names every endpoint and limit. Its examples are run in tests/served.

use std::path::Path;

use super::super::body::MAX_MEMBERS;
use super::super::limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_JSON_BYTES};
use super::*;

fn page() -> String {
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/API.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_endpoint_and_limit_is_told() {
    let page = page();
    for endpoint in ENDPOINTS {
        assert!(page.contains(&format!("`{}`", endpoint.path)), "{}", endpoint.path);
    }
    let limits = Limits::default();
    let thousands = |number: usize| {
        let digits = number.to_string();
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(text).collect();
        groups.join(",")
    };
    for (what, value) in [
        ("body of a write, packed and unpacked", format!("{} bytes", thousands(MAX_BODY_BYTES))),
        ("JSON body", format!("{} bytes, 128 levels", thousands(MAX_JSON_BYTES))),
        ("members of a gzip body", thousands(MAX_MEMBERS)),
        ("time for a body", format!("{} s", limits.body_within.as_secs())),
        ("URL", format!("{} bytes", thousands(MAX_URL_BYTES))),
        ("headers", format!("{}, together {} bytes", MAX_HEADERS, thousands(MAX_HEADER_BYTES))),
        (
            "a body comes slowly while there is no room for others",
            format!("{} s in all", limits.slow.as_secs()),
        ),
        ("bodies in memory: of writes; in JSON; over Flight", {
            let (writes, questions) = (thousands(limits.bodies_bytes), thousands(limits.questions_bytes));
            format!("{writes}; {questions}; {questions} bytes")
        }),
        (
            "connections; of one address (IPv6: a /64), loopback apart",
            format!("{}; {}", limits.connections, limits.connections_of_one),
        ),
        (
            "time to the first request that is not refused, 1 s while others wait for a place; without a request",
            format!("{} s; {} s", limits.first_request_within.as_secs(), limits.idle_within.as_secs()),
        ),
        ("a client takes nothing of an answer", format!("{} s", limits.take_within.as_secs())),
        (
            "a client takes its answer slowly while other queries wait for a turn",
            format!("{} s in all", limits.slow.as_secs()),
        ),
        (
            "queries at once; waiting",
            format!(
                "{}; {}, for {} s",
                limits.queries,
                limits.queries_waiting,
                limits.query_turn_within.as_secs()
            ),
        ),
        ("lines told of a refused write", thousands(telemetry::lines::limits::MAX_TOLD_ERRORS)),
    ] {
        assert!(page.contains(&format!("| {what} | {value} |")), "{what}: {value}");
    }
}
