//! Reading one hypervisor: connect, list, read, encode; cycle after cycle.
//!
//! ```text
//!            ┌─ session: connection, events, what the daemon can do
//!  Host ─────┼─ vms: one per live domain (vm)
//!            └─ tracker: telemetry's memory, writes the lines
//!
//!  cycle: list if an event says so ▸ bulk in shards (bulk) ─┐
//!                                   job-free lane (lane) ──┴─▸ older calls where needed (older) ▸ encode
//! ```
//!
//! A cycle never waits for longer than 80 % of the interval plus one job-free call, whatever hangs.

mod bulk;
mod devices;
mod events;
mod failures;
mod lane;
mod older;
mod session;
mod vm;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use libvirt_rpc::{Access, Backoff, Budget, Domain, Error, Event, EventKind, Uri, UriError};
use telemetry::{
    Collector, CpuSource, Driver, FeatureOptions, HostTracker, MemorySource, Moment, SampleReader,
    TrackerOptions,
};
use tokio::time::Instant;

pub(crate) use self::devices::DomainFacts;
use self::failures::{Failure, Failures};
use self::lane::Lane;
use self::session::Session;
use self::vm::Vm;
use crate::clock::Clock;
use crate::config::{self, Config, Hypervisor};
use crate::logging::OncePerCause;
use crate::schedule;

/// The list of domains is kept in step by events; it is read anew this often all the same.
const LIST_TTL: Duration = Duration::from_secs(60);
/// XML read in one cycle where only the balloon's period is wanted of it: the rest is read in the next ones.
const XML_A_CYCLE: usize = 64;
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
    clock: Arc<dyn Clock>,
    budget: Budget,
    session: Option<Session>,
    was_connected: bool,
    backoff: Backoff,
    connect_at: Instant,
    /// When the domains are to be listed anew.
    list_at: Instant,
    down: Option<String>,
    reader: SampleReader,
    tracker: HostTracker,
    vms: Vec<Vm>,
    /// What was told at the last cycle, to tell only changes.
    exhausted: bool,
    told: OncePerCause,
    event_lines: Vec<u8>,
    pub(crate) totals: Totals,
}

impl Host {
    pub(crate) fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let mut tracker = HostTracker::new(settings.tracker.clone());
        // Until the daemon has told its name, the URI's is the best there is.
        let host = settings.name.as_deref().or(settings.uri.host()).unwrap_or("localhost");
        tracker.set_host(if settings.host_tag { host } else { "" });
        Self {
            budget: Budget::new(settings.max_abandoned),
            clock,
            session: None,
            was_connected: false,
            backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
            connect_at: Instant::now(),
            list_at: Instant::now(),
            down: None,
            reader: SampleReader::new(),
            tracker,
            vms: Vec::new(),
            exhausted: false,
            told: OncePerCause::default(),
            event_lines: Vec::new(),
            totals: Totals::default(),
            settings,
        }
    }

    /// Reads every live domain once and appends their lines to `out`, all with the time of `tick_ns` if that was
    /// less than 100 ms ago.
    pub(crate) async fn cycle(&mut self, tick_ns: i64, out: &mut Vec<u8>) -> Report {
        let begun = Instant::now();
        let began_ns = self.clock.wall_ns();
        let timestamp_ns = schedule::timestamp_ns(tick_ns, began_ns);
        let failures_before = self.totals.failures;
        let mut report = Report::default();
        if let Err(error) = self.connect(begun).await {
            report.down = Some(error);
        } else if let Err(error) = self.read(begun).await {
            self.totals.failures += 1;
            report.down = Some(self.disconnected(&error));
        }
        // What was read before a connection broke is as good as ever.
        self.take_events();
        out.append(&mut self.event_lines);
        self.encode(timestamp_ns, begun, began_ns, out, &mut report);
        self.tell_health(&report);
        report.took = begun.elapsed();
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

    pub(crate) fn vms(&self) -> impl Iterator<Item = (&Domain, Option<&DomainFacts>)> {
        self.vms.iter().map(|vm| (&vm.domain, vm.facts.as_ref().map(|(facts, _)| facts)))
    }

    /// Opens a connection if there is none and it is time to. The error is for people.
    async fn connect(&mut self, now: Instant) -> Result<(), String> {
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
        match Session::open(uri, &self.budget, access, (*interval).max(Duration::from_secs(5)), *deadline)
            .await
        {
            Ok(mut session) => {
                if self.settings.older_calls {
                    session.bulk = Some(libvirt_rpc::Groups::default());
                }
                if self.was_connected {
                    self.totals.reconnects += 1;
                }
                if self.settings.host_tag && self.settings.name.is_none() {
                    self.tracker.set_host(&session.hostname);
                }
                tracing::info!(
                    host = session.hostname,
                    peer = session.connection.peer(),
                    libvirt = %session.version,
                    "{}", if self.was_connected { "connected again" } else { "connected" }
                );
                self.was_connected = true;
                if let Some(text) = self.down.take() {
                    self.told.over(&text);
                }
                self.backoff.reset();
                // What was known of domains and devices may have changed unseen.
                self.list_at = now;
                self.vms.iter_mut().for_each(|vm| vm.forget_facts(now));
                self.session = Some(session);
                Ok(())
            }
            Err(error) => {
                self.totals.failures += 1;
                Err(self.disconnected(&error))
            }
        }
    }

    /// Nothing can be read now: says so once, and if there is no connection sets the next try.
    fn disconnected(&mut self, error: &Error) -> String {
        let text = error.to_string();
        if error.is_connection_lost() || self.session.is_none() {
            self.session = None;
            self.connect_at = Instant::now() + self.backoff.next_wait();
            self.down = Some(text.clone());
            tell(&self.told, &self.clock, &text, &format!("{}: {text}", self.settings.uri));
        } else {
            // A deadline tells how long was waited, which differs each time.
            tell(&self.told, &self.clock, "not read", &format!("{}: {text}", self.settings.uri));
        }
        text
    }

    /// Lists the live domains and reads each of them.
    async fn read(&mut self, begun: Instant) -> Result<(), Error> {
        self.take_events();
        let Some(session) = &mut self.session else { return Ok(()) };
        let now = Instant::now();
        if now >= self.list_at || session.events_refused.contains(&EventKind::Lifecycle) {
            relist(&mut self.vms, older::live_vms(&session.connection).await?);
            self.list_at = now + LIST_TTL;
        }
        if let Some(first) = self.vms.first() {
            session.probe(&first.domain).await?;
        }

        let deadline = self.settings.deadline;
        let end = (self.settings.interval * 4 / 5).max(deadline);
        let plan = bulk::Plan {
            groups: session.bulk_groups(),
            flags: session.flags,
            driver: session.driver,
            reader: &self.reader,
            wanted: telemetry::Groups::ALL,
            deadlines: [begun + deadline, begun + (deadline + end) / 2, begun + end],
        };
        let connection = &session.connection;
        let older_groups = session.older_groups();
        let by_info = |vm: &Vm| {
            let source = self.tracker.cpu_source(&telemetry::Uuid(vm.domain.uuid));
            source == Some(CpuSource::Info)
        };
        let mut lane = Lane::default();
        let mut asked = Vec::new();
        let mut aside = Vec::new();
        let exhausted = self.budget.is_exhausted();
        let by_older_calls = plan.groups.is_empty();
        for (at, vm) in self.vms.iter_mut().enumerate() {
            vm.begin(plan.wanted);
            if vm.fresh_facts(now).is_some() {
                self.totals.cache_hits += 1;
            } else {
                lane.xml.push((at, vm.domain.clone()));
            }
            let set_aside = vm.is_set_aside() || exhausted || by_older_calls;
            if vm.wants_vcpus(now) || by_info(vm) || set_aside {
                lane.info.push((at, vm.domain.clone()));
            }
            vm.asked = !set_aside || (by_older_calls && !exhausted);
            if set_aside { aside.push(vm) } else { asked.push(vm) }
        }
        if plan.groups.is_empty() {
            // Read by the older calls alone, which need every XML, and domain info anyway.
            lane.info.clear();
        } else {
            lane.xml.truncate(XML_A_CYCLE);
        }
        self.totals.cache_misses += lane.xml.len() as u64;

        // Side by side: the shards, which wait for monitors, and the job-free lane, one call at a time.
        // Whatever the driver: a job-free record says nothing of what is never given.
        let job_free = bulk::Plan {
            groups: plan.groups.and(libvirt_rpc::Groups::JOB_FREE),
            driver: Driver::Qemu,
            ..plan
        };
        let (mut outcome, laned) = tokio::join!(
            async {
                if plan.groups.is_empty() {
                    bulk::Outcome::default()
                } else {
                    bulk::read(connection, &mut asked, &plan).await
                }
            },
            async {
                let answer = bulk::ask(connection, &mut aside, &job_free, plan.deadlines[2]).await;
                match answer {
                    Err(error) if error.is_connection_lost() => return Err(error),
                    Err(error) => lane.failed = Some(error),
                    Ok(()) => {}
                }
                lane.run(connection).await
            }
        );
        drop((asked, aside));
        let mut failures = Failures::default();
        if let Err(error) = laned {
            outcome.lost = outcome.lost.take().or(Some(error));
        }
        if let Some(error) = lane.failed.take() {
            self.totals.failures += 1;
            outcome.error.get_or_insert(error);
        }
        lane.hand_out(&mut self.vms, &by_info, self.settings.device_cache_ttl, &mut failures)?;
        self.totals.failures += outcome.failures;
        if let Some(error) = outcome.lost {
            return Err(error);
        }
        if let Some(error) = outcome.error {
            tell(&self.told, &self.clock, "bulk", &format!("bulk statistics: {error}"));
        }

        if !plan.groups.is_empty() {
            self.totals.failures += bulk::ask_again(connection, &mut self.vms, &plan).await?;
            lane::fall_back(connection, &mut self.vms, &job_free, &mut failures).await?;
        }
        let exhausted = self.budget.is_exhausted();
        let needs = |vm: &Vm| {
            let cpu =
                if by_info(vm) || vm.lacks_cpu() { telemetry::Groups::CPU } else { telemetry::Groups::NONE };
            let groups = older_groups.with(cpu);
            if exhausted { older::job_free_part(groups) } else { groups }
        };
        older::read_all(connection, &mut self.vms, needs, plan.deadlines[2], &mut failures).await?;
        for vm in &mut self.vms {
            // With the older calls there is no record to be busy: a given-up call says the same.
            let busy =
                if plan.groups.is_empty() { vm.is_held() } else { vm.taken.is_none() || vm.sample.busy };
            vm.judge(busy);
            if vm.taken.is_none() && vm.asked && !vm.unanswered {
                self.list_at = now; // it is gone
            }
        }
        older::set_balloon_periods(connection, self.settings.balloon_period, &mut self.vms, &mut failures)
            .await?;
        for Failure { domain, what, error } in failures.0 {
            self.totals.failures += 1;
            let cause = format!("{domain} {what}");
            tell(&self.told, &self.clock, &cause, &format!("{domain}: {what}: {error}"));
        }
        Ok(())
    }

    fn encode(
        &mut self,
        timestamp_ns: i64,
        begun: Instant,
        began_ns: i64,
        out: &mut Vec<u8>,
        report: &mut Report,
    ) {
        let began = self.clock.monotonic().saturating_sub(begun.elapsed());
        report.vms = self.vms.len();
        for vm in &mut self.vms {
            report.stuck += usize::from(vm.is_stuck());
            let Some(taken) = vm.taken.take() else { continue };
            let after = taken.saturating_duration_since(begun);
            let at = Moment {
                timestamp_ns,
                taken: began + after,
                wall_secs: began_ns.saturating_add(after.as_nanos() as i64).div_euclid(1_000_000_000),
            };
            if vm.sample.vcpus.is_none() {
                vm.sample.vcpus = vm.vcpus.map(|(count, _)| u64::from(count).into());
            }
            vm.sample.balloon_period = vm.facts.as_ref().and_then(|(facts, _)| facts.balloon_period);
            let encoded = self.tracker.encode(&mut vm.sample, &at, out);
            report.lines += encoded.lines;
            report.whole += usize::from(encoded.ok());
            if !encoded.ok() && !vm.sample.busy {
                for device in self.tracker.unread_devices(&vm.sample.uuid) {
                    self.totals.failures += 1;
                    let text = format!("{}: {device}: gave no counters", vm.domain.name);
                    tell(&self.told, &self.clock, &text, &text);
                }
            }
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
        if matches!(event, Event::Lifecycle { .. } | Event::Overflow) {
            self.list_at = at;
        }
        let changed = match event {
            Event::Lifecycle { domain, .. }
            | Event::DeviceAdded { domain, .. }
            | Event::DeviceRemoved { domain, .. } => Some(domain.uuid),
            Event::Overflow => {
                tracing::warn!("more events than could be read: all domains' devices are read anew");
                self.vms.iter_mut().for_each(|vm| vm.forget_facts(at));
                None
            }
            Event::BalloonChange { .. } | Event::IoError { .. } | Event::AgentLifecycle { .. } => None,
        };
        if let Some(vm) = changed.and_then(|uuid| self.vms.iter_mut().find(|vm| vm.domain.uuid == uuid)) {
            vm.forget_facts(at);
        }
        if let Some(told) = events::describe(event) {
            let event = telemetry::Event {
                uuid: telemetry::Uuid(told.domain.uuid),
                name: &told.domain.name,
                id: telemetry::DomainId(told.domain.id),
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
        if exhausted && !self.exhausted {
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
        for vm in self.vms.iter().filter(|vm| vm.busy_cycles == vm::STUCK_AFTER) {
            tracing::warn!(domain = &*vm.domain.name, "its monitor does not answer: stuck");
        }
    }
}

/// Brings the VMs in step with the list; new ones are added, those gone are dropped.
fn relist(vms: &mut Vec<Vm>, listed: Vec<Domain>) {
    let mut by_uuid: HashMap<[u8; 16], Domain> =
        listed.into_iter().map(|domain| (domain.uuid, domain)).collect();
    vms.retain_mut(|vm| match by_uuid.remove(&vm.domain.uuid) {
        Some(domain) => {
            if domain.id != vm.domain.id {
                *vm = Vm::new(domain);
            } else if domain.name != vm.domain.name {
                vm.domain = domain;
            }
            true
        }
        None => false,
    });
    let mut new: Vec<Vm> = by_uuid.into_values().map(Vm::new).collect();
    new.sort_by_key(|vm| vm.domain.id);
    vms.append(&mut new);
}

/// Logs a cause once, not every cycle.
fn tell(told: &OncePerCause, clock: &Arc<dyn Clock>, cause: &str, text: &str) {
    match told.tell(cause, clock.monotonic()) {
        Some(0) => tracing::warn!("{text}"),
        Some(held_back) => tracing::warn!(held_back, "{text}"),
        None => {}
    }
}
