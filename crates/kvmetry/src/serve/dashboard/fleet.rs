//! Every VM's newest reading, and its rates since the reading before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;

use super::schema::Schema;
use super::types::{Fleet, FleetHistory, Host, Level, MemorySource, Vm, Warning};
use crate::collect::Status;

const MS: i64 = 1_000_000;
pub(crate) const TABLE: &str = "vm_totals";
const COLLECTOR: &str = "kvmetry_collector";
/// A host that has been silent for longer is shown no more, ms.
const FORGOTTEN_AFTER: i64 = 86_400_000;
/// Fields that are shown as they are.
const GAUGES: [&str; 8] =
    ["state", "cpus", "memactual", "memrss", "memavailable", "memusable", "collect_ok", "collect_age_s"];
/// Fields that are shown as rates.
const COUNTERS: [&str; 5] = ["cputime", "net_rxbytes", "net_txbytes", "disk_rd_bytes", "disk_wr_bytes"];
/// Fields whose increases are counted.
const FAULTS: [&str; 3] = ["net_rxerrors", "net_txerrors", "disk_errors"];
/// The same of dropped packets.
const DROPS: [&str; 2] = ["net_rxdrops", "net_txdrops"];
/// The span of sparklines, errors and drops.
pub(crate) const HISTORY_MINUTES: i64 = 15;
/// A host that has no reading for so many intervals is silent.
const SILENT_AFTER: i64 = 3;
/// Warnings of one kind that are told each: a switch that fails may take hundreds of hypervisors.
const MAX_TOLD: usize = 10;

/// A reading of a VM.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Reading {
    uuid: Option<String>,
    name: Option<String>,
    host: Option<String>,
    vmid: Option<String>,
    /// Nanoseconds.
    at: i64,
    /// [`GAUGES`], then [`COUNTERS`].
    v: Vec<Option<i64>>,
}

/// As a whole number; unknown where it is none that can be.
pub(crate) fn whole(field: String) -> String {
    format!("TRY_CAST({field} AS BIGINT)")
}

/// Asks for the readings of the last so many seconds, of which [`last_two`] makes rows. `are_few`: there are three or four of
/// each VM in that time. To read them all is half the work of having the database find the last two.
pub(crate) fn newest(schema: &Schema, seconds: u64, are_few: bool) -> String {
    let fields = GAUGES.iter().chain(&COUNTERS);
    let fields: Vec<_> = fields.map(|it| whole(schema.field(TABLE, it))).collect();
    let (uuid, name, host) = (schema.uuid(TABLE), schema.name(TABLE), schema.tag(TABLE, &["host"]));
    let all = format!(
        "SELECT {uuid} AS uuid, {name} AS name, {host} AS host, \"VMID\" AS vmid, CAST(time AS BIGINT) AS at, \
         make_array({}) AS v FROM {TABLE} WHERE {}",
        fields.join(", "),
        lately(seconds)
    );
    if are_few {
        return all;
    }
    format!(
        "SELECT uuid, name, host, vmid, at, v FROM (SELECT *, row_number() OVER (PARTITION BY uuid, host ORDER BY at DESC) \
         AS nth FROM ({all})) WHERE nth <= 2"
    )
}

/// The newest reading of each VM on each host, with the one before it of the same start.
pub(crate) fn last_two(mut readings: Vec<Reading>) -> Vec<Row> {
    readings.sort_by(|a, b| (&a.uuid, &a.host, a.at).cmp(&(&b.uuid, &b.host, b.at)));
    let is_same = |a: &Reading, b: &Reading| (&a.uuid, &a.host) == (&b.uuid, &b.host);
    let of_vm = readings.chunk_by(is_same);
    of_vm
        .filter_map(|readings| {
            let (last, before) = readings.split_last()?;
            let before = before.iter().rev().find(|it| it.vmid == last.vmid && it.at < last.at);
            Some(Row::of(last.clone(), before))
        })
        .collect()
}

/// A VM's last two readings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    uuid: Option<String>,
    name: Option<String>,
    host: Option<String>,
    vmid: Option<String>,
    /// Nanoseconds, as `before`, the reading before it.
    at: i64,
    before: Option<i64>,
    state: Option<i64>,
    cpus: Option<i64>,
    memactual: Option<i64>,
    memrss: Option<i64>,
    memavailable: Option<i64>,
    memusable: Option<i64>,
    collect_ok: Option<i64>,
    collect_age_s: Option<i64>,
    cputime: Counter,
    net_rxbytes: Counter,
    net_txbytes: Counter,
    disk_rd_bytes: Counter,
    disk_wr_bytes: Counter,
}

/// A counter, and what it was in the reading before.
type Counter = (Option<i64>, Option<i64>);

/// The last so many seconds. A clock that is ahead must not hide what is read now.
fn lately(seconds: u64) -> String {
    format!("time >= now() - INTERVAL '{seconds} seconds' AND time < now() + INTERVAL '1 minute'")
}

/// How often each of a VM's errors and drops came in the last minutes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Faults {
    errors: Option<i64>,
    drops: Option<i64>,
}

/// [`Faults`], and of which VM.
#[derive(Debug, Deserialize)]
pub(crate) struct FaultsRow {
    pub(crate) uuid: Option<String>,
    #[serde(flatten)]
    pub(crate) faults: Faults,
}

/// Asks for the errors and drops of each VM in the last minutes.
pub(crate) fn faults(schema: &Schema) -> String {
    let rolled = "vm_totals_1m";
    let table = if schema.has_table(rolled) { rolled } else { TABLE };
    let uuid = schema.uuid(table);
    let span = format!("time >= now() - INTERVAL '{HISTORY_MINUTES} minutes'");
    // What none of its fields tells is unknown, not 0.
    let sum = |fields: &[&str], tail: &str| {
        let there = fields.iter().map(|it| format!("{it}{tail}")).filter(|it| schema.has(table, it));
        let sums: Vec<_> = there.map(|it| format!("coalesce(sum({it}), 0)")).collect();
        if sums.is_empty() { "CAST(NULL AS BIGINT)".to_owned() } else { sums.join(" + ") }
    };
    if table == rolled {
        return format!(
            "SELECT {uuid} AS uuid, {} AS errors, {} AS drops FROM {table} WHERE {span} GROUP BY 1",
            sum(&FAULTS, "_increase"),
            sum(&DROPS, "_increase")
        );
    }
    let mut steps = String::new();
    for field in FAULTS.iter().chain(&DROPS) {
        let of = schema.field(table, field);
        let _ = write!(steps, ", greatest({of} - lag({of}) OVER one, 0) AS {field}");
    }
    format!(
        "WITH steps AS (SELECT {uuid} AS uuid{steps} FROM {table} WHERE {span} \
         WINDOW one AS (PARTITION BY {uuid}, \"VMID\" ORDER BY time)) \
         SELECT uuid, {} AS errors, {} AS drops FROM steps GROUP BY 1",
        sum(&FAULTS, ""),
        sum(&DROPS, "")
    )
}

/// A VM's trend of memory.
#[derive(Debug, Deserialize)]
pub(crate) struct Growth {
    pub(crate) uuid: Option<String>,
    pub(crate) rate: Option<f64>,
}

/// Asks for the newest trend of memory of each VM within the last so many seconds.
pub(crate) fn growth(schema: &Schema, seconds: u64) -> Option<String> {
    let table = "vm_features";
    let uuid = schema.uuid(table);
    schema.has(table, "memory_rate_kb_per_sec").then(|| {
        format!(
            "SELECT {uuid} AS uuid, last_value(memory_rate_kb_per_sec ORDER BY time) AS rate FROM {table} \
             WHERE {} GROUP BY 1",
            lately(seconds)
        )
    })
}

/// A hypervisor's last cycle.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Cycle {
    host: Option<String>,
    at: i64,
    cycle_ns: Option<i64>,
}

/// Asks for the last cycle of each hypervisor in the last so many seconds.
pub(crate) fn cycles(schema: &Schema, seconds: u64) -> Option<String> {
    let (host, cycle) = (schema.tag(COLLECTOR, &["host"]), whole(schema.field(COLLECTOR, "cycle_ns")));
    schema.has_table(COLLECTOR).then(|| {
        format!(
            "SELECT {host} AS host, CAST(max(time) AS BIGINT) AS at, last_value({cycle} ORDER BY time) AS cycle_ns \
             FROM {COLLECTOR} WHERE {} GROUP BY 1",
            lately(seconds)
        )
    })
}

/// How often a hypervisor is read.
#[derive(Debug, Deserialize)]
pub(crate) struct Pace {
    host: Option<String>,
    /// Nanoseconds between two cycles, as most are; null where there was one in that time.
    step: Option<f64>,
}

/// A VM that has ended.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ended {
    uuid: Option<String>,
    name: Option<String>,
    event: Option<String>,
    reason: Option<String>,
    at: i64,
}

/// Asks for the VMs that stopped or crashed in the last minutes, the newest first.
pub(crate) fn ended(schema: &Schema) -> Option<String> {
    let table = "vm_events";
    let text = |name: &str| schema.tag(table, &[name]);
    schema.has(table, "event").then(|| {
        format!(
            "SELECT {} AS uuid, {} AS name, event, {} AS reason, CAST(time AS BIGINT) AS at FROM {table} \
             WHERE event IN ('stopped', 'crashed') AND {} ORDER BY time DESC LIMIT 1000",
            schema.uuid(table),
            schema.name(table),
            text("reason"),
            lately((HISTORY_MINUTES * 60).unsigned_abs())
        )
    })
}

/// The time of day, as warnings have it; ms since 1970.
fn clock(at: i64) -> String {
    let seconds = (at / 1_000).rem_euclid(86_400);
    format!("{:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60)
}

/// Who is gone, for whoever looks for it in vain.
pub(crate) fn gone(ended: &[Ended], vms: &[Vm]) -> Vec<Warning> {
    let mut told: BTreeSet<&str> = vms.iter().map(|it| it.uuid.as_str()).collect();
    let mut warnings = Vec::new();
    for it in ended {
        let Some(uuid) = it.uuid.as_deref().filter(|it| told.insert(it)) else { continue };
        let (event, name) = (it.event.as_deref().unwrap_or("stopped"), it.name.as_deref().unwrap_or(uuid));
        let reason = it.reason.as_deref().filter(|it| !it.is_empty());
        let reason = reason.map(|it| format!(" ({it})")).unwrap_or_default();
        warnings.push(Warning {
            level: if event == "crashed" { Level::Error } else { Level::Warning },
            text: format!("{name} {event} at {}{reason}", clock(it.at / MS)),
            advice: Some(format!("its past is at vm/{uuid}")),
        });
    }
    warnings.truncate(MAX_TOLD);
    warnings
}

/// Asks for the hypervisors whose clock is so far ahead that they are not shown.
pub(crate) fn ahead(schema: &Schema) -> Option<String> {
    let table = if schema.has_table(COLLECTOR) { COLLECTOR } else { TABLE };
    hosts(schema, table, "time >= now() + INTERVAL '1 minute' AND time < now() + INTERVAL '1 day'")
}

/// Hosts that are not shown for their clock.
pub(crate) fn astray(ahead: &[Cycle]) -> impl Iterator<Item = Warning> + '_ {
    ahead.iter().take(MAX_TOLD).map(|it| Warning {
        level: Level::Error,
        text: format!(
            "the clock of {} is more than a minute ahead: it is not shown before its time has come",
            it.host.as_deref().filter(|it| !it.is_empty()).unwrap_or("a host")
        ),
        advice: Some("set the clock where it is read (chrony, systemd-timesyncd)".to_owned()),
    })
}

/// Asks for the pace of each hypervisor in the last so many seconds.
pub(crate) fn paces(schema: &Schema, seconds: u64) -> Option<String> {
    let host = schema.tag(COLLECTOR, &["host"]);
    schema.has_table(COLLECTOR).then(|| {
        format!(
            "WITH cycles AS (SELECT {host} AS host, CAST(time AS BIGINT) AS at FROM {COLLECTOR} WHERE {}), \
             steps AS (SELECT host, CAST(at - lag(at) OVER (PARTITION BY host ORDER BY at) AS DOUBLE) AS step FROM cycles) \
             SELECT host, median(step) AS step FROM steps GROUP BY 1",
            lately(seconds)
        )
    })
}

/// Asks for the hypervisors of the last day, which may be silent now.
pub(crate) fn hosts_of_a_day(schema: &Schema) -> Option<String> {
    let rolled = "kvmetry_collector_1m";
    let table = if schema.has_table(rolled) { rolled } else { COLLECTOR };
    hosts(schema, table, &lately(86_400))
}

/// Asks for the hypervisors that wrote into this table, and when last.
fn hosts(schema: &Schema, table: &str, span: &str) -> Option<String> {
    let host = schema.tag(table, &["host"]);
    schema.has_table(table).then(|| {
        format!(
            "SELECT {host} AS host, CAST(max(time) AS BIGINT) AS at, CAST(NULL AS BIGINT) AS cycle_ns FROM {table} \
             WHERE {span} GROUP BY 1"
        )
    })
}

impl Pace {
    pub(crate) fn is_unknown(&self) -> bool {
        self.step.is_none()
    }
}

/// How often each hypervisor is read, ms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paces {
    of: BTreeMap<String, i64>,
    /// Of those that tell none.
    usual: i64,
}

impl Paces {
    pub(crate) fn new(rows: Vec<Pace>) -> Self {
        let of = rows.into_iter().filter_map(|it| {
            let ms = it.step? / MS as f64;
            (ms >= 1.0).then(|| (it.host.unwrap_or_default(), ms.round() as i64))
        });
        Self { of: of.collect(), usual: 0 }
    }

    pub(crate) fn usual(self, usual: i64) -> Self {
        Self { usual, ..self }
    }

    pub(crate) fn slowest(&self) -> i64 {
        self.of.values().copied().max().unwrap_or(0).max(self.usual)
    }

    fn of(&self, host: &str) -> i64 {
        self.of.get(host).copied().unwrap_or(self.usual)
    }

    /// A host without a reading for this long is silent.
    fn limit(&self, host: &str) -> i64 {
        SILENT_AFTER * self.of(host)
    }
}

impl Row {
    fn of(last: Reading, before: Option<&Reading>) -> Self {
        let value = |of: &Reading, name: &str| {
            let mut names = GAUGES.iter().chain(&COUNTERS);
            of.v.get(names.position(|it| *it == name)?).copied().flatten()
        };
        let gauge = |name| value(&last, name);
        let counter = |name| (value(&last, name), before.and_then(|it| value(it, name)));
        Self {
            at: last.at,
            before: before.map(|it| it.at),
            state: gauge("state"),
            cpus: gauge("cpus"),
            memactual: gauge("memactual"),
            memrss: gauge("memrss"),
            memavailable: gauge("memavailable"),
            memusable: gauge("memusable"),
            collect_ok: gauge("collect_ok"),
            collect_age_s: gauge("collect_age_s"),
            cputime: counter("cputime"),
            net_rxbytes: counter("net_rxbytes"),
            net_txbytes: counter("net_txbytes"),
            disk_rd_bytes: counter("disk_rd_bytes"),
            disk_wr_bytes: counter("disk_wr_bytes"),
            uuid: last.uuid,
            name: last.name,
            host: last.host,
            vmid: last.vmid,
        }
    }

    /// Seconds since the reading before.
    fn step(&self) -> Option<f64> {
        let step = self.at - self.before?;
        (step > 0).then(|| step as f64 / 1e9)
    }

    /// A counter's increase a second; unknown where it began anew.
    fn rate(&self, (now, before): Counter) -> Option<f64> {
        let increase = now?.checked_sub(before?).filter(|it| *it >= 0)?;
        Some(increase as f64 / self.step()?)
    }

    fn cpu(&self) -> Option<f64> {
        let cpus = self.cpus.filter(|it| *it > 0)?;
        let busy = self.rate(self.cputime)? / 1e9;
        // The two moments are those of the readings, the counter's are a little elsewhere.
        Some((100.0 * busy / cpus as f64).clamp(0.0, 100.0))
    }

    fn used(&self) -> Option<(i64, MemorySource)> {
        // 0: its hypervisor never tells.
        let given = |it: Option<i64>| it.filter(|it| *it > 0);
        match (given(self.memavailable), given(self.memusable)) {
            (Some(available), Some(usable)) if available >= usable => {
                Some((available - usable, MemorySource::Guest))
            }
            _ => Some((given(self.memrss)?, MemorySource::Rss)),
        }
    }

    /// As the pages have it.
    pub(crate) fn vm(self) -> Option<Vm> {
        let used = self.used();
        Some(Vm {
            cpu: self.cpu(),
            rx: self.rate(self.net_rxbytes),
            tx: self.rate(self.net_txbytes),
            rd: self.rate(self.disk_rd_bytes),
            wr: self.rate(self.disk_wr_bytes),
            at: self.at / MS,
            interval: 0,
            state: self.state,
            cpus: self.cpus,
            assigned: self.memactual,
            used: used.map(|it| it.0),
            source: used.map(|it| it.1),
            // Who does not tell is taken for whole.
            ok: self.collect_ok != Some(0),
            age: self.collect_age_s,
            // Of a name that nobody sees there would be nothing to click on.
            name: self.name.filter(|it| !it.trim().is_empty()).or_else(|| self.uuid.clone())?,
            uuid: self.uuid?,
            host: self.host.unwrap_or_default(),
            vmid: self.vmid.unwrap_or_default(),
            growth: None,
            errors: None,
            drops: None,
        })
    }

    /// Milliseconds between its two readings.
    pub(crate) fn interval(&self) -> Option<i64> {
        Some((self.at - self.before?) / MS)
    }
}

/// The interval of most.
pub(crate) fn interval(rows: &[Row]) -> Option<i64> {
    let mut all: Vec<i64> = rows.iter().filter_map(Row::interval).filter(|it| *it > 0).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

/// Puts the fleet together. `before`: as it was, whose VMs stay where their host has become silent. `own`: the hypervisors
/// that this process reads.
pub(crate) fn fleet(
    mut vms: Vec<Vm>,
    cycles: Vec<Cycle>,
    before: &Fleet,
    paces: &Paces,
    own: &[Status],
    now: i64,
) -> Fleet {
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for cycle in cycles {
        let name = cycle.host.unwrap_or_default();
        let at = newest.entry(name.clone()).or_insert(cycle.at / MS);
        *at = (cycle.at / MS).max(*at);
        let host = hosts.entry(name.clone()).or_insert_with(|| Host { name, ..Host::default() });
        host.cycle = cycle.cycle_ns.map(|it| it as f64 / MS as f64).or(host.cycle);
    }
    for vm in &vms {
        let at = newest.entry(vm.host.clone()).or_insert(vm.at);
        *at = vm.at.max(*at);
    }
    // A VM that went from host to host is on the one that still lists it. Two that do have a clone each: the same is shown
    // every time.
    let is_listed = |vm: &Vm| {
        let (pace, at) = (paces.of(&vm.host), newest.get(&vm.host).copied().unwrap_or(vm.at));
        2 * (at - vm.at) < pace.max(1) && now - at < 2 * pace
    };
    let order =
        |vm: &Vm| if is_listed(vm) { (false, 0, vm.host.clone()) } else { (true, -vm.at, String::new()) };
    vms.sort_by(|a, b| (&a.uuid, order(a)).cmp(&(&b.uuid, order(b))));
    let twice: Vec<Warning> = vms
        .windows(2)
        .filter(|it| it[0].uuid == it[1].uuid && it[0].host != it[1].host && it.iter().all(is_listed))
        .map(|it| Warning {
            level: Level::Error,
            text: format!("{} and {} both have a VM {} ({})", it[0].host, it[1].host, it[0].uuid, it[0].name),
            advice: Some("a clone needs a UUID of its own; only the first one is shown".to_owned()),
        })
        .collect();
    vms.dedup_by(|a, b| a.uuid == b.uuid);
    // What two cycles of its host do not list has ended. One may be on its way in several writes.
    vms.retain(|vm| newest.get(&vm.host).is_none_or(|at| 2 * (at - vm.at) < 3 * paces.of(&vm.host)));
    let is_silent = |host: &str| newest.get(host).is_none_or(|at| now - at >= paces.limit(host));
    let there: BTreeSet<String> = vms.iter().map(|it| it.uuid.clone()).collect();
    let lost = before
        .vms
        .iter()
        .filter(|it| is_silent(&it.host) && now - it.at < FORGOTTEN_AFTER && !there.contains(&it.uuid));
    vms.extend(lost.cloned());
    vms.sort_by(|a, b| (&a.host, &a.name, &a.uuid).cmp(&(&b.host, &b.name, &b.uuid)));
    for vm in &mut vms {
        vm.interval = paces.of(&vm.host);
        let host =
            hosts.entry(vm.host.clone()).or_insert_with(|| Host { name: vm.host.clone(), ..Host::default() });
        host.at = host.at.max(Some(vm.at));
        host.vms += 1;
        host.stuck += usize::from(!vm.ok);
    }
    for (name, host) in &mut hosts {
        host.at = host.at.max(newest.get(name).copied());
        host.silent = is_silent(name);
        host.interval = paces.of(name);
    }
    let hosts: Vec<Host> = hosts.into_values().collect();
    let mut warnings = warnings(&vms, &hosts, own);
    warnings.extend(twice);
    warnings.sort_by_key(|it| it.level);
    let at = vms.iter().map(|it| it.at).max().max(newest.into_values().max());
    Fleet { now, at, interval: paces.usual, hosts, vms, warnings }
}

fn warnings(vms: &[Vm], hosts: &[Host], own: &[Status]) -> Vec<Warning> {
    let mut warnings = problems(own);
    let is_told = |host: &str| own.iter().any(|it| it.problem.is_some() && it.tag.as_deref() == Some(host));
    for host in hosts.iter().filter(|it| it.silent && !is_told(&it.name)) {
        warnings.push(Warning {
            level: Level::Error,
            text: match host.at {
                Some(at) => format!("{} is silent: nothing was read of it since {}", host.name, clock(at)),
                None => format!("{} is silent: it could not be read of late", host.name),
            },
            advice: Some(
                "see whether it is up, its libvirtd answers and its clock is right; kvmetry check tells more"
                    .to_owned(),
            ),
        });
    }
    let stuck: Vec<&str> = vms.iter().filter(|it| !it.ok).map(|it| it.name.as_str()).collect();
    if !stuck.is_empty() {
        warnings.push(Warning {
            level: Level::Error,
            text: match &*stuck {
                [one] => format!("{one} does not answer its hypervisor"),
                _ => {
                    format!("{} do not answer their hypervisor: {}", count(stuck.len(), "VM"), some(&stuck))
                }
            },
            advice: Some("look for hung storage (dead NFS, full disk) on their host".to_owned()),
        });
    }
    let sets_balloons =
        |vm: &Vm| own.iter().any(|it| it.sets_balloons && it.tag.as_deref() == Some(&*vm.host));
    let is_blind = |it: &&Vm| it.state == Some(1) && it.source == Some(MemorySource::Rss);
    let (with_period, without): (Vec<&Vm>, Vec<&Vm>) =
        vms.iter().filter(is_blind).partition(|it| sets_balloons(it));
    // No name: it is to be pasted into a shell.
    let advice = without.iter().find(|it| is_uuid(&it.uuid)).map(|it| {
        format!(
            "with a balloon driver in the guest: virsh dommemstat {} --period 5 --live; or, for all of them, [collect] \
             balloon_period = \"5s\"",
            it.uuid
        )
    });
    warnings.extend(blind(&without, advice));
    let advice = "balloon_period sees to it that balloons report: what is missing is the driver in the guest \
                  (virtio_balloon), or the VM's balloon; kvmetry check tells which VMs have none";
    warnings.extend(blind(&with_period, Some(advice.to_owned())));
    warnings
}

/// Hypervisors that this process cannot read. Why says what to do, as `kvmetry check` does.
pub(crate) fn problems(own: &[Status]) -> Vec<Warning> {
    let all: Vec<_> = own.iter().filter_map(|it| Some((&it.name, it.problem.as_ref()?))).collect();
    let mut warnings: Vec<Warning> = all
        .iter()
        .take(MAX_TOLD)
        .map(|(name, problem)| Warning {
            level: Level::Error,
            text: format!("{name} cannot be read: {problem}"),
            advice: Some(
                "once that is mended it is read again by itself, within half a minute; kvmetry check tells more"
                    .to_owned(),
            ),
        })
        .collect();
    if let Some(more) = all.len().checked_sub(MAX_TOLD).filter(|it| *it > 0) {
        warnings.push(Warning {
            level: Level::Error,
            text: format!("{} cannot be read", count(more, "more hypervisor")),
            advice: Some("the collector's page and kvmetry check tell why".to_owned()),
        });
    }
    warnings
}

fn blind(vms: &[&Vm], advice: Option<String>) -> Option<Warning> {
    let names: Vec<&str> = vms.iter().map(|it| it.name.as_str()).collect();
    let vms = count(names.len(), "VM");
    let text = format!("the memory that guests use inside is not known of {vms}: {}", some(&names));
    (!names.is_empty()).then_some(Warning { level: Level::Warning, text, advice })
}

/// Whether this is a UUID and nothing else.
pub(crate) fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-')
}

fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// The first of these names.
fn some(names: &[&str]) -> String {
    const TOLD: usize = 5;
    let told = names[..names.len().min(TOLD)].join(", ");
    if names.len() > TOLD { format!("{told}, …") } else { told }
}

impl Vm {
    /// Adds what other tables know of it.
    pub(crate) fn add(&mut self, faults: Option<&Faults>, growth: Option<f64>) {
        self.growth = growth;
        if let Some(faults) = faults {
            (self.errors, self.drops) = (faults.errors, faults.drops);
        }
    }
}

/// The last reading of a VM in a bucket.
#[derive(Debug, Deserialize)]
pub(crate) struct Bucket {
    uuid: Option<String>,
    host: Option<String>,
    vmid: Option<String>,
    bucket: i64,
    at: i64,
    cputime: Option<i64>,
    cpus: Option<i64>,
}

/// The width of a bucket of a sparkline, seconds: `least` or so many times it that each bucket has a reading.
pub(crate) fn spark_step(least: i64, interval: i64) -> i64 {
    let times = interval.div_euclid(least * 1_000) + i64::from(interval % (least * 1_000) > 0);
    least * times.clamp(1, HISTORY_MINUTES * 60 / least / 2)
}

/// Asks for the last reading of each VM in each bucket of so many seconds, and in the one before the first.
pub(crate) fn history(schema: &Schema, step_s: i64) -> String {
    let uuid = schema.uuid(TABLE);
    let (cputime, cpus) = (whole(schema.field(TABLE, "cputime")), whole(schema.field(TABLE, "cpus")));
    let host = schema.tag(TABLE, &["host"]);
    // The first step needs the reading before.
    let seconds = (HISTORY_MINUTES * 60 + 10 * step_s).unsigned_abs();
    format!(
        "SELECT {uuid} AS uuid, {host} AS host, \"VMID\" AS vmid, CAST(date_bin(INTERVAL '{step_s} seconds', time) AS BIGINT) AS bucket, \
         CAST(max(time) AS BIGINT) AS at, last_value({cputime} ORDER BY time) AS cputime, max({cpus}) AS cpus \
         FROM {TABLE} WHERE {} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        lately(seconds)
    )
}

/// The CPU of each VM in each bucket up to now.
pub(crate) fn histories(rows: &[Bucket], step_s: i64, interval: i64, now: i64) -> FleetHistory {
    let step = step_s * 1_000;
    let buckets = HISTORY_MINUTES * 60 / step_s;
    let from = (now.div_euclid(step) + 1 - buckets) * step;
    let mut cpu: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for pair in rows.windows(2) {
        let [before, it] = pair else { continue };
        let is_same = (&it.uuid, &it.host, &it.vmid) == (&before.uuid, &before.host, &before.vmid);
        let Some(uuid) = it.uuid.clone().filter(|_| is_same) else { continue };
        let place = usize::try_from((it.bucket / MS - from).div_euclid(step)).ok();
        let Some(place) = place.filter(|it| (*it as i64) < buckets) else { continue };
        let follows = it.at - before.at <= (3 * interval).max(2 * step) * MS;
        let row = Row {
            at: it.at,
            before: Some(before.at).filter(|_| follows),
            cpus: it.cpus,
            cputime: (it.cputime, before.cputime),
            ..Row::default()
        };
        let line = cpu.entry(uuid).or_insert_with(|| vec![None; buckets as usize]);
        line[place] = row.cpu();
    }
    FleetHistory { from, step, cpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(uuid: u8, host: &str, source: MemorySource) -> Vm {
        Vm {
            uuid: format!("00000000-0000-4000-8000-0000000000{uuid:02}"),
            name: format!("vm{uuid}"),
            host: host.to_owned(),
            state: Some(1),
            source: Some(source),
            ok: true,
            ..Vm::default()
        }
    }

    #[test]
    fn a_bucket_of_a_sparkline_has_a_reading() {
        let found = [1_000, 5_000, 15_000, 20_000, 60_000, 3_600_000].map(|it| spark_step(15, it));
        assert_eq!(found, [15, 15, 15, 30, 60, 450]);
    }

    fn host(name: &str, silent: bool) -> Host {
        Host { name: name.to_owned(), silent, ..Host::default() }
    }

    fn own(name: &str, tag: Option<&str>, problem: Option<&str>) -> Status {
        let (tag, problem) = (tag.map(str::to_owned), problem.map(str::to_owned));
        Status { name: name.to_owned(), tag, problem, ..Status::default() }
    }

    fn texts(vms: &[Vm], hosts: &[Host], own: &[Status]) -> Vec<String> {
        warnings(vms, hosts, own).into_iter().map(|it| it.text).collect()
    }

    #[test]
    fn a_hypervisor_that_cannot_be_read_is_told_once_with_its_problem() {
        // Never read, so nothing is written of it.
        let never = [own("qemu:///system", None, Some("no libvirt daemon here"))];
        assert_eq!(texts(&[], &[], &never), ["qemu:///system cannot be read: no libvirt daemon here"]);
        let hosts = [host("kvm1", true), host("kvm2", true), host("kvm3", false)];
        let own = [own("kvm1", Some("kvm1"), Some("it hangs")), own("kvm3", Some("kvm3"), None)];
        let expect = ["kvm1 cannot be read: it hangs", "kvm2 is silent: it could not be read of late"];
        assert_eq!(texts(&[], &hosts, &own), expect);
    }

    #[test]
    fn a_switch_that_fails_does_not_fill_the_page() {
        let all: Vec<_> = (0..12).map(|n| own(&format!("kvm{n}"), None, Some("no answer"))).collect();
        let told = texts(&[], &[], &all[..10]);
        assert_eq!((told.len(), &*told[9]), (10, "kvm9 cannot be read: no answer"));
        let told = texts(&[], &[], &all);
        assert_eq!((told.len(), &*told[10]), (11, "2 more hypervisors cannot be read"));
    }

    #[test]
    fn advice_on_balloons_is_right_for_each_hypervisor() {
        let sets = Status { sets_balloons: true, ..own("kvm1", Some("kvm1"), None) };
        let vms = [
            running(1, "kvm1", MemorySource::Rss),
            running(2, "kvm2", MemorySource::Rss),
            running(3, "kvm2", MemorySource::Guest),
            Vm { state: Some(3), ..running(4, "kvm2", MemorySource::Rss) },
        ];
        let told = warnings(&vms, &[], &[sets, own("kvm2", Some("kvm2"), None)]);
        let [without, with_period] = &told[..] else { panic!("{told:?}") };
        assert_eq!(without.text, "the memory that guests use inside is not known of 1 VM: vm2");
        let advice = without.advice.as_deref().unwrap_or_default();
        assert!(advice.contains(&format!("virsh dommemstat {} --period 5", vms[1].uuid)), "{advice}");
        assert_eq!(with_period.text, "the memory that guests use inside is not known of 1 VM: vm1");
        let advice = with_period.advice.as_deref().unwrap_or_default();
        assert!(advice.contains("virtio_balloon") && !advice.contains("virsh"), "{advice}");
    }
}
