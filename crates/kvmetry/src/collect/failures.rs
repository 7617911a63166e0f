//! Readings that failed in one cycle: which domain's, which reading, why. To be logged once each and counted.

use std::sync::Arc;

use libvirt_rpc::{Error, ErrorCode};

/// One reading that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) domain: Arc<str>,
    /// A device's name, or what kind of reading it was.
    pub(crate) what: String,
    pub(crate) error: Error,
}

/// Those of one cycle; bounded by the calls that a cycle makes.
#[derive(Debug, Default)]
pub(crate) struct Failures(pub(crate) Vec<Failure>);

impl Failures {
    /// Notes a failed reading.
    ///
    /// # Errors
    /// Hands the error back if the connection is lost: then no further reading will do.
    pub(crate) fn add(&mut self, domain: &Arc<str>, what: &str, error: Error) -> Result<(), Error> {
        if error.is_connection_lost() {
            return Err(error);
        }
        // A domain that has just ended is no failure.
        if error.remote_code() != Some(ErrorCode::NO_DOMAIN) {
            self.0.push(Failure { domain: Arc::clone(domain), what: what.to_owned(), error });
        }
        Ok(())
    }
}
