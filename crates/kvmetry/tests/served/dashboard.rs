//! The dashboard's API over HTTP, on points that were written a moment ago.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::{KVMETRY, Server, client};

const UUID: &str = "00000000-0000-4000-8000-000000000001";
const OTHER: &str = "00000000-0000-4000-8000-000000000002";
const SECOND_NS: i64 = 1_000_000_000;

#[expect(clippy::disallowed_methods, reason = "what the pages show is what was written a moment ago")]
pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as i64
}

/// A reading of a VM: its counters are `step` times a second's worth, its name and tags as given.
pub(crate) fn reading(lines: &mut String, tags: &str, step: i64, at: i64) {
    let (cpu, rx, tx) = (step * SECOND_NS, step * 1_000, step * 2_000);
    let (rd, wr) = (step * 3_000, step * 4_000);
    let _ = writeln!(
        lines,
        "vm_totals,{tags} state=1i,cpus=4i,cputime={cpu}i,timeusr={cpu}i,timesys=0i,memactual=4096i,memrss=3000i,\
         memavailable=4000i,memusable=1000i,net_rxbytes={rx}i,net_txbytes={tx}i,disk_rd_bytes={rd}i,disk_wr_bytes={wr}i,\
         net_rxerrors={step}i,net_txerrors=0i,net_rxdrops=0i,net_txdrops=0i,disk_errors=0i,collect_ok=1i,\
         collect_age_s=0i {at}"
    );
    let _ = writeln!(lines, "vm_devices,{tags},devtype=nic,device=vnet0 rxbytes={rx}i,txbytes={tx}i {at}");
    let _ = writeln!(lines, "vm_devices,{tags},devtype=disk,device=vda rd_bytes={rd}i,wr_bytes={wr}i {at}");
    let _ = writeln!(lines, "vm_features,{tags} memory_rate_kb_per_sec=1.5,memory_angle_deg=0.1 {at}");
}

fn tags(uuid: &str, name: &str, vmid: u32) -> String {
    format!("VMID={vmid},name={name},uuid={uuid},host=kvm1")
}

struct Pages {
    _dir: tempfile::TempDir,
    server: Server,
}

impl Pages {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let server = Server::start(dir.path());
        Self { _dir: dir, server }
    }

    /// Those of a collector.
    fn of_run(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let server = Server::of::<&str>("run", dir.path(), args, &[]);
        Self { _dir: dir, server }
    }

    async fn write(&self, lines: String) {
        let url = format!("{}/api/v3/write_lp?db=kvmetry", self.server.url);
        let answer = client().post(url).body(lines).send().await.expect("an answer");
        assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap_or_default());
    }

    async fn get(&self, path: &str) -> Response {
        client().get(format!("{}{path}", self.server.url)).send().await.expect("an answer")
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        let (status, text) = (answer.status(), answer.text().await.expect("a text"));
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The fleet, once it has a VM: the first answer may be as old as a second.
    async fn fleet(&self) -> Value {
        loop {
            let fleet = self.json("/api/fleet").await;
            if fleet["vms"].as_array().is_some_and(|it| !it.is_empty()) {
                return fleet;
            }
        }
    }

    /// A chart's line: its means, least and greatest.
    async fn series(&self, query: &str, panel: &str, id: &str) -> Value {
        let page = self.json(&format!("/api/vm/{UUID}?{query}")).await;
        let panels = page["panels"].as_array().expect("charts");
        let panel = panels.iter().find(|it| it["id"] == panel).expect("the chart");
        let series = panel["series"].as_array().expect("lines");
        let mut line = series.iter().find(|it| it["id"] == id).expect("the line").clone();
        line["times"] = panel["times"].clone();
        line["sql"] = panel["sql"].clone();
        line
    }
}

#[tokio::test]
async fn the_fleet_is_what_was_written() {
    let pages = Pages::open();
    let empty = pages.json("/api/fleet").await;
    assert_eq!((&empty["at"], &empty["vms"]), (&Value::Null, &json!([])));
    let at = now_ns() - SECOND_NS;
    let mut lines = String::new();
    for step in [0, 1] {
        let at = at - (1 - step) * 5 * SECOND_NS;
        reading(&mut lines, &tags(UUID, "web\\ 1", 3), step * 5, at);
        // Restarted between the two: nothing is known of its rates.
        reading(&mut lines, &tags(OTHER, "db", 4 + step as u32), 100 - step * 99, at);
        let _ = writeln!(lines, "kvmetry_collector,host=kvm1 cycle_ns=7000000i,lines=8i,failures=0i {at}");
    }
    // A host that has been silent for a while.
    let _ = writeln!(lines, "kvmetry_collector,host=kvm2 cycle_ns=1i,lines=8i {}", at - 600 * SECOND_NS);
    pages.write(lines).await;
    let fleet = pages.fleet().await;
    assert_eq!((&fleet["at"], &fleet["interval"]), (&json!(at / 1_000_000), &json!(5_000)));
    let vm =
        |uuid: &str| fleet["vms"].as_array().unwrap().iter().find(|it| it["uuid"] == uuid).unwrap().clone();
    let web = vm(UUID);
    let expect = json!({
        "uuid": UUID, "name": "web 1", "host": "kvm1", "vmid": "3", "at": at / 1_000_000, "interval": 5_000, "state": 1, "cpus": 4, "cpu": 25.0,
        "assigned": 4096, "used": 3000, "source": "guest", "growth": 1.5, "rx": 1000.0, "tx": 2000.0, "rd": 3000.0,
        "wr": 4000.0, "errors": web["errors"], "drops": web["drops"], "ok": true, "age": 0,
    });
    assert_eq!(web, expect);
    let db = vm(OTHER);
    assert_eq!((&db["vmid"], &db["cpu"], &db["rx"]), (&json!("5"), &Value::Null, &Value::Null));
    let hosts = fleet["hosts"].as_array().unwrap();
    let silent: Vec<_> =
        hosts.iter().map(|it| (it["name"].as_str().unwrap(), &it["silent"], &it["vms"])).collect();
    assert_eq!(silent, [("kvm1", &json!(false), &json!(2)), ("kvm2", &json!(true), &json!(0))]);
    assert!(
        fleet["warnings"][0]["text"]
            .as_str()
            .unwrap()
            .contains("kvm2 is silent: nothing was read of it since"),
        "{}",
        fleet["warnings"]
    );
    let history = pages.json("/api/fleet/history").await;
    assert_eq!(history["step"], 15_000);
    let collector = pages.json("/api/collector").await;
    assert_eq!(collector["hypervisors"][0]["cycle"], 7.0, "{collector}");
    assert!(collector["journal"]["entries"].as_u64() >= Some(1), "{collector}");
    let oldest = collector["journal"]["oldest"].as_i64().expect("a time");
    assert!(
        (collector["since"].as_i64().expect("a time")..=now_ns() / 1_000_000).contains(&oldest),
        "{collector}"
    );
    // Another process reads it.
    assert_eq!(collector["hypervisors"][0]["uri"], Value::Null);
}

/// Nothing is ever written, so there is no row to know it by.
#[tokio::test]
async fn a_hypervisor_that_is_not_there_is_shown_with_its_problem() {
    let uri = "qemu+unix:///system?socket=/nonexistent&key=secret";
    let pages = Pages::of_run(&["--interval", "1s", "--uri", uri]);
    let shown = "qemu+unix:///system?socket=/nonexistent&key=***";
    let problem = "unix:/nonexistent: no such socket: is the daemon running, and is socket= right?";
    let text = format!("{shown} cannot be read: {problem}");
    let mut events = Events::of(&pages.server, None).await;
    loop {
        let (_, _, fleet) = events.next().await;
        let warnings = fleet["warnings"].as_array().expect("warnings");
        // The first push may have come before the first try.
        if let [warning] = &warnings[..] {
            assert_eq!((&warning["level"], &warning["text"]), (&json!("error"), &json!(text)));
            assert!(warning["advice"].is_string(), "{warning}");
            break;
        }
        assert_eq!(warnings.len(), 0, "{fleet}");
    }
    let collector = pages.json("/api/collector").await;
    let [one] = &collector["hypervisors"].as_array().expect("hypervisors")[..] else { panic!("{collector}") };
    assert_eq!((&one["host"], &one["uri"], &one["problem"]), (&json!(shown), &json!(shown), &json!(problem)));
    assert_eq!((&one["connectedSince"], &one["libvirt"]), (&Value::Null, &Value::Null));
    assert_eq!((&one["interval"], &one["cycle"], &one["vms"]), (&json!(1_000), &Value::Null, &json!(0)));
    assert!(!collector.to_string().contains("secret"), "{collector}");
    assert_eq!(collector["warnings"][0]["text"], text);
}

/// One is read every 5 s, one every minute, and one has a clock that is far ahead.
#[tokio::test]
async fn each_host_has_a_pace_of_its_own() {
    let pages = Pages::open();
    let at = now_ns() - SECOND_NS;
    let mut lines = String::new();
    let mut cycle = |uuid: &str, host: &str, step: i64, at: i64| {
        let tags = format!("VMID=1,name={host},uuid={uuid},host={host}");
        reading(&mut lines, &tags, step, at);
        let _ = writeln!(lines, "kvmetry_collector,host={host} cycle_ns=1i,lines=8i {at}");
    };
    for n in 0..=12 {
        cycle(UUID, "quick", n * 5, at - (12 - n) * 5 * SECOND_NS);
    }
    for n in 0..=2 {
        cycle(OTHER, "slow", n * 60, at - 40 * SECOND_NS - (2 - n) * 60 * SECOND_NS);
    }
    cycle("00000000-0000-4000-8000-000000000003", "quick", 1, at + 3_600 * SECOND_NS);
    pages.write(lines).await;
    let fleet = pages.json("/api/fleet").await;
    let hosts: Vec<_> =
        fleet["hosts"].as_array().unwrap().iter().map(|it| (&it["interval"], &it["silent"])).collect();
    assert_eq!(hosts, [(&json!(5_000), &json!(false)), (&json!(60_000), &json!(false))]);
    let vms: Vec<_> = fleet["vms"].as_array().unwrap().iter().map(|it| (&it["name"], &it["cpu"])).collect();
    assert_eq!(vms, [(&json!("quick"), &json!(25.0)), (&json!("slow"), &json!(25.0))]);
}

/// Whoever comes first finds the VMs of a host that has been silent for minutes.
#[tokio::test]
async fn a_silent_host_keeps_its_vms() {
    let pages = Pages::open();
    let (now, mut lines) = (now_ns() - SECOND_NS, String::new());
    for step in 0..3 {
        let at = now - (2 - step) * 5 * SECOND_NS;
        reading(&mut lines, &tags(UUID, "live", 3), step * 5, at);
        let quiet = tags(OTHER, "quiet", 4).replace("kvm1", "kvm2");
        reading(&mut lines, &quiet, step * 5, at - 400 * SECOND_NS);
    }
    pages.write(lines).await;
    let fleet = pages.fleet().await;
    let vms: Vec<_> = fleet["vms"].as_array().unwrap().iter().map(|it| (&it["name"], &it["host"])).collect();
    assert_eq!(vms, [(&json!("live"), &json!("kvm1")), (&json!("quiet"), &json!("kvm2"))]);
    let hosts: Vec<_> =
        fleet["hosts"].as_array().unwrap().iter().map(|it| (&it["silent"], &it["vms"])).collect();
    assert_eq!(hosts, [(&json!(false), &json!(1)), (&json!(true), &json!(1))]);
}

#[tokio::test]
async fn a_gap_is_a_gap_and_a_reset_is_no_spike() {
    let pages = Pages::open();
    let end = now_ns() / (60 * SECOND_NS) * 60 * SECOND_NS;
    let mut lines = String::new();
    // 20 minutes every 5 s: ten minutes of one start, a gap of a minute, nine of another under another name.
    let begin = end - 1_200 * SECOND_NS;
    for n in 0..240_i64 {
        let at = begin + n * 5 * SECOND_NS;
        // One second of the first part is ten times as busy.
        let step = n * 5 + if n >= 60 { 45 } else { 0 };
        match n {
            // A disk is not told for five minutes, and then all that was written meanwhile.
            24..84 => {
                let mut some = String::new();
                reading(&mut some, &tags(UUID, "old", 3), step, at);
                lines.push_str(&some.replace(&format!("disk_wr_bytes={}i,", step * 4_000), ""));
            }
            0..120 => reading(&mut lines, &tags(UUID, "old", 3), step, at),
            // The second one leaves something of each of its minutes.
            120..132 | 150..161 => {}
            _ => reading(&mut lines, &tags(UUID, "new", 9), (n - 132) * 5, at),
        }
    }
    let event = begin + 300 * SECOND_NS;
    let _ = writeln!(lines, "vm_events,{},event=device_added detail=\"vdb\" {event}", tags(UUID, "old", 3));
    pages.write(lines).await;
    // Paused for 50 s: an event tells the beginning, and nothing the end.
    let mut lines = String::new();
    for n in 200..210 {
        let _ = writeln!(lines, "vm_totals,{} state=3i {}", tags(UUID, "new", 9), begin + n * 5 * SECOND_NS);
    }
    let event = begin + 998 * SECOND_NS;
    let _ = writeln!(lines, "vm_events,{},event=paused reason=\"io error\" {event}", tags(UUID, "new", 9));
    pages.write(lines).await;
    let (from, to) = (begin / 1_000_000, end / 1_000_000);
    // Every reading.
    let query = format!("from={from}&to={to}&points=400");
    let line = pages.series(&query, "net", "net_rxbytes").await;
    let mean: Vec<Option<f64>> = serde_json::from_value(line["mean"].clone()).expect("numbers");
    assert_eq!(line["min"], Value::Null);
    let known: Vec<f64> = mean.iter().copied().flatten().collect();
    assert_eq!(known.len(), 120 - 1 + 108 - 11 - 1, "the first of each start has no rate");
    assert!(known.iter().all(|it| (it - 1_000.0).abs() < 1e-6 || (it - 10_000.0).abs() < 1e-6), "{known:?}");
    assert_eq!(known.iter().filter(|it| **it > 5_000.0).count(), 1);
    let times: Vec<i64> = serde_json::from_value(line["times"].clone()).expect("times");
    let gap = times.iter().position(|it| *it > from + 595_000).expect("a moment in the gap");
    assert_eq!((mean[gap], times[gap] < from + 660_000), (None, true), "a gap has a moment of its own");
    let cpu = pages.series(&query, "cpu", "timeusr").await;
    let cpu: Vec<Option<f64>> = serde_json::from_value(cpu["mean"].clone()).expect("numbers");
    assert_eq!(cpu.iter().filter(|it| it.is_some()).count(), known.len());
    assert_eq!(cpu.iter().copied().flatten().filter(|it| *it > 25.1).count(), 1, "{cpu:?}");
    // In buckets the spike is the greatest of one, and the gap is empty.
    let query = format!("from={from}&to={to}&points=60");
    let line = pages.series(&query, "net", "net_rxbytes").await;
    let max: Vec<Option<f64>> = serde_json::from_value(line["max"].clone()).expect("numbers");
    assert_eq!(max.iter().copied().flatten().fold(0.0, f64::max), 10_000.0);
    let mean: Vec<Option<f64>> = serde_json::from_value(line["mean"].clone()).expect("numbers");
    let times: Vec<i64> = serde_json::from_value(line["times"].clone()).expect("times");
    for (time, mean) in times.iter().zip(&mean) {
        let is_in_gap = *time >= from + 600_000 && time + 20_000 <= to && *time + 20_000 < from + 660_000;
        assert!(!is_in_gap || mean.is_none(), "{time}");
    }
    for panel in ["nic:vnet0:bytes", "disk:vda:bytes", "cpu", "memory", "trend"] {
        let page = pages.json(&format!("/api/vm/{UUID}?{query}")).await;
        assert!(page["panels"].as_array().unwrap().iter().any(|it| it["id"] == panel), "{panel}");
    }
    let page = pages.json(&format!("/api/vm/{UUID}?{query}")).await;
    assert_eq!(page["names"], json!(["new", "old"]));
    let marks: Vec<&str> =
        page["marks"].as_array().unwrap().iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(marks, ["device_added", "restarted", "renamed", "paused", "state"]);
    let last = &page["marks"][4];
    assert_eq!((&last["at"], &last["text"]), (&json!(from + 1_050_000), &json!("running, before paused")));
    // The SQL can be asked as it is.
    let sql = line["sql"].as_str().expect("SQL");
    let asked = pages.get(&format!("/api/v3/query_sql?db=kvmetry&q={}", percent(sql))).await;
    assert_eq!(asked.status(), 200, "{sql}");
    // From the roll-ups.
    let day = 86_400_000;
    for (span, table) in [(7 * day, "1m"), (300 * day, "1h")] {
        let page = pages.json(&format!("/api/vm/{UUID}?from={}&to={to}", to - span)).await;
        // Of an hour that is not over the minutes are shown.
        let is_of_hours = table == "1h" && page["table"] == "1m";
        assert!(page["table"] == table || is_of_hours, "{table}: {}", page["table"]);
        let cpu = page["panels"][0]["series"][0]["max"].as_array().expect("numbers").clone();
        let cpu: Vec<f64> = cpu.iter().filter_map(Value::as_f64).collect();
        // An hour that is not over, and the first one, are not told.
        assert!(table == "1h" || !cpu.is_empty(), "{table}");
        assert!(cpu.iter().all(|it| *it <= 100.0), "{table}: {cpu:?}");
    }
    // Each rate is over the time that was read, and the spike is as high as it was.
    let query = format!("from={}&to={to}&step=60000", to - 27 * 3_600_000);
    let line = pages.series(&query, "net", "net_rxbytes").await;
    let values = |part: &str| -> Vec<f64> {
        line[part].as_array().expect("numbers").iter().filter_map(Value::as_f64).collect()
    };
    for (part, spike) in [("mean", Some(1_750.0)), ("min", None), ("max", Some(10_000.0))] {
        let values = values(part);
        assert!(values.len() >= 18, "{part}: {values:?}");
        let (high, usual): (Vec<f64>, Vec<f64>) = values.into_iter().partition(|it| *it > 1_001.0);
        assert_eq!(high, Vec::from_iter(spike), "{part}");
        assert!(usual.iter().all(|it| (it - 1_000.0).abs() < 1e-6), "{part}: {usual:?}");
    }
    let line = pages.series(&query, "disk", "disk_wr_bytes").await;
    let means = line["mean"].as_array().expect("numbers").iter().filter_map(Value::as_f64);
    let means: Vec<f64> = means.collect();
    assert!(means.iter().all(|it| *it <= 4_000.0 * 1.8), "what was absent is no spike: {means:?}");
    let line = pages.series(&query, "cpu", "timeusr").await;
    let most = line["max"].as_array().expect("numbers").iter().filter_map(Value::as_f64).fold(0.0, f64::max);
    assert_eq!(most, 100.0, "as many vCPUs as it has");
}

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, it| {
        let _ = write!(all, "%{it:02X}");
        all
    })
}

#[tokio::test]
async fn what_is_asked_wrongly_is_said() {
    let pages = Pages::open();
    let mut lines = String::new();
    reading(&mut lines, &tags(UUID, "a", 3), 1, now_ns());
    pages.write(lines).await;
    for (path, status) in [
        ("/api/vm/x", 400),
        ("/api/vm/00000000-0000-4000-8000-00000000000'", 400),
        ("/api/vm/' OR 1=1 --", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?from=2&to=1", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?from=x", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?from=0", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?step=1", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?step=9223372036854775807", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?from=-9223372036854&to=-9223372036853", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?from=9000000000000000000&to=9223372036854775807", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?span=0", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?span=-1", 400),
        ("/api/vm/00000000-0000-4000-8000-000000000001?span=99999999999999", 400),
        ("/api/vm/00000000-0000-4000-8000-00000000dead", 404),
        ("/api/vm/", 404),
        ("/api/fleet/nothing", 404),
        ("/assets/nothing.js", 404),
    ] {
        let answer = pages.get(path).await;
        assert_eq!(answer.status(), status, "{path}: {}", answer.text().await.unwrap_or_default());
    }
    for method in [reqwest::Method::POST, reqwest::Method::DELETE] {
        let url = format!("{}/api/fleet", pages.server.url);
        let answer = client().request(method, url).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test]
async fn older_databases_are_shown_too() {
    let pages = Pages::open();
    let at = now_ns() - SECOND_NS;
    let mut lines = String::new();
    for step in [0, 1] {
        let (at, cpu) = (at - (1 - step) * 5 * SECOND_NS, step * SECOND_NS);
        let _ = writeln!(
            lines,
            "vm_totals,VMID=1,Dom=old,UUID={UUID} state=1i,cpus=1i,cputime={cpu}i,memrss=7i {at}"
        );
    }
    pages.write(lines).await;
    let fleet = pages.json("/api/fleet").await;
    let vm = &fleet["vms"][0];
    assert_eq!((&vm["name"], &vm["uuid"], &vm["host"]), (&json!("old"), &json!(UUID), &json!("")));
    assert_eq!((&vm["cpu"], &vm["used"], &vm["source"]), (&json!(20.0), &json!(7), &json!("rss")));
    let page = pages.json(&format!("/api/vm/{UUID}")).await;
    assert_eq!(page["names"], json!(["old"]));
}

/// A clone that kept its UUID: the same one is shown every time, and both are told. One that moved is on its new host at once.
#[tokio::test]
async fn one_uuid_on_two_hosts() {
    let pages = Pages::open();
    let at = now_ns() - SECOND_NS;
    let mut lines = String::new();
    let mut cycle = |uuid: &str, host: &str, step: i64, at: i64| {
        let tags = format!("VMID=1,name={host},uuid={uuid},host={host}");
        reading(&mut lines, &tags, step, at);
    };
    for step in 0..3 {
        let before = (2 - step) * 5 * SECOND_NS;
        cycle(UUID, "kvm1", step, at - before);
        // Read a moment later.
        cycle(UUID, "kvm2", step, at - before + SECOND_NS / 2);
        // It moves from one to the other.
        cycle(OTHER, if step < 2 { "kvm1" } else { "kvm2" }, step, at - before + SECOND_NS / 2 * (step / 2));
    }
    pages.write(lines).await;
    let fleet = pages.fleet().await;
    let vms: Vec<_> = fleet["vms"].as_array().unwrap().iter().map(|it| (&it["uuid"], &it["host"])).collect();
    assert_eq!(vms, [(&json!(UUID), &json!("kvm1")), (&json!(OTHER), &json!("kvm2"))]);
    let text = fleet["warnings"][0]["text"].as_str().expect("a warning");
    assert_eq!(text, format!("kvm1 and kvm2 both have a VM {UUID} (kvm1)"));
}

/// A VM that ended, a host whose clock is ahead, and a number that no column of ours has: told, and all else is shown.
#[tokio::test]
async fn what_is_out_of_the_ordinary_is_told() {
    let pages = Pages::open();
    let (at, mut lines) = (now_ns() - SECOND_NS, String::new());
    for step in [0, 1] {
        let at = at - (1 - step) * 5 * SECOND_NS;
        let _ =
            writeln!(lines, "vm_totals,{} net_rxbytes={}u,memrss=7u {at}", tags(UUID, "a", 3), step * 5_000);
    }
    let none = "\u{a0}";
    let _ = writeln!(
        lines,
        "vm_totals,{} net_rxbytes=18446744073709551615u,memrss=8u {at}",
        tags(OTHER, none, 4)
    );
    let gone = "00000000-0000-4000-8000-00000000000f";
    let event = |name: &str| format!("vm_events,VMID=7,name=gone,uuid={gone},host=kvm1,event={name}");
    let _ = writeln!(lines, "{} reason=\"booted\" {}", event("started"), at - 120 * SECOND_NS);
    let _ = writeln!(lines, "{} reason=\"panicked\" {}", event("crashed"), at - 60 * SECOND_NS);
    let _ = writeln!(
        lines,
        "{} reason=\"destroyed\" {}",
        event("stopped").replace(gone, UUID),
        at - 60 * SECOND_NS
    );
    let _ = writeln!(lines, "kvmetry_collector,host=early cycle_ns=1i,lines=1i {}", at + 600 * SECOND_NS);
    for n in 0..501 {
        let _ = writeln!(lines, "{} reason=\"\" {}", event("balloon"), at - n);
    }
    pages.write(lines).await;
    let fleet = pages.json("/api/fleet").await;
    let vms: Vec<_> =
        fleet["vms"].as_array().unwrap().iter().map(|it| (&it["name"], &it["rx"], &it["used"])).collect();
    // Nobody could click on a name that is not to be seen.
    let expect = [(&json!(OTHER), &Value::Null, &json!(8)), (&json!("a"), &json!(1_000.0), &json!(7))];
    assert_eq!(vms, expect);
    let told: Vec<&str> =
        fleet["warnings"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap()).collect();
    assert!(
        told.iter().any(|it| it.starts_with("gone crashed at ") && it.ends_with(" UTC (panicked)")),
        "{told:?}"
    );
    // It was started again.
    assert!(!told.iter().any(|it| it.contains("stopped")), "{told:?}");
    assert!(
        told.iter().any(|it| it.starts_with("the clock of early is more than a minute ahead")),
        "{told:?}"
    );
    let page = pages.json(&format!("/api/vm/{gone}")).await;
    assert_eq!(page["marks"].as_array().unwrap().len(), 500);
    assert_eq!(page["notes"], json!(["there are more events; the newest 500 are shown"]));
}

/// Where readings are kept, roll-ups do not fill a gap; a long range of a new VM shows what there is.
#[tokio::test]
async fn other_tables_are_asked_only_where_they_know_more() {
    let pages = Pages::open();
    let (now, mut lines) = (now_ns() - SECOND_NS, String::new());
    for n in (0..60).filter(|it| !(20..50).contains(it)) {
        reading(&mut lines, &tags(UUID, "a", 3), n * 10, now - (60 - n) * 10 * SECOND_NS);
    }
    pages.write(lines).await;
    // The newest of a span ends at the server's clock.
    let before = now_ns() / 1_000_000;
    let page = pages.json(&format!("/api/vm/{UUID}?span=900000")).await;
    let (from, to) = (page["from"].as_i64().unwrap(), page["to"].as_i64().unwrap());
    assert_eq!(to - from, 900_000);
    assert!((before..=now_ns() / 1_000_000).contains(&to), "{to}");
    let now = now / 1_000_000;
    // Within the five minutes of which there is nothing.
    let page = pages.json(&format!("/api/vm/{UUID}?from={}&to={}", now - 380_000, now - 120_000)).await;
    assert_eq!(page["table"], "raw");
    let values = page["panels"].as_array().unwrap().iter().flat_map(|it| it["series"].as_array().unwrap());
    let mut values = values.flat_map(|it| it["mean"].as_array().unwrap());
    assert!(values.all(Value::is_null), "{page}");
    // Its hour is not over.
    let page = pages.json(&format!("/api/vm/{UUID}?from={}&to={now}", now - 30 * 86_400_000)).await;
    let cpu = page["panels"][0]["series"][0]["mean"].as_array().unwrap();
    assert!(cpu.iter().any(|it| !it.is_null()), "{}: {}", page["table"], page["notes"]);
}

/// Who has no token gets the page and the login, and nothing else.
#[tokio::test]
async fn a_login_reads_and_does_not_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let token = |scope: &str| token(dir.path(), scope);
    let (reads, writes, all) = (token("read"), token("write"), token("admin"));
    let server = Server::start(dir.path());
    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = client().request(method, format!("{}{path}", server.url)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async { request.send().await.expect("an answer") }
    };
    for path in ["/", &format!("/vm/{UUID}"), "/collector"] {
        let page = ask("GET", path, &[], "").await;
        let policy = page.headers()["content-security-policy"].to_str().expect("ASCII").to_owned();
        assert_eq!(page.status(), 200, "{path}");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
    let json = [("content-type", "application/json")];
    let apis =
        ["/api/fleet", "/api/fleet/history", &format!("/api/vm/{UUID}"), "/api/collector", "/api/live"];
    for path in apis {
        assert_eq!(ask("GET", path, &[], "").await.status(), 401, "{path}");
        let bad = [("cookie", "kvmetry_token=kvm_bad")];
        assert_eq!(ask("GET", path, &bad, "").await.status(), 401, "{path}");
    }
    // A link elsewhere leads to a page; nothing else of another site is let in.
    let [site, link, frame] =
        [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    for (method, path, headers, status) in [
        ("GET", "/collector", vec![site, link, frame], 200),
        ("GET", "/collector", vec![site, link, ("sec-fetch-dest", "iframe")], 403),
        ("GET", "/collector", vec![site, ("sec-fetch-mode", "no-cors"), frame], 403),
        ("POST", "/collector", vec![site, link, frame], 403),
        ("GET", "/api/fleet", vec![site, link, frame], 403),
        ("GET", "/api/v3/query_sql?db=a&q=b", vec![site, link, frame], 403),
    ] {
        assert_eq!(ask(method, path, &headers, "").await.status(), status, "{method} {path} {headers:?}");
    }
    let session = ask("GET", "/api/session", &[], "").await.text().await.expect("a text");
    assert_eq!(session, r#"{"needed":true,"login":false}"#);
    for body in [
        r#"{"token":"nonsense"}"#,
        r#"{"token":""}"#,
        r#"{"token":"a;b"}"#,
        &format!(r#"{{"token":"{writes}"}}"#),
    ] {
        assert_eq!(ask("POST", "/api/session", &json, body).await.status(), 401, "{body}");
    }
    let evil = [("content-type", "application/json"), ("origin", "http://evil.example")];
    assert_eq!(ask("POST", "/api/session", &evil, &format!(r#"{{"token":"{reads}"}}"#)).await.status(), 403);
    let strange = [("content-type", "application/json"), ("host", "evil.example")];
    assert_eq!(ask("POST", "/api/session", &strange, "{}").await.status(), 421);
    for token in [&reads, &all] {
        let answer = ask("POST", "/api/session", &json, &format!(r#"{{"token":"{token}"}}"#)).await;
        assert_eq!(answer.status(), 204);
        let cookie = answer.headers()["set-cookie"].to_str().expect("ASCII").to_owned();
        assert!(!cookie.contains(token.as_str()), "it is good for pages only");
        for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        let cookie = cookie.split(';').next().expect("a cookie").to_owned();
        let cookie = [("cookie", &*cookie)];
        for path in apis {
            let status = ask("GET", path, &cookie, "").await.status();
            assert!(status == 200 || status == 404, "{path}: {status}");
        }
        let session = ask("GET", "/api/session", &cookie, "").await.text().await.expect("a text");
        assert_eq!(session, r#"{"needed":true,"login":true}"#);
        assert_eq!(ask("GET", "/api/v3/query_sql?db=kvmetry&q=SELECT+1", &cookie, "").await.status(), 200);
        // It is for pages: whatever the token may, a browser does not write.
        assert_eq!(ask("POST", "/api/v3/write_lp?db=a", &cookie, "m v=1").await.status(), 401);
        assert_eq!(ask("POST", "/api/v3/compact", &cookie, "").await.status(), 401);
    }
    let out = ask("DELETE", "/api/session", &[], "").await;
    assert!(out.headers()["set-cookie"].to_str().expect("ASCII").contains("Max-Age=0"));
}

fn token(dir: &Path, scope: &str) -> String {
    let mut command = std::process::Command::new(KVMETRY);
    let made = command.args(["token", "--scope", scope, "--data-dir"]).arg(dir).output().expect("it runs");
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    text.split_whitespace().last().expect("a token").to_owned()
}

/// Events of a stream, as they come.
pub(crate) struct Events {
    answer: Response,
    text: String,
}

impl Events {
    pub(crate) async fn of(server: &Server, last: Option<&str>) -> Self {
        let mut request = client().get(format!("{}/api/live", server.url));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, text: String::new() }
    }

    /// Its id, name and data.
    pub(crate) async fn next(&mut self) -> (String, String, Value) {
        self.more().await.expect("more")
    }

    /// The same; `None` where the stream has ended as it should.
    async fn more(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let of = |name: &str| {
                    let found = event.lines().find_map(|it| it.strip_prefix(name)?.strip_prefix(": "));
                    found.unwrap_or_default().to_owned()
                };
                let found = (of("id"), of("event"), serde_json::from_str(&of("data")).expect("JSON"));
                self.text = rest.to_owned();
                return Some(found);
            }
            let bytes = self.answer.chunk().await.expect("no failure")?;
            self.text.push_str(std::str::from_utf8(&bytes).expect("UTF-8"));
        }
    }
}

#[tokio::test]
async fn each_cycle_is_pushed_and_a_hole_is_said() {
    let pages = Pages::open();
    let mut events = Events::of(&pages.server, None).await;
    let (_, kind, fleet) = events.next().await;
    assert_eq!((kind.as_str(), &fleet["vms"]), ("fleet", &json!([])));
    let mut last = String::new();
    for step in 1..4 {
        let mut lines = String::new();
        reading(&mut lines, &tags(UUID, "a", 3), step, now_ns());
        pages.write(lines).await;
        // Another push may have been on its way.
        loop {
            let (id, kind, fleet) = events.next().await;
            assert_eq!(kind, "fleet");
            last = id;
            if fleet["vms"][0]["at"].is_number() {
                break;
            }
        }
    }
    // Who comes back with the newest has no hole, who comes from another run has one.
    let (run, number) = last.split_once('-').expect("an id");
    let (_, kind, _) = Events::of(&pages.server, Some("other-7")).await.next().await;
    assert_eq!(kind, "hole");
    let before: u64 = number.parse().expect("a number");
    let (_, kind, _) =
        Events::of(&pages.server, Some(&format!("{run}-{}", before.saturating_sub(2)))).await.next().await;
    assert_eq!(kind, "hole");
    // It ends with the server, and is not cut off.
    pages.server.stop();
    while let Some((_, kind, _)) = events.more().await {
        assert_ne!(kind, "trouble");
    }
}

/// A browser does not see why a stream is refused.
#[tokio::test]
async fn who_finds_no_place_is_told_so() {
    let pages = Pages::open();
    let mut all = Vec::new();
    for _ in 0..64 {
        let mut events = Events::of(&pages.server, None).await;
        assert_eq!(events.next().await.1, "fleet");
        all.push(events);
    }
    let (_, kind, told) = Events::of(&pages.server, None).await.next().await;
    assert_eq!((&*kind, &told["error"]), ("trouble", &json!("64 browsers watch already: close one of them")));
    all.pop();
    // That its place is free is seen a moment after it has gone.
    while Events::of(&pages.server, None).await.next().await.1 != "fleet" {}
}

/// A name as a tag's value in line protocol.
fn escaped(name: &str) -> String {
    name.chars().fold(String::new(), |mut all, it| {
        if matches!(it, ',' | ' ' | '=') {
            all.push('\\');
        }
        all.push(it);
        all
    })
}

/// Whatever a VM and its host are called, they are shown so, and nothing of it is SQL.
#[tokio::test]
async fn any_name_is_shown_as_it_is() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut names: Vec<String> = [
        "<img src=x onerror=alert(1)>",
        "'; DROP TABLE vm_totals; --",
        "\" OR \"1\"=\"1",
        "$uuid",
        "{{vm}} %s ${1}",
        "a,b=c d",
        "\u{202e}gnp.exe",
        "vm\u{0}1",
        "🦀 prod",
    ]
    .map(str::to_owned)
    .to_vec();
    // No line feed can be in a tag, and a backslash at its end would escape what follows.
    let of_random = |random: &mut fastrand::Rng| -> String {
        let length = random.usize(1..40);
        let chars =
            std::iter::repeat_with(|| random.char(' '..)).filter(|it| !it.is_control() && *it != '\\');
        chars.take(length).collect()
    };
    names.extend((0..40).map(|_| of_random(&mut random)));
    let pages = Pages::open();
    let (at, mut lines) = (now_ns() - SECOND_NS, String::new());
    for (n, name) in names.iter().enumerate() {
        let name = escaped(name);
        let tags = format!("VMID=1,name={name},uuid=00000000-0000-4000-8000-{n:012},host={name}");
        for step in [0, 1] {
            reading(&mut lines, &tags, step * 5, at - (1 - step) * 5 * SECOND_NS);
        }
    }
    pages.write(lines).await;
    let fleet = pages.json("/api/fleet").await;
    let vms = fleet["vms"].as_array().expect("a list");
    assert_eq!(vms.len(), names.len());
    for (n, name) in names.iter().enumerate() {
        let uuid = format!("00000000-0000-4000-8000-{n:012}");
        let vm = vms.iter().find(|it| it["uuid"] == *uuid).expect("it is there");
        assert_eq!(
            (&vm["name"], &vm["host"], &vm["cpu"]),
            (&json!(name), &json!(name), &json!(25.0)),
            "{name:?}"
        );
        if n < 9 {
            let page = pages.json(&format!("/api/vm/{uuid}")).await;
            assert_eq!((&page["names"], &page["host"]), (&json!([name]), &json!(name)), "{name:?}");
        }
    }
}

/// Any range and any number of points gives charts whose lines fit their moments, or a refusal.
#[tokio::test]
async fn any_range_is_answered() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let pages = Pages::open();
    let (now, mut lines) = (now_ns() - SECOND_NS, String::new());
    for n in 0..600 {
        reading(&mut lines, &tags(UUID, "a", 3), n * 10, now - (600 - n) * 10 * SECOND_NS);
    }
    pages.write(lines).await;
    let (now, mut charts) = (now / 1_000_000, 0);
    for _ in 0..30 {
        let from = now - random.i64(-1_000_000..20_000_000);
        let to = from + random.i64(-100_000..20_000_000) * if random.u8(..4) == 0 { 1_000 } else { 1 };
        let mut path = format!("/api/vm/{UUID}?from={from}&to={to}&points={}", random.i64(-10..6_000));
        if random.u8(..4) == 0 {
            let _ = write!(path, "&step={}", random.i64(-1..5_000_000));
        }
        let answer = pages.get(&path).await;
        let (status, text) = (answer.status(), answer.text().await.expect("a text"));
        if status != 200 {
            assert_eq!(status, 400, "{path}: {text}");
            continue;
        }
        let page: Value = serde_json::from_str(&text).expect("JSON");
        let step = page["step"].as_i64().unwrap_or(0);
        for panel in page["panels"].as_array().expect("charts") {
            let times: Vec<i64> = serde_json::from_value(panel["times"].clone()).expect("times");
            assert!(times.is_sorted_by(|a, b| a < b), "{path}: {times:?}");
            assert!(times.iter().all(|it| (from - step..to).contains(it)), "{path}: {times:?}");
            for line in panel["series"].as_array().expect("lines") {
                for part in ["mean", "min", "max"] {
                    let Some(values) = line[part].as_array() else { continue };
                    assert_eq!(values.len(), times.len(), "{path}: {}", line["id"]);
                    charts += usize::from(values.iter().any(|it| !it.is_null()));
                }
                let rates = line["max"].as_array().filter(|_| line["id"] == "net_rxbytes");
                let rates: Vec<f64> = rates.into_iter().flatten().filter_map(Value::as_f64).collect();
                assert!(rates.iter().all(|it| (it - 1_000.0).abs() < 1e-6), "{path}: {rates:?}");
            }
        }
    }
    assert!(charts > 50, "only {charts} lines had a value");
}
