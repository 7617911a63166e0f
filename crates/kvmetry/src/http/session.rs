//! `/api/session`: a browser shows a token once and gets a cookie for it.
//!
//! The cookie follows from the token: nothing is kept here, it ends with the token (`kvmetry token revoke`), and it outlasts
//! a restart. Scripts cannot read it, other sites cannot have it sent, and it lets nobody write: whoever else on this
//! machine gets it (cookies know no ports) can read with it and no more.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ORIGIN, SET_COOKIE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use super::body::Bodies;
use super::guard::{COOKIE, Guard};
use super::reply::{Problem, json};
use super::tokens::cookie_of;

/// How long a browser keeps the cookie, seconds: a month.
const MAX_AGE_S: u64 = 30 * 86_400;

/// `GET /api/session`.
#[derive(Serialize)]
#[cfg_attr(test, derive(ts_rs::TS))]
pub(crate) struct Session {
    /// Whether a token is needed here.
    pub(super) needed: bool,
    /// Whether this browser has shown one that may read.
    pub(super) login: bool,
}

/// What it takes to log in.
pub(super) struct Logins {
    pub(super) guard: Arc<Guard>,
    pub(super) bodies: Bodies,
    /// Empty, or `/` and something.
    pub(super) base_path: String,
    /// Whether the port speaks TLS itself: then the cookie goes over TLS only.
    pub(super) is_secure: bool,
}

#[derive(Deserialize)]
struct Shown {
    token: String,
}

/// The path and its handlers.
pub(super) fn router(logins: Logins) -> Router {
    Router::new().route("/api/session", get(tell).post(begin).delete(end)).with_state(Arc::new(logins))
}

async fn tell(State(logins): State<Arc<Logins>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    Ok(json(&logins.guard.login(&parts).await?))
}

async fn begin(State(logins): State<Arc<Logins>>, request: Request) -> Result<Response, Problem> {
    // Also where a proxy speaks TLS.
    let https = |it: &HeaderValue| it.as_bytes().starts_with(b"https://");
    let is_secure = logins.is_secure || request.headers().get(ORIGIN).is_some_and(https);
    let Shown { token } = logins.bodies.read_json(request).await?;
    let token = token.trim();
    let is_plain =
        !token.is_empty() && token.bytes().all(|it| it.is_ascii_graphic() && !b"\",;\\".contains(&it));
    if !is_plain || !logins.guard.may_read(token).await? {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "no such token may read here: kvmetry token --scope read makes one",
        ));
    }
    Ok(logins.answer(&cookie_of(token), MAX_AGE_S, is_secure))
}

async fn end(State(logins): State<Arc<Logins>>) -> Response {
    logins.answer("", 0, logins.is_secure)
}

impl Logins {
    fn answer(&self, value: &str, max_age_s: u64, is_secure: bool) -> Response {
        let secure = if is_secure { "; Secure" } else { "" };
        let path = &self.base_path;
        let cookie =
            format!("{COOKIE}={value}; Path={path}/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}");
        let mut response = StatusCode::NO_CONTENT.into_response();
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }
}
