//! What is remembered of each domain between its readings, and the writing of its lines.
//!
//! One [`HostTracker`] serves one hypervisor. Per domain (by UUID) it keeps the tags as they are written, which of its
//! devices have ever given counters, which source its CPU time comes from, its memory's trend, and when it was last
//! read whole. All of that starts anew when the domain restarts, which its id tells.
//!
//! A domain that is not seen for [`FORGET_AFTER_CYCLES`] is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use crate::catalogue::{
    COLLECTOR, COLLECTOR_FIELDS, Collector, DISK_FIELDS, DISK_SUM_PREFIX, Event, Field, NIC_FIELDS,
    NIC_SUM_PREFIX, VM_DEVICES, VM_EVENTS, VM_EVENTS_FIELDS, VM_FEATURES, VM_FEATURES_FIELDS, VM_METRICS,
    VM_METRICS_FIELDS, VM_TOTALS, VM_TOTALS_FIELDS, WHOLENESS_FIELDS, Wholeness,
};
use crate::derive::{FeatureOptions, MemoryTrend, Moment};
use crate::encode::{Line, Stamp, TagStyle, Tags, push_tags};
use crate::sample::{Device, DeviceReading, Devices, Groups, Sample};
use crate::units::{DomainId, StateCode, Uuid};

/// Cycles without a sign of a domain after which it is forgotten. More than one, since the event that tells of its end
/// may come after the list that lacks it, and carries no id of its own.
pub const FORGET_AFTER_CYCLES: u32 = 3;

/// Answers without counters after which a device that never gave any is taken for one that never will. One answer may
/// be a failure; and if it were taken for a fact, the first counters would make the sum jump by all that they counted.
pub const SILENT_ANSWERS: u32 = 2;

/// By how much an event's time may be moved to keep it apart from the one before: a burst of a million events. Beyond
/// it the clock was set back, and following the old time would put events into the future.
pub const MAX_EVENT_SHIFT_NS: u64 = 1_000_000;

/// The state code of a domain that has just ended.
const SHUT_OFF: StateCode = StateCode(5);

/// How a tracker writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrackerOptions {
    /// The tag `host`; empty for none.
    pub host: String,
    /// Names of the tags.
    pub tag_style: TagStyle,
    /// Where CPU time comes from, for every domain; `None` lets each domain's first reading decide. Two paces need
    /// [`CpuSource::Info`].
    pub cpu_source: Option<CpuSource>,
    /// Deriving of features.
    pub features: FeatureOptions,
}

/// Where a domain's CPU time comes from. The two differ by milliseconds, so it is one of them for a domain's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSource {
    /// `cpu.time` of the bulk record.
    Bulk,
    /// Domain info, to be read in every cycle.
    Info,
}

/// What [`HostTracker::encode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Lines appended.
    pub lines: u32,
    /// Groups that were wanted and not read whole; empty for a whole reading.
    pub missing: Groups,
}

impl Encoded {
    /// Whether all that was wanted was read.
    pub fn ok(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Everything remembered of one hypervisor's domains.
#[derive(Debug)]
pub struct HostTracker {
    options: TrackerOptions,
    domains: HashMap<Uuid, Domain>,
    stamp: Stamp,
    last_event_ns: i64,
    scratch: Vec<u8>,
}

/// One domain's memory.
#[derive(Debug)]
struct Domain {
    id: DomainId,
    name: String,
    /// `,VMID=…,host=…,name=…,uuid=…`
    tags: Vec<u8>,
    nics: Vec<KnownDevice>,
    disks: Vec<KnownDevice>,
    cpu_source: Option<CpuSource>,
    trend: MemoryTrend,
    last_whole: Duration,
    /// Counts the readings, to tell which devices this one listed.
    reading: u64,
    cycles_unseen: u32,
}

/// One device's memory.
#[derive(Debug)]
struct KnownDevice {
    name: String,
    /// The tags of its lines.
    tags: Vec<u8>,
    has_given: bool,
    silent_answers: u32,
    /// Whether its last reading left the sum of its kind unknown.
    blocks_sum: bool,
    last_listed: u64,
}

impl HostTracker {
    /// A tracker that knows no domain yet.
    pub fn new(options: TrackerOptions) -> Self {
        Self {
            options,
            domains: HashMap::new(),
            stamp: Stamp::default(),
            last_event_ns: i64::MIN,
            scratch: Vec::new(),
        }
    }

    /// Changes the tag `host`; empty for none.
    pub fn set_host(&mut self, host: &str) {
        if self.options.host != host {
            self.options.host = host.to_owned();
            // Every tag set has it: they are built again at the next reading.
            self.domains.values_mut().for_each(Domain::drop_tags);
        }
    }

    /// Appends all lines of one sample: `vm_metrics`, `vm_devices`, `vm_totals`, `vm_features`. Sets the sample's
    /// CPU time to that of the domain's source. A domain that is not live gives no lines.
    pub fn encode(&mut self, sample: &mut Sample, at: &Moment, out: &mut Vec<u8>) -> Encoded {
        if !sample.id.is_live() || sample.state == Some(SHUT_OFF) {
            return Encoded { lines: 0, missing: Groups::NONE };
        }
        self.stamp.set(at.timestamp_ns);
        let domain = self.domains.entry(sample.uuid).or_insert_with(|| Domain::new(sample, at));
        domain.recognise(sample, at, &self.options);
        domain.choose_cpu_time(sample, &self.options);

        let mut line = Line::begin(out, VM_METRICS.name, &domain.tags);
        push_known(&mut line, &VM_METRICS_FIELDS, sample);
        let mut lines = u32::from(line.end(&self.stamp));

        let tags = DeviceTags { sample, options: &self.options, stamp: &self.stamp, reading: domain.reading };
        let nics = tags.push_lines(&sample.nics, "nic", &NIC_FIELDS, &mut domain.nics, out);
        let disks = tags.push_lines(&sample.disks, "disk", &DISK_FIELDS, &mut domain.disks, out);
        lines += nics.lines + disks.lines;

        let missing = missing(sample, nics.sums.is_some(), disks.sums.is_some());
        if missing.is_empty() && sample.wanted == Groups::ALL {
            domain.last_whole = at.taken;
        }
        let age_s = at.taken.saturating_sub(domain.last_whole).as_secs();
        let wholeness = Wholeness { ok: missing.is_empty(), age_s };

        let mut line = Line::begin(out, VM_TOTALS.name, &domain.tags);
        push_sums(&mut line, NIC_SUM_PREFIX, &NIC_FIELDS, nics.sums);
        push_sums(&mut line, DISK_SUM_PREFIX, &DISK_FIELDS, disks.sums);
        push_known(&mut line, &VM_TOTALS_FIELDS, sample);
        push_known(&mut line, &WHOLENESS_FIELDS, &wholeness);
        lines += u32::from(line.end(&self.stamp));

        if let Some(features) = domain.trend.step(sample, at, &self.options.features) {
            let mut line = Line::begin(out, VM_FEATURES.name, &domain.tags);
            for field in &VM_FEATURES_FIELDS {
                if let Some(value) = (field.get)(&features) {
                    line.float(field.name, value);
                }
            }
            lines += u32::from(line.end(&self.stamp));
        }
        Encoded { lines, missing }
    }

    /// Appends the line of one event. `received_ns` is the time of its receipt; it is moved by 1 ns as often as it
    /// takes to be later than the event before.
    pub fn event(&mut self, event: &Event<'_>, received_ns: i64, out: &mut Vec<u8>) {
        let next = self.last_event_ns.saturating_add(1);
        let is_ahead = next > received_ns && next.abs_diff(received_ns) <= MAX_EVENT_SHIFT_NS;
        self.last_event_ns = if is_ahead { next } else { received_ns };
        let last_live = self.domains.get(&event.uuid).map(|domain| domain.id);
        let id = Some(event.id).filter(|id| id.is_live()).or(last_live);
        let tags = Tags {
            id,
            event: event.event,
            host: &self.options.host,
            name: event.name,
            uuid: Some(event.uuid),
            ..Tags::default()
        };
        self.scratch.clear();
        push_tags(&mut self.scratch, &tags, self.options.tag_style);
        let mut line = Line::begin(out, VM_EVENTS.name, &self.scratch);
        for field in &VM_EVENTS_FIELDS {
            line.text(field.name, (field.get)(event));
        }
        self.stamp.set(self.last_event_ns);
        line.end(&self.stamp);
    }

    /// Appends the collector's own line for this hypervisor.
    pub fn collector(&mut self, collector: &Collector, timestamp_ns: i64, out: &mut Vec<u8>) {
        self.scratch.clear();
        let tags = Tags { host: &self.options.host, ..Tags::default() };
        push_tags(&mut self.scratch, &tags, self.options.tag_style);
        let mut line = Line::begin(out, COLLECTOR.name, &self.scratch);
        push_known(&mut line, &COLLECTOR_FIELDS, collector);
        self.stamp.set(timestamp_ns);
        line.end(&self.stamp);
    }

    /// Where the CPU time of a domain comes from; `None` until a reading has shown it. A domain with
    /// [`CpuSource::Info`] needs its domain info in every cycle.
    pub fn cpu_source(&self, uuid: &Uuid) -> Option<CpuSource> {
        self.options.cpu_source.or_else(|| self.domains.get(uuid)?.cpu_source)
    }

    /// The devices of a domain that can give counters and did not in its last reading: those that a sum waits for.
    pub fn unread_devices(&self, uuid: &Uuid) -> impl Iterator<Item = &str> {
        let domain = self.domains.get(uuid);
        let known = domain.into_iter().flat_map(|domain| domain.nics.iter().chain(&domain.disks));
        known.filter(|device| device.blocks_sum).map(|device| device.name.as_str())
    }

    /// The domain is live though this cycle gave no sample of it: it is not forgotten.
    pub fn keep(&mut self, uuid: &Uuid) {
        if let Some(domain) = self.domains.get_mut(uuid) {
            domain.cycles_unseen = 0;
        }
    }

    /// Ends a cycle that tried to read every live domain: forgets those not seen for long.
    pub fn end_cycle(&mut self) {
        self.domains.retain(|_, domain| {
            domain.cycles_unseen += 1;
            domain.cycles_unseen <= FORGET_AFTER_CYCLES
        });
    }

    /// Number of domains remembered.
    pub fn domains(&self) -> usize {
        self.domains.len()
    }
}

impl Domain {
    fn new(sample: &Sample, at: &Moment) -> Self {
        Self {
            id: sample.id,
            name: String::new(),
            tags: Vec::new(),
            nics: Vec::new(),
            disks: Vec::new(),
            cpu_source: None,
            trend: MemoryTrend::default(),
            last_whole: at.taken,
            reading: 0,
            cycles_unseen: 0,
        }
    }

    /// Notices a restart and a new name.
    fn recognise(&mut self, sample: &Sample, at: &Moment, options: &TrackerOptions) {
        if self.id != sample.id {
            *self = Self::new(sample, at);
        }
        self.cycles_unseen = 0;
        self.reading += 1;
        if self.name != sample.name {
            self.name.clone_from(&sample.name);
            self.drop_tags();
        }
        if self.tags.is_empty() {
            push_tags(&mut self.tags, &vm_tags(sample, options), options.tag_style);
        }
    }

    fn drop_tags(&mut self) {
        self.tags.clear();
        self.nics.iter_mut().chain(&mut self.disks).for_each(|device| device.tags.clear());
    }

    /// Picks the CPU time of the domain's source; fixes the source at the first reading that shows which there are.
    fn choose_cpu_time(&mut self, sample: &mut Sample, options: &TrackerOptions) {
        let seen = || {
            if sample.cpu.bulk_time.is_some() {
                Some(CpuSource::Bulk)
            } else if sample.cpu.info_time.is_some() && sample.held.cpu {
                // User and system time were read by the older call: the bulk record has no CPU time here.
                Some(CpuSource::Info)
            } else {
                None
            }
        };
        self.cpu_source = options.cpu_source.or(self.cpu_source).or_else(seen);
        sample.cpu.time = match self.cpu_source {
            Some(CpuSource::Bulk) => sample.cpu.bulk_time,
            Some(CpuSource::Info) => sample.cpu.info_time,
            None => None,
        };
    }
}

fn vm_tags<'a>(sample: &'a Sample, options: &'a TrackerOptions) -> Tags<'a> {
    Tags {
        id: Some(sample.id),
        host: &options.host,
        name: &sample.name,
        uuid: Some(sample.uuid),
        ..Tags::default()
    }
}

/// What the lines of one domain's devices have in common.
struct DeviceTags<'a> {
    sample: &'a Sample,
    options: &'a TrackerOptions,
    stamp: &'a Stamp,
    reading: u64,
}

/// What became of the devices of one kind.
struct DeviceLines<const FIELDS: usize> {
    lines: u32,
    /// The sums, if every device that can give readings gave one.
    sums: Option<[u64; FIELDS]>,
}

impl DeviceTags<'_> {
    /// Appends a line for each device that gave counters, and sums them.
    fn push_lines<T: Device + 'static, const FIELDS: usize>(
        &self,
        devices: &Devices<T>,
        devtype: &'static str,
        fields: &'static [Field<T>; FIELDS],
        known: &mut Vec<KnownDevice>,
        out: &mut Vec<u8>,
    ) -> DeviceLines<FIELDS> {
        let mut lines = 0;
        let mut sums = Some([0_u64; FIELDS]);
        for (position, device) in devices.iter().enumerate() {
            let known = self.recognise(known, position, device.name());
            if known.last_listed == self.reading {
                // A name that the reply has twice: it was already read, and counting it again would double its sum.
                continue;
            }
            known.last_listed = self.reading;
            known.judge(device.reading());
            if known.blocks_sum {
                sums = None;
            }
            if device.reading() != DeviceReading::Given {
                continue;
            }
            if known.tags.is_empty() {
                let tags =
                    Tags { device: Some((devtype, device.name())), ..vm_tags(self.sample, self.options) };
                push_tags(&mut known.tags, &tags, self.options.tag_style);
            }
            let mut line = Line::begin(out, VM_DEVICES.name, &known.tags);
            for (at, field) in fields.iter().enumerate() {
                // The device answered: what it did not give is never given, and is written as 0.
                let value = (field.get)(device).unwrap_or(0);
                line.integer("", field.name, value);
                if let Some(sums) = &mut sums {
                    sums[at] = sums[at].saturating_add(value);
                }
            }
            lines += u32::from(line.end(self.stamp));
        }
        if !devices.listed {
            return DeviceLines { lines, sums: None };
        }
        // Gone from a list that is known: unplugged.
        known.retain(|known| known.last_listed == self.reading);
        DeviceLines { lines, sums }
    }

    /// The memory of a device: mostly in the place where it stood last time.
    fn recognise<'k>(
        &self,
        known: &'k mut Vec<KnownDevice>,
        position: usize,
        name: &str,
    ) -> &'k mut KnownDevice {
        let at = if known.get(position).is_some_and(|known| known.name == name) {
            position
        } else {
            known.iter().position(|known| known.name == name).unwrap_or_else(|| {
                known.push(KnownDevice::new(name));
                known.len() - 1
            })
        };
        &mut known[at]
    }
}

impl KnownDevice {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tags: Vec::new(),
            has_given: false,
            silent_answers: 0,
            blocks_sum: false,
            last_listed: 0,
        }
    }

    /// Notes what was read of it. Its kind's sum stays whole if it gave its counters, or never has any.
    fn judge(&mut self, reading: DeviceReading) {
        match reading {
            DeviceReading::Given => self.has_given = true,
            DeviceReading::NotRead => {}
            DeviceReading::NoCounters => self.silent_answers = self.silent_answers.saturating_add(1),
            DeviceReading::Unsupported => self.silent_answers = SILENT_ANSWERS,
        }
        let never_counts = !self.has_given && self.silent_answers >= SILENT_ANSWERS;
        self.blocks_sum = reading != DeviceReading::Given && !never_counts;
    }
}

/// The groups that were wanted and are not whole.
fn missing(sample: &Sample, nics_whole: bool, disks_whole: bool) -> Groups {
    let info_whole = VM_METRICS_FIELDS.iter().all(|field| (field.get)(sample).is_some());
    let groups = [
        (Groups::INFO, info_whole),
        (Groups::CPU, sample.held.cpu),
        (Groups::MEMORY, sample.held.memory),
        (Groups::NICS, nics_whole),
        (Groups::DISKS, disks_whole),
    ];
    let lacking = groups.iter().filter(|(group, whole)| !whole && sample.wanted.contains(*group));
    lacking.fold(Groups::NONE, |missing, (group, _)| missing.with(*group))
}

/// Appends the fields whose value is known: given, or known to be never given and thus 0.
fn push_known<T>(line: &mut Line<'_>, fields: &[Field<T>], from: &T) {
    for field in fields {
        match (field.get)(from) {
            Some(value) => line.integer("", field.name, value),
            None if (field.never_given)(from) => line.integer("", field.name, 0),
            None => {}
        }
    }
}

fn push_sums<T, const FIELDS: usize>(
    line: &mut Line<'_>,
    prefix: &str,
    fields: &[Field<T>; FIELDS],
    sums: Option<[u64; FIELDS]>,
) {
    for (field, sum) in fields.iter().zip(sums.iter().flatten()) {
        line.integer(prefix, field.name, *sum);
    }
}
