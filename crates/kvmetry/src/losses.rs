//! What was lost, by whom and why: each cause is logged at once, then now and then with all that came since, and
//! every line is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::LossCause;

use crate::clock::{Clock, rfc3339};
use crate::logging::OncePerCause;

/// Who lost what has not even reached the journal: everybody.
pub(crate) const JOURNAL: &str = "journal";

/// Lines that somebody will never get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// A reader of the journal by its name there, or [`JOURNAL`].
    pub(crate) who: String,
    /// Why, for a person.
    pub(crate) why: String,
    pub(crate) lines: u64,
    /// The earliest and the latest time in them, nanoseconds since 1970.
    pub(crate) span: (i64, i64),
}

impl From<journal::Loss> for Lost {
    fn from(loss: journal::Loss) -> Self {
        let why = match loss.cause {
            LossCause::Full => "the journal is at its max_size",
            LossCause::TooOld => "they are older than the journal's max_age",
            LossCause::DiskFull => "the disk has no room for the journal to grow",
            LossCause::Damaged => "they cannot be read from the journal any more",
        };
        Self { who: loss.reader, why: why.to_owned(), lines: loss.lines, span: loss.span }
    }
}

/// All losses since the start.
pub(crate) struct Losses {
    clock: Arc<dyn Clock>,
    told: OncePerCause,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Lines by who lost them.
    lines: BTreeMap<String, u64>,
    /// What is not in the log yet, by who and why.
    untold: BTreeMap<(String, String), Lost>,
}

impl Losses {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, told: OncePerCause::default(), state: Mutex::default() }
    }

    /// Counts losses and tells them, if this cause was not told lately.
    pub(crate) fn add(&self, losses: impl IntoIterator<Item = impl Into<Lost>>) {
        for lost in losses {
            let lost: Lost = lost.into();
            let mut state = self.state();
            *state.lines.entry(lost.who.clone()).or_default() += lost.lines;
            let untold = state.untold.entry((lost.who.clone(), lost.why.clone()));
            untold
                .and_modify(|untold| {
                    untold.lines += lost.lines;
                    untold.span = (untold.span.0.min(lost.span.0), untold.span.1.max(lost.span.1));
                })
                .or_insert(lost);
        }
        self.tell_due();
    }

    /// How many lines this one has lost.
    pub(crate) fn lines_of(&self, who: &str) -> u64 {
        self.state().lines.get(who).copied().unwrap_or_default()
    }

    /// Tells what was held back and has waited long enough. Called now and then.
    pub(crate) fn tell_due(&self) {
        let now = self.clock.monotonic();
        let mut due = Vec::new();
        self.state().untold.retain(|(who, why), lost| {
            let tell = self.told.tell(&format!("{who} {why}"), now).is_some();
            if tell {
                due.push(lost.clone());
            }
            !tell
        });
        due.iter().for_each(tell);
    }

    /// Tells all that was held back: the program ends.
    pub(crate) fn tell_all(&self) {
        std::mem::take(&mut self.state().untold).values().for_each(tell);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(lost: &Lost) {
    let Lost { who, why, lines, span } = lost;
    tracing::error!(who, lines, from = rfc3339(span.0), to = rfc3339(span.1), "lines lost: {why}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::logging::{REPEAT_AFTER, log_of_this_thread};

    #[test]
    fn a_cause_is_told_at_once_and_what_comes_after_it_together() {
        let clock = Arc::new(ManualClock::at(0));
        let losses = Losses::new(clock.clone());
        let (log, _guard) = log_of_this_thread();
        let full = |lines, at: i64| Lost {
            who: "a".to_owned(),
            why: "full".to_owned(),
            lines,
            span: (at * 1_000_000_000, (at + 1) * 1_000_000_000),
        };
        losses.add([full(2, 10)]);
        losses.add([full(3, 30)]);
        losses.add([full(5, 20)]);
        losses.add([Lost { who: "b".to_owned(), ..full(7, 0) }]);
        clock.advance(Duration::from_secs(1));
        losses.tell_due();
        clock.advance(REPEAT_AFTER);
        losses.tell_due();
        losses.add([full(1, 40)]);
        losses.tell_all();
        losses.tell_all();
        assert_eq!((losses.lines_of("a"), losses.lines_of("b"), losses.lines_of("c")), (11, 7, 0));
        let told = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let found: Vec<_> = told.lines().map(str::trim_start).collect();
        let line = |who: &str, lines, from, to| {
            format!(
                "ERROR lines lost: full who={who:?} lines={lines} from=\"1970-01-01T00:00:{from:02}Z\" \
                 to=\"1970-01-01T00:00:{to:02}Z\""
            )
        };
        let expect = [line("a", 2, 10, 11), line("b", 7, 0, 1), line("a", 8, 20, 31), line("a", 1, 40, 41)];
        assert_eq!(found, expect);
    }
}
