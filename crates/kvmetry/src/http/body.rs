//! The body of a request: read with limits, unpacked as it comes.
//!
//! A bomb (a gzip of 10 kB that unpacks to 10 MB and more) is stopped where it passes the limit. What was packed is not
//! kept: it is unpacked as it comes.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, Request, StatusCode, Version};
use flate2::write::GzDecoder;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::limits::{Limits, MAX_JSON_BYTES, MAX_UNWANTED_BYTES, UNWANTED_WITHIN};
use super::reply::Problem;

/// Memory for bodies is counted in pieces of this size, bytes.
const PIECE: usize = 1024;
/// When to come again where all memory for bodies is taken: a write is done in far less.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// Members of a gzip body: `cat *.gz` of a day's minutes. Each costs some microseconds to begin, and 10 MiB could hold
/// half a million empty ones.
pub(super) const MAX_MEMBERS: usize = 2_000;

/// Reads bodies, all of them together within a bound.
#[derive(Debug)]
pub(crate) struct Bodies {
    pieces: Arc<Semaphore>,
    within: Duration,
    /// See [`Limits::slow`].
    slow: Duration,
    /// One was refused for want of memory.
    refused: Notify,
}

/// A body in memory. What it takes of the bound is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Vec<u8>,
    pub(crate) room: Room,
}

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyFault {
    TooLarge {
        limit: usize,
    },
    /// It did not come whole in time.
    Slow {
        within: Duration,
    },
    /// It came slowly, and there is no memory for others.
    InTheWay,
    /// The memory for bodies is taken.
    Busy,
    /// Not as its headers say, or a coding that is not known here.
    Wrong(String),
}

impl Bodies {
    /// At most `bytes` at once.
    pub(crate) fn new(bytes: usize, limits: &Limits) -> Self {
        Self {
            pieces: Arc::new(Semaphore::new(bytes / PIECE)),
            within: limits.body_within,
            slow: limits.slow,
            refused: Notify::new(),
        }
    }

    /// Reads a body of at most `limit` bytes, raw and unpacked.
    ///
    /// # Errors
    /// See [`BodyFault`]. What else a client on HTTP/1 was going to send has been read then, within limits.
    pub(crate) async fn read(&self, request: Request<Body>, limit: usize) -> Result<Held, BodyFault> {
        let coding = Coding::of(request.headers());
        let unwanted = Unwanted::of(&request);
        let mut body = request.into_body();
        let result = match coding {
            _ if unwanted.length.is_some_and(|length| length > limit as u64) => {
                Err(BodyFault::TooLarge { limit })
            }
            Err(fault) => Err(fault),
            Ok(coding) => {
                let room = Room { pieces: Arc::clone(&self.pieces), taken: None };
                let sink = Sink { bytes: Vec::new(), limit, room, fault: None };
                let received = self.receive(&mut body, coding, sink);
                let slow = Err(BodyFault::Slow { within: self.within });
                tokio::time::timeout(self.within, received).await.unwrap_or(slow)
            }
        };
        if matches!(result, Err(BodyFault::Busy)) {
            self.refused.notify_waiters();
        }
        if matches!(result, Err(BodyFault::TooLarge { .. } | BodyFault::Busy | BodyFault::Wrong(_))) {
            unwanted.receive(body).await;
        }
        result
    }

    async fn receive(&self, body: &mut Body, coding: Coding, sink: Sink) -> Result<Held, BodyFault> {
        let limit = sink.limit;
        let mut received = 0;
        let mut chunks = std::mem::take(body).into_data_stream();
        let mut unpack = match coding {
            Coding::Identity => Unpack::Not(sink),
            Coding::Gzip => Unpack::Gzip { decoder: Box::new(GzDecoder::new(sink)), members: 0 },
        };
        let mut outcome = Ok(());
        let mut patience = self.slow;
        loop {
            let since = Instant::now();
            let in_the_way = async {
                sleep_until(since + patience).await;
                self.refused.notified().await;
            };
            let chunk = tokio::select! {
                biased;
                chunk = chunks.next() => chunk,
                () = in_the_way => {
                    outcome = Err(BodyFault::InTheWay);
                    break;
                }
            };
            let Some(chunk) = chunk else { break };
            patience = patience.saturating_sub(since.elapsed());
            outcome = match chunk {
                Ok(chunk) => {
                    received += chunk.len();
                    if received > limit { Err(BodyFault::TooLarge { limit }) } else { unpack.push(&chunk) }
                }
                Err(_) => Err(BodyFault::Wrong("the body broke off".to_owned())),
            };
            if outcome.is_err() {
                break;
            }
        }
        *body = Body::from_stream(chunks);
        outcome?;
        unpack.finish()
    }

    /// Reads a JSON body of at most [`MAX_JSON_BYTES`]. serde_json bounds how deep it is nested (128).
    ///
    /// # Errors
    /// It is not called JSON, it is not JSON, or not what is wanted; or it cannot be read.
    pub(crate) async fn read_json<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T, Problem> {
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        // A page of another origin can send no such request without asking first.
        if !essence.eq_ignore_ascii_case("application/json") {
            throw_away(request).await;
            let message = "the body must be JSON and say so: Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let held = self.read(request, MAX_JSON_BYTES).await.map_err(BodyFault::problem)?;
        serde_json::from_slice(&held.bytes)
            .map_err(|error| Problem::wrong(format!("the JSON of the body: {error}")))
    }
}

/// Receives a body that is not wanted, within limits.
pub(crate) async fn throw_away(request: Request<Body>) {
    let unwanted = Unwanted::of(&request);
    unwanted.receive(request.into_body()).await;
}

impl BodyFault {
    /// As most endpoints tell it.
    pub(crate) fn problem(self) -> Problem {
        match self {
            Self::TooLarge { limit } => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                // InfluxDB's words, which clients know.
                format!("max request size ({limit} bytes) exceeded"),
            ),
            Self::Slow { within } => Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come whole within {} s", within.as_secs_f64()),
            ),
            Self::InTheWay => {
                let message = "the body came slowly, and others wait for its room; come again";
                Problem::new(StatusCode::REQUEST_TIMEOUT, message)
            }
            Self::Busy => {
                let message = "too many bodies are being received at once; come again";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(BUSY_RETRY)
            }
            Self::Wrong(why) => Problem::wrong(why),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Result<Self, BodyFault> {
        let mut found = Self::Identity;
        for (place, value) in headers.get_all(CONTENT_ENCODING).iter().enumerate() {
            let text = String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase();
            found = match text.as_str() {
                "gzip" | "x-gzip" if place == 0 => Self::Gzip,
                "" | "identity" => found,
                _ => {
                    let why = format!("Content-Encoding {text:?} is not known here: use gzip or identity");
                    return Err(BodyFault::Wrong(why));
                }
            };
        }
        Ok(found)
    }
}

enum Unpack {
    Not(Sink),
    Gzip {
        decoder: Box<GzDecoder<Sink>>,
        /// Members begun. Of none there may be nothing: an empty body is an empty write, not a broken gzip.
        members: usize,
    },
}

impl Unpack {
    fn push(&mut self, chunk: &[u8]) -> Result<(), BodyFault> {
        match self {
            Self::Not(sink) => sink.take(chunk),
            Self::Gzip { decoder, members } => {
                let mut rest = chunk;
                while !rest.is_empty() {
                    *members = (*members).max(1);
                    match decoder.write(rest) {
                        // A member has ended, and there is more.
                        Ok(0) => {
                            *members += 1;
                            if *members > MAX_MEMBERS {
                                let why = format!("the gzip body has more than {MAX_MEMBERS} members");
                                return Err(BodyFault::Wrong(why));
                            }
                            let sink = end_member(decoder)?;
                            **decoder = GzDecoder::new(sink);
                        }
                        Ok(taken) => rest = &rest[taken..],
                        Err(error) => return Err(gzip_fault(decoder.get_mut(), &error)),
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Held, BodyFault> {
        let sink = match self {
            Self::Gzip { mut decoder, members: 1.. } => end_member(&mut decoder)?,
            Self::Gzip { mut decoder, members: 0 } => decoder.get_mut().leave(),
            Self::Not(sink) => sink,
        };
        Ok(Held { bytes: sink.bytes, room: sink.room })
    }
}

/// Checks the member that has ended and takes the sink out of its decoder.
fn end_member(decoder: &mut GzDecoder<Sink>) -> Result<Sink, BodyFault> {
    let ended = decoder.try_finish();
    ended.map_err(|error| gzip_fault(decoder.get_mut(), &error))?;
    Ok(decoder.get_mut().leave())
}

fn gzip_fault(sink: &mut Sink, error: &io::Error) -> BodyFault {
    sink.fault.take().unwrap_or_else(|| {
        BodyFault::Wrong(format!("the body is not the whole gzip that its Content-Encoding says: {error}"))
    })
}

/// Takes unpacked bytes up to a limit.
struct Sink {
    bytes: Vec<u8>,
    limit: usize,
    room: Room,
    /// Why it took no more: a decoder only hands on that it did not.
    fault: Option<BodyFault>,
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), BodyFault> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.limit {
            return Err(BodyFault::TooLarge { limit: self.limit });
        }
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.bytes.capacity() * 2).min(self.limit);
            self.room.grow_to(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Sink {
    /// Moves it out of a decoder, which keeps one that takes nothing.
    fn leave(&mut self) -> Self {
        let room = Room { pieces: Arc::clone(&self.room.pieces), taken: None };
        std::mem::replace(self, Self { bytes: Vec::new(), limit: 0, room, fault: None })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(fault) => {
                self.fault = Some(fault);
                Err(io::Error::other("it is not taken"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A share of the memory for bodies.
#[derive(Debug)]
pub(crate) struct Room {
    pieces: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn grow_to(&mut self, bytes: usize) -> Result<(), BodyFault> {
        let has = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.div_ceil(PIECE).saturating_sub(has)).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.pieces).try_acquire_many_owned(more).map_err(|_| BodyFault::Busy)?;
        match &mut self.taken {
            Some(all) => all.merge(taken),
            None => self.taken = Some(taken),
        }
        Ok(())
    }
}

/// What to do with a body that is not wanted.
///
/// Over HTTP/1 a client sends its whole body before it looks for an answer, and one who answers and closes before that
/// resets the connection: the client sees the reset and no answer. HTTP/2 and clients that wait for "100 Continue"
/// have no such trouble.
pub(crate) struct Unwanted {
    /// What it says about its length, bytes.
    length: Option<u64>,
    receive: bool,
}

impl Unwanted {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let length =
            request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let waits = request.headers().contains_key(EXPECT);
        Self { length, receive: request.version() <= Version::HTTP_11 && !waits }
    }

    /// Receives it, within [`MAX_UNWANTED_BYTES`] and [`UNWANTED_WITHIN`], and throws it away.
    pub(crate) async fn receive(&self, body: Body) {
        if !self.receive || self.length.is_some_and(|length| length > MAX_UNWANTED_BYTES as u64) {
            return;
        }
        let mut chunks = body.into_data_stream();
        let mut received = 0;
        let all = async {
            while let Some(Ok(chunk)) = chunks.next().await {
                received += chunk.len();
                if received > MAX_UNWANTED_BYTES {
                    return;
                }
            }
        };
        // Whoever is slower sees the reset.
        let _ = tokio::time::timeout(UNWANTED_WITHIN, all).await;
    }
}
