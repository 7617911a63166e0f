//! Connections: how many, how long, and how they end.
//!
//! ```text
//! accept ──▶ place ──▶ TLS ──▶ HTTP/1 or HTTP/2, as its first bytes tell ──▶ Front::answer a request
//!                                  ▲
//!            supervisor: idle too long · crowded and idle · client takes nothing · the program ends
//! ```
//!
//! hyper has time-outs of its own for heads of HTTP/1 only; the supervisor needs no more than to know whether a
//! request is under way and since when its client takes nothing, and so does the same for both versions.
//!
//! Handshakes, unpacking and parsing run on the port's one thread. Each step is bounded (a signature, what 32 KiB unpack to,
//! 1 MiB of JSON): some milliseconds, by which whoever floods the port delays its other clients. What may take longer, and
//! what waits for the disk, is on threads of its own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::limits::{Limits, MAX_HEADER_BYTES, MAX_HEADERS, MAX_STREAMS};
use super::tls::Tls;
use super::waiting::Waiting;
use super::{Front, Told};

/// After an error of accept(2), most likely too many open files, which nobody mends faster.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// While others wait for a place, a connection has this long to its first request.
const FIRST_REQUEST_IN_A_CROWD: Duration = Duration::from_secs(1);
/// While others wait for a place, an idle connection that had a request let in stays so much longer than one that had
/// none: a collector's, which would only connect again.
const LET_IN_STAY: Duration = Duration::from_millis(100);
/// A connection that was told to end and has no request under way is dropped after this time, goodbye or not.
const GOODBYE_WITHIN: Duration = Duration::from_millis(500);
/// How often an idle HTTP/2 connection is asked whether its client is still there, and how long for an answer.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What a handler may know of its connection.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    /// This side's address.
    pub(crate) local: IpAddr,
    cut: Arc<Notify>,
    told: Arc<Told>,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    /// Waits until the port is to close: an answer that has no end ends then.
    pub(crate) async fn stopping(&self) {
        // A port that is gone is closed.
        let _ = self.stopping.clone().wait_for(|&stop| stop).await;
    }

    /// Ends the connection at once, whatever is under way on it, and logs what its client did.
    pub(crate) fn cut(&self, why: &str) {
        self.cut.notify_one();
        if let Some(held_back) = self.told(why) {
            tracing::warn!(client = %self.peer.ip(), held_back, "a client {why}: cut off");
        }
    }

    /// Whether to log this cause now; see [`Told::tell`].
    pub(crate) fn told(&self, cause: &str) -> Option<u64> {
        self.told.tell(&format!("{cause} {}", network(self.peer.ip())))
    }
}

/// Whose an address is, as far as can be told: in IPv6 one customer has a /64 at least.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))
        }
        address => address,
    }
}

/// How many connections each network has.
#[derive(Clone, Debug, Default)]
struct Networks(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of a network, until it is dropped.
#[derive(Debug)]
struct OfNetwork {
    all: Networks,
    network: IpAddr,
}

impl Networks {
    /// One more; `None`: it has so many already (`most`). Of this machine there may be any number.
    fn enter(&self, peer: IpAddr, most: usize) -> Option<OfNetwork> {
        let network = network(peer);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = all.entry(network).or_default();
        if *has >= most && !network.is_loopback() {
            return None;
        }
        *has += 1;
        Some(OfNetwork { all: self.clone(), network })
    }
}

impl Drop for OfNetwork {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(has) = all.get_mut(&self.network) {
            *has -= 1;
            if *has == 0 {
                all.remove(&self.network);
            }
        }
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
    let crowd = Waiting::default();
    let networks = Networks::default();
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
        let Some(of_network) = networks.enter(peer.ip(), limits.connections_of_one) else {
            if let Some(held_back) = front.told.tell(&format!("connections {}", network(peer.ip()))) {
                let most = limits.connections_of_one;
                tracing::warn!(client = %peer.ip(), held_back, "has {most} connections: more are closed at once");
            }
            continue;
        };
        let place = tokio::select! {
            _ = stopping.wait_for(|&stop| stop) => break,
            place = take_place(&places, &crowd) => place,
        };
        let serve = Serve {
            front: Arc::clone(&front),
            crowd: crowd.clone(),
            stopping: stopping.clone(),
            peer,
            limits,
            _place: (place, of_network),
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

/// A place for one more connection. Where there is none, one that is idle makes one.
async fn take_place(places: &Arc<Semaphore>, crowd: &Waiting) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    tracing::debug!("all places for connections are taken: closing an idle one");
    let _waits = crowd.begin();
    Arc::clone(places).acquire_owned().await.ok()
}

struct Serve {
    front: Arc<Front>,
    crowd: Waiting,
    stopping: watch::Receiver<bool>,
    peer: SocketAddr,
    limits: Limits,
    _place: (Option<OwnedSemaphorePermit>, OfNetwork),
}

impl Serve {
    async fn serve(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        let accepted = Instant::now();
        let Ok(local) = stream.local_addr() else { return };
        // Answers are small and wait for nothing. Where it cannot be set, they are slower.
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            peer: self.peer,
            local: local.ip().to_canonical(),
            cut: Arc::default(),
            told: Arc::clone(&self.front.told),
            stopping: self.stopping.clone(),
        };
        let Some(tls) = tls else { return self.http(stream, connection, accepted).await };
        let crowded = async {
            sleep_until(accepted + FIRST_REQUEST_IN_A_CROWD).await;
            self.crowd.takes_one(Duration::ZERO).await;
        };
        let handshake = timeout_at(accepted + self.limits.first_request_within, tls.accept(stream));
        let handshake = tokio::select! {
            biased;
            handshake = handshake => handshake,
            () = crowded => return,
        };
        match handshake {
            Ok(Ok(stream)) => self.http(stream, connection, accepted).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "no TLS came about"),
            Err(_) => tracing::debug!(peer = %self.peer, "no TLS came about in time"),
        }
    }

    async fn http<S>(mut self, stream: S, connection: Connection, accepted: Instant)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (under_way, requests) = watch::channel(Requests::default());
        let untaken = Untaken::default();
        let (front, asks, offers) = (Arc::clone(&self.front), connection.clone(), untaken.clone());
        let service = tower::service_fn(move |request: Request<_>| {
            let mut guard = UnderWay::new(&under_way, &offers);
            let (front, connection) = (Arc::clone(&front), asks.clone());
            async move {
                io::Result::Ok(match front.answer(request.map(Body::new), connection).await {
                    Ok(response) => {
                        guard.let_in();
                        response.map(|body| Counted { body, under_way: Some(guard) })
                    }
                    // Who is refused has no place for as long as the refusal is not taken.
                    Err(refusal) => refusal.map(|body| Counted { body, under_way: None }),
                })
            }
        });
        let builder = builder();
        let mut serving =
            pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
        let take_within = self.limits.take_within;
        let cut = async {
            tokio::select! {
                () = connection.cut.notified() => {}
                () = untaken.for_so_long(take_within) => connection.cut("takes nothing of its answer"),
            }
        };
        let mut cut = pin!(cut);
        tokio::select! {
            result = serving.as_mut() => return self.ended(result),
            () = cut.as_mut() => return,
            () = self.supervise(requests.clone(), accepted) => {}
        }
        // hyper's goodbye would wait for the first request.
        if requests.borrow().begun == 0 {
            return;
        }
        serving.as_mut().graceful_shutdown();
        tokio::select! {
            result = serving => self.ended(result),
            () = cut => {}
            () = idle_for(requests, GOODBYE_WITHIN) => {}
        }
    }

    fn ended(&self, result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        if let Err(error) = result {
            tracing::debug!(peer = %self.peer, %error, "a connection broke off");
        }
    }

    /// Waits until the connection has to end.
    async fn supervise(&mut self, requests: watch::Receiver<Requests>, accepted: Instant) {
        let mut asked = requests.clone();
        let too_late = async {
            sleep_until(accepted + self.limits.first_request_within).await;
            let _ = requests.clone().wait_for(|requests| requests.under_way == 0).await;
        };
        let crowded = async {
            sleep_until(accepted + FIRST_REQUEST_IN_A_CROWD).await;
            idle_in_a_crowd(requests.clone(), &self.crowd, Duration::ZERO).await;
        };
        tokio::select! {
            biased;
            _ = self.stopping.wait_for(|&stop| stop) => return,
            _ = asked.wait_for(|requests| requests.let_in) => {}
            () = too_late => return,
            () = crowded => return,
        }
        tokio::select! {
            _ = self.stopping.wait_for(|&stop| stop) => {}
            () = idle_for(requests.clone(), self.limits.idle_within) => {}
            () = idle_in_a_crowd(requests, &self.crowd, LET_IN_STAY) => {}
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
    /// Begun, and neither refused nor its answer handed over.
    under_way: usize,
    /// Whether there was one that was not refused.
    let_in: bool,
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

/// Returns once no request is under way while another connection waits for a place, `after` so long.
async fn idle_in_a_crowd(mut requests: watch::Receiver<Requests>, crowd: &Waiting, after: Duration) {
    loop {
        let Ok(idle) = requests.wait_for(|requests| requests.under_way == 0).await.map(|now| *now) else {
            return;
        };
        tokio::select! {
            biased;
            _ = requests.wait_for(|requests| requests.begun > idle.begun) => {}
            () = crowd.takes_one(after) => return,
        }
    }
}

/// The answers of a connection that its client can take, each by its request's number with the moment since when it
/// was not taken further.
#[derive(Clone, Debug, Default)]
struct Untaken(Arc<Mutex<HashMap<u64, Instant>>>);

impl Untaken {
    /// Returns once one of them was not taken further for so long.
    async fn for_so_long(&self, within: Duration) {
        loop {
            let now = Instant::now();
            let oldest = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied();
            // Those that come meanwhile have longer.
            let until = oldest.unwrap_or(now) + within;
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A request under way, until it is dropped.
struct UnderWay {
    requests: watch::Sender<Requests>,
    untaken: Untaken,
    number: u64,
}

impl UnderWay {
    fn new(requests: &watch::Sender<Requests>, untaken: &Untaken) -> Self {
        let mut number = 0;
        requests.send_modify(|requests| {
            requests.begun += 1;
            requests.under_way += 1;
            number = requests.begun;
        });
        Self { requests: requests.clone(), untaken: untaken.clone(), number }
    }

    /// It was not refused: here is its answer.
    fn let_in(&mut self) {
        self.requests.send_if_modified(|requests| !std::mem::replace(&mut requests.let_in, true));
        self.waits_for_client(true);
    }

    /// Whether it is the client's turn now.
    fn waits_for_client(&self, client: bool) {
        let mut untaken = self.untaken.0.lock().unwrap_or_else(PoisonError::into_inner);
        if client {
            untaken.insert(self.number, Instant::now());
        } else {
            untaken.remove(&self.number);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.waits_for_client(false);
        self.requests.send_modify(|requests| requests.under_way -= 1);
    }
}

/// The body of an answer; the request is under way as long as it is.
struct Counted {
    body: Body,
    /// `None`: a refusal.
    under_way: Option<UnderWay>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(under_way) = &self.under_way {
            // hyper comes for more when the client has taken what it has.
            under_way.waits_for_client(polled.is_ready());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_connections_of_one_network() {
        let networks = Networks::default();
        let enter = |peer: &str| networks.enter(peer.parse().unwrap(), 2);
        let first = enter("192.0.2.1").unwrap();
        let _second = enter("::ffff:192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        let _other = enter("192.0.2.2").unwrap();
        drop(first);
        let _third = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        let _of_a_64 = [enter("2001:db8::1").unwrap(), enter("2001:db8::1:2:3:4").unwrap()];
        assert!(enter("2001:db8::ffff").is_none());
        let _of_another = enter("2001:db8:0:1::1").unwrap();
        for here in ["127.0.0.1", "::1"] {
            let _any_number = [here; 3].map(|peer| enter(peer).unwrap());
        }
        assert_eq!(networks.0.lock().unwrap().len(), 4, "those who are gone are forgotten");
    }
}
