//! HTTP POST of line protocol to InfluxDB 3, 2 and 1.
//!
//! | api | request | what a bad line costs |
//! |---|---|---|
//! | v3 | `POST /api/v3/write_lp?db=&precision=nanosecond`, `Bearer` | itself: the others are stored |
//! | v2 | `POST /api/v2/write?bucket=&org=&precision=ns`, `Token` | the whole request, or itself (`dropped=N`) |
//! | v1 | `POST /write?db=&precision=ns`, `Token`, or `Basic` for user:password | itself (`dropped=N`) |
//!
//! Bodies go gzip compressed. What an answer means is decided by [`judge`], which does no I/O. Writing
//! the same points twice is harmless (same measurement, tags and time: the last one wins), so whatever is in doubt
//! is sent again. Redirects are not followed: the token would go where nobody sent it.
//!
//! Sources: InfluxDB 3 Core's answers as observed on 3.10; InfluxDB 2's and 1's API references (`/api/v2/write`,
//! `/write`).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::StatusCode;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER,
};

use super::{Batch, OutputError, Verdict};
use crate::config::{Api, InfluxDb, TOKEN_VARIABLE, is_loopback};

/// Waiting batches are put together up to this many bytes a request, before compression. InfluxDB 3 answers a
/// write only when it has synced its log, once a second, so many hosts' cycles must share a request; its own
/// limit is 10 MiB.
pub(super) const PREFERRED_POST_BYTES: usize = 4 << 20;

/// Longer than any sane way to a server, shorter than a person's patience with `check`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole request: a server that has not answered by then (InfluxDB 3 with a full disk hangs) is asked anew.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
/// An unused connection is closed after this time: several cycles, and no connection of a dead server for long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// An answer is read up to this many bytes: some thousand refused lines.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The largest token file, bytes: a token of any kind is smaller.
const MAX_TOKEN_BYTES: u64 = 16 << 10;
/// The longest piece of a server's answer that a message repeats, characters.
const MAX_REASON_CHARS: usize = 200;

/// One server.
pub(super) struct Client {
    http: reqwest::Client,
    write_url: reqwest::Url,
    server: InfluxDb,
    /// The token of the environment, where there is no file.
    token: Option<String>,
}

impl Client {
    /// Prepares the client; asks nothing yet. A missing token file is no error here: it may come later.
    pub(super) fn new(server: &InfluxDb) -> Result<Self, OutputError> {
        let refused = |problem| OutputError::InfluxDb { url: server.url.clone(), problem };
        let write_url = write_url(server).map_err(&refused)?;
        let http = http_client(server, &write_url).map_err(&refused)?;
        let token = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.trim().is_empty());
        Ok(Self { http, write_url, server: server.clone(), token })
    }

    /// Sends these batches as one request.
    pub(super) async fn post(&self, batches: &[Batch]) -> Verdict {
        let lines = batches.iter().map(|batch| u64::from(batch.line_count)).sum();
        let parts: Vec<_> = batches.iter().map(|batch| batch.lines.clone()).collect();
        // Megabytes after an outage take tens of milliseconds: not on a thread that others need.
        let body = tokio::task::spawn_blocking(move || compress(&parts)).await;
        let body = match body.map_err(std::io::Error::other).and_then(|body| body) {
            Ok(body) => body,
            Err(error) => {
                return Verdict::Retry {
                    why: format!("the request cannot be compressed: {error}"),
                    after: None,
                };
            }
        };
        let request = self
            .http
            .post(self.write_url.clone())
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(CONTENT_ENCODING, "gzip")
            .body(body);
        let request = match self.authorize(request) {
            Ok(request) => request,
            Err(why) => return Verdict::NeedsAPerson { why },
        };
        match request.send().await {
            Ok(response) => judge(&self.server, &Answer::read(response).await, lines),
            Err(error) => no_answer(&error),
        }
    }

    /// Adds the token. The file is read anew every time, so that a new token is used at once.
    fn authorize(&self, request: reqwest::RequestBuilder) -> Result<reqwest::RequestBuilder, String> {
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
    let mut ping = client.write_url.clone();
    ping.set_query(None);
    ping.set_path(&format!("{}/ping", base_path(&server.url)));
    let mut version = None;
    // A server that knows no ping may take lines all the same: the write decides.
    for request in
        [client.http.get(ping), client.http.post(client.write_url.clone()).header(CONTENT_LENGTH, 0)]
    {
        let response = match client.authorize(request)?.send().await {
            Ok(response) => response,
            Err(error) => return Err(no_answer(&error).why()),
        };
        let told = response.headers().get("x-influxdb-version").and_then(|value| value.to_str().ok());
        version = version.or_else(|| told.map(clean));
        let is_write = response.url() == &client.write_url;
        let answer = Answer::read(response).await;
        if is_write && !(answer.status.is_success() || is_empty_write(&answer)) {
            return Err(judge(server, &answer, 0).why());
        }
    }
    let who = version
        .map_or_else(|| "a server that does not tell its version".to_owned(), |v| format!("InfluxDB {v}"));
    Ok(format!("{who} takes lines for database {:?}", server.database))
}

/// The server says that there was nothing to write, which it says after all else was right: InfluxDB 3, InfluxDB 2.
fn is_empty_write(answer: &Answer) -> bool {
    let text = String::from_utf8_lossy(&answer.body);
    answer.status == StatusCode::BAD_REQUEST
        && ["incoming write was empty", "writing requires points"].iter().any(|words| text.contains(words))
}

impl Verdict {
    /// The reason, for a person.
    fn why(self) -> String {
        match self {
            Self::Delivered { why, .. }
            | Self::Refused { why }
            | Self::TooLarge { why }
            | Self::Retry { why, .. }
            | Self::NeedsAPerson { why } => why,
            Self::Closed(closed) => format!("{closed:?}"),
        }
    }
}

fn write_url(server: &InfluxDb) -> Result<reqwest::Url, String> {
    let mut url = reqwest::Url::parse(&server.url).map_err(|error| format!("not a URL: {error}"))?;
    let (path, database, precision) = match server.api {
        Api::V3 => ("/api/v3/write_lp", "db", "nanosecond"),
        Api::V2 => ("/api/v2/write", "bucket", "ns"),
        Api::V1 => ("/write", "db", "ns"),
    };
    url.set_path(&format!("{}{path}", base_path(&server.url)));
    url.query_pairs_mut().append_pair(database, &server.database).append_pair("precision", precision);
    if let Some(org) = &server.org {
        url.query_pairs_mut().append_pair("org", org);
    }
    Ok(url)
}

/// The path that a server behind a proxy may have, without a slash at its end.
fn base_path(url: &str) -> String {
    reqwest::Url::parse(url).map_or_else(|_| String::new(), |url| url.path().trim_end_matches('/').to_owned())
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
        // The queue tries again, and counts it.
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

fn compress(parts: &[std::sync::Arc<Vec<u8>>]) -> std::io::Result<Vec<u8>> {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    // Names and tags repeat from line to line: the fastest level already makes a tenth of them.
    let mut encoder = GzEncoder::new(Vec::with_capacity(size / 8), Compression::fast());
    for part in parts {
        encoder.write_all(part)?;
    }
    encoder.finish()
}

/// What a server answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    location: Option<String>,
    /// The first [`MAX_ANSWER_BYTES`] of the body.
    body: Vec<u8>,
}

impl Answer {
    async fn read(mut response: reqwest::Response) -> Self {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let mut answer = Self {
            status: response.status(),
            // Seconds; the other form, a date, is not used by InfluxDB and needs a clock that is right.
            retry_after: header(RETRY_AFTER)
                .and_then(|text| text.trim().parse().ok())
                .map(Duration::from_secs),
            location: header(LOCATION).map(str::to_owned),
            body: Vec::new(),
        };
        // The status is what counts: an answer that breaks off is judged by what came.
        while let Ok(Some(piece)) = response.chunk().await {
            let room = MAX_ANSWER_BYTES - answer.body.len();
            answer.body.extend_from_slice(&piece[..piece.len().min(room)]);
            if answer.body.len() == MAX_ANSWER_BYTES {
                break;
            }
        }
        answer
    }

    /// The body as JSON; InfluxDB 3 gives no content type, so it is tried.
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }

    /// The server's own words in lower case, to look for signs in.
    fn words(&self) -> String {
        let json = self.json();
        match json["error"].as_str().or(json["message"].as_str()) {
            Some(said) => said.to_lowercase(),
            None => String::from_utf8_lossy(&self.body).to_lowercase(),
        }
    }

    /// What the server says is wrong, in one short line.
    fn reason(&self) -> String {
        let json = self.json();
        let first_line = &json["data"];
        let first_line = if first_line.is_array() { &first_line[0] } else { first_line };
        let parts = [&json["error"], &json["message"], &first_line["error_message"]];
        let mut said: Vec<String> = parts
            .iter()
            .filter_map(|part| part.as_str())
            .filter(|text| !text.is_empty())
            .map(clean)
            .collect();
        if let Some(line) = first_line["line_number"].as_u64() {
            said.push(format!("line {line}"));
        }
        if said.is_empty() {
            said.push(clean(&String::from_utf8_lossy(&self.body)));
        }
        let status = self.status.as_u16();
        let said = said.join(": ");
        if said.is_empty() { format!("status {status}") } else { format!("status {status}, {said}") }
    }
}

/// What an answer means for the `lines` of its request.
fn judge(server: &InfluxDb, answer: &Answer, lines: u64) -> Verdict {
    let why = answer.reason();
    match answer.status.as_u16() {
        200..=299 => Verdict::delivered(),
        300..=399 => Verdict::NeedsAPerson {
            why: match &answer.location {
                Some(to) => format!("the server redirects to {:?}; set url to that server", clean(to)),
                None => format!("the server redirects ({why}); set url to the right server"),
            },
        },
        400 | 422 => match refused_lines(answer) {
            Some(refused) => Verdict::Delivered { refused_lines: refused.min(lines), why },
            None if is_about_lines(answer) => Verdict::Refused { why },
            None if asks_for_org(answer) => Verdict::NeedsAPerson {
                why: format!("the server wants to know the organisation ({why}); set org"),
            },
            None => Verdict::NeedsAPerson { why: format!("the server does not accept the request ({why})") },
        },
        401 | 403 => Verdict::NeedsAPerson {
            why: format!(
                "the server refuses the token ({why}); put one that may write to {:?} into {}",
                server.database,
                server.token_file.as_ref().map_or(PathBuf::from(TOKEN_VARIABLE), Clone::clone).display()
            ),
        },
        404 if answer.words().contains("organization") => Verdict::NeedsAPerson {
            why: format!("the server does not know the organisation ({why}); set org"),
        },
        404 => Verdict::NeedsAPerson {
            why: format!(
                "the server does not know the database {:?} or has no such API ({why}); make the database, or \
                 set api and url",
                server.database
            ),
        },
        408 | 429 | 500..=599 => Verdict::Retry { why, after: answer.retry_after },
        413 => Verdict::TooLarge { why },
        _ => Verdict::NeedsAPerson { why: format!("the server does not accept the request ({why})") },
    }
}

/// How many lines were refused, where the others are stored.
fn refused_lines(answer: &Answer) -> Option<u64> {
    let json = answer.json();
    // InfluxDB 3: the list of refused lines.
    if let Some(refused) = json["data"].as_array() {
        return u64::try_from(refused.len()).ok();
    }
    let text = String::from_utf8_lossy(&answer.body);
    // The same list, but so long that its end was not read: at least these.
    let cut = answer.body.len() == MAX_ANSWER_BYTES && json.is_null();
    if cut && text.contains("partial write") {
        return u64::try_from(text.matches("\"line_number\"").count()).ok();
    }
    // InfluxDB 1 and 2: "partial write: field type conflict: ... dropped=2".
    if text.contains("partial write") {
        let after = text.rsplit_once("dropped=")?.1;
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        // InfluxDB 1.6 names each line that it cannot parse, and counts none of them: "dropped=0".
        let unparsed = u64::try_from(text.matches("unable to parse '").count()).ok()?;
        return Some(digits.parse::<u64>().ok()?.max(unparsed));
    }
    None
}

/// Whether a 400 or 422 is about the lines, so that the same request will never be taken. Only words that servers
/// use for lines and nothing else count: the lines of any other request wait until a person has mended it.
/// (InfluxDB 2's `"code":"invalid"` is no such word: it stands in every 400.)
fn is_about_lines(answer: &Answer) -> bool {
    let said = answer.words();
    let signs = ["line protocol", "partial write", "unable to parse '", "column type", "field type conflict"];
    signs.iter().any(|sign| said.contains(sign))
}

/// Whether InfluxDB 2 misses the organisation: "Please provide either orgID or org".
fn asks_for_org(answer: &Answer) -> bool {
    answer.words().contains("orgid")
}

/// What it means that no answer came.
fn no_answer(error: &reqwest::Error) -> Verdict {
    let why = chain(error);
    if error.is_timeout() {
        let limit = if error.is_connect() { CONNECT_TIMEOUT } else { TOTAL_TIMEOUT };
        return Verdict::Retry { why: format!("no answer within {} s", limit.as_secs()), after: None };
    }
    if why.contains("certificate") {
        let why = format!(
            "the server's certificate is not accepted ({why}); set ca to the authority that signed it"
        );
        return Verdict::NeedsAPerson { why };
    }
    Verdict::Retry { why, after: None }
}

/// An error's last cause, which says what happened, after its first, which says where.
fn chain(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let what = if error.is_connect() { "cannot connect" } else { "the request failed" };
    format!("{what}: {}", clean(&last.to_string().to_lowercase()))
}

/// A peer's text for our log: one line, no control characters, not long.
fn clean(text: &str) -> String {
    let mut cleaned: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect();
    if cleaned.len() < text.trim().len() {
        cleaned.push('…');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(api: Api) -> InfluxDb {
        InfluxDb {
            url: "http://127.0.0.1:8181".to_owned(),
            api,
            database: "kvmetry".to_owned(),
            org: None,
            token_file: None,
            ca: None,
        }
    }

    #[test]
    fn each_api_has_its_write_url() {
        #[track_caller]
        fn check(url: &str, api: Api, database: &str, org: Option<&str>, expect: &str) {
            let server = InfluxDb {
                url: url.to_owned(),
                database: database.to_owned(),
                org: org.map(str::to_owned),
                ..server(api)
            };
            assert_eq!(write_url(&server).unwrap().as_str(), expect);
        }
        check(
            "http://a:8181",
            Api::V3,
            "kvm",
            None,
            "http://a:8181/api/v3/write_lp?db=kvm&precision=nanosecond",
        );
        check(
            "https://a/influx",
            Api::V2,
            "my vms",
            Some("a&b"),
            "https://a/influx/api/v2/write?bucket=my+vms&precision=ns&org=a%26b",
        );
        check("http://[::1]:8086", Api::V1, "kvm", None, "http://[::1]:8086/write?db=kvm&precision=ns");
    }

    /// An answer to a request of 10 lines.
    #[track_caller]
    fn check(api: Api, status: u16, body: &str, expect: &str) {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            location: None,
            body: body.as_bytes().to_vec(),
        };
        let verdict = match judge(&server(api), &answer, 10) {
            Verdict::Delivered { refused_lines, why } => format!("delivered but {refused_lines}: {why}"),
            Verdict::Refused { why } => format!("refused: {why}"),
            Verdict::TooLarge { why } => format!("too large: {why}"),
            Verdict::Retry { why, .. } => format!("retry: {why}"),
            Verdict::NeedsAPerson { why } => format!("person: {why}"),
            Verdict::Closed(closed) => format!("{closed:?}"),
        };
        assert_eq!(verdict, expect);
    }

    #[test]
    fn answers_of_influxdb_3() {
        use Api::V3;
        check(V3, 204, "", "delivered but 0: ");
        check(
            V3,
            400,
            r#"{"error":"partial write of line protocol occurred","data":[{"error_message":"invalid column type for column 'v', expected iox::column_type::field::float, got iox::column_type::field::integer","line_number":2,"original_line":"a v=1i"},{"error_message":"x","line_number":7,"original_line":"b"}]}"#,
            "delivered but 2: status 400, partial write of line protocol occurred: invalid column type for column \
             'v', expected iox::column_type::field::float, got iox::column_type::field::integer: line 2",
        );
        check(
            V3,
            400,
            r#"{"error":"line protocol parsing error","data":{"error_message":"bad","line_number":1,"original_line":"a"}}"#,
            "refused: status 400, line protocol parsing error: bad: line 1",
        );
        check(
            V3,
            400,
            r#"{"error":"invalid database name"}"#,
            "person: the server does not accept the request (status 400, invalid database name)",
        );
        check(
            V3,
            401,
            r#"{"error": "the request was not authenticated"}"#,
            "person: the server refuses the token (status 401, the request was not authenticated); put one that \
             may write to \"kvmetry\" into KVMETRY_INFLUXDB_TOKEN",
        );
        check(
            V3,
            413,
            "max request size (10485760 bytes) exceeded",
            "too large: status 413, max request size (10485760 bytes) exceeded",
        );
        check(
            V3,
            422,
            "too many columns",
            "person: the server does not accept the request (status 422, too many columns)",
        );
        check(
            V3,
            500,
            "write buffer error: No space left on device",
            "retry: status 500, write buffer error: No space left on device",
        );
        check(V3, 503, "", "retry: status 503");
        check(V3, 502, "<html>\nBad\u{7} gateway", "retry: status 502, <html> Bad  gateway");
    }

    #[test]
    fn answers_of_influxdb_2_and_1() {
        check(
            Api::V2,
            400,
            r#"{"code":"invalid","message":"unable to parse 'a': missing fields"}"#,
            "refused: status 400, unable to parse 'a': missing fields",
        );
        check(
            Api::V2,
            400,
            r#"{"code":"invalid","message":"Please provide either orgID or org"}"#,
            "person: the server wants to know the organisation (status 400, Please provide either orgID or org); \
             set org",
        );
        // Not about the lines, as far as we know: they are kept.
        check(
            Api::V2,
            400,
            r#"{"code":"invalid","message":"unable to parse the request"}"#,
            "person: the server does not accept the request (status 400, unable to parse the request)",
        );
        check(
            Api::V2,
            422,
            r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: field type conflict: x dropped=3"}"#,
            "delivered but 3: status 422, failure writing points to database: partial write: field type \
             conflict: x dropped=3",
        );
        check(
            Api::V2,
            413,
            r#"{"code":"request too large","message":"too large"}"#,
            "too large: status 413, too large",
        );
        check(
            Api::V2,
            404,
            r#"{"code":"not found","message":"bucket \"kvmetry\" not found"}"#,
            "person: the server does not know the database \"kvmetry\" or has no such API (status 404, bucket \
             \"kvmetry\" not found); make the database, or set api and url",
        );
        check(
            Api::V2,
            404,
            r#"{"code":"not found","message":"organization name \"kvm\" not found"}"#,
            "person: the server does not know the organisation (status 404, organization name \"kvm\" not found); \
             set org",
        );
        check(
            Api::V1,
            400,
            r#"{"error":"partial write: field type conflict: input field \"v\" dropped=12"}"#,
            "delivered but 10: status 400, partial write: field type conflict: input field \"v\" dropped=12",
        );
        check(
            Api::V1,
            400,
            r#"{"error":"partial write: unable to parse 'b': missing fields\nunable to parse 'c': missing fields dropped=0"}"#,
            "delivered but 2: status 400, partial write: unable to parse 'b': missing fields unable to parse 'c': \
             missing fields dropped=0",
        );
        check(
            Api::V1,
            400,
            r#"{"error":"unable to parse 'a': missing fields"}"#,
            "refused: status 400, unable to parse 'a': missing fields",
        );
    }

    #[test]
    fn a_list_of_refused_lines_without_its_end_still_counts() {
        let mut body = br#"{"error":"partial write of line protocol occurred","data":["#.to_vec();
        while body.len() < MAX_ANSWER_BYTES {
            body.extend_from_slice(br#"{"error_message":"bad","line_number":1,"original_line":"a"},"#);
        }
        body.truncate(MAX_ANSWER_BYTES);
        let answer = Answer { status: StatusCode::BAD_REQUEST, retry_after: None, location: None, body };
        let refused = refused_lines(&answer).unwrap();
        assert!((15_000..20_000).contains(&refused), "{refused}");
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
}
