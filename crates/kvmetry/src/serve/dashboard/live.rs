//! `GET /api/live`: the fleet at each cycle, as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! ```text
//! id: 5f2c…-17          which push of which run of this program
//! event: fleet          data: the whole Fleet
//! event: hole           data: {}     pushes were missed: charts have to be asked for anew
//! event: trouble        data: {"error": "…"}   there is no newer one; without an id, and over with the next fleet
//! event: beat           data: {}     every 15 s, without an id: proxies keep the connection, and a browser knows that it
//!                       is not dead (it never hears of comments)
//! ```
//!
//! A browser gets the newest push that it has not had. Whoever is slow gets fewer, and none wait for it in memory. Streams
//! end with the port, which waits for no browser.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use super::board::Push;
use crate::http::Connection;

/// A beat is sent after so long without a push.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// A stream ends after this, and its browser comes again by itself: so it ends with its token.
const AT_MOST: Duration = Duration::from_secs(600);

/// Who found no place comes again after this.
const WITHOUT_PLACE: Duration = Duration::from_secs(60);

/// A browser's stream.
struct Watcher {
    pushes: watch::Receiver<Option<Push>>,
    /// Of this run of the program.
    run: String,
    /// The push that it had last; `None` if it is new here.
    had: Option<u64>,
    /// Missed some before it came.
    has_hole: bool,
    /// The trouble that it was told.
    trouble: Option<Arc<str>>,
    until: Instant,
    connection: Connection,
    _place: Option<OwnedSemaphorePermit>,
}

/// The answer to a browser with these headers, as long as it holds its place; one that found none is to be told so by
/// `pushes`.
pub(crate) fn answer(
    pushes: watch::Receiver<Option<Push>>,
    run: &str,
    headers: &HeaderMap,
    connection: Connection,
    place: Option<OwnedSemaphorePermit>,
) -> Response {
    let last = headers.get("last-event-id").and_then(|it| it.to_str().ok());
    let had = last.and_then(|it| it.strip_prefix(run)?.strip_prefix('-')?.parse().ok());
    // An id of another run: what came between is unknown.
    let has_hole = last.is_some_and(|it| !it.is_empty()) && had.is_none();
    let watcher = Watcher {
        pushes,
        run: run.to_owned(),
        had,
        has_hole,
        trouble: None,
        until: Instant::now() + if place.is_some() { AT_MOST } else { WITHOUT_PLACE },
        connection,
        _place: place,
    };
    let mut response = Response::new(Body::from_stream(watcher.events()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Watcher {
    fn events(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, async |mut watcher| {
            let bytes = watcher.next().await?;
            Some((Ok(bytes), watcher))
        })
    }

    /// The next event; `None` when there will be none.
    async fn next(&mut self) -> Option<Bytes> {
        if Instant::now() >= self.until {
            return None;
        }
        let (had, told) = (self.had, self.trouble.clone());
        let is_new = |push: &Option<Push>| {
            push.as_ref().is_some_and(|it| {
                (it.fleet.is_some() && had != Some(it.number)) || (it.trouble.is_some() && it.trouble != told)
            })
        };
        let push = tokio::select! {
            biased;
            () = self.connection.stopping() => return None,
            push = timeout(SIGN_OF_LIFE, self.pushes.wait_for(is_new)) => match push {
                Err(_) => return Some(Bytes::from_static(b"event: beat\ndata: {}\n\n")),
                Ok(Err(_)) => return None,
                Ok(Ok(push)) => push.clone()?,
            },
        };
        let mut event = Vec::new();
        if let Some(fleet) = push.fleet.filter(|_| self.had != Some(push.number)) {
            let missed = self.had.is_some_and(|had| push.number != had + 1);
            self.had = Some(push.number);
            if missed || std::mem::take(&mut self.has_hole) {
                event.extend_from_slice(b"event: hole\ndata: {}\n\n");
            }
            event.extend_from_slice(
                format!("id: {}-{}\nevent: fleet\ndata: ", self.run, push.number).as_bytes(),
            );
            // JSON has no line feeds within.
            event.extend_from_slice(&fleet);
            event.extend_from_slice(b"\n\n");
        }
        if let Some(trouble) = &push.trouble {
            let data = json!({ "error": **trouble });
            event.extend_from_slice(format!("event: trouble\ndata: {data}\n\n").as_bytes());
        }
        self.trouble = push.trouble;
        Some(event.into())
    }
}
