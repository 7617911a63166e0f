//! What libvirt tells without being asked: lifecycle, devices, balloon, I/O errors, guest agent.
//!
//! Events wait in a queue of [`QUEUE`] entries and [`QUEUE_TEXT`] bytes of text. A reader that does not keep up finds [`Event::Overflow`] in
//! place of what was dropped, and has to list the domains anew: it must not act on half a story.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::calls::Domain;
use crate::procedure::Procedure;
use crate::xdr::{Decoder, Malformed};

/// Events kept for the reader. A host that starts 500 domains at once makes 1,500; reading takes microseconds.
pub(crate) const QUEUE: usize = 4096;

/// Bytes of text kept with them. Names are short; a daemon that lies could send 4 MiB with every event.
const QUEUE_TEXT: usize = 4 * 1024 * 1024;

/// Longest device alias or path kept from an event; longer ones are cut.
const MAX_TEXT: usize = 1024;

/// Something that happened on a host. `domain.id` is -1 where the domain is no longer running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `VIR_DOMAIN_EVENT_ID_LIFECYCLE`: `event` is a `virDomainEventType`, `detail` depends on it.
    Lifecycle {
        /// Whose.
        domain: Domain,
        /// 0 defined, 1 undefined, 2 started, 3 suspended, 4 resumed, 5 stopped, 6 shutdown, 7 pmsuspended,
        /// 8 crashed.
        event: i32,
        /// The reason, numbered per event (`virDomainEventStoppedDetailType` and its siblings).
        detail: i32,
    },
    /// `VIR_DOMAIN_EVENT_ID_DEVICE_ADDED`
    DeviceAdded {
        /// Whose.
        domain: Domain,
        /// The device's alias, e.g. `net1`.
        alias: String,
    },
    /// `VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED`
    DeviceRemoved {
        /// Whose.
        domain: Domain,
        /// The device's alias, e.g. `net1`.
        alias: String,
    },
    /// `VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE`
    BalloonChange {
        /// Whose.
        domain: Domain,
        /// The guest's memory now, KiB.
        actual_kib: u64,
    },
    /// `VIR_DOMAIN_EVENT_ID_IO_ERROR`
    IoError {
        /// Whose.
        domain: Domain,
        /// The image that failed.
        path: String,
        /// The device's alias.
        alias: String,
        /// 0 none, 1 the guest was paused, 2 the guest was told.
        action: i32,
    },
    /// `VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE`
    AgentLifecycle {
        /// Whose.
        domain: Domain,
        /// 1 connected, 2 disconnected.
        state: i32,
        /// 0 unknown, 1 the domain started, 2 the guest's channel.
        reason: i32,
    },
    /// Events were dropped: list the domains and read their devices anew.
    Overflow,
}

/// Kinds of event to register for, with libvirt's `virDomainEventID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum EventKind {
    /// Started, stopped, paused, …
    Lifecycle = 0,
    /// A disk could not be read or written.
    IoError = 4,
    /// The balloon reached a new size.
    BalloonChange = 13,
    /// A device is gone.
    DeviceRemoved = 15,
    /// The guest agent came or went.
    AgentLifecycle = 18,
    /// A device was plugged in.
    DeviceAdded = 19,
}

impl EventKind {
    /// All that this client understands.
    pub const ALL: [Self; 6] = [
        Self::Lifecycle,
        Self::DeviceAdded,
        Self::DeviceRemoved,
        Self::BalloonChange,
        Self::IoError,
        Self::AgentLifecycle,
    ];
}

impl Event {
    /// Bytes of text that it holds.
    fn text_len(&self) -> usize {
        match self {
            Self::Lifecycle { domain, .. }
            | Self::BalloonChange { domain, .. }
            | Self::AgentLifecycle { domain, .. } => domain.name.len(),
            Self::DeviceAdded { domain, alias } | Self::DeviceRemoved { domain, alias } => {
                domain.name.len() + alias.len()
            }
            Self::IoError { domain, path, alias, .. } => domain.name.len() + path.len() + alias.len(),
            Self::Overflow => 0,
        }
    }
}

/// Decodes the payload of an event message; `None` for a procedure that is no event known here.
pub(crate) fn decode(procedure: Procedure, d: &mut Decoder<'_>) -> Result<Option<Event>, Malformed> {
    use Procedure as P;
    let is_event = matches!(
        procedure,
        P::DOMAIN_EVENT_CALLBACK_LIFECYCLE
            | P::DOMAIN_EVENT_CALLBACK_DEVICE_ADDED
            | P::DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED
            | P::DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE
            | P::DOMAIN_EVENT_CALLBACK_IO_ERROR
            | P::DOMAIN_EVENT_CALLBACK_AGENT_LIFECYCLE
    );
    if !is_event {
        return Ok(None);
    }
    let _callback_id = d.i32()?;
    let domain = Domain::decode(d)?;
    let event = match procedure {
        P::DOMAIN_EVENT_CALLBACK_LIFECYCLE => Event::Lifecycle { domain, event: d.i32()?, detail: d.i32()? },
        P::DOMAIN_EVENT_CALLBACK_DEVICE_ADDED => Event::DeviceAdded { domain, alias: text(d)? },
        P::DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED => Event::DeviceRemoved { domain, alias: text(d)? },
        P::DOMAIN_EVENT_CALLBACK_BALLOON_CHANGE => Event::BalloonChange { domain, actual_kib: d.u64()? },
        P::DOMAIN_EVENT_CALLBACK_IO_ERROR => {
            Event::IoError { domain, path: text(d)?, alias: text(d)?, action: d.i32()? }
        }
        _ => Event::AgentLifecycle { domain, state: d.i32()?, reason: d.i32()? },
    };
    d.end()?;
    Ok(Some(event))
}

fn text(d: &mut Decoder<'_>) -> Result<String, Malformed> {
    Ok(d.string()?.chars().take(MAX_TEXT).collect())
}

/// A bounded queue from the connection to one reader.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<(Instant, Event)>,
    text_len: usize,
    closed: bool,
}

impl Inner {
    fn pop(&mut self) -> Option<(Instant, Event)> {
        let (at, event) = self.events.pop_front()?;
        self.text_len -= event.text_len();
        Some((at, event))
    }
}

impl EventQueue {
    /// Never waits: the connection's reader must not stand still behind a slow consumer.
    pub(crate) fn push(&self, event: Event) {
        let now = Instant::now();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.events.len() >= QUEUE || inner.text_len > QUEUE_TEXT {
            inner.events.clear();
            inner.text_len = 0;
            inner.events.push_back((now, Event::Overflow));
        }
        inner.text_len += event.text_len();
        inner.events.push_back((now, event));
        drop(inner);
        self.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    pub(crate) fn try_next(&self) -> Option<(Instant, Event)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// The next event; `None` when the connection is gone and all was read.
    pub(crate) async fn next(&self) -> Option<(Instant, Event)> {
        loop {
            let changed = self.changed.notified();
            {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(event) = inner.pop() {
                    return Some(event);
                }
                if inner.closed {
                    // For the next reader, if there are several.
                    self.changed.notify_one();
                    return None;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;

    fn domain() -> Domain {
        Domain { name: "db 1".into(), uuid: [7; 16], id: 3 }
    }

    #[test]
    fn an_overflow_replaces_what_was_dropped() {
        let queue = EventQueue::default();
        for n in 0..=QUEUE {
            queue.push(Event::BalloonChange { domain: domain(), actual_kib: n as u64 });
        }
        assert_eq!(queue.try_next().map(|(_, event)| event), Some(Event::Overflow));
        assert_eq!(
            queue.try_next().map(|(_, event)| event),
            Some(Event::BalloonChange { domain: domain(), actual_kib: QUEUE as u64 })
        );
        assert_eq!(queue.try_next().map(|(_, event)| event), None);
    }

    #[test]
    fn long_texts_overflow_the_queue_before_it_has_many_events() {
        let queue = EventQueue::default();
        let long = Domain { name: "x".repeat(QUEUE_TEXT / 2 + 1).into(), uuid: [7; 16], id: 3 };
        for _ in 0..3 {
            queue.push(Event::BalloonChange { domain: long.clone(), actual_kib: 1 });
        }
        assert_eq!(queue.try_next().map(|(_, event)| event), Some(Event::Overflow));
        assert!(queue.try_next().is_some());
        assert!(queue.try_next().is_none());
    }

    #[tokio::test]
    async fn a_closed_queue_ends_after_its_last_event() {
        let queue = EventQueue::default();
        queue.push(Event::Overflow);
        queue.close();
        assert_eq!(queue.next().await.map(|(_, event)| event), Some(Event::Overflow));
        assert_eq!(queue.next().await, None);
    }

    #[test]
    fn events_are_decoded_and_trailing_bytes_refused() {
        let mut bytes = Vec::new();
        let mut e = Encoder(&mut bytes);
        e.i32(1);
        domain().encode(&mut e);
        e.string("net1");
        let decode = |bytes: &[u8]| {
            decode(Procedure::DOMAIN_EVENT_CALLBACK_DEVICE_REMOVED, &mut Decoder::new(bytes, 28))
        };
        assert_eq!(decode(&bytes), Ok(Some(Event::DeviceRemoved { domain: domain(), alias: "net1".into() })));
        bytes.extend([0; 4]);
        assert!(decode(&bytes).is_err());
        assert!(decode(&bytes[..20]).is_err());
    }
}
