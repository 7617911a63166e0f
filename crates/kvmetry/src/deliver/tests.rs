//! Deliveries from a real journal to a server on loopback that answers as InfluxDB does and fails as told ([`stub`]).

use std::net::SocketAddr;
use std::path::Path;

use disk::RealDisk;
use journal::Limits;
use tokio::net::TcpListener;

use super::attempt::LONG_LINE_BYTES;
use super::client::Client;
use super::size::PREFERRED_BYTES;
use super::stub::{Database, Fault, Model, Stub};
use super::*;
use crate::clock::SystemClock;
use crate::config::DATABASE;
use crate::entry;
use crate::http::selfsigned::{acceptor, certificate};
use crate::logging::log_of_this_thread;

/// For what must come: long enough for a machine with much else to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const S: i64 = 1_000_000_000;

pub(super) fn server(url: &str, api: Api) -> InfluxDb {
    InfluxDb {
        url: url.to_owned(),
        api,
        database: DATABASE.to_owned(),
        retention: Duration::from_secs(30 * 86_400),
        devices_database: None,
        devices_retention: Duration::from_secs(7 * 86_400),
        org: None,
        token_file: None,
        ca: None,
    }
}

fn at(address: SocketAddr, api: Api) -> InfluxDb {
    server(&format!("http://{address}"), api)
}

/// What a form's `q` says.
pub(super) fn body_of(form: &str) -> String {
    let escaped = form.strip_prefix("q=").unwrap();
    percent_encoding::percent_decode_str(escaped).decode_utf8().unwrap().into_owned()
}

/// A journal with its folder, as a process has it.
struct Kept {
    folder: tempfile::TempDir,
    shared: Shared,
    grow: watch::Sender<Seq>,
    time: i64,
}

impl Kept {
    fn open(folder: tempfile::TempDir, servers: &[InfluxDb], limits: Limits) -> Self {
        let readers: Vec<_> = servers.iter().map(reader).collect();
        let readers: Vec<_> = readers.iter().map(String::as_str).collect();
        let dir = folder.path().join("journal");
        let journal = Journal::open(Arc::new(RealDisk), &dir, limits, &readers).unwrap().0;
        let grow = watch::Sender::new(journal.stats().last);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let shared = Shared {
            journal: Arc::new(journal),
            last: grow.subscribe(),
            rejects: Arc::new(Rejects::new(Arc::new(RealDisk), folder.path().join("rejects"))),
            losses: Arc::new(Losses::new(Arc::clone(&clock))),
            clock,
            retentions: Arc::default(),
            pauses: Pauses::SHORT,
        };
        Self { folder, shared, grow, time: 0 }
    }

    fn new(servers: &[InfluxDb]) -> Self {
        Self::open(tempfile::tempdir().unwrap(), servers, Limits::default())
    }

    fn append(&self, payload: Vec<u8>, lines: u32) {
        let entry = Entry { payload, lines, span: (self.time * S, self.time * S) };
        let appended = self.shared.journal.append(&[entry], &[], 0).unwrap();
        self.shared.losses.add(appended.losses);
        self.grow.send_replace(appended.last);
    }

    fn add(&self, database: &str, text: &str) {
        let lines = u32::try_from(text.lines().count()).unwrap();
        self.append(entry::encode(database, text), lines);
    }

    /// One more cycle of so many VMs, a line each.
    fn cycle(&mut self, vms: usize) {
        self.time += 5;
        let line = |vm| format!("vm_totals,VMID={vm},host=kvm1 cputime={}i {}\n", self.time, self.time * S);
        self.add(DATABASE, &(0..vms).map(line).collect::<String>());
    }

    fn deliver(&self, servers: &[InfluxDb]) -> Deliveries {
        Deliveries::start(servers, self.shared.clone()).unwrap()
    }

    fn rejects(&self) -> String {
        read_rejects(&self.folder.path().join("rejects"))
    }

    /// As after the end of the process.
    fn reopen(self, servers: &[InfluxDb]) -> Self {
        self.shared.journal.maintain(0).unwrap();
        self.reopen_after_kill(servers)
    }

    /// As after a crash.
    fn reopen_after_kill(self, servers: &[InfluxDb]) -> Self {
        let Self { folder, shared, time, .. } = self;
        drop(shared);
        Self { time, ..Self::open(folder, servers, Limits::default()) }
    }
}

fn read_rejects(dir: &Path) -> String {
    let Ok(files) = std::fs::read_dir(dir) else { return String::new() };
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// Ends deliveries that have nothing left to do.
async fn end(deliveries: Deliveries) -> DeliveryStats {
    let stats = deliveries.shutdown(PATIENCE).await;
    assert_eq!(stats[0].waiting_entries, 0, "{stats:?}");
    stats[0].clone()
}

/// Waits until a delivery is as it should be.
async fn until(deliveries: &Deliveries, what: &str, is: impl Fn(&DeliveryStats) -> bool) {
    let waited = async {
        while !is(&deliveries.stats()[0]) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waited).await;
    assert!(waited.is_ok(), "{what}: not in time; {:?}", deliveries.stats());
}

/// Each time of the first occurrence is later than the one before, whatever came twice.
#[track_caller]
fn assert_in_order(times: &[i64]) {
    let mut latest = i64::MIN;
    let mut seen = std::collections::HashSet::new();
    for time in times {
        if seen.insert(*time) {
            assert!(*time > latest, "{time} came after {latest}");
            latest = *time;
        }
    }
}

#[tokio::test]
async fn what_is_in_the_journal_comes_to_the_database_of_its_name() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(3);
    kept.add("other", "a v=1i 1\n");
    let deliveries = kept.deliver(&servers);
    stub.wait_for("all points", |model| model.count(DATABASE) == 3 && model.count("other") == 1).await;
    kept.cycle(3);
    stub.wait_for("new points", |model| model.count(DATABASE) == 6).await;
    let stats = end(deliveries).await;
    let name = format!("http://{} kvmetry", stub.address);
    assert_eq!(stats, DeliveryStats { name, delivered_lines: 7, ..DeliveryStats::default() });
    let model = stub.model();
    assert_eq!(model.databases[DATABASE].retention.as_deref(), Some("30d"));
    assert!(model.requests.iter().all(|(line, _)| !line.contains("no_sync")), "never");
    let first_write = model.requests.iter().position(|(line, _)| line.contains("write_lp?db=kvmetry"));
    let create = model.requests.iter().position(|(line, _)| line.contains("configure/database"));
    assert!(create < first_write, "made before it is written to");
}

#[tokio::test]
async fn devices_go_to_a_database_of_their_own_with_its_own_life() {
    let stub = Stub::start(Model::default()).await;
    let mut server = at(stub.address, Api::V3);
    server.database = "vms".to_owned();
    server.devices_database = Some("devices".to_owned());
    let servers = [server];
    let kept = Kept::new(&servers);
    kept.add(DATABASE, "vm_devices,device=vda rd_req=1i 1\nvm_totals v=1i 1\nvm_devicesx v=1i 1\n");
    kept.add(DATABASE, "vm_devices v=\"\nvm_totals v=1i 2\n\" 2\n");
    kept.add("foreign", "vm_devices v=1i 3\n");
    let deliveries = kept.deliver(&servers);
    stub.wait_for("all points", |model| {
        (model.count("vms"), model.count("devices"), model.count("foreign")) == (2, 2, 1)
    })
    .await;
    end(deliveries).await;
    let model = stub.model();
    let retention = |name: &str| model.databases[name].retention.clone().unwrap();
    assert_eq!(
        (retention("vms"), retention("devices"), retention("foreign")),
        ("30d".into(), "7d".into(), "30d".into())
    );
}

#[tokio::test]
async fn a_database_is_made_with_the_retention_that_it_was_told() {
    for api in [Api::V3, Api::V1] {
        let stub = Stub::start(Model::default()).await;
        let mut server = at(stub.address, api);
        server.database = "vms".to_owned();
        let servers = [server];
        let kept = Kept::new(&servers);
        let mut catalog = telemetry::lines::Catalog::default();
        let day = |days: u64| Some(Duration::from_secs(days * 86_400));
        // Ours is as it is configured for this server.
        for (name, retention) in [("week", day(7)), ("ever", day(0)), ("untold", None), ("vms", day(1))] {
            catalog.create_database(name, retention).unwrap();
            kept.add(name, "a v=1i 1\n");
        }
        kept.shared.retentions.take(&catalog);
        let deliveries = kept.deliver(&servers);
        let all = ["week", "ever", "untold", "vms"];
        stub.wait_for("all points", |model| all.iter().all(|name| model.count(name) == 1)).await;
        end(deliveries).await;
        let retention = |name: &str| stub.model().databases[name].retention.clone();
        let expect = [Some("7d".to_owned()), None, Some("30d".to_owned()), Some("30d".to_owned())];
        assert_eq!(all.map(retention), expect, "{api:?}");
    }
}

#[tokio::test]
async fn a_server_that_was_down_gets_everything_in_order_in_large_requests() {
    // Nobody listens there yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let servers = [at(address, Api::V3)];
    let mut kept = Kept::new(&servers);
    let deliveries = kept.deliver(&servers);
    const CYCLES: usize = 400;
    const VMS: usize = 500;
    for _ in 0..CYCLES {
        kept.cycle(VMS);
    }
    let stats = &deliveries.stats()[0];
    assert_eq!((stats.delivered_lines, stats.waiting_entries), (0, CYCLES as u64));
    let stub = Stub::start_at(TcpListener::bind(address).await.unwrap(), Model::default(), None).await;
    stub.wait_for("all points", |model| model.count(DATABASE) == CYCLES * VMS).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.lost_lines, stats.trouble), ((CYCLES * VMS) as u64, 0, None));
    let model = stub.model();
    assert_in_order(&model.databases[DATABASE].times);
    let writes = model.requests_with("write_lp");
    assert!(writes.len() < 20, "{} requests", writes.len());
    // However far it is behind, no more than this is in memory at once.
    assert!(writes.iter().all(|(_, bytes)| *bytes <= PREFERRED_BYTES), "{writes:?}");
}

#[tokio::test]
async fn what_is_held_in_memory_is_bounded() {
    let servers = [server("http://127.0.0.1:1", Api::V3)];
    let mut kept = Kept::new(&servers);
    let random = |n: usize| (0..n).map(|_| fastrand::alphanumeric()).collect::<String>();
    let largest = 64 << 10;
    for _ in 0..100 {
        kept.time += 1;
        kept.add(DATABASE, &format!("a v=\"{}\" {}\n", random(largest), kept.time));
    }
    for _ in 0..100 {
        kept.cycle(1000);
    }
    let deliveries = kept.deliver(&[]);
    let mut delivery = deliveries.prepare(&servers[0]).unwrap();
    let mut seen = 0;
    while seen < kept.shared.journal.stats().last {
        let Turn::Lines { texts, through } = delivery.next_turn().await else { panic!("no lines") };
        let ahead: usize = delivery.ahead.iter().map(|(_, entry)| entry.payload.len()).sum();
        assert!(ahead <= READ_BYTES + 2 * largest, "{ahead} bytes read ahead");
        let bytes: usize = texts.iter().map(|(_, text)| text.slice(0..text.lines()).len()).sum();
        assert!(bytes <= PREFERRED_BYTES, "{bytes} bytes at once");
        assert!(through > seen);
        seen = through;
    }
}

#[tokio::test]
async fn a_server_that_flaps_has_all_points_in_the_end() {
    let html = || "<html>Bad gateway".to_owned();
    let faults = [
        Fault::Reset,
        Fault::StoredButReset,
        Fault::ResetEarly,
        Fault::HalfClose,
        Fault::Rubbish,
        Fault::Cut,
        Fault::Slow,
        Fault::Answer(500, "", "write buffer error: No space left on device".to_owned()),
        Fault::Answer(502, "", html()),
        Fault::Answer(503, "retry-after: 0\r\n", String::new()),
        Fault::Answer(429, "", String::new()),
        // A page of something else: no success.
        Fault::Answer(200, "", html()),
        Fault::Answer(204, "content-length: 7\r\n", String::new()),
    ];
    for api in [Api::V3, Api::V1, Api::V2] {
        let mut model = Model::default();
        model.databases.insert(DATABASE.to_owned(), Database::default());
        // Each fault three times, then once between successes.
        model.faults.extend(faults.iter().flat_map(|fault| vec![Some(fault.clone()); 3]));
        model.faults.extend(faults.iter().flat_map(|fault| [Some(fault.clone()), None]));
        // The last one of them is right but for its length; what it stands for was not stored.
        model.faults.retain(|fault| !matches!(fault, Some(Fault::Answer(204, ..))));
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, api)];
        let mut kept = Kept::new(&servers);
        let deliveries = kept.deliver(&servers);
        let mut count = 0;
        while !stub.model().faults.is_empty() {
            kept.cycle(10);
            count += 10;
            let requests = stub.model().requests.len();
            stub.wait_for("a request", |model| model.requests.len() > requests || model.faults.is_empty())
                .await;
        }
        kept.cycle(10);
        count += 10;
        stub.wait_for("all points", |model| model.count(DATABASE) == count).await;
        let stats = end(deliveries).await;
        assert_eq!((stats.delivered_lines, stats.refused_lines), (count as u64, 0), "{api:?}");
        assert!(stats.failures >= 30 && stats.trouble.is_none(), "{stats:?}");
        assert_in_order(&stub.model().databases[DATABASE].times);
        assert_eq!(kept.rejects(), "");
    }
}

/// 200,000 lines through a server of which every other request fails, each time in another way: all of them come, each
/// database's in order, and no more is held in memory than for one request.
#[tokio::test]
async fn a_long_backlog_comes_through_a_server_that_does_all_kinds_of_wrong() {
    const CYCLES: usize = 400;
    const VMS: usize = 250;
    const LIMIT: usize = 64 << 10;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let wrong: [fn() -> Fault; 14] = [
        || Fault::Reset,
        || Fault::StoredButReset,
        || Fault::ResetEarly,
        || Fault::HalfClose,
        || Fault::Rubbish,
        || Fault::Cut,
        || Fault::Slow,
        || Fault::CutBody(400, r#"{"error":"partial write of line protocol occurred","data":[{"err"#),
        || Fault::CutBody(503, "bu"),
        || Fault::Answer(500, "", "write buffer error: No space left on device".to_owned()),
        || Fault::Answer(503, "retry-after: 0\r\n", "<html>".to_owned()),
        || Fault::Answer(413, "", "max request size exceeded".to_owned()),
        || Fault::Answer(403, "", String::new()),
        || Fault::Answer(200, "", "<html>Welcome".to_owned()),
    ];
    let mut model = Model { max_bytes: LIMIT, ..Model::default() };
    let faults = (0..400).map(|_| random.bool().then(|| wrong[random.usize(..wrong.len())]()));
    model.faults.extend(faults);
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    for _ in 0..CYCLES {
        kept.cycle(VMS);
        let line = |vm| format!("vm,VMID={vm} v={}i {}\n", kept.time, kept.time * S);
        kept.add("other", &(0..VMS).map(line).collect::<String>());
    }
    let deliveries = kept.deliver(&servers);
    for part in 1..=20 {
        let points = |model: &Model| model.count(DATABASE) + model.count("other");
        stub.wait_for("more points", |model| points(model) >= 2 * CYCLES * VMS * part / 20).await;
    }
    // A server that says of lines that they are too large can cost none of them.
    until(&deliveries, "the cursor", |stats| stats.waiting_entries == 0).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.refused_lines, stats.lost_lines, stats.trouble), (0, 0, None));
    assert!(
        stats.delivered_lines >= 2 * (CYCLES * VMS) as u64 && stats.failures > 30,
        "{} failures",
        stats.failures
    );
    let model = stub.model();
    for name in [DATABASE, "other"] {
        assert_in_order(&model.databases[name].times);
    }
    assert_eq!(kept.rejects(), "");
}

#[tokio::test]
async fn only_bad_lines_are_refused_and_each_is_kept_with_its_reason() {
    /// Ten lines, of which the third and the eighth are bad for the server.
    async fn check(api: Api, model: Model, most_requests: usize, reason: &str) {
        let mut model = model;
        model.databases.insert(DATABASE.to_owned(), Database::default());
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, api)];
        let kept = Kept::new(&servers);
        kept.add(DATABASE, "a v=1 0\n");
        let deliveries = kept.deliver(&servers);
        stub.wait_for("the first point", |model| model.count(DATABASE) == 1).await;
        let requests = stub.model().requests_with("write").len();
        let value = |n| if n == 3 || n == 8 { format!("{n}i") } else { format!("{n}") };
        kept.add(DATABASE, &(1..=10).map(|n| format!("a v={} {n}\n", value(n))).collect::<String>());
        kept.add(DATABASE, "a v=11 11\n");
        stub.wait_for("the last point", |model| model.count(DATABASE) == 10).await;
        let stats = end(deliveries).await;
        assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (10, 2, 0));
        let requests = stub.model().requests_with("write").len() - requests;
        assert!(requests <= most_requests, "{requests} requests");
        let rejects = kept.rejects();
        let lines: Vec<_> = rejects.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["a v=3i 3", "a v=8i 8"]);
        assert!(rejects.contains(reason), "{rejects}");
    }
    let conflict = "invalid column type for column 'v', expected iox::column_type::field::float, got iox::";
    check(Api::V3, Model::default(), 4, conflict).await;
    // Numbers that are not those of our lines prove themselves wrong.
    check(Api::V3, Model { number_shift: 1, ..Model::default() }, 30, conflict).await;
    check(Api::V3, Model { number_shift: 1000, ..Model::default() }, 30, "partial write of line protocol")
        .await;
    // The words beside a number are of no account.
    check(Api::V3, Model { wrong_original: true, ..Model::default() }, 4, conflict).await;
    // One line at a time: the other shape.
    check(Api::V3, Model { always_strict: true, ..Model::default() }, 30, conflict).await;
    check(Api::V2, Model::default(), 30, "status 400, ").await;
    check(Api::V1, Model::default(), 30, "status 400, unable to parse").await;
}

/// What InfluxDB 3 refuses in a line, whoever wrote it into the journal.
#[tokio::test]
async fn each_line_that_influxdb_3_refuses_is_refused_alone() {
    let bad = [
        "a v=NaN 1",
        "a v=inf 1",
        "a v=+1 1",
        "a v=.5 1",
        "a v=1 1\r",
        "a,t= v=1 1",
        "a v=18446744073709551616u 1",
        "a,t=x 1",
    ];
    let good = ["a v=1 2", "a,t=x s=\"two\nlines\" 3", "a u=18446744073709551615u 4", "a b=t,i=-5i 5"];
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    let deliveries = kept.deliver(&servers);
    for bad in bad {
        kept.add("lines", &format!("{}\n{}\n{bad}\n{}\n{}\n", good[0], good[1], good[2], good[3]));
    }
    let refused = bad.len() as u64;
    until(&deliveries, "all entries", |stats| stats.refused_lines == refused && stats.waiting_entries == 0)
        .await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (4 * refused, refused, 0));
    assert_eq!(stub.model().count("lines"), good.len());
    let rejects = kept.rejects();
    for bad in bad {
        assert!(rejects.contains(&format!("\n{bad}\n")), "{bad}: {rejects}");
    }
}

/// A line that is refused can have changed the schema all the same: a column is there with a type that no row has.
#[tokio::test]
async fn a_refused_line_that_changed_the_schema_makes_others_refused() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    let deliveries = kept.deliver(&servers);
    kept.add(DATABASE, "a v=1 1\n");
    kept.add(DATABASE, "a new=1i,v=2i 2\n");
    kept.add(DATABASE, "a new=1.5 3\na v=4 4\n");
    stub.wait_for("the last point", |model| {
        model.databases.get(DATABASE).is_some_and(|it| it.times.contains(&4))
    })
    .await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines), (2, 2));
    let rejects = kept.rejects();
    let expect =
        "column 'new', expected iox::column_type::field::integer, got iox::column_type::field::float";
    assert!(rejects.contains(expect) && rejects.contains("a new=1.5 3"), "{rejects}");
}

#[tokio::test]
async fn lines_that_are_all_bad_are_refused_with_one_request() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    kept.add(DATABASE, "a v=1 0\n");
    let deliveries = kept.deliver(&servers);
    stub.wait_for("the first point", |model| model.count(DATABASE) == 1).await;
    kept.add(DATABASE, "a v=1i 1\na v=2i 2\n");
    stub.wait_for("the second request", |model| model.requests_with("write_lp").len() == 2).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines), (1, 2));
    assert_eq!(kept.rejects().lines().filter(|line| !line.starts_with('#')).count(), 2);
    assert_eq!(stub.model().requests_with("write_lp").len(), 2);
}

#[tokio::test]
async fn a_search_that_finds_no_end_parks_what_is_left() {
    for api in [Api::V1, Api::V2] {
        let mut model = Model::default();
        model.databases.insert(DATABASE.to_owned(), Database::default());
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, api)];
        let kept = Kept::new(&servers);
        kept.add(DATABASE, "a v=1 0\n");
        let bad = |n: u32| if n.is_multiple_of(3) { "i" } else { "" };
        kept.add(DATABASE, &(1..5000).map(|n| format!("a v={n}{} {n}\n", bad(n))).collect::<String>());
        let deliveries = kept.deliver(&servers);
        let parked = async {
            while deliveries.stats()[0].refused_lines < 1000 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, parked).await.unwrap();
        kept.add(DATABASE, "b v=1 1\n");
        let through = |model: &Model| model.databases[DATABASE].points.contains_key("b 1");
        stub.wait_for("what is behind it", through).await;
        let stats = end(deliveries).await;
        assert_eq!(stats.delivered_lines + stats.refused_lines, 5001);
        assert!(stub.model().requests_with("write?").len() <= 64 + 2);
        let rejects = kept.rejects();
        for n in (3..5000).step_by(3) {
            assert!(rejects.contains(&format!("a v={n}i {n}\n")), "{n}");
        }
        assert!(rejects.contains("given up after 64 requests"), "{}", &rejects[..200]);
    }
}

#[tokio::test]
async fn what_needs_a_person_is_kept_until_the_person_has_come() {
    for (status, body, told) in [
        (400, "missing query parameter 'db'", "does not accept the request"),
        (
            400,
            r#"{"error":"invalid database name"}"#,
            "does not accept the request (status 400, invalid database",
        ),
        (400, "malformed authorization header", "does not accept"),
        (401, r#"{"error": "the request was not authenticated"}"#, "refuses the token"),
        (403, "", "refuses the token"),
        (404, "", "make the database"),
        (405, "", "does not accept the request"),
        (415, "", "does not accept the request"),
        (422, "too many columns", "does not accept the request (status 422, too many columns)"),
        (301, "", "redirects"),
    ] {
        let (log, _guard) = log_of_this_thread();
        let mut model = Model::default();
        // The database is made before; then it fails so many times.
        let fault = Fault::Answer(status, "", body.to_owned());
        model.faults.push_back(None);
        model.faults.extend(vec![Some(fault); 4]);
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, Api::V3)];
        let mut kept = Kept::new(&servers);
        kept.cycle(2);
        let deliveries = kept.deliver(&servers);
        stub.wait_for("a failure", |model| model.faults.len() <= 2).await;
        kept.cycle(2);
        stub.wait_for("all points", |model| model.count(DATABASE) == 4).await;
        let stats = end(deliveries).await;
        assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (4, 0, 4), "{status}");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let loud = "ERROR cannot deliver until this is changed: the server";
        assert!(log.contains(loud) && log.contains(told), "{log}");
        assert_eq!(log.matches("cannot deliver").count(), 1, "once a cause: {log}");
    }
}

#[tokio::test]
async fn a_new_token_is_used_at_once_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    let stub = Stub::start(Model { token: Some("new".to_owned()), ..Model::default() }).await;
    let server = InfluxDb { token_file: Some(token_file.clone()), ..at(stub.address, Api::V3) };
    let servers = [server];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    let trouble = async |part: &str| {
        while !deliveries.stats()[0].trouble.as_deref().is_some_and(|why| why.contains(part)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, trouble("token: cannot be read")).await.unwrap();
    std::fs::write(&token_file, "old\n").unwrap();
    tokio::time::timeout(PATIENCE, trouble("refuses the token")).await.unwrap();
    std::fs::write(&token_file, "new\n").unwrap();
    stub.wait_for("the point", |model| model.count(DATABASE) == 1).await;
    assert_eq!(end(deliveries).await.delivered_lines, 1);
    // Whoever may create again does so before the first line: the retention is set.
    assert_eq!(stub.model().databases[DATABASE].retention.as_deref(), Some("30d"));
}

#[tokio::test]
async fn a_database_that_cannot_be_made_stops_no_line() {
    let stops_nothing = async |api: Api, create: (u16, &str), most_requests: usize| {
        let (status, said) = create;
        let mut model = Model { create: Some((status, said.to_owned())), ..Model::default() };
        model.databases.insert(DATABASE.to_owned(), Database::default());
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, api)];
        let mut kept = Kept::new(&servers);
        kept.cycle(2);
        let deliveries = kept.deliver(&servers);
        stub.wait_for("the points", |model| model.count(DATABASE) == 2).await;
        kept.cycle(2);
        stub.wait_for("more points", |model| model.count(DATABASE) == 4).await;
        end(deliveries).await;
        let model = stub.model();
        let creates = model.requests_with("database").len() + model.requests_with("/query").len();
        assert!((1..=most_requests).contains(&creates), "{creates} requests");
    };
    for status in [401, 403, 404, 405, 422] {
        stops_nothing(Api::V3, (status, "no"), 1).await;
        stops_nothing(Api::V1, (status, "no"), 1).await;
    }
    stops_nothing(Api::V3, (500, "no such page"), MAX_CREATIONS as usize).await;
    stops_nothing(Api::V1, (200, r#"{"results":[{"error":"not privileged"}]}"#), 1).await;
    stops_nothing(Api::V1, (200, "<html>"), 1).await;
}

#[tokio::test]
async fn a_database_is_made_before_it_is_written_to_though_the_server_is_down() {
    let mut model = Model::default();
    model.faults.extend([
        Some(Fault::Reset),
        Some(Fault::Answer(503, "", String::new())),
        Some(Fault::Rubbish),
    ]);
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("the point", |model| model.count(DATABASE) == 1).await;
    end(deliveries).await;
    assert_eq!(stub.model().databases[DATABASE].retention.as_deref(), Some("30d"));
}

#[tokio::test]
async fn databases_are_made_at_the_start_though_there_is_no_line_yet() {
    let stub = Stub::start(Model::default()).await;
    let servers = [InfluxDb { devices_database: Some("devices".to_owned()), ..at(stub.address, Api::V3) }];
    let kept = Kept::new(&servers);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("both databases", |model| model.databases.len() == 2).await;
    end(deliveries).await;
}

#[tokio::test]
async fn a_database_of_influxdb_1_is_made_again_when_it_is_gone() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V1)];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("the point", |model| model.count(DATABASE) == 1).await;
    stub.model().databases.clear();
    kept.cycle(1);
    stub.wait_for("the next point", |model| model.count(DATABASE) == 1).await;
    end(deliveries).await;
    assert_eq!(stub.model().databases[DATABASE].retention.as_deref(), Some("30d"));
}

#[tokio::test]
async fn a_smaller_limit_is_learnt_and_only_a_line_beyond_it_is_refused() {
    const LIMIT: usize = LONG_LINE_BYTES;
    let stub = Stub::start(Model { max_bytes: LIMIT, ..Model::default() }).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.add(DATABASE, &format!("a v=\"{}\" 1\n", "x".repeat(LIMIT)));
    kept.cycle(2000);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("all points", |model| model.count(DATABASE) == 2000).await;
    let before = stub.model().requests.len();
    kept.cycle(2000);
    stub.wait_for("more points", |model| model.count(DATABASE) == 4000).await;
    let too_large =
        |model: &Model| model.requests[before..].iter().filter(|(_, bytes)| *bytes > LIMIT).count();
    assert_eq!(too_large(&stub.model()), 0, "{:?}", &stub.model().requests[before..]);
    assert!(kept.rejects().contains(&format!("max request size ({LIMIT} bytes) exceeded\na v=\"xxx")));
    // The limit goes, and with time it is noticed.
    stub.model().max_bytes = 10_485_760;
    for _ in 0..40 {
        kept.cycle(2000);
    }
    stub.wait_for("the last points", |model| model.count(DATABASE) == 84_000).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (84_000, 1, 0));
    let model = stub.model();
    assert!(too_large(&model) > 0, "{:?}", &model.requests[before..]);
    assert_in_order(&model.databases[DATABASE].times.iter().step_by(2000).copied().collect::<Vec<_>>());
}

/// The limit of a proxy that was made for something else.
#[tokio::test]
async fn a_limit_below_a_line_keeps_the_line_until_it_is_raised() {
    let stub = Stub::start(Model { max_bytes: 20, ..Model::default() }).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(3);
    let deliveries = kept.deliver(&servers);
    until(&deliveries, "the trouble", |stats| stats.failures >= 3).await;
    let trouble = deliveries.stats()[0].trouble.clone().unwrap();
    assert!(trouble.contains("raise the limit there"), "{trouble}");
    stub.model().max_bytes = 10_485_760;
    stub.wait_for("all points", |model| model.count(DATABASE) == 3).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines), (3, 0));
    assert_eq!(kept.rejects(), "");
}

#[tokio::test]
async fn a_request_too_slow_for_the_link_becomes_smaller() {
    const LINES: usize = 20_000;
    let mut kept = Kept::new(&[]);
    kept.cycle(LINES);
    let bytes = entry::lines_len(&kept.shared.journal.read(0, 1).unwrap().entries[0].1.payload).unwrap();
    // In the time that a request may take, a quarter of them goes over the link, and a little more.
    let model = Model { hangs_beyond: Some(bytes / 4 + 100), ..Model::default() };
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = kept.reopen(&servers);
    let deliveries = kept.deliver(&servers);
    for tries in 1..=2 {
        let tried = |model: &Model| model.requests_with("write_lp").len() == tries;
        stub.wait_for("a request that is too large", tried).await;
        // From here on nothing but the time-out can happen, so it happens at once.
        tokio::time::pause();
        while deliveries.stats()[0].failures < tries as u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
    }
    stub.wait_for("all points", |model| model.count(DATABASE) == LINES).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (LINES as u64, 0, 2));
    let sizes: Vec<_> = stub.model().requests_with("write_lp").iter().map(|(_, bytes)| *bytes).collect();
    assert!(sizes[0] > sizes[1] && sizes[2..].iter().all(|size| *size <= sizes[1] / 2), "{sizes:?}");
}

#[tokio::test]
async fn a_database_that_is_slow_to_make_makes_no_request_smaller() {
    let mut model = Model::default();
    model.faults.extend([None, Some(Fault::Hang), Some(Fault::Hang)]);
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    let lines: String = (0..10_000).map(|n| format!("a v={n}i {n}\n")).collect();
    assert!(lines.len() > 4 * SMALL_BYTES);
    kept.add("other", &lines);
    let deliveries = kept.deliver(&servers);
    for tries in 1..=2 {
        let tried = |model: &Model| model.requests_with("configure/database").len() == 1 + tries;
        stub.wait_for("the attempt to make it", tried).await;
        // From here on nothing but the time-out can happen, so it happens at once.
        tokio::time::pause();
        while deliveries.stats()[0].failures < tries as u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
    }
    stub.wait_for("all points", |model| model.count("other") == 10_000).await;
    end(deliveries).await;
    let sizes: Vec<_> = stub.model().requests_with("write_lp").iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(sizes, [lines.len()]);
}

#[tokio::test]
async fn a_database_that_is_refused_stops_no_other() {
    for (status, said) in [
        (400, r#"{"error":"invalid database name"}"#),
        (403, "no such luck"),
        (404, "database not found"),
        (422, "too many databases: at most 5"),
    ] {
        let (log, _guard) = log_of_this_thread();
        let mut model = Model::default();
        model.refused.insert("sixth".to_owned(), (status, said.to_owned()));
        let stub = Stub::start(model).await;
        let servers = [at(stub.address, Api::V3)];
        let mut kept = Kept::new(&servers);
        let deliveries = kept.deliver(&servers);
        let mut count = 0;
        for n in 1..=20 {
            kept.add("sixth", &format!("a v={n}i {n}\n"));
            kept.cycle(2);
            count += 2;
            stub.wait_for("what is beside", |model| model.count(DATABASE) == count).await;
        }
        until(&deliveries, "some tries", |stats| stats.failures >= 3 && stats.delivered_lines == 40).await;
        let stats = deliveries.stats().remove(0);
        assert_eq!(stats.waiting_entries, 40, "the cursor waits");
        assert!(stats.trouble.unwrap().starts_with("database \"sixth\": "));
        // A crash: what the others have comes once more, and is the same.
        deliveries.shutdown(PATIENCE).await;
        let mut kept = kept.reopen(&servers);
        let deliveries = kept.deliver(&servers);
        kept.cycle(2);
        stub.wait_for("what is new", |model| model.count(DATABASE) == 42).await;
        assert_eq!(stub.model().count("sixth"), 0);
        stub.model().refused.clear();
        stub.wait_for("what waited", |model| model.count("sixth") == 20).await;
        kept.add("sixth", "a v=21i 21\n");
        stub.wait_for("the next one", |model| model.count("sixth") == 21).await;
        let stats = end(deliveries).await;
        assert_eq!((stats.refused_lines, stats.lost_lines, stats.trouble), (0, 0, None));
        let model = stub.model();
        assert!(model.databases["sixth"].times.iter().copied().eq(1..=21), "in order, each once");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("cannot deliver until").count(), 2, "once a start: {log}");
        assert_eq!(log.matches("delivers to this database again").count(), 1, "{log}");
    }
}

/// What waits for a database is bounded by the journal: there the oldest goes, and the others do not notice.
#[tokio::test]
async fn what_waits_for_a_refused_database_is_bounded_by_the_journal() {
    let mut model = Model::default();
    model.refused.insert("sixth".to_owned(), (404, String::new()));
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let limits = Limits { max_bytes: journal::MIN_MAX_BYTES, ..Limits::default() };
    let mut kept = Kept::open(tempfile::tempdir().unwrap(), &servers, limits);
    let deliveries = kept.deliver(&servers);
    const CYCLES: usize = 100;
    for n in 1..=CYCLES {
        kept.add("sixth", &format!("a v={n}i {n}\n"));
        kept.time += 1;
        let random: String = (0..64 << 10).map(|_| fastrand::alphanumeric()).collect();
        kept.add(DATABASE, &format!("a v=\"{random}\" {}\n", kept.time));
        stub.wait_for("what is beside", |model| model.count(DATABASE) == n).await;
    }
    assert!(deliveries.stats()[0].lost_lines > 0, "{:?}", deliveries.stats());
    stub.model().refused.clear();
    kept.add("sixth", "a v=1000i 1000\n");
    let last = |model: &Model| model.databases.get("sixth").is_some_and(|it| it.times.contains(&1000));
    stub.wait_for("what is left", last).await;
    until(&deliveries, "the cursor", |stats| stats.waiting_entries == 0).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.trouble, stats.refused_lines), (None, 0));
    let times = stub.model().databases["sixth"].times.clone();
    let first = times[0];
    assert!((2..=CYCLES as i64).contains(&first), "{times:?}");
    assert!(times.iter().copied().eq((first..=CYCLES as i64).chain([1000])), "{times:?}");
}

/// What a database has of a piece before it is refused is not brought again, nor refused again.
#[tokio::test]
async fn a_database_goes_on_at_the_line_where_it_was_refused() {
    let mut model = Model { max_bytes: 300, ..Model::default() };
    model.databases.insert("d".to_owned(), Database::default());
    let ok = || None;
    let no = || Some(Fault::Answer(403, "", String::new()));
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    // The fifth line is bad for the server; more lines than one request takes.
    let line = |n: usize| format!("a v={n}{} {n}\n", if n == 5 { "" } else { "i" });
    kept.add("d", &(1..=100).map(line).collect::<String>());
    kept.add("d", &(101..=150).map(line).collect::<String>());
    // Both databases are made; 413 twice; a few pieces; then no more.
    stub.model().faults.extend([ok(), ok(), ok(), ok(), ok(), ok(), ok(), ok(), no(), no()]);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("all points", |model| model.count("d") == 149).await;
    let stats = end(deliveries).await;
    assert_eq!((stats.delivered_lines, stats.refused_lines, stats.failures), (149, 1, 2));
    // What was asked with the bad line came twice; nothing else did.
    let piece = 300 / line(10).len() as i64;
    assert!(stub.model().databases["d"].times.iter().copied().filter(|n| *n > piece).eq(piece + 1..=150));
    assert_eq!(kept.rejects().lines().filter(|line| !line.starts_with('#')).count(), 1);
}

/// What is damaged is read again with each try, and counts once.
#[tokio::test]
async fn damage_counts_once_however_often_a_refused_database_is_tried() {
    let mut model = Model::default();
    model.refused.insert("sixth".to_owned(), (404, String::new()));
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let kept = Kept::new(&servers);
    kept.add("sixth", "a v=1i 1\n");
    let damaged = "a v=2i 2\na v=3i 3\n";
    kept.add("sixth", damaged);
    kept.add(DATABASE, "a v=4i 4\n");
    let payload = entry::encode("sixth", damaged);
    let Kept { folder, shared, .. } = kept;
    drop(shared);
    spoil(&folder.path().join("journal"), &payload);
    let kept = Kept::open(folder, &servers, Limits::default());
    let deliveries = kept.deliver(&servers);
    stub.wait_for("what is beside", |model| model.count(DATABASE) == 1).await;
    until(&deliveries, "some tries", |stats| stats.failures >= 4).await;
    assert_eq!(deliveries.stats()[0].lost_lines, 2);
    stub.model().refused.clear();
    stub.wait_for("what is whole", |model| model.count("sixth") == 1).await;
    assert_eq!(end(deliveries).await.lost_lines, 2);
}

/// Flips a bit wherever these bytes are in a file of this folder.
fn spoil(folder: &Path, bytes: &[u8]) {
    let mut found = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let mut all = std::fs::read(&path).unwrap();
        while let Some(at) = all.windows(bytes.len()).position(|it| it == bytes) {
            all[at] ^= 1;
            found += 1;
        }
        std::fs::write(path, all).unwrap();
    }
    assert!(found > 0);
}

#[tokio::test]
async fn many_databases_that_are_refused_are_bounded() {
    let mut model = Model::default();
    let names: Vec<_> = (0..MAX_STUCK + 1).map(|n| format!("d{n:03}")).collect();
    model.refused.extend(names.iter().map(|name| (name.clone(), (404, String::new()))));
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    for name in &names {
        kept.add(name, "a v=1i 1\n");
    }
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    let last = format!("db={}", names[MAX_STUCK]);
    stub.wait_for("the one too many", |model| model.requests_with(&last).len() >= 3).await;
    assert_eq!(stub.model().count(DATABASE), 0, "it waits");
    stub.model().refused.clear();
    stub.wait_for("all points", |model| model.count(DATABASE) == 1).await;
    for name in &names {
        stub.wait_for("all points", |model| model.count(name) == 1).await;
    }
    end(deliveries).await;
}

#[tokio::test]
async fn delivery_goes_on_where_it_was() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3), at(stub.address, Api::V1)];
    let servers = [servers[0].clone(), InfluxDb { database: "second".to_owned(), ..servers[1].clone() }];
    let mut kept = Kept::new(&servers);
    kept.cycle(5);
    let deliveries = kept.deliver(&servers);
    let both = |model: &Model, count| model.count(DATABASE) == count && model.count("second") == count;
    stub.wait_for("all points", |model| both(model, 5)).await;
    deliveries.shutdown(PATIENCE).await;
    // The order of the servers does not matter.
    let turned = [servers[1].clone(), servers[0].clone()];
    let mut kept = kept.reopen(&turned);
    kept.cycle(5);
    let before = stub.model().requests.len();
    let deliveries = kept.deliver(&turned);
    stub.wait_for("more points", |model| both(model, 10)).await;
    deliveries.shutdown(PATIENCE).await;
    let sent: usize =
        stub.model().requests[before..].iter().filter(|(line, _)| line.contains("write")).count();
    assert_eq!(sent, 2, "only what is new");
    // After a crash the last ones may come twice, and are the same points.
    let kept = kept.reopen_after_kill(&servers);
    let deliveries = kept.deliver(&servers);
    deliveries.shutdown(PATIENCE).await;
    assert!(both(&stub.model(), 10));
}

#[tokio::test]
async fn the_end_brings_what_is_there_but_does_not_wait_for_a_failing_server() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    let deliveries = kept.deliver(&servers);
    kept.cycle(50);
    assert_eq!(end(deliveries).await.delivered_lines, 50);
    assert_eq!(stub.model().count(DATABASE), 50);

    stub.model().faults.extend(vec![Some(Fault::Answer(503, "retry-after: 300\r\n", String::new())); 10]);
    kept.cycle(50);
    let mut slow = kept.shared.clone();
    slow.pauses = Pauses::NORMAL;
    let deliveries = Deliveries::start(&servers, slow).unwrap();
    while deliveries.stats()[0].failures == 0 {
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    let stats = deliveries.shutdown(PATIENCE).await;
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    assert_eq!((stats[0].waiting_entries, stats[0].failures), (1, 2), "it was tried once more");
}

#[tokio::test]
async fn an_outage_is_told_once_and_so_are_its_end_and_the_next_one() {
    let (log, _guard) = log_of_this_thread();
    let busy = |id: &str| Some(Fault::Answer(503, "", format!("busy (request {id})")));
    let mut model = Model::default();
    let no = Some(Fault::Answer(405, "", "a token".to_owned()));
    model.faults.extend([None, busy("7f3a-01"), busy("09bc-02"), no, None, busy("55ef-03")]);
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("a point", |model| model.count(DATABASE) == 1).await;
    kept.cycle(1);
    stub.wait_for("two points", |model| model.count(DATABASE) == 2).await;
    end(deliveries).await;
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    let output = format!("output=\"http://{} kvmetry\"", stub.address);
    let expect = [
        format!("WARN cannot deliver, trying again: status 503, busy (request 7f3a-01) {output} held_back=0"),
        format!(
            "ERROR cannot deliver until this is changed: the server does not accept the request (status 405, a token) \
             {output} held_back=0"
        ),
        format!("INFO delivers again {output} failures=3"),
        format!("WARN cannot deliver, trying again: status 503, busy (request 55ef-03) {output} held_back=0"),
        format!("INFO delivers again {output} failures=1"),
    ];
    let told: Vec<_> = log.lines().map(str::trim_start).filter(|line| line.contains("deliver")).collect();
    assert_eq!(told, expect);
}

#[tokio::test]
async fn entries_that_cannot_be_read_are_counted_and_newer_ones_are_kept() {
    let stub = Stub::start(Model::default()).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    kept.append(vec![1, 0, 0], 7);
    kept.cycle(1);
    let mut newer = entry::encode(DATABASE, "a v=1i 1\n");
    newer[0] = 2;
    kept.append(newer, 1);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("what is before", |model| model.count(DATABASE) == 2).await;
    let waits = async {
        while deliveries.stats()[0].failures < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    let stats = deliveries.shutdown(PATIENCE).await;
    assert_eq!((stats[0].lost_lines, stats[0].delivered_lines, stats[0].waiting_entries), (7, 2, 2));
    let why = stats[0].trouble.clone().unwrap();
    assert!(why.contains("entry 4 of the journal: it has format 2"), "{why}");
}

#[test]
fn a_reader_is_named_by_url_and_database() {
    let named = |url: &str, database: &str| {
        reader(&InfluxDb { database: database.to_owned(), ..server(url, Api::V3) })
    };
    assert_eq!(named("http://a:8181", "kvmetry"), "influxdb%20http%3A%2F%2Fa%3A8181%20kvmetry");
    let long = |end: &str| named(&format!("http://{}{end}", "a".repeat(500)), "kvmetry");
    assert_eq!(long("x").len(), journal::MAX_NAME_BYTES);
    assert_ne!(long("x"), long("y"));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_asked_again() {
    let mut model = Model::default();
    model.faults.extend([None, Some(Fault::Hang)]);
    let stub = Stub::start(model).await;
    let servers = [at(stub.address, Api::V3)];
    let mut kept = Kept::new(&servers);
    kept.cycle(1);
    let deliveries = kept.deliver(&servers);
    stub.wait_for("the request", |model| model.faults.is_empty() && model.requests.len() == 2).await;
    // From here on nothing but the time-out can happen, so it happens at once.
    tokio::time::pause();
    while deliveries.stats()[0].failures == 0 {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    tokio::time::resume();
    assert_eq!(deliveries.stats()[0].trouble.as_deref(), Some("no answer within 15 s"));
    stub.wait_for("the point", |model| model.count(DATABASE) == 1).await;
    assert_eq!(end(deliveries).await.failures, 1);
}

#[tokio::test]
async fn a_post_is_as_the_server_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "me:secret\n").unwrap();
    for (api, path) in [
        (Api::V3, "/api/v3/write_lp?db=d&precision=nanosecond&accept_partial=false"),
        (Api::V2, "/api/v2/write?bucket=d&precision=ns"),
        (Api::V1, "/write?db=d&precision=ns"),
    ] {
        let mut model = Model::default();
        model.databases.insert("d".to_owned(), Database::default());
        let stub = Stub::start(model).await;
        let server = InfluxDb { token_file: Some(token_file.clone()), ..at(stub.address, api) };
        let client = Client::new(&server).unwrap();
        assert_eq!(client.post("d", compress("a v=1i 1\n").unwrap(), true).await, Verdict::Stored);
        let model = stub.model();
        assert_eq!(model.requests, [(format!("POST {path} HTTP/1.1"), 9)]);
        assert_eq!(model.databases["d"].points["a 1"]["v"], "1i");
        let authorization = match api {
            Api::V3 => "Bearer me:secret",
            Api::V2 => "Token me:secret",
            Api::V1 => "Basic bWU6c2VjcmV0",
        };
        assert_eq!(model.authorization.as_deref(), Some(authorization));
    }
}

#[tokio::test]
async fn a_post_that_is_not_taken_says_what_comes_next() {
    /// What the stub does, and the verdict.
    async fn check(fault: Fault, expect: &str) {
        let mut model = Model::default();
        model.faults.push_back(Some(fault));
        let stub = Stub::start(model).await;
        let client = Client::new(&at(stub.address, Api::V3)).unwrap();
        let verdict = format!("{:?}", client.post("d", compress("a v=1i 1\n").unwrap(), false).await);
        assert!(verdict.starts_with(expect), "{verdict}");
    }
    let answer = |status, headers, body: &str| Fault::Answer(status, headers, body.to_owned());
    let asked = "Retry { why: \"status 429\", after: Some(17s) }";
    check(answer(429, "Retry-After: 17\r\n", ""), asked).await;
    let date = "Date: Sun, 22 Nov 2026 21:48:59 GMT\r\nRetry-After: Sun, 22 Nov 2026 21:49:16 GMT\r\n";
    check(answer(429, date, ""), asked).await;
    let asked = "Retry { why: \"status 503, starting\", after: None }";
    check(answer(503, "retry-after: soon\r\n", "starting"), asked).await;
    let redirect = "NeedsAPerson { why: \"the server redirects to \\\"https://elsewhere/\\\"";
    check(answer(301, "location: https://elsewhere/\r\n", ""), redirect).await;
    check(Fault::CutBody(400, "{\"err"), "Retry { why: \"the answer broke off (status 400, {\\\"err)\"")
        .await;
    check(Fault::CutBody(413, "max"), "TooLarge { why: \"status 413, max\" }").await;
    for fault in [Fault::Rubbish, Fault::Reset, Fault::ResetEarly, Fault::HalfClose, Fault::Cut] {
        check(fault, "NoAnswer { why: \"the request failed: ").await;
    }
    // Longer than an answer is read: it ends all the same, and the message is short.
    check(answer(500, "", &"x".repeat(4 << 20)), "Retry { why: \"status 500, xxx").await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::new(&at(nobody, Api::V3)).unwrap();
    let verdict = format!("{:?}", client.post("d", Vec::new(), false).await);
    assert!(verdict.starts_with("NoAnswer { why: \"cannot connect: connection refused"), "{verdict}");
}

#[tokio::test]
async fn a_probe_says_what_the_server_is_or_what_is_wrong() {
    /// What it answers to a ping and to a write without lines.
    async fn check(ping: Fault, write: Fault, expect: Result<&str, &str>) {
        let mut model = Model::default();
        model.faults.extend([Some(ping), Some(write)]);
        let stub = Stub::start(model).await;
        let found = probe(&at(stub.address, Api::V3)).await;
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
            (found, expect) => panic!("{found:?} instead of {expect:?}"),
        }
        let model = stub.model();
        assert!(model.requests[0].0.starts_with("GET /ping "), "{:?}", model.requests);
        assert!(model.requests[1].0.starts_with("POST /api/v3/write_lp?db=kvmetry&"), "{:?}", model.requests);
        assert_eq!(model.requests[1].1, 0);
    }
    let ping = || Fault::Answer(200, "x-influxdb-version: 3.10.1\r\n", "{}".to_owned());
    let answer = |status, body: &str| Fault::Answer(status, "", body.to_owned());
    let takes = Ok("InfluxDB 3.10.1 takes lines for database \"kvmetry\"");
    check(ping(), answer(400, "incoming write was empty"), takes).await;
    check(ping(), answer(400, r#"{"code":"invalid","message":"writing requires points"}"#), takes).await;
    let unnamed = Ok("a server that does not tell its version takes lines for database \"kvmetry\"");
    check(answer(404, ""), answer(204, ""), unnamed).await;
    check(ping(), answer(200, "<html>"), Err("is url the right server")).await;
    check(ping(), answer(400, "db name did not adhere"), Err("does not accept the request")).await;
    check(ping(), answer(401, ""), Err("refuses the token")).await;
    check(ping(), answer(404, "database not found"), Err("make the database")).await;
    check(ping(), Fault::Reset, Err("the request failed")).await;
}

#[tokio::test]
async fn broken_tls_costs_nothing_but_time() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, other) = (certificate(folder.path(), "a"), certificate(folder.path(), "b"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("https://{address}");
    let servers = [InfluxDb { ca: Some(tls.certificate.clone()), ..server(&url, Api::V3) }];
    let mut kept = Kept::new(&servers);
    for _ in 0..10 {
        kept.cycle(10);
    }
    let deliveries = kept.deliver(&servers);
    // No TLS, a handshake that breaks off, one that is answered by nonsense.
    for nonsense in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", b"\x16\x03\x03\x00\x02\x02\x00"] {
        let failures = deliveries.stats()[0].failures;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 1];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut hello).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, nonsense).await.unwrap();
        drop(stream);
        while deliveries.stats()[0].failures == failures {
            tokio::task::yield_now().await;
        }
        assert_eq!((deliveries.stats()[0].delivered_lines, deliveries.stats()[0].waiting_entries), (0, 10));
    }
    let stub = Stub::start_at(listener, Model::default(), Some(acceptor(&tls))).await;
    stub.wait_for("all points", |model| model.count(DATABASE) == 100).await;
    end(deliveries).await;
    assert_in_order(&stub.model().databases[DATABASE].times.iter().step_by(10).copied().collect::<Vec<_>>());
    // Another authority's certificate is a person's to mend.
    let stranger = InfluxDb { ca: Some(other.certificate), ..server(&url, Api::V3) };
    let verdict = Client::new(&stranger).unwrap().post("d", Vec::new(), false).await;
    assert!(matches!(&verdict, Verdict::NeedsAPerson { why } if why.contains("set ca")), "{verdict:?}");
}
