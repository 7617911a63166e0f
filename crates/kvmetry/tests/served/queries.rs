//! Every example of docs/QUERIES.md, over made-up telemetry; and for some, whether the answer is true.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use influxdb_line_protocol::{FieldValue, parse_lines};
use telemetry::workload::{Options, Workload};

use crate::{Server, client};

/// Where the page says now().
const NOW: &str = "TIMESTAMP '2026-01-01T12:00:00'";
/// 2026-01-01, 9 o'clock.
const START_NS: i64 = 1_767_258_000_000_000_000;
const SECOND: i64 = 1_000_000_000;
const HOURS: i64 = 3;
/// Rows of an answer that the page shows.
const SHOWN_ROWS: usize = 4;
/// Lines of a write.
const BATCH_LINES: usize = 5_000;

/// What no made-up VM does: one is lost for a minute and one for good, events, a collector.
fn others() -> String {
    let at = |seconds: i64| START_NS + seconds * SECOND;
    let (lost, mut lines) = (7_200, String::new());
    let tags = |vm: &str, id: u32| {
        format!("VMID={id},host=kvm-01,name={vm},uuid=6f2a0c1e-0000-4000-8000-0000000000{id}")
    };
    for second in (0..HOURS * 3_600).step_by(10) {
        // A NIC goes, and its bytes with it.
        let bytes = 100 * if second < 5_000 { second } else { second - 4_000 };
        let cpu = format!("cputime={0}i,timeusr={0}i,timesys=0i", second * SECOND / 4);
        let totals = format!("state=1i,cpus=2i,{cpu},memactual=1048576i,memrss=524288i,net_rxbytes={bytes}i");
        if !(lost..lost + 60).contains(&second) {
            let _ = writeln!(lines, "vm_totals,{} {totals} {}", tags("lost-01", 91), at(second));
        }
        if second < lost + 1_800 {
            let _ = writeln!(lines, "vm_totals,{} {totals} {}", tags("gone-01", 92), at(second));
        }
        if second % 60 == 0 {
            let told = "cycle_ns=55000000i,lines=32i,failures=0i,stuck_vms=0i";
            let (hits, misses) = (5 * second / 10, 20 + second / 60);
            let _ = writeln!(
                lines,
                "kvmetry_collector,host=kvm-01 {told},cache_hits={hits}i,cache_misses={misses}i {}",
                at(second)
            );
        }
    }
    let event = |event: &str, detail: &str, second: i64| {
        let tags = tags("gone-01", 92);
        format!("vm_events,{tags},event={event} detail=\"{detail}\",reason=\"unknown\" {}\n", at(second))
    };
    lines.push_str(&event("io_error", "/srv/gone-01.qcow2", lost + 1_700));
    lines.push_str(&event("stopped", "crashed", lost + 1_800));
    // Of another hypervisor: a disk that counts errors, and a NIC that loses packets.
    for (second, count) in [(10_000, 0), (10_060, 3), (10_120, 3)] {
        let vm = tags("old-01", 93);
        let disk = format!("rd_req=0i,rd_bytes=0i,wr_reqs=0i,wr_bytes=0i,errors={count}i");
        let _ = writeln!(lines, "vm_devices,{vm},devtype=disk,device=vda {disk} {}", at(second));
        let nic = format!("rxbytes=0i,txbytes=0i,rxerrors=0i,rxdrops={}i,txerrors=0i,txdrops=0i", count * 7);
        let _ = writeln!(lines, "vm_devices,{vm},devtype=nic,device=vnet93 {nic} {}", at(second));
    }
    lines
}

/// All that is written, as line protocol.
fn telemetry() -> String {
    let ten_seconds = Duration::from_secs(10);
    let options = Options {
        vms: 4,
        interval: ten_seconds,
        balloon_period: ten_seconds,
        start_ns: START_NS,
        ..Options::default()
    };
    let mut workload = Workload::new(options);
    let mut bytes = Vec::new();
    while workload.next_tick_ns() < START_NS + HOURS * 3_600 * SECOND {
        workload.cycle(&mut bytes);
    }
    String::from_utf8(bytes).expect("UTF-8") + &others()
}

async fn ask(server: &Server, sql: &str, format: &str) -> String {
    let body =
        serde_json::json!({ "db": "db", "q": sql.replace("now()", NOW), "format": format }).to_string();
    let url = format!("{}/api/v3/query_sql", server.url);
    let request = client().post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let text = answer.text().await.expect("a whole answer");
    assert!(status.is_success(), "{sql}\n{status}: {text}");
    text
}

/// The beginning of a table.
fn shown(table: &str) -> String {
    let lines: Vec<&str> = table.lines().collect();
    let head = lines.len().min(3 + SHOWN_ROWS);
    let is_whole = head + 1 >= lines.len();
    let end = if is_whole { lines[head..].join("\n") } else { "…".to_owned() };
    format!("{}\n{end}", lines[..head].join("\n")).trim_end().to_owned()
}

#[tokio::test]
async fn the_examples_of_the_queries_page_work() {
    let path = crate::package().join("../../docs/QUERIES.md");
    let page = std::fs::read_to_string(&path).expect("docs/QUERIES.md");
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    let lines = telemetry();
    let all: Vec<&str> = lines.lines().collect();
    for batch in all.chunks(BATCH_LINES) {
        assert_eq!(server.write(&batch.join("\n")).await.expect("an answer"), 204);
    }
    let mut parts = page.split("```sql\n");
    let mut written = parts.next().expect("a beginning").to_owned();
    let (mut wrong, mut without) = (String::new(), String::new());
    let mut examples = Vec::new();
    for part in parts {
        let (sql, rest) = part.split_once("\n```\n").expect("the block ends");
        let found = ask(&server, sql, "pretty").await;
        // Above and below the header, and at the end.
        if found.lines().count() <= 4 {
            let _ = write!(without, "no rows:\n{sql}\n{found}\n");
        }
        let (expect, rest) = match rest.strip_prefix("\n```text\n") {
            Some(rest) => rest.split_once("\n```\n").expect("the block ends"),
            None => ("", rest),
        };
        let found = shown(&found);
        if expect != found {
            let _ = write!(wrong, "{sql}\nthe page says\n{expect}\nand it is\n{found}\n\n");
        }
        let _ = write!(written, "```sql\n{sql}\n```\n\n```text\n{found}\n```\n{rest}");
        examples.push(sql);
    }
    if std::env::var_os("KVMETRY_WRITE_DOCS").is_some() {
        std::fs::write(&path, written).expect("docs/QUERIES.md");
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
    assert!(without.is_empty(), "{without}");
    assert!(examples.len() >= 25, "only {} examples", examples.len());
    are_true(&server, &lines, &examples).await;
    server.stop();
}

/// Answers of the page held against the lines themselves.
async fn are_true(server: &Server, lines: &str, examples: &[&str]) {
    let example = |part: &str| *examples.iter().find(|it| it.contains(part)).expect(part);
    // By VM: what its NICs moved, and its last memory.
    let mut moved: BTreeMap<String, i64> = BTreeMap::new();
    let mut memory: BTreeMap<String, i64> = BTreeMap::new();
    let mut before: BTreeMap<String, i64> = BTreeMap::new();
    for line in parse_lines(lines) {
        let line = line.expect("a good line");
        let tags: BTreeMap<String, String> =
            line.series.tag_set.iter().flatten().map(|it| (it.0.to_string(), it.1.to_string())).collect();
        for (field, value) in &line.field_set {
            let FieldValue::I64(value) = value else { continue };
            match (line.series.measurement.as_str(), field.as_str()) {
                ("vm_devices", "rxbytes" | "txbytes") => {
                    let counter = format!("{field} {tags:?}");
                    if let Some(before) = before.insert(counter, *value).filter(|before| before <= value) {
                        *moved.entry(tags["name"].clone()).or_default() += value - before;
                    }
                }
                ("vm_totals", "memactual")
                    if line.timestamp == Some(START_NS + (HOURS * 3_600 - 10) * SECOND) =>
                {
                    memory.insert(tags["name"].clone(), value / 1024);
                }
                _ => {}
            }
        }
    }
    let mut moved: Vec<(String, i64)> = moved.into_iter().collect();
    moved.sort_by_key(|it| -it.1);
    let moved: String = moved.iter().map(|it| format!("{},{}\n", it.0, it.1)).collect();
    let found = ask(server, example("AS bytes\nFROM vm_devices_1m"), "csv").await;
    assert_eq!(found, format!("name,bytes\n{moved}"), "top talkers");

    let memory: Vec<String> = memory.iter().map(|it| format!("{},{}", it.0, it.1)).collect();
    for part in ["memory_mib, time\nFROM last_cache('vm_totals')", "SELECT DISTINCT ON (uuid) name"] {
        let found = ask(server, example(part), "csv").await;
        let mut found: Vec<String> = found
            .lines()
            .skip(1)
            .map(|row| {
                let row: Vec<&str> = row.split(',').collect();
                format!("{},{}", row[0], row[4])
            })
            .collect();
        found.sort();
        assert_eq!(found, memory, "{part}");
    }

    let found = ask(server, example("AS readings"), "csv").await;
    for row in found.lines().skip(1) {
        let row: Vec<&str> = row.split(',').collect();
        assert_eq!(row[1], row[2], "sums are not those of the devices: {found}");
    }
    let found = ask(server, example("AS from_time"), "csv").await;
    assert!(found.contains("lost-01,2026-01-01T10:59:50,2026-01-01T11:01:00"), "{found}");
}
