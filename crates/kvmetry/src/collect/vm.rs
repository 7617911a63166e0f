//! What is kept of a live VM between cycles: its last reading's buffer, slow facts, and its health.
//!
//! ```text
//!             a call over it and others is given up          busy in 2 cycles
//!                  │
//!  answering ──────┴─▶ asked again, with NOWAIT: ──▶ busy ─────────────────────▶ stuck: asked apart from the others
//!      ▲                │ whole: it was not this one  (its job is held)                  │
//!      └────────────────┴──────────────────────────── it answers whole ◀─────────────────┘
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

/// What came of asking for the part of a reading that its monitor gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It was not to be asked: set aside, or no call may be made.
    No,
    /// The cycle was over before its turn came.
    NotReached,
    /// No try of its call was answered; another VM of the same call may be to blame.
    Unanswered,
    /// The daemon answered: with its record, or without, if it has ended.
    Answered,
}

/// What has become of a VM's health, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is stuck: a call of ours hangs over it.
    Stuck,
    /// It is busy, though none of our calls hangs over it.
    HeldByOthers,
    /// It was stuck and answers again.
    Back,
}

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
    /// An event said that it has ended; what was read before is written still.
    pub(crate) ended: bool,
    /// Its last reading was whole.
    pub(crate) whole: bool,
    /// What came of asking its monitor in this cycle.
    pub(crate) asked: Asked,
    /// Its balloon's period was tried to be set since the XML was read.
    pub(crate) balloon_tried: bool,
    /// Cycles running in which it was found busy: its monitor gave nothing, though the daemon answered.
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
            ended: false,
            whole: false,
            asked: Asked::No,
            balloon_tried: false,
            busy_cycles: 0,
            held_by: Vec::new(),
        }
    }

    /// Empties the sample for a reading of `wanted`.
    pub(crate) fn begin(&mut self, wanted: Groups) {
        let domain = &self.domain;
        self.sample.begin(telemetry::DomainId(domain.id), telemetry::Uuid(domain.uuid), &domain.name, wanted);
        self.taken = None;
    }

    /// The domain has another id than it had: another life, of which nothing is known yet.
    pub(crate) fn restarted(&mut self, id: i32) {
        *self = Self::new(Domain { id, ..self.domain.clone() });
    }

    /// Notes a call over it (and others) that was given up, if the daemon is still at it.
    pub(crate) fn held(&mut self, late: &Late) {
        if !late.is_over() {
            self.held_by.push(late.clone());
        }
    }

    /// True while the given-up calls over it are unanswered. When one of them returns all are forgotten: it may have been
    /// the one that this VM held up, and asking again tells.
    pub(crate) fn is_held(&mut self) -> bool {
        if self.held_by.iter().any(Late::is_over) {
            self.held_by.clear();
        }
        !self.held_by.is_empty()
    }

    /// Its monitor has given nothing for [`STUCK_AFTER`] cycles.
    pub(crate) fn is_stuck(&self) -> bool {
        self.busy_cycles >= STUCK_AFTER
    }

    /// Its slow facts are to be read anew: something about it changed.
    pub(crate) fn forget_facts(&mut self, now: Instant) {
        self.facts = None;
        self.facts_due = now;
        // The old count is better than none until the new one is there.
        self.vcpus = self.vcpus.map(|(count, _)| (count, now));
    }

    /// Notes what this cycle says of its monitor: `busy` if the daemon answered and it gave nothing. A VM of which
    /// nothing was learnt stays what it was.
    pub(crate) fn judge(&mut self, busy: bool) -> Option<Turn> {
        if self.asked != Asked::Answered {
            return None;
        }
        let was_stuck = self.is_stuck();
        self.busy_cycles = if busy { self.busy_cycles.saturating_add(1) } else { 0 };
        match (was_stuck, self.is_stuck()) {
            (false, true) if self.is_held() => Some(Turn::Stuck),
            (false, true) => Some(Turn::HeldByOthers),
            (true, false) => Some(Turn::Back),
            _ => None,
        }
    }

    /// Nothing of it was read with its monitor's help: what can be had without is taken from elsewhere.
    pub(crate) fn lacks_monitor(&self) -> bool {
        self.asked != Asked::Answered || self.taken.is_none() || self.sample.busy
    }

    /// Its bulk record came, and had no CPU time: there are no cgroups.
    pub(crate) fn lacks_cpu(&self) -> bool {
        !self.lacks_monitor() && self.sample.cpu.bulk_time.is_none()
    }

    /// The vCPU count is too old, or not known.
    pub(crate) fn wants_vcpus(&self, now: Instant) -> bool {
        self.vcpus.is_none_or(|(_, until)| now >= until)
    }

    /// Asked for, and the daemon had nothing of it: it has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.asked == Asked::Answered && self.taken.is_none()
    }

    /// The XML's facts, if they may still be believed.
    pub(crate) fn fresh_facts(&self, now: Instant) -> Option<&DomainFacts> {
        self.facts.as_ref().filter(|_| now < self.facts_due)
    }
}
