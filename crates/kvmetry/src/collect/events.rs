//! libvirt's events in words: the `event` tag and the `reason` and `detail` fields of `vm_events`.
//!
//! Numbers are those of `virDomainEventType` and its details in `libvirt-domain.h`.

use libvirt_rpc::{Domain, Event};

/// An event as `vm_events` tells it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VmEvent<'a> {
    pub(crate) domain: &'a Domain,
    /// The tag: started, stopped, paused, …
    pub(crate) event: &'static str,
    /// Why, in libvirt's word.
    pub(crate) reason: String,
    /// What it was about: a device, a size, a path. Often empty.
    pub(crate) detail: String,
}

/// What the event says; `None` for one that concerns no live domain (defined, undefined) and for an overflow.
pub(crate) fn describe(event: &Event) -> Option<VmEvent<'_>> {
    let told = |domain, event, reason: &str, detail: String| {
        Some(VmEvent { domain, event, reason: reason.to_owned(), detail })
    };
    match event {
        Event::Lifecycle { domain, event, detail } => {
            let (event, reasons): (_, &[&str]) = match (event, detail) {
                (2, 1) | (5, 3) => ("migrated", &["", "in", "", "out"]),
                (5, 2) | (8, _) => ("crashed", &["panicked", "crashloaded", "process died"]),
                (2, _) => {
                    ("started", &["booted", "migrated", "restored", "from snapshot", "wakeup", "recovered"])
                }
                (3, _) => (
                    "paused",
                    &[
                        "paused",
                        "migrated",
                        "I/O error",
                        "watchdog",
                        "restored",
                        "from snapshot",
                        "API error",
                        "post-copy",
                        "post-copy failed",
                    ],
                ),
                (4, _) => {
                    ("resumed", &["unpaused", "migrated", "from snapshot", "post-copy", "post-copy failed"])
                }
                (5, _) => (
                    "stopped",
                    &[
                        "shutdown",
                        "destroyed",
                        "crashed",
                        "migrated",
                        "saved",
                        "failed",
                        "from snapshot",
                        "recreated",
                    ],
                ),
                (6, _) => ("shutdown", &["finished", "guest", "host"]),
                (7, _) => ("suspended", &["memory", "disk"]),
                _ => return None,
            };
            let reason = usize::try_from(*detail).ok().and_then(|n| reasons.get(n)).copied();
            match reason {
                Some(reason) => told(domain, event, reason, String::new()),
                None => told(domain, event, &format!("reason {detail}"), String::new()),
            }
        }
        Event::DeviceAdded { domain, alias } => told(domain, "device_added", "", alias.clone()),
        Event::DeviceRemoved { domain, alias } => told(domain, "device_removed", "", alias.clone()),
        Event::BalloonChange { domain, actual_kib } => {
            told(domain, "balloon", "", format!("{actual_kib} KiB"))
        }
        Event::IoError { domain, path, alias, action } => {
            let reason = match action {
                1 => "paused",
                2 => "reported to the guest",
                _ => "ignored",
            };
            told(domain, "io_error", reason, format!("{alias} {path}"))
        }
        Event::AgentLifecycle { domain, state, reason } => {
            let event = if *state == 1 { "agent_connected" } else { "agent_disconnected" };
            let reason = match reason {
                1 => "domain started",
                2 => "channel",
                _ => "",
            };
            told(domain, event, reason, String::new())
        }
        Event::Overflow => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifecycle_events_have_the_words_of_the_contract() {
        let check = |event: i32, detail: i32, expect: Option<(&str, &str)>| {
            let domain = Domain { name: "a".into(), uuid: [1; 16], id: 1 };
            let event = Event::Lifecycle { domain, event, detail };
            let told = describe(&event);
            assert_eq!(told.as_ref().map(|t| (t.event, t.reason.as_str())), expect, "{event:?}");
        };
        check(0, 0, None);
        check(1, 0, None);
        check(2, 0, Some(("started", "booted")));
        check(2, 1, Some(("migrated", "in")));
        check(3, 2, Some(("paused", "I/O error")));
        check(4, 0, Some(("resumed", "unpaused")));
        check(5, 0, Some(("stopped", "shutdown")));
        check(5, 1, Some(("stopped", "destroyed")));
        check(5, 2, Some(("crashed", "process died")));
        check(5, 3, Some(("migrated", "out")));
        check(5, 5, Some(("stopped", "failed")));
        check(8, 0, Some(("crashed", "panicked")));
        check(5, 99, Some(("stopped", "reason 99")));
        check(99, 0, None);
    }
}
