//! Every key of the configuration, declared once: its kind, default, limits and reason.
//!
//! The known keys, the defaults, the limits, the environment variables' names and the commented sample that
//! `kvmetry config` prints all come from [`SECTIONS`]; what stands nowhere here is refused.

use std::fmt::Write as _;
use std::time::Duration;

use super::layers::{Deadline, Value};

/// A `[section]`, or a `[[section]]` that may stand more than once.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// `[[name]]`: it may stand more than once.
    pub(crate) many: bool,
    pub(crate) doc: &'static str,
    pub(crate) keys: &'static [Key],
}

/// One `key = value`.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// What it does, in which unit, and why this default.
    pub(crate) doc: &'static str,
}

/// What a key's value may be. Limits are inclusive.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A text such as "5s". `or_zero`: 0 is allowed too, and switches the thing off.
    Duration {
        default: Duration,
        min: Duration,
        max: Duration,
        or_zero: bool,
    },
    /// A part of the interval such as "40%", or a duration.
    Deadline {
        default_percent: u8,
    },
    Integer {
        default: u64,
        min: u64,
        max: u64,
    },
    Float {
        default: f64,
        min: f64,
        max: f64,
    },
    /// Bytes: a text such as "2GiB". Where the default is 0, so may the value be.
    Size {
        default: u64,
        min: u64,
        max: u64,
    },
    Bool {
        default: bool,
    },
    /// One of these texts; the first is the default.
    Choice {
        of: &'static [&'static str],
    },
    /// Any text; the empty one means "not set".
    Text {
        default: &'static str,
    },
    /// A text that every `[[section]]` of its kind must have; the example is what the sample shows.
    Needed {
        example: &'static str,
    },
    /// A file or folder; the empty text means "not set".
    Path,
    /// Any number of texts; in the environment with commas between them.
    List,
}

/// A shard's deadline may take this part of the interval, percent: below, healthy VMs would be given up; above,
/// the repeated calls would not end before 80 % of the interval.
pub(crate) const DEADLINE_PERCENT: std::ops::RangeInclusive<u8> = 10..=60;

const INTERVAL: Kind = Kind::Duration {
    default: Duration::from_secs(5),
    min: Duration::from_secs(1),
    max: Duration::from_secs(3600),
    or_zero: false,
};
const DEADLINE: Kind = Kind::Deadline { default_percent: 40 };
/// At most 16: libvirtd has 20 workers by default, and other clients need some.
const MAX_ABANDONED: Kind = Kind::Integer { default: 4, min: 1, max: 16 };
const BALLOON_PERIOD: Kind = Kind::Duration {
    default: Duration::ZERO,
    min: Duration::from_secs(1),
    max: Duration::from_secs(3600),
    or_zero: true,
};

const GIB: u64 = 1 << 30;
const DAY: Duration = Duration::from_secs(24 * 3600);
const RETENTION: Duration = Duration::from_secs(30 * DAY.as_secs());
/// Counters of devices are most of the lines, and seldom asked for after a week.
pub(crate) const DEVICES_RETENTION: Duration = Duration::from_secs(7 * DAY.as_secs());
/// How long a server keeps what it gets. Zero: for ever.
const fn retention(default: Duration) -> Kind {
    Kind::Duration {
        default,
        min: Duration::from_secs(3600),
        // A hundred years: below what a server's own durations can hold.
        max: Duration::from_secs(36_500 * 24 * 3600),
        or_zero: true,
    }
}

/// Whole days of the store go, so less than one makes no sense.
const fn kept_days(days: u64) -> Kind {
    Kind::Duration {
        default: Duration::from_secs(days * DAY.as_secs()),
        min: DAY,
        max: Duration::from_secs(36_500 * DAY.as_secs()),
        or_zero: false,
    }
}

/// The default hypervisor: the system's libvirt.
pub(crate) const DEFAULT_URI: &str = "qemu:///system";

/// Loopback: from other machines nothing can be reached before somebody has thought of tokens.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:8177";

/// All sections, in the order in which they are printed.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        name: "collect",
        many: false,
        doc: "How the hypervisors are read.",
        keys: &[
            Key {
                name: "interval",
                kind: INTERVAL,
                doc: "How often every VM is read. 5 seconds shows what a person notices, and costs libvirtd\n\
                      about 3 ms of CPU time a VM; longer intervals cost less.",
            },
            Key {
                name: "deadline",
                kind: DEADLINE,
                doc: "How long one call for a shard of the VMs may take. Then the whole shard is asked again\n\
                      without waiting for busy VMs, so that one VM whose QEMU hangs costs only its own points.\n\
                      A part of the interval, or a duration of at most 60 % of it: what is asked again must\n\
                      end within 80 %.",
            },
            Key {
                name: "max_abandoned",
                kind: MAX_ABANDONED,
                doc: "Calls to one hypervisor that were given up and not yet answered. Each one holds one of\n\
                      libvirtd's workers (20 by default), so at this limit only calls are made that no hanging\n\
                      VM can hold: a monitor must never hang the daemon that it watches.",
            },
            Key {
                name: "hypervisors_file",
                kind: Kind::Path,
                doc: "More hypervisors from a file, one a line: a URI, then its name if it is to have one of\n\
                      your choice; lines that begin with # are comments. Read at start.\n\
                      A relative path is taken from this file's folder.",
            },
            Key {
                name: "hypervisors_dir",
                kind: Kind::Path,
                doc: "More hypervisors from a folder: every *.toml in it, each with [[hypervisor]] sections\n\
                      only. For tools that add a file a host. Read at start.",
            },
            Key {
                name: "device_cache_ttl",
                kind: Kind::Duration {
                    default: Duration::from_secs(300),
                    min: Duration::from_secs(1),
                    max: Duration::from_secs(24 * 3600),
                    or_zero: false,
                },
                doc: "How long a VM's device names, read from its XML, are believed. libvirt's events drop\n\
                      them at once when a device comes or goes, so this only limits the harm of a lost event.",
            },
            Key {
                name: "tag_style",
                kind: Kind::Choice { of: &["dashboard", "reference"] },
                doc: "Tags uuid and name (dashboard), or UUID and Dom (reference) for databases that the older\n\
                      script has filled.",
            },
            Key {
                name: "host_tag",
                kind: Kind::Bool { default: true },
                doc: "Whether points carry the tag host. false is allowed with exactly one hypervisor: VMs\n\
                      cloned to two hosts would merge into one series.",
            },
            Key {
                name: "balloon_period",
                kind: BALLOON_PERIOD,
                doc: "Whole seconds between the reports of a guest's balloon driver, set on every VM that has no\n\
                      such period yet; one that is there stays. 0s leaves the VMs alone: without a period the\n\
                      guest's memory fields stay 0.\n\
                      Setting it needs a writable connection (root, or the group libvirt, which is as good as\n\
                      root on that host); where it is 0s all connections are read-only.",
            },
        ],
    },
    Section {
        name: "features",
        many: false,
        doc: "What is derived from two successive readings (measurement vm_features).",
        keys: &[
            Key {
                name: "memory_source",
                kind: Kind::Choice { of: &["auto", "guest", "rss", "balloon"] },
                doc: "What counts as used memory: the guest's own view, QEMU's resident set, or the balloon's\n\
                      size. auto takes the first of these that both readings have.",
            },
            Key {
                name: "angle_scale_kb_per_sec",
                kind: Kind::Float { default: 1024.0, min: 1.0, max: 1_000_000_000.0 },
                doc: "KiB per second that memory_angle_deg shows as 45 degrees. 1024 makes it 1 MiB/s.",
            },
        ],
    },
    Section {
        name: "hypervisor",
        many: true,
        doc: "A hypervisor; one section for each. Without any, it is qemu:///system.\n\
              interval, deadline, max_abandoned and balloon_period are those of [collect] unless given here.",
        keys: &[
            Key {
                name: "uri",
                kind: Kind::Needed { example: DEFAULT_URI },
                doc: "Its libvirt URI: qemu:///system, qemu+ssh://user@host/system, qemu+tls://host/system, ...",
            },
            Key {
                name: "name",
                kind: Kind::Text { default: "" },
                doc: "The value of the tag host. Not set, it is the host name that the hypervisor tells.",
            },
            Key { name: "interval", kind: INTERVAL, doc: "See [collect]." },
            Key { name: "deadline", kind: DEADLINE, doc: "See [collect]." },
            Key { name: "max_abandoned", kind: MAX_ABANDONED, doc: "See [collect]." },
            Key { name: "balloon_period", kind: BALLOON_PERIOD, doc: "See [collect]." },
            Key {
                name: "older_calls",
                kind: Kind::Bool { default: false },
                doc: "Never use bulk statistics, but one call a VM and device: slower by far. For a daemon whose\n\
                      bulk statistics misbehave, and for comparing.",
            },
        ],
    },
    Section {
        name: "journal",
        many: false,
        doc: "What was accepted and is not yet everywhere: on disk, in the folder journal of --data-dir.\n\
              It is kept over restarts, crashes and power cuts until every server has it.",
        keys: &[
            Key {
                name: "max_size",
                kind: Kind::Size { default: 2 * GIB, min: 64 << 20, max: 1024 * GIB },
                doc: "What it may take on disk. At this size the oldest entries go, whoever has not read them:\n\
                      counted, and told with their time range. 2 GiB holds weeks of 100 VMs at 5 s.",
            },
            Key {
                name: "max_age",
                kind: Kind::Duration {
                    default: Duration::from_secs(7 * DAY.as_secs()),
                    min: Duration::from_secs(60),
                    max: Duration::from_secs(3650 * DAY.as_secs()),
                    or_zero: false,
                },
                doc: "Older entries go, whoever has not read them: no outage of a server that anybody cares for lasts\n\
                      longer than a week.",
            },
        ],
    },
    Section {
        name: "store",
        many: false,
        doc: "The embedded store: every point in Parquet files, in the folder store of --data-dir, with SQL over\n\
              them (kvmetry query, and the HTTP port). Whole days go when they are older than these.",
        keys: &[
            Key {
                name: "enabled",
                kind: Kind::Bool { default: true },
                doc: "Whether there is one. --no-store is the same as false. One that is there from before gets what it\n\
                      misses when it is on again, as far as the journal reaches, which keeps it for that: remove the\n\
                      folder if it is not to come back.",
            },
            Key {
                name: "retention",
                kind: kept_days(30),
                doc: "How long points are kept. What a database was told itself (PUT /api/v3/configure/database)\n\
                      goes before this and devices_retention.",
            },
            Key {
                name: "devices_retention",
                kind: kept_days(7),
                doc: "The same for the measurement vm_devices, which has most of the lines.",
            },
            Key {
                name: "max_size",
                kind: Kind::Size { default: 0, min: 64 << 20, max: 1024 * GIB },
                doc: "What the files may take on disk. Beyond it the oldest days go, which is logged.\n\
                      0B: a tenth of the file system, at most 50 GiB.",
            },
            Key {
                name: "min_free",
                kind: Kind::Size { default: 0, min: 16 << 20, max: 1024 * GIB },
                doc: "What must stay free on the file system: a monitor must not pause VMs by filling their disk.\n\
                      Below it the store stops growing, and the journal drops its oldest entries instead of growing.\n\
                      0B: a twentieth of the file system, at least 2 GiB.",
            },
            Key {
                name: "minutes_retention",
                kind: kept_days(30),
                doc: "How long the roll-ups by the minute are kept (tables named _1m).",
            },
            Key {
                name: "hours_retention",
                kind: kept_days(400),
                doc: "How long the roll-ups by the hour are kept (tables named _1h).",
            },
            Key {
                name: "no_rollups",
                kind: Kind::List,
                doc: "Databases (\"lab\") and tables (\"kvmetry/vm_features\") of which no roll-ups are made; [\"*\"]: of\n\
                      none. Those that are there stay until they are too old.",
            },
        ],
    },
    Section {
        name: "influxdb",
        many: true,
        doc: "An InfluxDB server that gets every point; one section for each. It may be down, slow or restarted:\n\
              what it misses waits in the journal and is sent in order when it is back.\n\
              The token stands in token_file, or in the environment variable KVMETRY_INFLUXDB_TOKEN, and\n\
              nowhere else: a URL or an argument can be read by others.",
        keys: &[
            Key {
                name: "url",
                kind: Kind::Needed { example: "http://127.0.0.1:8181" },
                doc: "The server's address, http or https, without user, token or query.\n\
                      Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).",
            },
            Key {
                name: "api",
                kind: Kind::Choice { of: &["v3", "v2", "v1"] },
                doc: "The server's version: v3 (/api/v3/write_lp), v2 (/api/v2/write), v1 (/write, InfluxDB 1.x).\n\
                      v3 says which lines it refused and keeps the others.",
            },
            Key {
                name: "database",
                kind: Kind::Text { default: "kvmetry" },
                doc: "The database that gets what was collected; with v2 the bucket. What was written to a database\n\
                      of another name goes to the one of that name. With v3 and v1 it is made at the start if it\n\
                      is not there.",
            },
            Key {
                name: "retention",
                kind: retention(RETENTION),
                doc: "How long the server keeps what it gets, set when a database is made here: one that is there\n\
                      stays as it is. 0s is for ever. Of another name: what that one was told itself (PUT\n\
                      /api/v3/configure/database) goes before this. v2: make the bucket yourself, with its\n\
                      retention.",
            },
            Key {
                name: "devices_database",
                kind: Kind::Text { default: "" },
                doc: "Another database for vm_devices, which are five of eight lines. InfluxDB 3 Core knows no\n\
                      retention of a table, so only a database of its own can keep them for a shorter time.",
            },
            Key {
                name: "devices_retention",
                kind: retention(DEVICES_RETENTION),
                doc: "As retention, for devices_database.",
            },
            Key {
                name: "org",
                kind: Kind::Text { default: "" },
                doc: "The organisation, which InfluxDB 2 wants (api = \"v2\"). Other servers have none.",
            },
            Key {
                name: "token_file",
                kind: Kind::Path,
                doc: "The file with the token; with v1 it may be user:password. It is read again for every\n\
                      request, so a new token is used without a restart.",
            },
            Key {
                name: "ca",
                kind: Kind::Path,
                doc: "The certificate authority (PEM) that must have signed the server's certificate. Not set,\n\
                      the system's authorities are believed.",
            },
        ],
    },
    Section {
        name: "http",
        many: false,
        doc: "The port that takes lines, answers queries and shows the dashboard, as InfluxDB 3 does.",
        keys: &[
            Key {
                name: "listen",
                kind: Kind::Text { default: DEFAULT_LISTEN },
                doc: "Address and port, or \"off\". On another address than loopback it starts only with a token\n\
                      (kvmetry token), or with the flag --insecure-no-auth.",
            },
            Key {
                name: "base_path",
                kind: Kind::Text { default: "" },
                doc: "What a proxy puts before every path, such as /kvmetry. It may strip it or pass it on.",
            },
            Key {
                name: "allowed_hosts",
                kind: Kind::List,
                doc: "Names under which this server is asked for, beside localhost and the address that it listens\n\
                      on: those of a proxy, or of this machine in the DNS. Requests for other names are refused,\n\
                      because a web page could make its own name mean this machine (DNS rebinding).",
            },
            Key {
                name: "tls_cert",
                kind: Kind::Path,
                doc: "The certificate and its chain (PEM) for HTTPS. Read again when it has changed.",
            },
            Key { name: "tls_key", kind: Kind::Path, doc: "The certificate's private key (PEM)." },
            Key {
                name: "tokens",
                kind: Kind::Path,
                doc: "The file with the tokens' hashes. Once it exists everybody needs a token, on loopback too.\n\
                      Not set, it is tokens.json in the data directory. Read again when it has changed.",
            },
            Key {
                name: "open_health",
                kind: Kind::Bool { default: false },
                doc: "Whether /health and /ping are answered without a token, for load balancers and the like.",
            },
        ],
    },
];

impl Section {
    /// The declaration of this key.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// `[name]` or `[[name]]`.
    pub(crate) fn title(&self) -> String {
        if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

impl Kind {
    /// The value of a key that is not given.
    pub(crate) fn default_value(&self) -> Value {
        match self {
            Self::Duration { default, .. } => Value::Duration(*default),
            Self::Deadline { default_percent } => Value::Deadline(Deadline::Percent(*default_percent)),
            Self::Integer { default, .. } => Value::Integer(*default),
            Self::Float { default, .. } => Value::Float(*default),
            Self::Size { default, .. } => Value::Size(*default),
            Self::Bool { default } => Value::Bool(*default),
            Self::Choice { of } => Value::Text(of[0].to_owned()),
            Self::Text { default } => Value::Text((*default).to_owned()),
            Self::Needed { example } => Value::Text((*example).to_owned()),
            Self::Path => Value::Text(String::new()),
            Self::List => Value::List(Vec::new()),
        }
    }

    /// What is expected, for the sample and for messages.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Duration { min, max, or_zero, .. } => {
                let zero = if *or_zero { "0s, or " } else { "" };
                format!("a duration, {zero}{} to {}", duration(*min), duration(*max))
            }
            Self::Deadline { .. } => format!(
                "a part of the interval, {}% to {}%, or a duration",
                DEADLINE_PERCENT.start(),
                DEADLINE_PERCENT.end()
            ),
            Self::Integer { min, max, .. } => format!("a whole number, {min} to {max}"),
            Self::Float { min, max, .. } => format!("a number, {min} to {max}"),
            Self::Size { default, min, max } => {
                let zero = if *default == 0 { "0B, or " } else { "" };
                format!("a size, {zero}{} to {}", size(*min), size(*max))
            }
            Self::Bool { .. } => "true or false".to_owned(),
            Self::Choice { of } => {
                let quoted: Vec<_> = of.iter().map(|choice| format!("{choice:?}")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::Text { .. } | Self::Needed { .. } => "a text".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::List => "a list of texts such as [\"a\", \"b\"]".to_owned(),
        }
    }
}

/// A duration as it is written in the file; several days not as the months that humantime would make of them.
pub(crate) fn duration(duration: Duration) -> String {
    let days = duration.as_secs() / DAY.as_secs();
    if days > 1 && duration == DAY * u32::try_from(days).unwrap_or(0) {
        return format!("{days}d");
    }
    humantime::format_duration(duration).to_string()
}

/// What a size may end in, the largest first.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A size as it is written in the file, bytes.
pub(crate) fn size(bytes: u64) -> String {
    let fits = |unit: &&(&str, u64)| bytes >= unit.1 && bytes.is_multiple_of(unit.1);
    let (unit, factor) = UNITS.iter().find(fits).unwrap_or(&UNITS[4]);
    format!("{}{unit}", bytes / factor)
}

/// Reads a size: a whole number and its unit.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = text.strip_suffix(unit)?.trim_end();
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The commented sample: every key with what is expected, its default and its reason. All keys are commented
/// out (`#key`, explanations have a space after the `#`), so the sample as it is means the defaults.
pub(crate) fn sample() -> String {
    let mut out = String::from(
        "# The configuration of kvmetry, with every key and its default. Nothing needs to be set.\n\
         # Remove the # before a key to change it. Each key is also an environment variable, which goes before\n\
         # the file: KVMETRY_COLLECT_INTERVAL=10s; those of a [[section]] where it stands at most once.\n",
    );
    for section in SECTIONS {
        out.push('\n');
        comment(&mut out, section.doc);
        let title = section.title();
        let _ = if section.many { writeln!(out, "#{title}") } else { writeln!(out, "{title}") };
        for key in section.keys {
            out.push('\n');
            comment(&mut out, key.doc);
            let value = key.kind.default_value();
            let note = match (&key.kind, &value) {
                (Kind::Needed { .. }, _) => "needed, this is an example".to_owned(),
                (_, Value::Text(text)) if text.is_empty() => "not set".to_owned(),
                _ => format!("default {value}"),
            };
            comment(&mut out, &format!("{}; {note}", key.kind.expected()));
            let _ = writeln!(out, "#{} = {value}", key.name);
        }
    }
    out
}

fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let _ = writeln!(out, "# {line}");
    }
}
