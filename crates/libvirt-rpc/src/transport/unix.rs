//! Unix sockets: which one, and why not.
//!
//! The driver's own daemon is asked first (`virtqemud-sock-ro`), then the monolithic one (`libvirt-sock-ro`), as
//! libvirt does (`remoteGetUNIXSocket` in `remote_sockets.c`). No daemon is ever started from here.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::{Access, Channel, Env, Peer, Stream};
use crate::error::Error;
use crate::uri::{Mode, Uri};

/// Init's process id: as the peer of a unix socket it stands for systemd's socket activation.
const INIT_PID: i32 = 1;

pub(super) async fn dial(env: &Env, uri: &Uri, access: Access) -> Result<Stream, Error> {
    let candidates = candidates(env, uri, access);
    // The most telling failure of those that were there: a socket that refuses says more than one that is absent.
    let mut refused = None;
    for path in &candidates {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(connected(stream, path)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => refused = refused.or(Some((path, e))),
            Err(e) => return Err(failure(path, access, e)),
        }
    }
    match refused {
        Some((path, e)) => Err(failure(path, access, e)),
        None => Err(absent(env, uri, &candidates)),
    }
}

fn connected(stream: UnixStream, path: &Path) -> Stream {
    // Zero stands for a process outside our PID namespace.
    let pid = stream.peer_cred().ok().and_then(|cred| cred.pid()).filter(|pid| *pid > INIT_PID);
    let (reader, writer) = stream.into_split();
    let peer = Peer {
        label: label(path),
        pid,
        channel: Channel::Unix,
        host_for_auth: "localhost".into(),
        ssh: None,
    };
    Stream { reader: Box::new(reader), writer: Box::new(writer), peer }
}

/// The sockets to try, the best first.
pub(super) fn candidates(env: &Env, uri: &Uri, access: Access) -> Vec<PathBuf> {
    if let Some(socket) = &uri.params.socket {
        return vec![socket.into()];
    }
    let user_daemon = uri.wants_user_daemon() && !env.is_root();
    // A user's own daemon has no read-only socket.
    let (dirs, suffix) = match (user_daemon, access) {
        (true, _) => (env.user_runtime.iter().cloned().collect(), "sock"),
        (false, Access::ReadOnly) => (env.system_runtime.clone(), "sock-ro"),
        (false, Access::ReadWrite) => (env.system_runtime.clone(), "sock"),
    };
    let names = daemon_names(uri.driver(), uri.params.mode);
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(format!("{name}-{suffix}")))).collect()
}

/// What the sockets are named after: `virtqemud` and `libvirt`.
pub(super) fn daemon_names(driver: &str, mode: Mode) -> Vec<String> {
    let own = match driver {
        // The test driver lives in every daemon, and "remote" leaves the choice to it.
        "test" | "remote" => None,
        "parallels" => Some("virtvzd".to_owned()),
        driver => Some(format!("virt{driver}d")),
    };
    let monolithic = "libvirt".to_owned();
    match (mode, own) {
        (Mode::Auto, Some(own)) => vec![own, monolithic],
        (Mode::Direct, Some(own)) => vec![own],
        (Mode::Legacy, _) | (_, None) => vec![monolithic],
    }
}

fn label(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn absent(env: &Env, uri: &Uri, candidates: &[PathBuf]) -> Error {
    let Some(last) = candidates.last() else {
        let what =
            "no directory for the user's daemon: set XDG_RUNTIME_DIR, or give the socket by socket=PATH";
        return Error::connection("unix:libvirt", what, false, None);
    };
    let what = if uri.params.socket.is_some() {
        "no such socket: is the daemon running, and is socket= right?".to_owned()
    } else {
        // Of /run and /var/run, mostly one directory, the first is enough for a message.
        let dir = candidates[0].parent();
        let names: Vec<_> = candidates
            .iter()
            .filter(|path| path.parent() == dir)
            .map(|path| path.display().to_string())
            .collect();
        let own = daemon_names(uri.driver(), uri.params.mode).swap_remove(0);
        let advice = match (uri.wants_user_daemon() && !env.is_root(), own.as_str()) {
            (true, "libvirt") => "start your own with \"libvirtd -d\"".to_owned(),
            (true, own) => format!("start your own with \"{own} -d\" or \"libvirtd -d\""),
            (false, "libvirt") => "start it with \"systemctl start libvirtd\"".to_owned(),
            (false, own) => format!("start it with \"systemctl start libvirtd\" (or {own}.socket)"),
        };
        format!("no libvirt daemon here, there is no {}: {advice}", names.join(" and no "))
    };
    // A daemon may come up, and a package be installed, without anybody telling us.
    Error::connection(label(last), what, true, None)
}

fn failure(path: &Path, access: Access, e: io::Error) -> Error {
    match e.kind() {
        ErrorKind::NotFound => Error::connection(label(path), "no such socket", true, Some(e)),
        ErrorKind::ConnectionRefused => {
            let what = "nobody listens on this socket (left behind by a daemon that ended): start it again with \
                        \"systemctl restart libvirtd\"";
            Error::connection(label(path), what, true, Some(e))
        }
        ErrorKind::PermissionDenied => {
            Error::connection(label(path), no_permission(path, access), false, Some(e))
        }
        _ => Error::connection(label(path), format!("cannot connect: {e}"), true, None),
    }
}

fn no_permission(path: &Path, access: Access) -> String {
    let Ok(meta) = fs::metadata(path) else {
        return format!(
            "permission refused: a directory above it is closed to us, see \"namei -l {}\"",
            path.display()
        );
    };
    let mode = meta.permissions().mode() & 0o7777;
    let is = format!("permission refused: mode {mode:04o}, user {}, group {}", meta.uid(), meta.gid());
    match access {
        Access::ReadOnly if path.as_os_str().to_string_lossy().ends_with("-ro") => {
            format!("{is}; this socket is normally open to all: see unix_sock_ro_perms in libvirtd.conf")
        }
        Access::ReadOnly => {
            format!("{is}; run as the socket's owner, or use its -ro neighbour (qemu:///system)")
        }
        Access::ReadWrite => format!(
            "{is}; read-only access is enough for statistics, writing needs root or the socket's group, \
             which may manage every VM"
        ),
    }
}
