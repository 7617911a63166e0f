//! The system's ssh as a pipe to the far daemon's socket.
//!
//! ```text
//! us ◀─stdin/stdout─▶ ssh ◀──network──▶ sshd ─▶ sh -c 'virt-ssh-helper -r URI, else nc -U SOCKET' ─▶ daemon
//!        stderr ─▶ the last MAX_STDERR bytes, for the error message
//! ```
//!
//! ssh's own configuration (keys, agent, jump hosts) is used as it is. It never prompts: `BatchMode=yes`.
//! Whether the login worked is seen only when the daemon answers or the pipe ends; see [`super::Peer::lost`].

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};
use tokio::sync::watch;

use super::{Access, Channel, Peer, Stream, label, unix};
use crate::error::Error;
use crate::printable::printable;
use crate::uri::{HostKeys, Proxy, Uri};

/// Bytes kept of what ssh and the far side write to stderr; older ones are dropped.
const MAX_STDERR: usize = 4096;

/// How long to wait for ssh's last words after its pipe has ended: they are written before it exits, if at
/// all.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long before our own deadline ssh gives up: it has to write its words, and we have to read them.
const SPOKEN_FIRST: Duration = Duration::from_millis(500);

/// ssh asks the far side for a sign of life after so many seconds of silence, and gives up after 3 without
/// one.
const ALIVE_INTERVAL_S: u32 = 15;

pub(super) fn dial(uri: &Uri, access: Access, timeout: Duration) -> Result<Stream, Error> {
    let program = uri.params.command.as_deref().unwrap_or("ssh");
    let mut child = Command::new(program)
        .args(arguments(uri, access, timeout))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C on our terminal is ours: ssh must live until the connection is closed politely.
        .process_group(0)
        .spawn()
        .map_err(|e| {
            let what = match e.kind() {
                ErrorKind::NotFound if uri.params.command.is_some() => {
                    format!("command={program}: no such program")
                }
                ErrorKind::NotFound => "no program ssh here: install openssh-client".to_owned(),
                _ => format!("cannot run {program:?}: {e}"),
            };
            Error::connection(label(uri), what, false, None)
        })?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::connection(label(uri), "ssh has no pipes", true, None));
    };
    let peer = Peer {
        label: label(uri),
        process: None,
        channel: Channel::Ssh,
        host_for_auth: uri.host().unwrap_or("localhost").to_owned(),
        ssh: Some(Child { _process: child, stderr: Stderr::collect(stderr), by_hand: by_hand(uri) }),
    };
    Ok(Stream { reader: Box::new(stdout), writer: Box::new(stdin), peer })
}

/// The ssh process: killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Child {
    _process: tokio::process::Child,
    stderr: Stderr,
    /// The command by which a person would try the same login.
    by_hand: String,
}

/// What ssh's stderr means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastWords {
    pub(super) what: String,
    pub(super) retryable: bool,
}

impl Child {
    /// Once the pipe has ended: why, if ssh said so.
    pub(super) async fn last_words(&self) -> Option<LastWords> {
        interpret(&self.stderr.at_the_end().await, &self.by_hand)
    }

    /// The first bytes that came through the pipe are text: who wrote it.
    pub(super) fn words_of_text(&self, text: &str) -> LastWords {
        let what = format!(
            "the login shell on that host printed \"{}\" on standard output, where only libvirt's bytes may come: let \
             its start files (.bashrc and the like) print nothing without a terminal, until {} prints nothing",
            printable(text),
            self.by_hand
        );
        LastWords { what, retryable: false }
    }

    /// While the pipe is open and nothing has come through it for so long: what ssh has said so far, else what may
    /// be the matter. Whether it has logged in cannot be told from here.
    pub(super) fn words_in_silence(&self, waited: Duration) -> LastWords {
        let by_hand = &self.by_hand;
        interpret(&self.stderr.so_far(), by_hand).unwrap_or_else(|| LastWords {
            what: format!(
                "no answer within {waited:?}: ssh has not logged in yet, or the daemon behind it does not answer (no \
                 free worker, a hung VM monitor?); try {by_hand}"
            ),
            retryable: true,
        })
    }
}

/// The tail of the process' stderr, collected by a task that ends with the process.
#[derive(Debug)]
struct Stderr {
    tail: Arc<Mutex<VecDeque<u8>>>,
    /// Changes with every piece that is kept; its sender goes when the process has closed its stderr.
    news: watch::Receiver<()>,
}

impl Stderr {
    fn collect(mut pipe: ChildStderr) -> Self {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (running, news) = watch::channel(());
        let kept = Arc::clone(&tail);
        tokio::spawn(async move {
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = pipe.read(&mut buf).await {
                {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend(&buf[..n]);
                    let excess = kept.len().saturating_sub(MAX_STDERR);
                    kept.drain(..excess);
                }
                running.send_replace(());
            }
            // Dropping it ends the wait of at_the_end.
            drop(running);
        });
        Self { tail, news }
    }

    /// The tail once the process has closed it, or after [`LAST_WORDS`] what has come so far.
    async fn at_the_end(&self) -> String {
        let mut news = self.news.clone();
        let _ = tokio::time::timeout(LAST_WORDS, async { while news.changed().await.is_ok() {} }).await;
        self.so_far()
    }

    /// The tail of what has come until now.
    fn so_far(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail.iter().copied().collect::<Vec<u8>>()).into_owned()
    }
}

/// What ssh's, the helper's or the far shell's words mean, and what to do. None where they said nothing.
fn interpret(stderr: &str, by_hand: &str) -> Option<LastWords> {
    let line = telling_line(stderr)?;
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    // What stays as it is until a person acts is not retryable: keys, logins, missing programs.
    let (advice, retryable) = if stderr.contains("IDENTIFICATION HAS CHANGED") {
        (
            "the host's key is another than before: it was installed anew, or somebody poses as it"
                .to_owned(),
            false,
        )
    } else if has(&["Host key verification failed"]) {
        (format!("compare the host's key and accept it once by hand with {by_hand}"), false)
    } else if has(&["Permission denied ("]) {
        (format!("ssh must log in without a password (agent or keyfile=), try {by_hand}"), false)
    } else if line.starts_with("ssh: ") {
        (format!("is the host up and its address right? Try {by_hand}"), true)
    } else if has(&["No such file or directory", "Connection refused"]) {
        (
            "no libvirt daemon listens there, start it on that host with \"systemctl start libvirtd\""
                .to_owned(),
            true,
        )
    } else if has(&["not found"]) {
        ("install libvirt-clients (virt-ssh-helper) or netcat-openbsd (nc) on that host".to_owned(), false)
    } else if has(&["Permission denied"]) {
        ("that user may not use libvirt's socket on that host".to_owned(), false)
    } else {
        (format!("try {by_hand}"), true)
    };
    let line = line.strip_prefix("ssh: ").unwrap_or(line).trim_end_matches('.');
    Some(LastWords { what: format!("ssh: {}; {advice}", printable(line)), retryable })
}

/// The last line that is neither empty nor one of ssh's warnings and closing remarks.
fn telling_line(stderr: &str) -> Option<&str> {
    let noise = ["Warning:", "** ", "Connection closed", "Connection to ", "Shared connection", "debug"];
    let lines = || stderr.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let telling = lines().find(|line| !noise.iter().any(|noise| line.starts_with(noise)));
    telling.or_else(|| lines().next())
}

/// The arguments of ssh, as libvirt gives them (`virNetSocketNewConnectSSH`), and what a program without a
/// terminal needs beyond that.
fn arguments(uri: &Uri, access: Access, timeout: Duration) -> Vec<String> {
    let params = &uri.params;
    let mut args: Vec<String> = vec!["-T".into(), "-e".into(), "none".into()];
    let mut option = |name: &str, value: &str| args.extend(["-o".into(), format!("{name}={value}")]);
    option("BatchMode", "yes");
    // Banners come at level INFO, to stderr, where they would be taken for the cause of whatever happens next.
    option("LogLevel", "ERROR");
    option("ConnectTimeout", &connect_timeout_s(timeout).to_string());
    option("ServerAliveInterval", &ALIVE_INTERVAL_S.to_string());
    option("ServerAliveCountMax", "3");
    if let Some(path) = &params.keyfile {
        option("IdentityFile", &quote_for_ssh(path));
    }
    if let Some(path) = &params.known_hosts {
        option("UserKnownHostsFile", &quote_for_ssh(path));
    }
    match (params.no_verify, params.known_hosts_verify) {
        (true, _) | (_, HostKeys::Ignore) => option("StrictHostKeyChecking", "no"),
        (false, HostKeys::Auto) => option("StrictHostKeyChecking", "accept-new"),
        (false, HostKeys::Normal) => {}
    }
    if let Some(port) = uri.port() {
        args.extend(["-p".into(), port.to_string()]);
    }
    if let Some(user) = uri.user() {
        args.extend(["-l".into(), user.into()]);
    }
    // Nothing after -- is an option, whatever it begins with.
    args.extend(["--".into(), uri.host().unwrap_or("localhost").into(), remote_command(uri, access)]);
    args
}

/// ssh's own limit, at least [`SPOKEN_FIRST`] before the caller's, so that it is ssh that says what is wrong. It counts
/// whole seconds, one at least: with less than a second and a half to connect in all, ssh does not come to a word.
fn connect_timeout_s(timeout: Duration) -> u64 {
    timeout.saturating_sub(SPOKEN_FIRST).as_secs().max(1)
}

/// A path in an option: quotes because it may hold spaces, and % doubled because ssh expands %h and its like.
/// (The URI's parser refuses ", \ and $.)
fn quote_for_ssh(path: &str) -> String {
    format!("\"{}\"", path.replace('%', "%%"))
}

/// What a person would type to see the login fail or work.
fn by_hand(uri: &Uri) -> String {
    let port = uri.port().map(|port| format!("-p {port} ")).unwrap_or_default();
    let key =
        uri.params.keyfile.as_ref().map(|path| format!("-i {} ", quote_for_shell(path))).unwrap_or_default();
    // A key that is accepted by hand must come into the file that is looked at.
    let known = uri.params.known_hosts.as_ref().map(|path| {
        format!("-o {} ", quote_for_shell(&format!("UserKnownHostsFile={}", quote_for_ssh(path))))
    });
    let known = known.unwrap_or_default();
    let user = uri.user().map(|user| format!("{user}@")).unwrap_or_default();
    format!("\"ssh {port}{key}{known}{user}{} true\"", uri.host().unwrap_or("localhost"))
}

/// The command for the far login shell, which need not be a Bourne shell: one word for `sh -c`.
fn remote_command(uri: &Uri, access: Access) -> String {
    let native = {
        let read_only = if access == Access::ReadOnly { "-r " } else { "" };
        format!("virt-ssh-helper {read_only}{}", quote_for_shell(&uri.remote_name()))
    };
    let script = match proxy(uri) {
        Proxy::Native => format!("exec {native}"),
        Proxy::Netcat => netcat(uri, access),
        Proxy::Auto => format!(
            "if command -v virt-ssh-helper >/dev/null 2>&1; then exec {native}; fi; {}",
            netcat(uri, access)
        ),
    };
    format!("sh -c {}", quote_for_shell(&script))
}

/// `doRemoteOpen`'s choice: the helper knows no other socket than its default, and only the helper finds the
/// socket of a user's own daemon.
fn proxy(uri: &Uri) -> Proxy {
    match uri.params.proxy {
        Proxy::Auto if uri.params.socket.is_some() || uri.params.netcat.is_some() => Proxy::Netcat,
        Proxy::Auto if uri.is_session() => Proxy::Native,
        chosen => chosen,
    }
}

/// Netcat on the first socket that is there. Some versions stay when their input ends unless told -q0; those
/// that know -q say that it wants an argument.
fn netcat(uri: &Uri, access: Access) -> String {
    let nc = quote_for_shell(uri.params.netcat.as_deref().unwrap_or("nc"));
    let sockets = match &uri.params.socket {
        Some(socket) => vec![quote_for_shell(socket)],
        None => {
            let suffix = if access == Access::ReadOnly { "sock-ro" } else { "sock" };
            // Any machine with /run has /var/run, but not the other way round.
            let dir = Path::new("/var/run/libvirt");
            let names = unix::daemon_names(uri.driver(), uri.params.mode);
            let path = |name: &String| dir.join(format!("{name}-{suffix}")).display().to_string();
            names.iter().map(|name| quote_for_shell(&path(name))).collect()
        }
    };
    format!(
        "for s in {}; do test -S \"$s\" && break; done; \
         if {nc} -q </dev/null 2>&1 | grep -q \"requires an argument\"; then exec {nc} -q0 -U \"$s\"; fi; \
         exec {nc} -U \"$s\"",
        sockets.join(" ")
    )
}

/// One word for a Bourne shell, whatever is in it.
fn quote_for_shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("the test's URI is good")
    }

    #[test]
    fn arguments_are_libvirts() {
        let always = "-T -e none -o BatchMode=yes -o LogLevel=ERROR -o ConnectTimeout=4 -o ServerAliveInterval=15 \
                      -o ServerAliveCountMax=3";
        let check = |text: &str, expect: &str| {
            let mut args = arguments(&uri(text), Access::ReadOnly, Duration::from_secs(5));
            args.pop();
            assert_eq!(args.join(" "), format!("{always}{expect}"), "{text}");
        };
        check("qemu+ssh:///system", " -- localhost");
        check("qemu+ssh://hv1/system", " -- hv1");
        check("qemu+ssh://root@hv1:2222/system", " -p 2222 -l root -- hv1");
        check("qemu+ssh://[fe80::1%25eth0]/system", " -- fe80::1%eth0");
        check("qemu+ssh://h/system?keyfile=/k%20%25h", " -o IdentityFile=\"/k %%h\" -- h");
        check("qemu+ssh://h/system?known_hosts=/kh", " -o UserKnownHostsFile=\"/kh\" -- h");
        check("qemu+ssh://h/system?no_verify=1", " -o StrictHostKeyChecking=no -- h");
        check("qemu+ssh://h/system?known_hosts_verify=auto", " -o StrictHostKeyChecking=accept-new -- h");
        check("qemu+ssh://h/system?known_hosts_verify=ignore", " -o StrictHostKeyChecking=no -- h");
    }

    #[test]
    fn the_far_side_is_asked_by_helper_or_netcat() {
        let check = |text: &str, access, helper: Option<&str>, sockets: Option<&str>| {
            let command = remote_command(&uri(text), access);
            // One level of quoting off, as the login shell does.
            let script = command.strip_prefix("sh -c '").and_then(|rest| rest.strip_suffix('\''));
            let script = script.expect("one word for sh -c").replace(r"'\''", "'");
            let helper_part = script.split("exec ").find(|part| part.starts_with("virt-ssh-helper"));
            assert_eq!(
                helper_part.map(|part| part.trim_end_matches("; fi; for s in ").split(';').next()),
                helper.map(Some),
                "{text}: {script}"
            );
            let sockets_part = script.split("for s in ").nth(1).and_then(|part| part.split(';').next());
            assert_eq!(sockets_part, sockets, "{text}: {script}");
        };
        use Access::{ReadOnly, ReadWrite};
        let both = "'/var/run/libvirt/virtqemud-sock-ro' '/var/run/libvirt/libvirt-sock-ro'";
        let both_rw = "'/var/run/libvirt/virtqemud-sock' '/var/run/libvirt/libvirt-sock'";
        let old = "'/var/run/libvirt/libvirt-sock-ro'";
        let system = Some("virt-ssh-helper -r 'qemu:///system'");
        check("qemu+ssh://h/system", ReadOnly, system, Some(both));
        check("qemu+ssh://h/system", ReadWrite, Some("virt-ssh-helper 'qemu:///system'"), Some(both_rw));
        check("qemu+ssh://h/system?proxy=native", ReadOnly, system, None);
        check("qemu+ssh://h/system?proxy=netcat", ReadOnly, None, Some(both));
        check("qemu+ssh://h/system?mode=legacy", ReadOnly, system, Some(old));
        check("qemu+ssh://h/system?netcat=/opt/nc", ReadOnly, None, Some(both));
        check("qemu+ssh://h/system?socket=/s", ReadOnly, None, Some("'/s'"));
        check("test+ssh://h/default", ReadOnly, Some("virt-ssh-helper -r 'test:///default'"), Some(old));
        // Only the helper knows where a user's own daemon listens.
        check("qemu+ssh://h/session", ReadOnly, Some("virt-ssh-helper -r 'qemu:///session'"), None);
    }

    /// A hostile path must arrive as it is: through a login shell, the inner shell, and no further.
    #[tokio::test]
    async fn odd_words_survive_two_shells() {
        let odd = r#"/odd $HOME `id` $(id) 'q' "d" ;&|<>\ *"#;
        let encoded: String =
            odd.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%{b:02x}") }).collect();
        // echo stands in for nc: it knows no -q, and prints what it was given.
        let uri = uri(&format!("qemu+ssh://h/system?netcat=echo&socket={encoded}"));
        let command = remote_command(&uri, Access::ReadOnly);
        let output = Command::new("bash").args(["-c", &command]).output().await.expect("bash runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("-U {odd}\n"));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }

    #[test]
    fn stderr_becomes_advice() {
        let check = |stderr: &str, expect: Option<(&str, bool)>| {
            let words = interpret(stderr, "\"ssh h true\"");
            let expect = expect.map(|(what, retryable)| LastWords { what: what.into(), retryable });
            assert_eq!(words, expect, "{stderr:?}");
        };
        check("", None);
        check("\r\n\n", None);
        check(
            "ssh: connect to host h port 22: Connection refused\r\n",
            Some((
                "ssh: connect to host h port 22: Connection refused; is the host up and its address right? \
                 Try \"ssh h true\"",
                true,
            )),
        );
        check(
            "No ED25519 host key is known for h.\r\nHost key verification failed.\r\n",
            Some((
                "ssh: Host key verification failed; compare the host's key and accept it once by hand with \
                 \"ssh h true\"",
                false,
            )),
        );
        check(
            "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.\n",
            Some((
                "ssh: Host key verification failed; the host's key is another than before: it was installed anew, \
                 or somebody poses as it",
                false,
            )),
        );
        check(
            "Warning: Permanently added 'h'.\nu@h: Permission denied (publickey).\nConnection closed.\n",
            Some((
                "ssh: u@h: Permission denied (publickey); ssh must log in without a password (agent or keyfile=), \
                 try \"ssh h true\"",
                false,
            )),
        );
        check(
            "nc: unix connect failed: Connection refused\n",
            Some((
                "ssh: nc: unix connect failed: Connection refused; no libvirt daemon listens there, start it on that \
                 host with \"systemctl start libvirtd\"",
                true,
            )),
        );
        check(
            "sh: 1: exec: nc: not found\n",
            Some((
                "ssh: sh: 1: exec: nc: not found; install libvirt-clients (virt-ssh-helper) or netcat-openbsd (nc) \
                 on that host",
                false,
            )),
        );
        check("odd \x1b[31mwords\n", Some(("ssh: odd �[31mwords; try \"ssh h true\"", true)));
    }

    #[tokio::test]
    async fn only_the_tail_of_stderr_is_kept() {
        let mut child = Command::new("sh")
            .args(["-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the end >&2"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let stderr = Stderr::collect(child.stderr.take().expect("it is piped"));
        let tail = stderr.at_the_end().await;
        assert_eq!(tail.len(), MAX_STDERR);
        assert_eq!(telling_line(&tail), Some("the end"));
    }

    #[test]
    fn ssh_gives_up_before_we_do() {
        for (ours_ms, ssh_s) in
            [(400, 1), (1000, 1), (1500, 1), (2000, 1), (2500, 2), (5000, 4), (60_000, 59)]
        {
            assert_eq!(connect_timeout_s(Duration::from_millis(ours_ms)), ssh_s, "{ours_ms} ms");
        }
    }

    /// A process that neither logs in nor ends.
    #[tokio::test]
    async fn in_silence_what_was_said_so_far_counts() {
        let mut process = Command::new("sh")
            .args(["-c", "read go; echo 'ssh: no route' >&2; exec sleep 600"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("sh runs");
        let mut go = process.stdin.take().expect("it is piped");
        let stderr = Stderr::collect(process.stderr.take().expect("it is piped"));
        let child = Child { _process: process, stderr, by_hand: "\"ssh h true\"".into() };
        let words = child.words_in_silence(Duration::from_secs(5));
        assert!(words.retryable);
        assert!(words.what.starts_with("no answer within 5s: ssh has not logged in yet, or "), "{words:?}");
        go.write_all(b"go\n").await.expect("it reads");
        child.stderr.news.clone().changed().await.expect("a line");
        let words = child.words_in_silence(Duration::from_secs(5));
        assert!(words.what.starts_with("ssh: no route; is the host up"), "{words:?}");
    }

    /// The real ssh against a port that is closed: its words reach the error.
    #[tokio::test]
    async fn a_closed_port_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let uri = uri(&format!("qemu+ssh://127.0.0.1:{port}/system"));
        let mut stream = dial(&uri, Access::ReadOnly, Duration::from_secs(5)).expect("ssh is installed");
        assert_eq!(stream.reader.read(&mut [0; 1]).await.expect("an end of file"), 0);
        let error = stream.peer.lost(None).await;
        assert!(error.is_retryable());
        let text = error.to_string();
        let begins =
            format!("ssh:127.0.0.1:{port}: ssh: connect to host 127.0.0.1 port {port}: Connection refused; ");
        assert!(text.starts_with(&begins), "{text}");
    }

    /// Dropping the peer ends the process: the far end sees its connection close.
    #[tokio::test]
    async fn a_dropped_peer_takes_ssh_with_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let uri = uri(&format!("qemu+ssh://127.0.0.1:{port}/system"));
        let stream = dial(&uri, Access::ReadOnly, Duration::from_secs(60)).expect("ssh is installed");
        let (mut accepted, _) = listener.accept().await.expect("ssh connects");
        drop(stream);
        let mut banner = Vec::new();
        // Ends only when ssh is gone, for it waits 59 s for an answer to its banner. A reset is an end too.
        let read = tokio::time::timeout(Duration::from_secs(30), accepted.read_to_end(&mut banner)).await;
        assert!(read.is_ok(), "ssh still runs");
    }
}
