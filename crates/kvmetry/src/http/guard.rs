//! Who is let in: every request passes here first, whatever it is for.
//!
//! ```text
//! Host ──▶ Origin, Sec-Fetch-Site ──▶ token ──▶ scope
//!  421        403                      401, 400  403
//! ```
//!
//! The first two protect a port on loopback from the web pages that its user looks at. A page may send requests to
//! 127.0.0.1 (cross-site request forgery), and may even read the answers once its own name resolves to 127.0.0.1
//! (DNS rebinding); but it can lie about neither its origin nor the name that it asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::READ;
use super::params::Params;
use super::reply::Problem;
use super::session::Session;
use super::tokens::{Known, Scope, Tokens, TokensError};

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// A token, good for anything.
    Token,
    /// A token with this scope.
    Scope(Scope),
}

/// Decides who is let in.
#[derive(Debug)]
pub(crate) struct Guard {
    hosts: Hosts,
    /// `None`: everybody is (`--insecure-no-auth`).
    tokens: Option<Arc<Tokens>>,
    /// Whether a missing file of tokens means that everybody is let in.
    loopback: bool,
}

/// The names and addresses that this server goes by.
#[derive(Debug)]
struct Hosts {
    listen: IpAddr,
    /// Lower case.
    allowed: Vec<String>,
}

impl Guard {
    /// `allowed_hosts` are names and addresses beside loopback and `listen`; without `tokens` nobody needs one.
    pub(crate) fn new(listen: SocketAddr, allowed_hosts: &[String], tokens: Option<Tokens>) -> Self {
        let allowed = allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let listen = listen.ip();
        let tokens = tokens.map(Arc::new);
        Self { hosts: Hosts { listen, allowed }, tokens, loopback: listen.is_loopback() }
    }

    /// Lets a request in or says why not. `local` is this side's address of its connection.
    ///
    /// # Errors
    /// What the client is told.
    pub(crate) async fn admit(&self, request: &Parts, local: IpAddr, needs: Needs) -> Result<(), Problem> {
        let host = self.hosts.check(request, local)?;
        check_origin(request, &host, needs)?;
        let Some(tokens) = &self.tokens else { return Ok(()) };
        if needs == Needs::Nothing {
            return Ok(());
        }
        match tokens.look().await {
            Ok(None) if self.loopback => Ok(()),
            Ok(known) => check_token(request, known.as_ref(), needs),
            Err(error) => Err(cannot_tell(&error)),
        }
    }
}

impl Guard {
    /// How a browser stands that was let in.
    ///
    /// # Errors
    /// What the client is told.
    pub(crate) async fn login(&self, request: &Parts) -> Result<Session, Problem> {
        let open = Session { needed: false, login: true };
        let Some(tokens) = &self.tokens else { return Ok(open) };
        let known = match tokens.look().await {
            Ok(None) if self.loopback => return Ok(open),
            known => known.map_err(|error| cannot_tell(&error))?,
        };
        let login = check_token(request, known.as_ref(), READ).is_ok();
        Ok(Session { needed: true, login })
    }

    /// Whether this token may read.
    ///
    /// # Errors
    /// What the client is told.
    pub(crate) async fn may_read(&self, secret: &str) -> Result<bool, Problem> {
        let Some(tokens) = &self.tokens else { return Ok(true) };
        let known = tokens.look().await.map_err(|error| cannot_tell(&error))?;
        Ok(known.is_some_and(|it| it.find(secret).is_some_and(|it| it.may(Scope::Read))))
    }
}

fn cannot_tell(error: &TokensError) -> Problem {
    let message = "the tokens of this server cannot be read, so nobody is let in; its log says why";
    // The path and the reason are for the log: whoever asks here is not known.
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).because(chain(error))
}

/// An error and its sources in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl Hosts {
    /// The host and port that the client asked for, if they are ours.
    fn check(&self, request: &Parts, local: IpAddr) -> Result<Authority, Problem> {
        // HTTP/2 has `:authority`, which is the target's authority here; HTTP/1 has Host, and a proxy's request a
        // target with authority as well. Where there are two, both must be ours.
        let mut found = request.uri.authority().cloned();
        for value in request.headers.get_all(HOST) {
            let authority = value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
            let Some(authority) = authority else {
                return Err(Problem::wrong("the Host header is malformed"));
            };
            self.check_one(&authority, local)?;
            found.get_or_insert(authority);
        }
        let Some(found) = found else {
            return Err(Problem::wrong("the request has no Host header"));
        };
        self.check_one(&found, local)?;
        Ok(found)
    }

    fn check_one(&self, authority: &Authority, local: IpAddr) -> Result<(), Problem> {
        let host = bare(authority.host());
        if !authority.as_str().contains('@') && self.is_ours(&host, local) {
            return Ok(());
        }
        let message = format!(
            "this server is not known as {host:?}: if it should be, add the name to allowed_hosts under [http] in its \
             configuration, or set KVMETRY_HTTP_ALLOWED_HOSTS"
        );
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, message))
    }

    fn is_ours(&self, host: &str, local: IpAddr) -> bool {
        let ours = match host.parse::<IpAddr>() {
            Ok(ip) => {
                let ip = ip.to_canonical();
                let listen = if self.listen.is_unspecified() { local } else { self.listen };
                ip.is_loopback() || ip == listen.to_canonical()
            }
            Err(_) => host == "localhost",
        };
        ours || self.allowed.iter().any(|allowed| bare(allowed) == host)
    }
}

/// A host in lower case, without the brackets of an IPv6 address and the dot at a name's end.
fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Refuses what a page of another origin sends. Browsers add these headers, pages cannot take them off; other clients
/// send none.
fn check_origin(request: &Parts, host: &Authority, needs: Needs) -> Result<(), Problem> {
    let headers = &request.headers;
    let foreign = |what: &str| {
        let message = format!(
            "a web page of another origin may not use this server ({what}); behind a proxy, let it pass the Host header \
             through as it comes"
        );
        Err(Problem::new(StatusCode::FORBIDDEN, message))
    };
    let says = |name: &str, what: &str| {
        headers.get_all(name).iter().any(|it| it.as_bytes().eq_ignore_ascii_case(what.as_bytes()))
    };
    let site = ["cross-site", "same-site"].into_iter().find(|it| says("sec-fetch-site", it));
    if let Some(site) = site {
        let follows_link = request.method == Method::GET && says("sec-fetch-mode", "navigate");
        let is_let_in = match site {
            // Another port of this machine is the same site; who follows a link from there is a person.
            "same-site" => follows_link,
            // A link in a ticket or a chat may lead to a page, which tells nothing before it has asked itself. No frame.
            _ => follows_link && says("sec-fetch-dest", "document") && needs == Needs::Nothing,
        };
        if !is_let_in {
            return foreign(&format!("Sec-Fetch-Site: {site}"));
        }
    }
    for value in headers.get_all(ORIGIN) {
        let origin = value.to_str().unwrap_or_default();
        if !is_origin_of(origin, host) {
            return foreign(&format!("Origin {origin:?}"));
        }
    }
    Ok(())
}

/// Whether an origin is that of the host which the request is for. The scheme may differ, because a proxy may do TLS
/// in front of this server.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    bare(authority.host()) == bare(host.host()) && port(&authority) == port(host)
}

/// Arrow's client for Go leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn check_token(request: &Parts, known: Option<&Known>, needs: Needs) -> Result<(), Problem> {
    let secret = presented(request)?;
    let token = match &secret {
        // Pages only read, whatever else the token of whoever looks at them may do.
        None if matches!(needs, Needs::Token | READ) => {
            of_cookie(&request.headers).and_then(|it| known?.find_cookie(&it))
        }
        None => None,
        Some(secret) => known.and_then(|it| it.find(secret)),
    };
    match (token, needs) {
        (None, _) => Err(Problem::not_authenticated()),
        (Some(token), Needs::Scope(scope)) if !token.may(scope) => {
            let scope = scope.name();
            let message = format!(
                "the token {:?} is for {}, this needs one for {scope}: kvmetry token --scope {scope}",
                token.name,
                token.scope_names()
            );
            Err(Problem::new(StatusCode::FORBIDDEN, message))
        }
        (Some(_), _) => Ok(()),
    }
}

/// The paths where a token may stand in the query, for clients of InfluxDB 1.x. It is seen in logs of proxies there.
const TOKEN_IN_QUERY: [&str; 2] = ["/write", "/query"];

/// The token that a request shows. The header goes before the query.
fn presented(request: &Parts) -> Result<Option<String>, Problem> {
    let mut headers = request.headers.get_all(AUTHORIZATION).iter();
    let header = match (headers.next(), headers.next()) {
        (None, _) => {
            let allowed = TOKEN_IN_QUERY.contains(&request.uri.path());
            return Ok(if allowed { Params::of(&request.uri).take("p") } else { None });
        }
        (Some(header), None) => header,
        (Some(_), Some(_)) => return Err(malformed("it stands there twice")),
    };
    let Ok(header) = header.to_str() else { return Err(malformed("it has bytes that are not ASCII")) };
    // The words are case-sensitive in InfluxDB, though not in RFC 9110.
    match header.split_once(' ') {
        Some((_, "")) => Err(malformed("there is no token in it")),
        Some((_, token)) if token.contains(' ') => Err(malformed("there are spaces in its token")),
        Some(("Bearer" | "Token", token)) => Ok(Some(token.to_owned())),
        Some(("Basic", encoded)) => {
            let decoded = BASE64.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            match decoded.as_deref().and_then(|text| text.split_once(':')) {
                Some((_user, token)) => Ok(Some(token.to_owned())),
                None => Err(malformed("after Basic there must be base64 of USER:TOKEN")),
            }
        }
        _ => Err(malformed("it begins with none of those words")),
    }
}

/// The cookie that a login leaves, see `session`.
pub(crate) const COOKIE: &str = "kvmetry_token";

/// What a browser shows in place of a token.
fn of_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(axum::http::header::COOKIE);
    let cookies = cookies.iter().filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(';'));
    let mut ours = cookies.filter_map(|it| it.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    ours.next().map(str::to_owned)
}

fn malformed(why: &str) -> Problem {
    Problem::wrong(format!(
        "the Authorization header is malformed: {why}; write Bearer TOKEN, Token TOKEN or Basic with base64 of \
         USER:TOKEN"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Authority {
        text.parse().unwrap()
    }

    #[test]
    fn hosts() {
        #[track_caller]
        fn check(listen: &str, allowed: &[&str], local: &str, host: &str, expect: bool) {
            let allowed: Vec<_> = allowed.iter().map(|host| (*host).to_owned()).collect();
            let guard = Guard::new(SocketAddr::new(listen.parse().unwrap(), 8177), &allowed, None);
            let found = guard.hosts.check_one(&authority(host), local.parse().unwrap()).is_ok();
            assert_eq!(found, expect, "{host} on {listen}");
        }
        let home = "127.0.0.1";
        for host in ["localhost", "LocalHost:1", "localhost.", "127.0.0.1:8177", "127.9.9.9", "[::1]:8177"] {
            check(home, &[], home, host, true);
        }
        check(home, &[], home, "[::ffff:127.0.0.1]", true);
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0"] {
            check(home, &[], home, host, false);
        }
        check(home, &[], home, "me@localhost", false);
        check("10.0.0.1", &[], "10.0.0.1", "10.0.0.1:8177", true);
        check("10.0.0.1", &[], "10.0.0.1", "10.0.0.2:8177", false);
        check("0.0.0.0", &[], "10.0.0.1", "10.0.0.1:8177", true);
        check("0.0.0.0", &[], "10.0.0.1", "10.0.0.2:8177", false);
        check("::", &[], "::ffff:10.0.0.1", "10.0.0.1", true);
        check("fd00::1", &[], "fd00::1", "[fd00::1]:8177", true);
        check(home, &["Kvm.Example", "10.0.0.2"], home, "kvm.example:80", true);
        check(home, &["Kvm.Example", "10.0.0.2"], home, "10.0.0.2", true);
        check(home, &["kvm.example"], home, "a.kvm.example", false);
    }

    #[test]
    fn origins() {
        #[track_caller]
        fn check(origin: &str, host: &str, expect: bool) {
            assert_eq!(is_origin_of(origin, &authority(host)), expect, "{origin} at {host}");
        }
        check("http://localhost:8177", "localhost:8177", true);
        check("http://LOCALHOST:8177", "localhost:8177", true);
        check("https://kvm.example", "kvm.example", true);
        check("https://kvm.example", "kvm.example:443", true);
        check("http://kvm.example", "kvm.example:80", true);
        check("http://[::1]:8177", "[::1]:8177", true);
        check("https://kvm.example", "kvm.example:8177", false);
        check("http://localhost:3000", "localhost:8177", false);
        check("http://127.0.0.1:8177", "localhost:8177", false);
        check("http://evil.example", "localhost:8177", false);
        check("file://localhost:8177", "localhost:8177", false);
        check("null", "localhost:8177", false);
        check("", "localhost:8177", false);
    }
}
