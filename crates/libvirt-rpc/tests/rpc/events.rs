//! Events by way of a connection.

use libvirt_rpc::{Event, EventKind};

use crate::daemon::{MESSAGE, REMOTE, Xdr, frame, open};

const REGISTER_ANY: u32 = 316;
const LIFECYCLE: u32 = 318;

fn lifecycle(id: u32) -> Vec<u8> {
    let payload = Xdr::default().u32(0).string("guest").bytes(&[1; 16]).u32(id).u32(5).u32(0);
    frame(REMOTE, LIFECYCLE, MESSAGE, 0, 0, &payload.0)
}

#[tokio::test(start_paused = true)]
async fn events_come_in_order_between_replies_and_unknown_ones_are_skipped() {
    let (connection, mut client) = open().await;
    let (registered, ()) = tokio::join!(connection.register_event(EventKind::DeviceAdded), async {
        let call = client.call(REGISTER_ANY).await;
        assert_eq!(call.payload, Xdr::default().u32(19).u32(0).0, "the kind, and no domain: all of them");
        client.reply(&call, Xdr::default().u32(0)).await;
    });
    registered.expect("an answer");
    client.send(include_bytes!("../data/lifecycle.bin")).await;
    // DOMAIN_EVENT_CALLBACK_JOB_COMPLETED, which nobody asked for and nobody reads.
    client.send(&frame(REMOTE, 363, MESSAGE, 0, 0, &[0xff; 40])).await;
    client.send(include_bytes!("../data/device-added.bin")).await;
    client.hostname(&connection).await;
    let next = connection.next_event().await.expect("an event").1;
    assert!(matches!(next, Event::Lifecycle { event: 3, .. }), "{next:?}");
    let next = connection.next_event().await.expect("an event").1;
    assert!(matches!(next, Event::DeviceAdded { .. }), "{next:?}");
    assert!(connection.try_event().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_keep_up_is_told() {
    /// More than the queue holds.
    const STORM: u32 = 10_000;
    let (connection, mut client) = open().await;
    for id in 0..STORM {
        client.send(&lifecycle(id)).await;
    }
    client.hostname(&connection).await;
    let events: Vec<_> = std::iter::from_fn(|| connection.try_event()).map(|(_, event)| event).collect();
    assert_eq!(events.first(), Some(&Event::Overflow));
    assert!(events.len() < STORM as usize);
    // What follows is whole: the last events, without a gap.
    let ids: Vec<_> = events[1..]
        .iter()
        .map(|event| match event {
            Event::Lifecycle { domain, event: 5, detail: 0 } => domain.id as u32,
            other => panic!("{other:?}"),
        })
        .collect();
    let expected: Vec<_> = (STORM - ids.len() as u32..STORM).collect();
    assert_eq!(ids, expected);
}
