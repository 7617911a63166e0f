//! How this program itself fares: each hypervisor's cycles, the journal, deliveries, the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::fleet;
use super::schema::Schema;
use super::source::{Params, Source, SourceError};
use super::types::{
    Collector, Delivery, DeliveryState, Fleet, Hypervisor, JournalState, Level, StoreState, Warning,
};
use crate::collect::Status;
use crate::deliver::DeliveryStats;

const MS: i64 = 1_000_000;
const TABLE: &str = "kvmetry_collector";
/// A delivery with more entries to bring than this is behind: one entry a cycle and hypervisor.
const BEHIND: u64 = 20;
/// A cycle that takes longer than this part of its interval leaves no time for what follows it: it waits for monitors no
/// longer than that.
const SLOW: f64 = 0.8;

/// What is known without asking the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Since when this process runs, ms.
    pub(crate) since: i64,
    pub(crate) journal: Option<JournalState>,
    pub(crate) deliveries: Vec<DeliveryStats>,
    /// The folder of lines that servers refused.
    pub(crate) rejects: PathBuf,
    pub(crate) store: Option<StoreState>,
}

/// A hypervisor's last cycle.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
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
    let last = fields
        .map(|it| format!("last_value({} ORDER BY time) AS {it}", fleet::whole(schema.field(TABLE, it))))
        .join(", ");
    format!(
        "SELECT {} AS host, CAST(max(time) AS BIGINT) AS at, {last}, \
         CAST(sum(CASE WHEN time >= now() - INTERVAL '1 minute' THEN {} ELSE 0 END) AS BIGINT) AS lines \
         FROM {TABLE} WHERE time >= now() - INTERVAL '1 day' AND time < now() + INTERVAL '1 minute' GROUP BY 1 ORDER BY 1",
        schema.tag(TABLE, &["host"]),
        schema.field(TABLE, "lines")
    )
}

/// The last cycle of each hypervisor that wrote; `None` where none ever did.
///
/// # Errors
/// The source's.
pub(crate) async fn rows(source: &Source, schema: &Schema) -> Result<Option<Vec<Row>>, SourceError> {
    if !schema.has_table(TABLE) {
        return Ok(None);
    }
    Ok(Some(source.rows(TABLE, &sql(schema), Params::new()).await?))
}

/// The page. `written`: the fleet, and [`rows`]; where they cannot be had, the page tells what this process knows by itself.
/// `statuses`: those of the hypervisors that this process reads.
pub(crate) fn page(
    source: &Source,
    written: Result<(Arc<Fleet>, Option<Vec<Row>>), SourceError>,
    own: Own,
    statuses: &[Status],
) -> Collector {
    let mut warnings = Vec::new();
    let (fleet, rows) = written.unwrap_or_else(|error| {
        warnings.push(Warning {
            level: Level::Error,
            text: format!("the points cannot be had from {}: {error}", source.name()),
            advice: Some("this page shows what this process knows by itself".to_owned()),
        });
        warnings.extend(fleet::problems(statuses));
        Default::default()
    });
    let points = rows.as_ref().map(|rows| rows.iter().filter_map(|it| it.lines).sum::<i64>() as f64 / 60.0);
    let hypervisors = hypervisors(statuses, rows.unwrap_or_default(), &fleet);
    warnings.extend(fleet.warnings.iter().cloned());
    warnings.extend(hypervisors.iter().filter_map(slow));
    warnings.extend(statuses.iter().filter_map(exhausted));
    warnings.extend(own.warnings());
    warnings.sort_by_key(|it| it.level);
    let Own { since, journal, deliveries, store, .. } = own;
    Collector {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        source: source.name(),
        since,
        hypervisors,
        journal,
        deliveries: deliveries.into_iter().map(delivery).collect(),
        store,
        points,
        warnings,
    }
}

/// This process's own, in the order of its configuration, then those of other collectors, which are known by what they
/// wrote.
fn hypervisors(statuses: &[Status], rows: Vec<Row>, fleet: &Fleet) -> Vec<Hypervisor> {
    let is_own = |row: &Row| {
        let host = row.host.as_deref().unwrap_or_default();
        statuses.iter().any(|it| it.tag.as_deref() == Some(host))
    };
    let others = rows.into_iter().filter(|it| !is_own(it)).map(|row| row.hypervisor(fleet));
    statuses.iter().map(own).chain(others).collect()
}

fn own(status: &Status) -> Hypervisor {
    Hypervisor {
        host: status.name.clone(),
        uri: Some(status.uri.clone()),
        connected_since: status.connected_ns.map(|it| it / MS),
        libvirt: status.libvirt.map(|it| it.to_string()),
        cycle: status.cycle.map(|it| it.as_secs_f64() * 1e3),
        interval: status.interval.as_millis() as i64,
        vms: status.vms,
        stuck: status.stuck as i64,
        abandoned: status.abandoned as i64,
        failures: status.failures as i64,
        cache_hits: status.hit_rate,
        problem: status.problem.clone(),
    }
}

fn slow(it: &Hypervisor) -> Option<Warning> {
    let (cycle, interval) = (it.cycle?, it.interval as f64);
    (it.problem.is_none() && interval > 0.0 && cycle > SLOW * interval).then(|| Warning {
        level: Level::Warning,
        text: format!(
            "{}: the last cycle took {:?}, more than {:.0} % of the interval ({:?})",
            it.host,
            Duration::from_millis(cycle as u64),
            SLOW * 100.0,
            Duration::from_millis(it.interval.unsigned_abs())
        ),
        advice: Some("see whether VMs do not answer there; if all do, raise the interval".to_owned()),
    })
}

fn exhausted(it: &Status) -> Option<Warning> {
    (it.abandoned >= it.max_abandoned && it.max_abandoned > 0).then(|| Warning {
        level: Level::Error,
        text: format!(
            "{}: as many calls as max_abandoned allows hang in libvirtd ({}): only state, interfaces and domain info are \
             read until one returns",
            it.name, it.abandoned
        ),
        advice: Some("look for hung QEMU processes there (state D or T)".to_owned()),
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
            if it.refused_lines > 0 {
                warnings.push(Warning {
                    level: Level::Warning,
                    text: format!("{} refused lines: {}", it.name, it.refused_lines),
                    advice: Some(format!(
                        "they are kept in {}, with the reason; send the files again when it is mended, and remove them",
                        self.rejects.display()
                    )),
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

#[cfg(test)]
mod tests {
    use super::super::types::Host;
    use super::*;

    fn status(name: &str, tag: Option<&str>) -> Status {
        Status {
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
            uri: "qemu:///system".to_owned(),
            interval: Duration::from_secs(5),
            max_abandoned: 3,
            ..Status::default()
        }
    }

    fn row(host: &str) -> Row {
        Row {
            host: Some(host.to_owned()).filter(|it| !it.is_empty()),
            at: 1_000 * MS,
            cycle_ns: Some(7 * MS),
            stuck_vms: None,
            abandoned_calls: None,
            failures: Some(1),
            cache_hits: None,
            cache_misses: None,
            lines: None,
        }
    }

    /// The name, URI and problem of each.
    fn merged(statuses: &[Status], rows: &[&str]) -> Vec<(String, Option<String>, Option<String>)> {
        let hosts = rows.iter().map(|it| Host { name: (*it).to_owned(), ..Host::default() }).collect();
        let fleet = Fleet { now: 4_000, hosts, ..Fleet::default() };
        let all = hypervisors(statuses, rows.iter().map(|it| row(it)).collect(), &fleet);
        all.into_iter().map(|it| (it.host, it.uri, it.problem)).collect()
    }

    #[test]
    fn a_hypervisor_is_listed_once_also_where_nothing_was_ever_read() {
        let uri = || Some("qemu:///system".to_owned());
        let down = Status { problem: Some("no daemon".to_owned()), ..status("qemu:///system", None) };
        let statuses = [status("kvm1", Some("kvm1")), down];
        let expect = [
            ("kvm1".to_owned(), uri(), None),
            ("qemu:///system".to_owned(), uri(), Some("no daemon".to_owned())),
            ("kvm2".to_owned(), None, None),
        ];
        assert_eq!(merged(&statuses, &["kvm1", "kvm2"]), expect);
        // Lines without the tag are those of all that write none.
        let statuses = [status("a", Some("")), status("b", Some(""))];
        assert_eq!(merged(&statuses, &[""]), [("a".to_owned(), uri(), None), ("b".to_owned(), uri(), None)]);
        assert_eq!(merged(&[], &["kvm2"]), [("kvm2".to_owned(), None, None)]);
    }

    #[test]
    fn what_this_process_knows_of_its_own_is_shown() {
        let status = Status {
            connected_ns: Some(1_700_000_000_123 * MS),
            libvirt: Some(libvirt_rpc::Version(10_000_000)),
            cycle: Some(Duration::from_micros(1_500)),
            vms: 4,
            stuck: 1,
            abandoned: 2,
            failures: 9,
            hit_rate: Some(0.5),
            ..status("kvm1", Some("kvm1"))
        };
        let expect = Hypervisor {
            host: "kvm1".to_owned(),
            uri: Some("qemu:///system".to_owned()),
            connected_since: Some(1_700_000_000_123),
            libvirt: Some("10.0.0".to_owned()),
            cycle: Some(1.5),
            interval: 5_000,
            vms: 4,
            stuck: 1,
            abandoned: 2,
            failures: 9,
            cache_hits: Some(0.5),
            problem: None,
        };
        assert_eq!(hypervisors(&[status], vec![row("kvm1")], &Fleet::default()), [expect]);
    }

    #[test]
    fn a_cycle_that_leaves_no_time_is_told() {
        let told = |cycle: Option<f64>, interval, problem: Option<&str>| {
            let problem = problem.map(str::to_owned);
            slow(&Hypervisor { cycle, interval, problem, host: "kvm1".to_owned(), ..Hypervisor::default() })
        };
        assert_eq!(told(Some(4_000.0), 5_000, None), None);
        assert_eq!(
            told(Some(4_200.0), 5_000, None).map(|it| it.text).as_deref(),
            Some("kvm1: the last cycle took 4.2s, more than 80 % of the interval (5s)")
        );
        // Its problem says more; and nothing is known of these.
        for (cycle, interval, problem) in
            [(Some(4_200.0), 5_000, Some("no cycle for 60 s")), (None, 5_000, None), (Some(1.0), 0, None)]
        {
            assert_eq!(told(cycle, interval, problem), None, "{cycle:?} {interval}");
        }
    }

    #[test]
    fn calls_that_hang_are_told_at_their_limit() {
        let told = |abandoned| exhausted(&Status { abandoned, ..status("kvm1", Some("kvm1")) });
        assert_eq!(told(2), None);
        let text = told(3).map(|it| it.text).unwrap_or_default();
        assert!(
            text.starts_with("kvm1: as many calls as max_abandoned allows hang in libvirtd (3)"),
            "{text}"
        );
    }

    #[test]
    fn refused_lines_are_told_with_where_they_are() {
        let deliveries = |refused_lines| {
            vec![DeliveryStats {
                name: "http://influx:8181 vms".to_owned(),
                refused_lines,
                ..DeliveryStats::default()
            }]
        };
        let own = Own { rejects: "/data/rejects".into(), deliveries: deliveries(0), ..Own::default() };
        assert_eq!(own.warnings(), []);
        let own = Own { deliveries: deliveries(7), ..own };
        let [told] = &own.warnings()[..] else { panic!("{:?}", own.warnings()) };
        assert_eq!((told.level, &*told.text), (Level::Warning, "http://influx:8181 vms refused lines: 7"));
        let advice = told.advice.as_deref().unwrap_or_default();
        assert!(advice.starts_with("they are kept in /data/rejects, "), "{advice}");
    }
}
