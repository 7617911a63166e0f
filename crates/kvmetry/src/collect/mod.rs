//! Reading one hypervisor: connect, list, read, encode; cycle after cycle.
//!
//! ```text
//!            ┌─ session: connection, events, what the daemon can do
//!  Host ─────┼─ vms: one per live domain (vm)
//!            └─ tracker: telemetry's memory, writes the lines
//!
//!  cycle: connect and list if need be ▸ read all (round) ▸ encode
//!  then:  look up what is slow to tell (list, XML), when the lines are on their way
//! ```
//!
//! Whatever hangs, a cycle waits for monitors up to 80 % of the interval and is over at 90 %; only the older calls, which
//! know no NOWAIT, may take one deadline longer.

mod bulk;
mod devices;
mod events;
mod failures;
mod lane;
mod live;
mod older;
mod round;
mod session;
mod status;
mod vm;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libvirt_rpc::{
    Access, Backoff, Budget, Domain, Error, Event, EventKind, Groups, Late, Uri, UriError, Version,
};
use telemetry::{Collector, FeatureOptions, HostTracker, MemorySource, Moment, SampleReader, TrackerOptions};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::devices::DomainFacts;
use self::failures::Failure;
use self::live::{follow, relist};
use self::round::{Round, Tally};
use self::session::Session;
pub(crate) use self::status::{Status, Statuses};
use self::vm::{STUCK_AFTER, Turn, Vm};
use crate::clock::Clock;
use crate::config::{self, Config, Hypervisor};
use crate::logging::{self, OncePerCause};
use crate::schedule;

/// The list of domains is kept in step by events; it is read anew this often all the same, between two cycles: libvirtd
/// does not tell it while it destroys a VM.
const LIST_TTL: Duration = Duration::from_secs(60);
/// XML looked up between two cycles: the rest is read after the next ones.
pub(crate) const XML_A_CYCLE: usize = 64;
/// How long connecting may take, at least, however short the interval: a login over SSH takes a second or two.
const LEAST_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Begins the cause of every message that says why a hypervisor cannot be read.
const DOWN: &str = "down: ";
/// First and longest wait before connecting again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How one hypervisor is read.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) uri: Uri,
    /// The tag `host`, where it is not what the daemon says.
    pub(crate) name: Option<String>,
    pub(crate) host_tag: bool,
    pub(crate) interval: Duration,
    /// For one try of a shard: 40 % of the interval unless configured.
    pub(crate) deadline: Duration,
    pub(crate) max_abandoned: usize,
    pub(crate) device_cache_ttl: Duration,
    /// Period to set on balloons that have none; zero: leave them alone.
    pub(crate) balloon_period: Duration,
    /// Never ask for bulk statistics.
    pub(crate) older_calls: bool,
    pub(crate) tracker: TrackerOptions,
}

impl Settings {
    /// The settings of one configured hypervisor.
    ///
    /// # Errors
    /// A URI that makes no sense; the configuration was checked for that before.
    pub(crate) fn of(config: &Config, hypervisor: &Hypervisor) -> Result<Self, UriError> {
        Ok(Self {
            uri: hypervisor.uri.parse()?,
            name: hypervisor.name.clone(),
            host_tag: config.host_tag,
            interval: hypervisor.interval,
            deadline: hypervisor.deadline,
            max_abandoned: hypervisor.max_abandoned,
            device_cache_ttl: config.device_cache_ttl,
            balloon_period: hypervisor.balloon_period,
            older_calls: hypervisor.older_calls,
            tracker: TrackerOptions {
                tag_style: match config.tag_style {
                    config::TagStyle::Dashboard => telemetry::TagStyle::Dashboard,
                    config::TagStyle::Reference => telemetry::TagStyle::Reference,
                },
                features: FeatureOptions {
                    memory_source: match config.memory_source {
                        config::MemorySource::Auto => MemorySource::Auto,
                        config::MemorySource::Guest => MemorySource::Guest,
                        config::MemorySource::Rss => MemorySource::Rss,
                        config::MemorySource::Balloon => MemorySource::Balloon,
                    },
                    angle_scale_kib_per_sec: config.angle_scale_kb_per_sec,
                },
                ..TrackerOptions::default()
            },
        })
    }

    /// How long a cycle waits for monitors: 80 % of the interval, and at least one try of a shard.
    fn cycle_end(&self) -> Duration {
        (self.interval * 4 / 5).max(self.deadline)
    }

    /// How long it may last, with what can be had without a monitor: a tenth of the interval more.
    fn cycle_last(&self) -> Duration {
        self.cycle_end() + self.interval / 10
    }
}

/// The `host` tags of this process and whose they are. Two hypervisors that call themselves the same (`localhost`, or one
/// daemon reached in two ways) must not write the same series: the name is the first one's in the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostNames(Arc<Mutex<HashMap<String, BTreeSet<usize>>>>);

impl HostNames {
    /// Whether the hypervisor at this place in the configuration, which calls itself `name`, may have that name.
    fn claim(&self, name: &str, place: usize) -> bool {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = claims.entry(name.to_owned()).or_default();
        claims.insert(place);
        claims.first() == Some(&place)
    }
}

/// What one cycle saw.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Why nothing was read, if nothing was.
    pub(crate) down: Option<String>,
    /// Live VMs listed, and those that were read whole.
    pub(crate) vms: usize,
    pub(crate) whole: usize,
    /// VMs whose monitor does not answer.
    pub(crate) stuck: usize,
    pub(crate) lines: u32,
    /// Lines of events beside them.
    pub(crate) events: u32,
    /// Wall time from the list to the last line.
    pub(crate) took: Duration,
}

/// What is counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) failures: u64,
    pub(crate) cache_hits: u64,
    pub(crate) cache_misses: u64,
    pub(crate) reconnects: u64,
    pub(crate) missed_ticks: u64,
}

impl Totals {
    /// Share of the cycles' look-ups of a domain's devices that needed no XML; 1 before the first.
    pub(crate) fn hit_rate(&self) -> f64 {
        let all = self.cache_hits + self.cache_misses;
        if all == 0 { 1.0 } else { self.cache_hits as f64 / all as f64 }
    }
}

/// One hypervisor and all that is kept of it between cycles.
pub(crate) struct Host {
    settings: Settings,
    place: usize,
    names: HostNames,
    /// What others are shown, and where they find it.
    status: Status,
    statuses: Statuses,
    clock: Arc<dyn Clock>,
    budget: Budget,
    session: Option<Session>,
    was_connected: bool,
    /// The host's CPU time when it was last read.
    host_cpu_ns: Option<u64>,
    /// What the last daemon's bulk record has, by its version.
    bulk_of: Option<(Version, Groups)>,
    backoff: Backoff,
    connect_at: Instant,
    /// The domains were listed since the connection was opened, and when they are to be listed anew.
    is_listed: bool,
    list_at: Instant,
    /// When what follows a cycle must be over: before the next one.
    cycle_end: Instant,
    /// A call over the VMs that are stuck that was given up: there is no other before it returns.
    aside_call: Option<Late>,
    /// The VM that the next cycle begins with: the first that the last one did not reach.
    from: usize,
    down: Option<String>,
    reader: SampleReader,
    tracker: HostTracker,
    vms: Vec<Vm>,
    /// What was told at the last cycle, to tell only changes.
    exhausted: bool,
    /// The daemon did not answer even what needs no VM's monitor, in the last cycle.
    is_silent: bool,
    told: OncePerCause,
    event_lines: Vec<u8>,
    pub(crate) totals: Totals,
}

impl Host {
    /// A hypervisor, not connected yet: the one at `place` of all that this process reads, whose names are `names` and who
    /// tell in `statuses` how they fare.
    pub(crate) fn new(
        settings: Settings,
        place: usize,
        names: HostNames,
        statuses: Statuses,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut tracker = HostTracker::new(settings.tracker.clone());
        // Until the daemon has told its name, the URI's is the best there is.
        let host = settings.name.as_deref().or(settings.uri.host()).unwrap_or("localhost");
        tracker.set_host(if settings.host_tag { host } else { "" });
        if let Some(name) = &settings.name {
            names.claim(name, place);
        }
        let status = Status {
            name: settings.name.clone().unwrap_or_else(|| settings.uri.redacted()),
            tag: settings.name.clone().map(|name| if settings.host_tag { name } else { String::new() }),
            uri: settings.uri.redacted(),
            interval: settings.interval,
            max_abandoned: settings.max_abandoned,
            sets_balloons: !settings.balloon_period.is_zero(),
            ..Status::default()
        };
        statuses.publish(place, status.clone());
        Self {
            place,
            names,
            status,
            statuses,
            budget: Budget::new(settings.max_abandoned),
            clock,
            session: None,
            was_connected: false,
            host_cpu_ns: None,
            bulk_of: None,
            backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
            connect_at: Instant::now(),
            is_listed: false,
            list_at: Instant::now(),
            cycle_end: Instant::now(),
            aside_call: None,
            from: 0,
            down: None,
            reader: SampleReader::new(),
            tracker,
            vms: Vec::new(),
            exhausted: false,
            is_silent: false,
            told: OncePerCause::default(),
            event_lines: Vec::new(),
            totals: Totals::default(),
            settings,
        }
    }

    /// Reads every live domain once and appends their lines to `out`, all with the time of `tick_ns` if that was
    /// less than 100 ms ago when the reading began.
    pub(crate) async fn cycle(&mut self, tick_ns: i64, out: &mut Vec<u8>) -> Report {
        let failures_before = self.totals.failures;
        let mut report = Report::default();
        let connected = self.connect().await;
        self.take_name();
        let listed = Instant::now();
        let ready = match connected {
            Ok(()) => self.list().await.map_err(|error| self.disconnected(&error)),
            Err(why) => Err(why),
        };
        // Connecting may have taken seconds: the reading begins here.
        let begun = Instant::now();
        let began_ns = self.clock.wall_ns();
        let timestamp_ns = schedule::timestamp_ns(tick_ns, began_ns);
        self.cycle_end = begun + self.settings.cycle_end();
        let read = match ready {
            Ok(()) => self.read(begun).await.map_err(|error| self.disconnected(&error)),
            Err(why) => Err(why),
        };
        report.down = read.err();
        // What was read before a connection broke is as good as ever.
        self.take_events();
        report.events = count_lines(&self.event_lines);
        out.append(&mut self.event_lines);
        self.encode(timestamp_ns, begun, began_ns, out, &mut report);
        self.tell_health(&report);
        report.took = listed.elapsed();
        self.publish(&report);
        let collector = Collector {
            cycle_ns: u64::try_from(report.took.as_nanos()).unwrap_or(u64::MAX),
            lines: u64::from(report.lines),
            failures: self.totals.failures,
            stuck_vms: report.stuck as u64,
            cache_hits: self.totals.cache_hits,
            cache_misses: self.totals.cache_misses,
            abandoned_calls: self.budget.abandoned() as u64,
            reconnects: self.totals.reconnects,
        };
        // Before the first connection nobody knows whose line it would be.
        if self.was_connected || self.settings.name.is_some() {
            self.tracker.collector(&collector, timestamp_ns, out);
            report.lines += 1;
        }
        tracing::debug!(
            vms = report.vms,
            lines = report.lines,
            failures = self.totals.failures - failures_before,
            took_ms = report.took.as_millis(),
            "cycle"
        );
        report
    }

    /// Looks up what the next cycles want to know of VMs and is slow to tell, and sets balloon periods where that is
    /// wanted: of at most `most` VMs. To be called after a cycle, when its lines are on their way: libvirtd may take
    /// seconds for a domain's XML, the first after its start.
    pub(crate) async fn look_up(&mut self, most: usize) {
        let Some(session) = &mut self.session else { return };
        let end = self.cycle_end;
        let mut tally = Tally::default();
        let looked_up = async {
            if Instant::now() >= self.list_at
                && let Ok(listed) = timeout_at(end, older::live_vms(&session.connection)).await
            {
                relist(&mut self.vms, listed?);
                self.list_at = Instant::now() + LIST_TTL;
                session.note_host_cpu().await?;
                self.host_cpu_ns = session.host_cpu_ns;
            }
            let connection = &session.connection;
            // The older calls have read it before: they take the names of devices from it.
            if !session.bulk_groups().is_empty() {
                let ttl = self.settings.device_cache_ttl;
                tally.cache_misses =
                    older::list_devices(connection, &mut self.vms, most, ttl, end, &mut tally.failures)
                        .await?;
            }
            let period = self.settings.balloon_period;
            older::set_balloon_periods(connection, period, &mut self.vms, end, &mut tally.failures).await
        };
        let looked_up = looked_up.await;
        self.count(tally);
        if let Err(error) = looked_up {
            self.disconnected(&error);
        }
    }

    /// Waits until `until`, and takes note of events meanwhile: their lines are appended to `out`. Returns early
    /// when there are some, so that they can be written at once.
    pub(crate) async fn wait(&mut self, until: Instant, out: &mut Vec<u8>) -> bool {
        let event = async {
            match &self.session {
                Some(session) => session.connection.next_event().await,
                None => std::future::pending().await,
            }
        };
        match tokio::time::timeout_at(until, event).await {
            Ok(Some((at, event))) => {
                self.note_event(at, &event);
                self.take_events();
                out.append(&mut self.event_lines);
                true
            }
            // The connection is gone: the next cycle will say so.
            Ok(None) => {
                tokio::time::sleep_until(until).await;
                false
            }
            Err(_) => false,
        }
    }

    /// Says goodbye to the daemon.
    pub(crate) async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.connection.close().await;
        }
    }

    /// Who is read, for messages.
    pub(crate) fn label(&self) -> String {
        match (&self.settings.name, &self.session) {
            (Some(name), _) => name.clone(),
            (None, Some(session)) => session.hostname.clone(),
            (None, None) => self.settings.uri.to_string(),
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// The VMs that were not read whole in the last cycle.
    pub(crate) fn unread(&self) -> Vec<&str> {
        self.vms.iter().filter(|vm| !vm.whole).map(|vm| &*vm.domain.name).collect()
    }

    pub(crate) fn vms(&self) -> impl Iterator<Item = (&Domain, Option<&DomainFacts>)> {
        self.vms.iter().map(|vm| (&vm.domain, vm.facts.as_ref()))
    }

    /// Opens a connection if there is none and it is time to. The error is for people.
    async fn connect(&mut self) -> Result<(), String> {
        let now = Instant::now();
        self.budget.release_due();
        if let Some(session) = &self.session {
            match session.connection.lost() {
                None => return Ok(()),
                Some(error) => {
                    self.disconnected(&error);
                }
            }
        }
        if now < self.connect_at {
            return Err(self.down.clone().unwrap_or_else(|| "waiting before the next try to connect".into()));
        }
        let access =
            if self.settings.balloon_period.is_zero() { Access::ReadOnly } else { Access::ReadWrite };
        let Settings { uri, interval, deadline, .. } = &self.settings;
        let connect_deadline = (*interval).max(LEAST_CONNECT_DEADLINE);
        match Session::open(uri, &self.budget, access, connect_deadline, *deadline).await {
            Ok(mut session) => {
                session.bulk = match self.bulk_of {
                    _ if self.settings.older_calls => Some(Groups::default()),
                    // libvirtd writes an error into its log for every probe: one a version is enough.
                    Some((version, groups)) if version == session.version => Some(groups),
                    _ => None,
                };
                if self.was_connected {
                    self.totals.reconnects += 1;
                }
                // Over the network a daemon's process is not known; but none outlives its host.
                if session::was_rebooted(self.host_cpu_ns, session.host_cpu_ns) {
                    let freed = self.budget.daemon_is_new();
                    tracing::info!(host = session.hostname, freed, "the host was started anew");
                }
                self.host_cpu_ns = session.host_cpu_ns;
                tracing::info!(
                    host = session.hostname,
                    peer = session.connection.peer(),
                    libvirt = %session.version,
                    "{}", if self.was_connected { "connected again" } else { "connected" }
                );
                self.was_connected = true;
                self.status.connected_ns = Some(self.clock.wall_ns());
                self.status.libvirt = Some(session.version);
                self.status.problem = None;
                self.statuses.publish(self.place, self.status.clone());
                self.down = None;
                self.told.over_all(DOWN);
                self.backoff.reset();
                // What was known of domains and devices may have changed unseen.
                let now = Instant::now();
                self.is_listed = false;
                self.vms.iter_mut().for_each(|vm| vm.forget_facts(now));
                self.session = Some(session);
                Ok(())
            }
            Err(error) => Err(self.disconnected(&error)),
        }
    }

    /// Shows others what a cycle came to.
    fn publish(&mut self, report: &Report) {
        let Totals { failures, cache_hits, cache_misses, .. } = self.totals;
        self.status = Status {
            problem: report.down.clone(),
            cycle: report.down.is_none().then_some(report.took),
            vms: report.vms,
            stuck: report.stuck,
            abandoned: self.budget.abandoned(),
            failures,
            hit_rate: (cache_hits + cache_misses > 0).then(|| self.totals.hit_rate()),
            ..std::mem::take(&mut self.status)
        };
        self.statuses.publish(self.place, self.status.clone());
    }

    /// Sets the tag `host`. The name may turn out to be another hypervisor's, which connected later.
    fn take_name(&mut self) {
        let Some(session) = &self.session else { return };
        if self.settings.name.is_some() {
            return;
        }
        let name = &session.hostname;
        self.status.name = name.clone();
        if !self.settings.host_tag {
            self.status.tag = Some(String::new());
            return;
        }
        if self.names.claim(name, self.place) {
            self.tracker.set_host(name);
            self.status.tag = Some(name.clone());
            return;
        }
        // Everybody reads it who reads the points.
        let uri = self.settings.uri.redacted();
        self.tracker.set_host(&uri);
        self.status.tag = Some(uri.clone());
        self.status.name = uri.clone();
        if self.told.tell("host name", self.clock.monotonic()).is_some() {
            tracing::error!(
                host = name,
                "{uri} has the same host name as a hypervisor before it: its lines say host={uri:?} until it has a name \
                 in its [[hypervisor]]"
            );
        }
    }

    /// Nothing can be read now: counts it, says so once, and if there is no connection sets the next try.
    fn disconnected(&mut self, error: &Error) -> String {
        self.totals.failures += 1;
        let text = error.to_string();
        if error.is_connection_lost() || self.session.is_none() {
            // Events that came before it broke are as good as ever.
            self.take_events();
            self.session = None;
            (self.status.connected_ns, self.status.cycle) = (None, None);
            self.status.problem = Some(text.clone());
            self.statuses.publish(self.place, self.status.clone());
            let wait = self.backoff.next_wait();
            self.connect_at = Instant::now() + wait;
            tracing::debug!(uri = %self.settings.uri, ?wait, "before the next try to connect");
            self.down = Some(text.clone());
            let cause = format!("{DOWN}{text}");
            if let Some(held_back) = self.told.tell(&cause, self.clock.monotonic()) {
                tracing::warn!(target: logging::DOWN, held_back, "{}: {text}", self.settings.uri);
            }
        } else {
            // A deadline tells how long was waited, which differs each time.
            tell(&self.told, &self.clock, "not read", &format!("{}: {text}", self.settings.uri));
        }
        text
    }

    /// Brings the VMs in step with the live domains, and learns what the daemon can do.
    async fn list(&mut self) -> Result<(), Error> {
        self.take_events();
        let Some(session) = &mut self.session else { return Ok(()) };
        self.vms.retain(|vm| !vm.ended);
        if !self.is_listed || session.events_refused.contains(&EventKind::Lifecycle) {
            relist(&mut self.vms, older::live_vms(&session.connection).await?);
            self.is_listed = true;
            self.list_at = Instant::now() + LIST_TTL;
        }
        if let Some(first) = self.vms.first() {
            session.probe(&first.domain).await?;
            self.bulk_of = session.bulk.map(|groups| (session.version, groups));
        }
        Ok(())
    }

    /// Reads each of the VMs.
    async fn read(&mut self, begun: Instant) -> Result<(), Error> {
        let Some(session) = &self.session else { return Ok(()) };
        let around = round::Around {
            session,
            settings: &self.settings,
            budget: &self.budget,
            tracker: &self.tracker,
            reader: &self.reader,
            aside_call: self.aside_call.as_ref(),
        };
        let mut tally = Tally::default();
        let read = Round::new(around, begun, self.from).read(&mut self.vms, &mut tally).await;
        self.count(tally);
        read
    }

    /// Counts what a round came to, and tells of what failed.
    fn count(&mut self, tally: Tally) {
        self.totals.cache_hits += tally.cache_hits;
        self.totals.cache_misses += tally.cache_misses;
        self.totals.failures += tally.failed_calls;
        if let Some(error) = tally.bulk_error {
            tell(&self.told, &self.clock, "bulk", &format!("bulk statistics: {error}"));
        }
        for Failure { domain, what, why } in tally.failures.0 {
            self.totals.failures += 1;
            let cause = format!("{domain} {what}");
            tell(&self.told, &self.clock, &cause, &format!("{domain}: {what}: {why}"));
        }
        if tally.someone_is_gone {
            self.list_at = Instant::now();
        }
        self.is_silent = tally.is_silent;
        self.aside_call = tally.aside_call.or(self.aside_call.take()).filter(|late| !late.is_over());
        for (domain, turn) in tally.turns {
            let domain = &*domain;
            match turn {
                Turn::Stuck => {
                    tracing::warn!(
                        domain,
                        "its monitor does not answer: stuck (is its QEMU in state D or T?)"
                    )
                }
                Turn::HeldByOthers => {
                    tracing::warn!(
                        domain,
                        "busy for {STUCK_AFTER} cycles: another client or a job (migration, backup) \
                                            holds it, or its monitor does not answer that client"
                    )
                }
                Turn::Back => tracing::info!(domain, "its monitor answers again"),
            }
        }
        if tally.not_reached > 0 {
            let (left, all) = (tally.not_reached, tally.not_reached + tally.reached);
            self.totals.failures += left as u64;
            let text = format!(
                "{}: {left} of {all} VMs not reached within 80 % of the interval: the daemon is too slow for it; raise \
                 interval",
                self.settings.uri
            );
            tell(&self.told, &self.clock, "not reached", &text);
            self.from = (self.from + tally.reached) % all;
        }
    }

    fn encode(
        &mut self,
        timestamp_ns: i64,
        begun: Instant,
        began_ns: i64,
        out: &mut Vec<u8>,
        report: &mut Report,
    ) {
        // Devices that older calls were to read have told themselves why they gave nothing.
        let by_bulk = self.session.as_ref().is_some_and(|session| session.older_groups().is_empty());
        let began = self.clock.monotonic().saturating_sub(begun.elapsed());
        report.vms = self.vms.len();
        for vm in &mut self.vms {
            report.stuck += usize::from(vm.is_stuck());
            vm.whole = false;
            let lacks_monitor = vm.lacks_monitor();
            let Some(taken) = vm.taken.take() else {
                // Not read, but there: what is known of it stays.
                self.tracker.keep(&telemetry::Uuid(vm.domain.uuid));
                continue;
            };
            let after = taken.saturating_duration_since(begun);
            let at = Moment {
                timestamp_ns,
                taken: began + after,
                wall_secs: began_ns.saturating_add(after.as_nanos() as i64).div_euclid(1_000_000_000),
            };
            if vm.sample.vcpus.is_none() {
                vm.sample.vcpus = vm.vcpus.map(|(count, _)| u64::from(count).into());
            }
            vm.sample.balloon_period = vm.facts.as_ref().and_then(|facts| facts.balloon_period);
            let encoded = self.tracker.encode(&mut vm.sample, &at, out);
            report.lines += encoded.lines;
            vm.whole = encoded.ok();
            report.whole += usize::from(vm.whole);
            if !encoded.ok() && by_bulk && !lacks_monitor {
                for device in self.tracker.unread_devices(&vm.sample.uuid) {
                    self.totals.failures += 1;
                    let text = format!("{}: {device}: gave no counters", vm.domain.name);
                    tell(&self.told, &self.clock, &text, &text);
                }
            }
        }
        // Nobody can be asked any more who it is: at least one VM for each call that hangs.
        if self.budget.is_exhausted() && !self.is_silent {
            report.stuck = report.stuck.max(self.budget.abandoned());
        }
        if report.down.is_none() {
            self.tracker.end_cycle();
        }
    }

    /// Takes all events that have come.
    fn take_events(&mut self) {
        while let Some((at, event)) = self.session.as_ref().and_then(|s| s.connection.try_event()) {
            self.note_event(at, &event);
        }
    }

    /// Acts on an event and writes its line.
    fn note_event(&mut self, at: Instant, event: &Event) {
        let received_ns = self.clock.wall_ns().saturating_sub(at.elapsed().as_nanos() as i64);
        let changed = match event {
            Event::Lifecycle { domain, event, .. } => {
                follow(&mut self.vms, domain, *event);
                Some(domain.uuid)
            }
            Event::DeviceAdded { domain, .. } | Event::DeviceRemoved { domain, .. } => Some(domain.uuid),
            Event::Overflow => {
                tracing::warn!("more events than could be read: the domains and their devices are read anew");
                self.list_at = at;
                self.vms.iter_mut().for_each(|vm| vm.forget_facts(at));
                None
            }
            Event::BalloonChange { .. } | Event::IoError { .. } | Event::AgentLifecycle { .. } => None,
        };
        if let Some(vm) = changed.and_then(|uuid| self.vms.iter_mut().find(|vm| vm.domain.uuid == uuid)) {
            vm.forget_facts(at);
        }
        if let Some(told) = events::describe(event) {
            // An event that a domain has ended carries no id: the last that was known.
            let last_id =
                self.vms.iter().find(|vm| vm.domain.uuid == told.domain.uuid).map(|vm| vm.domain.id);
            let id = Some(told.domain.id).filter(|id| *id > 0).or(last_id).unwrap_or(told.domain.id);
            let event = telemetry::Event {
                uuid: telemetry::Uuid(told.domain.uuid),
                name: &told.domain.name,
                id: telemetry::DomainId(id),
                event: told.event,
                detail: &told.detail,
                reason: &told.reason,
            };
            self.tracker.event(&event, received_ns, &mut self.event_lines);
        }
    }

    /// Says aloud when the host comes to run on job-free calls only, and when that is over.
    fn tell_health(&mut self, report: &Report) {
        let exhausted = self.budget.is_exhausted();
        if exhausted && !self.exhausted && self.is_silent {
            tracing::error!(
                host = self.label(),
                abandoned = self.budget.abandoned(),
                "libvirtd answers nothing of some VMs, not even what needs no monitor: one of them is being destroyed, or \
                 libvirtd is stopped or hangs itself, or all its workers are taken"
            );
        } else if exhausted && !self.exhausted {
            tracing::error!(
                host = self.label(),
                abandoned = self.budget.abandoned(),
                stuck = report.stuck,
                "as many calls as max_abandoned allows hang in libvirtd: only state, interfaces and domain info are \
                 read until one returns; look for hung QEMU processes (state D or T)"
            );
        } else if self.exhausted && !exhausted {
            tracing::info!(host = self.label(), "calls return again: everything is read");
        }
        self.exhausted = exhausted;
    }
}

/// Lines of line protocol.
pub(crate) fn count_lines(text: &[u8]) -> u32 {
    text.iter().filter(|&&byte| byte == b'\n').count().try_into().unwrap_or(u32::MAX)
}

/// Logs a cause once, not every cycle.
fn tell(told: &OncePerCause, clock: &Arc<dyn Clock>, cause: &str, text: &str) {
    match told.tell(cause, clock.monotonic()) {
        Some(0) => tracing::warn!("{text}"),
        Some(held_back) => tracing::warn!(held_back, "{text}"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hypervisors_of_one_name_write_two_series() {
        let names = HostNames::default();
        // The second connects first.
        assert!(names.claim("localhost", 1));
        assert!(names.claim("localhost", 0));
        assert!(!names.claim("localhost", 1), "the first in the configuration has it, whoever came first");
        assert!(names.claim("localhost", 0), "and keeps it over a reconnect");
        assert!(names.claim("kvm2", 1));
    }
}
