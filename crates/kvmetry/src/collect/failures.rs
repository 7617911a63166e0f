//! Readings that failed in one cycle: which domain's, which reading, why. To be logged once each and counted.

use std::sync::Arc;

use libvirt_rpc::{Error, ErrorCode};

/// One reading that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) domain: Arc<str>,
    /// A device's name, or what kind of reading it was.
    pub(crate) what: String,
    pub(crate) why: String,
}

/// Those of one cycle; bounded by the calls that a cycle makes.
#[derive(Debug, Default)]
pub(crate) struct Failures(pub(crate) Vec<Failure>);

/// What a failed call means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It concerns this reading alone.
    GoOn,
    /// It is unanswered still, and so will be the next of its kind: there is one place for calls that need no monitor.
    Stop,
}

impl Failures {
    /// Notes a failed reading.
    ///
    /// # Errors
    /// Hands the error back if the connection is lost: then no further reading will do.
    pub(crate) fn add(&mut self, domain: &Arc<str>, what: &str, error: Error) -> Result<Next, Error> {
        if error.is_connection_lost() {
            return Err(error);
        }
        let next = if matches!(error, Error::Deadline { .. }) { Next::Stop } else { Next::GoOn };
        // A domain that has just ended is no failure.
        if error.remote_code() != Some(ErrorCode::NO_DOMAIN) {
            self.note(domain, what, error.to_string());
        }
        Ok(next)
    }

    /// Notes a reading that makes no sense.
    pub(crate) fn note(&mut self, domain: &Arc<str>, what: &str, why: String) {
        self.0.push(Failure { domain: Arc::clone(domain), what: what.to_owned(), why });
    }
}
