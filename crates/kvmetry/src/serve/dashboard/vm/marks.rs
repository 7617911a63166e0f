//! What happened to a VM, as marks across its charts: its starts, names and hosts, its events, and changes of state that no
//! event told.

use serde::Deserialize;

use super::{MS, Reading, Table, Wanted, name_of, within};
use crate::serve::dashboard::schema::Schema;
use crate::serve::dashboard::types::Mark;
use crate::table::state_name;

/// Marks on a chart: more than these nobody can tell apart. The newest are shown.
pub(super) const MAX_MARKS: usize = 500;
/// Events that tell a change of state.
const OF_STATE: [&str; 6] = ["started", "stopped", "paused", "resumed", "crashed", "suspended"];

/// A start of the VM, as a name on a host.
#[derive(Debug, Deserialize)]
pub(super) struct Life {
    pub(super) name: Option<String>,
    pub(super) host: Option<String>,
    pub(super) vmid: Option<String>,
    pub(super) begin: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct EventRow {
    pub(super) at: i64,
    pub(super) event: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) reason: Option<String>,
}

/// A reading whose state is another than that of the reading before.
#[derive(Debug, Deserialize)]
pub(super) struct StateRow {
    pub(super) at: i64,
    pub(super) since: i64,
    pub(super) state: i64,
    pub(super) before: i64,
}

/// The same start, found in several parts, began in the first of them.
pub(super) fn joined(lives: Vec<Life>) -> Vec<Life> {
    let mut joined: Vec<Life> = Vec::new();
    for life in lives {
        let known = joined.iter().any(|it| {
            (&it.vmid, &it.name, &it.host) == (&life.vmid, &life.name, &life.host) && it.begin <= life.begin
        });
        if !known {
            joined.push(life);
        }
    }
    joined
}

/// Asks for the starts of the VM, its names and hosts, within the span.
pub(super) fn lives(reading: Reading, wanted: &Wanted, schema: &Schema) -> String {
    let table = name_of("vm_totals", reading.table);
    let (uuid, name, host) = (schema.uuid(&table), schema.name(&table), schema.tag(&table, &["host"]));
    format!(
        "SELECT {name} AS name, {host} AS host, \"VMID\" AS vmid, CAST(min(time) AS BIGINT) AS begin FROM {table} \
         WHERE {uuid} = $uuid AND {} GROUP BY 1, 2, 3 ORDER BY 4",
        within(wanted)
    )
}

/// Asks for the newest changes of the VM's state between two readings of one start of it.
pub(super) fn states(reading: Reading, wanted: &Wanted, schema: &Schema) -> String {
    let table = name_of("vm_totals", reading.table);
    let field = if reading.table == Table::Raw { "state" } else { "state_last" };
    let (uuid, host) = (schema.uuid(&table), schema.tag(&table, &["host"]));
    format!(
        "WITH readings AS (SELECT {host} AS host, \"VMID\" AS vmid, time, {} AS state FROM {table} \
         WHERE {uuid} = $uuid AND {}), \
         steps AS (SELECT time, state, lag(time) OVER one AS since, lag(state) OVER one AS before FROM readings \
         WINDOW one AS (PARTITION BY host, vmid ORDER BY time)) \
         SELECT CAST(time AS BIGINT) AS at, CAST(since AS BIGINT) AS since, CAST(state AS BIGINT) AS state, \
         CAST(before AS BIGINT) AS before FROM steps WHERE state <> before ORDER BY time DESC LIMIT {MAX_MARKS}",
        schema.field(&table, field),
        within(wanted)
    )
}

pub(super) fn events(wanted: &Wanted, schema: &Schema) -> String {
    let table = "vm_events";
    let uuid = schema.uuid(table);
    let text = |name: &str| schema.tag(table, &[name]);
    format!(
        "SELECT CAST(time AS BIGINT) AS at, event, {} AS detail, {} AS reason FROM {table} WHERE {uuid} = $uuid AND {} \
         ORDER BY time DESC LIMIT {}",
        text("detail"),
        text("reason"),
        within(wanted),
        // One more shows that there are more.
        MAX_MARKS + 1
    )
}

pub(super) fn marks(lives: &[Life], events: Vec<EventRow>, states: &[StateRow], from: i64) -> Vec<Mark> {
    // An event tells the moment, and why. Where none came, the readings tell.
    let is_told = |it: &&StateRow| {
        let is_of_state = |event: &EventRow| OF_STATE.contains(&event.event.as_deref().unwrap_or_default());
        !events.iter().any(|event| is_of_state(event) && (it.since..=it.at).contains(&event.at))
    };
    let name = |state: i64| state_name(state).map_or_else(|| format!("state {state}"), str::to_owned);
    let states: Vec<Mark> = states
        .iter()
        .filter(is_told)
        .map(|it| Mark {
            at: it.at / MS,
            kind: "state".to_owned(),
            text: format!("{}, before {}", name(it.state), name(it.before)),
        })
        .collect();
    let mut marks: Vec<Mark> = events
        .into_iter()
        .map(|it| {
            let kind = it.event.unwrap_or_default();
            let more = [it.detail, it.reason].into_iter().flatten().filter(|it| !it.is_empty());
            let more: Vec<String> = more.collect();
            let words = kind.replace('_', " ");
            let text = if more.is_empty() { words } else { format!("{words}: {}", more.join(", ")) };
            Mark { at: it.at / MS, kind, text }
        })
        .collect();
    for pair in lives.windows(2) {
        let [before, now] = pair else { continue };
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        let mut add = |kind: &str, text: String| {
            marks.push(Mark { at: (now.begin / MS).max(from), kind: kind.to_owned(), text });
        };
        if before.host != now.host {
            add("moved", format!("moved from {} to {}", text(&before.host), text(&now.host)));
        } else if before.vmid != now.vmid {
            add("restarted", format!("restarted: domain {} became {}", text(&before.vmid), text(&now.vmid)));
        }
        if before.name != now.name {
            add("renamed", format!("renamed from {} to {}", text(&before.name), text(&now.name)));
        }
    }
    marks.extend(states);
    marks.sort_by_key(|it| it.at);
    marks
}
