//! The configuration: one TOML file, the environment and the flags, read once into a checked type.
//!
//! ```text
//! file ──▶ environment KVMETRY_SECTION_KEY ──▶ flags ──▶ values by section (layers) ──▶ Config
//!                 the later goes before the earlier          known keys, limits       what they mean together
//! ```
//!
//! [`keys`] declares every key; [`layers`] reads values and knows no key; this file, [`hypervisors`] and [`net`] know
//! what they mean. Without any file the defaults do the main job: `qemu:///system` every 5 seconds.
//!
//! All problems are reported at once, each in one line with its place. No message repeats a key's value
//! where that could be a secret.

mod hypervisors;
pub(crate) mod keys;
mod layers;
mod net;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::hypervisors::{hypervisors, hypervisors_dir, hypervisors_file};
use self::keys::{SECTIONS, Section};
use self::layers::{Given, Place};
use self::net::{base, http, influxdb};

pub(crate) use self::keys::sample;
pub(crate) use self::net::is_loopback;

/// The file that is read when no other is named. It need not exist.
pub(crate) const DEFAULT_PATH: &str = "/etc/kvmetry/kvmetry.toml";
/// The token of the InfluxDB servers that have no `token_file`.
pub(crate) const TOKEN_VARIABLE: &str = "KVMETRY_INFLUXDB_TOKEN";
/// The environment's URL of the one InfluxDB server.
const URL_VARIABLE: &str = "KVMETRY_INFLUXDB_URL";

/// The largest file that is read as configuration, bytes: thousands of hypervisors fit, a log file does not.
pub(crate) const MAX_FILE_BYTES: u64 = 4 << 20;
/// Hypervisors in one process: what one collector was designed for.
pub(crate) const MAX_HYPERVISORS: usize = 4096;
/// InfluxDB servers in one process: each has its own reader of the journal, which holds some megabytes.
pub(crate) const MAX_INFLUXDB: usize = 8;
/// Files read from `hypervisors_dir`.
pub(crate) const MAX_SNIPPETS: usize = MAX_HYPERVISORS;
/// The database that what is collected belongs to.
pub(crate) const DATABASE: &str = "kvmetry";
/// The data directory of root's kvmetry.
const SYSTEM_DATA_DIR: &str = "/var/lib/kvmetry";
/// The longest name of a hypervisor, bytes (a DNS name is not longer).
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// The shortest deadline: below, a healthy but busy libvirtd would be given up.
pub(crate) const MIN_DEADLINE: Duration = Duration::from_millis(50);

/// The checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// The file that was read, if one was.
    pub(crate) file: Option<PathBuf>,
    /// At least one; no URI and no name twice.
    pub(crate) hypervisors: Vec<Hypervisor>,
    /// How long device names read from the XML are believed.
    pub(crate) device_cache_ttl: Duration,
    pub(crate) tag_style: TagStyle,
    /// Whether points carry the tag `host`; `false` only with exactly one hypervisor.
    pub(crate) host_tag: bool,
    pub(crate) memory_source: MemorySource,
    /// KiB per second that the memory angle shows as 45 degrees; positive.
    pub(crate) angle_scale_kb_per_sec: f64,
    /// Where what must survive is kept.
    pub(crate) data_dir: PathBuf,
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    /// Servers that get every point.
    pub(crate) influxdb: Vec<InfluxDb>,
    /// Where lines are printed (`--output`).
    pub(crate) outputs: Vec<LineOutput>,
    /// The HTTP port.
    pub(crate) http: Http,
    /// What is odd but harmless, one line each, for the log.
    pub(crate) warnings: Vec<String>,
}

/// One hypervisor to read, with the values of `[collect]` that it does not override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hypervisor {
    /// Its libvirt URI; it parses as [`libvirt_rpc::Uri`].
    pub(crate) uri: String,
    /// The configured value of the tag `host`; `None`: the host name that it tells.
    pub(crate) name: Option<String>,
    /// Time between two readings.
    pub(crate) interval: Duration,
    /// How long one call for a shard may take before the shard is asked again with NOWAIT; at most 60 % of the
    /// interval.
    pub(crate) deadline: Duration,
    /// Calls given up and not yet answered, at most.
    pub(crate) max_abandoned: usize,
    /// The period to set on every balloon that has none, whole seconds; zero leaves the VMs alone. Setting one needs
    /// a writable connection.
    pub(crate) balloon_period: Duration,
    /// Never use bulk statistics.
    pub(crate) older_calls: bool,
}

/// The names of the tags for the VM's UUID and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagStyle {
    /// `uuid`, `name`.
    Dashboard,
    /// `UUID`, `Dom`.
    Reference,
}

/// What counts as used memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemorySource {
    /// The best of the others that both readings have.
    Auto,
    Guest,
    Rss,
    Balloon,
}

/// Bounds of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    /// Bytes on disk.
    pub(crate) max_size: u64,
    /// Age of an entry.
    pub(crate) max_age: Duration,
}

/// The embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) enabled: bool,
    /// How long points are kept.
    pub(crate) retention: Duration,
    /// The same for vm_devices.
    pub(crate) devices_retention: Duration,
    /// The same for roll-ups by the minute.
    pub(crate) minutes_retention: Duration,
    /// The same for roll-ups by the hour.
    pub(crate) hours_retention: Duration,
    /// Bytes that the files may take; `None`: by the file system's size.
    pub(crate) max_size: Option<u64>,
    /// Bytes that must stay free; `None`: by the file system's size.
    pub(crate) min_free: Option<u64>,
    /// Databases, and tables as `database/table`, that have no roll-ups; `*`: none has.
    pub(crate) no_rollups: Vec<String>,
}

#[cfg(feature = "store")]
impl Store {
    /// How long the points of a table are kept.
    pub(crate) fn retention_of(&self, table: &str) -> Duration {
        match table {
            _ if table.ends_with("_1m") => self.minutes_retention,
            _ if table.ends_with("_1h") => self.hours_retention,
            "vm_devices" => self.devices_retention,
            _ => self.retention,
        }
    }
}

/// An InfluxDB server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InfluxDb {
    /// Scheme, host, port and perhaps a base path; no user, query or fragment, no slash at the end.
    pub(crate) url: String,
    pub(crate) api: Api,
    /// The database (v3, v1) or bucket (v2) that gets what belongs to [`DATABASE`].
    pub(crate) database: String,
    /// How long what it gets is kept; zero: for ever. For databases that are made.
    pub(crate) retention: Duration,
    /// The database that gets the measurement vm_devices of [`DATABASE`]; `None`: that of the others.
    pub(crate) devices_database: Option<String>,
    /// As `retention`, for `devices_database`.
    pub(crate) devices_retention: Duration,
    /// The organisation (v2).
    pub(crate) org: Option<String>,
    /// `None`: [`TOKEN_VARIABLE`], if that is set.
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of the only authority to believe; `None`: the system's.
    pub(crate) ca: Option<PathBuf>,
}

/// Which write endpoint an InfluxDB server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/api/v3/write_lp`.
    V3,
    /// `/api/v2/write`.
    V2,
    /// `/write`.
    V1,
}

/// The HTTP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Http {
    /// `None`: there is none.
    pub(crate) listen: Option<SocketAddr>,
    /// Empty, or `/` and something, without a slash at its end.
    pub(crate) base_path: String,
    /// Names and addresses, without ports.
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) tls: Option<HttpTls>,
    /// `None`: in the data directory.
    pub(crate) tokens: Option<PathBuf>,
    /// Whether `/health` and `/ping` need no token.
    pub(crate) open_health: bool,
    /// `--insecure-no-auth`: nobody needs a token.
    pub(crate) insecure_no_auth: bool,
}

impl Http {
    /// Where the port is that listens on this address, for whoever asks from this machine; without a slash at its end.
    pub(crate) fn url(&self, mut address: SocketAddr) -> String {
        if address.ip().is_unspecified() {
            let is_ipv6 = address.is_ipv6();
            address.set_ip(if is_ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() });
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}{}", self.base_path)
    }

    /// The file of tokens, which is in this data directory unless it was told otherwise; absolute, so that its folder
    /// has a name.
    pub(crate) fn tokens_file(&self, data_dir: &Path) -> PathBuf {
        let path = self.tokens.clone().unwrap_or_else(|| data_dir.join("tokens.json"));
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// Certificate and key of the HTTP port, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpTls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Where lines are printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LineOutput {
    /// Standard output.
    Stdout,
    /// A file to append to.
    File(PathBuf),
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    /// `--config`; it must exist, unlike the default file.
    pub(crate) config: Option<PathBuf>,
    /// `--uri`: in place of all configured hypervisors.
    pub(crate) uris: Vec<String>,
    /// `--interval`.
    pub(crate) interval: Option<String>,
    /// `--output`.
    pub(crate) outputs: Vec<String>,
    /// `--data-dir`.
    pub(crate) data_dir: Option<PathBuf>,
    /// `--influxdb`: in place of all configured servers, except that one with the same URL keeps its settings.
    pub(crate) influxdb: Option<String>,
    /// `--no-store`.
    pub(crate) no_store: bool,
    /// `--listen`: in place of `[http]` listen.
    pub(crate) listen: Option<String>,
    /// `--insecure-no-auth`.
    pub(crate) insecure_no_auth: bool,
}

/// All that is wrong with a configuration, a line each. It is the user's to mend; the exit code is 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigError(pub(crate) Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file (the one named, else [`DEFAULT_PATH`] if it exists), this process's environment and the
    /// flags.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(crate) fn load(flags: &Flags) -> Result<Self, ConfigError> {
        // Names and values that are not Unicode cannot be ours.
        let variables: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let path = match &flags.config {
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()),
        };
        Self::from_parts(path.as_deref(), &variables, flags)
    }

    /// As [`Config::load`], with the file and the environment given.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(crate) fn from_parts(
        path: Option<&Path>,
        variables: &[(String, String)],
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let all: Vec<_> = SECTIONS.iter().collect();
        let mut given = match path {
            Some(path) => match read_file(path) {
                Ok(text) => layers::parse_file(path, &text, &all, &mut problems),
                Err(problem) => return Err(ConfigError(vec![problem])),
            },
            None => Vec::new(),
        };
        // The later goes before the earlier, so every [[section]] must be there before the environment is laid over
        // it: those of the other files, whose place the environment may tell, and those of the flags.
        let mut warnings = layers::apply_environment(&mut given, variables, false, &mut problems);
        if flags.uris.is_empty() {
            read_lists(&mut given, &mut problems);
        }
        choose_hypervisors(&mut given, flags, &mut problems);
        choose_server(&mut given, variables, flags, &mut problems);
        warnings.extend(layers::apply_environment(&mut given, variables, true, &mut problems));
        apply_interval(&mut given, flags, &mut problems);
        if let Some(listen) = &flags.listen {
            single(&mut given, "http").set_text("listen", listen, Place::Flag("--listen"), &mut problems);
        }
        let token = variables.iter().any(|(name, text)| name == TOKEN_VARIABLE && !text.trim().is_empty());
        let mut config = build(given, flags, token, &mut problems);
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        config.file = path.map(Path::to_owned);
        config.data_dir = flags.data_dir.clone().unwrap_or_else(|| default_data_dir(variables));
        config.warnings.extend(warnings);
        Ok(config)
    }
}

/// Root's is the system's, everybody else's their own (XDG Base Directory Specification, XDG_STATE_HOME).
fn default_data_dir(variables: &[(String, String)]) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(SYSTEM_DATA_DIR);
    }
    let variable = |name: &str| {
        let found = variables.iter().find(|(other, _)| other == name);
        found.map(|(_, text)| PathBuf::from(text)).filter(|path| path.is_absolute())
    };
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    // A user without a home is a service of its own: it needs a folder made for it.
    state.map_or_else(|| PathBuf::from(SYSTEM_DATA_DIR), |state| state.join("kvmetry"))
}

/// Reads the hypervisors that stand in files of their own.
fn read_lists(given: &mut Vec<Given>, problems: &mut Vec<String>) {
    let collect = single(given, "collect");
    let (file, dir) = (collect.path("hypervisors_file"), collect.path("hypervisors_dir"));
    given.extend(file.into_iter().flat_map(|path| hypervisors_file(&path, problems)));
    given.extend(dir.into_iter().flat_map(|path| hypervisors_dir(&path, problems)));
}

/// `--uri`: these hypervisors and no others.
fn choose_hypervisors(given: &mut Vec<Given>, flags: &Flags, problems: &mut Vec<String>) {
    if flags.uris.is_empty() {
        return;
    }
    let place = Place::Flag("--uri");
    given.retain(|one| one.section.name != "hypervisor");
    for uri in &flags.uris {
        let mut one = Given::new(section("hypervisor"), Some(place.clone()));
        one.set_text("uri", uri, place.clone(), problems);
        // What is wrong with it was just told.
        if one.place("uri").is_some() {
            given.push(one);
        }
    }
}

/// `--influxdb`: this server and no other; what the file says about a server of this URL stays.
fn choose_server(
    given: &mut Vec<Given>,
    variables: &[(String, String)],
    flags: &Flags,
    problems: &mut Vec<String>,
) {
    let Some(url) = &flags.influxdb else { return };
    let place = Place::Flag("--influxdb");
    let servers = all_of(given, "influxdb").count();
    let renamed = variables.iter().find(|(name, text)| name == URL_VARIABLE && !text.is_empty());
    let same = |one: &Given| match renamed {
        Some((_, text)) if servers == 1 => base(text) == base(url),
        _ => base(&one.text("url")) == base(url),
    };
    given.retain(|one| one.section.name != "influxdb" || same(one));
    if all_of(given, "influxdb").next().is_none() {
        given.push(Given::new(section("influxdb"), Some(place.clone())));
    }
    for one in given.iter_mut().filter(|one| one.section.name == "influxdb") {
        one.set_text("url", url, place.clone(), problems);
    }
}

/// `--interval`: whoever types one means all hypervisors.
fn apply_interval(given: &mut Vec<Given>, flags: &Flags, problems: &mut Vec<String>) {
    let Some(interval) = &flags.interval else { return };
    let place = Place::Flag("--interval");
    single(given, "collect").set_text("interval", interval, place.clone(), problems);
    for one in given.iter_mut().filter(|one| one.section.name == "hypervisor") {
        // What is wrong with it was just told.
        one.set_text("interval", interval, place.clone(), &mut Vec::new());
    }
}

/// What the values mean, and whether they fit together. `token`: the environment has one.
fn build(mut given: Vec<Given>, flags: &Flags, token: bool, problems: &mut Vec<String>) -> Config {
    let mut warnings = Vec::new();
    let collect = take(&mut given, "collect");
    let http = http(&take(&mut given, "http"), flags, problems);
    let features = take(&mut given, "features");
    let journal = take(&mut given, "journal");
    let store = take(&mut given, "store");
    let hypervisors = hypervisors(&collect, &given, problems);

    let host_tag = collect.bool("host_tag");
    if let (false, Some(place), 2..) = (host_tag, collect.place("host_tag"), hypervisors.len()) {
        problems.push(format!(
            "{place}: [collect] host_tag = false is allowed with exactly one hypervisor, here are {}: VMs of two \
             hosts would merge into one series",
            hypervisors.len()
        ));
    }
    Config {
        file: None,
        hypervisors,
        device_cache_ttl: collect.duration("device_cache_ttl"),
        tag_style: match collect.text("tag_style").as_str() {
            "reference" => TagStyle::Reference,
            _ => TagStyle::Dashboard,
        },
        host_tag,
        memory_source: match features.text("memory_source").as_str() {
            "guest" => MemorySource::Guest,
            "rss" => MemorySource::Rss,
            "balloon" => MemorySource::Balloon,
            _ => MemorySource::Auto,
        },
        angle_scale_kb_per_sec: features.float("angle_scale_kb_per_sec"),
        data_dir: PathBuf::new(),
        journal: Journal { max_size: journal.size("max_size"), max_age: journal.duration("max_age") },
        store: Store {
            // A collector without store has none to enable.
            enabled: cfg!(feature = "store") && store.bool("enabled") && !flags.no_store,
            retention: store.duration("retention"),
            devices_retention: store.duration("devices_retention"),
            minutes_retention: store.duration("minutes_retention"),
            hours_retention: store.duration("hours_retention"),
            max_size: Some(store.size("max_size")).filter(|&it| it > 0),
            min_free: Some(store.size("min_free")).filter(|&it| it > 0),
            no_rollups: store.list("no_rollups"),
        },
        influxdb: influxdb(&given, token, &mut warnings, problems),
        outputs: outputs(&flags.outputs, problems),
        http,
        warnings,
    }
}

fn outputs(texts: &[String], problems: &mut Vec<String>) -> Vec<LineOutput> {
    let mut found = Vec::new();
    for text in texts {
        let output = match text.split_once(':') {
            _ if text == "-" => LineOutput::Stdout,
            Some(("file", path)) if !path.is_empty() => LineOutput::File(PathBuf::from(path)),
            _ => {
                problems.push(format!("--output {text:?}: expected - or file:PATH"));
                continue;
            }
        };
        if found.contains(&output) {
            problems.push(format!("--output {text:?} is given twice"));
        }
        found.push(output);
    }
    found
}

/// Reads a file of at most [`MAX_FILE_BYTES`]. The error names the file.
fn read_file(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!(
            "{} is larger than {} MiB: is it the right file?",
            path.display(),
            MAX_FILE_BYTES >> 20
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("{} is not UTF-8 text (byte {})", path.display(), error.utf8_error().valid_up_to())
    })
}

/// The declaration of a section.
fn section(name: &'static str) -> &'static Section {
    let found = SECTIONS.iter().find(|section| section.name == name);
    found.unwrap_or_else(|| panic!("section {name} is not declared"))
}

/// The sections of this name.
fn all_of<'a>(given: &'a [Given], name: &'static str) -> impl Iterator<Item = &'a Given> {
    given.iter().filter(move |one| one.section.name == name)
}

/// How a message begins that is about this place.
fn before(place: Option<&Place>) -> String {
    place.map_or_else(String::new, |place| format!("{place}: "))
}

/// The values of a section that stands at most once; all defaults where it does not stand.
fn single<'a>(given: &'a mut Vec<Given>, name: &'static str) -> &'a mut Given {
    let index = given.iter().position(|one| one.section.name == name).unwrap_or_else(|| {
        given.push(Given::new(section(name), None));
        given.len() - 1
    });
    &mut given[index]
}

fn take(given: &mut Vec<Given>, name: &'static str) -> Given {
    match given.iter().position(|one| one.section.name == name) {
        Some(index) => given.remove(index),
        None => Given::new(section(name), None),
    }
}

#[cfg(test)]
mod tests;
