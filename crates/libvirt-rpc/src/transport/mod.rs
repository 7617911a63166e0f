//! The way to a daemon: from a [`Uri`] to a pair of byte streams, before the first word of the protocol.
//!
//! ```text
//!          ┌─ unix ─ /run/libvirt/virtqemud-sock-ro, libvirt-sock-ro, …
//! Uri ─▶ dial ─ tcp ─ host:16509
//!          ├─ tls ── host:16514, then the server's one byte that says "your certificate is good"
//!          └─ ssh ── the system's ssh, with virt-ssh-helper or nc on the far side
//! ```
//!
//! Nothing here is tried twice: when to try again is the caller's policy, told by [`Error::is_retryable`].
//! A dial that takes longer than its timeout is given up and leaves nothing behind.

mod env;
mod process;
mod ssh;
mod tcp;
mod tls;
mod unix;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use self::env::{Env, read_limited};
pub use self::process::DaemonProcess;
pub(crate) use self::process::PROC;
use crate::error::Error;
use crate::uri::Uri;

/// What the connection may do. Statistics never need more than [`Access::ReadOnly`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading: the daemon's `-ro` socket where there is one.
    #[default]
    ReadOnly,
    /// Reading and writing, which may manage every domain.
    ReadWrite,
}

/// How a daemon is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A unix socket of this machine.
    Unix,
    /// Plain TCP: neither secret nor authentic.
    Tcp,
    /// TCP with TLS.
    Tls,
    /// Through an ssh process.
    Ssh,
}

impl Channel {
    /// True where nobody on the way can read or change what is sent.
    pub fn is_confidential(self) -> bool {
        self != Self::Tcp
    }
}

/// A way to a daemon, ready for the protocol's first message.
pub struct Stream {
    /// Bytes from the daemon; an end of file is for [`Peer::lost`] to explain.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Bytes to the daemon. It must be flushed: TLS keeps what is written until then.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Who is at the other end.
    pub peer: Peer,
}

/// Who is at the other end. Dropping it ends an ssh process behind it.
#[derive(Debug)]
pub struct Peer {
    /// For messages: `unix:/run/libvirt/libvirt-sock-ro`, `tcp:h:16509`, `tls:h:16514`, `ssh:user@h`.
    pub label: String,
    /// The daemon's process, by the socket's credentials (`SO_PEERCRED`): another one means a new daemon. Only
    /// over unix sockets, and only where the credentials are those of a libvirt daemon that still exists.
    pub process: Option<DaemonProcess>,
    /// How the daemon is reached.
    pub channel: Channel,
    /// The host whose password is looked up in `auth.conf`: `localhost` for local sockets.
    pub host_for_auth: String,
    ssh: Option<ssh::Child>,
}

impl Peer {
    /// The error for a daemon that did not answer within `waited`. Behind ssh, before the first answer, nobody may
    /// have taken the connection at all: then it is ssh that is asked what it has said so far.
    pub(crate) fn silent(&self, waited: Duration, answered_before: bool) -> Error {
        if let Some(child) = self.ssh.as_ref().filter(|_| !answered_before) {
            let words = child.words_in_silence(waited);
            return Error::connection(&self.label, words.what, words.retryable, None);
        }
        let what = format!(
            "the daemon took the connection but does not answer within {waited:?}: it may have no free worker (a hung \
             VM monitor?) or be starting up"
        );
        Error::connection(&self.label, what, true, None)
    }

    /// The error for bytes that begin with text in place of a frame, if they do: through ssh it was not the daemon that
    /// wrote it. (No frame is so long that its first byte is a character.)
    pub(crate) fn text_first(&self, start: &[u8]) -> Option<Error> {
        let child = self.ssh.as_ref()?;
        start
            .first()
            .filter(|byte| byte.is_ascii_graphic() || matches!(byte, b'\t'..=b'\r' | b' ' | 0x1b))?;
        let text = String::from_utf8_lossy(start);
        let words = child.words_of_text(text.trim_start().lines().next().unwrap_or_default());
        Some(Error::connection(&self.label, words.what, words.retryable, None))
    }

    /// The error for a connection that ended: `source` is what reading or writing said, None at an end of
    /// file. An ssh process is asked for its last words, which takes up to 2 s.
    pub async fn lost(&self, source: Option<io::Error>) -> Error {
        if let Some(child) = &self.ssh
            && let Some(words) = child.last_words().await
        {
            return Error::connection(&self.label, words.what, words.retryable, source);
        }
        let happened = match &source {
            None => "the daemon closed the connection".to_owned(),
            Some(e) => format!("the connection broke: {e}"),
        };
        let why = match self.channel {
            Channel::Tcp => "restarted, at its limit max_clients, or this is its TLS port",
            Channel::Ssh => {
                "restarted, at its limit max_clients, or it was ssh that ended, before or after its login"
            }
            _ => "restarted, or at its limit max_clients",
        };
        let what = format!("{happened} ({why})");
        // `what` already holds the source's words.
        Error::connection(&self.label, what, true, None)
    }
}

/// Connects to the daemon that the URI names.
///
/// # Errors
///
/// [`Error::Connection`] with one line that says what a person can do, e.g. start the daemon or fix a
/// certificate; it is retryable where that may happen without this program's being told.
pub async fn dial(uri: &Uri, access: Access, timeout: Duration) -> Result<Stream, Error> {
    dial_in(&Env::of_process(), uri, access, timeout).await
}

/// [`dial`], with everything that it takes from its surroundings as an argument.
pub(crate) async fn dial_in(
    env: &Env,
    uri: &Uri,
    access: Access,
    timeout: Duration,
) -> Result<Stream, Error> {
    let dialing = async {
        match uri.channel() {
            Channel::Unix => unix::dial(env, uri, access).await,
            Channel::Tcp => tcp::dial(uri, timeout).await,
            Channel::Tls => tls::dial(env, uri, timeout).await,
            Channel::Ssh => ssh::dial(uri, access, timeout),
        }
    };
    match tokio::time::timeout(timeout, dialing).await {
        Ok(result) => result,
        Err(_) => {
            let what =
                format!("no answer within {timeout:?}: is the host up, and does a firewall let us through?");
            Err(Error::connection(label(uri), what, true, None))
        }
    }
}

/// The peer's name where there is no better one yet (a unix socket is known only once it is found).
fn label(uri: &Uri) -> String {
    let host = uri.host().unwrap_or("localhost");
    match uri.channel() {
        Channel::Unix => format!("unix:{}", uri.params.socket.as_deref().unwrap_or("libvirt")),
        Channel::Tcp => format!("tcp:{}", host_port(host, uri.port().unwrap_or(tcp::PORT))),
        Channel::Tls => format!("tls:{}", host_port(host, uri.port().unwrap_or(tls::PORT))),
        Channel::Ssh => {
            let user = uri.user().map(|user| format!("{user}@")).unwrap_or_default();
            match uri.port() {
                Some(port) => format!("ssh:{user}{}", host_port(host, port)),
                None => format!("ssh:{user}{host}"),
            }
        }
    }
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
