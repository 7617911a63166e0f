//! `/api/v3/query_sql`, and what is said to those who ask in another language.
//!
//! ```text
//! request ──▶ turn (so many at once) ──▶ Backend::query ──first piece──▶ status and headers
//!                                                        └──the rest──▶ relay ──▶ client
//! ```
//!
//! A client that goes drops the query wherever it is; one that stays but takes nothing is cut off.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::Frame;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::App;
use super::backend::{Backend, Format, Query, QueryFailure, QueryFault};
use super::body::throw_away;
use super::connection::Connection;
use super::params::Params;
use super::relay::{BUSY_RETRY, relay};
use super::reply::Problem;

/// The names of the formats, as clients give them.
const FORMATS: [(&str, Format); 5] = [
    ("json", Format::Json),
    ("jsonl", Format::JsonLines),
    ("csv", Format::Csv),
    ("pretty", Format::Pretty),
    ("parquet", Format::Parquet),
];

impl Format {
    /// The format of this name.
    ///
    /// # Errors
    /// A line for the client.
    pub(crate) fn of(name: &str) -> Result<Self, String> {
        let found = FORMATS.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|(known, _)| *known).collect();
            format!("format {name:?} is not known: use {}", names.join(", "))
        })
    }

    /// The first type of `Accept` that is one of these, if any is.
    fn accepted(headers: &HeaderMap) -> Option<Self> {
        let accept = headers.get(ACCEPT)?.to_str().ok()?;
        let essences = accept.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
        essences.into_iter().find_map(|essence| match essence {
            "application/json" => Some(Self::Json),
            "application/jsonl" => Some(Self::JsonLines),
            "text/csv" => Some(Self::Csv),
            "text/plain" => Some(Self::Pretty),
            "application/vnd.apache.parquet" => Some(Self::Parquet),
            _ => None,
        })
    }

    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Pretty => "text/plain; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        })
    }
}

/// `GET` or `POST /api/v3/query_sql`.
pub(crate) async fn sql<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response, Problem> {
    let accepted = Format::accepted(request.headers());
    let connection = request.extensions().get::<Connection>().cloned();
    let asked = if request.method() == Method::GET {
        Asked::from_params(Params::of(request.uri()))?
    } else {
        app.questions.read_json::<Asked>(request).await?
    };
    let query = asked.query(accepted)?;
    let format = query.format;

    let turn = app.turns.next().await.map_err(|busy| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, busy.to_string()).retry_after(BUSY_RETRY)
    })?;
    let mut answer = app.backend.query(query).await.map_err(failed)?;
    // What goes wrong before there is anything to show can still be told by the status.
    let first = answer.next().await.transpose().map_err(failed)?;
    let pieces = stream::iter(first.map(Ok)).chain(answer).map_ok(Frame::data);
    let mut response = Response::new(relay(pieces, connection, turn));
    response.headers_mut().insert(CONTENT_TYPE, format.content_type());
    Ok(response)
}

/// `/query`.
pub(crate) async fn influxql(request: Request) -> Problem {
    throw_away(request).await;
    not_here("InfluxQL")
}

/// `/api/v2/query`.
pub(crate) async fn flux(request: Request) -> Problem {
    throw_away(request).await;
    not_here("Flux")
}

fn not_here(language: &str) -> Problem {
    let message = format!(
        "{language} is not spoken here: ask in SQL, POST /api/v3/query_sql with JSON such as \
         {{\"db\":\"kvmetry\",\"q\":\"SELECT * FROM vm_totals LIMIT 5\"}}"
    );
    Problem::new(StatusCode::NOT_IMPLEMENTED, message)
}

/// What a client sends. Other keys are of no account, as in InfluxDB.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    db: Option<String>,
    q: Option<String>,
    format: Option<String>,
    params: Option<Map<String, Value>>,
}

impl Asked {
    fn from_params(mut params: Params) -> Result<Self, Problem> {
        let values = params.take("params").map(|text| serde_json::from_str(&text)).transpose();
        Ok(Self {
            db: params.take("db"),
            q: params.take("q"),
            format: params.take("format"),
            params: values.map_err(|error| Problem::wrong(format!("params is no JSON object: {error}")))?,
        })
    }

    fn query(self, accepted: Option<Format>) -> Result<Query, Problem> {
        let needed = |value: Option<String>, what: &str| {
            value.filter(|text| !text.trim().is_empty()).ok_or_else(|| Problem::wrong(what))
        };
        let params = self.params.unwrap_or_default();
        if let Some((name, _)) = params.iter().find(|(_, value)| value.is_array() || value.is_object()) {
            let message = format!("the parameter {name:?} must be a text, a number, true, false or null");
            return Err(Problem::wrong(message));
        }
        Ok(Query {
            database: needed(self.db, "no database is given: db=NAME")?,
            sql: needed(self.q, "no query is given: q=SQL")?,
            format: match self.format.as_deref() {
                Some(name) => Format::of(name).map_err(Problem::wrong)?,
                None => accepted.unwrap_or(Format::Json),
            },
            params,
        })
    }
}

fn failed(failure: QueryFailure) -> Problem {
    let status = match failure.fault {
        QueryFault::UnknownDatabase => StatusCode::NOT_FOUND,
        // InfluxDB's statuses, whatever one may think of them.
        QueryFault::UnknownTable | QueryFault::NotReadOnly | QueryFault::Wrong => StatusCode::BAD_REQUEST,
        QueryFault::UnknownColumn | QueryFault::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        QueryFault::TwoStatements => StatusCode::METHOD_NOT_ALLOWED,
        QueryFault::TooBig => StatusCode::UNPROCESSABLE_ENTITY,
        QueryFault::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        QueryFault::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    let problem = Problem::new(status, failure.message);
    if failure.fault == QueryFault::Busy { problem.retry_after(BUSY_RETRY) } else { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some bytes of a good request are replaced, doubled, cut out.
    fn mutated(good: &str, random: &mut fastrand::Rng) -> Vec<u8> {
        const PIECES: [&str; 16] = [
            "&", "=", "%", "%00", "%ff", "+", "\"", "\\u0000", "\\ud800", "{", "}", "[", "1e999", "null",
            "db", "\u{fc}",
        ];
        let mut bytes = good.as_bytes().to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..=bytes.len());
            let to = (at + random.usize(..4)).min(bytes.len());
            let new = match random.u8(..3) {
                0 => vec![random.u8(..)],
                1 => random.choice(PIECES).unwrap_or_default().as_bytes().to_vec(),
                _ => bytes[at / 2..at].to_vec(),
            };
            bytes.splice(at..to, new);
        }
        bytes
    }

    /// Whatever is sent is a question with all that it needs, or refused as the client's fault.
    #[test]
    fn any_parameters_are_a_question_or_refused() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut taken, mut refused) = (0, 0);
        let mut judge = |asked: Result<Asked, Problem>| match asked.and_then(|asked| asked.query(None)) {
            Ok(query) => {
                taken += 1;
                assert!(!query.database.trim().is_empty() && !query.sql.trim().is_empty());
                assert!(!query.params.values().any(|value| value.is_array() || value.is_object()));
            }
            Err(problem) => {
                refused += 1;
                assert_eq!(problem.status(), StatusCode::BAD_REQUEST, "{problem:?}");
            }
        };
        let form = "db=kvm&q=SELECT+%22VMID%22+FROM+t+WHERE+a%3D%24b&format=csv&params=%7B%22b%22%3A1.5%7D";
        let json = r#"{"db":"kvm","q":"SELECT \"VMID\" FROM t WHERE a=$b","format":"csv","params":{"b":"x\u00fc","c":null}}"#;
        for _ in 0..20_000 {
            let query: String = mutated(form, &mut random).into_iter().map(char::from).collect();
            // What no URI can be never comes here.
            if let Ok(uri) = format!("/api/v3/query_sql?{query}").parse() {
                judge(Asked::from_params(Params::of(&uri)));
            }
            let body = mutated(json, &mut random);
            judge(serde_json::from_slice(&body).map_err(|error| Problem::wrong(error.to_string())));
        }
        assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused");
    }
}
