//! A stand-in for InfluxDB 3 Core, which is in no package: it answers as was observed on one (3.10), and for InfluxDB 1
//! and 2 as their references say. It holds what it accepted, and fails as it is told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use influxdb_line_protocol::{FieldValue, parse_lines, split_lines};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// This answer, and nothing else is done.
    Answer(u16, &'static str, String),
    /// The lines are stored, but the answer is lost.
    StoredButReset,
    /// The connection is reset when the request was read.
    Reset,
    /// The same before all of it was read.
    ResetEarly,
    /// No more is sent, but the connection stays half open.
    HalfClose,
    /// Bytes that are no HTTP.
    Rubbish,
    /// The answer breaks off in its head.
    Cut,
    /// The answer breaks off in its body, after this status.
    CutBody(u16, &'static str),
    /// The right answer, byte by byte.
    Slow,
    /// No answer at all.
    Hang,
}

/// A database.
#[derive(Clone, Debug, Default)]
pub(super) struct Database {
    /// As it was asked for.
    pub(super) retention: Option<String>,
    /// By table, tags and time, the fields: the last one wins.
    pub(super) points: BTreeMap<String, BTreeMap<String, String>>,
    /// Times in the order in which they came.
    pub(super) times: Vec<i64>,
    columns: Columns,
}

/// All of the server.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) databases: BTreeMap<String, Database>,
    /// What the next requests meet, in order; `None`: nothing.
    pub(super) faults: VecDeque<Option<Fault>>,
    /// What is demanded, if anything.
    pub(super) token: Option<String>,
    /// What an attempt to make a database is answered instead.
    pub(super) create: Option<(u16, String)>,
    pub(super) max_bytes: usize,
    /// A write with more than this is never answered, as over a link that is too slow for it.
    pub(super) hangs_beyond: Option<usize>,
    /// What writes into some databases are answered.
    pub(super) refused: BTreeMap<String, (u16, String)>,
    /// Added to the line numbers that are told: a wrong server.
    pub(super) number_shift: u64,
    /// `original_line` is that of another one, as a real server's can be.
    pub(super) wrong_original: bool,
    /// Answers an unbearable line as if partial writes were not known.
    pub(super) always_strict: bool,
    /// Each request: its line, and the length of its body unpacked.
    pub(super) requests: Vec<(String, usize)>,
    /// Of the last request.
    pub(super) authorization: Option<String>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            databases: BTreeMap::new(),
            faults: VecDeque::new(),
            token: None,
            create: None,
            max_bytes: 10_485_760,
            hangs_beyond: None,
            refused: BTreeMap::new(),
            number_shift: 0,
            wrong_original: false,
            always_strict: false,
            requests: Vec::new(),
            authorization: None,
        }
    }
}

impl Model {
    /// Points in a database.
    pub(super) fn count(&self, database: &str) -> usize {
        self.databases.get(database).map_or(0, |database| database.points.len())
    }

    /// Requests whose line contains this.
    pub(super) fn requests_with(&self, part: &str) -> Vec<&(String, usize)> {
        self.requests.iter().filter(|(line, _)| line.contains(part)).collect()
    }

    fn answer(&mut self, head: &str, body: &[u8]) -> (u16, String) {
        let request = head.lines().next().unwrap_or_default().to_owned();
        let url = request.split(' ').nth(1).unwrap_or_default();
        let url = reqwest::Url::parse(&format!("http://stub{url}")).unwrap();
        let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
        let sent = head.lines().find_map(|line| line.strip_prefix("authorization: "));
        if let Some(token) = &self.token
            && sent != Some(&format!("Bearer {token}"))
        {
            return (401, r#"{"error": "the request was not authenticated"}"#.to_owned());
        }
        let database = query.get("db").or(query.get("bucket")).cloned().unwrap_or_default();
        if let Some(refused) = self.refused.get(&database) {
            return refused.clone();
        }
        match url.path() {
            "/ping" => (200, "{}".to_owned()),
            "/api/v3/configure/database" => self.create_v3(body),
            "/query" => self.create_v1(body),
            "/api/v3/write_lp" => {
                let partial = query.get("accept_partial").map(String::as_str) != Some("false");
                self.write(&database, body, partial && !self.always_strict)
            }
            // All or nothing, and nothing is made on the way.
            _ if !self.databases.contains_key(&database) => {
                (404, json!({ "error": format!("database not found: {database:?}") }).to_string())
            }
            _ => match self.write(&database, body, false) {
                (400, said) if url.path() == "/write" => {
                    (400, json!({ "error": format!("unable to parse 'x': {said}") }).to_string())
                }
                (400, said) => (400, json!({ "code": "invalid", "message": said }).to_string()),
                other => other,
            },
        }
    }

    fn create_v3(&mut self, body: &[u8]) -> (u16, String) {
        if let Some(create) = &self.create {
            return create.clone();
        }
        let wish: Value = serde_json::from_slice(body).unwrap();
        let name = wish["db"].as_str().unwrap().to_owned();
        if self.databases.contains_key(&name) {
            return (409, r#"{"error":"attempted to create a resource that already exists"}"#.to_owned());
        }
        let retention = wish["retention_period"].as_str().map(str::to_owned);
        self.databases.insert(name, Database { retention, ..Database::default() });
        (200, String::new())
    }

    fn create_v1(&mut self, body: &[u8]) -> (u16, String) {
        if let Some(create) = &self.create {
            return create.clone();
        }
        let statement = super::tests::body_of(std::str::from_utf8(body).unwrap());
        let rest = statement.strip_prefix("CREATE DATABASE \"").unwrap();
        let (name, rest) = rest.split_once('"').unwrap();
        let retention = rest.strip_prefix(" WITH DURATION ").map(str::to_owned);
        self.databases
            .entry(name.to_owned())
            .or_insert_with(|| Database { retention, ..Database::default() });
        (200, r#"{"results":[{"statement_id":0}]}"#.to_owned())
    }

    fn write(&mut self, database: &str, body: &[u8], partial: bool) -> (u16, String) {
        if body.len() > self.max_bytes {
            return (413, format!("max request size ({} bytes) exceeded", self.max_bytes));
        }
        if database.is_empty() {
            return (400, "missing query parameter 'db'".to_owned());
        }
        let text = std::str::from_utf8(body).unwrap();
        let lines: Vec<_> =
            split_lines(text).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        if lines.is_empty() {
            return (400, "incoming write was empty".to_owned());
        }
        let known = self.databases.get(database).map(|database| database.columns.clone());
        let mut columns = known.unwrap_or_default();
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(&lines) {
            match Point::of(line, &mut columns) {
                Ok(point) => good.push(point),
                Err(why) => {
                    let original = if self.wrong_original { lines[0] } else { *line };
                    let original: String = original.chars().take(20).collect();
                    let number: u64 = number + self.number_shift;
                    wrong.push(
                        json!({ "error_message": why, "line_number": number, "original_line": original }),
                    );
                }
            }
        }
        if !wrong.is_empty() && !partial {
            let first = &wrong[0];
            return (400, json!({ "error": "line protocol parsing error", "data": first }).to_string());
        }
        let database = self.databases.entry(database.to_owned()).or_default();
        database.columns = columns;
        for point in good {
            database.times.push(point.time);
            database.points.entry(point.key).or_default().extend(point.fields);
        }
        if wrong.is_empty() {
            return (204, String::new());
        }
        (400, json!({ "error": "partial write of line protocol occurred", "data": wrong }).to_string())
    }
}

/// By table and name.
type Columns = HashMap<(String, String), &'static str>;

struct Point {
    key: String,
    time: i64,
    fields: Vec<(String, String)>,
}

impl Point {
    fn of(text: &str, columns: &mut Columns) -> Result<Self, String> {
        let line = parse_lines(text).next().ok_or("no line")?.map_err(|error| error.to_string())?;
        let table = line.series.measurement.to_string();
        for (name, value) in &line.field_set {
            let kind = match value {
                FieldValue::I64(_) => "integer",
                FieldValue::U64(_) => "uinteger",
                FieldValue::F64(_) => "float",
                FieldValue::String(_) => "string",
                FieldValue::Boolean(_) => "boolean",
            };
            let known = *columns.entry((table.clone(), name.to_string())).or_insert(kind);
            if known != kind {
                return Err(format!(
                    "invalid column type for column '{name}', expected iox::column_type::field::{known}, got \
                     iox::column_type::field::{kind}"
                ));
            }
        }
        let time = line.timestamp.ok_or("no time")?;
        let series = text.split(' ').next().unwrap_or_default();
        let fields = line.field_set.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Ok(Self { key: format!("{series} {time}"), time, fields: fields.collect() })
    }
}

/// A running server. It is gone when it is dropped.
pub(super) struct Stub {
    pub(super) address: SocketAddr,
    model: Arc<Mutex<Model>>,
    /// A request was answered, or met its fault.
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Stub {
    pub(super) async fn start(model: Model) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_at(listener, model, None).await
    }

    /// On a socket that listens already, perhaps with TLS.
    pub(super) async fn start_at(
        listener: TcpListener,
        model: Model,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let (model, changed) = (Arc::new(Mutex::new(model)), Arc::new(Notify::new()));
        let (shared, notify) = (Arc::clone(&model), Arc::clone(&changed));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_zero_linger().unwrap();
                stream.set_nodelay(true).unwrap();
                let (model, notify, tls) = (Arc::clone(&shared), Arc::clone(&notify), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, model, notify).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, model, notify).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, model, changed, task }
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Waits until the server is as it should be.
    pub(super) async fn wait_for(&self, what: &str, is: impl Fn(&Model) -> bool) {
        let waited = async {
            loop {
                let changed = self.changed.notified();
                if is(&self.model()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(super::tests::PATIENCE, waited).await.is_err() {
            let model = self.model();
            let last: Vec<_> = model.requests.iter().rev().take(5).collect();
            panic!("{what}: not in time; {} requests, the last {last:?}", model.requests.len());
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    model: Arc<Mutex<Model>>,
    changed: Arc<Notify>,
) {
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
        let head = head.replace("Authorization: ", "authorization: ");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let fault = model.lock().unwrap().faults.pop_front().flatten();
        if matches!(fault, Some(Fault::ResetEarly)) {
            changed.notify_waiters();
            return;
        }
        while bytes.len() < head_end + length {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let mut body = bytes[head_end..].to_vec();
        if head.contains("content-encoding: gzip") {
            let packed = std::mem::take(&mut body);
            flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut body).unwrap();
        }
        let (answer, fault) = {
            let mut model = model.lock().unwrap();
            let hangs = model.hangs_beyond.is_some_and(|most| body.len() > most);
            let fault = fault.or(hangs.then_some(Fault::Hang));
            let sent = head.lines().find_map(|line| line.strip_prefix("authorization: "));
            model.authorization = sent.map(str::to_owned);
            model.requests.push((head.lines().next().unwrap_or_default().to_owned(), body.len()));
            let answer = match &fault {
                None | Some(Fault::Slow | Fault::StoredButReset) => {
                    let (status, body) = model.answer(&head, &body);
                    text(status, "", &body)
                }
                Some(Fault::Answer(status, headers, body)) => text(*status, headers, body),
                Some(Fault::Cut) => "HTTP/1.1 204 No Con".to_owned(),
                Some(Fault::CutBody(status, part)) => {
                    format!(
                        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n\r\n{part}",
                        part.len() + 100
                    )
                }
                Some(Fault::Rubbish) => "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
                Some(_) => String::new(),
            };
            (answer, fault)
        };
        let gone = match &fault {
            Some(Fault::Reset | Fault::StoredButReset | Fault::ResetEarly) => true,
            Some(Fault::HalfClose | Fault::Rubbish | Fault::Cut | Fault::CutBody(..)) => {
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                changed.notify_waiters();
                // Until the peer has had enough.
                let _ = stream.read_buf(&mut bytes).await;
                true
            }
            Some(Fault::Hang) => {
                changed.notify_waiters();
                // Nothing more, until the peer has had enough.
                let _ = stream.read_buf(&mut bytes).await;
                true
            }
            Some(Fault::Slow) => {
                let mut gone = false;
                for byte in answer.as_bytes() {
                    gone = gone || stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err();
                    tokio::task::yield_now().await;
                }
                gone
            }
            None | Some(Fault::Answer(..)) => stream.write_all(answer.as_bytes()).await.is_err(),
        };
        changed.notify_waiters();
        if gone {
            return;
        }
    }
}

fn text(status: u16, headers: &str, body: &str) -> String {
    // A 204 has no body, and no length.
    if status == 204 {
        return format!("HTTP/1.1 204 No Content\r\n{headers}\r\n");
    }
    format!("HTTP/1.1 {status} Whatever\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}
