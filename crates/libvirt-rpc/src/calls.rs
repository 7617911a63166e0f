//! The calls that a collector makes, one method each, with libvirt's own names for what comes back.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Connection;
use crate::error::Error;
use crate::events::EventKind;
use crate::procedure::{Class, Procedure};
use crate::stats::{self, Groups, MAX_DOMAINS, StatsFlags, StatsVisitor, Value};
use crate::xdr::{Decoder, Encoder, Malformed};

/// Limits of `remote_protocol.x`: REMOTE_DOMAIN_MEMORY_STATS_MAX and so on.
const MAX_MEMORY_STATS: usize = 1024;
const MAX_CPU_STATS: usize = 2048;
const MAX_DISK_ERRORS: usize = 256;
const MAX_NODE_STATS: usize = 16;

/// VIR_CONNECT_LIST_DOMAINS_ACTIVE
const LIST_ACTIVE: u32 = 1;
/// VIR_DOMAIN_AFFECT_LIVE
const AFFECT_LIVE: u32 = 1;

/// A domain as libvirt names it on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domain {
    /// Its name; any characters but `/` and a newline.
    pub name: Arc<str>,
    /// Its UUID, 16 bytes in the order in which they are printed.
    pub uuid: [u8; 16],
    /// Its id while it is active, new with each start; -1 otherwise.
    pub id: i32,
}

/// A domain in a reply that is being visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainRef<'a> {
    /// See [`Domain::name`].
    pub name: &'a str,
    /// See [`Domain::uuid`].
    pub uuid: [u8; 16],
    /// See [`Domain::id`].
    pub id: i32,
}

impl<'a> DomainRef<'a> {
    pub(crate) fn decode(d: &mut Decoder<'a>) -> Result<Self, Malformed> {
        Ok(Self { name: d.string()?, uuid: d.fixed()?, id: d.i32()? })
    }
}

impl Domain {
    pub(crate) fn decode(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let DomainRef { name, uuid, id } = DomainRef::decode(d)?;
        Ok(Self { name: name.into(), uuid, id })
    }

    pub(crate) fn encode(&self, e: &mut Encoder<'_>) {
        e.string(&self.name).fixed(&self.uuid).i32(self.id);
    }
}

/// `virDomainInfo`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// `virDomainState`, 0..7.
    pub state: u8,
    /// Most memory allowed, KiB.
    pub max_mem_kib: u64,
    /// Memory now, KiB.
    pub memory_kib: u64,
    /// Virtual CPUs now.
    pub vcpus: u16,
    /// CPU time used, ns.
    pub cpu_time_ns: u64,
}

/// `virDomainGetCPUStats` over all CPUs; what the host's cgroups do not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTotals {
    /// All CPU time, ns.
    pub cpu_time_ns: Option<u64>,
    /// Time in user mode, ns.
    pub user_time_ns: Option<u64>,
    /// Time in the kernel, ns.
    pub system_time_ns: Option<u64>,
}

/// `virDomainInterfaceStats`; -1 where the hypervisor does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names and units (bytes, packets) are virDomainInterfaceStatsStruct's")]
pub struct InterfaceStats {
    pub rx_bytes: i64,
    pub rx_packets: i64,
    pub rx_errs: i64,
    pub rx_drop: i64,
    pub tx_bytes: i64,
    pub tx_packets: i64,
    pub tx_errs: i64,
    pub tx_drop: i64,
}

/// `virDomainBlockStats`; -1 where the hypervisor does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names and units (requests, bytes) are virDomainBlockStatsStruct's")]
pub struct BlockStats {
    pub rd_req: i64,
    pub rd_bytes: i64,
    pub wr_req: i64,
    pub wr_bytes: i64,
    pub errs: i64,
}

/// `virNodeInfo`: the host's hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// CPU architecture, e.g. `x86_64`.
    pub model: String,
    /// Memory, KiB.
    pub memory_kib: u64,
    /// Active CPUs.
    pub cpus: u32,
    /// Expected frequency, MHz; 0 where unknown.
    pub mhz: u32,
    /// NUMA cells, sockets a cell, cores a socket, threads a core.
    pub topology: [u32; 4],
}

/// A libvirt version number, `major * 1,000,000 + minor * 1,000 + release`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 1_000_000, self.0 / 1_000 % 1_000, self.0 % 1_000)
    }
}

impl Connection {
    /// All active domains (`virConnectListAllDomains`).
    ///
    /// # Errors
    /// As every call here: [`Error::Remote`], [`Error::Deadline`], [`Error::Connection`], [`Error::Protocol`].
    pub async fn list_active(&self) -> Result<Vec<Domain>, Error> {
        self.call(
            Procedure::CONNECT_LIST_ALL_DOMAINS,
            |e| {
                e.i32(1).u32(LIST_ACTIVE);
            },
            |d| {
                let domains = list(d, MAX_DOMAINS, 24, "domains", Domain::decode)?;
                let _count = d.u32()?;
                d.end()?;
                Ok(domains)
            },
        )
        .await
    }

    /// Bulk statistics of `domains` or, if there are none, of all that `flags` select, shown to `visitor`;
    /// returns the number of records. Domains that are gone have none. The call is job-free, and takes the
    /// job-free turn, if `groups` is within [`Groups::JOB_FREE`].
    ///
    /// # Errors
    /// See [`Self::list_active`]; [`Error::Budget`] while given-up calls hold every place; [`Error::Argument`] for
    /// more than [`MAX_DOMAINS`]. After [`Error::Protocol`] the visitor may have seen some records.
    pub async fn stats(
        &self,
        domains: &[Domain],
        groups: Groups,
        flags: StatsFlags,
        deadline: Instant,
        visitor: &mut impl StatsVisitor,
    ) -> Result<usize, Error> {
        let procedure = Procedure::CONNECT_GET_ALL_DOMAIN_STATS;
        if domains.len() > MAX_DOMAINS {
            let what = format!("{} domains in one call: libvirt takes at most {MAX_DOMAINS}", domains.len());
            return Err(Error::Argument { procedure: procedure.name(), what });
        }
        let job_free = !groups.is_empty() && Groups::JOB_FREE.contains(groups);
        let class = if job_free { Class::JobFree } else { Class::Monitor };
        let args = |e: &mut Encoder<'_>| encode_stats(e, domains, groups.0, flags);
        self.call_as(procedure, class, deadline, args, |d| stats::visit(d, visitor)).await
    }

    /// Which of `groups` the daemon refuses for `domain`, without reaching its monitor: a bulk call with
    /// ENFORCE_STATS and a group that no libvirt has is refused before anything is read, and the refusal
    /// lists, in hexadecimal, every group that is not supported (`qemuDomainGetStatsCheckSupport`).
    /// `None` where the daemon's words cannot be understood.
    ///
    /// # Errors
    /// Any but the refusal itself.
    pub async fn unsupported_groups(
        &self,
        domain: &Domain,
        groups: Groups,
        flags: StatsFlags,
    ) -> Result<Option<Groups>, Error> {
        /// A bit that `virDomainStatsTypes` does not use.
        const NO_GROUP: u32 = 1 << 30;
        let deadline = Instant::now() + self.call_deadline;
        let flags = flags | StatsFlags::ENFORCE_STATS;
        let args = |e: &mut Encoder<'_>| encode_stats(e, slice::from_ref(domain), groups.0 | NO_GROUP, flags);
        let procedure = Procedure::CONNECT_GET_ALL_DOMAIN_STATS;
        match self.call_as(procedure, Class::JobFree, deadline, args, |_| Ok(())).await {
            Ok(()) => Ok(None),
            Err(Error::Remote { code: crate::ErrorCode::ARGUMENT_UNSUPPORTED, message, .. }) => Ok(message
                .split(|c: char| !c.is_ascii_alphanumeric())
                .find_map(|word| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok())
                .map(|bits| Groups(bits).and(groups))),
            Err(error) => Err(error),
        }
    }

    /// `virDomainGetInfo`
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn domain_info(&self, domain: &Domain) -> Result<DomainInfo, Error> {
        self.call(Procedure::DOMAIN_GET_INFO, |e| domain.encode(e), domain_info).await
    }

    /// `virDomainMemoryStats`: pairs of tag (`virDomainMemoryStatTags`) and value (KiB, counts, seconds).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn memory_stats(&self, domain: &Domain) -> Result<Vec<(i32, u64)>, Error> {
        self.call(
            Procedure::DOMAIN_MEMORY_STATS,
            |e| {
                domain.encode(e);
                e.u32(MAX_MEMORY_STATS as u32).u32(0);
            },
            memory_stats,
        )
        .await
    }

    /// `virDomainGetCPUStats` over all CPUs.
    ///
    /// # Errors
    /// See [`Self::list_active`]; without cgroups the daemon refuses it.
    pub async fn cpu_stats(&self, domain: &Domain) -> Result<CpuTotals, Error> {
        /// More than any libvirt has for the total.
        const PARAMS: u32 = 16;
        self.call(
            Procedure::DOMAIN_GET_CPU_STATS,
            |e| {
                domain.encode(e);
                // From CPU -1, one: the total.
                e.u32(PARAMS).i32(-1).u32(1).u32(0);
            },
            cpu_totals,
        )
        .await
    }

    /// `virDomainInterfaceStats` of the host-side interface `device`, e.g. `vnet0`.
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn interface_stats(&self, domain: &Domain, device: &str) -> Result<InterfaceStats, Error> {
        self.call(
            Procedure::DOMAIN_INTERFACE_STATS,
            |e| {
                domain.encode(e);
                e.string(device);
            },
            |d| {
                let stats = InterfaceStats {
                    rx_bytes: d.i64()?,
                    rx_packets: d.i64()?,
                    rx_errs: d.i64()?,
                    rx_drop: d.i64()?,
                    tx_bytes: d.i64()?,
                    tx_packets: d.i64()?,
                    tx_errs: d.i64()?,
                    tx_drop: d.i64()?,
                };
                d.end()?;
                Ok(stats)
            },
        )
        .await
    }

    /// `virDomainBlockStats` of the disk `device`, e.g. `vda`.
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn block_stats(&self, domain: &Domain, device: &str) -> Result<BlockStats, Error> {
        self.call(
            Procedure::DOMAIN_BLOCK_STATS,
            |e| {
                domain.encode(e);
                e.string(device);
            },
            |d| {
                let stats = BlockStats {
                    rd_req: d.i64()?,
                    rd_bytes: d.i64()?,
                    wr_req: d.i64()?,
                    wr_bytes: d.i64()?,
                    errs: d.i64()?,
                };
                d.end()?;
                Ok(stats)
            },
        )
        .await
    }

    /// `virDomainGetXMLDesc` of the live domain, without secrets.
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn domain_xml(&self, domain: &Domain) -> Result<String, Error> {
        self.call(
            Procedure::DOMAIN_GET_XML_DESC,
            |e| {
                domain.encode(e);
                e.u32(0);
            },
            |d| {
                let xml = d.string()?.to_owned();
                d.end()?;
                Ok(xml)
            },
        )
        .await
    }

    /// `virDomainGetDiskErrors`: disks in an error state, with a `virDomainDiskErrorCode` (1 unspecified,
    /// 2 no space).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn disk_errors(&self, domain: &Domain) -> Result<Vec<(String, i32)>, Error> {
        self.call(
            Procedure::DOMAIN_GET_DISK_ERRORS,
            |e| {
                domain.encode(e);
                e.u32(MAX_DISK_ERRORS as u32).u32(0);
            },
            |d| {
                let errors =
                    list(d, MAX_DISK_ERRORS, 8, "disk errors", |d| Ok((d.string()?.to_owned(), d.i32()?)))?;
                let _nerrors = d.i32()?;
                d.end()?;
                Ok(errors)
            },
        )
        .await
    }

    /// The hypervisor's host name (`virConnectGetHostname`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn hostname(&self) -> Result<String, Error> {
        self.text(Procedure::CONNECT_GET_HOSTNAME).await
    }

    /// The driver's type, e.g. `QEMU` or `TEST` (`virConnectGetType`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn driver_type(&self) -> Result<String, Error> {
        self.text(Procedure::CONNECT_GET_TYPE).await
    }

    /// The daemon's libvirt version (`virConnectGetLibVersion`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn libvirt_version(&self) -> Result<Version, Error> {
        self.version(Procedure::CONNECT_GET_LIB_VERSION).await
    }

    /// The hypervisor's version, e.g. QEMU's (`virConnectGetVersion`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn hypervisor_version(&self) -> Result<Version, Error> {
        self.version(Procedure::CONNECT_GET_VERSION).await
    }

    /// The host's hardware (`virNodeGetInfo`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn node_info(&self) -> Result<NodeInfo, Error> {
        self.call(Procedure::NODE_GET_INFO, |_| {}, node_info).await
    }

    /// The host's CPU time over all CPUs, ns by kind: `kernel`, `user`, `idle`, `iowait`
    /// (`virNodeGetCPUStats`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn node_cpu_stats(&self) -> Result<Vec<(String, u64)>, Error> {
        // VIR_NODE_CPU_STATS_ALL_CPUS is -1.
        self.node_stats(Procedure::NODE_GET_CPU_STATS, |e, nparams| {
            e.i32(-1).i32(nparams).u32(0);
        })
        .await
    }

    /// The host's memory, KiB by kind: `total`, `free`, `buffers`, `cached` (`virNodeGetMemoryStats`).
    ///
    /// # Errors
    /// See [`Self::list_active`].
    pub async fn node_memory_stats(&self) -> Result<Vec<(String, u64)>, Error> {
        // VIR_NODE_MEMORY_STATS_ALL_CELLS is -1.
        self.node_stats(Procedure::NODE_GET_MEMORY_STATS, |e, nparams| {
            e.i32(nparams).i32(-1).u32(0);
        })
        .await
    }

    /// Makes the live domain's balloon report its guest's memory every `period` (whole seconds; 0 stops it):
    /// `virDomainSetMemoryStatsPeriod`. Needs a read-write connection.
    ///
    /// # Errors
    /// See [`Self::list_active`]; code 29 on a read-only connection.
    pub async fn set_memory_stats_period(&self, domain: &Domain, period: Duration) -> Result<(), Error> {
        let seconds = i32::try_from(period.as_secs()).unwrap_or(i32::MAX);
        self.call(
            Procedure::DOMAIN_SET_MEMORY_STATS_PERIOD,
            |e| {
                domain.encode(e);
                e.i32(seconds).u32(AFFECT_LIVE);
            },
            |d| d.end(),
        )
        .await
    }

    /// Asks to be told of one kind of event, for all domains. To be done before listing the domains, so that
    /// nothing that happens in between is missed.
    ///
    /// # Errors
    /// See [`Self::list_active`]; [`Error::Remote`] where the daemon does not know the kind.
    pub async fn register_event(&self, kind: EventKind) -> Result<(), Error> {
        self.call(
            Procedure::CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY,
            |e| {
                e.i32(kind as i32).u32(0);
            },
            |d| {
                let _callback_id = d.i32()?;
                d.end()
            },
        )
        .await
    }

    /// The daemon refuses any number of parameters but its own (`virHostCPUGetStatsLinux`), so that is asked for
    /// first, with 0.
    async fn node_stats(
        &self,
        procedure: Procedure,
        args: impl Fn(&mut Encoder<'_>, i32),
    ) -> Result<Vec<(String, u64)>, Error> {
        let (_, nparams) = self.call(procedure, |e| args(e, 0), node_stats).await?;
        let (stats, _) = self.call(procedure, |e| args(e, nparams), node_stats).await?;
        Ok(stats)
    }

    async fn text(&self, procedure: Procedure) -> Result<String, Error> {
        self.call(
            procedure,
            |_| {},
            |d| {
                let text = d.string()?.to_owned();
                d.end()?;
                Ok(text)
            },
        )
        .await
    }

    async fn version(&self, procedure: Procedure) -> Result<Version, Error> {
        self.call(
            procedure,
            |_| {},
            |d| {
                let version = Version(d.u64()?);
                d.end()?;
                Ok(version)
            },
        )
        .await
    }
}

fn encode_stats(e: &mut Encoder<'_>, domains: &[Domain], groups: u32, flags: StatsFlags) {
    e.u32(domains.len() as u32);
    for domain in domains {
        domain.encode(e);
    }
    e.u32(groups).u32(flags.0);
}

/// `remote_domain_get_info_ret`
pub(crate) fn domain_info(d: &mut Decoder<'_>) -> Result<DomainInfo, Malformed> {
    let info = DomainInfo {
        state: d.u32()?.min(255) as u8,
        max_mem_kib: d.u64()?,
        memory_kib: d.u64()?,
        vcpus: d.u32()?.min(u32::from(u16::MAX)) as u16,
        cpu_time_ns: d.u64()?,
    };
    d.end()?;
    Ok(info)
}

/// `remote_domain_memory_stats_ret`
pub(crate) fn memory_stats(d: &mut Decoder<'_>) -> Result<Vec<(i32, u64)>, Malformed> {
    let stats = list(d, MAX_MEMORY_STATS, 12, "statistics", |d| Ok((d.i32()?, d.u64()?)))?;
    d.end()?;
    Ok(stats)
}

/// `remote_domain_get_cpu_stats_ret`: parameters, and how many a CPU has.
pub(crate) fn cpu_totals(d: &mut Decoder<'_>) -> Result<CpuTotals, Malformed> {
    let params = list(d, MAX_CPU_STATS, 12, "parameters", stats::param)?;
    let _nparams = d.i32()?;
    d.end()?;
    let mut totals = CpuTotals::default();
    for (key, value) in params {
        let Value::UInt(value) = value else { continue };
        match key {
            "cpu_time" => totals.cpu_time_ns = Some(value),
            "user_time" => totals.user_time_ns = Some(value),
            "system_time" => totals.system_time_ns = Some(value),
            _ => {}
        }
    }
    Ok(totals)
}

/// `remote_node_get_info_ret`
fn node_info(d: &mut Decoder<'_>) -> Result<NodeInfo, Malformed> {
    // `char model[32]`: rpcgen writes each char as a whole XDR integer.
    let mut model = [0u8; 32];
    for byte in &mut model {
        *byte = d.u32()? as u8;
    }
    let end = model.iter().position(|&b| b == 0).unwrap_or(model.len());
    let info = NodeInfo {
        model: String::from_utf8_lossy(&model[..end]).into_owned(),
        memory_kib: d.u64()?,
        cpus: d.u32()?,
        mhz: d.u32()?,
        topology: [d.u32()?, d.u32()?, d.u32()?, d.u32()?],
    };
    d.end()?;
    Ok(info)
}

/// Statistics and how many of them there are.
fn node_stats(d: &mut Decoder<'_>) -> Result<(Vec<(String, u64)>, i32), Malformed> {
    let stats = list(d, MAX_NODE_STATS, 12, "statistics", |d| Ok((d.string()?.to_owned(), d.u64()?)))?;
    let nparams = d.i32()?;
    d.end()?;
    Ok((stats, nparams))
}

/// A counted array, at most `max` elements of at least `min_size` bytes.
fn list<'a, T>(
    d: &mut Decoder<'a>,
    max: usize,
    min_size: usize,
    what: &str,
    mut read: impl FnMut(&mut Decoder<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = d.count(max, min_size, what)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(read(d)?);
    }
    Ok(items)
}
