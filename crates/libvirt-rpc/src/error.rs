//! One error type for the whole crate: each variant says whose fault it is, and so what to do next.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::connection::Late;
use crate::uri::UriError;

/// What went wrong while talking to a libvirt daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's fault: the URI makes no sense. Never retryable.
    #[error(transparent)]
    Uri(#[from] UriError),

    /// The caller's fault: more than one call may hold. It was not sent. Never retryable.
    #[error("{procedure}: {what}")]
    Argument {
        /// The call that was not sent.
        procedure: &'static str,
        /// What is too much, and the limit.
        what: String,
    },

    /// The way to the daemon: it cannot be reached, refuses us, or went away.
    #[error("{peer}: {what}")]
    Connection {
        /// Who was being talked to, e.g. `unix:/var/run/libvirt/libvirt-sock-ro` or `tls:hv1:16514`.
        peer: String,
        /// What failed and what a person can do about it, on one line.
        what: String,
        /// False where trying again cannot help until a person acts (permission, certificate, password).
        retryable: bool,
        /// The operating system's or TLS library's own word, where there is one.
        #[source]
        source: Option<io::Error>,
    },

    /// The daemon's bytes do not follow the protocol. The connection is closed: nothing after this offset
    /// can be trusted.
    #[error("{peer}: {procedure}: malformed message at byte {offset}: {expected}")]
    Protocol {
        /// Who sent it.
        peer: String,
        /// Procedure whose message it was, e.g. `CONNECT_GET_ALL_DOMAIN_STATS`.
        procedure: &'static str,
        /// Offset in bytes from the start of the frame (its length word included).
        offset: usize,
        /// What should have stood there.
        expected: String,
    },

    /// The daemon understood the call and answered with an error.
    #[error("{peer}: {procedure}: {message} (libvirt error {code}, domain {domain})")]
    Remote {
        /// Who answered.
        peer: String,
        /// The call that it refused.
        procedure: &'static str,
        /// `virErrorNumber` of libvirt's `virterror.h`; see [`ErrorCode`].
        code: ErrorCode,
        /// `virErrorDomain`: the part of libvirt that raised it.
        domain: i32,
        /// The daemon's words: one line, cut where it is longer than 300 characters.
        message: String,
    },

    /// No reply in time. The daemon may still be at it, see [`crate::Budget`]; or it was never asked, because earlier
    /// calls were in the way until the deadline ([`Late::was_sent`]).
    #[error("{peer}: {procedure}: {}", too_late(*.after, .late))]
    Deadline {
        /// Who did not answer.
        peer: String,
        /// The call that was given up.
        procedure: &'static str,
        /// How long was waited, for the reply or for being sent.
        after: Duration,
        /// Tells when the daemon is done with it after all.
        late: Late,
    },

    /// The call was never sent: as many as may be outstanding already are (see [`crate::Budget`]).
    #[error(
        "{peer}: {procedure}: not sent, {outstanding} earlier calls have no answer yet: most likely QEMU processes hang \
         there, state D or T in \"ps ax -o pid,stat,args | grep qemu\": repair their storage, continue them (kill \
         -CONT) or end them"
    )]
    Budget {
        /// Who would have been asked.
        peer: String,
        /// The call that was held back.
        procedure: &'static str,
        /// Calls that the daemon still has to answer.
        outstanding: usize,
    },
}

fn too_late(after: Duration, late: &Late) -> String {
    // Nobody wants to read nanoseconds.
    let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    match (late.was_sent(), after) {
        (true, _) => format!("no answer within {after:?}"),
        (false, Duration::ZERO) => "not sent, its deadline had passed".to_owned(),
        (false, _) => format!("not sent within {after:?}, earlier calls have not been answered"),
    }
}

/// `virErrorNumber`, with names for those that this crate or its callers decide by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub i32);

impl ErrorCode {
    /// VIR_ERR_NO_SUPPORT: the driver lacks the function.
    pub const NO_SUPPORT: Self = Self(3);
    /// VIR_ERR_INVALID_ARG: an argument is invalid; older daemons say so of flags they do not know.
    pub const INVALID_ARG: Self = Self(8);
    /// VIR_ERR_OPERATION_DENIED: forbidden for read-only access.
    pub const OPERATION_DENIED: Self = Self(29);
    /// VIR_ERR_SYSTEM_ERROR: the daemon's operating system refused it something.
    pub const SYSTEM_ERROR: Self = Self(38);
    /// VIR_ERR_RPC: the RPC layer failed, e.g. an unknown procedure.
    pub const RPC: Self = Self(39);
    /// VIR_ERR_NO_DOMAIN: the domain is not there (any more).
    pub const NO_DOMAIN: Self = Self(42);
    /// VIR_ERR_AUTH_FAILED: authentication failed.
    pub const AUTH_FAILED: Self = Self(45);
    /// VIR_ERR_AUTH_CANCELLED: whoever was asked for a password gave none.
    pub const AUTH_CANCELLED: Self = Self(79);
    /// VIR_ERR_ACCESS_DENIED: the daemon's access control forbids it to this user.
    pub const ACCESS_DENIED: Self = Self(88);
    /// VIR_ERR_DBUS_SERVICE: a service on the bus, e.g. polkit, gave the daemon no answer.
    pub const DBUS_SERVICE: Self = Self(89);
    /// VIR_ERR_AUTH_UNAVAILABLE: polkit wants a password and there is no agent to ask for it.
    pub const AUTH_UNAVAILABLE: Self = Self(94);
    /// VIR_ERR_OPERATION_INVALID: not possible in the domain's state, e.g. it is shut off.
    pub const OPERATION_INVALID: Self = Self(55);
    /// VIR_ERR_OPERATION_TIMEOUT: the daemon gave up, e.g. waiting 30 s for a domain's job.
    pub const OPERATION_TIMEOUT: Self = Self(68);
    /// VIR_ERR_CONFIG_UNSUPPORTED: the configuration or driver does not support it.
    pub const CONFIG_UNSUPPORTED: Self = Self(67);
    /// VIR_ERR_ARGUMENT_UNSUPPORTED: e.g. a statistics group that the driver lacks, with ENFORCE_STATS.
    pub const ARGUMENT_UNSUPPORTED: Self = Self(74);
}

impl ErrorCode {
    /// True where the daemon decided against this user: only a person can change that.
    pub(crate) fn is_denial(self) -> bool {
        [
            Self::AUTH_FAILED,
            Self::AUTH_CANCELLED,
            Self::AUTH_UNAVAILABLE,
            Self::ACCESS_DENIED,
            Self::OPERATION_DENIED,
        ]
        .contains(&self)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Error {
    /// True where the same call on a new connection, later, may well succeed without anyone's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Uri(_) | Self::Argument { .. } => false,
            Self::Connection { retryable, .. } => *retryable,
            Self::Protocol { .. } | Self::Deadline { .. } | Self::Budget { .. } => true,
            Self::Remote { code, .. } => [
                ErrorCode::OPERATION_TIMEOUT,
                ErrorCode::RPC,
                ErrorCode::SYSTEM_ERROR,
                ErrorCode::DBUS_SERVICE,
            ]
            .contains(code),
        }
    }

    /// True where the connection is of no use any more and a new one is needed.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Connection { .. } | Self::Protocol { .. })
    }

    /// The daemon's error code, if it was the daemon that refused.
    pub fn remote_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Remote { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn connection(
        peer: impl Into<String>,
        what: impl Into<String>,
        retryable: bool,
        source: Option<io::Error>,
    ) -> Self {
        Self::Connection { peer: peer.into(), what: what.into(), retryable, source }
    }
}
