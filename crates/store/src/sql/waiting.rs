//! Work of a query that reads files or computes for long: on threads that may wait, so that the time-outs of all queries
//! go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::{Result, exec_err};

/// Whether somebody still waits for work's result.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// # Errors
    /// Nobody waits any more: to be asked between the steps of long work.
    pub(super) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { exec_err!("the query has ended") } else { Ok(()) }
    }
}

/// Says so when whoever waits goes.
struct Waiter(Wanted);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does this on a thread that may wait. If this future is dropped, the work goes on until it asks [`Wanted::check`].
pub(super) async fn may_wait<T: Send + 'static>(
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    let wanted = Wanted::default();
    let _waiter = Waiter(wanted.clone());
    match tokio::task::spawn_blocking(move || work(&wanted)).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => exec_err!("the server is stopping"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn work_that_nobody_waits_for_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (begins, begun) = channel();
        let (ends, ended) = channel();
        runtime.block_on(async {
            let work = may_wait(move |wanted| {
                begins.send(()).expect("the test waits");
                while wanted.check().is_ok() {
                    std::thread::yield_now();
                }
                ends.send(()).expect("the test waits");
                Ok(())
            });
            let mut work = Box::pin(work);
            assert!((&mut work).now_or_never().is_none(), "it goes on");
            begun.recv().expect("it begins");
            drop(work);
            ended.recv().expect("it ends");
        });
    }

    #[test]
    fn a_panic_goes_on_to_whoever_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let waits = runtime.spawn(may_wait::<()>(|_| panic!("a fault")));
        let ended = runtime.block_on(waits).expect_err("a panic");
        assert_eq!(ended.into_panic().downcast_ref::<&str>(), Some(&"a fault"));
    }
}
