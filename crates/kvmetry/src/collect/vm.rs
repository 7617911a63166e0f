//! What is kept of a live VM between cycles: its last reading's buffer, slow facts, and its health.
//!
//! ```text
//!             a call over it is past its deadline            busy in 2 cycles, and a given-up call
//!                  │                                          over it is unanswered
//!  answering ──────┴─▶ still asked, with NOWAIT: the job is held, so it answers at once, without its
//!      ▲                monitor's keys: busy ─────────────────────────────────▶ stuck: job-free facts only
//!      └───────────────────────────── the given-up calls return ◀──────────────────────┘
//! ```

use std::time::Duration;

use libvirt_rpc::{Domain, Late};
use telemetry::{Groups, Sample};
use tokio::time::Instant;

use super::devices::DomainFacts;

/// A VM whose monitor gave nothing in this many cycles running is *stuck*.
pub(crate) const STUCK_AFTER: u32 = 2;

/// How old a vCPU count may be (TELEMETRY.md, rule 5).
pub(crate) const VCPUS_TTL: Duration = Duration::from_secs(60);

/// One live VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) domain: Domain,
    /// The buffer of this cycle's reading.
    pub(crate) sample: Sample,
    /// When this cycle's reading was taken; `None` if there is none.
    pub(crate) taken: Option<Instant>,
    /// How many vCPUs it has, and until when that may be believed.
    pub(crate) vcpus: Option<(u16, Instant)>,
    /// What its XML told; `None` where that is not known.
    pub(crate) facts: Option<DomainFacts>,
    /// When its XML is to be read anew.
    pub(crate) facts_due: Instant,
    /// A shard of this cycle was to read it.
    pub(crate) asked: bool,
    /// No try of that shard was answered.
    pub(crate) unanswered: bool,
    /// Cycles running in which its monitor gave nothing.
    pub(crate) busy_cycles: u32,
    /// Given-up calls over it that the daemon has not answered: sentinels, whose return says that it is back.
    pub(crate) held_by: Vec<Late>,
}

impl Vm {
    pub(crate) fn new(domain: Domain) -> Self {
        Self {
            domain,
            sample: Sample::default(),
            taken: None,
            vcpus: None,
            facts: None,
            facts_due: Instant::now(),
            asked: false,
            unanswered: false,
            busy_cycles: 0,
            held_by: Vec::new(),
        }
    }

    /// Empties the sample for a reading of `wanted`.
    pub(crate) fn begin(&mut self, wanted: Groups) {
        let domain = &self.domain;
        self.sample.begin(telemetry::DomainId(domain.id), telemetry::Uuid(domain.uuid), &domain.name, wanted);
        self.taken = None;
        self.unanswered = false;
    }

    /// Notes a call over it that was given up, if the daemon is still at it.
    pub(crate) fn held(&mut self, late: &Late) {
        if !late.is_over() {
            self.held_by.push(late.clone());
        }
    }

    /// True while a given-up call over it is unanswered.
    pub(crate) fn is_held(&mut self) -> bool {
        self.held_by.retain(|late| !late.is_over());
        !self.held_by.is_empty()
    }

    /// Its monitor has given nothing for [`STUCK_AFTER`] cycles.
    pub(crate) fn is_stuck(&self) -> bool {
        self.busy_cycles >= STUCK_AFTER
    }

    /// Stuck, and a sentinel will tell when it is back: asking again would only hold another of the daemon's
    /// workers. A VM that somebody else's call holds is asked on: with NOWAIT it costs nothing, and nothing
    /// else would tell.
    pub(crate) fn is_set_aside(&mut self) -> bool {
        self.is_held() && self.is_stuck()
    }

    /// Its slow facts are to be read anew: something about it changed.
    pub(crate) fn forget_facts(&mut self, now: Instant) {
        self.facts = None;
        self.facts_due = now;
        // The old count is better than none until the new one is there.
        self.vcpus = self.vcpus.map(|(count, _)| (count, now));
    }

    /// Notes whether its monitor gave anything in this cycle. A VM that was not asked stays what it was.
    pub(crate) fn judge(&mut self, busy: bool) {
        if !busy {
            self.busy_cycles = 0;
        } else if self.asked || self.is_stuck() {
            self.busy_cycles = self.busy_cycles.saturating_add(1);
        }
    }

    /// Its bulk record came, and had no CPU time: there are no cgroups.
    pub(crate) fn lacks_cpu(&self) -> bool {
        self.taken.is_some() && !self.sample.busy && self.sample.cpu.bulk_time.is_none()
    }

    /// The vCPU count is too old, or not known.
    pub(crate) fn wants_vcpus(&self, now: Instant) -> bool {
        self.vcpus.is_none_or(|(_, until)| now >= until)
    }

    /// The XML's facts, if they may still be believed.
    pub(crate) fn fresh_facts(&self, now: Instant) -> Option<&DomainFacts> {
        self.facts.as_ref().filter(|_| now < self.facts_due)
    }
}
