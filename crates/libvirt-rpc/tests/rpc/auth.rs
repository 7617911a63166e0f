//! The handshake: who is let in, with what words one is turned away.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use libvirt_rpc::{Access, Budget, Connection, Error, ErrorCode, Options, Uri};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::daemon::{AUTH_LIST, AUTH_POLKIT, CONNECT_OPEN, Client, Daemon, SUPPORTS_FEATURE, Xdr, options};

const AUTH_NONE: u32 = 0;
const AUTH_SASL: u32 = 1;

async fn offer(client: &mut Client, kinds: &[u32]) {
    let call = client.call(AUTH_LIST).await;
    assert!(call.payload.is_empty());
    let list = kinds.iter().fold(Xdr::default().u32(kinds.len() as u32), |list, kind| list.u32(*kind));
    client.reply(&call, list).await;
}

#[tokio::test(start_paused = true)]
async fn the_driver_is_opened_by_name_and_with_the_access_asked_for() {
    for (access, flags) in [(Access::ReadOnly, 1), (Access::ReadWrite, 0)] {
        for kinds in [&[][..], &[AUTH_NONE][..]] {
            let daemon = Daemon::start();
            let uri = daemon.uri();
            let options = Options { access, ..options(&Budget::new(4)) };
            let (connection, ()) = tokio::join!(Connection::open(&uri, options), async {
                let mut client = daemon.accept().await;
                offer(&mut client, kinds).await;
                let call = client.call(CONNECT_OPEN).await;
                assert_eq!(call.payload, Xdr::default().u32(1).string("qemu:///system").u32(flags).0);
                client.reply(&call, Xdr::default()).await;
                let call = client.call(SUPPORTS_FEATURE).await;
                // A driver that does not know the question is no reason to give up.
                client.refuse(&call, 3, "this function is not supported").await;
            });
            connection.expect("an open connection");
        }
    }
}

/// What the daemon asks for, and the words of the refusal.
#[tokio::test(start_paused = true)]
async fn refusals_say_what_to_do() {
    let polkit: (u32, &[&str]) =
        (2, &["polkit refused this user (no agent)", "org.libvirt.unix.monitor", "polkit-1/rules.d"]);
    let unknown: (u32, &[&str]) = (9, &["authentication of type 9"]);
    for (kind, words) in [polkit, unknown] {
        let daemon = Daemon::start();
        let uri = daemon.uri();
        let (result, ()) = tokio::join!(Connection::open(&uri, options(&Budget::new(4))), async {
            let mut client = daemon.accept().await;
            offer(&mut client, &[kind]).await;
            if kind == 2 {
                let call = client.call(AUTH_POLKIT).await;
                client.refuse(&call, 45, "no agent").await;
            }
            client.end().await;
        });
        let error = result.expect_err("refused");
        assert!(!error.is_retryable(), "{error}");
        let shown = error.to_string();
        assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
        assert!(!shown.contains('\n'), "{shown}");
    }
}

/// The error code, and whether it may go away by itself.
#[tokio::test(start_paused = true)]
async fn a_polkit_that_cannot_be_asked_is_asked_again() {
    for (code, retryable) in [(45, false), (79, false), (94, false), (38, true), (89, true), (1, true)] {
        let daemon = Daemon::start();
        let uri = daemon.uri();
        let (result, ()) = tokio::join!(Connection::open(&uri, options(&Budget::new(4))), async {
            let mut client = daemon.accept().await;
            offer(&mut client, &[2]).await;
            let call = client.call(AUTH_POLKIT).await;
            client.refuse(&call, code, "words").await;
        });
        let error = result.expect_err("refused");
        assert!(error.to_string().contains("polkit refused this user (words)"), "{error}");
        assert_eq!(error.is_retryable(), retryable, "code {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn polkit_may_say_yes() {
    let daemon = Daemon::start();
    let uri = daemon.uri();
    let (result, ()) = tokio::join!(Connection::open(&uri, options(&Budget::new(4))), async {
        let mut client = daemon.accept().await;
        offer(&mut client, &[2]).await;
        let call = client.call(AUTH_POLKIT).await;
        client.reply(&call, Xdr::default().u32(1)).await;
        let call = client.call(CONNECT_OPEN).await;
        client.refuse(&call, 3, "no such driver").await;
    });
    let error = result.expect_err("no driver");
    assert_eq!(error.remote_code(), Some(ErrorCode::NO_SUPPORT));
}

/// Real time: the resolver has a thread of its own.
#[tokio::test]
async fn sasl_over_plain_tcp_names_the_ways_out() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let uri: Uri = format!("qemu+tcp://127.0.0.1:{port}/system").parse().expect("a good URI");
    let (result, ()) = tokio::join!(Connection::open(&uri, options(&Budget::new(4))), async {
        let (stream, _) = listener.accept().await.expect("a client");
        let mut client = Client::over(stream);
        offer(&mut client, &[AUTH_SASL]).await;
        // Not even asked for its mechanisms, which the daemon would refuse without a reason.
        client.end().await;
    });
    let error = result.expect_err("refused");
    assert!(!error.is_retryable(), "{error}");
    let shown = error.to_string();
    assert!(shown.starts_with(&format!("tcp:127.0.0.1:{port}: ")), "{shown}");
    assert!(["SASL", "plain TCP", "TLS", "SSH"].iter().all(|word| shown.contains(word)), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_takes_the_connection_and_says_nothing_is_given_up() {
    // The deadline of a call on the open connection does not matter yet.
    for call in [1, 60] {
        let daemon = Daemon::start();
        let uri = daemon.uri();
        let options = Options { call_deadline: Duration::from_secs(call), ..options(&Budget::new(4)) };
        let begun = Instant::now();
        let (result, ()) = tokio::join!(Connection::open(&uri, options), async {
            let mut client = daemon.accept().await;
            client.call(AUTH_LIST).await;
            client.end().await;
        });
        let error = result.expect_err("nobody answers");
        assert!(matches!(error, Error::Connection { retryable: true, .. }), "{error:?}");
        let shown = error.to_string();
        assert!(shown.contains("the daemon took the connection but does not answer within 10s: "), "{shown}");
        assert_eq!(begun.elapsed().as_secs(), 10);
    }
}

/// As behind ssh, whose login comes before the first answer.
#[tokio::test(start_paused = true)]
async fn each_answer_of_the_handshake_may_take_what_is_left_to_connect() {
    let daemon = Daemon::start();
    let uri = daemon.uri();
    let options = Options { call_deadline: Duration::from_secs(1), ..options(&Budget::new(4)) };
    let (result, mut client) = tokio::join!(Connection::open(&uri, options), async {
        let mut client = daemon.accept().await;
        for (procedure, answer) in [
            (AUTH_LIST, Xdr::default().u32(1).u32(2)),
            (AUTH_POLKIT, Xdr::default().u32(1)),
            (CONNECT_OPEN, Xdr::default()),
            (SUPPORTS_FEATURE, Xdr::default().u32(1)),
        ] {
            let call = client.call(procedure).await;
            tokio::time::advance(Duration::from_secs(2)).await;
            client.reply(&call, answer).await;
        }
        client
    });
    let connection = result.expect("an open connection");
    client.hostname(&connection).await;
}

/// A shell script in place of ssh.
fn ssh_is(script: &str) -> (tempfile::TempDir, Uri) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = dir.path().join("ssh");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("its mode");
    let uri = format!("qemu+ssh://hv1/system?command={}", program.display());
    (dir, uri.parse().expect("a good URI"))
}

/// Real time: the script is a process of its own.
#[tokio::test]
async fn a_login_shell_that_talks_is_told_from_a_daemon() {
    let check = async |script: &str, retryable: bool, expect: &str| {
        let (_dir, uri) = ssh_is(script);
        let error = Connection::open(&uri, options(&Budget::new(4))).await.expect_err("no daemon");
        let shown = error.to_string();
        assert!(shown.contains(expect), "{script}: {shown}");
        assert_eq!(error.is_retryable(), retryable, "{script}: {shown}");
        assert!(!shown.contains('\n'), "{shown}");
    };
    let talks = "ssh:hv1: the login shell on that host printed \"Welcome to hv1\" on standard output";
    check("printf 'Welcome to hv1\\nLast login\\n'; exec sleep 600", false, talks).await;
    check("printf '\\nWelcome to hv1\\n'; exec sleep 600", false, talks).await;
    // Bytes that are no text are a malformed frame, whoever sent them.
    check("head -c 100 /dev/zero; exec sleep 600", true, "frame: malformed message at byte 0").await;
    check("exit 255", true, "or it was ssh that ended, before or after its login").await;
}

/// A program in place of ssh that never logs in.
#[tokio::test(start_paused = true)]
async fn an_ssh_that_does_not_log_in_is_not_taken_for_a_silent_daemon() {
    let (_dir, uri) = ssh_is("exec sleep 600");
    let begun = Instant::now();
    let error = Connection::open(&uri, options(&Budget::new(4))).await.expect_err("no login");
    assert_eq!(begun.elapsed().as_secs(), 10);
    let shown = error.to_string();
    assert!(error.is_retryable(), "{shown}");
    assert!(shown.starts_with("ssh:hv1: no answer within 10s: ssh has not logged in yet, or "), "{shown}");
    assert!(shown.ends_with("try \"ssh hv1 true\""), "{shown}");
}
