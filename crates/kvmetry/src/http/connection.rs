//! Connections: how many, how long, and how they end.
//!
//! ```text
//! accept ──▶ place ──▶ TLS ──▶ HTTP/1 or HTTP/2, as its first bytes tell ──▶ Front::answer a request
//!                                  ▲
//!            supervisor: idle too long · crowded and idle · client takes nothing · the program ends
//! ```
//!
//! hyper has time-outs of its own for heads of HTTP/1 only; the supervisor needs no more than to know whether a
//! request is under way, and so does the same for both versions.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::Front;
use super::limits::{Limits, MAX_HEADER_BYTES, MAX_HEADERS, MAX_STREAMS};
use super::tls::Tls;

/// After an error of accept(2), most likely too many open files, which nobody mends faster.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// A connection that was told to end and has no request under way is dropped after this time, goodbye or not.
const GOODBYE_WITHIN: Duration = Duration::from_millis(500);
/// How often an idle HTTP/2 connection is asked whether its client is still there, and how long for an answer.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What a handler may know of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    /// This side's address.
    pub(crate) local: IpAddr,
    cut: Arc<Notify>,
}

impl Connection {
    /// Ends the connection at once, whatever is under way on it.
    pub(crate) fn cut(&self) {
        self.cut.notify_one();
    }
}

/// Serves until `stopping` says true and all requests under way have been answered, or the time for that is over.
pub(super) async fn accept(
    listener: TcpListener,
    front: Arc<Front>,
    tls: Option<Tls>,
    mut stopping: watch::Receiver<bool>,
) {
    let limits = front.limits;
    let tls = tls.map(Arc::new);
    let places = Arc::new(Semaphore::new(limits.connections));
    let (crowded, crowd) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|&stop| stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                front.tell_accept(&error);
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let place = tokio::select! {
            _ = stopping.wait_for(|&stop| stop) => break,
            place = take_place(&places, &crowded) => place,
        };
        let serve = Serve {
            front: Arc::clone(&front),
            crowd: crowd.clone(),
            stopping: stopping.clone(),
            peer,
            limits,
            _place: place,
        };
        connections.spawn(serve.serve(stream, tls.clone()));
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.stop_within, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut off: their requests took too long to end");
        connections.shutdown().await;
    }
}

/// A place for one more connection. Where there is none, those that are idle make one.
async fn take_place(places: &Arc<Semaphore>, crowded: &watch::Sender<bool>) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    tracing::debug!("all places for connections are taken: closing idle ones");
    crowded.send_replace(true);
    let place = Arc::clone(places).acquire_owned().await;
    crowded.send_replace(false);
    place.ok()
}

/// Why a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With a goodbye, once the requests under way are answered.
    Goodbye,
    /// At once.
    Cut,
}

struct Serve {
    front: Arc<Front>,
    crowd: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
    peer: SocketAddr,
    limits: Limits,
    _place: Option<OwnedSemaphorePermit>,
}

impl Serve {
    async fn serve(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        let first_request_by = Instant::now() + self.limits.first_request_within;
        let Ok(local) = stream.local_addr() else { return };
        // Answers are small and wait for nothing. Where it cannot be set, they are slower.
        let _ = stream.set_nodelay(true);
        let cut = Arc::new(Notify::new());
        let connection = Connection { peer: self.peer, local: local.ip().to_canonical(), cut };
        let Some(tls) = tls else { return self.http(stream, connection, first_request_by).await };
        match timeout_at(first_request_by, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, connection, first_request_by).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "no TLS came about"),
            Err(_) => tracing::debug!(peer = %self.peer, "no TLS came about in time"),
        }
    }

    async fn http<S>(mut self, stream: S, connection: Connection, first_request_by: Instant)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (under_way, requests) = watch::channel(Requests::default());
        let cut = Arc::clone(&connection.cut);
        let front = Arc::clone(&self.front);
        let service = tower::service_fn(move |request: Request<_>| {
            let guard = UnderWay::new(&under_way);
            let (front, connection) = (Arc::clone(&front), connection.clone());
            async move {
                let response = front.answer(request.map(Body::new), connection).await;
                io::Result::Ok(response.map(|body| Counted { body, _under_way: guard }))
            }
        });
        let builder = builder();
        let mut serving =
            pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
        let end = tokio::select! {
            result = serving.as_mut() => return self.ended(result),
            () = cut.notified() => End::Cut,
            end = self.supervise(requests.clone(), first_request_by) => end,
        };
        if end == End::Cut {
            return;
        }
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            result = serving => self.ended(result),
            () = cut.notified() => {}
            () = idle_for(requests, GOODBYE_WITHIN) => {}
        }
    }

    fn ended(&self, result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        if let Err(error) = result {
            tracing::debug!(peer = %self.peer, %error, "a connection broke off");
        }
    }

    /// Waits until the connection has to end.
    async fn supervise(&mut self, mut requests: watch::Receiver<Requests>, first_by: Instant) -> End {
        let first = requests.wait_for(|requests| requests.begun > 0);
        tokio::select! {
            // hyper's goodbye would wait for the first request.
            _ = self.stopping.wait_for(|&stop| stop) => return End::Cut,
            first = timeout_at(first_by, first) => if first.is_err() { return End::Cut },
        }
        tokio::select! {
            _ = self.stopping.wait_for(|&stop| stop) => End::Goodbye,
            () = idle_for(requests.clone(), self.limits.idle_within) => End::Goodbye,
            () = idle_in_a_crowd(requests, self.crowd.clone()) => End::Goodbye,
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // No timer for HTTP/1: see the module's head.
    builder.http1().max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

/// The requests of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Requests {
    begun: u64,
    /// Begun, and the answer not yet handed over.
    under_way: usize,
}

/// Returns once no request has been under way for so long.
async fn idle_for(mut requests: watch::Receiver<Requests>, for_so_long: Duration) {
    loop {
        // The sender is gone: so is the connection.
        let Ok(idle) = requests.wait_for(|requests| requests.under_way == 0).await.map(|now| *now) else {
            return;
        };
        let next = requests.wait_for(|requests| requests.begun > idle.begun);
        if timeout(for_so_long, next).await.is_err() {
            return;
        }
    }
}

/// Returns once no request is under way while others wait for a place.
async fn idle_in_a_crowd(mut requests: watch::Receiver<Requests>, mut crowd: watch::Receiver<bool>) {
    loop {
        if crowd.wait_for(|&crowded| crowded).await.is_err() {
            // The port is being closed, which is told elsewhere.
            return std::future::pending().await;
        }
        tokio::select! {
            _ = requests.wait_for(|requests| requests.under_way == 0) => return,
            _ = crowd.wait_for(|&crowded| !crowded) => {}
        }
    }
}

/// A request under way, until it is dropped.
struct UnderWay(watch::Sender<Requests>);

impl UnderWay {
    fn new(requests: &watch::Sender<Requests>) -> Self {
        requests.send_modify(|requests| {
            requests.begun += 1;
            requests.under_way += 1;
        });
        Self(requests.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|requests| requests.under_way -= 1);
    }
}

/// The body of an answer; the request is under way as long as it is.
struct Counted {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
