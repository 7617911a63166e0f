//! The write endpoints: `/api/v3/write_lp`, `/api/v2/write`, `/write`.
//!
//! They differ in the names of their parameters, in whether good lines are kept where others are bad, and in how they
//! say what was wrong. `no_sync` is accepted and without effect: every write is durable before it is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use telemetry::lines::{LineError, Precision};

use super::App;
use super::backend::{Backend, Write, WriteFailure};
use super::body::BodyFault;
use super::limits::MAX_BODY_BYTES;
use super::params::Params;
use super::reply::Problem;

/// When to come again where the disk is full: somebody has to do something about it first.
const DISK_RETRY: Duration = Duration::from_secs(30);

/// Which of the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    V3,
    V2,
    V1,
}

/// `POST /api/v3/write_lp?db=&precision=&accept_partial=&no_sync=`.
pub(crate) async fn v3<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<StatusCode, Problem> {
    write(&app, request, Api::V3).await
}

/// `POST /api/v2/write?bucket=&precision=`; `org` is of no account.
pub(crate) async fn v2<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<StatusCode, Problem> {
    write(&app, request, Api::V2).await.map_err(Problem::v2)
}

/// `POST /write?db=&rp=&precision=`; `consistency` is of no account.
pub(crate) async fn v1<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<StatusCode, Problem> {
    write(&app, request, Api::V1).await
}

async fn write<B: Backend>(app: &App<B>, request: Request, api: Api) -> Result<StatusCode, Problem> {
    let mut params = Params::of(request.uri());
    let asked = asked(&mut params, api).map_err(|why| Problem::wrong(why).text());
    let held = app.writes.read(request, MAX_BODY_BYTES).await.map_err(|fault| match fault {
        fault @ BodyFault::TooLarge { .. } => fault.problem().text(),
        fault => fault.problem(),
    });
    // Reading the body first: else a client that still sends it would not see what was wrong with the rest.
    let (asked, held) = (asked?, held?);
    if held.bytes.is_empty() {
        return Err(failed(WriteFailure::Empty, api, asked.accept_partial));
    }
    let body = String::from_utf8(held.bytes).map_err(|error| {
        Problem::wrong(format!("the body is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
    })?;
    let Asked { database, precision, accept_partial } = asked;
    let written = app.backend.write(Write { database, body, precision, accept_partial }).await;
    // The room for the body is kept until here.
    drop(held.room);
    match written {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(failure) => Err(failed(failure, api, accept_partial)),
    }
}

/// What the target says.
struct Asked {
    database: String,
    precision: Precision,
    accept_partial: bool,
}

fn asked(params: &mut Params, api: Api) -> Result<Asked, String> {
    let (name, path) = match api {
        Api::V3 => ("db", "/api/v3/write_lp"),
        Api::V2 => ("bucket", "/api/v2/write"),
        Api::V1 => ("db", "/write"),
    };
    let database = params.take(name);
    let database = database.ok_or_else(|| format!("no database is given: POST {path}?{name}=NAME"))?;
    Ok(Asked {
        // As InfluxDB 3 maps retention policies, which InfluxDB 1 has and it has not; autogen is that of those who
        // named none.
        database: match params.take("rp").filter(|rp| api == Api::V1 && rp != "autogen") {
            Some(rp) => format!("{database}/{rp}"),
            None => database,
        },
        precision: match params.take("precision") {
            None if api == Api::V3 => Precision::Auto,
            None => Precision::Nanosecond,
            Some(text) => text.parse::<Precision>().map_err(|error| error.to_string())?,
        },
        accept_partial: api == Api::V3 && params.take_bool("accept_partial", true)?,
    })
}

fn failed(failure: WriteFailure, api: Api, accept_partial: bool) -> Problem {
    match failure {
        WriteFailure::Lines { errors, untold } => lines(&errors, untold, api, accept_partial),
        WriteFailure::Empty => Problem::wrong("incoming write was empty").text(),
        WriteFailure::DatabaseName(why) => Problem::wrong(why),
        WriteFailure::TooMany(what) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what),
        WriteFailure::TooLarge(what) => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what),
        WriteFailure::Busy { retry_after } => {
            let message = "the journal is behind, nothing of this was written: send it again later";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(retry_after)
        }
        WriteFailure::Disk(what) => {
            let message = format!("nothing of this was written: {what}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(DISK_RETRY)
        }
        WriteFailure::Failed(what) => {
            let message = format!("nothing of this was written: {what}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}

fn lines(errors: &[LineError], untold: u32, api: Api, accept_partial: bool) -> Problem {
    let data = |error: &LineError| {
        json!({
            "error_message": error.message,
            "line_number": error.line_number,
            "original_line": error.original,
        })
    };
    let first = errors.first().map_or(Value::Null, data);
    match api {
        Api::V3 if accept_partial => {
            let problem = Problem::wrong("partial write of line protocol occurred");
            let problem = problem.with("data", Value::from_iter(errors.iter().map(data)));
            if untold == 0 { problem } else { problem.with("untold_lines", untold.into()) }
        }
        Api::V3 => Problem::wrong("line protocol parsing error").with("data", first),
        // Clients of InfluxDB 1 and 2 look for these words, and show people the whole.
        Api::V2 | Api::V1 => {
            let what = errors
                .first()
                .map_or_else(String::new, |error| format!(": line {}: {}", error.line_number, error.message));
            Problem::wrong(format!("unable to parse{what}; nothing of this was written")).with("data", first)
        }
    }
}
