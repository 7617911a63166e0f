//! One reading of one domain, as it was given, before anything is derived or written.
//!
//! Every value is an `Option`: `None` says that this reading did not give it. Whether it is missing now or is never
//! given by this domain (and is then written as 0) is kept beside it, per group, in [`Held`] and, per device, in
//! [`DeviceReading`]. Nothing here turns an absent value into a 0; only the encoder does.
//!
//! The order of filling it: [`Sample::begin`]; then, if there is a bulk record, its parameters and
//! [`SampleReader::finish`](crate::SampleReader::finish); then what was read by older calls
//! ([`Sample::domain_info`] and the others); then [`HostTracker::encode`](crate::HostTracker::encode).
//!
//! A sample is a buffer: [`Sample::begin`] empties it and keeps its memory, so that a collector that uses one sample
//! for domain after domain does not allocate once it has seen its largest domain.

use std::time::Duration;

use crate::units::{Bytes, Count, DomainId, Kib, Nanos, StateCode, Uuid, WallSeconds};

/// NICs, and likewise disks, of one domain. QEMU machines end at some hundreds; what a reply has beyond it is not
/// read and is counted in [`Sample::skipped`].
pub const MAX_DEVICES: usize = 1024;

/// Bytes of a device's name (a kernel interface name has 15, a disk target a few). A device with a longer name has no
/// identity: it is not read and is counted in [`Sample::skipped`].
pub const MAX_DEVICE_NAME: usize = 255;

/// Bytes of a domain's name. QEMU's own files bound it near 255. A longer name is cut here, at a whole character: the
/// UUID still tells the domain apart.
pub const MAX_DOMAIN_NAME: usize = 1024;

/// One reading of one domain.
#[derive(Clone, Debug)]
pub struct Sample {
    /// libvirt's id of the live domain.
    pub id: DomainId,
    /// Who it is.
    pub uuid: Uuid,
    /// Its name, as libvirt spells it.
    pub name: String,
    /// What this cycle meant to read. What was not wanted is left out without making the sample a partial one.
    pub wanted: Groups,

    /// Domain state.
    pub state: Option<StateCode>,
    /// Number of vCPUs. May be up to 60 s old: the caller may set it from an earlier domain info.
    pub vcpus: Option<Count>,
    /// Memory that the domain may have at most.
    pub memory_max: Option<Kib>,
    /// Guest memory.
    pub memory: Memory,
    /// CPU time.
    pub cpu: Cpu,
    /// Virtual network interfaces.
    pub nics: Devices<Nic>,
    /// Virtual disks, CD-ROMs and floppies among them.
    pub disks: Devices<Disk>,

    /// Per group: whether what is absent was never given, or is only missing now.
    pub held: Held,
    /// Whether the record looked like that of a domain whose monitor did not answer: no `balloon.rss` and no disk with
    /// counters. Set by [`SampleReader::finish`](crate::SampleReader::finish).
    pub busy: bool,
    /// How often the balloon driver reports, where the caller knows it (`<memballoon><stats period='5'/>`). Without
    /// it, the period is learnt from the reports.
    pub balloon_period: Option<Duration>,
    /// Values of this reading that were beyond a limit and not read.
    pub skipped: u32,
}

/// Guest memory, in KiB where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Memory that the domain has now, by its definition and the balloon's last word. Known without the monitor.
    pub current: Option<Kib>,
    /// The balloon's own word for the same, from the older memory statistics.
    pub actual: Option<Kib>,
    /// Resident memory of the hypervisor's process.
    pub rss: Option<Kib>,
    /// Memory that the guest's kernel sees.
    pub available: Option<Kib>,
    /// Memory that the guest could use without swapping.
    pub usable: Option<Kib>,
    /// Memory that the guest leaves wholly unused.
    pub unused: Option<Kib>,
    /// Read from the guest's swap since its start.
    pub swap_in: Option<Kib>,
    /// Written to the guest's swap since its start.
    pub swap_out: Option<Kib>,
    /// Page faults that needed disk I/O.
    pub major_faults: Option<Count>,
    /// Page faults that needed none.
    pub minor_faults: Option<Count>,
    /// The guest's disk caches.
    pub disk_caches: Option<Kib>,
    /// When the guest last reported; 0 where it never did.
    pub last_update: Option<WallSeconds>,
}

/// CPU time since the domain started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// `cpu.time` of the bulk record.
    pub bulk_time: Option<Nanos>,
    /// `cpuTime` of domain info, read in this cycle.
    pub info_time: Option<Nanos>,
    /// The one of both that this domain's lines carry for its whole life; chosen by the tracker.
    pub time: Option<Nanos>,
    /// Time in user mode.
    pub user: Option<Nanos>,
    /// Time in system mode.
    pub system: Option<Nanos>,
}

/// A network interface: counters since it was created, as the guest sees their direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Host-side name, `vnet0`. Empty: the device has no identity and no counters (user-mode NIC).
    pub name: String,
    /// Whether counters were read.
    pub reading: DeviceReading,
    /// Received.
    pub rx_bytes: Option<Bytes>,
    /// Packets received.
    pub rx_packets: Option<Count>,
    /// Receive errors.
    pub rx_errors: Option<Count>,
    /// Packets dropped when receiving.
    pub rx_drops: Option<Count>,
    /// Sent.
    pub tx_bytes: Option<Bytes>,
    /// Packets sent.
    pub tx_packets: Option<Count>,
    /// Send errors.
    pub tx_errors: Option<Count>,
    /// Packets dropped when sending.
    pub tx_drops: Option<Count>,
}

/// A disk: counters since the hypervisor's process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Target name, `vda`.
    pub name: String,
    /// Whether counters were read.
    pub reading: DeviceReading,
    /// Read requests.
    pub rd_reqs: Option<Count>,
    /// Read.
    pub rd_bytes: Option<Bytes>,
    /// Write requests.
    pub wr_reqs: Option<Count>,
    /// Written.
    pub wr_bytes: Option<Bytes>,
    /// I/O errors. QEMU gives none.
    pub errors: Option<Count>,
}

/// What a reading said about one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceReading {
    /// Nothing: the domain was busy, the call was given up, the connection was lost. Its sum is not known.
    #[default]
    NotRead,
    /// Counters. Those that are still `None` are never given by this hypervisor.
    Given,
    /// The hypervisor answered, with an error or without counters. A device that has given counters before is missing
    /// now; one that never has (vhost-user, hostdev) is taken at the second such answer for one that never will.
    NoCounters,
    /// The hypervisor says that this kind of device has no counters.
    Unsupported,
}

/// Per group: an absent value was never given (true), or is missing now (false, also when the group was not read).
///
/// Set where it is known that the reading held the domain's job, or needed none. A busy domain's
/// record lacks keys that the same domain gives a moment later; writing 0 for them would be a false reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Balloon and guest memory values.
    pub memory: bool,
    /// User and system time.
    pub cpu: bool,
}

/// A set of groups of readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups(u8);

impl Groups {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// State, vCPU count, memory limits and CPU time: what domain info tells. The vCPU count is in no bulk group that is
    /// asked for in every cycle: the caller sets it.
    pub const INFO: Self = Self(1);
    /// User and system time.
    pub const CPU: Self = Self(2);
    /// Balloon and guest memory.
    pub const MEMORY: Self = Self(4);
    /// Network interfaces.
    pub const NICS: Self = Self(8);
    /// Disks.
    pub const DISKS: Self = Self(16);
    /// A whole cycle.
    pub const ALL: Self = Self(31);

    /// Whether everything in `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether nothing is in this set.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl std::fmt::Display for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (Self::INFO, "info"),
            (Self::CPU, "cpu"),
            (Self::MEMORY, "memory"),
            (Self::NICS, "nics"),
            (Self::DISKS, "disks"),
        ];
        let mut before = "";
        for (_, name) in names.iter().filter(|(group, _)| self.contains(*group)) {
            write!(f, "{before}{name}")?;
            before = ", ";
        }
        Ok(())
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            id: DomainId::NONE,
            uuid: Uuid::default(),
            name: String::new(),
            wanted: Groups::ALL,
            state: None,
            vcpus: None,
            memory_max: None,
            memory: Memory::default(),
            cpu: Cpu::default(),
            nics: Devices::default(),
            disks: Devices::default(),
            held: Held::default(),
            busy: false,
            balloon_period: None,
            skipped: 0,
        }
    }
}

impl Sample {
    /// Empties the buffer, and keeps its memory, for a reading of the domain named here that means to read `wanted`.
    pub fn begin(&mut self, id: DomainId, uuid: Uuid, name: &str, wanted: Groups) {
        self.id = id;
        self.uuid = uuid;
        self.name.clear();
        self.name.push_str(cut(name, MAX_DOMAIN_NAME));
        self.wanted = wanted;
        self.state = None;
        self.vcpus = None;
        self.memory_max = None;
        self.memory = Memory::default();
        self.cpu = Cpu::default();
        self.nics.clear();
        self.disks.clear();
        self.held = Held::default();
        self.busy = false;
        self.balloon_period = None;
        self.skipped = 0;
    }
}

/// A device that can stand in [`Devices`].
pub trait Device: Default {
    /// Its name; empty where it has none.
    fn name(&self) -> &str;
    /// The name's buffer.
    fn name_mut(&mut self) -> &mut String;
    /// What was read of it.
    fn reading(&self) -> DeviceReading;
    /// To say what was read of it.
    fn reading_mut(&mut self) -> &mut DeviceReading;
}

impl Device for Nic {
    fn name(&self) -> &str {
        &self.name
    }
    fn name_mut(&mut self) -> &mut String {
        &mut self.name
    }
    fn reading(&self) -> DeviceReading {
        self.reading
    }
    fn reading_mut(&mut self) -> &mut DeviceReading {
        &mut self.reading
    }
}

impl Device for Disk {
    fn name(&self) -> &str {
        &self.name
    }
    fn name_mut(&mut self) -> &mut String {
        &mut self.name
    }
    fn reading(&self) -> DeviceReading {
        self.reading
    }
    fn reading_mut(&mut self) -> &mut DeviceReading {
        &mut self.reading
    }
}

/// The devices of one kind. Slots stand in the order of the reply; a slot without a name is no device.
#[derive(Clone, Debug, Default)]
pub struct Devices<T> {
    /// Whether the reading told which devices there are. If not, nothing can be said about their sum.
    pub listed: bool,
    slots: Vec<T>,
    used: usize,
}

impl<T: Device> Devices<T> {
    /// Those with a name, in the reply's order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots[..self.used].iter().filter(|device| !device.name().is_empty())
    }

    /// The same, to write to.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots[..self.used].iter_mut().filter(|device| !device.name().is_empty())
    }

    /// The slot at a position of the reply; `None` beyond [`MAX_DEVICES`].
    pub(crate) fn slot(&mut self, position: usize) -> Option<&mut T> {
        if position >= MAX_DEVICES {
            return None;
        }
        while self.used <= position {
            match self.slots.get_mut(self.used) {
                Some(old) => {
                    // Everything anew but the name's buffer, which is kept to save the allocation.
                    let mut name = std::mem::take(old.name_mut());
                    name.clear();
                    *old = T::default();
                    *old.name_mut() = name;
                }
                None => self.slots.push(T::default()),
            }
            self.used += 1;
        }
        self.slots.get_mut(position)
    }

    /// A new device with this name; `None` beyond [`MAX_DEVICES`] or [`MAX_DEVICE_NAME`].
    pub(crate) fn add(&mut self, name: &str) -> Option<&mut T> {
        if name.len() > MAX_DEVICE_NAME {
            return None;
        }
        let device = self.slot(self.used)?;
        device.name_mut().push_str(name);
        Some(device)
    }

    fn clear(&mut self) {
        self.listed = false;
        self.used = 0;
    }
}

/// The first bytes of a text, at most `limit`, ending at a whole character.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}
