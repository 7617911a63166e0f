//! The worker's policy with a sink that fails as told, in paused time; InfluxDB against a stub on loopback that
//! answers as the test says, request by request.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc as blocking;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::clock::SystemClock;
use crate::config::Api;

const S: i64 = 1_000_000_000;
const SHUTDOWN: Duration = Duration::from_millis(1500);

/// A batch of one line, which is its number.
fn batch(number: i64) -> Batch {
    let at_ns = number * S;
    let lines = Arc::new(format!("a v={number}i {at_ns}\n").into_bytes());
    Batch { host: "kvm1".into(), at_ns, lines, line_count: 1 }
}

/// A batch of one long line.
fn large_batch(number: i64, bytes: usize) -> Batch {
    let mut lines = vec![b'a'; bytes];
    lines[bytes - 1] = b'\n';
    Batch { lines: Arc::new(lines), ..batch(number) }
}

fn outputs_of(sink: Sink) -> Outputs {
    Outputs::of(vec![("test".to_owned(), sink)], Arc::new(SystemClock))
}

/// Gives its verdicts, then only good ones, and tells the test what it was given, when. It has no thread, so
/// that it lives in the test's paused time.
pub(super) struct Scripted {
    verdicts: std::vec::IntoIter<Verdict>,
    seen: mpsc::UnboundedSender<(String, tokio::time::Instant)>,
}

impl Scripted {
    pub(super) fn deliver(&mut self, batch: &Batch) -> Verdict {
        let text = String::from_utf8(batch.lines.to_vec()).unwrap();
        let _ = self.seen.send((text, tokio::time::Instant::now()));
        self.verdicts.next().unwrap_or_else(Verdict::delivered)
    }
}

fn scripted(verdicts: Vec<Verdict>) -> (Outputs, mpsc::UnboundedReceiver<(String, tokio::time::Instant)>) {
    let (seen, seen_by_test) = mpsc::unbounded_channel();
    let sink = Scripted { verdicts: verdicts.into_iter(), seen };
    (outputs_of(Sink::Scripted(sink)), seen_by_test)
}

fn retry(after: Option<Duration>) -> Verdict {
    Verdict::Retry { why: "told to".to_owned(), after }
}

#[tokio::test]
async fn batches_come_out_in_order_and_shutdown_waits_for_them() {
    let (outputs, mut seen) = scripted(Vec::new());
    for number in 0..100 {
        outputs.send(&batch(number));
    }
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(
        stats,
        [OutputStats { name: "test".to_owned(), delivered_lines: 100, ..OutputStats::default() }]
    );
    for number in 0..100 {
        assert_eq!(seen.recv().await.unwrap().0.as_bytes(), batch(number).lines.as_slice());
    }
    assert!(seen.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_after_a_growing_pause() {
    /// The verdicts, and the pauses after them in seconds without their jitter.
    async fn check(verdicts: Vec<Verdict>, pauses: &[u64]) {
        let failures = u64::try_from(verdicts.len()).unwrap();
        let (outputs, mut seen) = scripted(verdicts);
        outputs.send(&batch(1));
        outputs.send(&batch(2));
        let (first, mut before) = seen.recv().await.unwrap();
        for expect in pauses {
            let (again, at) = seen.recv().await.unwrap();
            assert_eq!(again, first, "the same batch is tried again");
            let pause = (at - before).as_secs_f64();
            let (least, most) = (*expect as f64 * 0.74, *expect as f64 * 1.26);
            assert!((least..=most).contains(&pause), "{pause} s instead of {expect} s");
            before = at;
        }
        let (second, _) = seen.recv().await.unwrap();
        assert_eq!(second.as_bytes(), batch(2).lines.as_slice());
        let stats = outputs.shutdown(Duration::from_secs(3600)).await;
        assert_eq!((stats[0].delivered_lines, stats[0].failures), (2, failures));
        assert_eq!(stats[0].trouble, None);
    }
    let many = |verdict: fn() -> Verdict, times: usize| (0..times).map(|_| verdict()).collect();
    check(many(|| retry(None), 8), &[1, 2, 4, 8, 16, 30, 30, 30]).await;
    check(many(|| Verdict::NeedsAPerson { why: "a token".to_owned() }, 2), &[60, 60]).await;
    let asked = |seconds| retry(Some(Duration::from_secs(seconds)));
    check(vec![asked(7), asked(86_400)], &[7, 300]).await;
    check(vec![asked(0), asked(0), asked(0)], &[1, 2, 4]).await;
}

/// What is logged on this thread while the guard lives, a line each without time and colours.
fn log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let lines = log.0.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || log.clone())
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_so_are_its_end_and_the_next_one() {
    let busy = |id: &str| Verdict::Retry { why: format!("status 503, busy (request {id})"), after: None };
    let (lines, _guard) = log();
    let verdicts = vec![
        busy("7f3a-01"),
        busy("09bc-02"),
        Verdict::NeedsAPerson { why: "a token".to_owned() },
        Verdict::delivered(),
        busy("55ef-03"),
        Verdict::delivered(),
    ];
    let deliveries = verdicts.len();
    let (outputs, mut seen) = scripted(verdicts);
    outputs.send(&batch(1));
    outputs.send(&batch(2));
    for _ in 0..deliveries {
        seen.recv().await.unwrap();
    }
    outputs.shutdown(Duration::from_secs(3600)).await;
    let told = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    let expect = [
        r#"WARN cannot deliver, trying again: status 503, busy (request 7f3a-01) output="test" held_back=0"#,
        r#"ERROR cannot deliver until this is changed: a token output="test" held_back=0"#,
        r#"INFO delivers again output="test" failures=3"#,
        r#"WARN cannot deliver, trying again: status 503, busy (request 55ef-03) output="test" held_back=0"#,
        r#"INFO delivers again output="test" failures=1"#,
    ];
    assert_eq!(told.lines().map(str::trim_start).collect::<Vec<_>>(), expect);
}

#[tokio::test]
async fn lines_refused_for_good_are_counted_and_not_tried_again() {
    let why = || "no float".to_owned();
    let (outputs, mut seen) =
        scripted(vec![Verdict::Delivered { refused_lines: 1, why: why() }, Verdict::Refused { why: why() }]);
    for number in 1..=3 {
        outputs.send(&batch(number));
    }
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].refused_lines, stats[0].dropped_lines), (1, 2, 0));
    let mut tries = 0;
    while seen.recv().await.is_some() {
        tries += 1;
    }
    assert_eq!(tries, 3);
}

/// A writer that takes one batch and holds it until the sender is dropped or told.
fn stuck() -> (Outputs, blocking::Sender<()>, mpsc::UnboundedReceiver<()>) {
    let (go_on, wait) = blocking::channel::<()>();
    let (taken, taken_by_writer) = mpsc::unbounded_channel();
    let writer = file::Writer::spawn("test", move |_| {
        let _ = taken.send(());
        let _ = wait.recv();
        Verdict::delivered()
    });
    (outputs_of(Sink::Writer(writer.unwrap())), go_on, taken_by_writer)
}

#[tokio::test]
async fn a_full_queue_loses_its_oldest_batch_but_not_the_one_on_its_way() {
    let (outputs, go_on, mut taken) = stuck();
    outputs.send(&batch(0));
    taken.recv().await.unwrap();
    let quarter = MAX_QUEUED_BYTES / 4;
    for number in 1..=5 {
        outputs.send(&large_batch(number, quarter));
    }
    let stats = &outputs.stats()[0];
    assert_eq!((stats.queued_batches, stats.dropped_lines), (4, 2));
    assert!(stats.queued_bytes <= MAX_QUEUED_BYTES);
    let left: Vec<_> = outputs.queues[0].state().batches.iter().map(|batch| batch.at_ns / S).collect();
    assert_eq!(left, [0, 3, 4, 5]);
    drop(go_on);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].dropped_lines), (4, 2));
}

#[tokio::test]
async fn small_batches_are_bounded_by_their_number() {
    let (outputs, _go_on, mut taken) = stuck();
    outputs.send(&batch(0));
    taken.recv().await.unwrap();
    for number in 0..i64::try_from(MAX_QUEUED_BATCHES).unwrap() {
        outputs.send(&batch(number));
    }
    let stats = &outputs.stats()[0];
    assert_eq!((stats.queued_batches, stats.dropped_lines), (MAX_QUEUED_BATCHES, 1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_stuck_output() {
    let (outputs, _go_on, mut taken) = stuck();
    for number in 0..3 {
        outputs.send(&batch(number));
    }
    taken.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    let stats = outputs.shutdown(SHUTDOWN).await;
    assert!(begun.elapsed() <= SHUTDOWN + Duration::from_millis(10), "{:?}", begun.elapsed());
    assert_eq!((stats[0].delivered_lines, stats[0].dropped_lines, stats[0].queued_bytes), (0, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_a_pause_and_tries_once_more() {
    let (outputs, mut seen) = scripted(vec![retry(None), retry(Some(Duration::from_secs(300))), retry(None)]);
    outputs.send(&batch(1));
    seen.recv().await.unwrap();
    seen.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    let stats = outputs.shutdown(Duration::from_secs(200)).await;
    assert!(begun.elapsed() < Duration::from_secs(200), "the last failure ends it");
    assert_eq!((stats[0].failures, stats[0].dropped_lines), (3, 1));
}

#[tokio::test]
async fn a_gone_reader_is_told_and_nothing_is_queued_for_it_any_more() {
    let (outputs, _seen) = scripted(vec![Verdict::Closed(Closed::ReaderGone)]);
    outputs.send(&batch(1));
    assert_eq!(outputs.closed().await, Closed::ReaderGone);
    outputs.send(&batch(2));
    assert_eq!(outputs.stats()[0].queued_batches, 1);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(stats[0].delivered_lines, 0);
}

#[tokio::test]
async fn a_file_gets_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.lp");
    let targets = [LineOutput::File(path.clone())];
    let outputs = Outputs::start(&targets, &[], Arc::new(SystemClock)).unwrap();
    assert!(!outputs.is_empty());
    for number in 1..=3 {
        outputs.send(&batch(number));
    }
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!(stats[0].delivered_lines, 3);
    let expect: Vec<u8> = (1..=3).flat_map(|number| batch(number).lines.to_vec()).collect();
    assert_eq!(std::fs::read(&path).unwrap(), expect);

    let nowhere = [LineOutput::File(folder.path().join("nowhere/lines.lp"))];
    let Err(error) = Outputs::start(&nowhere, &[], Arc::new(SystemClock)) else { panic!("it started") };
    assert!(error.to_string().contains("nowhere/lines.lp: cannot be opened: No such file"), "{error}");
}

/// A request that reached the stub; it waits for its answer.
struct Request {
    /// `POST /path?query HTTP/1.1`, then the headers, in lower case but for the first line.
    head: String,
    body: String,
    answer: oneshot::Sender<String>,
}

/// A server on loopback that hands its requests to the test. Dropping the answer resets the connection.
async fn stub() -> (SocketAddr, mpsc::UnboundedReceiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, for_test) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, requests.clone()));
        }
    });
    (address, for_test)
}

async fn serve(mut stream: TcpStream, requests: mpsc::UnboundedSender<Request>) {
    loop {
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
        let (first, headers) = head.split_once("\r\n").unwrap();
        let head = format!("{first}\r\n{}", headers.replace("Authorization", "authorization"));
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        while bytes.len() < head_end + length {
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request broke off");
        }
        let mut body = String::new();
        if head.contains("content-encoding: gzip") {
            flate2::read::GzDecoder::new(&bytes[head_end..]).read_to_string(&mut body).unwrap();
        }
        let (answer, answered) = oneshot::channel();
        if requests.send(Request { head, body, answer }).is_err() {
            return;
        }
        let Ok(answer) = answered.await else {
            // Unread or not: the peer sees a reset.
            let _ = stream.set_zero_linger();
            return;
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn no_content() -> String {
    "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
}

fn server(address: SocketAddr, api: Api) -> InfluxDb {
    InfluxDb {
        url: format!("http://{address}"),
        api,
        database: "kvmetry".to_owned(),
        org: None,
        token_file: None,
        ca: None,
    }
}

async fn post(client: &influxdb::Client) -> Verdict {
    client.post(&[batch(1)]).await
}

#[tokio::test]
async fn a_post_is_as_the_server_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    let check = async |api: Api, token: &str, path: &str, authorization: &str| {
        std::fs::write(&token_file, token).unwrap();
        let (address, mut requests) = stub().await;
        let server = InfluxDb { token_file: Some(token_file.clone()), ..server(address, api) };
        let client = influxdb::Client::new(&server).unwrap();
        let batches = [batch(1), batch(2)];
        let (verdict, ()) = tokio::join!(client.post(&batches), async {
            let request = requests.recv().await.unwrap();
            let first = request.head.lines().next().unwrap();
            assert_eq!(first, format!("POST {path} HTTP/1.1"));
            assert!(
                request.head.contains(&format!("authorization: {authorization}\r\n")),
                "{}",
                request.head
            );
            assert!(request.head.contains("user-agent: kvmetry/"), "{}", request.head);
            assert_eq!(request.body, format!("a v=1i {S}\na v=2i {}\n", 2 * S));
            request.answer.send(no_content()).unwrap();
        });
        assert_eq!(verdict, Verdict::delivered());
    };
    let v3 = "/api/v3/write_lp?db=kvmetry&precision=nanosecond";
    check(Api::V3, "apiv3_T\n", v3, "Bearer apiv3_T").await;
    check(Api::V2, "T", "/api/v2/write?bucket=kvmetry&precision=ns", "Token T").await;
    check(Api::V1, "T", "/write?db=kvmetry&precision=ns", "Token T").await;
    check(Api::V1, "me:secret", "/write?db=kvmetry&precision=ns", "Basic bWU6c2VjcmV0").await;
}

#[tokio::test]
async fn a_new_token_is_used_at_once_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    let (address, mut requests) = stub().await;
    let server = InfluxDb { token_file: Some(token_file.clone()), ..server(address, Api::V3) };
    let client = influxdb::Client::new(&server).unwrap();
    let verdict = client.post(&[batch(1)]).await;
    let Verdict::NeedsAPerson { why } = verdict else { panic!("{verdict:?}") };
    assert!(why.contains("token cannot be read") || why.contains("token: cannot be read"), "{why}");
    for (token, reply) in [("old", "401 Unauthorized"), ("new", "204 No Content")] {
        std::fs::write(&token_file, token).unwrap();
        let (verdict, ()) = tokio::join!(client.post(&[]), async {
            let request = requests.recv().await.unwrap();
            assert!(request.head.contains(&format!("authorization: Bearer {token}\r\n")), "{}", request.head);
            request.answer.send(answer(reply, "", "")).unwrap();
        });
        match verdict {
            Verdict::NeedsAPerson { why } => {
                assert_eq!(token, "old");
                assert!(why.contains(&token_file.display().to_string()), "{why}");
            }
            verdict => assert_eq!((token, verdict), ("new", Verdict::delivered())),
        }
    }
}

#[tokio::test]
async fn a_post_that_is_not_taken_says_what_comes_next() {
    /// The stub's answer (`None`: it resets the connection) and the verdict.
    async fn check(reply: Option<String>, expect: &str) {
        let (address, mut requests) = stub().await;
        let client = influxdb::Client::new(&server(address, Api::V3)).unwrap();
        let (verdict, ()) = tokio::join!(post(&client), async {
            let request = requests.recv().await.unwrap();
            match reply {
                Some(reply) => request.answer.send(reply).unwrap(),
                None => drop(request.answer),
            }
        });
        let verdict = format!("{verdict:?}");
        assert!(verdict.starts_with(expect), "{verdict}");
    }
    let partial = r#"{"error":"partial write of line protocol occurred","data":[{"error_message":"bad type","line_number":1,"original_line":"a v=1i"}]}"#;
    check(
        Some(answer("400 Bad Request", "", partial)),
        "Delivered { refused_lines: 1, why: \"status 400, partial write of line protocol occurred: bad type: line 1\"",
    )
    .await;
    check(
        Some(answer("401 Unauthorized", "", r#"{"error": "the request was not authenticated"}"#)),
        "NeedsAPerson { why: \"the server refuses the token (status 401, the request was not authenticated)",
    )
    .await;
    check(
        Some(answer("413 Payload Too Large", "", "max request size (10485760 bytes) exceeded")),
        "TooLarge {",
    )
    .await;
    check(
        Some(answer("429 Too Many Requests", "Retry-After: 17\r\n", "")),
        "Retry { why: \"status 429\", after: Some(17s) }",
    )
    .await;
    check(
        Some(answer("503 Service Unavailable", "retry-after: soon\r\n", "starting")),
        "Retry { why: \"status 503, starting\", after: None }",
    )
    .await;
    check(
        Some(answer("301 Moved Permanently", "location: https://elsewhere/\r\n", "")),
        "NeedsAPerson { why: \"the server redirects to \\\"https://elsewhere/\\\"",
    )
    .await;
    check(Some("SSH-2.0-OpenSSH_9.2\r\n".to_owned()), "Retry { why: \"the request failed: ").await;
    check(None, "Retry { why: \"the request failed: ").await;
}

#[tokio::test]
async fn a_server_that_is_not_there_or_hangs_is_tried_again() {
    // A port that was just free.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = influxdb::Client::new(&server(address, Api::V3)).unwrap();
    let verdict = format!("{:?}", client.post(&[batch(1)]).await);
    assert!(verdict.starts_with("Retry { why: \"cannot connect: connection refused"), "{verdict}");

    let (address, mut requests) = stub().await;
    let client = influxdb::Client::new(&server(address, Api::V3)).unwrap();
    let (verdict, _request) = tokio::join!(post(&client), async {
        let request = requests.recv().await.unwrap();
        // From here on nothing but the time-out can happen, so it happens at once.
        tokio::time::pause();
        request
    });
    let expect = Verdict::Retry { why: "no answer within 15 s".to_owned(), after: None };
    assert_eq!(verdict, expect);
}

#[tokio::test]
async fn an_answer_without_end_is_read_up_to_its_limit() {
    let (address, mut requests) = stub().await;
    let client = influxdb::Client::new(&server(address, Api::V3)).unwrap();
    let (verdict, ()) = tokio::join!(post(&client), async {
        let request = requests.recv().await.unwrap();
        let length = 64 << 20;
        let reply = format!("HTTP/1.1 500 Oops\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(2 << 20));
        request.answer.send(reply).unwrap();
    });
    let Verdict::Retry { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(why.len() < 300, "{} bytes", why.len());
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_sent_in_pieces_and_only_a_line_that_is_too_large_is_refused() {
    let (address, mut requests) = stub().await;
    let outputs = Outputs::start(&[], &[server(address, Api::V3)], Arc::new(SystemClock)).unwrap();
    let long = format!("a v=\"{}\" 9\n", "x".repeat(100));
    let lines: Vec<String> =
        (0..10).map(|n| if n == 4 { long.clone() } else { format!("a v={n}i {n}\n") }).collect();
    outputs.send(&Batch { lines: Arc::new(lines.concat().into_bytes()), line_count: 10, ..batch(1) });
    let mut stored = String::new();
    let mut sent = std::collections::HashSet::new();
    while outputs.stats()[0].queued_batches > 0 {
        let request = tokio::select! {
            request = requests.recv() => request.unwrap(),
            // The last answer may be on its way.
            () = tokio::task::yield_now() => continue,
        };
        assert!(sent.insert(request.body.clone()), "the same lines were sent twice: {:?}", request.body);
        let reply = if request.body.len() > 40 {
            answer("413 Payload Too Large", "", "max request size (40 bytes) exceeded")
        } else {
            stored += &request.body;
            no_content()
        };
        request.answer.send(reply).unwrap();
    }
    let expect: String = lines.iter().filter(|line| **line != long).map(String::as_str).collect();
    assert_eq!(stored, expect, "in order, each once");
    // The limit was learnt: the next batch is sent in pieces at once.
    let lines: String = (0..10).map(|n| format!("b v={n}i {n}\n")).collect();
    outputs.send(&Batch { lines: Arc::new(lines.into_bytes()), line_count: 10, ..batch(2) });
    let request = requests.recv().await.unwrap();
    assert!(request.body.len() <= 40, "{:?}", request.body);
    drop(request);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].refused_lines, stats[0].dropped_lines), (9, 1, 10));
}

#[tokio::test]
async fn waiting_batches_share_a_request_and_a_refused_one_is_found_by_halving() {
    let (address, mut requests) = stub().await;
    let outputs = Outputs::start(&[], &[server(address, Api::V3)], Arc::new(SystemClock)).unwrap();
    outputs.send(&batch(0));
    let first = requests.recv().await.unwrap();
    for number in 1..=4 {
        outputs.send(&batch(number));
    }
    first.answer.send(no_content()).unwrap();
    let mut stored = first.body;
    let mut tries = Vec::new();
    while outputs.stats()[0].queued_batches > 0 {
        let request = tokio::select! {
            request = requests.recv() => request.unwrap(),
            // The last answer may be on its way.
            () = tokio::task::yield_now() => continue,
        };
        tries.push(request.body.lines().count());
        // All or nothing, and the third line is bad.
        let reply = if request.body.contains("a v=3i ") {
            answer("400 Bad Request", "", r#"{"error":"line protocol parsing error","data":{}}"#)
        } else {
            stored += &request.body;
            no_content()
        };
        request.answer.send(reply).unwrap();
    }
    assert_eq!(tries[0], 4, "what waited goes together");
    let expect: String = [0, 1, 2, 4].map(|n| String::from_utf8(batch(n).lines.to_vec()).unwrap()).concat();
    assert_eq!(stored, expect);
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].refused_lines), (4, 1));
}

#[tokio::test]
async fn after_an_outage_everything_arrives_in_order() {
    let (address, mut requests) = stub().await;
    let outputs = Outputs::start(&[], &[server(address, Api::V3)], Arc::new(SystemClock)).unwrap();
    outputs.send(&batch(1));
    let refused = requests.recv().await.unwrap();
    outputs.send(&batch(2));
    refused.answer.send(answer("503 Service Unavailable", "", "")).unwrap();
    while outputs.stats()[0].failures == 0 {
        tokio::task::yield_now().await;
    }
    // The pause begins in the step that counts the failure, so it can be skipped.
    tokio::time::pause();
    tokio::time::advance(2 * FIRST_PAUSE).await;
    tokio::time::resume();
    let request = requests.recv().await.unwrap();
    assert_eq!(request.body, format!("a v=1i {S}\na v=2i {}\n", 2 * S));
    let stats = &outputs.stats()[0];
    assert_eq!((stats.failures, stats.trouble.as_deref()), (1, Some("status 503")));
    request.answer.send(no_content()).unwrap();
    let stats = outputs.shutdown(Duration::from_secs(60)).await;
    assert_eq!((stats[0].delivered_lines, stats[0].dropped_lines), (2, 0));
    assert_eq!(stats[0].trouble, None);
}

#[tokio::test]
async fn a_probe_says_what_the_server_is_or_what_is_wrong() {
    /// What it answers to a ping and to a write without lines.
    async fn check(ping: String, write: Option<String>, expect: Result<&str, &str>) {
        let (address, mut requests) = stub().await;
        let server = server(address, Api::V3);
        let (found, ()) = tokio::join!(probe(&server), async {
            let request = requests.recv().await.unwrap();
            assert!(request.head.starts_with("GET /ping HTTP/1.1"), "{}", request.head);
            request.answer.send(ping).unwrap();
            let request = requests.recv().await.unwrap();
            assert!(request.head.starts_with("POST /api/v3/write_lp?db=kvmetry&"), "{}", request.head);
            assert!(request.head.contains("content-length: 0"), "{}", request.head);
            match write {
                Some(write) => request.answer.send(write).unwrap(),
                None => drop(request),
            }
        });
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
            (found, expect) => panic!("{found:?} instead of {expect:?}"),
        }
    }
    let ping = || answer("200 OK", "x-influxdb-version: 3.10.1\r\n", "{}");
    let refused = |text: &str| Some(answer("400 Bad Request", "", text));
    let takes = Ok("InfluxDB 3.10.1 takes lines for database \"kvmetry\"");
    check(ping(), refused("incoming write was empty"), takes).await;
    let words = r#"{"code":"invalid","message":"writing requires points"}"#;
    check(ping(), refused(words), takes).await;
    let unnamed = Ok("a server that does not tell its version takes lines for database \"kvmetry\"");
    check(answer("404 Not Found", "", ""), Some(no_content()), unnamed).await;
    check(ping(), refused("db name did not adhere"), Err("does not accept the request")).await;
    check(ping(), Some(answer("401 Unauthorized", "", "")), Err("refuses the token")).await;
    check(ping(), Some(answer("404 Not Found", "", "database not found")), Err("make the database")).await;
    check(ping(), None, Err("the request failed")).await;
}

#[test]
fn a_certificate_authority_that_is_none_is_refused_at_start() {
    #[track_caller]
    fn check(pem: Option<&str>, part: &str) {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        if let Some(pem) = pem {
            std::fs::write(&ca, pem).unwrap();
        }
        let server = InfluxDb {
            url: "https://influx.example".to_owned(),
            api: Api::V3,
            database: "kvmetry".to_owned(),
            org: None,
            token_file: None,
            ca: Some(PathBuf::from(&ca)),
        };
        let Err(error) = influxdb::Client::new(&server) else { panic!("{pem:?} was taken") };
        assert!(error.to_string().contains(part), "{error}");
    }
    check(None, "ca.pem: No such file");
    check(Some("hello"), "there is no certificate");
    check(Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), "ca.pem: ");
}
