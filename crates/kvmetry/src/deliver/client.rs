//! Requests to InfluxDB 3, 2 and 1, and to other servers that speak their line protocol.
//!
//! | api | a write | a database is made by |
//! |---|---|---|
//! | v3 | `POST /api/v3/write_lp?db=&precision=nanosecond`, `Bearer` | `POST /api/v3/configure/database` |
//! | v2 | `POST /api/v2/write?bucket=&org=&precision=ns`, `Token` | nobody: a bucket needs an organisation's id |
//! | v1 | `POST /write?db=&precision=ns`, `Token`, or `Basic` for user:password | `POST /query`, `CREATE DATABASE` |
//!
//! Bodies go gzip compressed, and never with `no_sync`: what such a write is answered can be lost. What an answer
//! means is decided in [`answer`](super::answer). Redirects are not followed: the token would go where nobody sent
//! it.
//!
//! Sources: InfluxDB 3 Core's answers as observed on 3.10; InfluxDB 2's and 1's API references (`/api/v2/write`,
//! `/write`, `/query`).

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde_json::json;

use super::answer::{Answer, Verdict, chain, clean, is_empty_write, judge, no_answer};
use crate::config::{Api, InfluxDb, TOKEN_VARIABLE, is_loopback};

/// Longer than any sane way to a server, shorter than a person's patience with `check`.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole request: a server that has not answered by then (InfluxDB 3 with a full disk hangs) is asked anew.
pub(super) const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
/// An unused connection is closed after this time: several cycles, and no connection of a dead server for long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest token file, bytes: a token of any kind is smaller.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// A server's configuration that cannot be used: the user's to mend.
#[derive(Debug, thiserror::Error)]
#[error("[[influxdb]] {url}: {problem}")]
pub(crate) struct ClientError {
    url: String,
    problem: String,
}

/// One server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: InfluxDb,
    /// The token of the environment, where there is no file.
    token: Option<String>,
}

/// What came of making a database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Creation {
    /// It is there now, made with its retention.
    Made,
    /// It was there.
    Exists,
    /// This server makes none for us; lines may be taken all the same.
    Refused { why: String },
    /// The server did not say: it is asked again.
    Unknown(Verdict),
}

impl Client {
    /// Prepares the client; asks nothing yet. A missing token file is no error here: it may come later.
    ///
    /// # Errors
    /// A certificate authority that cannot be read.
    pub(crate) fn new(server: &InfluxDb) -> Result<Self, ClientError> {
        let refused = |problem| ClientError { url: server.url.clone(), problem };
        let url = write_url(server, &server.database, false).map_err(&refused)?;
        let http = http_client(server, &url).map_err(&refused)?;
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.trim().is_empty());
        Ok(Self { http, server: server.clone(), token })
    }

    pub(crate) fn server(&self) -> &InfluxDb {
        &self.server
    }

    /// A request that has no token yet, see [`authorize`](Self::authorize).
    pub(super) fn post_to(&self, url: reqwest::Url) -> reqwest::RequestBuilder {
        self.http.post(url)
    }

    /// Sends lines, gzip compressed, to a database. `strict` (v3 only): store all of them or none.
    pub(super) async fn post(&self, database: &str, gzip: Vec<u8>, strict: bool) -> Verdict {
        let url = match write_url(&self.server, database, strict) {
            Ok(url) => url,
            Err(why) => return Verdict::NeedsAPerson { why },
        };
        let request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(CONTENT_ENCODING, "gzip")
            .body(gzip);
        match self.ask(request).await {
            Ok(answer) => judge(&self.server, database, &answer),
            Err(verdict) => verdict,
        }
    }

    /// Makes a database that keeps its points for so long (zero: for ever), unless it is there.
    pub(super) async fn create(&self, database: &str, retention: Duration) -> Creation {
        let path = match self.server.api {
            Api::V3 => "/api/v3/configure/database",
            Api::V1 => "/query",
            Api::V2 => {
                let why = "with api = \"v2\" buckets are not made here".to_owned();
                return Creation::Refused { why };
            }
        };
        let mut url = match reqwest::Url::parse(&self.server.url) {
            Ok(url) => url,
            Err(error) => return Creation::Refused { why: format!("not a URL: {error}") },
        };
        url.set_path(&format!("{}{path}", base_path(&self.server.url)));
        let (content_type, body) = match self.server.api {
            Api::V3 => ("application/json", create_v3(database, retention)),
            _ => ("application/x-www-form-urlencoded", create_v1(database, retention)),
        };
        let request = self.http.post(url).header(CONTENT_TYPE, content_type).body(body);
        match self.ask(request).await {
            Ok(answer) => created(&self.server, database, &answer),
            Err(verdict) => Creation::Unknown(verdict),
        }
    }

    /// Sends a request with the token. Where no answer came, what that means.
    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<Answer, Verdict> {
        let request = self.authorize(request).map_err(|why| Verdict::NeedsAPerson { why })?;
        match request.send().await {
            Ok(response) => Ok(Answer::read(response).await),
            Err(error) => Err(no_answer(&error)),
        }
    }

    /// Adds the token. The file is read anew every time, so that a new token is used at once.
    pub(super) fn authorize(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::RequestBuilder, String> {
        let (token, source) = match (&self.server.token_file, &self.token) {
            (Some(path), _) => (read_token(path)?, path.display().to_string()),
            (None, Some(token)) => (token.trim().to_owned(), TOKEN_VARIABLE.to_owned()),
            (None, None) => return Ok(request),
        };
        if let (Api::V1, Some((user, password))) = (self.server.api, token.split_once(':')) {
            return Ok(request.basic_auth(user, Some(password)));
        }
        let scheme = if self.server.api == Api::V3 { "Bearer" } else { "Token" };
        let mut value = HeaderValue::from_str(&format!("{scheme} {token}"))
            .map_err(|_| format!("the token in {source} has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }
}

/// Whether a server would take our lines: asks its `/ping` who it is, and sends it a write without lines, which every
/// server answers only after it has looked at the token and the database. Returns what the server says it is.
///
/// # Errors
/// What is wrong, in one line that says what to do.
pub(crate) async fn probe(server: &InfluxDb) -> Result<String, String> {
    let client = Client::new(server).map_err(|error| error.to_string())?;
    let write = write_url(server, &server.database, false)?;
    let mut ping = write.clone();
    ping.set_query(None);
    ping.set_path(&format!("{}/ping", base_path(&server.url)));
    let mut version = None;
    // A server that knows no ping may take lines all the same: the write decides.
    for request in [client.http.get(ping), client.http.post(write.clone()).header(CONTENT_LENGTH, 0)] {
        let response = match client.authorize(request)?.send().await {
            Ok(response) => response,
            Err(error) => return Err(no_answer(&error).why()),
        };
        let told = response.headers().get("x-influxdb-version").and_then(|value| value.to_str().ok());
        version = version.or_else(|| told.map(clean));
        let is_write = response.url() == &write;
        let answer = Answer::read(response).await;
        if is_write && !(answer.status == StatusCode::NO_CONTENT || is_empty_write(&answer)) {
            return Err(judge(server, &server.database, &answer).why());
        }
    }
    let who = version
        .map_or_else(|| "a server that does not tell its version".to_owned(), |v| format!("InfluxDB {v}"));
    Ok(format!("{who} takes lines for database {:?}", server.database))
}

fn write_url(server: &InfluxDb, database: &str, strict: bool) -> Result<reqwest::Url, String> {
    let mut url = reqwest::Url::parse(&server.url).map_err(|error| format!("not a URL: {error}"))?;
    let (path, key, precision) = match server.api {
        Api::V3 => ("/api/v3/write_lp", "db", "nanosecond"),
        Api::V2 => ("/api/v2/write", "bucket", "ns"),
        Api::V1 => ("/write", "db", "ns"),
    };
    url.set_path(&format!("{}{path}", base_path(&server.url)));
    url.query_pairs_mut().append_pair(key, database).append_pair("precision", precision);
    if strict && server.api == Api::V3 {
        url.query_pairs_mut().append_pair("accept_partial", "false");
    }
    if let Some(org) = &server.org {
        url.query_pairs_mut().append_pair("org", org);
    }
    Ok(url)
}

/// The path that a server behind a proxy may have, without a slash at its end.
pub(super) fn base_path(url: &str) -> String {
    reqwest::Url::parse(url).map_or_else(|_| String::new(), |url| url.path().trim_end_matches('/').to_owned())
}

/// What InfluxDB 3 is told to make a database.
fn create_v3(database: &str, retention: Duration) -> String {
    match retention.is_zero() {
        true => json!({ "db": database }).to_string(),
        false => json!({ "db": database, "retention_period": period(retention) }).to_string(),
    }
}

/// What InfluxDB 1 is told, as a form. The database's default retention policy gets the duration.
fn create_v1(database: &str, retention: Duration) -> String {
    let name = database.replace('\\', "\\\\").replace('"', "\\\"");
    let duration = match retention.is_zero() {
        true => String::new(),
        false => format!(" WITH DURATION {}", period(retention)),
    };
    let statement = format!("CREATE DATABASE \"{name}\"{duration}");
    let escaped = percent_encoding::utf8_percent_encode(&statement, percent_encoding::NON_ALPHANUMERIC);
    format!("q={escaped}")
}

/// A time as InfluxDB writes it: whole days, hours or, else, seconds.
fn period(time: Duration) -> String {
    match time.as_secs() {
        secs if secs.is_multiple_of(86_400) => format!("{}d", secs / 86_400),
        secs if secs.is_multiple_of(3600) => format!("{}h", secs / 3600),
        secs => format!("{secs}s"),
    }
}

/// What an answer to the wish for a database means.
fn created(server: &InfluxDb, database: &str, answer: &Answer) -> Creation {
    let json = answer.json();
    match answer.status.as_u16() {
        200..=299 if server.api == Api::V1 => match json["results"][0]["error"].as_str() {
            // It is there with another duration, which stays.
            Some(error) if error.contains("conflicts with an existing policy") => Creation::Exists,
            Some(error) => Creation::Refused { why: clean(error) },
            // InfluxDB 1 does not tell whether it was there.
            None if json["results"].is_array() => Creation::Made,
            None => Creation::Refused { why: format!("it answers {}", answer.reason()) },
        },
        200..=299 => Creation::Made,
        409 => Creation::Exists,
        408 | 429 | 500 | 502..=599 => Creation::Unknown(judge(server, database, answer)),
        _ => Creation::Refused { why: answer.reason() },
    }
}

fn http_client(server: &InfluxDb, url: &reqwest::Url) -> Result<reqwest::Client, String> {
    // reqwest takes the process's provider; it is already there when another client was built before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("kvmetry/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TOTAL_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(1)
        .redirect(reqwest::redirect::Policy::none())
        // Whoever delivers tries again, and counts it.
        .retry(reqwest::retry::never());
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    if let Some(ca) = &server.ca {
        let refused = |error: &dyn std::fmt::Display| format!("ca {}: {error}", ca.display());
        let pem = std::fs::read(ca).map_err(|error| refused(&error))?;
        let authorities =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| refused(&"it is not in PEM format"))?;
        if authorities.is_empty() {
            return Err(refused(&"there is no certificate (BEGIN CERTIFICATE) in it"));
        }
        builder = builder.tls_certs_only(authorities);
    } else if url.scheme() == "http" {
        // Not to load a hundred authorities that nobody asks.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| format!("the HTTP client cannot be prepared: {}", chain(&error)))
}

fn read_token(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let refused = |problem: &str| format!("token_file {}: {problem}", path.display());
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| refused(&format!("cannot be read: {error}")))?;
    if text.len() as u64 > MAX_TOKEN_BYTES {
        return Err(refused("too large for a token; is it the right file"));
    }
    match text.trim() {
        "" => Err(refused("is empty; it must hold the token and nothing else")),
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{body_of, server};
    use super::*;

    #[test]
    fn each_api_has_its_write_url() {
        #[track_caller]
        fn check(url: &str, api: Api, database: &str, org: Option<&str>, strict: bool, expect: &str) {
            let server =
                InfluxDb { url: url.to_owned(), org: org.map(str::to_owned), ..server("http://b", api) };
            assert_eq!(write_url(&server, database, strict).unwrap().as_str(), expect);
        }
        let v3 = "http://a:8181/api/v3/write_lp?db=kvm&precision=nanosecond";
        check("http://a:8181", Api::V3, "kvm", None, false, v3);
        check("http://a:8181", Api::V3, "kvm", None, true, &format!("{v3}&accept_partial=false"));
        check(
            "https://a/influx",
            Api::V2,
            "my vms",
            Some("a&b"),
            true,
            "https://a/influx/api/v2/write?bucket=my+vms&precision=ns&org=a%26b",
        );
        check("http://[::1]:8086", Api::V1, "kvm", None, true, "http://[::1]:8086/write?db=kvm&precision=ns");
    }

    #[test]
    fn a_database_is_made_with_its_retention() {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        assert_eq!(create_v3("kvm", days(30)), r#"{"db":"kvm","retention_period":"30d"}"#);
        assert_eq!(create_v3("k\"m", days(0)), r#"{"db":"k\"m"}"#);
        let form = |text: String| body_of(&text);
        assert_eq!(form(create_v1("kvm", days(7))), r#"CREATE DATABASE "kvm" WITH DURATION 7d"#);
        assert_eq!(form(create_v1("a\"\\ b", days(0))), r#"CREATE DATABASE "a\"\\ b""#);
        assert_eq!(period(Duration::from_secs(36 * 3600)), "36h");
        assert_eq!(period(Duration::from_secs(5400)), "5400s");
    }

    #[test]
    fn what_came_of_making_a_database() {
        #[track_caller]
        fn check(api: Api, status: u16, body: &str, expect: &str) {
            let answer = Answer::of(status, body);
            let found = format!("{:?}", created(&server("http://b", api), "kvm", &answer));
            assert!(found.starts_with(expect), "{found}");
        }
        check(Api::V3, 200, "", "Made");
        check(Api::V3, 409, r#"{"error":"attempted to create a resource that already exists"}"#, "Exists");
        check(Api::V3, 401, "", "Refused { why: \"status 401\" }");
        check(Api::V3, 403, "", "Refused");
        check(Api::V3, 404, "", "Refused");
        check(Api::V3, 422, "too many databases", "Refused { why: \"status 422, too many databases\" }");
        check(Api::V3, 501, "", "Refused");
        check(Api::V3, 503, "", "Unknown(Retry");
        check(Api::V1, 200, r#"{"results":[{"statement_id":0}]}"#, "Made");
        let conflict = r#"{"results":[{"statement_id":0,"error":"retention policy conflicts with an existing policy"}]}"#;
        check(Api::V1, 200, conflict, "Exists");
        let refused = r#"{"results":[{"statement_id":0,"error":"invalid name"}]}"#;
        check(Api::V1, 200, refused, "Refused { why: \"invalid name\" }");
        check(Api::V1, 200, "<html>", "Refused");
        check(Api::V1, 403, r#"{"error":"error authorizing query: not admin"}"#, "Refused");
    }

    #[test]
    fn a_token_file_holds_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_token(&path)
        };
        assert_eq!(read(" apiv3_abc\n").unwrap(), "apiv3_abc");
        assert!(read("\n").unwrap_err().ends_with("is empty; it must hold the token and nothing else"));
        assert!(read(&"x".repeat(20_000)).unwrap_err().contains("too large"));
        std::fs::remove_file(&path).unwrap();
        assert!(read_token(&path).unwrap_err().contains("cannot be read: No such file"));
    }

    #[test]
    fn a_certificate_authority_that_is_none_is_refused_at_start() {
        #[track_caller]
        fn check(pem: Option<&str>, part: &str) {
            let folder = tempfile::tempdir().unwrap();
            let ca = folder.path().join("ca.pem");
            if let Some(pem) = pem {
                std::fs::write(&ca, pem).unwrap();
            }
            let server = InfluxDb { ca: Some(ca), ..server("https://influx.example", Api::V3) };
            let Err(error) = Client::new(&server) else { panic!("{pem:?} was taken") };
            assert!(error.to_string().contains(part), "{error}");
        }
        check(None, "ca.pem: No such file");
        check(Some("hello"), "there is no certificate");
        check(Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), "ca.pem: ");
    }
}
