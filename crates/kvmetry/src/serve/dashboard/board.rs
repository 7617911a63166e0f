//! The fleet as it is now, for all pages at once: asked for when somebody looks, at most once a second, and pushed to
//! whoever watches.
//!
//! ```text
//!  Source ──rows──▶ Board ──Arc<Fleet>──▶ GET /api/fleet
//!                     └──a push a cycle──▶ GET /api/live (each browser)
//! ```
//!
//! Nobody watches: nothing is asked. A push is the whole fleet, made once; a browser that is slow misses some, and is told
//! so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::fleet::{self, Faults};
use super::schema::Schema;
use super::source::{Params, Source, SourceError};
use super::types::{Fleet, FleetHistory};
use crate::clock::Clock;

/// The fleet is asked for no more often than this.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// What changes slowly, such as errors of the last minutes and which columns there are, is asked for this often.
const SLOWLY: Duration = Duration::from_secs(60);
/// Seconds that the newest readings are looked for, while nobody knows the interval: that of a minute is found by it.
const FIRST_LOOK_S: u64 = 150;
/// After something was written, for the rest of its cycle.
const SETTLE: Duration = Duration::from_millis(250);
/// The width of a bucket of a sparkline, seconds.
const SPARK_STEP_S: i64 = 30;

/// A fleet on its way to browsers.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// Counts them.
    pub(crate) number: u64,
    /// As JSON.
    pub(crate) json: Bytes,
}

/// See the module.
pub(crate) struct Board {
    source: Source,
    clock: Arc<dyn Clock>,
    /// How often hypervisors are read as far as is known, until readings show it.
    interval: Duration,
    state: Mutex<State>,
    pushes: watch::Sender<Option<Push>>,
    /// Who pushes runs there.
    threads: Handle,
}

#[derive(Default)]
struct State {
    fleet: Arc<Fleet>,
    made: Option<Instant>,
    slow: Slow,
    history: Option<(Instant, Arc<FleetHistory>)>,
    /// Whether somebody pushes.
    pushing: bool,
}

/// What is asked for now and then.
#[derive(Default)]
struct Slow {
    asked: Option<Instant>,
    schema: Arc<Schema>,
    faults: HashMap<String, Faults>,
}

impl Board {
    pub(crate) fn new(source: Source, clock: Arc<dyn Clock>, interval: Duration, threads: Handle) -> Self {
        let (state, pushes) = (Mutex::default(), watch::Sender::new(None));
        Self { source, clock, interval, state, pushes, threads }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.wall_ns() / 1_000_000
    }

    /// Every VM's newest reading, no older than a second.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn fleet(&self) -> Result<Arc<Fleet>, SourceError> {
        let mut state = self.state.lock().await;
        if state.made.is_none_or(|it| it.elapsed() >= FRESH_FOR) {
            state.fleet = Arc::new(self.ask(&mut state).await?);
            state.made = Some(Instant::now());
        }
        Ok(Arc::clone(&state.fleet))
    }

    /// What columns there are.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        let mut state = self.state.lock().await;
        self.look(&mut state.slow).await?;
        Ok(Arc::clone(&state.slow.schema))
    }

    /// The CPU of each VM in the last minutes.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn history(&self) -> Result<Arc<FleetHistory>, SourceError> {
        let mut state = self.state.lock().await;
        let step = Duration::from_secs(SPARK_STEP_S.unsigned_abs());
        if let Some((made, history)) = &state.history
            && made.elapsed() < step
        {
            return Ok(Arc::clone(history));
        }
        self.look(&mut state.slow).await?;
        let sql = fleet::history(&state.slow.schema, SPARK_STEP_S);
        let rows = some(self.source.rows(&sql, Params::new()).await)?;
        let history = Arc::new(fleet::histories(&rows, SPARK_STEP_S, self.now_ms()));
        state.history = Some((Instant::now(), Arc::clone(&history)));
        Ok(history)
    }

    async fn ask(&self, state: &mut State) -> Result<Fleet, SourceError> {
        self.look(&mut state.slow).await?;
        let schema = Arc::clone(&state.slow.schema);
        let before = Arc::clone(&state.fleet);
        let known = Some(before.interval).filter(|it| *it > 0);
        // So long that there are two readings, also of a cycle that was late.
        let seconds = known.map_or(FIRST_LOOK_S, |ms| (ms * 7 / 2 / 1_000).unsigned_abs().max(5));
        let rows: Vec<fleet::Row> = self.rows(Some(fleet::newest(&schema, seconds))).await?;
        let cycles = self.rows(fleet::cycles(&schema)).await?;
        let growth: Vec<fleet::Growth> = self.rows(fleet::growth(&schema, seconds.max(30))).await?;
        let growth: HashMap<String, Option<f64>> =
            growth.into_iter().filter_map(|it| Some((it.uuid?, it.rate))).collect();
        let interval = fleet::interval(&rows).or(known).unwrap_or(self.interval.as_millis() as i64);
        let mut vms: Vec<_> = rows.into_iter().filter_map(fleet::Row::vm).collect();
        for vm in &mut vms {
            vm.add(state.slow.faults.get(&vm.uuid), growth.get(&vm.uuid).copied().flatten());
        }
        Ok(fleet::fleet(vms, cycles, &before, interval, self.now_ms()))
    }

    async fn look(&self, slow: &mut Slow) -> Result<(), SourceError> {
        if slow.asked.is_some_and(|it| it.elapsed() < SLOWLY) && slow.schema.has_table("vm_totals") {
            return Ok(());
        }
        slow.schema = match Schema::of(&self.source).await {
            Err(SourceError::Empty) => Arc::default(),
            found => Arc::new(found?),
        };
        let faults: Vec<fleet::FaultsRow> = self.rows(Some(fleet::faults(&slow.schema))).await?;
        slow.faults = faults.into_iter().filter_map(|it| Some((it.uuid?, it.faults))).collect();
        slow.asked = Some(Instant::now());
        Ok(())
    }

    async fn rows<T: DeserializeOwned>(&self, sql: Option<String>) -> Result<Vec<T>, SourceError> {
        match sql {
            Some(sql) => some(self.source.rows(&sql, Params::new()).await),
            None => Ok(Vec::new()),
        }
    }

    /// The pushes from now on.
    pub(crate) async fn watch(self: &Arc<Self>) -> watch::Receiver<Option<Push>> {
        let pushes = self.pushes.subscribe();
        let mut state = self.state.lock().await;
        if !std::mem::replace(&mut state.pushing, true) {
            self.threads.spawn(Arc::clone(self).push());
        }
        pushes
    }

    /// Pushes as long as somebody watches.
    async fn push(self: Arc<Self>) {
        let mut seen = None;
        let mut number = self.pushes.borrow().as_ref().map_or(0, |it| it.number);
        loop {
            match self.fleet().await {
                Ok(fleet) => {
                    number += 1;
                    // Numbers and texts can always be written.
                    let json = serde_json::to_vec(&*fleet).unwrap_or_default().into();
                    self.pushes.send_replace(Some(Push { number, json }));
                }
                Err(error) => tracing::debug!("no fleet to push: {error}"),
            }
            let begun = Instant::now();
            let interval = Duration::from_millis(self.state.lock().await.fleet.interval.unsigned_abs());
            let interval = interval.max(FRESH_FOR);
            tokio::select! {
                () = self.source.changed(&mut seen, interval) => {}
                () = self.pushes.closed() => {}
            }
            tokio::time::sleep_until((begun + FRESH_FOR).max(Instant::now() + SETTLE)).await;
            let mut state = self.state.lock().await;
            if self.pushes.receiver_count() == 0 {
                state.pushing = false;
                return;
            }
        }
    }
}

/// Nothing written is no rows.
fn some<T>(rows: Result<Vec<T>, SourceError>) -> Result<Vec<T>, SourceError> {
    match rows {
        Err(SourceError::Empty) => Ok(Vec::new()),
        rows => rows,
    }
}
