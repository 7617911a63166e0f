//! Plain TCP: every address of the host in turn.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::{Channel, Peer, Stream, label};
use crate::error::Error;
use crate::uri::Uri;

/// libvirt's port for plain TCP (`LIBVIRTD_TCP_PORT`).
pub(super) const PORT: u16 = 16509;

pub(super) async fn dial(uri: &Uri, timeout: Duration) -> Result<Stream, Error> {
    let host = uri.host().unwrap_or("localhost");
    let stream = connect(uri, host, uri.port().unwrap_or(PORT), "libvirtd-tcp.socket", timeout).await?;
    let (reader, writer) = stream.into_split();
    let peer = Peer {
        label: label(uri),
        pid: None,
        channel: Channel::Tcp,
        host_for_auth: host.to_owned(),
        ssh: None,
    };
    Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), peer })
}

/// Tries the host's addresses one after another, each with its share of the time that is left, so that a dead
/// IPv6 route does not eat up the time of a good IPv4 address.
pub(super) async fn connect(
    uri: &Uri,
    host: &str,
    port: u16,
    unit: &str,
    timeout: Duration,
) -> Result<TcpStream, Error> {
    let end = Instant::now() + timeout;
    let fail = |what: String, retryable, e| Error::connection(label(uri), what, retryable, e);
    let addresses: Vec<SocketAddr> = match lookup_host((host, port)).await {
        Ok(addresses) => addresses.collect(),
        Err(e) => return Err(fail(format!("cannot find the address of host {host:?}"), true, Some(e))),
    };
    let mut last = None;
    for (i, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share = end.saturating_duration_since(now) / (addresses.len() - i) as u32;
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small calls wait for their replies: never for Nagle's timer. Failing here costs only time.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(e)) => last = Some((address, e)),
            Err(_) => last = Some((address, io::Error::new(ErrorKind::TimedOut, "no answer"))),
        }
    }
    let Some((address, e)) = last else {
        return Err(fail(format!("host {host:?} has no address"), true, None));
    };
    let what = match e.kind() {
        ErrorKind::ConnectionRefused => format!(
            "nobody listens on {address}: libvirtd does so only when told, by \"systemctl enable --now {unit}\" \
             or the option --listen"
        ),
        ErrorKind::TimedOut => {
            format!("no answer from {address}: is the host up, and does a firewall let us through?")
        }
        _ => format!("cannot connect to {address}: {e}"),
    };
    Err(fail(what, true, None))
}
