//! Answers that say no: status, body in the shape of their endpoint, and what a client may do next.
//!
//! InfluxDB 3 has three shapes, and clients look for them:
//!
//! ```text
//! {"error":"…"}  or  {"error":"…","data":…}     most endpoints
//! {"code":"invalid","message":"…"}              /api/v2/write
//! plain text                                    a few answers of the write endpoints
//! ```
//!
//! It sends them without a content type; here they have theirs.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

/// An answer that nobody keeps.
pub(crate) fn json(answer: &impl Serialize) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // Numbers and texts can always be written.
    (headers, serde_json::to_vec(answer).unwrap_or_default()).into_response()
}

/// A refusal on its way to the client.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    message: String,
    shape: Shape,
    /// Beside `error`.
    more: Map<String, Value>,
    retry_after: Option<Duration>,
    /// The methods that there are.
    allow: Option<String>,
    secret_cause: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Error,
    V2,
    Text,
}

impl Problem {
    /// `{"error": message}`.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            shape: Shape::Error,
            more: Map::new(),
            retry_after: None,
            allow: None,
            secret_cause: None,
        }
    }

    /// As [`Problem::new`] with 400: the request is wrong.
    pub(crate) fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// No token, or one that is not known: the same words for both.
    pub(crate) fn not_authenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the request was not authenticated")
    }

    /// The methods that there are instead.
    pub(crate) fn wrong_method(method: &str, path: &str, allowed: &str) -> Self {
        let message = format!("{method} is not for {path}: use {}", allowed.replace(", ", " or "));
        Self { allow: Some(allowed.to_owned()), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// Adds a key beside `error`; other shapes leave it out.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.more.insert(key.to_owned(), value);
        self
    }

    /// Says when to come again.
    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Plain text.
    pub(crate) fn text(mut self) -> Self {
        self.shape = Shape::Text;
        self
    }

    /// `{"code":…,"message":…}`.
    pub(crate) fn v2(mut self) -> Self {
        self.shape = Shape::V2;
        self
    }

    /// Why, for the log and not for the client.
    pub(crate) fn because(mut self, cause: String) -> Self {
        self.secret_cause = Some(cause);
        self
    }

    pub(crate) fn secret_cause(&self) -> Option<&str> {
        self.secret_cause.as_deref()
    }

    /// For the log.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// As a client of gRPC understands it: the status in headers, without a body ("Trailers-Only" in gRPC's
    /// `PROTOCOL-HTTP2.md`).
    pub(crate) fn into_grpc(self) -> Response {
        let code = match self.status.as_u16() {
            400 | 414 => "3",
            401 => "16",
            403 | 421 => "7",
            404 | 405 => "12",
            408 => "4",
            413 => "11",
            503 => "14",
            _ => "13",
        };
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        // gRPC percent-encodes it; these messages hold nothing but what a header may have, or they are left out.
        let encoded = self.message.replace('%', "%25");
        if let Some(message) = HeaderValue::from_str(&encoded).ok().filter(|text| text.to_str().is_ok()) {
            headers.insert("grpc-message", message);
        }
        response
    }

    fn code(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not found",
            405 => "method not allowed",
            408 => "timeout",
            413 => "request too large",
            422 => "unprocessable entity",
            503 => "unavailable",
            status if status >= 500 => "internal error",
            _ => "invalid",
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let json = |value: Value| (HeaderValue::from_static("application/json"), value.to_string());
        let (content_type, body) = match self.shape {
            Shape::Text => (HeaderValue::from_static("text/plain; charset=utf-8"), self.message),
            Shape::V2 => json(serde_json::json!({ "code": self.code(), "message": self.message })),
            Shape::Error => {
                let mut object = Map::from_iter([("error".to_owned(), Value::from(self.message))]);
                object.extend(self.more);
                json(Value::Object(object))
            }
        };
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        if let Some(after) = self.retry_after {
            // Whole seconds, and not at once.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            headers.insert(ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Not Basic: a browser would ask for a password over every page of the dashboard.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kvmetry\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_grpc_gets_a_status_of_grpc() {
        #[track_caller]
        fn check(status: u16, message: &str, expect: (&str, Option<&str>)) {
            let problem = Problem::new(StatusCode::from_u16(status).unwrap(), message);
            let response = problem.into_grpc();
            let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(response.status(), 200);
            assert_eq!((header("grpc-status").unwrap(), header("grpc-message")), expect);
        }
        check(401, "who", ("16", Some("who")));
        check(403, "100% no", ("7", Some("100%25 no")));
        check(421, "host", ("7", Some("host")));
        check(503, "busy", ("14", Some("busy")));
        check(408, "slow", ("4", Some("slow")));
        check(413, "large", ("11", Some("large")));
        check(500, "ä\n", ("13", None));
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, expect) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (30_000, "30")] {
            let response = Problem::wrong("").retry_after(Duration::from_millis(millis)).into_response();
            assert_eq!(response.headers()[RETRY_AFTER], expect);
        }
    }
}
