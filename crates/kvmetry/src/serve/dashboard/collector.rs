//! How this program itself fares: each hypervisor's cycles, the journal, deliveries, the store.

use serde::Deserialize;

use super::schema::Schema;
use super::source::{Params, Source, SourceError};
use super::types::{
    Collector, Delivery, DeliveryState, Fleet, Hypervisor, JournalState, Level, StoreState, Warning,
};
use crate::deliver::DeliveryStats;

const MS: i64 = 1_000_000;
const TABLE: &str = "kvmetry_collector";
/// A delivery with more entries to bring than this is behind: one entry a cycle and hypervisor.
const BEHIND: u64 = 20;

/// What is known without asking the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Since when this process runs, ms.
    pub(crate) since: i64,
    pub(crate) journal: Option<JournalState>,
    pub(crate) deliveries: Vec<DeliveryStats>,
    pub(crate) store: Option<StoreState>,
}

/// A hypervisor's last cycle.
#[derive(Debug, Deserialize)]
struct Row {
    host: Option<String>,
    at: i64,
    cycle_ns: Option<i64>,
    stuck_vms: Option<i64>,
    abandoned_calls: Option<i64>,
    failures: Option<i64>,
    cache_hits: Option<i64>,
    cache_misses: Option<i64>,
    /// Lines of the last minute.
    lines: Option<i64>,
}

fn sql(schema: &Schema) -> String {
    let fields = ["cycle_ns", "stuck_vms", "abandoned_calls", "failures", "cache_hits", "cache_misses"];
    let last =
        fields.map(|it| format!("last_value({} ORDER BY time) AS {it}", schema.field(TABLE, it))).join(", ");
    format!(
        "SELECT {} AS host, CAST(max(time) AS BIGINT) AS at, {last}, \
         CAST(sum(CASE WHEN time >= now() - INTERVAL '1 minute' THEN {} ELSE 0 END) AS BIGINT) AS lines \
         FROM {TABLE} WHERE time >= now() - INTERVAL '1 day' AND time < now() + INTERVAL '1 minute' GROUP BY 1 ORDER BY 1",
        schema.tag(TABLE, &["host"]),
        schema.field(TABLE, "lines")
    )
}

/// The page.
///
/// # Errors
/// The source's.
pub(crate) async fn page(
    source: &Source,
    schema: &Schema,
    fleet: &Fleet,
    own: Own,
) -> Result<Collector, SourceError> {
    let rows: Vec<Row> = match schema.has_table(TABLE) {
        true => source.rows(TABLE, &sql(schema), Params::new()).await?,
        false => Vec::new(),
    };
    let points = rows.iter().filter_map(|it| it.lines).sum::<i64>() as f64 / 60.0;
    let hypervisors = rows.into_iter().map(|row| row.hypervisor(fleet)).collect();
    let mut warnings = fleet.warnings.clone();
    warnings.extend(own.warnings());
    warnings.sort_by_key(|it| it.level);
    let Own { since, journal, deliveries, store } = own;
    Ok(Collector {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        source: source.name(),
        since,
        hypervisors,
        journal,
        deliveries: deliveries.into_iter().map(delivery).collect(),
        store,
        points: schema.has_table(TABLE).then_some(points),
        warnings,
    })
}

impl Row {
    fn hypervisor(self, fleet: &Fleet) -> Hypervisor {
        let name = self.host.unwrap_or_default();
        let host = fleet.hosts.iter().find(|it| it.name == name);
        let asked = self.cache_hits.unwrap_or(0) + self.cache_misses.unwrap_or(0);
        let silent = host.is_none_or(|it| it.silent);
        Hypervisor {
            cycle: self.cycle_ns.map(|it| it as f64 / MS as f64),
            interval: host.map_or(fleet.interval, |it| it.interval),
            vms: host.map_or(0, |it| it.vms),
            stuck: self.stuck_vms.unwrap_or(0),
            abandoned: self.abandoned_calls.unwrap_or(0),
            failures: self.failures.unwrap_or(0),
            cache_hits: self.cache_hits.filter(|_| asked > 0).map(|it| it as f64 / asked as f64),
            problem: silent.then(|| {
                let ago = (fleet.now - self.at / MS).max(0) / 1_000;
                format!("no cycle for {ago} s")
            }),
            host: name,
            ..Hypervisor::default()
        }
    }
}

fn delivery(stats: DeliveryStats) -> Delivery {
    let DeliveryStats { name, delivered_lines, refused_lines, lost_lines, waiting_entries, trouble, .. } =
        stats;
    let state = match &trouble {
        Some(_) => DeliveryState::Failing,
        None if waiting_entries > BEHIND => DeliveryState::Behind,
        None => DeliveryState::Ok,
    };
    let url = name.split(' ').next().unwrap_or_default().to_owned();
    Delivery { name, url, state, waiting_entries, delivered_lines, refused_lines, lost_lines, trouble }
}

impl Own {
    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for it in &self.deliveries {
            if let Some(trouble) = &it.trouble {
                warnings.push(Warning {
                    level: Level::Warning,
                    text: format!("{} gets no lines: {trouble}", it.name),
                    advice: Some("nothing is lost as long as the journal has room".to_owned()),
                });
            }
            if it.lost_lines > 0 {
                warnings.push(Warning {
                    level: Level::Error,
                    text: format!("{} lines for {} are lost", it.lost_lines, it.name),
                    advice: Some("the log says why; see [journal] max_size and max_age".to_owned()),
                });
            }
        }
        if let Some(store) = &self.store
            && store.free < store.min_free
        {
            warnings.push(Warning {
                level: Level::Error,
                text: "the disk is nearly full: the store stops growing".to_owned(),
                advice: Some("free some space, or see [store] min_free".to_owned()),
            });
        }
        warnings
    }
}
