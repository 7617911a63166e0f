//! `kvmetry check`: what works, what does not, and what to type about it.
//!
//! It does what `run` does, twice for each hypervisor, and tells what came of it. Nothing is written anywhere.

use std::fmt::Display;
use std::io::{self, IsTerminal};
#[cfg(feature = "store")]
use std::path::Path;
use std::sync::Arc;

use disk::{Disk as _, RealDisk};

use crate::cli::print;
use crate::clock::{Clock, SystemClock};
use crate::collect::{Host, HostNames, Settings, Statuses};
use crate::config::Config;
use crate::datadir::{self, Held};
use crate::{deliver, http, logging};

/// Names listed in a message; more are counted.
const NAMES: usize = 5;

/// Prints what it finds; true if everything works.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) async fn check(config: &Config) -> anyhow::Result<bool> {
    let mut page = Page::new();
    match &config.file {
        Some(file) => page.good(format_args!("configuration {}", file.display()))?,
        None => page.good("no configuration file: defaults, flags and environment")?,
    }
    for warning in &config.warnings {
        page.odd(warning)?;
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let names = HostNames::default();
    for (place, hypervisor) in config.hypervisors.iter().enumerate() {
        page.head(&hypervisor.uri)?;
        let (settings, statuses) = (Settings::of(config, hypervisor)?, Statuses::default());
        let mut host = Host::new(settings, place, names.clone(), statuses, Arc::clone(&clock));
        check_host(&mut host, &hypervisor.uri, &*clock, &mut page).await?;
        host.close().await;
    }
    for server in &config.influxdb {
        page.head(&server.url)?;
        match deliver::probe(server).await {
            Ok(what) => page.good(what)?,
            Err(why) => page.bad(why)?,
        }
    }
    if !config.influxdb.is_empty() || config.store.enabled {
        check_data(config, &mut page)?;
        check_port(config, &mut page).await?;
    }
    check_rejects(config, &mut page)?;
    if config.influxdb.is_empty() && config.outputs.is_empty() && !config.store.enabled {
        page.head("outputs")?;
        page.odd("none is configured: `kvmetry run` tells what it sees; see --output and --influxdb")?;
    }
    Ok(page.all_good)
}

/// The data directory and what is in it. Nothing is made: what is not there yet is made by the first start.
fn check_data(config: &Config, page: &mut Page) -> anyhow::Result<()> {
    let dir = std::path::absolute(&config.data_dir)?;
    let dir = dir.as_path();
    page.head(format_args!("data directory {}", dir.display()))?;
    // What is not there yet is made below the nearest folder that is.
    let Some(there) = dir.ancestors().find(|it| it.is_dir()) else {
        return page.bad("neither it nor anything above it is there: name another --data-dir");
    };
    if let Err(error) = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        let user = rustix::process::geteuid().as_raw();
        page.bad(format_args!(
            "{} cannot be written by this user ({user}): {error}; make it writable, or name another --data-dir",
            there.display()
        ))?;
    } else if there == dir {
        page.good("can be written")?;
    } else {
        page.good(format_args!("is not there yet: it is made in {}", there.display()))?;
    }
    let space = match RealDisk.space(there) {
        Ok(space) => space,
        Err(error) => return page.bad(format_args!("its file system does not answer: {error}")),
    };
    if there == dir {
        match datadir::held(dir) {
            Ok(Held::Free) => page.good("no kvmetry uses it now")?,
            Ok(Held::By { who, url: Some(url) }) => {
                page.good(format_args!("in use by process {who}, which answers at {url}"))?;
            }
            Ok(Held::By { who, url: None }) => page.good(format_args!("in use by process {who}"))?,
            Err(error) => page.bad(error)?,
        }
    }
    check_store(config, space, page)
}

#[cfg(not(feature = "store"))]
fn check_store(_: &Config, _: disk::Space, _: &mut Page) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(feature = "store")]
fn check_store(config: &Config, space: disk::Space, page: &mut Page) -> anyhow::Result<()> {
    use store::Options;
    if !config.store.enabled {
        return Ok(());
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let max_size = config.store.max_size.unwrap_or_else(|| Options::default_max_size(space));
    let (files, bytes) = parquet_below(&config.data_dir.join("store"));
    page.good(format_args!("the store: {files} files, {} of at most {}", mib(bytes), mib(max_size)))?;
    let min_free = config.store.min_free.unwrap_or_else(|| Options::default_min_free(space));
    if space.free < min_free {
        return page.bad(format_args!(
            "{} are free, less than {}: the store does not grow, the journal drops its oldest entries; free some space, or \
             see [store] min_free",
            mib(space.free),
            mib(min_free)
        ));
    }
    page.good(format_args!("{} are free, at least {} stay so", mib(space.free), mib(min_free)))
}

/// How many Parquet files there are, and their length, bytes. What cannot be read is told elsewhere.
#[cfg(feature = "store")]
fn parquet_below(dir: &Path) -> (usize, u64) {
    let entries = RealDisk.list(dir).unwrap_or_default();
    entries.into_iter().fold((0, 0), |(files, bytes), entry| {
        if entry.is_dir {
            let below = parquet_below(&entry.path);
            (files + below.0, bytes + below.1)
        } else if entry.path.extension().is_some_and(|it| it == "parquet") {
            (files + 1, bytes + entry.len)
        } else {
            (files, bytes)
        }
    })
}

/// Whether the HTTP port can be opened, or is open already.
async fn check_port(config: &Config, page: &mut Page) -> anyhow::Result<()> {
    let Some(listen) = config.http.listen else { return Ok(()) };
    page.head(format_args!("HTTP port {listen}"))?;
    let url = match datadir::held(&config.data_dir) {
        Ok(Held::By { url, .. }) => url,
        _ => None,
    };
    let is_ours = url.as_deref().is_some_and(|url| is_at(url, listen.port()));
    let tokens = config.http.tokens_file(&config.data_dir);
    if let Err(error) = http::check(&config.http, listen, &tokens) {
        page.bad(logging::chain(&error))?;
    }
    let is_free = match tokio::net::TcpListener::bind(listen).await {
        Ok(_) => {
            page.good("free")?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_ours => {
            page.good("open: the process that has the data directory listens there")?;
            false
        }
        Err(error) => {
            page.bad(format_args!(
                "cannot be opened: {error}; end what listens there, or choose another with --listen"
            ))?;
            false
        }
    };
    match url {
        Some(url) => page.good(format_args!("the dashboard is at {url}/")),
        None if is_free && listen.port() == 0 => {
            page.good("kvmetry run tells where the dashboard is: the system chooses the port")
        }
        None if is_free => {
            page.good(format_args!("the dashboard will be at {}/ once kvmetry runs", config.http.url(listen)))
        }
        None => Ok(()),
    }
}

/// Whether a URL is that of a server at this port.
fn is_at(url: &str, port: u16) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| url.port_or_known_default() == Some(port))
}

/// Lines that servers refused lie there until a person has read them.
fn check_rejects(config: &Config, page: &mut Page) -> anyhow::Result<()> {
    let dir = config.data_dir.join("rejects");
    match deliver::summary(&RealDisk, &dir) {
        Ok(None) => Ok(()),
        Ok(Some(found)) => {
            page.head(dir.display())?;
            let last = found.last.unwrap_or_else(|| "unknown".to_owned());
            page.odd(format_args!(
                "lines that a server refused: {} bytes in {} files; the last reason: {last}; send the files again when it \
                 is mended, and remove them",
                found.bytes, found.files
            ))
        }
        Err(error) => {
            page.head(dir.display())?;
            page.odd(format_args!("cannot be read: {error}"))
        }
    }
}

async fn check_host(host: &mut Host, uri: &str, clock: &dyn Clock, page: &mut Page) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    let first = host.cycle(clock.wall_ns(), &mut lines).await;
    if let Some(why) = first.down {
        return page.bad(why);
    }
    host.look_up(usize::MAX).await;
    let second = host.cycle(clock.wall_ns(), &mut lines).await;
    if let Some(why) = second.down {
        return page.bad(why);
    }
    let Some(session) = host.session() else { return page.bad("the connection was lost") };
    let (peer, version) = (session.connection.peer(), session.version);
    page.good(format_args!("connected to {} through {peer}, libvirt {version}", session.hostname))?;
    if session.bulk_groups().is_empty() {
        page.odd("this driver has no bulk statistics: the older calls are used, one a VM and device")?;
    } else {
        page.good("bulk statistics")?;
        let older = session.older_groups();
        if !older.is_empty() {
            page.odd(format_args!("not in the bulk statistics, read by the older calls: {older}"))?;
        }
    }
    if !session.waits_never() {
        page.odd(
            "this libvirt is older than 4.5 (no NOWAIT): one busy VM can delay the others; upgrade libvirt",
        )?;
    }
    if !session.events_refused.is_empty() {
        let kinds = session.events_refused.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>();
        page.odd(format_args!("events that this libvirt does not tell of: {}", kinds.join(", ")))?;
    }
    if second.vms == 0 {
        return page.odd("no live VMs: nothing to read (start one: virsh start NAME)");
    }
    let took = second.took.as_millis();
    let (vms, whole) = (second.vms, second.whole);
    if whole == vms {
        page.good(format_args!("{vms} live VMs read whole, {} lines in {took} ms", second.lines))?;
    } else {
        let unread = list(&host.unread());
        page.bad(format_args!(
            "{whole} of {vms} live VMs read whole in {took} ms; not {unread} (the log above tells why)"
        ))?;
    }
    if second.stuck > 0 {
        page.bad(format_args!(
            "VMs whose monitor does not answer (QEMU in state D or T?), of which only state, interfaces and domain info \
             are read: {}",
            second.stuck
        ))?;
    }
    let totals = &host.totals;
    let (hits, misses) = (totals.cache_hits, totals.cache_misses);
    page.good(format_args!("device cache: {hits} hits, {misses} misses, hit rate {:.2}", totals.hit_rate()))?;
    check_balloons(host, page, uri)
}

/// Without a period the guest's memory is not known: `memavailable`, `memusable` and their like stay 0.
fn check_balloons(host: &Host, page: &mut Page, uri: &str) -> anyhow::Result<()> {
    // The read-only socket does not take the command.
    let uri = uri.replace("-sock-ro", "-sock");
    let mut silent = Vec::new();
    let mut without = Vec::new();
    let mut unknown = Vec::new();
    for (domain, facts) in host.vms() {
        match facts {
            Some(facts) if !facts.has_balloon => without.push(&*domain.name),
            Some(facts) if facts.balloon_period.is_none_or(|period| period.is_zero()) => {
                silent.push(&*domain.name)
            }
            Some(_) => {}
            None => unknown.push(&*domain.name),
        }
    }
    if !unknown.is_empty() {
        page.odd(format_args!("XML not read, so nothing is known of the balloon: {}", list(&unknown)))?;
    }
    if !silent.is_empty() {
        page.odd(format_args!(
            "balloon period not set, so guest memory stays 0, or what it was: {}; type, for each: virsh -c {} dommemstat \
             {} --period 5 --live (and --config to keep it), or set [collect] balloon_period = \"5s\"",
            list(&silent),
            quote(&uri),
            quote(silent[0])
        ))?;
    }
    if !without.is_empty() {
        page.odd(format_args!("no balloon device, so guest memory stays 0: {}", list(&without)))?;
    }
    if silent.is_empty() && without.is_empty() && unknown.is_empty() {
        page.good("all balloons have a statistics period")?;
    }
    Ok(())
}

/// As a word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What is printed, line by line, with marks in colour on a terminal.
struct Page {
    colour: bool,
    all_good: bool,
}

impl Page {
    fn new() -> Self {
        Self { colour: logging::colours(io::stdout().is_terminal()), all_good: true }
    }

    fn head(&self, what: impl Display) -> anyhow::Result<()> {
        self.line("1", "", what)
    }

    fn good(&self, what: impl Display) -> anyhow::Result<()> {
        self.line("32", "  ok    ", what)
    }

    /// Works, but not as well as it could.
    fn odd(&self, what: impl Display) -> anyhow::Result<()> {
        self.line("33", "  note  ", what)
    }

    fn bad(&mut self, what: impl Display) -> anyhow::Result<()> {
        self.all_good = false;
        self.line("31", "  FAIL  ", what)
    }

    fn line(&self, colour: &str, mark: &str, what: impl Display) -> anyhow::Result<()> {
        // Names come from elsewhere: no control character of theirs reaches the terminal.
        let what: String =
            what.to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let line = match (self.colour, mark.is_empty()) {
            (false, _) => format!("{mark}{what}\n"),
            (true, true) => format!("\x1b[{colour}m{what}\x1b[0m\n"),
            (true, false) => format!("\x1b[{colour}m{mark}\x1b[0m{what}\n"),
        };
        print(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_url() {
        for (url, port, expect) in [
            ("http://127.0.0.1:8177", 8177, true),
            ("http://127.0.0.1:8177/kvmetry", 8177, true),
            ("http://127.0.0.1:8177", 817, false),
            ("http://127.0.0.1:8177", 81, false),
            ("https://[::1]:443", 443, true),
            ("http://127.0.0.1:80", 80, true),
            ("rubbish", 80, false),
        ] {
            assert_eq!(is_at(url, port), expect, "{url} {port}");
        }
    }
}
