//! What a server's answer to a write means. No I/O but the reading of the answer itself.
//!
//! | answer | verdict |
//! |---|---|
//! | 204 | [`Verdict::Stored`]; no other status is a success, so that a page of a wrong server is none |
//! | 400 with InfluxDB 3's list of refused lines, or its one refused line | [`Verdict::Lines`] |
//! | v1, v2: 400 (or InfluxDB 2's 422) that is about lines | [`Verdict::Lines`], not known which |
//! | 413 | [`Verdict::TooLarge`] |
//! | 408, 429, 5xx, rubbish | [`Verdict::Retry`] |
//! | none | [`Verdict::NoAnswer`]; none in time [`Verdict::TimedOut`] |
//! | 400, 403, 404 or 422 of another kind | [`Verdict::NotThisDatabase`]: its lines are kept, the others' go on |
//! | any other | [`Verdict::NeedsAPerson`]: the lines are kept until somebody has changed something |

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, LOCATION, RETRY_AFTER};
use serde_json::Value;

use super::client::{CONNECT_TIMEOUT, TOTAL_TIMEOUT};
use crate::config::{Api, InfluxDb, TOKEN_VARIABLE};

/// An answer is read up to this many bytes: some thousand refused lines. Of a longer list nothing is believed.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The longest piece of a server's answer that a message repeats, characters.
const MAX_REASON_CHARS: usize = 200;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server has all lines, durably.
    Stored,
    /// Lines are to blame.
    Lines {
        /// Those that the server names; `None`: it names none, or not all.
        named: Option<Vec<NamedLine>>,
        /// The server's words.
        why: String,
    },
    /// More than the server takes at once.
    TooLarge { why: String },
    /// Not now, says the server. `after` is the pause that it asked for.
    Retry { why: String, after: Option<Duration> },
    /// No answer came.
    NoAnswer { why: String },
    /// The server was reached, but no answer came in time. It may be too much for the link.
    TimedOut { why: String },
    /// Nothing goes into this database before a person has changed something; others may be taken.
    NotThisDatabase { why: String },
    /// Not before a person has changed something.
    NeedsAPerson { why: String },
}

/// A line that a server refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedLine {
    /// Its number in the request, from 1; blank lines and comments do not count.
    pub(super) number: u64,
    /// Why.
    pub(super) why: String,
}

impl Verdict {
    /// The reason, for a person; empty for a success.
    pub(super) fn why(self) -> String {
        match self {
            Self::Stored => String::new(),
            Self::Lines { why, .. }
            | Self::TooLarge { why }
            | Self::Retry { why, .. }
            | Self::NoAnswer { why }
            | Self::TimedOut { why }
            | Self::NotThisDatabase { why }
            | Self::NeedsAPerson { why } => why,
        }
    }
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    location: Option<String>,
    /// The first [`MAX_ANSWER_BYTES`] of the body.
    body: Vec<u8>,
    /// The connection broke before its end.
    broke_off: bool,
}

impl Answer {
    /// Reads it.
    pub(super) async fn read(mut response: reqwest::Response) -> Self {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let mut answer = Self {
            status: response.status(),
            retry_after: header(RETRY_AFTER).and_then(|text| asked_pause(text, header(DATE))),
            location: header(LOCATION).map(str::to_owned),
            body: Vec::new(),
            broke_off: false,
        };
        // The status is what counts: an answer that breaks off is judged by what came, where that can be done.
        loop {
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(_) => {
                    answer.broke_off = true;
                    break;
                }
            };
            let room = MAX_ANSWER_BYTES - answer.body.len();
            answer.body.extend_from_slice(&piece[..piece.len().min(room)]);
            if answer.body.len() == MAX_ANSWER_BYTES {
                break;
            }
        }
        answer
    }

    /// The body as JSON; InfluxDB 3 gives no content type, so it is tried.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The server's own words in lower case, to look for signs in.
    pub(super) fn words(&self) -> String {
        let json = self.json();
        match json["error"].as_str().or(json["message"].as_str()) {
            Some(said) => said.to_lowercase(),
            None => String::from_utf8_lossy(&self.body).to_lowercase(),
        }
    }

    /// What the server says is wrong, in one short line.
    pub(super) fn reason(&self) -> String {
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

    #[cfg(test)]
    pub(super) fn of(status: u16, body: &str) -> Self {
        let status = StatusCode::from_u16(status).unwrap();
        Self { status, retry_after: None, location: None, body: body.as_bytes().to_vec(), broke_off: false }
    }
}

/// The pause that `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3), as proxies write it. A date counts
/// from the answer's own `Date`, so that no two clocks must agree; without that one it says nothing.
fn asked_pause(retry_after: &str, date: Option<&str>) -> Option<Duration> {
    let text = retry_after.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (then, now) = (httpdate::parse_http_date(text).ok()?, httpdate::parse_http_date(date?.trim()).ok()?);
    then.duration_since(now).ok()
}

/// What an answer to a write into this database means.
pub(super) fn judge(server: &InfluxDb, database: &str, answer: &Answer) -> Verdict {
    let why = answer.reason();
    match answer.status.as_u16() {
        204 => Verdict::Stored,
        100..=299 => Verdict::Retry {
            why: format!("no InfluxDB answers a write like this ({why}); is url the right server"),
            after: None,
        },
        300..=399 => Verdict::NeedsAPerson {
            why: match &answer.location {
                Some(to) => format!("the server redirects to {:?}; set url to that server", clean(to)),
                None => format!("the server redirects ({why}); set url to the right server"),
            },
        },
        // It may have been about lines.
        400 | 422 if answer.broke_off => {
            Verdict::Retry { why: format!("the answer broke off ({why})"), after: None }
        }
        400 | 422 => match about_lines(server.api, answer) {
            Some(named) => Verdict::Lines { named, why },
            None if asks_for_org(answer) => Verdict::NeedsAPerson {
                why: format!("the server wants to know the organisation ({why}); set org"),
            },
            None => {
                Verdict::NotThisDatabase { why: format!("the server does not accept the request ({why})") }
            }
        },
        status @ (401 | 403) => {
            let why = format!(
                "the server refuses the token ({why}); put one that may write to {database:?} into {}",
                server.token_file.as_ref().map_or(PathBuf::from(TOKEN_VARIABLE), Clone::clone).display()
            );
            // 401: it is no token at all. 403: it may not do this, but perhaps that.
            if status == 401 { Verdict::NeedsAPerson { why } } else { Verdict::NotThisDatabase { why } }
        }
        404 if answer.words().contains("organization") => Verdict::NeedsAPerson {
            why: format!("the server does not know the organisation ({why}); set org"),
        },
        404 => Verdict::NotThisDatabase {
            why: format!(
                "the server does not know the database {database:?} or has no such API ({why}); make the database, \
                 or set api and url"
            ),
        },
        408 | 429 | 500..=599 => Verdict::Retry { why, after: answer.retry_after },
        413 => Verdict::TooLarge { why },
        _ => Verdict::NeedsAPerson { why: format!("the server does not accept the request ({why})") },
    }
}

/// Whether a 400 or 422 is about lines, so that the same request will never be taken, and about which. The lines of
/// any other request wait until a person has mended it.
fn about_lines(api: Api, answer: &Answer) -> Option<Option<Vec<NamedLine>>> {
    let json = answer.json();
    let bad_request = answer.status == StatusCode::BAD_REQUEST;
    // InfluxDB 3: what it refused, by number. Its older endpoints may say the same.
    if bad_request && let Some(named) = named_lines(&json["data"]) {
        // There the numbers cannot be proven: only v3 can be asked to store all or nothing.
        return Some(if api == Api::V3 { Some(named) } else { None });
    }
    // The same list, but so long that its end was not read.
    let text = String::from_utf8_lossy(&answer.body);
    if bad_request
        && json.is_null()
        && answer.body.len() == MAX_ANSWER_BYTES
        && text.contains("partial write")
    {
        return Some(None);
    }
    if api == Api::V3 || asks_for_org(answer) {
        return None;
    }
    // InfluxDB 2 calls a conflict of types 422, with the words of a partial write. InfluxDB 1 says nothing but those
    // words where the types are new to it and differ within one request.
    let words = text.to_lowercase();
    let signs: &[&str] = if bad_request {
        &["partial write", "unable to parse", "field type conflict", "line protocol"]
    } else {
        &["partial write"]
    };
    let invalid = bad_request && json["code"].as_str() == Some("invalid");
    (invalid || signs.iter().any(|sign| words.contains(sign))).then_some(None)
}

/// InfluxDB 3's `data`: a list of refused lines (the others are stored), or the first bad one (none is).
fn named_lines(data: &Value) -> Option<Vec<NamedLine>> {
    let named = |line: &Value| {
        let number = line["line_number"].as_u64()?;
        Some(NamedLine { number, why: clean(line["error_message"].as_str()?) })
    };
    match data {
        Value::Array(lines) => lines.iter().map(named).collect(),
        Value::Object(_) => Some(vec![named(data)?]),
        _ => None,
    }
}

/// Whether InfluxDB 2 misses the organisation: "Please provide either orgID or org".
fn asks_for_org(answer: &Answer) -> bool {
    answer.words().contains("orgid")
}

/// The server says that there was nothing to write, which it says after all else was right: InfluxDB 3, InfluxDB 2.
pub(super) fn is_empty_write(answer: &Answer) -> bool {
    let text = String::from_utf8_lossy(&answer.body);
    answer.status == StatusCode::BAD_REQUEST
        && ["incoming write was empty", "writing requires points"].iter().any(|words| text.contains(words))
}

/// What it means that no answer came.
pub(super) fn no_answer(error: &reqwest::Error) -> Verdict {
    let why = chain(error);
    if error.is_timeout() {
        let told = |limit: Duration| format!("no answer within {} s", limit.as_secs());
        return match error.is_connect() {
            true => Verdict::NoAnswer { why: told(CONNECT_TIMEOUT) },
            false => Verdict::TimedOut { why: told(TOTAL_TIMEOUT) },
        };
    }
    if why.contains("certificate") {
        let why = format!(
            "the server's certificate is not accepted ({why}); set ca to the authority that signed it"
        );
        return Verdict::NeedsAPerson { why };
    }
    Verdict::NoAnswer { why }
}

/// An error's last cause, which says what happened, after its first, which says where.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let what = if error.is_connect() { "cannot connect" } else { "the request failed" };
    format!("{what}: {}", clean(&last.to_string().to_lowercase()))
}

/// A peer's text for our log: one line, no control characters, not long.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect();
    if cleaned.len() < text.trim().len() {
        cleaned.push('…');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::super::tests::server;
    use super::*;

    #[track_caller]
    fn check(api: Api, status: u16, body: &str, expect: &str) {
        let server = server("http://127.0.0.1:8181", api);
        let verdict = match judge(&server, "kvmetry", &Answer::of(status, body)) {
            Verdict::Stored => "stored".to_owned(),
            Verdict::Lines { named: None, why } => format!("lines: {why}"),
            Verdict::Lines { named: Some(lines), why } => {
                let lines: Vec<_> =
                    lines.iter().map(|line| format!("{} {}", line.number, line.why)).collect();
                format!("lines [{}]: {why}", lines.join(", "))
            }
            Verdict::TooLarge { why } => format!("too large: {why}"),
            Verdict::Retry { why, .. } => format!("retry: {why}"),
            Verdict::NoAnswer { why } | Verdict::TimedOut { why } => format!("no answer: {why}"),
            Verdict::NotThisDatabase { why } => format!("database: {why}"),
            Verdict::NeedsAPerson { why } => format!("person: {why}"),
        };
        assert_eq!(verdict, expect);
    }

    #[test]
    fn answers_of_influxdb_3() {
        use Api::V3;
        check(V3, 204, "", "stored");
        check(
            V3,
            400,
            r#"{"error":"partial write of line protocol occurred","data":[{"error_message":"invalid column type for column 'v', expected iox::column_type::field::float, got iox::column_type::field::integer","line_number":2,"original_line":"a v=1i"},{"error_message":"x","line_number":7,"original_line":"b"}]}"#,
            "lines [2 invalid column type for column 'v', expected iox::column_type::field::float, got \
             iox::column_type::field::integer, 7 x]: status 400, partial write of line protocol occurred: invalid column \
             type for column 'v', expected iox::column_type::field::float, got iox::column_type::field::integer: line 2",
        );
        check(
            V3,
            400,
            r#"{"error":"line protocol parsing error","data":{"error_message":"bad","line_number":1,"original_line":"a"}}"#,
            "lines [1 bad]: status 400, line protocol parsing error: bad: line 1",
        );
        check(
            V3,
            400,
            r#"{"error":"invalid database name"}"#,
            "database: the server does not accept the request (status 400, invalid database name)",
        );
        // The words alone are no list of lines.
        for text in [
            "incoming write was empty",
            r#"{"error":"line protocol parsing error"}"#,
            r#"{"error":"partial write of line protocol occurred","data":[{"line_number":2}]}"#,
            r#"{"code":"invalid","message":"unable to parse 'a'"}"#,
        ] {
            let answer = Answer::of(400, text);
            let verdict = judge(&server("http://a", V3), "kvmetry", &answer);
            assert!(matches!(verdict, Verdict::NotThisDatabase { .. }), "{text}: {verdict:?}");
        }
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
            "database: the server does not accept the request (status 422, too many columns)",
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
    fn only_204_means_that_lines_are_stored() {
        for status in [200, 201, 202, 206, 226] {
            check(
                Api::V3,
                status,
                "<html>Welcome to nginx!",
                &format!(
                    "retry: no InfluxDB answers a write like this (status {status}, <html>Welcome to nginx!); is url \
                     the right server"
                ),
            );
        }
    }

    #[test]
    fn answers_of_influxdb_2_and_1() {
        for (status, body, why) in [
            (
                400,
                r#"{"code":"invalid","message":"unable to parse 'a': missing fields"}"#,
                "status 400, unable to parse 'a': missing fields",
            ),
            (400, r#"{"code":"invalid","message":"no"}"#, "status 400, no"),
            (400, r#"{"error":"field type conflict"}"#, "status 400, field type conflict"),
            (
                422,
                r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: field type conflict: x dropped=3"}"#,
                "status 422, failure writing points to database: partial write: field type conflict: x dropped=3",
            ),
            (
                400,
                r#"{"error":"partial write: field type conflict: input field \"v\" dropped=12"}"#,
                "status 400, partial write: field type conflict: input field \"v\" dropped=12",
            ),
            (
                400,
                r#"{"error":"unable to parse 'a': missing fields"}"#,
                "status 400, unable to parse 'a': missing fields",
            ),
            // InfluxDB 3 behind its older endpoints: all or nothing, without a way to prove the number.
            (
                400,
                r#"{"error":"line protocol parsing error","data":{"error_message":"bad","line_number":1,"original_line":"a"}}"#,
                "status 400, line protocol parsing error: bad: line 1",
            ),
        ] {
            check(Api::V2, status, body, &format!("lines: {why}"));
            check(Api::V1, status, body, &format!("lines: {why}"));
        }
        check(
            Api::V2,
            400,
            r#"{"code":"invalid","message":"Please provide either orgID or org"}"#,
            "person: the server wants to know the organisation (status 400, Please provide either orgID or org); \
             set org",
        );
        check(
            Api::V2,
            400,
            r#"{"code":"empty","message":"no"}"#,
            "database: the server does not accept the request (status 400, no)",
        );
        check(
            Api::V2,
            422,
            r#"{"code":"invalid","message":"no"}"#,
            "database: the server does not accept the request (status 422, no)",
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
            "database: the server does not know the database \"kvmetry\" or has no such API (status 404, bucket \
             \"kvmetry\" not found); make the database, or set api and url",
        );
        check(
            Api::V2,
            404,
            r#"{"code":"not found","message":"organization name \"kvm\" not found"}"#,
            "person: the server does not know the organisation (status 404, organization name \"kvm\" not found); \
             set org",
        );
    }

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_by_a_date() {
        #[track_caller]
        fn check(retry_after: &str, date: Option<&str>, expect: Option<u64>) {
            assert_eq!(asked_pause(retry_after, date), expect.map(Duration::from_secs), "{retry_after}");
        }
        let now = Some("Sun, 22 Nov 2026 21:48:59 GMT");
        check(" 17 ", None, Some(17));
        check("Sun, 22 Nov 2026 21:49:30 GMT", now, Some(31));
        // The form that was common before.
        check("Sunday, 22-Nov-26 21:49:30 GMT", now, Some(31));
        check("Sun, 22 Nov 2026 21:48:59 GMT", now, Some(0));
        check("Sun, 22 Nov 2026 21:48:58 GMT", now, None);
        check("Sun, 22 Nov 2026 21:49:30 GMT", None, None);
        check("Sun, 22 Nov 2026 21:49:30 GMT", Some("now"), None);
        check("soon", now, None);
        check("-1", now, None);
    }

    #[test]
    fn of_a_list_without_its_end_nothing_is_believed() {
        let mut body = r#"{"error":"partial write of line protocol occurred","data":["#.to_owned();
        while body.len() < MAX_ANSWER_BYTES {
            body += r#"{"error_message":"bad","line_number":1,"original_line":"a"},"#;
        }
        body.truncate(MAX_ANSWER_BYTES);
        let verdict = judge(&server("http://a", Api::V3), "kvmetry", &Answer::of(400, &body));
        assert!(matches!(verdict, Verdict::Lines { named: None, .. }), "{verdict:?}");
    }
}
