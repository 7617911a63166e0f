//! Log lines on stderr, and the rule that a trouble which lasts is not told every cycle.
//!
//! The level is `KVMETRY_LOG`, else `RUST_LOG`, else what suits the command (`info` for `run`, `warn` for the others):
//! a level (`debug`) or a list of levels by module (`info,kvmetry::output=debug`). Colours only on a terminal, and not
//! where `NO_COLOR` is set or the terminal is dumb. Under systemd's journal, which stamps every line itself, the lines carry no time of their
//! own.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The environment variables that set the level, the first one set wins.
const LEVEL_VARIABLES: [&str; 2] = ["KVMETRY_LOG", "RUST_LOG"];
/// A cause is told again after this long, with the number of times it was held back: often enough that
/// yesterday's trouble stands in today's log, seldom enough not to hide others.
pub(crate) const REPEAT_AFTER: Duration = Duration::from_secs(600);
/// Causes remembered at once. Beyond, the one told longest ago is forgotten, so that it may be told too soon.
pub(crate) const MAX_CAUSES: usize = 1024;

/// The target of the lines that say why a hypervisor is not reached.
pub(crate) const DOWN: &str = "kvmetry::collect::down";

/// What `run` tells.
pub(crate) fn of_run() -> Targets {
    Targets::new().with_default(LevelFilter::INFO)
}

/// What commands tell that print themselves what they find, and why a hypervisor is not reached; but not why a reading
/// failed.
pub(crate) fn of_others() -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target(DOWN, LevelFilter::OFF)
}

/// Starts logging, at `default` unless the environment says otherwise. Call it once, first thing in the program.
///
/// # Errors
/// A level that cannot be read, or a log that was started before; the message is ready to be shown.
pub(crate) fn init(default: Targets) -> Result<(), String> {
    let levels = levels(default, |name| std::env::var(name).ok())?;
    let colours = colours(std::io::stderr().is_terminal());
    let lines = tracing_subscriber::fmt::layer()
        .compact()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        // A line that cannot be written is lost; there is nowhere else to say so.
        .log_internal_errors(false);
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        tracing_subscriber::registry().with(levels).with(lines.without_time()).try_init()
    } else {
        tracing_subscriber::registry().with(levels).with(lines).try_init()
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

/// Whether to use colours on a stream: only on a terminal, not where `NO_COLOR` is set, and not on a dumb one.
pub(crate) fn colours(is_terminal: bool) -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    is_terminal && !forbidden && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn levels(default: Targets, variable: impl Fn(&str) -> Option<String>) -> Result<Targets, String> {
    for name in LEVEL_VARIABLES {
        if let Some(text) = variable(name).filter(|text| !text.is_empty()) {
            // A word alone is a level here; to the parser it could be a module's name as well.
            let is_level = |part: &str| part.contains('=') || LevelFilter::from_str(part.trim()).is_ok();
            let levels = if text.split(',').all(is_level) { Targets::from_str(&text).ok() } else { None };
            return levels.ok_or_else(|| {
                format!(
                    "{name}={text:?} is no log level: give error, warn, info, debug or trace, \
                     or a list as info,kvmetry::output=debug"
                )
            });
        }
    }
    Ok(default)
}

/// Tells each cause once, then again after [`REPEAT_AFTER`]; bounded by [`MAX_CAUSES`].
///
/// A cause is named by a key: all that makes it the same trouble (a domain and a device, a server), and
/// nothing that changes every cycle.
#[derive(Debug, Default)]
pub(crate) struct OncePerCause {
    causes: Mutex<HashMap<String, Told>>,
}

#[derive(Debug)]
struct Told {
    at: Duration,
    held_back: u64,
}

impl OncePerCause {
    /// Whether to tell this cause now. `Some(n)`: tell it; it was held back n times since it was told last.
    /// `now` is the monotonic clock's time.
    pub(crate) fn tell(&self, key: &str, now: Duration) -> Option<u64> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = causes.get_mut(key) {
            if now.saturating_sub(told.at) < REPEAT_AFTER {
                told.held_back += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.held_back));
        }
        if causes.len() >= MAX_CAUSES {
            let oldest = causes.iter().min_by_key(|(_, told)| told.at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                causes.remove(&oldest);
            }
        }
        causes.insert(key.to_owned(), Told { at: now, held_back: 0 });
        Some(0)
    }

    /// All troubles whose keys begin like this are over: the next time they are told at once.
    pub(crate) fn over_all(&self, prefix: &str) {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.retain(|key, _| !key.starts_with(prefix));
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What is logged on this thread while the guard lives, a line each without time and colours.
#[cfg(test)]
pub(crate) fn log_of_this_thread() -> (std::sync::Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let lines = log.0.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || log.clone())
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_comes_from_the_first_variable_that_is_set() {
        #[track_caller]
        fn check(set: &[(&str, &str)], expect: Result<&str, &str>) {
            let found = levels(of_run(), |name| {
                set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            });
            let found = found.map(|levels| levels.to_string());
            match (found, expect) {
                (Ok(found), Ok(expect)) => assert_eq!(found, expect),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                (found, expect) => panic!("{found:?} instead of {expect:?}"),
            }
        }
        check(&[], Ok("info"));
        check(&[("KVMETRY_LOG", "")], Ok("info"));
        check(&[("KVMETRY_LOG", "debug"), ("RUST_LOG", "error")], Ok("debug"));
        check(&[("RUST_LOG", "warn,kvmetry=trace")], Ok("kvmetry=trace,warn"));
        check(&[("KVMETRY_LOG", "loud")], Err("KVMETRY_LOG=\"loud\" is no log level"));
        check(&[("KVMETRY_LOG", "kvmetry=loud")], Err("KVMETRY_LOG=\"kvmetry=loud\" is no log level"));
    }

    #[test]
    fn commands_that_print_what_they_find_do_not_tell_it_twice() {
        use tracing::Level;
        let others = of_others();
        assert!(others.would_enable("kvmetry::collect", &Level::WARN));
        assert!(!others.would_enable("kvmetry::collect", &Level::INFO));
        assert!(!others.would_enable(DOWN, &Level::WARN));
        assert!(of_run().would_enable(DOWN, &Level::WARN));
    }

    #[test]
    fn a_cause_is_told_once_and_again_later() {
        let told = OncePerCause::default();
        let s = Duration::from_secs;
        let calls =
            [("a", 0, Some(0)), ("a", 5, None), ("b", 5, Some(0)), ("a", 599, None), ("a", 600, Some(2))];
        for (key, at, expect) in calls {
            assert_eq!(told.tell(key, s(at)), expect, "{key} at {at} s");
        }
        told.over_all("b");
        assert_eq!(told.tell("a", s(600)), None);
        told.over_all("a");
        assert_eq!(told.tell("a", s(601)), Some(0));
    }

    #[test]
    fn a_flood_of_causes_stays_within_its_bound() {
        let told = OncePerCause::default();
        for n in 0..MAX_CAUSES + 10 {
            let at = Duration::from_millis(u64::try_from(n).unwrap());
            assert_eq!(told.tell(&format!("domain {n}"), at), Some(0));
        }
        assert_eq!(told.causes.lock().unwrap().len(), MAX_CAUSES);
        let now = Duration::from_secs(2);
        assert_eq!(told.tell("domain 9", now), Some(0), "the oldest ones were forgotten");
        assert_eq!(told.tell("domain 1033", now), None, "the newest were not");
    }
}
