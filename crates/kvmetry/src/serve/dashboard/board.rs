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
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::FutureExt as _;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use super::fleet::{self, Cycle, Faults, Paces};
use super::schema::Schema;
use super::source::{Params, Source, SourceError, some};
use super::types::{Fleet, FleetHistory};
use crate::clock::Clock;
use crate::collect::Statuses;
use crate::http::{Turn, Turns};

/// The fleet is asked for no more often than this.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// What changes slowly, such as errors of the last minutes and which columns there are, is asked for this often.
const SLOWLY: Duration = Duration::from_secs(60);
/// Seconds that the newest readings are looked for at least, while nobody knows the interval: VMs of a host that has been
/// silent for less are shown after a restart too.
const FIRST_LOOK_S: u64 = 900;
/// After something was written, for the rest of its cycle.
const SETTLE: Duration = Duration::from_millis(250);
/// The least width of a bucket of a sparkline, seconds: 60 of them.
const SPARK_STEP_S: i64 = 15;
/// Paces of hypervisors are looked for in the last so many seconds; those that are read more seldom, further back.
const PACES_S: u64 = 600;
/// The slowest pace that is looked for, ms: the longest interval that can be configured.
const SLOWEST_MS: i64 = 3_600_000;
/// A source that failed is not asked again for so long, nor one without a table for that table.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// All that a fleet is made of is asked within this.
const WITHIN: Duration = Duration::from_secs(20);

/// What is on its way to browsers.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// Counts the fleets.
    pub(crate) number: u64,
    /// The newest, as JSON; `None` while there is none.
    pub(crate) fleet: Option<Bytes>,
    /// Why there is no newer one.
    pub(crate) trouble: Option<Arc<str>>,
}

/// See the module.
pub(crate) struct Board {
    source: Source,
    clock: Arc<dyn Clock>,
    /// How often hypervisors are read as far as is known, until readings show it.
    interval: Duration,
    /// The hypervisors that this process reads.
    statuses: Statuses,
    state: Mutex<State>,
    /// For who does not wait for the fleet.
    known: StdMutex<Known>,
    pushes: watch::Sender<Option<Push>>,
    /// Among all that ask the store.
    turns: Arc<Turns>,
    /// Who pushes runs there.
    threads: Handle,
}

#[derive(Default)]
struct State {
    fleet: Arc<Fleet>,
    made: Option<Instant>,
    /// The interval of most, ms; `None` where the last look saw no two readings.
    interval: Option<i64>,
    /// When asking failed last, and why.
    failed: Option<(Instant, String)>,
    slow: Slow,
    history: Option<(Instant, Arc<FleetHistory>)>,
    /// Whether somebody pushes.
    pushing: bool,
    /// How many pushes there were.
    number: u64,
}

/// What the charts of a VM are asked for with.
#[derive(Clone, Default)]
struct Known {
    schema: Arc<Schema>,
    /// See [`State::interval`].
    interval: Option<i64>,
    /// When it was asked what columns there are, if some were found.
    looked: Option<Instant>,
}

/// What is asked for now and then.
#[derive(Default)]
struct Slow {
    asked: Option<Instant>,
    /// When it was asked what columns there are.
    looked: Option<Instant>,
    schema: Arc<Schema>,
    faults: HashMap<String, Faults>,
    paces: Paces,
    /// The hypervisors of the last day.
    hosts: Vec<Cycle>,
    /// Those whose clock is ahead.
    ahead: Vec<Cycle>,
}

impl Board {
    pub(crate) fn new(
        source: Source,
        clock: Arc<dyn Clock>,
        interval: Duration,
        statuses: Statuses,
        turns: Arc<Turns>,
        threads: Handle,
    ) -> Self {
        let (state, known, pushes) = (Mutex::default(), StdMutex::default(), watch::Sender::new(None));
        Self { source, clock, interval, statuses, state, known, pushes, turns, threads }
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
        let now = Instant::now();
        self.fleet_since(now.checked_sub(FRESH_FOR).unwrap_or(now)).await
    }

    /// The same, asked for no earlier than this.
    async fn fleet_since(&self, since: Instant) -> Result<Arc<Fleet>, SourceError> {
        let mut state = self.state.lock().await;
        if state.made.is_none_or(|it| it < since) {
            let made = Instant::now();
            let _turn = self.begin(&state).await?;
            let asked = timeout(WITHIN, self.ask(&mut state)).await.unwrap_or(Err(SourceError::TooSlow));
            state.fleet = Arc::new(remembered(&mut state.failed, asked)?);
            state.made = Some(made);
        }
        Ok(Arc::clone(&state.fleet))
    }

    /// What columns there are.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        let mut state = self.state.lock().await;
        if state.slow.is_due() {
            let _turn = self.begin(&state).await?;
            let asked = self.look(&mut state.slow).await;
            remembered(&mut state.failed, asked)?;
        }
        Ok(Arc::clone(&state.slow.schema))
    }

    /// What columns there are, and how often most VMs are read, ms. It does not wait for a fleet that is being asked for.
    ///
    /// # Errors
    /// The source's.
    pub(crate) async fn known(&self) -> Result<(Arc<Schema>, i64), SourceError> {
        let known = self.lock_known().clone();
        if let Some(interval) = known.interval
            && known.looked.is_some_and(|it| it.elapsed() < 2 * SLOWLY)
        {
            return Ok((known.schema, interval));
        }
        let interval = self.fleet().await?.interval;
        Ok((self.schema().await?, interval))
    }

    fn lock_known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        let _turn = self.begin(&state).await?;
        self.look(&mut state.slow).await?;
        let interval = state.interval.unwrap_or(self.interval_ms());
        let step_s = fleet::spark_step(SPARK_STEP_S, interval);
        let sql = fleet::history(&state.slow.schema, step_s);
        let asked = some(self.source.rows(fleet::TABLE, &sql, Params::new()).await);
        let rows = remembered(&mut state.failed, asked)?;
        let history = Arc::new(fleet::histories(&rows, step_s, interval, self.now_ms()));
        state.history = Some((Instant::now(), Arc::clone(&history)));
        Ok(history)
    }

    /// A turn to ask, unless that failed a moment ago: then all who wait get the same answer.
    async fn begin(&self, state: &State) -> Result<Turn, SourceError> {
        if let Some((at, why)) = &state.failed
            && at.elapsed() < FAILED_FOR
        {
            return Err(SourceError::Refused(why.clone()));
        }
        self.turn().await
    }

    /// A turn among all that ask the store.
    ///
    /// # Errors
    /// [`SourceError::Busy`].
    pub(crate) async fn turn(&self) -> Result<Turn, SourceError> {
        self.turns.next().await.map_err(|_| SourceError::Busy)
    }

    fn interval_ms(&self) -> i64 {
        self.interval.as_millis() as i64
    }

    async fn ask(&self, state: &mut State) -> Result<Fleet, SourceError> {
        self.look(&mut state.slow).await?;
        let schema = Arc::clone(&state.slow.schema);
        let before = Arc::clone(&state.fleet);
        // So long that there are two readings of each, also of a cycle that was late.
        let long = |ms: i64| (ms.min(SLOWEST_MS) * 7 / 2 / 1_000).unsigned_abs().max(5);
        let slowest = state.slow.paces.slowest();
        let seconds = match state.interval {
            Some(interval) => long(interval.max(slowest)),
            None => long(self.interval_ms().max(slowest)).max(FIRST_LOOK_S),
        };
        // All are read at much the same pace.
        let are_few = state.interval.is_some_and(|it| 2 * it >= slowest);
        let (readings, cycles, growth, ended) = tokio::try_join!(
            self.rows(Some(fleet::newest(&schema, seconds, are_few))),
            self.optional::<Cycle>(fleet::cycles(&schema, seconds)).map(Ok),
            self.optional::<fleet::Growth>(fleet::growth(&schema, seconds.max(30))).map(Ok),
            self.optional::<fleet::Ended>(fleet::ended(&schema)).map(Ok),
        )?;
        let rows = fleet::last_two(readings);
        state.interval = fleet::interval(&rows);
        self.lock_known().interval = state.interval;
        let paces = state.slow.paces.clone().usual(state.interval.unwrap_or(self.interval_ms()));
        let hosts = state.slow.hosts.iter().cloned();
        let cycles = hosts.chain(cycles.unwrap_or_default()).collect();
        let growth = growth.unwrap_or_default();
        let growth: HashMap<String, Option<f64>> =
            growth.into_iter().filter_map(|it| Some((it.uuid?, it.rate))).collect();
        let mut vms: Vec<_> = rows.into_iter().filter_map(fleet::Row::vm).collect();
        for vm in &mut vms {
            vm.add(state.slow.faults.get(&vm.uuid), growth.get(&vm.uuid).copied().flatten());
        }
        let mut fleet = fleet::fleet(vms, cycles, &before, &paces, &self.statuses.now(), self.now_ms());
        let gone = fleet::gone(&ended.unwrap_or_default(), &fleet.vms);
        fleet.warnings.extend(fleet::astray(&state.slow.ahead).chain(gone));
        fleet.warnings.sort_by_key(|it| it.level);
        Ok(fleet)
    }

    async fn look(&self, slow: &mut Slow) -> Result<(), SourceError> {
        let is_due = slow.is_due();
        if !is_due && !slow.is_new() {
            return Ok(());
        }
        slow.schema = match Schema::of(&self.source).await {
            Err(SourceError::Empty) => Arc::default(),
            found => Arc::new(found?),
        };
        slow.looked = Some(Instant::now());
        {
            let mut known = self.lock_known();
            known.schema = Arc::clone(&slow.schema);
            known.looked = slow.looked.filter(|_| slow.schema.has_table(fleet::TABLE));
        }
        if !is_due {
            return Ok(());
        }
        slow.asked = slow.looked;
        let schema = Arc::clone(&slow.schema);
        let (faults, hosts, ahead, paces) = tokio::join!(
            self.optional::<fleet::FaultsRow>(Some(fleet::faults(&schema))),
            self.optional(fleet::hosts_of_a_day(&schema)),
            self.optional(fleet::ahead(&schema)),
            self.optional::<fleet::Pace>(fleet::paces(&schema, PACES_S)),
        );
        if let Some(faults) = faults {
            slow.faults = faults.into_iter().filter_map(|it| Some((it.uuid?, it.faults))).collect();
        }
        if let Some(hosts) = hosts {
            slow.hosts = hosts;
        }
        if let Some(ahead) = ahead {
            slow.ahead = ahead;
        }
        if let Some(mut paces) = paces {
            // Those that are read more seldom than that.
            if paces.len() < slow.hosts.len() || paces.iter().any(fleet::Pace::is_unknown) {
                let long = fleet::paces(&schema, 3 * SLOWEST_MS.unsigned_abs() / 1_000);
                let more: Vec<fleet::Pace> = self.optional(long).await.unwrap_or_default();
                paces.splice(0..0, more);
            }
            slow.paces = Paces::new(paces);
        }
        Ok(())
    }

    /// Rows that a fleet can do without; `None` if they cannot be had now.
    async fn optional<T: DeserializeOwned>(&self, sql: Option<String>) -> Option<Vec<T>> {
        let rows = self.rows(sql).await;
        rows.inspect_err(|error| tracing::debug!("the dashboard does without: {error}")).ok()
    }

    async fn rows<T: DeserializeOwned>(&self, sql: Option<String>) -> Result<Vec<T>, SourceError> {
        match sql {
            Some(sql) => some(self.source.rows(fleet::TABLE, &sql, Params::new()).await),
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
        loop {
            let mut pause = FRESH_FOR;
            // What was asked before the write that this is about is no news.
            match self.fleet_since(Instant::now()).await {
                Ok(fleet) => {
                    let number = {
                        let mut state = self.state.lock().await;
                        state.number += 1;
                        state.number
                    };
                    // Numbers and texts can always be written.
                    let fleet = Some(serde_json::to_vec(&*fleet).unwrap_or_default().into());
                    self.pushes.send_replace(Some(Push { number, fleet, trouble: None }));
                }
                Err(error) => {
                    let trouble = Some(error.to_string().into());
                    self.pushes.send_modify(|last| {
                        let last = last.get_or_insert(Push { number: 0, fleet: None, trouble: None });
                        last.trouble = trouble;
                    });
                    pause = FAILED_FOR;
                }
            }
            let begun = Instant::now();
            let interval = Duration::from_millis(self.state.lock().await.fleet.interval.unsigned_abs());
            let interval = interval.max(FRESH_FOR);
            tokio::select! {
                () = self.source.changed(&mut seen, interval) => {}
                () = self.pushes.closed() => {}
            }
            tokio::time::sleep_until((begun + pause).max(Instant::now() + SETTLE)).await;
            let mut state = self.state.lock().await;
            if self.pushes.receiver_count() == 0 {
                state.pushing = false;
                // Who comes next does not get an old one, and who comes back has missed some.
                state.number += 1;
                self.pushes.send_replace(None);
                return;
            }
        }
    }
}

impl Slow {
    fn is_due(&self) -> bool {
        self.asked.is_none_or(|it| it.elapsed() >= SLOWLY) || !self.schema.has_table("vm_totals")
    }

    /// Whether tables are still to come, as the first event's.
    fn is_new(&self) -> bool {
        !["vm_events", "vm_devices", "vm_features"].iter().all(|it| self.schema.has_table(it))
            && self.looked.is_none_or(|it| it.elapsed() >= FAILED_FOR)
    }
}

/// Remembers a failure, for those who ask the same.
fn remembered<T>(
    failed: &mut Option<(Instant, String)>,
    asked: Result<T, SourceError>,
) -> Result<T, SourceError> {
    if let Err(error) = &asked {
        *failed = Some((Instant::now(), error.to_string()));
    }
    asked
}
