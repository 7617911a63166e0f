//! The client's side of SASL: which mechanism, and what to answer. Pure: messages in, messages out.
//!
//! SCRAM-SHA-256 (RFC 7677) is taken before PLAIN (RFC 4616), both only where the channel itself keeps
//! secrets. Over plain TCP libvirt wants a mechanism that also encrypts (GSSAPI); there is none here.
//!
//! Limits: [`MAX_SCRAM_ITERATIONS`], so that a lying server cannot keep a core busy for hours, nor the thread that all
//! connections share for longer than one notices.

use std::fmt;

use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechanisms::plain::PLAIN;
use rsasl::mechanisms::scram::SCRAM_SHA256;
use rsasl::prelude::{Mechanism, Mechname, Registry, SASLClient, Session, SessionError};
use rsasl::property::{AuthId, Password};

use crate::printable::printable;
use crate::transport::Channel;

/// Mechanisms in the order in which they are preferred.
static MECHANISMS: [Mechanism; 2] = [SCRAM_SHA256, PLAIN];

/// Most rounds of hashing that a server may ask for. Cyrus SASL, which libvirt's daemons use, asks for 4,096 unless
/// configured; this many keep the thread, and with it other hosts' connections, for some 20 ms (release build). A
/// daemon that asks for more is refused.
const MAX_SCRAM_ITERATIONS: u32 = 100_000;

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
            // It may quote the daemon's message.
            e => format!("the SASL exchange failed: {}", printable(&e.to_string())),
        })?;
        self.finished = state.is_finished();
        Ok(state.has_sent_message().then_some(message))
    }
}

/// Over plain TCP libvirt's server takes only mechanisms that encrypt, and where it has none it refuses
/// AUTH_SASL_INIT with no reason given. So this is asked before the first message.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> Credentials {
        Credentials { username: "user".into(), password: "pencil".into() }
    }

    #[test]
    fn the_best_common_mechanism_is_taken() {
        let check = |offered: &str, channel, expect: Result<&str, &str>| {
            let got = Sasl::start(offered, &credentials(), channel).map(|(_, name, _)| name);
            match (got, expect) {
                (Ok(name), Ok(expect)) => assert_eq!(name, expect, "{offered:?}"),
                (Err(what), Err(expect)) => assert_eq!(what, expect, "{offered:?}"),
                (got, _) => panic!("{offered:?}: {got:?}"),
            }
        };
        check("PLAIN,SCRAM-SHA-256", Channel::Unix, Ok("SCRAM-SHA-256"));
        check("GSSAPI SCRAM-SHA-256 PLAIN", Channel::Tls, Ok("SCRAM-SHA-256"));
        check("scram-sha-256", Channel::Ssh, Ok("SCRAM-SHA-256"));
        check("DIGEST-MD5,PLAIN", Channel::Tls, Ok("PLAIN"));
        let advice = "put scram-sha-256 (or plain) into mech_list of its /etc/sasl2/libvirt.conf";
        // Parts of names are no names, and a weaker relative is not taken in place of the one known.
        for offered in ["GSSAPI", "XPLAIN", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", ""] {
            check(offered, Channel::Tls, Err(&format!("the daemon offers only {offered}: {advice}")));
        }
        let refused = "the daemon wants SASL over plain TCP, where only encrypting mechanisms (GSSAPI) are taken, which \
                       this client does not have: use TLS (+tls) or SSH (+ssh)";
        for offered in ["GSSAPI", "SCRAM-SHA-256,PLAIN", "PLAIN"] {
            check(offered, Channel::Tcp, Err(refused));
        }
    }

    #[test]
    fn plain_is_one_message() {
        let (mut sasl, _, initial) = Sasl::start("PLAIN", &credentials(), Channel::Unix).expect("it begins");
        assert_eq!(initial.as_deref(), Some(b"\0user\0pencil".as_slice()));
        assert!(sasl.is_finished());
        assert_eq!(sasl.step(None), Ok(None));
    }

    /// Begins SCRAM and answers with a first message of the server, made from the client's nonce.
    fn scram(first: impl Fn(&str) -> String) -> (Sasl, Result<Option<Vec<u8>>, String>) {
        let (mut sasl, _, initial) =
            Sasl::start("SCRAM-SHA-256", &credentials(), Channel::Unix).expect("it begins");
        let initial = String::from_utf8(initial.expect("the client speaks first")).expect("text");
        let nonce = initial.strip_prefix("n,,n=user,r=").expect("RFC 5802's first message");
        let answer = sasl.step(Some(first(nonce).as_bytes()));
        (sasl, answer)
    }

    #[test]
    fn scram_never_sends_the_password_and_wants_proof() {
        let (mut sasl, answer) = scram(|nonce| format!("r={nonce}abc,s=c2FsdA==,i=4096"));
        let answer = String::from_utf8(answer.expect("a good message").expect("an answer")).expect("text");
        assert!(answer.starts_with("c=biws,r=") && answer.contains("abc,p="), "{answer}");
        assert!(!answer.contains("pencil"));
        assert!(!sasl.is_finished());
        // A server that knows the password would send another signature.
        let zeros = format!("v={}=", "A".repeat(43));
        let refused = sasl.step(Some(zeros.as_bytes())).expect_err("a wrong signature");
        assert_eq!(refused, "the daemon did not prove that it knows the password: somebody may pose as it");
        assert!(!sasl.is_finished());
    }

    #[test]
    fn a_lying_server_is_refused() {
        let check = |first: &dyn Fn(&str) -> String, expect: &str| {
            let (sasl, answer) = scram(first);
            let what = answer.expect_err("a lie");
            assert!(what.contains(expect), "{what}");
            assert!(!sasl.is_finished());
        };
        check(&|nonce| format!("r={nonce}x,s=c2FsdA==,i=100001"), "at most 100000 are done");
        check(&|nonce| format!("r={nonce}x,s=c2FsdA==,i=4000000000"), "4000000000 rounds of SCRAM hashing");
        check(&|nonce| format!("r={nonce}x,s=c2FsdA==,i=99999999999999"), "rounds of SCRAM hashing");
        check(&|nonce| format!("r={nonce}x,s=c2FsdA==,i=0"), "the SASL exchange failed");
        check(&|_| "r=another,s=c2FsdA==,i=4096".into(), "the SASL exchange failed");
        check(&|nonce| format!("r={nonce}x,s=***,i=4096"), "the SASL exchange failed");
        check(&|_| String::new(), "the SASL exchange failed");
    }

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic_or_finish(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let (mut sasl, _, _) = Sasl::start("SCRAM-SHA-256", &credentials(), Channel::Unix).expect("it begins");
            proptest::prop_assert!(sasl.step(Some(&bytes)).is_err());
            proptest::prop_assert!(!sasl.is_finished());
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        assert_eq!(format!("{:?}", credentials()), "Credentials { username: \"user\", .. }");
    }
}
