//! The one HTTP port: InfluxDB 3's endpoints, and whatever else is mounted on it.
//!
//! ```text
//! connection ──▶ Front: URL ▸ endpoint ▸ guard (Host, Origin, token, scope) ──▶ router ──▶ handler ──▶ Backend
//! ```
//!
//! HTTP/1 and HTTP/2, with TLS and without, on one listener. `docs/API.md` has every endpoint with an example;
//! [`ENDPOINTS`] is the list that all else follows: what is answered, which token it needs, and what a wrong path is
//! told. `limits` has every limit with its reason.
//!
//! The port is open on loopback only, unless it is told otherwise; elsewhere it demands tokens, or the flag that says
//! aloud that it does not.

pub(crate) mod backend;
mod body;
mod connection;
mod databases;
#[cfg(feature = "store")]
pub(crate) mod flight;
mod guard;
pub(crate) mod limits;
mod params;
mod query;
pub(crate) mod relay;
mod reply;
#[cfg(test)]
pub(crate) mod selfsigned;
pub(crate) mod session;
mod stamp;
#[cfg(any(feature = "store", test))]
pub(crate) mod through;
mod tls;
pub(crate) mod tokens;
mod waiting;
mod write;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use self::backend::Backend;
use self::body::{Bodies, Unwanted};
pub(crate) use self::connection::Connection;
use self::guard::Guard;
pub(crate) use self::guard::Needs;
use self::limits::{Limits, MAX_URL_BYTES};
pub(crate) use self::params::Params;
pub(crate) use self::relay::{BUSY_RETRY, Turn, Turns};
pub(crate) use self::reply::{Problem, json};
use self::tls::{Tls, TlsError};
use self::tokens::{Scope, Tokens, TokensError};
use crate::clock::Clock;
use crate::config::Http;
use crate::logging::OncePerCause;

/// A path that is answered.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) path: &'static str,
    /// Each with what it needs.
    methods: &'static [(&'static str, Needs)],
    /// For whoever asks for a path that there is not.
    does: &'static str,
}

const WRITE: Needs = Needs::Scope(Scope::Write);
/// What who asks needs.
pub(crate) const READ: Needs = Needs::Scope(Scope::Read);
const ADMIN: Needs = Needs::Scope(Scope::Admin);

const PING: &str = "/ping";
const HEALTH: &str = "/health";
const COMPACT: &str = "/api/v3/compact";
const BACKUP: &str = "/api/v3/backup";
const DATABASE: &str = "/api/v3/configure/database";

/// All paths, except what is mounted.
pub(crate) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        path: "/api/v3/write_lp",
        methods: &[("POST", WRITE)],
        does: "write line protocol: ?db=NAME&precision=auto&accept_partial=true",
    },
    Endpoint {
        path: "/api/v2/write",
        methods: &[("POST", WRITE)],
        does: "write line protocol as to InfluxDB 2: ?bucket=NAME&precision=ns",
    },
    Endpoint {
        path: "/write",
        methods: &[("POST", WRITE)],
        does: "write line protocol as to InfluxDB 1: ?db=NAME&precision=ns",
    },
    Endpoint {
        path: "/api/v3/query_sql",
        methods: &[("GET", READ), ("POST", READ)],
        does: "ask in SQL: db, q, format (json, jsonl, csv, pretty, parquet), params",
    },
    Endpoint {
        path: DATABASE,
        methods: &[("GET", READ), ("POST", ADMIN), ("PUT", ADMIN)],
        does: "list databases, make one, change its retention: {\"db\":\"NAME\",\"retention_period\":\"30d\"}",
    },
    Endpoint {
        path: COMPACT,
        methods: &[("POST", ADMIN)],
        does: "write all points into Parquet files now, one a day and table",
    },
    Endpoint {
        path: BACKUP,
        methods: &[("POST", ADMIN)],
        does: "make a backup of the store in the server's data directory, under backups/",
    },
    Endpoint {
        path: PING,
        methods: &[("GET", Needs::Token), ("POST", Needs::Token)],
        does: "product and version",
    },
    Endpoint { path: HEALTH, methods: &[("GET", Needs::Token)], does: "OK" },
    Endpoint {
        path: "/query",
        methods: &[("GET", READ), ("POST", READ)],
        does: "InfluxQL, which is not spoken here",
    },
    Endpoint {
        path: "/api/v3/query_influxql",
        methods: &[("GET", READ), ("POST", READ)],
        does: "InfluxQL, which is not spoken here",
    },
    Endpoint {
        path: "/api/v2/query",
        methods: &[("GET", READ), ("POST", READ)],
        does: "Flux, which is not spoken here",
    },
];

/// What a version header says: clients of InfluxDB look at the first number.
const INFLUXDB_VERSION: &str = concat!("3.0.0+kvmetry-", env!("CARGO_PKG_VERSION"));

/// Something else on the port, such as a service of gRPC.
#[derive(Debug)]
pub(crate) struct Mount {
    /// How its paths begin, where it ends with `/`: `/arrow.flight.protocol.FlightService/`. Else, and if it is `/`, its one
    /// path.
    pub(crate) prefix: &'static str,
    pub(crate) needs: Needs,
    /// Its routes, whole paths, without a fallback: `Router::new().route_service("/…/{*method}", service)`.
    pub(crate) router: Router,
}

/// All that the port needs.
pub(crate) struct Setup<B> {
    pub(crate) config: Http,
    /// Where the port listens: `config.listen`, if it is on.
    pub(crate) listen: SocketAddr,
    /// Where the tokens are kept.
    pub(crate) tokens: PathBuf,
    pub(crate) backend: Arc<B>,
    pub(crate) mounts: Vec<Mount>,
    /// The turns of queries, shared with those that come over what is mounted.
    pub(crate) turns: Arc<Turns>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    /// Where it runs.
    pub(crate) threads: Handle,
}

/// A thread for the port alone: while it does a handshake or takes a body apart, no hypervisor waits to be read.
#[derive(Debug)]
pub(crate) struct OwnThread {
    handle: Handle,
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
}

impl OwnThread {
    /// # Errors
    /// The system has no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("http").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        // Within another runtime, where waiting is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Why the port was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(
        "{listen} can be reached from other machines, and there is no token: make one with `kvmetry token --scope write` \
         (kept in {}), or start with --insecure-no-auth if everybody there may read and write all of it",
        tokens.display()
    )]
    Unprotected { listen: SocketAddr, tokens: PathBuf },
    #[error("cannot listen on {listen}{}", in_use(source))]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

fn in_use(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => " (another kvmetry? choose another port with --listen)",
        io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 are for root)",
        _ => "",
    }
}

/// The open port. Dropped, it is closed at once.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Where it listens; the port is a real one also where 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests and waits for those under way, as long as [`Limits::stop_within`]. Dropped before, it cuts
    /// them off.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        // A panic in there was printed already.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the port.
///
/// # Errors
/// It would be open to everybody, the address cannot be had, or the files of TLS or the tokens are bad.
pub(crate) async fn start<B: Backend>(setup: Setup<B>) -> Result<Server, StartError> {
    let Setup { config, listen, tokens, backend, mounts, turns, clock, limits, threads } = setup;
    let (tokens, tls) = protection(&config, listen, &tokens)?;
    if !listen.ip().is_loopback() {
        if tokens.is_none() {
            tracing::warn!(%listen, "--insecure-no-auth: whoever reaches this port may read and write all of it");
        } else if tls.is_none() {
            tracing::warn!(%listen, "tokens come unencrypted, unless a proxy does TLS: see tls_cert under [http]");
        }
    }
    let bound = threads.spawn(TcpListener::bind(listen)).await.map_err(io::Error::other).flatten();
    let listener = bound.map_err(|source| StartError::Listen { listen, source })?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { listen, source })?;

    let writes = Bodies::new(limits.bodies_bytes, &limits);
    let questions = Bodies::new(limits.questions_bytes, &limits);
    let app = App { backend, writes, questions, turns };
    let guard = Arc::new(Guard::new(address, &config.allowed_hosts, tokens));
    let logins = session::Logins {
        guard: Arc::clone(&guard),
        bodies: Bodies::new(limits.questions_bytes, &limits),
        base_path: config.base_path.clone(),
        is_secure: tls.is_some(),
    };
    let mut router = router(Arc::new(app)).merge(session::router(logins));
    // Who logs in has shown no token yet.
    let mut mounted = vec![("/api/session", Needs::Nothing)];
    for mount in mounts {
        mounted.push((mount.prefix, mount.needs));
        router = router.merge(mount.router);
    }
    let front = Front {
        guard,
        base_path: config.base_path,
        open_health: config.open_health,
        mounted,
        router,
        told: Arc::new(Told { causes: OncePerCause::default(), clock }),
        limits,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!("listening on {scheme}://{address}");
    let (stop, stopping) = watch::channel(false);
    let task = threads.spawn(connection::accept(listener, Arc::new(front), tls, stopping));
    Ok(Server { address, stop, task })
}

/// Whether the port may be opened as it is configured. Waits for the disk.
///
/// # Errors
/// As [`start`], but for the address.
pub(crate) fn check(config: &Http, listen: SocketAddr, tokens: &Path) -> Result<(), StartError> {
    protection(config, listen, tokens).map(drop)
}

/// The tokens, unless nobody needs one, and what is needed for TLS, if it is on.
fn protection(
    config: &Http,
    listen: SocketAddr,
    tokens: &Path,
) -> Result<(Option<Tokens>, Option<Tls>), StartError> {
    let tokens = if config.insecure_no_auth {
        None
    } else {
        let kept = Tokens::new(tokens.to_owned());
        let known = kept.current()?;
        if !listen.ip().is_loopback() && known.is_none_or(|known| known.is_empty()) {
            return Err(StartError::Unprotected { listen, tokens: tokens.to_owned() });
        }
        Some(kept)
    };
    let tls = config.tls.as_ref().map(|tls| Tls::new(tls.certificate.clone(), tls.key.clone()));
    Ok((tokens, tls.transpose()?))
}

/// What the handlers share.
struct App<B> {
    backend: Arc<B>,
    writes: Bodies,
    /// Queries, and whatever else comes in JSON.
    questions: Bodies,
    turns: Arc<Turns>,
}

fn router<B: Backend>(app: Arc<App<B>>) -> Router {
    Router::new()
        .route("/api/v3/write_lp", post(write::v3::<B>))
        .route("/api/v2/write", post(write::v2::<B>))
        .route("/write", post(write::v1::<B>))
        .route("/api/v3/query_sql", get(query::sql::<B>).post(query::sql::<B>))
        .route(DATABASE, get(databases::list::<B>).post(databases::create::<B>).put(databases::change::<B>))
        .route(COMPACT, post(databases::compact::<B>))
        .route(BACKUP, post(databases::backup::<B>))
        .route(PING, get(ping).post(ping))
        .route(HEALTH, get(async || "OK"))
        .route("/query", any(query::influxql))
        .route("/api/v3/query_influxql", any(query::influxql))
        .route("/api/v2/query", any(query::flux))
        .with_state(app)
}

async fn ping() -> Response {
    let body = json!({
        "product_name": "kvmetry",
        "version": env!("CARGO_PKG_VERSION"),
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "application/json"),
        ("x-influxdb-version", INFLUXDB_VERSION),
        ("x-influxdb-build", "kvmetry"),
    ];
    (headers, body.to_string()).into_response()
}

/// What every request passes before it comes to its handler.
struct Front {
    guard: Arc<Guard>,
    /// Empty, or `/` and something.
    base_path: String,
    open_health: bool,
    mounted: Vec<(&'static str, Needs)>,
    router: Router,
    told: Arc<Told>,
    limits: Limits,
}

/// What was logged of clients: each cause once in a while, so that nobody fills the log.
struct Told {
    causes: OncePerCause,
    clock: Arc<dyn Clock>,
}

impl Told {
    /// Whether to log this cause now; see [`OncePerCause::tell`].
    fn tell(&self, cause: &str) -> Option<u64> {
        self.causes.tell(cause, self.clock.monotonic())
    }
}

impl Front {
    /// # Errors
    /// The answer to one who is not let in, or asks for what there is not.
    async fn answer(&self, request: Request, connection: Connection) -> Result<Response, Response> {
        let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        let grpc = request.headers().get(CONTENT_TYPE).is_some_and(is_grpc);
        let unwanted = Unwanted::of(&request);
        let (mut parts, body) = request.into_parts();
        let nosniff = |mut response: Response| {
            // What is sent is what it says: no browser shall find HTML in the name of a VM.
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        };
        match self.admit(&mut parts, &connection).await {
            Ok(()) => {
                parts.extensions.insert(connection);
                let request = Request::from_parts(parts, body);
                let answered = self.router.clone().oneshot(request).await;
                Ok(nosniff(answered.unwrap_or_else(|never| match never {})))
            }
            Err(problem) => {
                self.tell(&parts, &connection, &problem);
                unwanted.receive(body).await;
                Err(nosniff(if grpc { problem.into_grpc() } else { problem.into_response() }))
            }
        }
    }

    /// Finds out whether somebody answers this, and whether the client may ask.
    async fn admit(&self, parts: &mut Parts, connection: &Connection) -> Result<(), Problem> {
        if parts.uri.to_string().len() > MAX_URL_BYTES {
            let message = format!("the URL is longer than {MAX_URL_BYTES} bytes: use POST with a body");
            return Err(Problem::new(StatusCode::URI_TOO_LONG, message));
        }
        self.strip_base_path(&mut parts.uri);
        let path = parts.uri.path();
        let is_of = |prefix: &str| {
            path == prefix || (prefix.len() > 1 && prefix.ends_with('/') && path.starts_with(prefix))
        };
        let mounted = self.mounted.iter().find(|(prefix, _)| is_of(prefix));
        let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.path == path);
        let method = endpoint.and_then(|endpoint| {
            endpoint.methods.iter().find(|(method, _)| parts.method.as_str() == *method)
        });
        let needs = match (mounted, method) {
            (Some((_, needs)), _) => *needs,
            (None, Some(_)) if self.open_health && [PING, HEALTH].contains(&path) => Needs::Nothing,
            (None, Some((_, needs))) => *needs,
            // Who may not ask is not told what there is.
            (None, None) => Needs::Token,
        };
        self.guard.admit(parts, connection.local, needs).await?;
        let path = parts.uri.path();
        match (mounted, endpoint, method) {
            (Some(_), ..) | (None, Some(_), Some(_)) => Ok(()),
            // As InfluxDB has it.
            (None, Some(endpoint), None) if endpoint.path != PING || parts.method != Method::HEAD => {
                let methods: Vec<_> = endpoint.methods.iter().map(|(method, _)| *method).collect();
                Err(Problem::wrong_method(parts.method.as_str(), path, &methods.join(", ")))
            }
            _ => Err(self.not_found(path)),
        }
    }

    /// A proxy may strip the base path or pass it on: both are understood.
    fn strip_base_path(&self, uri: &mut Uri) {
        let stripped = uri.path_and_query().and_then(|all| {
            let rest = all.as_str().strip_prefix(self.base_path.as_str())?;
            match rest.bytes().next() {
                Some(b'/') => rest.parse::<PathAndQuery>().ok(),
                None | Some(b'?') => format!("/{rest}").parse().ok(),
                // Another name that begins alike.
                Some(_) => None,
            }
        });
        if let (false, Some(stripped)) = (self.base_path.is_empty(), stripped) {
            let mut parts = uri.clone().into_parts();
            parts.path_and_query = Some(stripped);
            if let Ok(stripped) = Uri::from_parts(parts) {
                *uri = stripped;
            }
        }
    }

    fn not_found(&self, path: &str) -> Problem {
        let there = ENDPOINTS.iter().map(|endpoint| {
            let methods: Vec<_> = endpoint.methods.iter().map(|(method, _)| *method).collect();
            json!({
                "path": format!("{}{}", self.base_path, endpoint.path),
                "methods": methods,
                "does": endpoint.does,
            })
        });
        Problem::new(StatusCode::NOT_FOUND, format!("there is no {path:?} here"))
            .with("endpoints", Value::from_iter(there))
    }

    /// Logs that no connection can be accepted, most likely for want of open files.
    fn tell_accept(&self, error: &io::Error) {
        if let Some(held_back) = self.told.tell("accept") {
            tracing::warn!(%error, held_back, "connections cannot be accepted: clients have to wait");
        }
    }

    /// Logs a refusal. Neither the query nor any header: there may be a token in it.
    fn tell(&self, parts: &Parts, connection: &Connection, problem: &Problem) {
        let (peer, path, status) = (connection.peer, parts.uri.path(), problem.status().as_u16());
        tracing::debug!(%peer, method = %parts.method, path, status, "refused: {}", problem.message());
        if let Some(error) = problem.secret_cause() {
            if let Some(held_back) = self.told.tell("tokens") {
                tracing::error!(error, held_back, "nobody can be let in");
            }
        } else if matches!(status, 401 | 403 | 421)
            && let Some(held_back) = connection.told(&status.to_string())
        {
            tracing::warn!(client = %peer.ip(), path, status, held_back, "refused: {}", problem.message());
        }
    }
}

#[cfg(test)]
mod tests;
