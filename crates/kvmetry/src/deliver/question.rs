//! Questions to InfluxDB 3: SQL over `POST /api/v3/query_sql`, and what its answers mean.
//!
//! | answer | outcome |
//! |---|---|
//! | 200 with a whole list of rows | the rows |
//! | 200 that ends within the list: an error came up while it was answered | [`QuestionError::BrokeOff`] |
//! | 404 that speaks of the database, 400 of a table that is not there | [`QuestionError::Empty`] |
//! | 500 that speaks of too many files | [`QuestionError::TooManyFiles`] |
//! | any other, or none | [`QuestionError::Refused`] |
//!
//! Rows come without the columns that are null, times without a zone. So times are asked for as numbers.
//!
//! Source: InfluxDB 3 Core's answers as observed on 3.10.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::{Answer, chain, no_answer};
use super::client::{Client, base_path};
use crate::config::TOKEN_VARIABLE;

/// The largest list of rows that is taken, bytes: some 100,000 rows. The pages' questions are bounded to far less.
pub(crate) const MAX_ROWS_BYTES: usize = 64 << 20;

/// Why there are no rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuestionError {
    /// No such database or table: nothing was written into it yet.
    #[error("there are no points yet")]
    Empty,
    /// InfluxDB 3 Core reads 432 Parquet files at most, some 72 hours.
    #[error(
        "the server may not read so many files ({0}); ask for less time, or keep the points here too, which reaches back \
         400 days: [store] enabled = true"
    )]
    TooManyFiles(String),
    #[error("the answer is larger than {MAX_ROWS_BYTES} bytes")]
    TooLarge,
    #[error("the answer broke off: the server's log says why")]
    BrokeOff,
    #[error("{0}")]
    Refused(String),
}

impl Client {
    /// Asks this database; `params` are the values of `$name` in the SQL.
    ///
    /// # Errors
    /// Why there are no rows.
    pub(crate) async fn rows<T: DeserializeOwned>(
        &self,
        database: &str,
        sql: &str,
        params: &Map<String, Value>,
        within: Duration,
    ) -> Result<Vec<T>, QuestionError> {
        let refused = |error: &dyn std::fmt::Display| QuestionError::Refused(error.to_string());
        let mut url = reqwest::Url::parse(&self.server().url).map_err(|error| refused(&error))?;
        url.set_path(&format!("{}/api/v3/query_sql", base_path(&self.server().url)));
        let body = json!({ "db": database, "q": sql, "format": "json", "params": params });
        let request = self.post_to(url).timeout(within).header(ACCEPT, "application/json");
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        let request = self.authorize(request).map_err(|why| refused(&why))?;
        let response =
            request.send().await.map_err(|error| match error.is_timeout() && !error.is_connect() {
                true => QuestionError::Refused(format!("no answer within {} s", within.as_secs())),
                false => QuestionError::Refused(no_answer(&error).why()),
            })?;
        if response.status() == StatusCode::OK {
            return rows(&whole(response).await?);
        }
        let answer = Answer::read(response).await;
        Err(self.no_rows(database, &answer))
    }

    fn no_rows(&self, database: &str, answer: &Answer) -> QuestionError {
        let (why, words) = (answer.reason(), answer.words());
        match answer.status.as_u16() {
            404 if words.contains("database") => QuestionError::Empty,
            400 if words.contains("table") && words.contains("not found") => QuestionError::Empty,
            404 => QuestionError::Refused(format!(
                "the server answers no SQL ({why}); is {} an InfluxDB 3",
                self.server().url
            )),
            401 | 403 => {
                let place = self.server().token_file.as_ref().map(|it| it.display().to_string());
                QuestionError::Refused(format!(
                    "the server refuses the token ({why}); put one that may read {database:?} into {}",
                    place.as_deref().unwrap_or(TOKEN_VARIABLE)
                ))
            }
            // "Query would exceed file limit of 432 parquet files."
            400..=599 if words.contains("parquet files") || words.contains("file limit") => {
                QuestionError::TooManyFiles(why)
            }
            _ => QuestionError::Refused(why),
        }
    }
}

/// The whole body.
async fn whole(mut response: reqwest::Response) -> Result<Vec<u8>, QuestionError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if body.len() + piece.len() > MAX_ROWS_BYTES => {
                return Err(QuestionError::TooLarge);
            }
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Ok(body),
            Err(error) if error.is_timeout() => return Err(QuestionError::Refused(chain(&error))),
            Err(_) => return Err(QuestionError::BrokeOff),
        }
    }
}

fn rows<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, QuestionError> {
    serde_json::from_slice(body).map_err(|error| match error.is_eof() {
        true => QuestionError::BrokeOff,
        false => QuestionError::Refused(format!("the answer is not rows as InfluxDB 3 gives them: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::server;
    use super::*;
    use crate::config::Api;

    #[test]
    fn what_an_answer_without_rows_means() {
        #[track_caller]
        fn check(status: u16, body: &str, expect: &str) {
            let client = Client::new(&server("http://influx:8181", Api::V3)).unwrap();
            let found = client.no_rows("kvm", &Answer::of(status, body)).to_string();
            assert!(found.contains(expect), "{status} {body}: {found}");
        }
        check(404, r#"{"error":"database not found: kvm"}"#, "there are no points yet");
        check(404, "<h1>nginx</h1>", "is http://influx:8181 an InfluxDB 3");
        check(
            401,
            r#"{"error": "the request was not authenticated"}"#,
            "one that may read \"kvm\" into KVMETRY",
        );
        check(403, "", "refuses the token");
        let files = "External error: Query would exceed file limit of 432 parquet files.";
        check(500, files, "[store] enabled = true");
        check(500, "Schema error: No field named x", "status 500, Schema error: No field named x");
        check(400, "Error during planning: table 'public.iox.x' not found", "there are no points yet");
        check(400, "Error during planning: nothing", "status 400, Error during planning");
        check(503, "", "status 503");
    }

    #[test]
    fn a_list_that_is_not_whole_is_no_answer() {
        type Rows = Result<Vec<Map<String, Value>>, QuestionError>;
        let of = |text: &str| -> Rows { rows(text.as_bytes()) };
        assert_eq!(of(r#"[{"at":1},{"at":2,"v":[null]}]"#).unwrap().len(), 2);
        assert_eq!(of("[]").unwrap().len(), 0);
        for part in ["", "[", r#"[{"at":1}"#, r#"[{"at":1},"#, r#"[{"at":1},{"at""#] {
            assert!(matches!(of(part), Err(QuestionError::BrokeOff)), "{part}");
        }
        assert!(of("<html>").unwrap_err().to_string().contains("not rows as InfluxDB 3 gives them"));
    }
}
