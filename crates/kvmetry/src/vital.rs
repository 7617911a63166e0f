//! Threads that nothing goes on without: the writer's and the store's.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The exit code after a fault of this program (`EX_SOFTWARE` of sysexits.h).
const FAULT: i32 = 70;

/// Starts a thread whose panic ends the process: writes that wait for it would wait for ever, or memory fill up. What is
/// on disk is whole at every moment, so a start goes on from there, and whoever supervises the process starts it.
///
/// # Errors
/// The system has no thread.
pub(crate) fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_or(name, run, move || {
        tracing::error!(thread = name, "a fault of kvmetry: a thread panicked, so all ends; start it again");
        std::process::exit(FAULT)
    })
}

fn spawn_or(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
    on_panic: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        // Nobody uses what it leaves.
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            on_panic();
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn check(run: impl FnOnce() + Send + 'static) -> bool {
        let (told, panicked) = mpsc::channel();
        spawn_or("test", run, move || told.send(()).unwrap()).unwrap();
        // Without a panic the sender is dropped with the thread.
        panicked.recv().is_ok()
    }

    #[test]
    fn only_a_panic_is_told() {
        assert!(check(|| panic!("on purpose")));
        assert!(!check(|| ()));
    }
}
