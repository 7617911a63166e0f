//! What survives the end of the process, and who may ask for it: journal, servers, store, HTTP port.
//!
//! ```text
//!                ┌▶ Deliveries ──▶ InfluxDB
//! Writer ▸ journal (on disk)
//!    ▲     └▶ Embedded (store, SQL) ◀──┐
//!    └──────────── Port (HTTP) ────────┘
//! ```

use std::sync::Arc;
#[cfg(feature = "store")]
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use disk::Disk;
use journal::{Journal, Limits};
#[cfg(feature = "store")]
use store::sql::Engine;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Pauses;
#[cfg(feature = "store")]
use crate::backup;
use crate::clock::Clock;
use crate::collect::Statuses;
use crate::config::Config;
#[cfg(feature = "store")]
use crate::config::DATABASE;
use crate::datadir::{self, DataDir, OwnDisk};
use crate::deliver::{self, Deliveries, DeliveryStats, Rejects};
#[cfg(feature = "store")]
use crate::embedded::{self, Embedded, Others};
use crate::http;
use crate::losses::{JOURNAL, Losses};
use crate::serve::{Served, dashboard};
use crate::write::{self, Retentions, Writer};

/// Of the time to end, at its end, for what was delivered last to be noted down.
const LAST_CURSORS: Duration = Duration::from_millis(150);
/// How often hypervisors are read where nothing says so: this process reads none.
const USUAL_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is looked whether the data directory is still there.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// What survives the end of the process.
pub(crate) struct Kept {
    pub(crate) writer: Writer,
    journal: Arc<Journal>,
    deliveries: Deliveries,
    #[cfg(feature = "store")]
    embedded: Option<Embedded>,
    port: Option<http::Server>,
    ports_thread: Option<http::OwnThread>,
    losses: Arc<Losses>,
    clock: Arc<dyn Clock>,
    /// Tells when the data directory goes and comes.
    watch: JoinHandle<()>,
    /// Ours as long as this lives.
    dir: DataDir,
}

impl Kept {
    /// Opens the data directory and starts all that is configured. `statuses`: those of the hypervisors that this process
    /// reads.
    ///
    /// # Errors
    /// A directory, port or server that cannot be used.
    pub(crate) async fn open(
        config: &Config,
        statuses: &Statuses,
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let dir = DataDir::open(&config.data_dir)?;
        let disk: Arc<dyn Disk> = Arc::new(dir.disk());
        let mut readers: Vec<_> = config.influxdb.iter().map(deliver::reader).collect();
        // A store that is off for now gets what it misses when it is on again, as far as the journal reaches: what it
        // had in memory alone is nowhere else.
        let is_store_there = dir.path().join("store").is_dir();
        if config.store.enabled || is_store_there {
            readers.push(STORE.to_owned());
        }
        if is_store_there && !config.store.enabled {
            tracing::warn!(
                "the store is off, and what it misses waits in the journal, within max_size and max_age: remove {} if \
                 it is not to come back",
                dir.path().join("store").display()
            );
        }
        let readers: Vec<_> = readers.iter().map(String::as_str).collect();
        let limits = Limits { max_bytes: config.journal.max_size, max_age: config.journal.max_age };
        let opened = Journal::open(Arc::clone(&disk), &dir.path().join("journal"), limits, &readers)?;
        let (journal, opened) = (Arc::new(opened.0), opened.1);
        for damage in &opened.damage {
            tracing::error!("the journal is damaged, what is whole in it is read: {damage}");
        }
        for file in opened.cut_off.iter().map(|it| it.display()) {
            tracing::error!(
                %file,
                "the last commit of the journal before kvmetry ended unasked is not whole: a loss of power cut it off, and \
                 nothing that was acknowledged is lost; or the disk has damaged it since, and its lines are lost"
            );
        }
        let losses = Arc::new(Losses::new(Arc::clone(clock)));
        losses.add(opened.losses);
        // Before the store is opened: it must not take longer-lived points for expired ones.
        let retentions = Arc::new(Retentions::of_journal(&journal)?);
        #[cfg(feature = "store")]
        let embedded = match config.store.enabled {
            false => None,
            true => {
                let setup = embedded::Setup {
                    disk: Arc::clone(&disk),
                    dir: dir.path().join("store"),
                    journal: Arc::clone(&journal),
                    config: config.store.clone(),
                    retentions: Arc::clone(&retentions),
                    losses: Arc::clone(&losses),
                    others: Others::new(Arc::clone(&disk), dir.path().to_owned()),
                    clock: Arc::clone(clock),
                };
                Some(Embedded::start(setup)?)
            }
        };
        let writer = Writer::start(write::Setup {
            journal: Arc::clone(&journal),
            #[cfg(feature = "store")]
            applied: embedded.as_ref().map(Embedded::applied),
            #[cfg(not(feature = "store"))]
            applied: None,
            #[cfg(feature = "store")]
            known: embedded.as_ref().map(Embedded::catalog).unwrap_or_default(),
            #[cfg(not(feature = "store"))]
            known: Default::default(),
            retentions: Arc::clone(&retentions),
            losses: Arc::clone(&losses),
            clock: Arc::clone(clock),
        })?;
        let shared = deliver::Shared {
            journal: Arc::clone(&journal),
            last: writer.last(),
            rejects: Arc::new(Rejects::new(disk, dir.path().join("rejects"))),
            losses: Arc::clone(&losses),
            clock: Arc::clone(clock),
            retentions,
            pauses: Pauses::NORMAL,
        };
        let deliveries = Deliveries::start(&config.influxdb, shared)?;
        let mut kept = Self {
            writer,
            journal,
            deliveries,
            #[cfg(feature = "store")]
            embedded,
            port: None,
            ports_thread: None,
            losses,
            clock: Arc::clone(clock),
            watch: tokio::spawn(watch(dir.disk())),
            dir,
        };
        kept.open_port(config, statuses).await?;
        let dir = kept.dir.path().display();
        if config.store.enabled {
            tracing::info!(%dir, "keeping every point; ask with kvmetry query 'SHOW TABLES'");
        } else {
            tracing::info!(%dir, "keeping what is still to be delivered");
        }
        Ok(kept)
    }

    async fn open_port(&mut self, config: &Config, statuses: &Statuses) -> anyhow::Result<()> {
        let Some(listen) = config.http.listen else { return Ok(()) };
        let served = Served {
            writer: self.writer.clone(),
            #[cfg(feature = "store")]
            clock: Arc::clone(&self.clock),
            #[cfg(feature = "store")]
            embedded: self.embedded.as_ref().map(|it| (it.store(), it.engine())),
            #[cfg(feature = "store")]
            backups: self.embedded.as_ref().map(|it| Arc::new(self.backups(it, config))),
        };
        let thread = http::OwnThread::start().context("no thread for the HTTP port")?;
        let limits = http::limits::Limits::default();
        let turns = Arc::new(http::Turns::new(&limits));
        let mounts = dashboard::mounts(dashboard::Setup {
            source: self.source(config)?,
            clock: Arc::clone(&self.clock),
            interval: config.hypervisors.iter().map(|it| it.interval).min().unwrap_or(USUAL_INTERVAL),
            base_path: config.http.base_path.clone(),
            turns: Arc::clone(&turns),
            threads: thread.handle(),
            statuses: statuses.clone(),
            own: Box::new(self.own(config)),
        });
        #[cfg(feature = "store")]
        let mounts = mounts
            .into_iter()
            .chain(self.embedded.iter().map(|it| self.flight(it.engine(), &turns, &limits)))
            .collect();
        let port = http::start(http::Setup {
            config: config.http.clone(),
            listen,
            tokens: config.http.tokens_file(self.dir.path()),
            backend: Arc::new(served),
            mounts,
            clock: Arc::clone(&self.clock),
            turns,
            limits,
            threads: thread.handle(),
        })
        .await?;
        let url = config.http.url(port.address());
        let elsewhere = if port.address().ip().is_unspecified() {
            " (from other machines, with this one's address)"
        } else {
            ""
        };
        tracing::info!("the dashboard is at {url}/{elsewhere}");
        let certificate = config.http.tls.as_ref().map(|tls| {
            let file = std::path::absolute(&tls.certificate).unwrap_or_else(|_| tls.certificate.clone());
            file.display().to_string()
        });
        let mut facts = vec![(datadir::URL, &*url)];
        facts.extend(certificate.as_deref().map(|file| (datadir::CERTIFICATE, file)));
        self.dir.tell(&facts)?;
        (self.port, self.ports_thread) = (Some(port), Some(thread));
        Ok(())
    }

    /// Where the dashboard's rows come from.
    fn source(&self, config: &Config) -> anyhow::Result<dashboard::Source> {
        #[cfg(feature = "store")]
        if let Some(embedded) = &self.embedded {
            let (engine, writer) = (embedded.engine(), self.writer.clone());
            return Ok(dashboard::Source::Embedded { engine, writer });
        }
        Ok(dashboard::Source::of(&config.influxdb)?)
    }

    /// How this process fares, for the dashboard.
    fn own(&self, config: &Config) -> impl Fn() -> dashboard::Own + Send + Sync + 'static {
        let (journal, figures, max) =
            (Arc::clone(&self.journal), self.deliveries.figures(), config.journal.max_size);
        let since = self.clock.wall_ns() / 1_000_000;
        let rejects = self.dir.path().join("rejects");
        #[cfg(feature = "store")]
        let store = self.embedded.as_ref().map(Embedded::store);
        move || {
            let stats = journal.stats();
            dashboard::Own {
                since,
                journal: Some(dashboard::JournalState {
                    entries: stats.last + 1 - stats.first,
                    bytes: stats.file_bytes,
                    max,
                    oldest: stats.oldest_at.map(|ns| ns / 1_000_000),
                }),
                deliveries: figures.now(),
                rejects: rejects.clone(),
                #[cfg(feature = "store")]
                store: store.as_ref().and_then(|store| {
                    let (stats, bounds) = (store.stats(), store.bounds().ok()?);
                    Some(dashboard::StoreState {
                        files: stats.files,
                        bytes: stats.file_bytes,
                        max: bounds.max_size,
                        free: bounds.free,
                        min_free: bounds.min_free,
                        rows: stats.file_rows,
                        memory_rows: stats.memory_rows,
                    })
                }),
                #[cfg(not(feature = "store"))]
                store: None,
            }
        }
    }

    /// Arrow Flight over the store.
    #[cfg(feature = "store")]
    fn flight(
        &self,
        engine: Arc<Engine>,
        turns: &Arc<http::Turns>,
        limits: &http::limits::Limits,
    ) -> http::Mount {
        let writer = self.writer.clone();
        let exists = move |name: &str| writer.has_database(name);
        let service = store::flight::service(engine, DATABASE, Box::new(exists));
        http::flight::mount(service, Arc::clone(turns), limits)
    }

    #[cfg(feature = "store")]
    fn backups(&self, embedded: &Embedded, config: &Config) -> backup::Source {
        backup::Source {
            dir: self.dir.path().to_owned(),
            disk: Arc::new(self.dir.disk()),
            store: embedded.store(),
            journal: Arc::clone(&self.journal),
            tokens: config.http.tokens_file(self.dir.path()),
            clock: Arc::clone(&self.clock),
            one_at_a_time: Mutex::default(),
        }
    }

    /// Logs what was delivered, kept and lost since the start.
    pub(crate) fn tell(&self) {
        tell(&self.journal, &self.losses, &self.deliveries.stats());
        #[cfg(feature = "store")]
        if let Some(embedded) = &self.embedded {
            embedded.tell();
        }
    }

    /// What was collected goes to disk first, then to the servers, as far as the time allows.
    pub(crate) async fn shutdown(self, end: Instant) {
        let left = || end.saturating_duration_since(Instant::now());
        self.watch.abort();
        if let Some(port) = self.port {
            let _ = tokio::time::timeout(left() / 2, port.stop()).await;
        }
        if !self.writer.close(left()).await {
            tracing::error!("the disk does not answer: what was collected last is lost");
            return;
        }
        let Self { deliveries, journal, losses, clock, dir, writer, .. } = self;
        #[cfg(feature = "store")]
        if let Some(embedded) = self.embedded {
            embedded.close(left() / 2).await;
        }
        let last = deliveries.shutdown(left().saturating_sub(LAST_CURSORS)).await;
        // The cursors: without them the last deliveries are made once more, which is harmless.
        let now_ns = clock.wall_ns();
        let last_journal = Arc::clone(&journal);
        let maintain = tokio::task::spawn_blocking(move || last_journal.maintain(now_ns));
        let _ = tokio::time::timeout(left(), maintain).await;
        tell(&journal, &losses, &last);
        drop((writer, dir));
    }
}

/// Tells when the data directory goes, and when it is back. Who writes meanwhile is told so himself.
async fn watch(disk: OwnDisk) {
    let mut is_there = true;
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let asked = disk.clone();
        // A file system over the network may hang.
        let Ok(found) = tokio::task::spawn_blocking(move || asked.check()).await else { return };
        match (&found, is_there) {
            (Err(error), true) => tracing::error!("nothing can be written, and writes are refused: {error}"),
            (Ok(()), false) => tracing::info!("the data directory is there again: all goes on"),
            _ => {}
        }
        is_there = found.is_ok();
    }
}

/// The journal's reader for the embedded store.
pub(crate) const STORE: &str = "store";

fn tell(journal: &Journal, losses: &Losses, deliveries: &[DeliveryStats]) {
    for stats in deliveries {
        tracing::info!(
            output = stats.name,
            delivered = stats.delivered_lines,
            refused = stats.refused_lines,
            lost = stats.lost_lines,
            failures = stats.failures,
            waiting_entries = stats.waiting_entries,
            trouble = stats.trouble,
            "lines since the start"
        );
    }
    let (stats, lost) = (journal.stats(), losses.lines_of(JOURNAL));
    tracing::info!(entries = stats.last + 1 - stats.first, bytes = stats.file_bytes, lost, "the journal");
}
