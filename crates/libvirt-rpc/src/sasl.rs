//! The client's side of SASL: which mechanism, and what to answer. Pure: messages in, messages out.
//!
//! SCRAM-SHA-256 (RFC 7677) is taken before PLAIN (RFC 4616), both only where the channel itself keeps secrets.
//! Over plain TCP libvirt wants a mechanism that also encrypts (GSSAPI); there is none here.
//!
//! Limits: [`MAX_SCRAM_ITERATIONS`], so that a lying server cannot keep a core busy for hours.

use std::fmt;

use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechanisms::plain::PLAIN;
use rsasl::mechanisms::scram::SCRAM_SHA256;
use rsasl::prelude::{Mechanism, Mechname, Registry, SASLClient, Session, SessionError};
use rsasl::property::{AuthId, Password};

use crate::transport::Channel;

/// Mechanisms in the order in which they are preferred.
static MECHANISMS: [Mechanism; 2] = [SCRAM_SHA256, PLAIN];

/// Most rounds of hashing that a server may ask for: Cyrus SASL asks for 4,096, the most careful advice is 600,000,
/// and a million is about half a second of one core.
const MAX_SCRAM_ITERATIONS: u32 = 1_000_000;

/// A name and a password, never printed together.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl SessionCallback for Credentials {
    fn callback(
        &self,
        _: &SessionData,
        _: &Context<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), SessionError> {
        request.satisfy::<AuthId>(&self.username)?.satisfy::<Password>(self.password.as_bytes())?;
        Ok(())
    }
}

/// One exchange with a server.
pub(crate) struct Sasl {
    session: Session,
    scram: bool,
    finished: bool,
}

impl Sasl {
    /// Chooses from the server's list (AUTH_SASL_INIT, names separated by commas or spaces). Returns also the
    /// mechanism's name and its first message, for AUTH_SASL_START.
    ///
    /// The error is a line for a person.
    pub(crate) fn start(
        offered: &str,
        credentials: &Credentials,
        channel: Channel,
    ) -> Result<(Self, String, Option<Vec<u8>>), String> {
        check_channel(channel)?;
        let offers = |mechanism: &Mechanism| {
            let mut names = offered.split([',', ' ']);
            names.any(|name| name.eq_ignore_ascii_case(mechanism.mechanism.as_str()))
        };
        let chosen = MECHANISMS.iter().find(|mechanism| offers(mechanism)).ok_or_else(|| {
            format!(
                "the daemon offers only {}: put scram-sha-256 (or plain) into mech_list of its \
                 /etc/sasl2/libvirt.conf",
                printable(offered)
            )
        })?;
        let name: &Mechname = chosen.mechanism;
        let session = SASLConfig::builder()
            .with_registry(Registry::with_mechanisms(&MECHANISMS))
            .with_callback(credentials.clone())
            .and_then(|config| SASLClient::new(config).start_suggested(&[name]))
            .map_err(|e| format!("cannot begin {name}: {e}"))?;
        let mut sasl = Self { session, scram: name != PLAIN.mechanism, finished: false };
        let initial = sasl.advance(None)?;
        Ok((sasl, name.to_string(), initial))
    }

    /// The answer to the server's message: None where there is nothing more to say.
    ///
    /// The error is a line for a person: the server's message is malformed, or it does not know the password.
    pub(crate) fn step(&mut self, server: Option<&[u8]>) -> Result<Option<Vec<u8>>, String> {
        if self.finished {
            return Ok(None);
        }
        if self.scram {
            check_iterations(server.unwrap_or_default())?;
        }
        self.advance(server)
    }

    /// True once this side has said all and, with SCRAM, the server has proved that it knows the password.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    fn advance(&mut self, server: Option<&[u8]>) -> Result<Option<Vec<u8>>, String> {
        let mut message = Vec::new();
        let state = self.session.step(server, &mut message).map_err(|e| match e {
            SessionError::MutualAuthenticationFailed => {
                "the daemon did not prove that it knows the password: somebody may pose as it".to_owned()
            }
            e => format!("the SASL exchange failed: {e}"),
        })?;
        self.finished = state.is_finished();
        Ok(state.has_sent_message().then_some(message))
    }
}

/// Over plain TCP libvirt's server takes only mechanisms that encrypt, and where it has none it refuses AUTH_SASL_INIT
/// with no reason given. So this is asked before the first message.
pub(crate) fn check_channel(channel: Channel) -> Result<(), String> {
    if channel.is_confidential() {
        return Ok(());
    }
    Err("the daemon wants SASL over plain TCP, where only encrypting mechanisms (GSSAPI) are taken, which this client \
         does not have: use TLS (+tls) or SSH (+ssh)"
        .to_owned())
}

/// The server's first SCRAM message is `r=NONCE,s=SALT,i=ITERATIONS` (RFC 5802, section 5.1).
fn check_iterations(message: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(message);
    match text.split(',').find_map(|field| field.strip_prefix("i=")) {
        Some(count) if !count.parse::<u32>().is_ok_and(|count| count <= MAX_SCRAM_ITERATIONS) => {
            Err(format!(
                "the daemon asks for {} rounds of SCRAM hashing: at most {MAX_SCRAM_ITERATIONS} are done",
                printable(count)
            ))
        }
        _ => Ok(()),
    }
}

/// The server's words for an error message: one line, not too long.
fn printable(text: &str) -> String {
    /// Characters of the server's words in a message.
    const MAX_SHOWN: usize = 100;
    text.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}
