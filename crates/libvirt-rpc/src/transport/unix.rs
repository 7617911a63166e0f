//! Unix sockets: which one, and why not.
//!
//! The driver's own daemon is asked first (`virtqemud-sock-ro`), then the monolithic one (`libvirt-sock-ro`),
//! as libvirt does (`remoteGetUNIXSocket` in `remote_sockets.c`). No daemon is ever started from here.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::{Access, Channel, DaemonProcess, Env, Peer, Stream};
use crate::error::Error;
use crate::uri::{Mode, Uri};

pub(super) async fn dial(env: &Env, uri: &Uri, access: Access) -> Result<Stream, Error> {
    let candidates = candidates(env, uri, access);
    // The most telling failure of those that were there: a socket that refuses says more than one that is
    // absent.
    let mut refused = None;
    for path in &candidates {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(connected(env, stream, path)),
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

fn connected(env: &Env, stream: UnixStream, path: &Path) -> Stream {
    let pid = stream.peer_cred().ok().and_then(|cred| cred.pid());
    let (reader, writer) = stream.into_split();
    let peer = Peer {
        label: label(path),
        process: pid.and_then(|pid| DaemonProcess::of(&env.proc, pid)),
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
    // Of /run and /var/run, mostly one directory, the first is enough for a message.
    let dir = candidates.first().and_then(|path| path.parent());
    let shown: Vec<&Path> =
        candidates.iter().map(PathBuf::as_path).filter(|path| path.parent() == dir).collect();
    let Some(last) = shown.last() else {
        let what =
            "no directory for the user's daemon: set XDG_RUNTIME_DIR, or give the socket by socket=PATH";
        return Error::connection("unix:libvirt", what, false, None);
    };
    let what = if uri.params.socket.is_some() {
        "no such socket: is the daemon running, and is socket= right?".to_owned()
    } else {
        let names: Vec<_> = shown.iter().map(|path| path.display().to_string()).collect();
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
        // The queue of connections is full (unix(7), EAGAIN).
        ErrorKind::WouldBlock => {
            let what = "the daemon accepts nobody: it hangs (\"systemctl status libvirtd\" and its log tell), or is at its limit \
                        max_clients";
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::transport::dial_in;

    fn env(euid: u32, dir: &Path) -> Env {
        Env {
            euid,
            system_runtime: vec![dir.join("run"), dir.join("var")],
            user_runtime: Some(dir.join("user")),
            ..Env::of_process()
        }
    }

    #[test]
    fn sockets_in_libvirts_order() {
        let check = |text: &str, euid, access, expect: &[&str]| {
            let uri: Uri = text.parse().expect("a good URI");
            let found = candidates(&env(euid, Path::new("/")), &uri, access);
            assert_eq!(found, expect.iter().map(PathBuf::from).collect::<Vec<_>>(), "{text} as {euid}");
        };
        use Access::{ReadOnly, ReadWrite};
        let both = [
            "/run/virtqemud-sock-ro",
            "/var/virtqemud-sock-ro",
            "/run/libvirt-sock-ro",
            "/var/libvirt-sock-ro",
        ];
        check("qemu:///system", 1000, ReadOnly, &both);
        check(
            "qemu:///system",
            0,
            ReadWrite,
            &["/run/virtqemud-sock", "/var/virtqemud-sock", "/run/libvirt-sock", "/var/libvirt-sock"],
        );
        check("qemu:///system?mode=legacy", 0, ReadOnly, &both[2..]);
        check("qemu:///system?mode=direct", 0, ReadOnly, &both[..2]);
        check("qemu:///system?socket=/s", 0, ReadOnly, &["/s"]);
        check("xen:///system?mode=direct", 0, ReadOnly, &["/run/virtxend-sock-ro", "/var/virtxend-sock-ro"]);
        check(
            "parallels:///system?mode=direct",
            0,
            ReadOnly,
            &["/run/virtvzd-sock-ro", "/var/virtvzd-sock-ro"],
        );
        check("remote:///", 0, ReadOnly, &both[2..]);
        // A user's own daemon has one socket for reading and writing; root has no daemon of its own.
        check("qemu:///session", 1000, ReadOnly, &["/user/virtqemud-sock", "/user/libvirt-sock"]);
        check("qemu:///session", 0, ReadOnly, &both);
        check("test:///default", 1000, ReadOnly, &both[2..]);
        check("test+unix:///default", 1000, ReadOnly, &["/user/libvirt-sock"]);
        check("test+unix:///default", 0, ReadOnly, &both[2..]);
    }

    struct Fixture {
        dir: tempfile::TempDir,
        env: Env,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let env = env(0, dir.path());
            for sub in &env.system_runtime {
                fs::create_dir(sub).expect("a directory");
            }
            Self { dir, env }
        }

        fn listen(&self, name: &str) -> UnixListener {
            UnixListener::bind(self.dir.path().join(name)).expect("a socket")
        }

        async fn dial(&self) -> Result<Stream, Error> {
            let uri = "qemu:///system".parse().expect("a good URI");
            dial_in(&self.env, &uri, Access::ReadOnly, Duration::from_secs(5)).await
        }

        /// The result's label or message, with the directory's name cut out.
        async fn told(&self) -> String {
            let text = match self.dial().await {
                Ok(stream) => stream.peer.label,
                Err(e) => format!("retryable={} {e}", e.is_retryable()),
            };
            text.replace(&*self.dir.path().to_string_lossy(), "")
        }
    }

    #[tokio::test]
    async fn the_modular_daemon_comes_first() {
        let fixture = Fixture::new();
        let _old = fixture.listen("var/libvirt-sock-ro");
        assert_eq!(fixture.told().await, "unix:/var/libvirt-sock-ro");
        let modular = fixture.listen("run/virtqemud-sock-ro");
        assert_eq!(fixture.told().await, "unix:/run/virtqemud-sock-ro");
        // Left behind by a daemon that ended: the next one is asked.
        drop(modular);
        assert_eq!(fixture.told().await, "unix:/var/libvirt-sock-ro");
    }

    #[tokio::test]
    async fn the_peers_process_is_known() {
        let mut fixture = Fixture::new();
        let _listener = fixture.listen("run/libvirt-sock-ro");
        let stream = fixture.dial().await.expect("somebody listens");
        assert_eq!(stream.peer.host_for_auth, "localhost");
        assert_eq!(stream.peer.process, None, "we are our own peer here, and no libvirt daemon");
        // What the kernel would tell of us if we were one.
        let pid = std::process::id();
        let files = fixture.dir.path().join(pid.to_string());
        fs::create_dir(&files).expect("a directory");
        fs::copy("/proc/self/stat", files.join("stat")).expect("a copy");
        fs::write(files.join("comm"), "virtqemud\n").expect("a file");
        fixture.env.proc = fixture.dir.path().to_owned();
        let stream = fixture.dial().await.expect("somebody listens");
        assert_eq!(stream.peer.process.map(|process| process.pid), i32::try_from(pid).ok());
    }

    #[tokio::test]
    async fn failures_say_what_to_do() {
        let fixture = Fixture::new();
        assert_eq!(
            fixture.told().await,
            "retryable=true unix:/run/libvirt-sock-ro: no libvirt daemon here, there is no /run/virtqemud-sock-ro and \
             no /run/libvirt-sock-ro: start it with \"systemctl start libvirtd\" (or virtqemud.socket)"
        );
        drop(fixture.listen("run/libvirt-sock-ro"));
        assert_eq!(
            fixture.told().await,
            "retryable=true unix:/run/libvirt-sock-ro: nobody listens on this socket (left behind by a daemon that \
             ended): start it again with \"systemctl restart libvirtd\""
        );
    }

    #[tokio::test]
    async fn a_daemon_that_accepts_nobody_is_told_from_one_that_is_not_there() {
        let fixture = Fixture::new();
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(fixture.dir.path().join("run/libvirt-sock-ro")).expect("its name");
        let _listener = socket.listen(1).expect("a listener");
        let mut waiting = Vec::new();
        let error = loop {
            match fixture.dial().await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "nobody is accepted, and everybody gets in");
        };
        assert!(error.is_retryable());
        let shown = error.to_string();
        assert!(shown.contains(": the daemon accepts nobody: it hangs ("), "{shown}");
    }

    /// Root is refused nowhere, so the kernel's refusal is not provoked here but its words are.
    #[test]
    fn a_refused_permission_shows_the_mode() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let check = |name: &str, access, expect: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("its mode");
            let error = failure(&path, access, ErrorKind::PermissionDenied.into());
            assert!(!error.is_retryable());
            let text = error.to_string();
            assert!(text.contains("permission refused: mode 0660, user "), "{text}");
            assert!(text.contains(expect), "{text}");
        };
        check("a-sock-ro", Access::ReadOnly, "unix_sock_ro_perms in libvirtd.conf");
        check("a-sock", Access::ReadOnly, "use its -ro neighbour");
        check("b-sock", Access::ReadWrite, "read-only access is enough for statistics");
        let error = failure(&dir.path().join("none/x"), Access::ReadOnly, ErrorKind::PermissionDenied.into());
        assert!(error.to_string().contains("a directory above it is closed to us"), "{error}");
    }
}
