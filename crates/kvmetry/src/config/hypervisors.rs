//! What is said of hypervisors, in the configuration and in files of their own, and whether it fits together.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{DEADLINE_PERCENT, DEFAULT_URI, duration};
use super::layers::{self, Deadline, Given, Place};
use super::{
    Hypervisor, MAX_HYPERVISORS, MAX_NAME_BYTES, MAX_SNIPPETS, MIN_DEADLINE, all_of, before, read_file,
    section,
};

pub(super) fn hypervisors(collect: &Given, given: &[Given], problems: &mut Vec<String>) -> Vec<Hypervisor> {
    let mut found: Vec<Hypervisor> = Vec::new();
    let mut seen: HashMap<(&str, String), String> = HashMap::new();
    check_times(collect, collect, problems);
    let default = [Given::new(section("hypervisor"), None)];
    let mut all: Vec<_> = all_of(given, "hypervisor").collect();
    if all.is_empty() {
        all.extend(&default);
    }
    if all.len() > MAX_HYPERVISORS {
        problems.push(format!(
            "{} hypervisors are configured, the limit is {MAX_HYPERVISORS}: start a second collector for some of them",
            all.len()
        ));
    }
    for one in all {
        let place = before(one.place.as_ref());
        if one.place("uri").is_none() && one.place.is_some() {
            problems.push(format!("{place}[[hypervisor]] has no uri, for example uri = \"{DEFAULT_URI}\""));
            continue;
        }
        let uri = one.text("uri");
        let at = before(one.place("uri"));
        if let Err(error) = uri.parse::<libvirt_rpc::Uri>() {
            problems.push(format!("{at}uri {error}"));
        }
        let name = Some(one.text("name")).filter(|name| !name.is_empty());
        if name.as_ref().is_some_and(|name| name.len() > MAX_NAME_BYTES) {
            problems.push(format!("{place}name of {uri:?} is longer than {MAX_NAME_BYTES} bytes"));
        }
        for (what, value) in [("uri", Some(uri.clone())), ("name", name.clone())] {
            let Some(value) = value else { continue };
            let there = one.place.as_ref().map_or_else(String::new, Place::to_string);
            if let Some(first) = seen.insert((what, value.clone()), there) {
                problems.push(format!("{place}hypervisor {what} {value:?} stands twice, first at {first}"));
            }
        }
        if one.place.is_some() {
            check_times(one, collect, problems);
        }
        let interval = inherit(one, collect, "interval").duration("interval");
        let max_abandoned = inherit(one, collect, "max_abandoned").integer("max_abandoned");
        found.push(Hypervisor {
            uri,
            name,
            interval,
            deadline: resolve(inherit(one, collect, "deadline").deadline("deadline"), interval),
            max_abandoned: usize::try_from(max_abandoned).unwrap_or(usize::MAX),
            balloon_period: inherit(one, collect, "balloon_period").duration("balloon_period"),
            older_calls: one.bool("older_calls"),
        });
    }
    found
}

/// The section that says what this key is for this hypervisor.
fn inherit<'a>(one: &'a Given, collect: &'a Given, key: &str) -> &'a Given {
    if one.place(key).is_some() { one } else { collect }
}

fn resolve(deadline: Deadline, interval: Duration) -> Duration {
    match deadline {
        Deadline::Percent(percent) => interval * u32::from(percent) / 100,
        Deadline::Fixed(deadline) => deadline,
    }
}

/// Checks what no key's own limits can: a deadline against the interval, whole seconds.
fn check_times(one: &Given, collect: &Given, problems: &mut Vec<String>) {
    let title = one.section.title();
    let interval = inherit(one, collect, "interval").duration("interval");
    let from = inherit(one, collect, "deadline");
    if let Deadline::Fixed(deadline) = from.deadline("deadline") {
        let most = interval * u32::from(*DEADLINE_PERCENT.end()) / 100;
        let place = one.place("deadline").or(one.place("interval")).or(from.place("deadline"));
        if let (false, Some(place)) = ((MIN_DEADLINE..=most).contains(&deadline), place) {
            problems.push(format!(
                "{place}: {title} deadline {} does not fit the interval {}: {} to {} ({} % of it)",
                duration(deadline),
                duration(interval),
                duration(MIN_DEADLINE),
                duration(most),
                DEADLINE_PERCENT.end()
            ));
        }
    }
    if let Some(place) = one.place("balloon_period") {
        let period = one.duration("balloon_period");
        if period.subsec_nanos() != 0 {
            problems.push(format!(
                "{place}: {title} balloon_period {} must be whole seconds, as libvirt takes them",
                duration(period)
            ));
        }
    }
}

/// One hypervisor a line: a URI, then perhaps a name; `#` begins a comment line.
pub(super) fn hypervisors_file(path: &Path, problems: &mut Vec<String>) -> Vec<Given> {
    let text = match read_file(path) {
        Ok(text) => text,
        Err(problem) => {
            problems.push(format!("hypervisors_file: {problem}"));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = Place::File(path.to_owned(), number + 1);
        let (uri, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = name.trim();
        if name.contains(char::is_whitespace) {
            problems.push(format!("{place}: expected a URI and a name, found more words: {name:?}"));
            continue;
        }
        let mut one = Given::new(section("hypervisor"), Some(place.clone()));
        one.set_text("uri", uri, place.clone(), problems);
        if !name.is_empty() {
            one.set_text("name", name, place, problems);
        }
        found.push(one);
    }
    found
}

/// Every `*.toml` of the folder, by name, with `[[hypervisor]]` sections only.
pub(super) fn hypervisors_dir(path: &Path, problems: &mut Vec<String>) -> Vec<Given> {
    let listed = std::fs::read_dir(path).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()
    });
    let mut files = match listed {
        Ok(files) => files,
        Err(error) => {
            problems.push(format!("hypervisors_dir: {} cannot be read: {error}", path.display()));
            return Vec::new();
        }
    };
    // Hidden files are what editors and package managers leave behind.
    let hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !hidden(path));
    files.sort();
    if files.len() > MAX_SNIPPETS {
        problems.push(format!(
            "hypervisors_dir: {} has {} files, the limit is {MAX_SNIPPETS}",
            path.display(),
            files.len()
        ));
        return Vec::new();
    }
    let mut found = Vec::new();
    for file in files {
        match read_file(&file) {
            Ok(text) => found.extend(layers::parse_file(&file, &text, &[section("hypervisor")], problems)),
            Err(problem) => problems.push(format!("hypervisors_dir: {problem}")),
        }
    }
    found
}
