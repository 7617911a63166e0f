//! docs/API.md does what it says, before the double: its answers to SQL are the store's to test.

use std::path::Path;
use std::process::Stdio;

use super::super::body::MAX_MEMBERS;
use super::super::limits::{MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_JSON_BYTES};
use super::*;

fn page() -> String {
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/API.md");
    std::fs::read_to_string(path).unwrap()
}

/// The `sh` blocks, each with the `text` block behind it.
fn examples(page: &str) -> Vec<(String, Option<String>)> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else { continue };
        let block: String =
            lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        match (kind, found.last_mut()) {
            ("sh", _) => found.push((block, None)),
            ("text", Some((_, expect @ None))) => *expect = Some(block),
            other => panic!("a block that is neither an example nor its answer: {other:?}"),
        }
    }
    found
}

#[tokio::test]
async fn the_examples_work() {
    let port = Port::open().await;
    let folder = tempfile::tempdir().unwrap();
    let all = examples(&page());
    assert!(all.len() >= 10, "{}", all.len());
    for (script, expect) in all {
        let mut bash = tokio::process::Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &script]).current_dir(folder.path()).stdin(Stdio::null());
        bash.env("KVMETRY_URL", port.url("")).env("NO_PROXY", "*");
        let ended = timeout(SOON, bash.kill_on_drop(true).output()).await.expect(&script).unwrap();
        assert!(ended.status.success(), "{script}{}", text(&ended.stderr));
        if let Some(expect) = expect.filter(|_| !script.contains("query_sql")) {
            let found = text(&ended.stdout);
            let found = if found.ends_with('\n') { found } else { found + "\n" };
            assert_eq!(found, expect, "{script}");
        }
    }
    let asked = port.double.asked.lock().unwrap();
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[0].params["limit"], 10);
    let written: String = port.written().into_iter().map(|(_, lines)| lines).collect();
    assert_eq!(written.lines().count(), 6, "{written}");
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
        ("connections", limits.connections.to_string()),
        (
            "time to the first request; without a request",
            format!("{} s; {} s", limits.first_request_within.as_secs(), limits.idle_within.as_secs()),
        ),
        ("a client takes nothing of an answer", format!("{} s", limits.take_within.as_secs())),
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
