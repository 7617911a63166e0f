//! The port over real sockets on loopback, before a double of the rest of the program: what it is given it takes with
//! the true parser and schema, what it is asked it answers as a test tells it to.

mod access;
mod bounds;
mod databases;
mod docs;
mod queries;
mod secure;
mod writes;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use hyper_util::rt::{TokioExecutor, TokioIo};
use telemetry::lines::{Catalog, Refused, parse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::backend::{
    Answer, Database, DatabaseFailure, Query, QueryFailure, QueryFault, UpkeepFailure, Write, WriteFailure,
};
use super::*;
use crate::clock::SystemClock;

/// Nothing here takes this long, unless it hangs.
const SOON: Duration = Duration::from_secs(20);
/// 2026-11-22T21:48:59Z.
const NOW_NS: i64 = 1_795_384_139_000_000_000;

/// What a query is answered with.
enum Reply {
    Text(&'static str),
    Fail(QueryFault, &'static str),
    /// This comes, if it is not empty; then it breaks.
    Break(&'static str),
    /// No answer ever; the sender is dropped with the query.
    Hang(mpsc::Sender<()>),
    /// One piece and no more; the sender is dropped with the answer.
    Stall(mpsc::Sender<()>),
    /// Pieces of so many bytes without end; the sender is dropped with the answer.
    Endless(usize, mpsc::Sender<()>),
    /// One piece of so many bytes.
    Large(usize),
}

/// The rest of the program.
#[derive(Default)]
struct Double {
    catalog: Mutex<Catalog>,
    /// The database and the accepted lines of each write that was taken.
    written: Mutex<Vec<(String, String)>>,
    /// What the next write fails with, whatever is in it.
    write_fails: Mutex<Option<WriteFailure>>,
    /// What the next queries get, in order; then `[]`.
    replies: Mutex<std::collections::VecDeque<Reply>>,
    asked: Mutex<Vec<Query>>,
    databases: Mutex<BTreeMap<String, Option<Duration>>>,
    databases_fail: Mutex<Option<DatabaseFailure>>,
    compact_fails: Mutex<Option<UpkeepFailure>>,
}

impl Backend for Double {
    async fn compact(&self) -> Result<String, UpkeepFailure> {
        self.compact_fails.lock().unwrap().take().map_or_else(|| Ok("compacted".to_owned()), Err)
    }

    async fn backup(&self) -> Result<String, UpkeepFailure> {
        let made = || Ok(r#"{"dir":"/data/backups/1","missing":[]}"#.to_owned());
        self.compact_fails.lock().unwrap().take().map_or_else(made, Err)
    }

    async fn write(&self, write: Write) -> Result<(), WriteFailure> {
        if let Some(failure) = self.write_fails.lock().unwrap().take() {
            return Err(failure);
        }
        let parsed = parse(&write.body, write.precision, NOW_NS);
        let admitted =
            self.catalog.lock().unwrap().admit(&write.database, parsed, write.accept_partial).map_err(
                |refused| match refused {
                    Refused::Empty => WriteFailure::Empty,
                    Refused::DatabaseName(why) => WriteFailure::DatabaseName(why),
                    Refused::TooManyDatabases => WriteFailure::TooMany(refused.to_string()),
                    Refused::Lines { errors, untold } => WriteFailure::Lines { errors, untold },
                },
            )?;
        if !admitted.text.is_empty() {
            self.written.lock().unwrap().push((write.database, admitted.text.into_owned()));
        }
        if admitted.errors.is_empty() {
            return Ok(());
        }
        Err(WriteFailure::Lines { errors: admitted.errors, untold: admitted.untold_errors })
    }

    async fn query(&self, query: Query) -> Result<Answer, QueryFailure> {
        self.asked.lock().unwrap().push(query);
        let fail = |fault, message: &str| QueryFailure { fault, message: message.to_owned() };
        let reply = self.replies.lock().unwrap().pop_front().unwrap_or(Reply::Text("[]"));
        match reply {
            Reply::Text(text) => {
                let pieces = text.as_bytes().chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece)));
                Ok(stream::iter(pieces.collect::<Vec<_>>()).boxed())
            }
            Reply::Fail(fault, message) => Err(fail(fault, message)),
            Reply::Break(text) => {
                let broken = Err(fail(QueryFault::Failed, "a file is damaged"));
                let first = Some(Ok(Bytes::from(text))).filter(|_| !text.is_empty());
                Ok(stream::iter(first.into_iter().chain([broken])).boxed())
            }
            Reply::Hang(held) => {
                let _held = held;
                std::future::pending().await
            }
            Reply::Stall(held) => {
                let silence = stream::once(async move {
                    let _held = held;
                    std::future::pending().await
                });
                Ok(stream::iter([Ok(Bytes::from("some"))]).chain(silence).boxed())
            }
            Reply::Large(bytes) => Ok(stream::iter([Ok(Bytes::from(vec![b'x'; bytes]))]).boxed()),
            Reply::Endless(bytes, held) => {
                let piece = Bytes::from(vec![b'x'; bytes]);
                Ok(stream::repeat_with(move || {
                    let _held = &held;
                    Ok(piece.clone())
                })
                .boxed())
            }
        }
    }

    async fn databases(&self) -> Result<Vec<Database>, DatabaseFailure> {
        if let Some(failure) = self.databases_fail.lock().unwrap().take() {
            return Err(failure);
        }
        let databases = self.databases.lock().unwrap();
        Ok(databases
            .iter()
            .map(|(name, retention)| Database { name: name.clone(), retention: *retention })
            .collect())
    }

    async fn create_database(
        &self,
        name: String,
        retention: Option<Duration>,
    ) -> Result<(), DatabaseFailure> {
        if let Some(failure) = self.databases_fail.lock().unwrap().take() {
            return Err(failure);
        }
        telemetry::lines::limits::check_database_name(&name).map_err(DatabaseFailure::Name)?;
        let mut databases = self.databases.lock().unwrap();
        if databases.contains_key(&name) {
            return Err(DatabaseFailure::Exists);
        }
        databases.insert(name, retention);
        Ok(())
    }

    async fn set_retention(&self, name: String, retention: Option<Duration>) -> Result<(), DatabaseFailure> {
        let mut databases = self.databases.lock().unwrap();
        let kept = databases.get_mut(&name).ok_or(DatabaseFailure::Unknown)?;
        *kept = retention;
        Ok(())
    }
}

/// A port, its double, and a client.
struct Port {
    server: Server,
    double: Arc<Double>,
    client: reqwest::Client,
    folder: tempfile::TempDir,
    limits: Limits,
}

fn config() -> Http {
    let flags = crate::config::Flags { listen: Some("127.0.0.1:0".to_owned()), ..Default::default() };
    crate::config::Config::from_parts(None, &[], &flags).unwrap().http
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap()
}

impl Port {
    /// On loopback, without tokens.
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Setup<Double>)) -> Self {
        Self::try_with(change).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_with(change: impl FnOnce(&mut Setup<Double>)) -> Result<Self, StartError> {
        let folder = tempfile::tempdir().unwrap();
        let double = Arc::new(Double::default());
        let config = config();
        let mut setup = Setup {
            listen: config.listen.unwrap(),
            tokens: config.tokens_file(folder.path()),
            config,
            backend: Arc::clone(&double),
            mounts: Vec::new(),
            turns: Arc::new(Turns::new(&Limits::default())),
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            threads: tokio::runtime::Handle::current(),
        };
        change(&mut setup);
        let limits = setup.limits;
        let server = start(setup).await?;
        Ok(Self { server, double, client: client(), folder, limits })
    }

    fn tokens_file(&self) -> PathBuf {
        self.folder.path().join("tokens.json")
    }

    /// Makes a token, as `kvmetry token` does beside the running server.
    fn token(&self, name: &str, scopes: &[Scope]) -> String {
        tokens::make(&self.tokens_file(), Some(name), scopes, String::new()).unwrap().secret
    }

    fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.server.address())
    }

    async fn get(&self, target: &str) -> Got {
        Got::of(self.client.get(self.url(target)).send().await.unwrap()).await
    }

    async fn post(&self, target: &str, body: impl Into<reqwest::Body>) -> Got {
        Got::of(self.client.post(self.url(target)).body(body).send().await.unwrap()).await
    }

    async fn json(&self, method: &str, target: &str, body: &str) -> Got {
        let request = self.client.request(method.parse().unwrap(), self.url(target));
        let request = request.header("content-type", "application/json").body(body.to_owned());
        Got::of(request.send().await.unwrap()).await
    }

    /// Sends these bytes over a connection of their own and reads until the server closes it.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> Got {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        Got::raw(&read_to_end(&mut stream).await)
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.address()).await.unwrap()
    }

    /// A request over HTTP/2 with prior knowledge.
    async fn h2(&self, request: axum::http::Request<String>) -> Got {
        let mut sender = h2_client(self.connect().await).await;
        let response = timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX).await.unwrap();
        Got { status: parts.status.as_u16(), headers: parts.headers, body: text(&body) }
    }

    fn written(&self) -> Vec<(String, String)> {
        self.double.written.lock().unwrap().clone()
    }

    fn reply(&self, reply: Reply) {
        self.double.replies.lock().unwrap().push_back(reply);
    }
}

type H2 = hyper::client::conn::http2::SendRequest<String>;

async fn h2_client<S>(stream: S) -> H2
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection.map(drop));
    sender
}

/// Asks over HTTP/2 and gives the server no leave to send the body of the answer; returns when the connection is over.
async fn h2_takes_nothing(port: &Port, target: &str, status: u16) {
    let io = TokioIo::new(port.connect().await);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) =
        builder.initial_stream_window_size(0).handshake::<_, String>(io).await.unwrap();
    let connection = tokio::spawn(connection.map(drop));
    let response = sender.send_request(request("GET", &port.url(target), &[], "")).await.unwrap();
    assert_eq!(response.status(), status);
    timeout(SOON, connection).await.expect("the connection stays").unwrap();
}

/// A request over HTTP/2.
fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> axum::http::Request<String> {
    let mut request = axum::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_owned()).unwrap()
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset comes where the server closed while a client was still sending.
    let _ =
        timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the server keeps the connection open");
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An answer.
#[derive(Clone, Debug)]
struct Got {
    status: u16,
    headers: axum::http::HeaderMap,
    body: String,
}

impl Got {
    async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.text().await.unwrap() }
    }

    /// Reads the last answer in these bytes (there may be a `100 Continue` before it).
    fn raw(bytes: &[u8]) -> Self {
        let all = text(bytes);
        let all = all.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&all);
        let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {all:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Self { status, headers: headers.collect(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// Status and JSON body.
    #[track_caller]
    fn is_json(&self, status: u16, expect: Value) {
        assert_eq!((self.status, self.json()), (status, expect));
    }

    /// Status and text body.
    #[track_caller]
    fn is_text(&self, status: u16, expect: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, expect));
        if !expect.is_empty() {
            assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"));
        }
    }

    /// Status, and an error with this in it.
    #[track_caller]
    fn is_error(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json()["error"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned();
        assert!(error.contains(part), "{error:?} instead of {part:?}");
    }
}

#[tokio::test]
async fn health_and_ping() {
    let port = Port::open().await;
    port.get("/health").await.is_text(200, "OK");
    for got in [port.get("/ping").await, port.post("/ping", "").await] {
        got.is_json(200, json!({ "product_name": "kvmetry", "version": env!("CARGO_PKG_VERSION") }));
        let version = got.header("x-influxdb-version").unwrap();
        assert!(version.starts_with("3."), "{version}: clients look at the first number");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
    }
    let head = port.client.head(port.url("/ping")).send().await.unwrap();
    assert_eq!(head.status(), 404);
    let head = port.client.head(port.url("/health")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["allow"].to_str().unwrap()), (405, "GET"));
}

#[tokio::test]
async fn an_unknown_path_is_told_what_there_is() {
    let port = Port::open().await;
    for target in ["/", "/nothing", "/api/v3/write_lp/", "/API/v3/write_lp", "//health", "/health/../ping"] {
        let got =
            port.raw(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await;
        got.is_error(404, "here");
        let endpoints = got.json()["endpoints"].as_array().unwrap().clone();
        assert_eq!(endpoints.len(), ENDPOINTS.len());
        let first = json!({
            "path": "/api/v3/write_lp",
            "methods": ["POST"],
            "does": "write line protocol: ?db=NAME&precision=auto&accept_partial=true",
        });
        assert_eq!(endpoints[0], first);
    }
}

#[tokio::test]
async fn every_endpoint_has_its_methods_and_no_others() {
    let port = Port::open().await;
    for endpoint in ENDPOINTS {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let request = port.client.request(method.parse().unwrap(), port.url(endpoint.path));
            let got = Got::of(request.send().await.unwrap()).await;
            let known: Vec<_> = endpoint.methods.iter().map(|(method, _)| *method).collect();
            if known.contains(&method) {
                assert!(![404, 405].contains(&got.status), "{method} {}: {got:?}", endpoint.path);
            } else {
                got.is_error(405, &format!("{method} is not for {}: use ", endpoint.path));
                assert_eq!(got.header("allow"), Some(known.join(", ").as_str()));
            }
        }
    }
}

#[tokio::test]
async fn behind_a_base_path() {
    let port = Port::with(|setup| setup.config.base_path = "/kvm".to_owned()).await;
    for target in ["/kvm/health", "/health", "/kvm/health?a=b"] {
        port.get(target).await.is_text(200, "OK");
    }
    for target in ["/kvm", "/kvm?a", "/kvm/", "/kvmhealth", "/kvm/kvm/health"] {
        let got = port.get(target).await;
        assert_eq!(got.status, 404, "{target}");
        assert_eq!(got.json()["endpoints"][0]["path"], "/kvm/api/v3/write_lp");
    }
}

#[tokio::test]
async fn what_is_mounted_answers_beside_and_behind_the_same_guard() {
    async fn method(request: Request) -> ([(&'static str, &'static str); 2], String) {
        let headers = [("content-type", "application/grpc"), ("grpc-status", "0")];
        (headers, request.uri().path().to_owned())
    }
    let mount = Mount {
        prefix: "/flight.Service/",
        needs: READ,
        router: Router::new().route("/flight.Service/{*method}", any(method)),
    };
    let port = Port::with(|setup| setup.mounts.push(mount)).await;
    let call = |headers: &[(&str, &str)], target: &str| {
        let mut all = vec![("content-type", "application/grpc+proto")];
        all.extend(headers);
        request("POST", &port.url(target), &all, "")
    };
    let got = port.h2(call(&[], "/flight.Service/DoGet")).await;
    assert_eq!((got.status, got.body.as_str()), (200, "/flight.Service/DoGet"));
    assert_eq!(got.header("grpc-status"), Some("0"));

    // What it is refused with is a status of gRPC.
    let token = port.token("w", &[Scope::Write]);
    let bearer = format!("Bearer {token}");
    for (headers, target, status) in [
        (vec![], "/flight.Service/DoGet", "16"),
        (vec![("authorization", bearer.as_str())], "/flight.Service/DoGet", "7"),
        (vec![("authorization", bearer.as_str())], "/other.Service/DoGet", "12"),
        (vec![("sec-fetch-site", "cross-site")], "/flight.Service/DoGet", "7"),
    ] {
        let got = port.h2(call(&headers, target)).await;
        assert_eq!((got.status, got.header("grpc-status")), (200, Some(status)), "{got:?}");
        assert!(got.header("grpc-message").is_some());
    }
}

#[tokio::test]
async fn it_ends_within_a_second_with_connections_open() {
    let port = Port::open().await;
    let (held, mut gone) = mpsc::channel(1);
    // One idle, one that sent nothing, one in a head, one in a body, one whose query hangs, one that takes nothing,
    // one over HTTP/2.
    port.get("/health").await.is_text(200, "OK");
    let silent = port.connect().await;
    let mut in_head = port.connect().await;
    in_head.write_all(b"GET /health HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut in_body = port.connect().await;
    let head = "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc";
    in_body.write_all(head.as_bytes()).await.unwrap();
    port.reply(Reply::Hang(held.clone()));
    let mut hanging = port.connect().await;
    let ask = "GET /api/v3/query_sql?db=a&q=b HTTP/1.1\r\nhost: localhost\r\n\r\n";
    hanging.write_all(ask.as_bytes()).await.unwrap();
    asked(&port, 1).await;
    port.reply(Reply::Endless(1 << 20, held));
    let mut takes_nothing = port.connect().await;
    takes_nothing.write_all(ask.as_bytes()).await.unwrap();
    let mut some = [0; 100];
    takes_nothing.read_exact(&mut some).await.unwrap();
    let mut h2 = h2_client(port.connect().await).await;
    h2.send_request(request("GET", &port.url("/health"), &[], "")).await.unwrap();

    let begun = std::time::Instant::now();
    let address = port.server.address();
    port.server.stop().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(TcpStream::connect(address).await.is_err(), "it still listens");
    assert_eq!(timeout(SOON, gone.recv()).await.unwrap(), None, "the queries were dropped");
    drop((silent, in_head, in_body, hanging, takes_nothing));
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_it_ends() {
    let port = Port::open().await;
    let mut stream = port.connect().await;
    let head =
        "POST /write?db=a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let stopped = tokio::spawn(port.server.stop());
    stream.write_all(b"a b=1 1\n").await.unwrap();
    let got = Got::raw(&read_to_end(&mut stream).await);
    assert_eq!(got.status, 204);
    timeout(SOON, stopped).await.unwrap().unwrap();
    assert_eq!(port.double.written.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn why_it_does_not_start() {
    #[track_caller]
    fn check(started: Result<Port, StartError>, expect: &str) {
        let Err(error) = started else { panic!("it started, without {expect:?}") };
        let error = guard::chain(&error);
        assert!(error.contains(expect), "{error}");
    }
    let first = Port::open().await;
    let taken = first.server.address();
    let again = Port::try_with(|setup| setup.listen = taken).await;
    check(again, "(another kvmetry? choose another port with --listen): Address already in use");
    // An address of the documentation's (RFC 5737).
    let elsewhere = Port::try_with(|setup| {
        setup.listen = "192.0.2.1:0".parse().unwrap();
        setup.config.insecure_no_auth = true;
    });
    check(elsewhere.await, "(this machine has no such address)");
    let damaged = Port::try_with(|setup| std::fs::write(&setup.tokens, "{}").unwrap()).await;
    check(damaged, "tokens.json is damaged: it has no version");
}

/// Returns once the double has been asked so many queries.
async fn asked(port: &Port, count: usize) {
    let all = async {
        while port.double.asked.lock().unwrap().len() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, all).await.expect("the query does not come");
}

#[tokio::test]
async fn a_stop_that_is_given_up_cuts_off_what_is_under_way() {
    let port = Port::with(|setup| setup.limits.stop_within = SOON).await;
    let (held, mut gone) = mpsc::channel(1);
    port.reply(Reply::Hang(held));
    let asks = tokio::spawn(port.client.get(port.url("/api/v3/query_sql?db=a&q=b")).send());
    asked(&port, 1).await;
    assert!(timeout(Duration::from_millis(50), port.server.stop()).await.is_err(), "it ends by itself");
    // Long before its client or the server would end it.
    assert_eq!(timeout(SOON / 4, gone.recv()).await.expect("the query goes on"), None);
    asks.abort();
}

#[tokio::test]
async fn tokens_that_cannot_be_read_are_logged_once() {
    let (log, _guard) = crate::logging::log_of_this_thread();
    let port = Port::open().await;
    std::fs::write(port.tokens_file(), "rubbish").unwrap();
    for _ in 0..3 {
        port.get("/health").await.is_error(503, "the tokens of this server cannot be read");
    }
    let log = text(&log.lock().unwrap());
    assert_eq!(log.matches("nobody can be let in").count(), 1, "{log}");
}
