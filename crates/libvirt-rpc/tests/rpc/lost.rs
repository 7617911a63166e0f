//! How a connection ends: everybody is told, at once, and why.

use libvirt_rpc::{Error, MONITOR_CALLS};
use tokio::time::Instant;

use crate::daemon::{
    ALL_DOMAIN_STATS, CALL, Client, Frame, GET_HOSTNAME, HEADER, REMOTE, REPLY, Xdr, after, bulk, frame, open,
};

#[tokio::test(start_paused = true)]
async fn a_lost_socket_wakes_every_waiter() {
    let (connection, mut client) = open().await;
    let begun = Instant::now();
    let late = after(3600);
    let script = async {
        for _ in 0..MONITOR_CALLS {
            client.call(ALL_DOMAIN_STATS).await;
        }
        client.call(GET_HOSTNAME).await;
        drop(client);
    };
    let in_flight = async {
        tokio::join!(
            bulk(&connection, late),
            bulk(&connection, late),
            bulk(&connection, late),
            bulk(&connection, late),
            connection.hostname()
        )
    };
    // One waits for a turn, one for the turn of job-free calls, one for an event.
    let waiting =
        async { tokio::join!(bulk(&connection, late), connection.hostname(), connection.next_event()) };
    let ((a, b, c, d, e), (f, g, event), ()) = tokio::join!(in_flight, waiting, script);
    assert_eq!(begun.elapsed().as_secs(), 0);
    for error in [a.err(), b.err(), c.err(), d.err(), e.err(), f.err(), g.err()] {
        let error = error.expect("an error");
        assert!(matches!(error, Error::Connection { retryable: true, .. }), "{error:?}");
        let shown = error.to_string();
        assert!(shown.starts_with("unix:/") && shown.contains("connection lost during "), "{shown}");
        assert!(shown.contains("the daemon closed the connection"), "{shown}");
    }
    assert!(event.is_none());
    assert!(connection.lost().is_some());
    let again = connection.hostname().await.expect_err("lost for good");
    assert!(again.is_connection_lost());
    assert_eq!(begun.elapsed().as_secs(), 0);
}

/// Who waits for one of the host's places is woken too, though given-up calls keep holding them.
#[tokio::test(start_paused = true)]
async fn a_lost_socket_wakes_who_waits_for_a_place() {
    let (connection, mut client) = open().await;
    let begun = Instant::now();
    let script = async {
        for _ in 0..MONITOR_CALLS {
            client.call(ALL_DOMAIN_STATS).await;
        }
        tokio::time::sleep_until(after(2)).await;
        drop(client);
    };
    let four = async {
        let one = || bulk(&connection, begun + std::time::Duration::from_secs(1));
        tokio::join!(one(), one(), one(), one())
    };
    let (_, waiting, ()) = tokio::join!(four, bulk(&connection, after(3600)), script);
    assert!(waiting.as_ref().is_err_and(Error::is_connection_lost), "{waiting:?}");
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(connection.budget().abandoned(), MONITOR_CALLS);
}

/// A bulk reply of one record without parameters.
fn record(name: &[u8]) -> Xdr {
    Xdr::default().u32(1).u32(name.len() as u32).bytes(name).bytes(&[7; 16]).u32(3)
}

/// What the daemon sends, and what is said of it: procedure, offset, expected.
type Case = (&'static str, fn(&Frame) -> Vec<u8>, &'static str, usize, &'static str);

const STATS: &str = "CONNECT_GET_ALL_DOMAIN_STATS";

/// Changes one word of the header of a good reply.
fn with_word(call: &Frame, offset: usize, word: u32) -> Vec<u8> {
    let mut reply = call.reply(Xdr::default().u32(0));
    reply[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
    reply
}

const CASES: &[Case] = &[
    ("unknown serial", |call| with_word(call, 20, 4711), "reply", 20, "serial of a call in flight, not 4711"),
    ("another procedure", |call| with_word(call, 12, GET_HOSTNAME), STATS, 12, "procedure 344, not 59"),
    ("unknown procedure", |call| with_word(call, 12, 99_999), STATS, 12, "procedure 344, not 99999"),
    ("trailing bytes", |call| call.reply(Xdr::default().u32(0).u64(0)), STATS, 32, "8 bytes are left over"),
    ("no payload", |call| call.reply(Xdr::default()), STATS, 28, "integer of 4 bytes, 0 bytes are left"),
    (
        "a count that lies",
        |call| call.reply(Xdr::default().u32(16_384)),
        STATS,
        28,
        "fit into 0 bytes, not 16384",
    ),
    (
        "a count beyond the limit",
        |call| call.reply(Xdr::default().u32(16_385)),
        STATS,
        28,
        "at most 16384 records",
    ),
    (
        "parameters that lie",
        |call| call.reply(record(b"name").u32(262_144)),
        STATS,
        HEADER + 4 + 8 + 20,
        "fit into 0 bytes, not 262144",
    ),
    (
        "a string that lies",
        |call| call.reply(Xdr::default().u32(1).u32(99).bytes(&[0; 24])),
        STATS,
        36,
        "99 bytes",
    ),
    (
        "a giant string",
        |call| call.reply(Xdr::default().u32(1).u32(1 << 31).bytes(&[0; 24])),
        STATS,
        32,
        "at most",
    ),
    ("no UTF-8", |call| call.reply(record(&[0xff; 4]).u32(0)), STATS, 32, "UTF-8"),
    (
        "an unknown type",
        |call| call.reply(record(b"name").u32(1).string("key").u32(8).u32(0)),
        STATS,
        HEADER + 4 + 8 + 20 + 4 + 8,
        "parameter type 1 to 7, not 8, for \"key\"",
    ),
    (
        "an error cut short",
        |call| frame(REMOTE, call.procedure, REPLY, call.serial, 1, &[0; 8]),
        STATS,
        36,
        "4 bytes",
    ),
    ("a frame beyond the limit", |call| with_word(call, 0, (32 << 20) + 5), "frame", 0, "33554437"),
    ("a frame shorter than its header", |call| with_word(call, 0, 27), "frame", 0, "not 27"),
    ("another program", |call| with_word(call, 4, 0x2000_8087), "frame", 4, "program"),
    ("another version", |call| with_word(call, 8, 2), "frame", 8, "version 1, not 2"),
    ("a call to the client", |call| with_word(call, 16, CALL), "frame", 16, "reply or message"),
    ("an unknown kind", |call| with_word(call, 16, 9), "frame", 16, "not 9"),
    ("an unknown status", |call| with_word(call, 24, 7), "frame", 24, "status 0 or 1, not 7"),
    (
        "an event cut short",
        |_| frame(REMOTE, 318, 2, 0, 0, &[0; 8]),
        "DOMAIN_EVENT_CALLBACK_LIFECYCLE",
        36,
        "opaque of 16 bytes, 0 bytes are left",
    ),
];

#[tokio::test(start_paused = true)]
async fn malformed_frames_are_named_and_end_the_connection() {
    for &(case, bytes, procedure_expected, offset_expected, words) in CASES {
        let (connection, mut client) = open().await;
        let begun = Instant::now();
        let script = async {
            let call = client.call(ALL_DOMAIN_STATS).await;
            client.send(&bytes(&call)).await;
        };
        let (result, ()) = tokio::join!(bulk(&connection, after(60)), script);
        let error = result.expect_err(case);
        let Error::Protocol { peer, procedure, offset, expected } = &error else {
            panic!("{case}: {error:?}")
        };
        assert!(peer.starts_with("unix:/"), "{case}: {peer}");
        assert_eq!((*procedure, *offset), (procedure_expected, offset_expected), "{case}: {error}");
        assert!(expected.contains(words), "{case}: {error}");
        assert!(connection.lost().is_some(), "{case}");
        assert!(connection.hostname().await.expect_err(case).is_connection_lost(), "{case}");
        assert_eq!(begun.elapsed().as_secs(), 0, "{case}");
        client.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_in_the_middle_of_a_frame_is_a_lost_connection() {
    let (connection, mut client) = open().await;
    let (result, ()) = tokio::join!(bulk(&connection, after(60)), async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        client.send(&call.reply(Xdr::default().u32(0))[..HEADER + 2]).await;
        drop(client);
    });
    assert!(matches!(result, Err(Error::Connection { retryable: true, .. })), "{result:?}");
}

/// A wrong answer to a call that was given up says nothing of whether the daemon is done with it.
#[tokio::test(start_paused = true)]
async fn a_wrong_answer_frees_no_place() {
    let (connection, mut client) = open().await;
    let (result, call) = tokio::join!(bulk(&connection, after(2)), client.call(ALL_DOMAIN_STATS));
    let Err(Error::Deadline { late, .. }) = result else { panic!("{result:?}") };
    client.send(&with_word(&call, 12, GET_HOSTNAME)).await;
    assert!(connection.next_event().await.is_none());
    assert!(late.is_over());
    assert_eq!(connection.budget().abandoned(), 1);
    client.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_closes_its_socket() {
    let (connection, mut client): (_, Client) = open().await;
    drop(connection);
    client.end().await;
}

/// A long frame is read whole, in whatever pieces it comes.
#[tokio::test(start_paused = true)]
async fn a_long_reply_comes_in_pieces() {
    let (connection, mut client) = open().await;
    let (result, ()) = tokio::join!(bulk(&connection, after(60)), async {
        let call = client.call(ALL_DOMAIN_STATS).await;
        let mut payload = Xdr::default().u32(10_000);
        for n in 0..10_000_u64 {
            payload = payload
                .string("name")
                .bytes(&[1; 16])
                .u32(7)
                .u32(1)
                .string("key.with.some.length")
                .u32(4)
                .u64(n);
        }
        for piece in call.reply(payload).chunks(4099) {
            client.send(piece).await;
        }
    });
    assert_eq!(result.expect("an answer"), 10_000);
    client.hostname(&connection).await;
}
