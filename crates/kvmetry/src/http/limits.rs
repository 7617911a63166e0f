//! What one client, and all of them together, may ask of this process.
//!
//! Each number has its reason here; none is a setting, because a wrong one is a hole. Tests have smaller ones.

use std::time::Duration;

/// The largest body of a write, bytes, as it comes and after gunzip: InfluxDB 3's own limit, so that what fits there
/// fits here. About 40,000 of this program's lines. Beyond: 413.
pub(crate) const MAX_BODY_BYTES: usize = 10_485_760;
/// The largest JSON body (a query, a database), bytes: SQL that a person wrote is under 10 KiB, what a program made
/// seldom over 100 KiB. Beyond: 413.
pub(crate) const MAX_JSON_BYTES: usize = 1 << 20;
/// The largest request over Flight, bytes: the store's limit of a message, and gRPC's five bytes before it. Beyond:
/// `OUT_OF_RANGE`.
#[cfg(feature = "store")]
pub(crate) const MAX_FLIGHT_BYTES: usize = MAX_JSON_BYTES + 5;
/// Bodies held in memory at once, unpacked, bytes: eight of the largest. Beyond, a request is answered 503 with
/// Retry-After and its client comes again.
const MAX_BODIES_BYTES: usize = 8 * MAX_BODY_BYTES;
/// The same of JSON, and once more of what comes over Flight, 32 of the largest: apart from writes, so that whoever may
/// write cannot keep others from asking, nor the other way round.
const MAX_QUESTIONS_BYTES: usize = 32 * MAX_JSON_BYTES;
/// From the beginning of a body, when its request is let in, to its last byte: 10 MiB at 1.4 Mbit/s. Beyond: 408.
const BODY_WITHIN: Duration = Duration::from_secs(60);

/// The longest request target, bytes: SQL in a GET of a dashboard; longer SQL goes into a POST. Beyond: 414.
pub(crate) const MAX_URL_BYTES: usize = 16 << 10;
/// Header lines of a request: browsers and proxies send about 30. Beyond: 431 (HTTP/1); HTTP/2 counts
/// [`MAX_HEADER_BYTES`] only, in which an empty header counts 32.
pub(crate) const MAX_HEADERS: usize = 100;
/// Request line and headers together, bytes: the longest target and as much of headers again, which is what proxies
/// pass on. Beyond: 431, or 414 where it is the target.
pub(crate) const MAX_HEADER_BYTES: usize = 32 << 10;

/// Connections at once: far below the usual limit of 1,024 open files, of which the store needs some. At the limit an
/// idle one is closed for each that comes; where all are busy, new ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Of these from one address (IPv6: a /64): half, so that no one keeps all others out. Not fewer, because a reverse proxy
/// is one address. Loopback has no such limit: a proxy there is the usual one, and whoever else is on this machine can
/// do worse. Beyond, they are closed at once.
const MAX_CONNECTIONS_OF_ONE: usize = MAX_CONNECTIONS / 2;
/// Requests at once on one HTTP/2 connection: RFC 9113 (6.5.2) asks for no less than 100. Beyond, a client waits.
pub(crate) const MAX_STREAMS: u32 = 100;
/// From accepting a connection to the head of its first request that is not refused, handshake included: a client on a
/// bad line needs 3.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// A connection without a request is kept this long: collectors write every 5 to 60 s. Then it is closed, and a request
/// head that takes longer than this is not waited for.
const IDLE_WITHIN: Duration = Duration::from_secs(90);
/// A client that takes nothing of an answer for this long is gone, and its connection is cut: a browser's tab that
/// sleeps takes up to a minute.
const TAKE_WITHIN: Duration = Duration::from_secs(60);

/// While other queries wait for a turn, a client may let them wait this long in all by taking its answer slowly: half of
/// what they wait at most. Beyond, it is cut off, one for each that waits. The same while there is no memory for other
/// bodies, by sending its own slowly: beyond, 408, and it comes again.
const SLOW: Duration = Duration::from_secs(5);

/// Queries that run at once: each may use all cores and its share of the memory pool, so more would only be slower.
const MAX_QUERIES: usize = 8;
/// Queries that wait for their turn: some dashboards' worth of panels. Beyond: 503 with Retry-After.
const MAX_QUERIES_WAITING: usize = 64;
/// How long a query waits for its turn: longer, nobody looks at the answer. Beyond: 503 with Retry-After.
const QUERY_TURN_WITHIN: Duration = Duration::from_secs(10);

/// What is read and thrown away of a body that is not wanted, bytes: a client that is still sending would else see a
/// reset connection in place of the answer (HTTP/1).
pub(crate) const MAX_UNWANTED_BYTES: usize = 2 * MAX_BODY_BYTES;
/// The same in time; whoever is slower sees the reset.
pub(crate) const UNWANTED_WITHIN: Duration = Duration::from_secs(2);

/// From the wish to end until the port is closed, requests under way included.
const STOP_WITHIN: Duration = Duration::from_millis(800);

/// The limits that tests make smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: usize,
    pub(crate) connections_of_one: usize,
    pub(crate) first_request_within: Duration,
    pub(crate) idle_within: Duration,
    pub(crate) body_within: Duration,
    pub(crate) bodies_bytes: usize,
    pub(crate) questions_bytes: usize,
    pub(crate) take_within: Duration,
    /// What a client may let others wait in all by taking its answer or sending its body slowly.
    pub(crate) slow: Duration,
    pub(crate) queries: usize,
    pub(crate) queries_waiting: usize,
    pub(crate) query_turn_within: Duration,
    pub(crate) stop_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            connections_of_one: MAX_CONNECTIONS_OF_ONE,
            first_request_within: FIRST_REQUEST_WITHIN,
            idle_within: IDLE_WITHIN,
            body_within: BODY_WITHIN,
            bodies_bytes: MAX_BODIES_BYTES,
            questions_bytes: MAX_QUESTIONS_BYTES,
            take_within: TAKE_WITHIN,
            slow: SLOW,
            queries: MAX_QUERIES,
            queries_waiting: MAX_QUERIES_WAITING,
            query_turn_within: QUERY_TURN_WITHIN,
            stop_within: STOP_WITHIN,
        }
    }
}
