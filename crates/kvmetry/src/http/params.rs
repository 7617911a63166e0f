//! The query of a request target: `?db=kvm&precision=ns`.

use std::collections::HashMap;

use axum::extract::Query;
use axum::http::Uri;

/// Its parameters by name. Of one that stands twice the last is taken; bytes that are not UTF-8 are replaced.
#[derive(Debug)]
pub(crate) struct Params(HashMap<String, String>);

impl Params {
    pub(crate) fn of(uri: &Uri) -> Self {
        // Any query at all is a list of names and values.
        Self(Query::try_from_uri(uri).map(|Query(found)| found).unwrap_or_default())
    }

    /// The value, if there is one that is not empty.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// A line for the client.
    pub(crate) fn take_bool(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.take(name).as_deref() {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("{name}={other:?}: expected true or false")),
        }
    }
}
