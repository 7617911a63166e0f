//! `/api/v3/configure/database`: list, create, change retention.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::App;
use super::backend::{Backend, Database, DatabaseFailure, Format, UpkeepFailure};
use super::params::Params;
use super::reply::Problem;

/// The shortest retention: days are removed whole, so that less would mean nothing.
const MIN_RETENTION: Duration = Duration::from_secs(3600);
/// The longest retention: a hundred years, so that no sum with it overflows.
const MAX_RETENTION: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// `{"db":"kvm","retention_period":"30d"}`.
#[derive(Debug, Deserialize)]
struct Asked {
    db: Option<String>,
    retention_period: Option<String>,
}

impl Asked {
    fn checked(self) -> Result<(String, Option<Duration>), Problem> {
        let name = self.db.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Problem::wrong("no database is given: {\"db\":\"NAME\"}"))?;
        let retention = self.retention_period.map(|text| retention(&text)).transpose();
        Ok((name, retention.map_err(Problem::wrong)?))
    }
}

fn retention(text: &str) -> Result<Duration, String> {
    let found = humantime::parse_duration(text.trim()).ok();
    found.filter(|found| (MIN_RETENTION..=MAX_RETENTION).contains(found)).ok_or_else(|| {
        format!("retention_period {text:?}: expected a duration of 1h to 100 years, such as \"30d\"")
    })
}

/// `GET …?format=json`.
pub(crate) async fn list<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response, Problem> {
    let format = Params::of(request.uri()).take("format");
    let format = format.map_or(Ok(Format::Json), |name| Format::of(&name)).map_err(Problem::wrong)?;
    let databases = app.backend.databases().await.map_err(|failure| failed(failure, ""))?;
    let text = match format {
        Format::Json => {
            Value::from_iter(databases.iter().map(|database| Value::Object(object(database)))).to_string()
        }
        Format::JsonLines => databases.iter().fold(String::new(), |mut text, database| {
            let _ = writeln!(text, "{}", Value::Object(object(database)));
            text
        }),
        Format::Csv => csv(&databases),
        Format::Pretty => pretty(&databases),
        Format::Parquet => {
            return Err(Problem::wrong("databases are listed as json, jsonl, csv or pretty"));
        }
    };
    Ok(([(CONTENT_TYPE, format.content_type())], text).into_response())
}

/// `POST …` with JSON.
pub(crate) async fn create<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let (name, retention) = app.questions.read_json::<Asked>(request).await?.checked()?;
    let made = app.backend.create_database(name.clone(), retention).await;
    made.map(|()| StatusCode::OK).map_err(|failure| failed(failure, &name))
}

/// `PUT …` with JSON.
pub(crate) async fn change<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<StatusCode, Problem> {
    let (name, retention) = app.questions.read_json::<Asked>(request).await?.checked()?;
    let changed = app.backend.set_retention(name.clone(), retention).await;
    changed.map(|()| StatusCode::OK).map_err(|failure| failed(failure, &name))
}

/// `POST /api/v3/compact`.
pub(crate) async fn compact<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<String, Problem> {
    app.backend.compact().await.map_err(undone)
}

/// `POST /api/v3/backup`.
pub(crate) async fn backup<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Response, Problem> {
    let made = app.backend.backup().await.map_err(undone)?;
    Ok(([(CONTENT_TYPE, Format::Json.content_type())], made).into_response())
}

fn undone(failure: UpkeepFailure) -> Problem {
    match failure {
        UpkeepFailure::Running(why) => Problem::new(StatusCode::CONFLICT, why),
        UpkeepFailure::NoRoom(why) => Problem::new(StatusCode::INSUFFICIENT_STORAGE, why),
        UpkeepFailure::Failed(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}

fn failed(failure: DatabaseFailure, name: &str) -> Problem {
    match failure {
        DatabaseFailure::Exists => {
            let message = format!("there is a database {name:?} already; PUT changes its retention");
            Problem::new(StatusCode::CONFLICT, message)
        }
        DatabaseFailure::Unknown => {
            Problem::new(StatusCode::NOT_FOUND, format!("there is no database {name:?}"))
        }
        DatabaseFailure::Name(why) => Problem::wrong(why),
        DatabaseFailure::TooMany(what) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what),
        DatabaseFailure::Failed(what) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what),
    }
}

/// InfluxDB's name of the column of names.
const NAME: &str = "iox::database";
/// A column of ours: clients look for the other one.
const RETENTION: &str = "retention_period";

fn period(database: &Database) -> Option<String> {
    database.retention.map(|retention| humantime::format_duration(retention).to_string())
}

fn object(database: &Database) -> Map<String, Value> {
    let mut object = Map::from_iter([(NAME.to_owned(), Value::from(database.name.as_str()))]);
    object.extend(period(database).map(|period| (RETENTION.to_owned(), Value::from(period))));
    object
}

fn csv(databases: &[Database]) -> String {
    let quoted = |text: &str| {
        if text.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    databases.iter().fold(format!("{NAME},{RETENTION}\n"), |mut text, database| {
        let _ = writeln!(text, "{},{}", quoted(&database.name), period(database).unwrap_or_default());
        text
    })
}

fn pretty(databases: &[Database]) -> String {
    let rows: Vec<_> = std::iter::once((NAME.to_owned(), RETENTION.to_owned()))
        .chain(databases.iter().map(|one| (one.name.clone(), period(one).unwrap_or_default())))
        .collect();
    let width = |of: fn(&(String, String)) -> &String| {
        rows.iter().map(|row| of(row).chars().count()).max().unwrap_or_default()
    };
    let (left, right) = (width(|row| &row.0), width(|row| &row.1));
    let rule = format!("+-{}-+-{}-+\n", "-".repeat(left), "-".repeat(right));
    let mut text = rule.clone();
    for (place, (name, period)) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {name:left$} | {period:right$} |");
        if place == 0 {
            text.push_str(&rule);
        }
    }
    text + &rule
}
