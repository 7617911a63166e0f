//! An answer that is made part by part: as lines of JSON, so that whoever waits sees that it gets on.
//!
//! ```text
//! {"done":0,"of":15}
//! {"done":1,"of":15}
//! …
//! the answer, or {"error":"…"}: by then the status is sent
//! ```
//!
//! An answer of one part is plain JSON. The work is done while the answer is sent: it ends when the browser leaves.

use std::convert::Infallible;
use std::pin::Pin;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use futures_util::{Stream, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use crate::http::{Problem, json as whole};

/// The answer of so many parts. `make` tells how many are done.
///
/// # Errors
/// Those of an answer of one part.
pub(super) async fn answer<T, F>(
    of: usize,
    make: impl FnOnce(watch::Sender<usize>) -> F,
) -> Result<Response, Problem>
where
    T: Serialize + 'static,
    F: Future<Output = Result<T, Problem>> + Send + 'static,
{
    let (sender, done) = watch::channel(0);
    let made = make(sender);
    if of == 1 {
        return Ok(whole(&made.await?));
    }
    let mut response = Response::new(Body::from_stream(lines(Box::pin(made), done, of)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold the lines back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

type Made<T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send>>;

fn lines<T: Serialize + 'static>(
    made: Made<T>,
    done: watch::Receiver<usize>,
    of: usize,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::unfold(Some((made, done)), move |state| async move {
        let (mut made, mut done) = state?;
        tokio::select! {
            biased;
            made = &mut made => {
                let line = match made {
                    Ok(answer) => serde_json::to_vec(&answer),
                    Err(problem) => serde_json::to_vec(&json!({ "error": problem.message() })),
                };
                // Numbers and texts can always be written.
                let mut line = line.unwrap_or_default();
                line.push(b'\n');
                Some((Ok(line.into()), None))
            }
            // It holds the sender until it is done.
            Ok(()) = done.changed() => {
                let done_parts = *done.borrow_and_update();
                let line = format!("{}\n", json!({ "done": done_parts, "of": of }));
                Some((Ok(line.into()), Some((made, done))))
            }
        }
    })
}
