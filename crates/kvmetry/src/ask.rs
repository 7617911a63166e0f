//! `kvmetry query`, `kvmetry compact` and `kvmetry backup`: through the HTTP port of the process that has the data directory, or, where
//! there is none, on the directory itself.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, bail};
use disk::Disk;
use futures_util::StreamExt as _;
use journal::{Journal, Limits};
use serde_json::{Map, json};
use store::Store;
use store::sql::Engine;

use crate::backup::{self, Made};
use crate::cli::{self, QueryFormat, print};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, DATABASE};
use crate::datadir::{self, DataDir, DataDirError, Held};
use crate::embedded::{self, Opened, Others};
use crate::http::backend::{Format, Query};
use crate::http::through::Port;
use crate::keep::STORE;
use crate::losses::Losses;
use crate::serve::sql::{answer, told};
use crate::write::Retentions;

/// The data directory, as far as a command may use it.
enum Data {
    /// Ours. `left_out`: rows that are in the journal only, and so in no answer.
    Open { store: Store, engine: Box<Engine>, journal: Arc<Journal>, dir: DataDir, left_out: u64 },
    /// Another process's, or not ours to open; its HTTP port answers.
    Served(Port),
}

impl Data {
    /// Finds it for a command of this name.
    fn find(config: &Config, clock: &Arc<dyn Clock>, command: &str) -> anyhow::Result<Self> {
        let place = config.data_dir.display();
        match config.data_dir.join("version").try_exists() {
            Ok(true) => {}
            Ok(false) => {
                bail!("there is no data in {place}: has kvmetry run here? name another place with --data-dir")
            }
            Err(error) => bail!(
                "{place} cannot be looked into: {error}; run this as the user that kvmetry runs as, or as one of its \
                 group"
            ),
        }
        let mut dir = match DataDir::open(&config.data_dir) {
            Ok(dir) => dir,
            Err(error) => match (port_of_holder(&config.data_dir, &error), error) {
                (Some(port), _) => return Ok(Self::Served(port)),
                (None, DataDirError::InUse { who, .. }) => {
                    bail!(
                        "{place} is in use by process {who}, which has no HTTP port to ask through (--listen)"
                    )
                }
                (None, error) if is_denied(&error) => bail!(
                    "{place} is not this user's to open, and no kvmetry with an HTTP port has it, to ask through: run \
                     this as the user that kvmetry runs as, or start kvmetry serve as that one"
                ),
                (None, error) => return Err(error.into()),
            },
        };
        dir.tell(&[(datadir::COMMAND, command)])?;
        let disk: Arc<dyn Disk> = Arc::new(dir.disk());
        // Nothing is appended, so the other readers' cursors stay as they are.
        let limits = Limits { max_bytes: config.journal.max_size, max_age: config.journal.max_age };
        let opened = Journal::open(Arc::clone(&disk), &dir.path().join("journal"), limits, &[STORE])?;
        let journal = Arc::new(opened.0);
        let Opened { store, engine, left_out } = embedded::open(&embedded::Setup {
            others: Others::new(Arc::clone(&disk), dir.path().to_owned()),
            disk,
            dir: dir.path().join("store"),
            retentions: Arc::new(Retentions::of_journal(&journal)?),
            journal: Arc::clone(&journal),
            config: config.store.clone(),
            losses: Arc::new(Losses::new(Arc::clone(clock))),
            clock: Arc::clone(clock),
        })?;
        Ok(Self::Open { store, engine: Box::new(engine), journal, dir, left_out })
    }
}

/// The port of the process that has the directory, which is why it cannot be opened. Where that has ended, the lock file
/// still tells it, and anybody may listen there by now: a token is not for him.
fn port_of_holder(dir: &Path, error: &DataDirError) -> Option<Port> {
    let is_held = || matches!(datadir::held(dir), Ok(Held::By { .. }));
    let is_there = is_in_use(error) || (is_denied(error) && is_held());
    Port::told(dir).filter(|_| is_there)
}

/// Another process has the directory, and keeps it.
fn is_in_use(error: &DataDirError) -> bool {
    matches!(error, DataDirError::InUse { .. })
}

/// This user may not write there.
fn is_denied(error: &DataDirError) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let kinds = [PermissionDenied, ReadOnlyFilesystem];
    matches!(error, DataDirError::Io { problem, .. } if kinds.contains(&problem.kind()))
}

/// Asks, and prints the answer. False if rows are missing in it.
///
/// # Errors
/// A mistake in the query, data that cannot be read, standard output that failed.
pub(crate) async fn query(config: &Config, asked: &cli::Query) -> anyhow::Result<bool> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let database = asked.database.as_deref().unwrap_or(DATABASE);
    let (sql, format) = (asked.sql.as_str(), asked.format);
    if format == QueryFormat::Parquet && std::io::stdout().is_terminal() {
        bail!("a Parquet file is not for a terminal: > FILE");
    }
    match Data::find(config, &clock, "query")? {
        Data::Open { engine, left_out, .. } => {
            ask_here(&engine, database, sql, format).await?;
            is_all(left_out)
        }
        Data::Served(port) => ask_there(&port, database, sql, format).await.map(|()| true),
    }
}

/// Whether no rows were left out; tells it if some were.
fn is_all(left_out: u64) -> anyhow::Result<bool> {
    if left_out > 0 {
        tell(&format!("{} are missing in this", of_journal(left_out)))?;
    }
    Ok(left_out == 0)
}

fn of_journal(rows: u64) -> String {
    format!(
        "the disk is nearly full (see [store] min_free) or cannot be written, so {rows} rows that are in the journal only"
    )
}

async fn ask_here(engine: &Engine, database: &str, sql: &str, format: QueryFormat) -> anyhow::Result<()> {
    let query = Query {
        database: database.to_owned(),
        sql: sql.to_owned(),
        params: Map::new(),
        format: match format {
            QueryFormat::Table => Format::Pretty,
            QueryFormat::Csv => Format::Csv,
            QueryFormat::Json => Format::Json,
            QueryFormat::Jsonl => Format::JsonLines,
            QueryFormat::Parquet => Format::Parquet,
        },
    };
    let exists = database == DATABASE;
    let mut answer = answer(engine, query, exists).await?;
    let mut last = None;
    while let Some(bytes) = answer.next().await {
        let bytes = bytes?;
        last = bytes.last().copied().or(last);
        print(&bytes)?;
    }
    end_line(format, last)
}

async fn ask_there(port: &Port, database: &str, sql: &str, format: QueryFormat) -> anyhow::Result<()> {
    let name = match format {
        QueryFormat::Table => "pretty",
        QueryFormat::Csv => "csv",
        QueryFormat::Json => "json",
        QueryFormat::Jsonl => "jsonl",
        QueryFormat::Parquet => "parquet",
    };
    let body = json!({ "db": database, "q": sql, "format": name });
    let mut answer = port.post("/api/v3/query_sql", &body).await?;
    let mut last = None;
    while let Some(bytes) = answer.chunk().await.context("the answer broke off")? {
        last = bytes.last().copied().or(last);
        print(&bytes)?;
    }
    end_line(format, last)
}

/// Text on a terminal ends with a line feed.
fn end_line(format: QueryFormat, last: Option<u8>) -> anyhow::Result<()> {
    if format != QueryFormat::Parquet && last.is_some_and(|it| it != b'\n') {
        print(b"\n")?;
    }
    Ok(())
}

/// Writes all points into files and makes one of each day's. False if some had to stay in the journal.
///
/// # Errors
/// A data directory that cannot be used.
pub(crate) async fn compact(config: &Config) -> anyhow::Result<bool> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match Data::find(config, &clock, "compact")? {
        Data::Open { store, left_out, .. } => {
            tell(&told(&store.compact(clock.wall_ns())?))?;
            is_all(left_out)
        }
        Data::Served(port) => {
            let answer = port.post("/api/v3/compact", &json!({})).await?;
            tell(&answer.text().await.context("the answer broke off")?).map(|()| true)
        }
    }
}

/// Makes a backup and puts it there. False if the store has lost something, and so the backup has not got it.
///
/// # Errors
/// A place that cannot be used, a data directory that cannot, a server that does not make one.
pub(crate) async fn backup(config: &Config, to: &Path) -> anyhow::Result<bool> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let to = backup::check_target(to, &config.data_dir)?;
    let made: Made = match Data::find(config, &clock, "backup")? {
        Data::Open { left_out: rows @ 1.., .. } => {
            bail!("{} would be missing: make room first", of_journal(rows))
        }
        Data::Open { store, journal, dir, .. } => {
            let source = backup::Source {
                dir: dir.path().to_owned(),
                disk: Arc::new(dir.disk()),
                store,
                journal,
                tokens: config.http.tokens_file(dir.path()),
                clock,
                one_at_a_time: Mutex::default(),
            };
            source.make()?
        }
        Data::Served(port) => {
            let answer = port.post("/api/v3/backup", &json!({})).await?;
            let answer = answer.text().await.context("the answer broke off")?;
            let told: Made =
                serde_json::from_str(&answer).context("the server does not tell where the backup is")?;
            Made { dir: backup::find(&told.dir, &config.data_dir)?, ..told }
        }
    };
    backup::move_to(&made.dir, &to)?;
    made.missing.iter().try_for_each(|it| tell(it))?;
    let made = Made { dir: to, ..made };
    tell(&told_of("backup", &made))?;
    Ok(made.missing.is_empty())
}

/// Fills the data directory from a backup. False if something was missing or damaged in it.
///
/// # Errors
/// No backup, a data directory that cannot be used.
pub(crate) fn restore(config: &Config, asked: &cli::Restore) -> anyhow::Result<bool> {
    let tokens = config.http.tokens_file(&config.data_dir);
    let made = backup::restore(&asked.dir, &config.data_dir, &tokens, asked.replace)?;
    made.missing.iter().try_for_each(|it| tell(it))?;
    tell(&told_of("restored", &made))?;
    Ok(made.missing.is_empty())
}

fn told_of(what: &str, made: &Made) -> String {
    let Made { dir, files, bytes, rows, .. } = made;
    format!("{what}: {rows} rows in {files} files of {bytes} bytes, in {}", dir.display())
}

fn tell(text: &str) -> anyhow::Result<()> {
    let mut err = std::io::stderr().lock();
    writeln!(err, "{}", text.trim()).context("standard error cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_process_that_has_ended_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut dir = DataDir::open(folder.path()).unwrap();
        dir.tell(&[(datadir::URL, "http://127.0.0.1:8177")]).unwrap();
        // As for one of the group, who may read and not write.
        let denied = DataDirError::Io {
            path: folder.path().join("lock"),
            what: "opened",
            problem: std::io::ErrorKind::PermissionDenied.into(),
        };
        let in_use = DataDir::open(folder.path()).unwrap_err();
        assert!(port_of_holder(folder.path(), &denied).is_some());
        assert!(port_of_holder(folder.path(), &in_use).is_some());
        drop(dir);
        assert!(datadir::told(folder.path(), datadir::URL).is_some());
        assert!(port_of_holder(folder.path(), &denied).is_none());
    }
}
