//! Proving who we are, before CONNECT_OPEN: `docs/auth.rst`, `remoteAuthenticate` of libvirt's client.
//!
//! The daemon lists the ways it takes for this socket: none, polkit, SASL. Polkit is asked of the daemon's
//! side alone. SASL passes messages to and fro; `char data<>` is an array of characters in the protocol, so
//! each byte travels as a whole XDR integer.

use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::Error;
use crate::procedure::Procedure;
use crate::transport::Access;
use crate::uri::Uri;
use crate::xdr::{Decoder, Encoder, Malformed};

/// REMOTE_AUTH_TYPE_LIST_MAX
const MAX_TYPES: usize = 20;
/// REMOTE_AUTH_SASL_DATA_MAX, bytes
const MAX_SASL_DATA: usize = 65_536;
/// Messages to and fro; the mechanisms used here need three.
const MAX_SASL_STEPS: usize = 16;

/// `remote_auth_type`
const NONE: i32 = 0;
const SASL: i32 = 1;
const POLKIT: i32 = 2;

/// Every call has until `deadline`, the end of the whole handshake.
pub(crate) async fn authenticate(connection: &Connection, uri: &Uri, deadline: Instant) -> Result<(), Error> {
    let types = connection
        .call_by(
            Procedure::AUTH_LIST,
            deadline,
            |_| {},
            |d| {
                let count = d.count(MAX_TYPES, 4, "authentication types")?;
                let types = (0..count).map(|_| d.i32()).collect::<Result<Vec<_>, _>>()?;
                d.end()?;
                Ok(types)
            },
        )
        .await?;
    match types.first() {
        None | Some(&NONE) => Ok(()),
        Some(&POLKIT) => polkit(connection, deadline).await,
        Some(&SASL) => sasl(connection, uri, deadline).await,
        Some(other) => Err(refused(
            connection,
            format!("the daemon wants authentication of type {other}, which this client does not know"),
        )),
    }
}

async fn polkit(connection: &Connection, deadline: Instant) -> Result<(), Error> {
    let (action, setting) = match connection.access() {
        Access::ReadOnly => ("org.libvirt.unix.monitor", "auth_unix_ro"),
        Access::ReadWrite => ("org.libvirt.unix.manage", "auth_unix_rw"),
    };
    let answer = connection
        .call_by(
            Procedure::AUTH_POLKIT,
            deadline,
            |_| {},
            |d| {
                let _complete = d.i32()?;
                d.end()
            },
        )
        .await;
    match answer {
        Err(Error::Remote { code, message, .. }) => {
            let what = format!(
                "polkit refused this user ({message}): are polkitd and dbus running, and does a rule in \
                 /etc/polkit-1/rules.d allow {action} (or set {setting} = \"none\" in libvirtd.conf)"
            );
            // polkitd and dbus may come up without anybody telling us.
            Err(Error::connection(connection.peer(), what, !code.is_denial(), None))
        }
        other => other,
    }
}

/// What one message of the daemon brought: whether it is content, and its data (absent is not empty).
type Answer = (bool, Option<Vec<u8>>);

async fn sasl(connection: &Connection, uri: &Uri, deadline: Instant) -> Result<(), Error> {
    let fault = |what: String| refused(connection, what);
    // Before the first message, which the daemon would refuse there without saying why.
    crate::sasl::check_channel(connection.channel()).map_err(fault)?;
    let offered = connection
        .call_by(
            Procedure::AUTH_SASL_INIT,
            deadline,
            |_| {},
            |d| {
                let mechanisms = d.string()?.to_owned();
                d.end()?;
                Ok(mechanisms)
            },
        )
        .await?;
    let credentials = crate::authfile::find(uri, connection.host_for_auth()).map_err(fault)?;
    let (mut exchange, mechanism, initial) =
        crate::sasl::Sasl::start(&offered, &credentials, connection.channel()).map_err(fault)?;
    let refusal = |error| match error {
        Error::Remote { code, message, .. } if code.is_denial() => refused(
            connection,
            format!(
                "the daemon refused the {mechanism} login of {:?} ({message}); check the user name and password \
                 in libvirt's auth.conf",
                credentials.username
            ),
        ),
        other => other,
    };
    let mut answer = connection
        .call_by(
            Procedure::AUTH_SASL_START,
            deadline,
            |e| {
                e.string(&mechanism);
                encode_data(e, initial.as_deref());
            },
            decode_answer,
        )
        .await
        .map_err(refusal)?;
    for _ in 0..MAX_SASL_STEPS {
        let (complete, data) = answer;
        // The last message of the daemon proves that it knows the password too: it is looked at even if the
        // daemon says that all is done.
        let next = exchange.step(data.as_deref()).map_err(fault)?;
        if complete && exchange.is_finished() {
            return Ok(());
        }
        answer = connection
            .call_by(Procedure::AUTH_SASL_STEP, deadline, |e| encode_data(e, next.as_deref()), decode_answer)
            .await
            .map_err(refusal)?;
        if answer.0 && answer.1.is_none() && exchange.is_finished() {
            return Ok(());
        }
    }
    Err(fault(format!("the SASL exchange did not end within {MAX_SASL_STEPS} messages")))
}

fn encode_data(e: &mut Encoder<'_>, data: Option<&[u8]>) {
    e.i32(i32::from(data.is_none()));
    let data = data.unwrap_or_default();
    e.u32(data.len() as u32);
    for &byte in data {
        e.u32(u32::from(byte));
    }
}

fn decode_answer(d: &mut Decoder<'_>) -> Result<Answer, Malformed> {
    let complete = d.i32()? != 0;
    let nil = d.i32()? != 0;
    let count = d.count(MAX_SASL_DATA, 4, "bytes of SASL data")?;
    let data = (0..count).map(|_| d.u32().map(|byte| byte as u8)).collect::<Result<Vec<_>, _>>()?;
    d.end()?;
    Ok((complete, (!nil).then_some(data)))
}

/// Trying again does not help before a person has changed something.
fn refused(connection: &Connection, what: String) -> Error {
    Error::connection(connection.peer(), what, false, None)
}
