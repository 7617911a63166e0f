//! The dashboard of a process without a store: it asks the InfluxDB that gets its points.
//!
//! ```text
//! test ──▶ kvmetry serve --no-store (pages) ──query_sql──▶ Warts ──▶ kvmetry serve (the points)
//! ```
//!
//! [`Warts`] answers as InfluxDB 3 Core does: no zones, no nulls, no more than 432 files, and a 200 that breaks off.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::dashboard::{Events, now_ns, reading};
use super::{Server, client};

const UUID: &str = "00000000-0000-4000-8000-000000000001";
const SECOND_NS: i64 = 1_000_000_000;
const HOUR_NS: i64 = 3_600 * SECOND_NS;
const DAY_MS: i64 = 86_400_000;
/// InfluxDB 3 Core makes a file each ten minutes and table, and reads so many for one query.
const FILE_NS: i64 = 600 * SECOND_NS;
const MAX_FILES: i64 = 432;
const PATIENCE: Duration = Duration::from_secs(60);

/// InfluxDB 3 Core's manners before a server that has none of them.
struct Warts {
    to: String,
    breaks_off: AtomicBool,
    is_down: AtomicBool,
    /// Each database that was asked, and for how long a time, ns.
    asked: Mutex<Vec<(String, i64)>>,
    /// Questions about a span wait here.
    gate: Semaphore,
    /// Questions whose asker left before the answer.
    left: AtomicUsize,
}

impl Warts {
    /// Its URL.
    async fn before(server: &Server) -> (Arc<Self>, String) {
        let warts = Arc::new(Self {
            to: server.url.clone(),
            breaks_off: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            asked: Mutex::default(),
            gate: Semaphore::new(1_000),
            left: AtomicUsize::new(0),
        });
        let router = axum::Router::new()
            .route("/api/v3/query_sql", post(query))
            .route("/api/v3/write_lp", post(async || StatusCode::NO_CONTENT))
            .route("/api/v3/configure/database", post(async || StatusCode::CONFLICT))
            .with_state(Arc::clone(&warts));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async { axum::serve(listener, router).await });
        (warts, url)
    }
}

async fn query(State(warts): State<Arc<Warts>>, body: Bytes) -> Response {
    if warts.is_down.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "object store <b>is</b> away").into_response();
    }
    let asked: Value = serde_json::from_slice(&body).expect("JSON");
    let text = |name: &str| asked[name].as_str().expect("a text").to_owned();
    let span = span(&text("q"));
    warts.asked.lock().expect("no panic").push((text("db"), span));
    if span / FILE_NS > MAX_FILES {
        let message = "External error: Query would exceed file limit of 432 parquet files.";
        return (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    }
    let leaves = Leaves(&warts.left);
    let _place = if span > 0 { Some(warts.gate.acquire().await.expect("open")) } else { None };
    let request = client().post(format!("{}/api/v3/query_sql", warts.to));
    let answer =
        request.header("content-type", "application/json").body(body).send().await.expect("an answer");
    let (status, whole) = (answer.status(), answer.bytes().await.expect("a body"));
    std::mem::forget(leaves);
    if status != StatusCode::OK {
        return (status, whole).into_response();
    }
    let mut rows: Value = serde_json::from_slice(&whole).expect("rows");
    for row in rows.as_array_mut().expect("a list") {
        let row = row.as_object_mut().expect("a row");
        row.retain(|_, value| !value.is_null());
        for value in row.values_mut() {
            if let Some(text) = value.as_str().filter(|it| it.ends_with('Z')) {
                *value = json!(text.trim_end_matches('Z'));
            }
        }
    }
    let mut text = rows.to_string();
    if warts.breaks_off.load(Ordering::Relaxed) {
        text.truncate(text.len() / 2);
    }
    text.into_response()
}

/// Counts those who leave before their answer.
struct Leaves<'a>(&'a AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The time between the moments of a query, ns; 0 where there are none.
fn span(sql: &str) -> i64 {
    let moments = sql.split("arrow_cast(").skip(1);
    let moments: Vec<i64> = moments.filter_map(|it| it.split(',').next()?.trim().parse().ok()).collect();
    let first = match sql.contains("time >=") {
        true => *moments.iter().min().unwrap_or(&0),
        // All that there is.
        false if moments.is_empty() => return 0,
        false => 0,
    };
    moments.iter().max().unwrap_or(&0) - first
}

/// Where the points are, and who shows them.
struct Pages {
    _dirs: [tempfile::TempDir; 2],
    points: Server,
    warts: Arc<Warts>,
    pages: Server,
}

impl Pages {
    async fn open(database: &str, devices: Option<&str>) -> Self {
        let dirs = [0; 2].map(|_| tempfile::tempdir().expect("a folder"));
        let file = |dir: &Path, text: String| {
            let file = dir.join("config.toml");
            std::fs::write(&file, text).expect("a file");
            file.to_str().expect("UTF-8").to_owned()
        };
        let [at_points, at_pages] = [0, 1].map(|it| dirs[it].path());
        // InfluxDB makes none.
        let config = file(at_points, "[store]\nno_rollups = [\"*\"]\n".to_owned());
        let points = Server::with::<&str>(&at_points.join("data"), &["--config", &config], &[]);
        let (warts, url) = Warts::before(&points).await;
        let devices = devices.map(|it| format!("devices_database = {it:?}\n")).unwrap_or_default();
        let config =
            file(at_pages, format!("[[influxdb]]\nurl = {url:?}\ndatabase = {database:?}\n{devices}"));
        let args = ["--no-store", "--config", &config];
        let pages = Server::with::<&str>(&at_pages.join("data"), &args, &[]);
        Self { _dirs: dirs, points, warts, pages }
    }

    async fn write(&self, database: &str, lines: &str) {
        let lines: Vec<_> = lines.lines().collect();
        for lines in lines.chunks(10_000) {
            let url = format!("{}/api/v3/write_lp?db={database}", self.points.url);
            let answer = client().post(url).body(lines.join("\n")).send().await.expect("an answer");
            assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap_or_default());
        }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        client().get(format!("{}{path}", self.pages.url)).send().await.expect("an answer")
    }

    async fn json(&self, path: &str) -> Value {
        json_of(self.get(path).await, path).await
    }
}

async fn json_of(answer: reqwest::Response, path: &str) -> Value {
    let (status, text) = (answer.status(), answer.text().await.expect("a text"));
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Lines of the measurement vm_devices, and the others.
fn apart(lines: &str) -> (String, String) {
    let (devices, others): (Vec<&str>, Vec<&str>) =
        lines.lines().partition(|it| it.starts_with("vm_devices,"));
    (devices.join("\n"), others.join("\n"))
}

fn series<'a>(page: &'a Value, panel: &str) -> &'a Value {
    let panels = page["panels"].as_array().expect("charts");
    &panels.iter().find(|it| it["id"] == panel).unwrap_or_else(|| panic!("no {panel}"))["series"][0]
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
}

/// Both styles of tags, devices in the same database and in one of their own.
#[tokio::test]
async fn a_server_is_asked_where_there_is_no_store() {
    let styles = [
        format!("VMID=3,name=web\\ 1,uuid={UUID},host=kvm1"),
        // As the older script has it.
        format!("VMID=3,Dom=web\\ 1,UUID={UUID}"),
    ];
    for tags in &styles {
        for devices in [None, Some("devices")] {
            let pages = Pages::open("kvmetry", devices).await;
            let empty = pages.json("/api/fleet").await;
            assert_eq!((&empty["at"], &empty["vms"]), (&Value::Null, &json!([])), "{empty}");
            let (mut lines, now) = (String::new(), now_ns() - SECOND_NS);
            for step in 0..=360 {
                reading(&mut lines, tags, step * 10, now - (360 - step) * 10 * SECOND_NS);
            }
            let (of_devices, others) = apart(&lines);
            pages.write(devices.unwrap_or("kvmetry"), &of_devices).await;
            pages.write("kvmetry", &others).await;
            let since = Instant::now();
            // The first answer may be as old as a second.
            let fleet = loop {
                let fleet = pages.json("/api/fleet").await;
                if fleet["vms"].as_array().is_some_and(|it| !it.is_empty()) {
                    break fleet;
                }
                assert!(since.elapsed() < PATIENCE, "{fleet}");
            };
            let vm = &fleet["vms"][0];
            assert_eq!((&vm["name"], &vm["uuid"], &vm["cpu"]), (&json!("web 1"), &json!(UUID), &json!(25.0)));
            assert_eq!((&vm["rx"], &vm["wr"], &vm["used"]), (&json!(1000.0), &json!(4000.0), &json!(3000)));
            let history = pages.json("/api/fleet/history").await;
            assert!(numbers(&history["cpu"][UUID]).iter().all(|it| (it - 25.0).abs() < 1e-6), "{history}");
            let to = now / 1_000_000 + 1;
            let path = format!("/api/vm/{UUID}?from={}&to={to}&points=4000", to - 2 * DAY_MS);
            let page = pages.json(&path).await;
            assert_eq!((&page["table"], &page["names"]), (&json!("raw"), &json!(["web 1"])));
            for (panel, rate) in [("net", 1000.0), ("nic:vnet0:bytes", 1000.0), ("disk:vda:bytes", 3000.0)] {
                let rates = numbers(&series(&page, panel)["mean"]);
                assert!(
                    rates.len() > 50 && rates.iter().all(|it| (it - rate).abs() < 1e-6),
                    "{panel} {rates:?}"
                );
            }
            if devices.is_none() {
                // Its own pages, over the store, say the same.
                let url = format!("{}{path}", pages.points.url);
                let own = json_of(client().get(url).send().await.expect("an answer"), &path).await;
                assert_eq!((&own["panels"], &own["step"]), (&page["panels"], &page["step"]));
            }
            let collector = pages.json("/api/collector").await;
            assert!(
                collector["source"].as_str().expect("a text").contains("database \"kvmetry\""),
                "{collector}"
            );
            assert_eq!(collector["store"], Value::Null);
        }
    }
}

/// A month is asked for in fifteen parts; what comes of it is whole, and a spike of one reading is in it.
#[tokio::test]
async fn a_long_range_is_asked_in_parts() {
    let pages = Pages::open("kvm", Some("kvm_devices")).await;
    let now = now_ns() / HOUR_NS * HOUR_NS;
    let (steps, each) = (30 * 24 * 12, 300 * SECOND_NS);
    let (mut lines, spike) = (String::new(), 4_321);
    for step in 0..=steps {
        // Restarted once, and its counters with it; 100 readings are missing.
        let (vmid, base) = if step < 6_000 { (3, 0) } else { (4, 6_000) };
        if (7_000..7_100).contains(&step) {
            continue;
        }
        let counted = (step - base) * 300 + if step >= spike && step < 6_000 { 30_000 } else { 0 };
        let tags = format!("VMID={vmid},name=db,uuid={UUID},host=kvm1");
        reading(&mut lines, &tags, counted, now - (steps - step) * each);
    }
    let (of_devices, others) = apart(&lines);
    pages.write("kvm_devices", &of_devices).await;
    pages.write("kvm", &others).await;
    let to = now / 1_000_000 + 1;
    let from = to - 30 * DAY_MS;
    let path = |from: i64| format!("/api/vm/{UUID}?from={from}&to={to}&points=800");
    pages.warts.asked.lock().expect("no panic").clear();
    let answer = pages.get(&path(from)).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let text = answer.text().await.expect("a text");
    let mut told: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).expect("JSON")).collect();
    let page = told.pop().expect("the page");
    let done: Vec<i64> = told.iter().map(|it| it["done"].as_i64().expect("a number")).collect();
    assert!(done.len() > 3 && done.is_sorted() && done.iter().all(|it| (0..15).contains(it)), "{done:?}");
    assert!(told.iter().all(|it| it["of"] == 15), "{told:?}");
    assert_eq!((&page["step"], &page["from"], &page["to"]), (&json!(3_600_000), &json!(from), &json!(to)));
    for (panel, rate) in [("net", 1_000.0), ("nic:vnet0:bytes", 1_000.0), ("disk:vda:bytes", 3_000.0)] {
        let line = series(&page, panel);
        let min = numbers(&line["min"]);
        assert!(min.iter().all(|it| (it - rate).abs() < 1e-6), "{panel}: {min:?}");
        assert!((700..=720).contains(&min.len()), "{panel}: {} buckets", min.len());
        let max = numbers(&line["max"]);
        let spikes: Vec<_> = max.iter().filter(|it| (**it - rate).abs() > 1e-6).collect();
        assert_eq!(spikes, [&(101.0 * rate)], "{panel}");
    }
    let kinds: Vec<_> =
        page["marks"].as_array().expect("marks").iter().map(|it| it["kind"].clone()).collect();
    assert_eq!(kinds, ["restarted"]);
    {
        let asked = pages.warts.asked.lock().expect("no panic");
        let longest = asked.iter().map(|it| it.1).max().expect("some");
        // The first step needs the reading before.
        assert!(longest <= 48 * HOUR_NS + 3 * each, "{longest} ns at once");
        assert!(asked.iter().any(|it| it.0 == "kvm_devices"));
    }
    let long = pages.get(&path(from - DAY_MS)).await;
    assert_eq!(long.status(), 422);
    let words = long.text().await.expect("a text");
    assert!(words.contains("30 days") && words.contains("[store] enabled = true"), "{words}");
    // A live view of a month goes on with its newest piece.
    let piece = format!("/api/vm/{UUID}?from={}&to={to}&step=3600000", to - 7_200_000);
    assert_eq!(pages.json(&piece).await["step"], 3_600_000);
    // What breaks off is no answer.
    pages.warts.breaks_off.store(true, Ordering::Relaxed);
    let text = pages.get(&path(from)).await.text().await.expect("a text");
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert!(last["error"].as_str().expect("words").contains("broke off"), "{last}");
    let short = pages.get(&path(to - DAY_MS)).await;
    assert_eq!(short.status(), 502);
    assert!(short.text().await.expect("a text").contains("broke off"));
}

/// Who watches is told that the server does not answer, once, and that it does again.
#[tokio::test]
async fn trouble_is_told_to_who_watches() {
    let pages = Pages::open("kvm", None).await;
    let mut events = Events::of(&pages.pages, None).await;
    assert_eq!(events.next().await.1, "fleet");
    pages.warts.is_down.store(true, Ordering::Relaxed);
    let trouble = loop {
        let (id, kind, data) = events.next().await;
        match kind.as_str() {
            "trouble" => break (id, data),
            kind => assert_eq!(kind, "fleet"),
        }
    };
    assert_eq!(trouble, (String::new(), json!({ "error": "status 503, object store <b>is</b> away" })));
    // Who comes now has what was known, and the trouble.
    let mut late = Events::of(&pages.pages, None).await;
    assert_eq!([late.next().await.1, late.next().await.1], ["fleet", "trouble"]);
    // What the process knows by itself is shown all the same.
    let collector = pages.json("/api/collector").await;
    assert!(
        collector["journal"]["entries"].is_u64() && collector["deliveries"][0].is_object(),
        "{collector}"
    );
    let text = collector["warnings"][0]["text"].as_str().expect("a warning");
    assert!(text.starts_with("the points cannot be had from http://127.0.0.1:"), "{text}");
    pages.warts.is_down.store(false, Ordering::Relaxed);
    assert_eq!([events.next().await.1, late.next().await.1], ["fleet", "fleet"]);
}

/// The work ends when the browser leaves.
#[tokio::test]
async fn who_leaves_is_not_asked_for_any_longer() {
    let pages = Pages::open("kvm", None).await;
    let (mut lines, now) = (String::new(), now_ns() - SECOND_NS);
    for step in 0..3 {
        let tags = format!("VMID=3,name=db,uuid={UUID},host=kvm1");
        reading(&mut lines, &tags, step * 5, now - (2 - step) * 5 * SECOND_NS);
    }
    pages.write("kvm", &lines).await;
    // What columns there are is known then.
    pages.json(&format!("/api/vm/{UUID}")).await;
    let held = pages.warts.gate.acquire_many(1_000).await.expect("open");
    let to = now / 1_000_000;
    let path = format!("{}/api/vm/{UUID}?from={}&to={to}", pages.pages.url, to - 20 * DAY_MS);
    pages.warts.asked.lock().expect("no panic").clear();
    let until = async |what: &str, is: &dyn Fn() -> bool| {
        let since = Instant::now();
        while !is() {
            assert!(since.elapsed() < PATIENCE, "{what}");
            tokio::task::yield_now().await;
        }
    };
    let browser = tokio::spawn(async move { client().get(path).send().await?.text().await });
    let asked = || pages.warts.asked.lock().expect("no panic").iter().filter(|it| it.1 > 0).count();
    until("nothing was asked", &|| asked() > 0).await;
    browser.abort();
    until("its questions go on", &|| pages.warts.left.load(Ordering::Relaxed) > 0).await;
    drop(held);
    let mut words = String::new();
    let _ = write!(words, "{:?}", pages.warts.asked.lock().expect("no panic"));
    // A question for each group of charts, and what the marks are made of.
    assert!(asked() <= 7, "all parts were asked: {words}");
}
