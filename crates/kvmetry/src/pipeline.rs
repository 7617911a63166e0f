//! `kvmetry run`: every hypervisor, cycle after cycle, to every output. Read this file first.
//!
//! ```text
//!  one task a hypervisor                                                   one task a server
//!  tick ▸ Host::cycle ▸ lines ─┬▶ Writer::offer ▸ journal (on disk) ──read──▶ Deliveries ──▶ InfluxDB
//!    ▲        │                └▶ Outputs::send (in memory) ──▶ stdout, file
//!    └────────┴─ events between ticks are written as they come
//! ```
//!
//! Neither `offer` nor `send` ever waits. Hypervisors share nothing else: one that hangs or is down delays no other. SIGTERM and SIGINT end
//! everything within [`STOP_WITHIN`]; a second one ends it at once.

use std::io::IsTerminal;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};
use crate::collect::{self, Host, HostNames, Report, Settings, Statuses};
use crate::config::{Config, Hypervisor};
use crate::keep::Kept;
use crate::logging::OncePerCause;
use crate::output::{Batch, Closed, OutputStats, Outputs};
use crate::schedule::{Now, Schedule};

/// From the signal to the end: goodbyes to the daemons, then what was collected into the journal, then what can still be
/// delivered.
const STOP_WITHIN: Duration = Duration::from_millis(1_800);
/// A second signal within this time is an echo of the first.
const ECHO: Duration = Duration::from_millis(300);
/// Of it, for the hypervisors.
const HOSTS_STOP_WITHIN: Duration = Duration::from_millis(600);
/// How often a hypervisor's cache and failures are logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Collects until it is told to end.
///
/// # Errors
/// An output, port or data directory that cannot be used, or standard output that failed.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let statuses = Statuses::default();
    let sinks = Arc::new(Sinks::start(&config, &statuses, &clock).await?);
    let (stop, stopping) = watch::channel(false);
    let mut hosts = JoinSet::new();
    let names = HostNames::default();
    for (place, hypervisor) in config.hypervisors.iter().enumerate() {
        let settings = Settings::of(&config, hypervisor)?;
        let host = Host::new(settings, place, names.clone(), statuses.clone(), Arc::clone(&clock));
        let host = HostTask::new(host, &config, hypervisor, &clock, &sinks);
        hosts.spawn(host.run(stopping.clone()));
        tracing::info!(uri = hypervisor.uri, interval = ?hypervisor.interval, "reading");
    }
    if sinks.is_empty() {
        tracing::info!("no output is configured: see --output and --influxdb; telling what is seen");
    }
    until_told(config, sinks, hosts, stop).await
}

/// Takes lines and answers queries until it is told to end.
///
/// # Errors
/// No port, or a port or data directory that cannot be used.
pub(crate) async fn serve(config: Config) -> anyhow::Result<()> {
    if config.http.listen.is_none() {
        anyhow::bail!("there is nothing to serve without the HTTP port: see --listen");
    }
    if !config.store.enabled && config.influxdb.is_empty() {
        anyhow::bail!(
            "nobody would get what is written: leave --no-store out, or name a server with [[influxdb]]"
        );
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let sinks = Sinks {
        outputs: Outputs::start(&[], Arc::clone(&clock))?,
        kept: Some(Kept::open(&config, &Statuses::default(), &clock).await?),
    };
    until_told(config, Arc::new(sinks), JoinSet::new(), watch::Sender::new(false)).await
}

/// Waits for a signal, or for standard output to be closed, and ends everything.
async fn until_told(
    config: Config,
    sinks: Arc<Sinks>,
    hosts: JoinSet<()>,
    stop: watch::Sender<bool>,
) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut signals = Signals::listen()?;
    let teller = tokio::spawn(tell_sinks(Arc::downgrade(&sinks)));
    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "ending");
            Ok(())
        }
        closed = sinks.outputs.closed() => match closed {
            Closed::ReaderGone => Ok(()),
            Closed::Failed(why) => Err(anyhow::anyhow!(why)),
        },
    };
    let end = Instant::now() + STOP_WITHIN;
    teller.abort();
    stop.send_replace(true);
    tokio::select! {
        () = finish(hosts, sinks, end) => {}
        _ = signals.next_on_purpose() => tracing::warn!("ended at once: what was collected last may be lost"),
    }
    ended
}

async fn finish(mut hosts: JoinSet<()>, sinks: Arc<Sinks>, end: Instant) {
    let goodbyes = async { while hosts.join_next().await.is_some() {} };
    if tokio::time::timeout(HOSTS_STOP_WITHIN, goodbyes).await.is_err() {
        hosts.shutdown().await;
    }
    // All tasks are gone, so this is the last handle.
    if let Some(sinks) = Arc::into_inner(sinks) {
        sinks.shutdown(end).await;
    }
}

/// Where lines go.
struct Sinks {
    /// In memory.
    outputs: Outputs,
    /// On disk; `None`: nobody would read it.
    kept: Option<Kept>,
}

impl Sinks {
    async fn start(config: &Config, statuses: &Statuses, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        let outputs = Outputs::start(&config.outputs, Arc::clone(clock))?;
        let is_read = !config.influxdb.is_empty() || config.store.enabled;
        let kept = if is_read { Some(Kept::open(config, statuses, clock).await?) } else { None };
        Ok(Self { outputs, kept })
    }

    fn is_empty(&self) -> bool {
        self.outputs.is_empty() && self.kept.is_none()
    }

    fn tell(&self) {
        self.outputs.stats().iter().for_each(tell_output);
        if let Some(kept) = &self.kept {
            kept.tell();
        }
    }

    async fn shutdown(self, end: Instant) {
        let outputs = async {
            let last = self.outputs.shutdown(end.saturating_duration_since(Instant::now())).await;
            last.iter().for_each(tell_output);
        };
        let kept = async {
            if let Some(kept) = self.kept {
                kept.shutdown(end).await;
            }
        };
        tokio::join!(outputs, kept);
    }
}

/// Logs what the outputs and servers have got, every [`TELL_EVERY`].
async fn tell_sinks(sinks: Weak<Sinks>) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let Some(sinks) = sinks.upgrade() else { return };
        sinks.tell();
    }
}

fn tell_output(stats: &OutputStats) {
    tracing::info!(
        output = stats.name,
        delivered = stats.delivered_lines,
        dropped = stats.dropped_lines,
        failures = stats.failures,
        waiting_batches = stats.queued_batches,
        waiting_bytes = stats.queued_bytes,
        trouble = stats.trouble,
        "lines since the start"
    );
}

/// One hypervisor's task.
struct HostTask {
    host: Host,
    schedule: Schedule,
    interval: Duration,
    clock: Arc<dyn Clock>,
    sinks: Arc<Sinks>,
    told: OncePerCause,
}

impl HostTask {
    fn new(
        host: Host,
        config: &Config,
        hypervisor: &Hypervisor,
        clock: &Arc<dyn Clock>,
        sinks: &Arc<Sinks>,
    ) -> Self {
        let name = hypervisor.name.as_deref().unwrap_or(&hypervisor.uri);
        Self {
            host,
            schedule: Schedule::new(hypervisor.interval, config.hypervisors.len(), name),
            interval: hypervisor.interval,
            clock: Arc::clone(clock),
            sinks: Arc::clone(sinks),
            told: OncePerCause::default(),
        }
    }

    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            // The sender lives as long as the program.
            _ = stopping.wait_for(|&stop| stop) => {}
            () = self.cycles() => {}
        }
        self.host.close().await;
    }

    async fn cycles(&mut self) {
        let mut lines = Vec::new();
        let mut tell_at = Instant::now() + TELL_EVERY;
        loop {
            let tick = self.schedule.next_tick(Now::of(&*self.clock));
            self.host.totals.missed_ticks += tick.missed;
            if tick.missed > 0
                && let Some(held_back) = self.told.tell("missed", self.clock.monotonic())
            {
                tracing::warn!(
                    host = self.host.label(),
                    missed = tick.missed,
                    held_back,
                    interval = ?self.interval,
                    "ticks went by unread: connecting or reading took longer than the interval"
                );
            }
            let at = Instant::now() + tick.wait;
            while self.host.wait(at, &mut lines).await {
                self.send(self.clock.wall_ns(), collect::count_lines(&lines), &mut lines);
            }
            let report = self.host.cycle(tick.at_ns, &mut lines).await;
            self.send(tick.at_ns, report.lines + report.events, &mut lines);
            if self.sinks.is_empty() {
                self.tell_cycle(&report);
            }
            self.host.look_up(collect::XML_A_CYCLE).await;
            if Instant::now() >= tell_at {
                tell_at += TELL_EVERY;
                self.tell_totals();
            }
        }
    }

    /// Hands on what `lines` holds and leaves it empty, with its memory.
    fn send(&self, at_ns: i64, line_count: u32, lines: &mut Vec<u8>) {
        if let (Some(kept), false) = (&self.sinks.kept, lines.is_empty()) {
            kept.writer.offer(lines, line_count, at_ns);
        }
        if !self.sinks.outputs.is_empty() && !lines.is_empty() {
            let host = self.host.label().into();
            self.sinks.outputs.send(&Batch { host, at_ns, lines: Arc::new(lines.clone()), line_count });
        }
        lines.clear();
    }

    fn tell_cycle(&self, report: &Report) {
        if let Some(why) = &report.down {
            tracing::info!(host = self.host.label(), "not read: {why}");
        } else {
            tracing::info!(
                host = self.host.label(),
                vms = report.vms,
                whole = report.whole,
                stuck = report.stuck,
                lines = report.lines,
                took = ?Duration::from_millis(report.took.as_millis() as u64),
                "read"
            );
        }
    }

    fn tell_totals(&self) {
        let totals = &self.host.totals;
        tracing::info!(
            host = self.host.label(),
            cache_hits = totals.cache_hits,
            cache_misses = totals.cache_misses,
            cache_hit_rate = format_args!("{:.3}", totals.hit_rate()),
            failures = totals.failures,
            reconnects = totals.reconnects,
            missed_ticks = totals.missed_ticks,
            "since the start"
        );
    }
}

/// SIGINT and SIGTERM; and SIGHUP, where it says that the terminal has gone. In a service it means nothing: output files
/// that were moved away are made anew without it.
pub(crate) struct Signals {
    received: watch::Receiver<&'static str>,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let has_terminal = std::io::stdin().is_terminal();
        let (tell, received) = watch::channel("");
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = hangup.recv() => {
                        if !has_terminal {
                            continue;
                        }
                        "SIGHUP"
                    }
                };
                tell.send_replace(name);
            }
        });
        Ok(Self { received })
    }

    /// The next signal that is a person's wish to end at once, not an echo of the first: timeout(1) and a shell's Ctrl-C
    /// may send one twice, to the process and to its group.
    async fn next_on_purpose(&mut self) -> &'static str {
        tokio::time::sleep(ECHO).await;
        self.received.mark_unchanged();
        self.next().await
    }

    /// The name of the next signal, which may have come before.
    pub(crate) async fn next(&mut self) -> &'static str {
        if self.received.changed().await.is_err() {
            // The sender lives as long as the runtime.
            std::future::pending::<()>().await;
        }
        *self.received.borrow()
    }
}
