//! Many calls on one connection: who gets which answer, how many may be out, and what was given up.

use std::sync::Arc;
use std::time::Duration;

use libvirt_rpc::{Budget, Connection, Domain, Error, Groups, MONITOR_CALLS, StatsFlags};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::daemon::{
    ALL_DOMAIN_STATS, CONNECT_CLOSE, Client, Count, Daemon, Frame, GET_HOSTNAME, KEEPALIVE, MEMORY_STATS,
    PING, REMOTE, Xdr, after, bulk, bulk_of, domain, open,
};

/// Gives up `count` bulk calls: the daemon has read them and does not answer.
async fn give_up(connection: &Connection, client: &mut Client, count: usize) -> Vec<Frame> {
    let mut calls = Vec::new();
    for _ in 0..count {
        let (result, call) = tokio::join!(bulk(connection, after(2)), client.call(ALL_DOMAIN_STATS));
        assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
        calls.push(call);
    }
    calls
}

#[tokio::test(start_paused = true)]
async fn answers_find_their_calls_in_any_order() {
    let (connection, mut client) = open().await;
    let connection = Arc::new(connection);
    let mut calls = JoinSet::new();
    for id in 0..20 {
        let connection = Arc::clone(&connection);
        calls.spawn(async move { (id, connection.memory_stats(&domain(id)).await) });
    }
    for _ in 0..20 / MONITOR_CALLS {
        let mut batch = Vec::new();
        for _ in 0..MONITOR_CALLS {
            batch.push(client.call(MEMORY_STATS).await);
        }
        for call in batch.iter().rev() {
            // The domain's id stands behind its name (8 or 9 bytes, padded) and its UUID.
            let name = u32::from_be_bytes([0, 0, 0, call.payload[3]]).next_multiple_of(4) as usize;
            let id = call.payload[4 + name + 16 + 3];
            client.reply(call, Xdr::default().u32(1).u32(6).u64(u64::from(id) * 1000)).await;
        }
    }
    let mut answered = 0;
    while let Some(joined) = calls.join_next().await {
        let (id, stats) = joined.expect("no panic");
        assert_eq!(stats.expect("an answer"), [(6, id as u64 * 1000)]);
        answered += 1;
    }
    assert_eq!(answered, 20);
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_dropped_and_frees_its_place() {
    let (connection, mut client) = open().await;
    let mut seen = Count::default();
    let begun = Instant::now();
    let stats = connection.stats(&[], Groups::BALLOON, StatsFlags::NOWAIT, after(2), &mut seen);
    let (result, call) = tokio::join!(stats, client.call(ALL_DOMAIN_STATS));
    let Err(Error::Deadline { procedure, after, late, .. }) = result else { panic!("{result:?}") };
    assert_eq!(procedure, "CONNECT_GET_ALL_DOMAIN_STATS");
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(after.as_secs(), 2);
    assert!(!late.is_over());
    assert_eq!(connection.budget().abandoned(), 1);

    // Its payload would be malformed for any call: a late reply is not read at all.
    client.reply(&call, Xdr::default().u32(u32::MAX)).await;
    client.hostname(&connection).await;
    assert!(late.is_over());
    assert_eq!(connection.budget().abandoned(), 0);
    assert_eq!(seen, Count::default());
}

/// The connection's own limit (a host's places are more here) and the host's (as many as the connection's).
#[tokio::test(start_paused = true)]
async fn four_given_up_calls_leave_only_job_free_ones() {
    for places in [MONITOR_CALLS, 2 * MONITOR_CALLS] {
        let daemon = Daemon::start();
        let budget = Budget::new(places);
        let (connection, mut client) = daemon.open(&budget).await;
        let calls = give_up(&connection, &mut client, MONITOR_CALLS).await;

        let asked = Instant::now();
        let refused = bulk(&connection, after(2)).await;
        assert!(matches!(refused, Err(Error::Budget { .. })), "{places} places: {refused:?}");
        assert_eq!(asked.elapsed(), Duration::ZERO, "refused at once");
        let refused = refused.expect_err("refused");
        assert!(refused.is_retryable());
        let shown = refused.to_string();
        assert!(shown.contains("not sent, 4 earlier calls have no answer yet: most likely QEMU"), "{shown}");
        // The fifth frame is the job-free call: the refused one was not sent.
        client.hostname(&connection).await;
        let mut seen = Count::default();
        let job_free = Groups::STATE | Groups::INTERFACE;
        let (result, ()) =
            tokio::join!(connection.stats(&[], job_free, StatsFlags::NOWAIT, after(2), &mut seen), async {
                let call = client.call(ALL_DOMAIN_STATS).await;
                client.reply(&call, Xdr::default().u32(0)).await;
            });
        assert_eq!(result.expect("state and interface take no job"), 0);

        client.reply(&calls[2], Xdr::default().u32(0)).await;
        client.hostname(&connection).await;
        assert_eq!(budget.abandoned(), MONITOR_CALLS - 1);
        let (result, ()) = tokio::join!(bulk(&connection, after(2)), async {
            let call = client.call(ALL_DOMAIN_STATS).await;
            client.reply(&call, Xdr::default().u32(0)).await;
        });
        assert_eq!(result.expect("a turn is free again"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fifth_monitor_call_waits_for_a_turn() {
    // The host grants more places than one connection has turns.
    let (connection, mut client) = Daemon::start().open(&Budget::new(2 * MONITOR_CALLS)).await;
    let connection = Arc::new(connection);
    let mut calls = JoinSet::new();
    for _ in 0..=MONITOR_CALLS {
        let connection = Arc::clone(&connection);
        calls.spawn(async move { bulk(&connection, after(60)).await });
    }
    let mut first = Vec::new();
    for _ in 0..MONITOR_CALLS {
        first.push(client.call(ALL_DOMAIN_STATS).await);
    }
    // All five were asked before this one, and yet it comes next.
    client.hostname(&connection).await;
    client.reply(&first[1], Xdr::default().u32(0)).await;
    let fifth = client.call(ALL_DOMAIN_STATS).await;
    for call in [&first[0], &first[2], &first[3], &fifth] {
        client.reply(call, Xdr::default().u32(0)).await;
    }
    while let Some(joined) = calls.join_next().await {
        assert_eq!(joined.expect("no panic").expect("an answer"), 0);
    }
}

/// Calls that were waited for may be given up meanwhile: then the waiter was never sent, and is told so.
#[tokio::test(start_paused = true)]
async fn who_waited_in_vain_for_a_turn_was_not_sent() {
    let (connection, mut client) = open().await;
    let four = async {
        tokio::join!(bulk(&connection, after(2)), bulk(&connection, after(2)), bulk(&connection, after(2)))
    };
    let script = async {
        for _ in 0..MONITOR_CALLS {
            client.call(ALL_DOMAIN_STATS).await;
        }
    };
    let (_, _, waited, ()) =
        tokio::join!(four, bulk(&connection, after(2)), bulk(&connection, after(3)), script);
    assert!(matches!(waited, Err(Error::Budget { outstanding: 4, .. })), "{waited:?}");
    client.hostname(&connection).await;
}

#[tokio::test(start_paused = true)]
async fn job_free_calls_go_one_at_a_time() {
    let (connection, mut client) = open().await;
    let script = async {
        let first = client.call(GET_HOSTNAME).await;
        let bulk = client.call(ALL_DOMAIN_STATS).await;
        client.reply(&first, Xdr::default().string("one")).await;
        let second = client.call(GET_HOSTNAME).await;
        client.reply(&second, Xdr::default().string("two")).await;
        client.reply(&bulk, Xdr::default().u32(0)).await;
    };
    let (one, two, bulk, ()) =
        tokio::join!(connection.hostname(), connection.hostname(), bulk(&connection, after(4)), script);
    assert_eq!(one.expect("an answer"), "one");
    assert_eq!(two.expect("an answer"), "two");
    assert_eq!(bulk.expect("an answer"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_given_up_job_free_call_keeps_its_turn_and_takes_no_place() {
    let (connection, mut client) = open().await;
    let (result, first) = tokio::join!(connection.hostname(), client.call(GET_HOSTNAME));
    let error = result.expect_err("no answer");
    assert!(error.to_string().ends_with(": CONNECT_GET_HOSTNAME: no answer within 4s"), "{error}");
    let Error::Deadline { late: first_late, .. } = error else { panic!("{error:?}") };
    assert!(!first_late.is_over() && first_late.was_sent());
    assert_eq!(connection.budget().abandoned(), 0);
    // The next one is not sent: nobody is at it.
    let error = connection.hostname().await.expect_err("no turn");
    let shown = error.to_string();
    assert!(
        shown.ends_with(": CONNECT_GET_HOSTNAME: not sent within 4s, earlier calls have not been answered"),
        "{shown}"
    );
    let Error::Deadline { late, .. } = error else { panic!("{error:?}") };
    assert!(late.is_over() && !late.was_sent());
    client.reply(&first, Xdr::default().string("late")).await;
    client.hostname(&connection).await;
    assert!(first_late.is_over());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_a_given_up_one() {
    let (connection, mut client) = open().await;
    let call = tokio::select! {
        result = bulk(&connection, after(3600)) => panic!("{result:?}"),
        call = client.call(ALL_DOMAIN_STATS) => call,
    };
    assert_eq!(connection.budget().abandoned(), 1);
    client.reply(&call, Xdr::default().u32(0)).await;
    client.hostname(&connection).await;
    assert_eq!(connection.budget().abandoned(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_before_it_was_sent_leaves_nothing() {
    let (connection, mut client) = open().await;
    let calls = give_up(&connection, &mut client, MONITOR_CALLS - 1).await;
    let in_flight = bulk(&connection, after(3600));
    let script = async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        // Has no turn yet when it is dropped.
        assert!(timeout(Duration::from_secs(9), bulk(&connection, after(3600))).await.is_err());
        assert_eq!(connection.budget().abandoned(), MONITOR_CALLS - 1);
        for call in calls.iter().chain([&call]) {
            client.reply(call, Xdr::default().u32(0)).await;
        }
    };
    let (result, ()) = tokio::join!(in_flight, script);
    assert_eq!(result.expect("an answer"), 0);
    client.hostname(&connection).await;
    // All turns are free again.
    give_up(&connection, &mut client, MONITOR_CALLS).await;
}

#[tokio::test(start_paused = true)]
async fn after_its_deadline_a_call_is_not_sent() {
    let (connection, mut client) = open().await;
    let error = bulk(&connection, Instant::now()).await.expect_err("too late");
    assert!(error.to_string().ends_with(": not sent, its deadline had passed"), "{error}");
    let Error::Deadline { late, .. } = error else { panic!("{error:?}") };
    assert!(late.is_over());
    assert_eq!(connection.budget().abandoned(), 0);
    client.hostname(&connection).await;
}

/// The daemon would close the connection on it, for everybody.
#[tokio::test(start_paused = true)]
async fn more_than_a_call_may_hold_is_not_sent() {
    let (connection, mut client) = open().await;
    let many: Vec<_> = (0..=16_384).map(domain).collect();
    let long = Domain { name: "x".repeat(32 << 20).into(), ..domain(1) };
    for (domains, expect) in [
        (&many[..], "16385 domains in one call: libvirt takes at most 16384"),
        (&[long][..], "a message of 33554496 bytes: libvirt takes at most 33554436"),
    ] {
        let error = bulk_of(&connection, domains, after(2)).await.expect_err(expect);
        assert_eq!(error.to_string(), format!("CONNECT_GET_ALL_DOMAIN_STATS: {expect}"));
        assert!(!error.is_retryable() && !error.is_connection_lost());
        client.hostname(&connection).await;
    }
    // As many as may be are sent.
    let (result, ()) = tokio::join!(bulk_of(&connection, &many[1..], after(2)), async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        client.reply(&call, Xdr::default().u32(0)).await;
    });
    assert_eq!(result.expect("an answer"), 0);
}

/// A daemon that does not read: calls still end by their deadlines, and what cannot be sent is not counted.
#[tokio::test(start_paused = true)]
async fn a_stuck_writer_holds_up_nobody_for_longer_than_a_deadline() {
    let (connection, mut client) = open().await;
    // More than a socket's buffers take.
    let many: Vec<_> = (0..16_000).map(domain).collect();
    let begun = Instant::now();
    let stuck = bulk_of(&connection, &many, after(2)).await;
    assert!(matches!(stuck, Err(Error::Deadline { .. })), "{stuck:?}");
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(connection.budget().abandoned(), 1, "some of it may have been sent");

    // Answers to these fill the queue of frames.
    for _ in 0..100 {
        client.keepalive(PING).await;
    }
    // Paused time moves on only when the client has read them all.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let unsent = bulk(&connection, after(2)).await;
    let Err(Error::Deadline { late, .. }) = unsent else { panic!("{unsent:?}") };
    assert!(late.is_over(), "it did not even come into the queue");
    assert_eq!(connection.budget().abandoned(), 1);
    let unsent = connection.hostname().await;
    assert!(matches!(unsent, Err(Error::Deadline { .. })), "{unsent:?}");

    // The daemon wakes up: the stuck call is whole, what was not sent does not come, and every turn is free.
    let call = client.call(ALL_DOMAIN_STATS).await;
    assert_eq!(
        u32::from_be_bytes([call.payload[0], call.payload[1], call.payload[2], call.payload[3]]),
        16_000
    );
    client.reply(&call, Xdr::default().u32(0)).await;
    let close = tokio::spawn(connection.close());
    loop {
        let frame = client.frame().await.expect("a frame");
        match frame.program {
            KEEPALIVE => {}
            REMOTE => {
                assert_eq!(frame.procedure, CONNECT_CLOSE);
                client.reply(&frame, Xdr::default()).await;
                break;
            }
            other => panic!("program {other:#x}"),
        }
    }
    close.await.expect("no panic");
    client.end().await;
}

#[tokio::test(start_paused = true)]
async fn closing_says_goodbye_and_does_not_wait_for_long() {
    let (connection, mut client) = open().await;
    let ((), ()) = tokio::join!(connection.close(), async {
        let call = client.call(CONNECT_CLOSE).await;
        client.reply(&call, Xdr::default()).await;
    });
    client.end().await;

    let (connection, mut client) = open().await;
    let begun = Instant::now();
    let ((), _unanswered) = tokio::join!(connection.close(), client.call(CONNECT_CLOSE));
    assert!(begun.elapsed() <= Duration::from_secs(1));
    client.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_daemons_and_leaves_the_connection_whole() {
    let (connection, mut client) = open().await;
    let domain = domain(1);
    let (result, ()) = tokio::join!(connection.memory_stats(&domain), async {
        let call = client.call(MEMORY_STATS).await;
        client.refuse(&call, 42, "no domain with matching uuid").await;
    });
    let error = result.expect_err("refused");
    assert_eq!(error.remote_code(), Some(libvirt_rpc::ErrorCode::NO_DOMAIN));
    let shown = error.to_string();
    assert!(
        shown.ends_with("DOMAIN_MEMORY_STATS: no domain with matching uuid (libvirt error 42, domain 7)"),
        "{shown}"
    );
    assert!(!error.is_connection_lost());
    client.hostname(&connection).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_may_pass_is_retryable() {
    let (connection, mut client) = open().await;
    for (code, retryable) in
        [(38, true), (39, true), (68, true), (89, true), (29, false), (42, false), (88, false)]
    {
        let domain = domain(1);
        let (result, ()) = tokio::join!(connection.memory_stats(&domain), async {
            let call = client.call(MEMORY_STATS).await;
            client.refuse(&call, code, "no").await;
        });
        assert_eq!(result.expect_err("refused").is_retryable(), retryable, "code {code}");
    }
}

/// A message as long as it may be, with a line's end in it, cut in the middle of a character.
#[tokio::test(start_paused = true)]
async fn a_refusals_words_are_shown_as_one_short_line() {
    let (connection, mut client) = open().await;
    let mut message = "x".repeat(4 << 20).into_bytes();
    message[1..5].copy_from_slice(b"\n\x1b[1");
    message[5..7].copy_from_slice(b"\xc3 ");
    let domain = domain(1);
    let (result, ()) = tokio::join!(connection.memory_stats(&domain), async {
        let call = client.call(MEMORY_STATS).await;
        client.refuse_in_bytes(&call, 1, &message).await;
    });
    let error = result.expect_err("refused");
    let shown = error.to_string();
    assert!(shown.contains("DOMAIN_MEMORY_STATS: x �[1� xx"), "{shown}");
    assert!(shown.ends_with("xx… (libvirt error 1, domain 7)") && shown.chars().count() < 500, "{shown}");
    assert!(!error.is_connection_lost());
    client.hostname(&connection).await;
}
