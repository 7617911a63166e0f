//! Keepalive: answering, asking, and when silence means that nobody is there.

use std::time::Duration;

use libvirt_rpc::{Budget, Connection, Error, MONITOR_CALLS};
use tokio::time::Instant;

use crate::daemon::{
    ALL_DOMAIN_STATS, CONNECT_CLOSE, Client, Daemon, GET_HOSTNAME, KEEPALIVE, MESSAGE, PING, PONG, Xdr,
    after, bulk, open, options,
};

/// Reads and answers nothing until the client ends; returns the number of PINGs.
async fn silent(client: &mut Client) -> usize {
    let mut pings = 0;
    while let Some(frame) = client.frame().await {
        pings += usize::from((frame.program, frame.procedure, frame.kind) == (KEEPALIVE, PING, MESSAGE));
    }
    pings
}

#[tokio::test(start_paused = true)]
async fn every_ping_is_answered() {
    let (connection, mut client) = open().await;
    for _ in 0..100 {
        client.keepalive(PING).await;
        let pong = client.frame().await.expect("an answer");
        assert_eq!((pong.program, pong.procedure, pong.kind), (KEEPALIVE, PONG, MESSAGE));
        assert!(pong.payload.is_empty());
    }
    client.hostname(&connection).await;
}

#[tokio::test(start_paused = true)]
async fn thirty_seconds_of_silence_end_the_connection() {
    let (connection, mut client) = open().await;
    let begun = Instant::now();
    let (result, event, pings) =
        tokio::join!(bulk(&connection, after(3600)), connection.next_event(), silent(&mut client));
    let error = result.expect_err("nobody answers");
    assert!(matches!(error, Error::Connection { retryable: true, .. }), "{error:?}");
    assert!(error.to_string().contains("no keepalive answer for 30s"), "{error}");
    assert!(event.is_none());
    assert_eq!(pings, 2);
    let waited = begun.elapsed();
    assert!((30..=35).contains(&waited.as_secs()), "{waited:?}");
    assert!(connection.lost().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_answers_is_never_lost() {
    let (connection, mut client) = open().await;
    let answering = async {
        while let Some(frame) = client.frame().await {
            assert_eq!((frame.program, frame.procedure), (KEEPALIVE, PING));
            client.keepalive(PONG).await;
        }
    };
    tokio::select! {
        event = connection.next_event() => panic!("{event:?}"),
        () = answering => panic!("the client ended"),
        () = tokio::time::sleep(Duration::from_secs(3600)) => {}
    }
    assert!(connection.lost().is_none());
}

/// A long reply on a slow line: the daemon cannot answer a PING in the middle of a frame.
#[tokio::test(start_paused = true)]
async fn a_frame_that_comes_slowly_is_no_silence() {
    let (connection, mut client) = open().await;
    let begun = Instant::now();
    let slowly = async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        let reply = call.reply(Xdr::default().u32(1).string("guest").bytes(&[0; 24]));
        for piece in reply.chunks(4) {
            // The line's own pace: nothing is waited for.
            tokio::time::sleep(Duration::from_secs(9)).await;
            client.send(piece).await;
        }
    };
    let (result, ()) = tokio::join!(bulk(&connection, after(3600)), slowly);
    assert_eq!(result.expect("an answer"), 1);
    assert!(begun.elapsed().as_secs() > 100);
}

/// Takes all five requests: four bulk calls are given up, a host name call waits.
async fn take_all_five(connection: &Connection, client: &mut Client) -> Vec<crate::daemon::Frame> {
    let mut calls = Vec::new();
    for _ in 0..MONITOR_CALLS {
        let (result, call) = tokio::join!(bulk(connection, after(1)), client.call(ALL_DOMAIN_STATS));
        assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
        calls.push(call);
    }
    let (result, call) = tokio::join!(connection.hostname(), client.call(GET_HOSTNAME));
    assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
    calls.push(call);
    calls
}

/// With all its five requests taken the daemon reads nothing, PINGs neither.
#[tokio::test(start_paused = true)]
async fn silence_is_borne_for_longer_while_the_daemon_cannot_read() {
    let (connection, mut client) = open().await;
    let calls = take_all_five(&connection, &mut client).await;
    tokio::select! {
        event = connection.next_event() => panic!("{event:?}"),
        () = tokio::time::sleep(Duration::from_secs(90)) => {}
    }
    assert!(connection.lost().is_none());
    // Now it works again, late as it is. No PING had been sent meanwhile.
    for call in &calls {
        client.reply(call, Xdr::default().u32(0)).await;
    }
    client.hostname(&connection).await;
    assert_eq!(connection.budget().abandoned(), 0);
}

#[tokio::test(start_paused = true)]
async fn two_minutes_of_silence_end_it_even_so() {
    let (connection, mut client) = open().await;
    let begun = Instant::now();
    take_all_five(&connection, &mut client).await;
    let (event, pings) = tokio::join!(connection.next_event(), silent(&mut client));
    assert!(event.is_none());
    assert_eq!(pings, 0);
    let waited = begun.elapsed();
    assert!((120..=140).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(connection.budget().abandoned(), MONITOR_CALLS, "the daemon may still be at them");
}

#[tokio::test(start_paused = true)]
async fn without_keepalive_nobody_is_asked() {
    let daemon = Daemon::start();
    let uri = daemon.uri();
    let script = async {
        let mut client = daemon.accept().await;
        client.welcome(0).await;
        client
    };
    let budget = Budget::new(4);
    let (connection, mut client) = tokio::join!(Connection::open(&uri, options(&budget)), script);
    let connection = connection.expect("an open connection");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(connection.lost().is_none());
    let ((), _goodbye) = tokio::join!(connection.close(), client.call(CONNECT_CLOSE));
}
