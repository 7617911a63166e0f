//! What is drawn of a VM: which fields of which table stand in which chart, and how they become lines.

use self::Value::{Gauge, Rate, Share};
use crate::serve::dashboard::types::Unit;

/// How a line of a chart comes from a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// As it is.
    Gauge,
    /// A counter's increase a second.
    Rate,
    /// A counter of nanoseconds as percent of all vCPUs.
    Share,
}

/// A line of a chart.
pub(super) struct Line {
    pub(super) field: &'static str,
    pub(super) label: &'static str,
    pub(super) value: Value,
}

/// A chart.
pub(super) struct Chart {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: Unit,
    pub(super) lines: &'static [Line],
}

const fn line(field: &'static str, label: &'static str, value: Value) -> Line {
    Line { field, label, value }
}

/// The chart whose parts are worked out, see `parts_of_cpu`.
pub(super) const CPU: &str = "cpu";

const TOTALS: &[Chart] = &[
    Chart {
        id: CPU,
        title: "CPU",
        unit: Unit::Percent,
        lines: &[
            line("cputime", "all", Share),
            line("timeusr", "user", Share),
            line("timesys", "system", Share),
        ],
    },
    Chart {
        id: "memory",
        title: "Memory",
        unit: Unit::Kib,
        lines: &[
            line("memactual", "assigned", Gauge),
            line("memrss", "resident on the host", Gauge),
            line("memavailable", "seen by the guest", Gauge),
            line("memusable", "usable in the guest", Gauge),
            line("memdisk_cache", "disk cache in the guest", Gauge),
        ],
    },
    Chart {
        id: "swap",
        title: "Swap of the guest",
        unit: Unit::KibPerSecond,
        lines: &[line("memswap_in", "in", Rate), line("memswap_out", "out", Rate)],
    },
    Chart {
        id: "faults",
        title: "Page faults of the guest",
        unit: Unit::CountPerSecond,
        lines: &[line("memmajor_fault", "major", Rate), line("memminor_fault", "minor", Rate)],
    },
    Chart {
        id: "net",
        title: "Network",
        unit: Unit::BytesPerSecond,
        lines: &[line("net_rxbytes", "received", Rate), line("net_txbytes", "sent", Rate)],
    },
    Chart {
        id: "net-packets",
        title: "Packets",
        unit: Unit::CountPerSecond,
        lines: &[line("net_rxpackets", "received", Rate), line("net_txpackets", "sent", Rate)],
    },
    Chart {
        id: "net-faults",
        title: "Network errors and drops",
        unit: Unit::CountPerSecond,
        lines: &[
            line("net_rxerrors", "receive errors", Rate),
            line("net_txerrors", "send errors", Rate),
            line("net_rxdrops", "receive drops", Rate),
            line("net_txdrops", "send drops", Rate),
        ],
    },
    Chart {
        id: "disk",
        title: "Disks",
        unit: Unit::BytesPerSecond,
        lines: &[line("disk_rd_bytes", "read", Rate), line("disk_wr_bytes", "written", Rate)],
    },
    Chart {
        id: "disk-requests",
        title: "Disk requests",
        unit: Unit::CountPerSecond,
        lines: &[line("disk_rd_req", "reads", Rate), line("disk_wr_reqs", "writes", Rate)],
    },
    Chart {
        id: "disk-errors",
        title: "Disk errors",
        unit: Unit::CountPerSecond,
        lines: &[line("disk_errors", "errors", Rate)],
    },
];

const FEATURES: &[Chart] = &[
    Chart {
        id: "trend",
        title: "Memory trend",
        unit: Unit::KibPerSecond,
        lines: &[line("memory_rate_kb_per_sec", "growth", Gauge)],
    },
    Chart {
        id: "angle",
        title: "Memory trend as an angle",
        unit: Unit::Degrees,
        lines: &[line("memory_angle_deg", "angle", Gauge)],
    },
];

const NIC: &[Chart] = &[
    Chart {
        id: "bytes",
        title: "bytes",
        unit: Unit::BytesPerSecond,
        lines: &[line("rxbytes", "received", Rate), line("txbytes", "sent", Rate)],
    },
    Chart {
        id: "packets",
        title: "packets",
        unit: Unit::CountPerSecond,
        lines: &[line("rxpackets", "received", Rate), line("txpackets", "sent", Rate)],
    },
    Chart {
        id: "faults",
        title: "errors and drops",
        unit: Unit::CountPerSecond,
        lines: &[
            line("rxerrors", "receive errors", Rate),
            line("txerrors", "send errors", Rate),
            line("rxdrops", "receive drops", Rate),
            line("txdrops", "send drops", Rate),
        ],
    },
];

const DISK: &[Chart] = &[
    Chart {
        id: "bytes",
        title: "bytes",
        unit: Unit::BytesPerSecond,
        lines: &[line("rd_bytes", "read", Rate), line("wr_bytes", "written", Rate)],
    },
    Chart {
        id: "requests",
        title: "requests",
        unit: Unit::CountPerSecond,
        lines: &[line("rd_req", "reads", Rate), line("wr_reqs", "writes", Rate)],
    },
    Chart {
        id: "errors",
        title: "errors",
        unit: Unit::CountPerSecond,
        lines: &[line("errors", "errors", Rate)],
    },
];

/// Charts that are asked for at once.
pub(super) struct Group {
    pub(super) table: &'static str,
    /// Of `vm_devices` the kind of device: a chart each.
    pub(super) devices: Option<&'static str>,
    pub(super) charts: &'static [Chart],
}

pub(super) const OF_VM: Group = Group { table: "vm_totals", devices: None, charts: TOTALS };
pub(super) const OF_TREND: Group = Group { table: "vm_features", devices: None, charts: FEATURES };
pub(super) const OF_NICS: Group = Group { table: "vm_devices", devices: Some("nic"), charts: NIC };
pub(super) const OF_DISKS: Group = Group { table: "vm_devices", devices: Some("disk"), charts: DISK };
