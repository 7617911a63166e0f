//! From the three places that a value can stand in (file, environment, flags) to checked values by section.
//!
//! Nothing here knows what a key means: it knows [`SECTIONS`]. All problems are collected, one line each, so
//! that a person sees them at once and not one after another.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{DEADLINE_PERCENT, Key, Kind, SECTIONS, Section, duration, parse_size, size};

/// The largest text value, bytes: above any sensible URL or path.
const MAX_TEXT_BYTES: usize = 4096;
/// The longest piece of the file that a message repeats, characters.
const MAX_QUOTED_CHARS: usize = 40;
/// Syntax errors shown: after the first few, the parser only stumbles over its own recovery.
const MAX_SYNTAX_ERRORS: usize = 5;
/// Two names are taken for a misspelling of each other from this Jaro-Winkler likeness on (0..1).
const ALIKE: f64 = 0.85;
/// Variables that are read elsewhere, without `KVMETRY_`: the log's level, the token for a running kvmetry, and where
/// `make` keeps its tools.
const NO_SETTINGS: [&str; 3] = ["LOG", "TOKEN", "TOOLS"];

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Duration(Duration),
    Deadline(Deadline),
    Integer(u64),
    Float(f64),
    /// Bytes.
    Size(u64),
    Bool(bool),
    Text(String),
    List(Vec<String>),
}

/// A deadline before the interval is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// Percent of the interval.
    Percent(u8),
    Fixed(Duration),
}

/// As it is written in the file.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration(value) | Self::Deadline(Deadline::Fixed(value)) => {
                write!(f, "\"{}\"", duration(*value))
            }
            Self::Deadline(Deadline::Percent(percent)) => write!(f, "\"{percent}%\""),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Size(value) => write!(f, "\"{}\"", size(*value)),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::List(values) => write!(f, "{values:?}"),
        }
    }
}

/// Where a value stands, for messages and for relative paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line (from 1) of a file.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// The values given for one `[section]` or one `[[section]]`.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) section: &'static Section,
    /// Where the section begins; `None` where nobody wrote it.
    pub(crate) place: Option<Place>,
    values: BTreeMap<&'static str, (Value, Place)>,
}

impl Given {
    /// A section in which nothing is given: all defaults.
    pub(crate) fn new(section: &'static Section, place: Option<Place>) -> Self {
        Self { section, place, values: BTreeMap::new() }
    }

    /// Gives a value, which goes before one that is there.
    pub(crate) fn set(&mut self, key: &'static Key, value: Value, place: Place) {
        self.values.insert(key.name, (value, place));
    }

    /// Gives a value as text (environment, flag, list of hypervisors).
    pub(crate) fn set_text(&mut self, name: &str, text: &str, place: Place, problems: &mut Vec<String>) {
        let Some(key) = self.section.key(name) else { return };
        match from_text(&key.kind, text) {
            Ok(value) => self.set(key, value, place),
            Err(problem) => problems.push(format!("{place}: {problem}")),
        }
    }

    /// Where this key was given, if it was.
    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.values.get(name).map(|(_, place)| place)
    }

    fn value(&self, name: &str) -> Value {
        match self.values.get(name) {
            Some((value, _)) => value.clone(),
            // A name that is not declared is a mistake of this program, which reading the defaults shows.
            None => self.section.key(name).map_or(Value::Bool(false), |key| key.kind.default_value()),
        }
    }

    /// A duration.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// A deadline.
    pub(crate) fn deadline(&self, name: &str) -> Deadline {
        match self.value(name) {
            Value::Deadline(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// A whole number.
    pub(crate) fn integer(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Integer(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// A number.
    pub(crate) fn float(&self, name: &str) -> f64 {
        match self.value(name) {
            Value::Float(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// A size, bytes.
    pub(crate) fn size(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Size(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// True or false.
    pub(crate) fn bool(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Bool(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// A text, empty where it is not set.
    pub(crate) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(value) => value,
            other => self.undeclared(name, &other),
        }
    }

    /// Texts, none where it is not set.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Value::List(values) => values,
            other => self.undeclared(name, &other),
        }
    }

    /// A path, if it is set. One given in a file is relative to that file's folder.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let text = self.text(name);
        if text.is_empty() {
            return None;
        }
        match self.place(name) {
            Some(Place::File(file, _)) => Some(file.parent().unwrap_or(Path::new("")).join(text)),
            _ => Some(PathBuf::from(text)),
        }
    }

    /// Only a mistake of this program gets here, and the test of the defaults finds it.
    fn undeclared(&self, name: &str, value: &Value) -> ! {
        panic!("the key {name} of {} is not declared as it is read ({value:?})", self.section.title())
    }
}

/// Reads a file's text into its sections. `allowed` are the sections that this file may have.
pub(crate) fn parse_file(
    path: &Path,
    text: &str,
    allowed: &[&'static Section],
    problems: &mut Vec<String>,
) -> Vec<Given> {
    let file = File { path, text, allowed };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
            let place = file.place(error.span().map_or(0, |span| span.start));
            problems.push(format!("{place}: not TOML: {}", error.message().replace('\n', " ")));
        }
        return Vec::new();
    }
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    let mut given = Vec::new();
    for (name, value) in entries {
        file.section(name, value, &mut given, problems);
    }
    given
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    allowed: &'a [&'static Section],
}

impl File<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Place::File(self.path.to_owned(), line)
    }

    fn section(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        given: &mut Vec<Given>,
        problems: &mut Vec<String>,
    ) {
        let place = self.place(name.span().start);
        let name: &str = name.get_ref();
        let Some(section) = self.allowed.iter().find(|section| section.name == name) else {
            problems.push(format!("{place}: {}", self.unknown_top(name, value.get_ref())));
            return;
        };
        let title = section.title();
        match (value.get_ref(), section.many) {
            (DeValue::Table(table), false) => given.push(self.table(section, table, place, problems)),
            (DeValue::Array(array), true) if array.iter().all(|one| one.get_ref().is_table()) => {
                for one in array {
                    if let DeValue::Table(table) = one.get_ref() {
                        let place = self.place(one.span().start);
                        given.push(self.table(section, table, place, problems));
                    }
                }
            }
            (DeValue::Table(_), true) => problems
                .push(format!("{place}: write {title} instead of [{name}]: there can be more than one")),
            (DeValue::Array(_), false) => {
                problems.push(format!("{place}: write {title} instead of [[{name}]]: there is only one"))
            }
            (other, _) => {
                problems.push(format!("{place}: {name} is a section, write {title}, not {}", a(other)));
            }
        }
    }

    fn unknown_top(&self, name: &str, value: &DeValue<'_>) -> String {
        if SECTIONS.iter().any(|section| section.name == name) {
            return format!("section {name:?} does not belong here; this file has {} only", self.titles());
        }
        let is_section = value.is_table()
            || value.as_array().is_some_and(|all| all.iter().any(|v| v.get_ref().is_table()));
        if !is_section {
            let home = SECTIONS.iter().find(|section| section.key(name).is_some());
            return match home {
                Some(section) => {
                    format!("key {name:?} stands outside a section; it belongs under {}", section.title())
                }
                None => format!("unknown key {name:?} outside a section; every key stands under a [section]"),
            };
        }
        match nearest(name, self.allowed.iter().map(|section| section.name)) {
            Some(near) => {
                let title = self.allowed.iter().find(|s| s.name == near).map(|s| s.title());
                format!("unknown section [{name}]; did you mean {}?", title.unwrap_or_default())
            }
            None => format!("unknown section [{name}]; there are {}", self.titles()),
        }
    }

    fn titles(&self) -> String {
        self.allowed.iter().map(|section| section.title()).collect::<Vec<_>>().join(", ")
    }

    fn table(
        &self,
        section: &'static Section,
        table: &DeTable<'_>,
        place: Place,
        problems: &mut Vec<String>,
    ) -> Given {
        let mut given = Given::new(section, Some(place));
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let place = self.place(name.span().start);
            let name: &str = name.get_ref();
            let Some(key) = section.key(name) else {
                problems.push(format!("{place}: {}", unknown_key(section, name)));
                continue;
            };
            let quoted = quote(&self.text[value.span()]);
            match from_toml(&key.kind, value.get_ref()) {
                Ok(value) => given.set(key, value, place),
                Err(problem) => {
                    problems.push(format!("{place}: {} {name} = {quoted}: {problem}", section.title()));
                }
            }
        }
        given
    }
}

/// Lays the environment over all `[section]`s, or over all `[[section]]`s (`many`). A `[[section]]` takes variables
/// where it stands at most once; where it does not stand, its first variable makes one. What a flag says stays.
/// Returns what is odd but harmless.
pub(crate) fn apply_environment(
    given: &mut Vec<Given>,
    variables: &[(String, String)],
    many: bool,
    problems: &mut Vec<String>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (variable, text) in variables.iter().filter(|(_, text)| !text.is_empty()) {
        let Some(rest) = variable.strip_prefix("KVMETRY_") else { continue };
        let found = SECTIONS.iter().find_map(|section| {
            let key = rest.strip_prefix(&section.name.to_uppercase())?.strip_prefix('_')?;
            Some((section, key.to_lowercase()))
        });
        let Some((section, name)) = found else {
            if !many && !is_of_others(rest) {
                warnings.push(unknown_variable(variable, rest));
            }
            continue;
        };
        if section.many != many || variable == super::TOKEN_VARIABLE {
            continue;
        }
        let Some(key) = section.key(&name) else {
            warnings.push(format!("{variable} is ignored: {}", unknown_key(section, &name)));
            continue;
        };
        let mut there: Vec<_> = given.iter_mut().filter(|one| one.section.name == section.name).collect();
        if there.iter().any(|one| matches!(one.place(key.name), Some(Place::Flag(_)))) {
            continue;
        }
        let place = Place::Variable(variable.clone());
        match there.as_mut_slice() {
            [] => {
                let mut one = Given::new(section, Some(place.clone()));
                one.set_text(key.name, text, place, problems);
                given.push(one);
            }
            [one] => one.set_text(key.name, text, place, problems),
            several => problems.push(format!(
                "{variable}: there are {} {}, so this could mean any of them; set {name} in the file instead",
                several.len(),
                section.title()
            )),
        }
    }
    warnings
}

/// Checks a text (environment, flag) against a kind; the error begins with the text.
pub(crate) fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let checked = match kind {
        Kind::Integer { .. } => match trimmed.parse() {
            Ok(number) => check_integer(kind, number),
            Err(_) => Err(wrong(kind)),
        },
        Kind::Float { .. } => match trimmed.parse() {
            Ok(number) => check_float(kind, number),
            Err(_) => Err(wrong(kind)),
        },
        Kind::Bool { .. } => match trimmed {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(wrong(kind)),
        },
        Kind::List => check_list(kind, trimmed.split(',').map(str::trim)),
        _ => check_text(kind, text),
    };
    checked.map_err(|problem| format!("{}: {problem}", quote(&format!("{text:?}"))))
}

fn from_toml(kind: &Kind, value: &DeValue<'_>) -> Result<Value, String> {
    match (kind, value) {
        (Kind::Integer { .. }, DeValue::Integer(number)) => {
            match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => check_integer(kind, number),
                Err(_) => Err(wrong(kind)),
            }
        }
        (Kind::Float { .. }, DeValue::Integer(number)) if number.radix() == 10 => {
            number.as_str().parse().map_or_else(|_| Err(wrong(kind)), |number| check_float(kind, number))
        }
        (Kind::Float { .. }, DeValue::Float(number)) => {
            number.as_str().parse().map_or_else(|_| Err(wrong(kind)), |number| check_float(kind, number))
        }
        (Kind::Bool { .. }, DeValue::Boolean(value)) => Ok(Value::Bool(*value)),
        (Kind::Integer { .. } | Kind::Float { .. } | Kind::Bool { .. }, other) => {
            Err(format!("{}, not {}", wrong(kind), a(other)))
        }
        (Kind::List, DeValue::Array(values)) => {
            let texts: Option<Vec<_>> = values.iter().map(|value| value.get_ref().as_str()).collect();
            check_list(kind, texts.ok_or_else(|| wrong(kind))?.into_iter())
        }
        (Kind::List, other) => Err(format!("{}, not {}", wrong(kind), a(other))),
        (_, DeValue::String(text)) => check_text(kind, text),
        (Kind::Duration { .. } | Kind::Deadline { .. }, other) => {
            Err(format!("{}, in quotes with its unit such as \"5s\", not {}", wrong(kind), a(other)))
        }
        (Kind::Size { .. }, other) => {
            Err(format!("{}, in quotes with its unit such as \"2GiB\", not {}", wrong(kind), a(other)))
        }
        (_, other) => Err(format!("{} in quotes, not {}", wrong(kind), a(other))),
    }
}

fn check_integer(kind: &Kind, number: i64) -> Result<Value, String> {
    match (kind, u64::try_from(number)) {
        (Kind::Integer { min, max, .. }, Ok(number)) if (*min..=*max).contains(&number) => {
            Ok(Value::Integer(number))
        }
        _ => Err(format!("out of range: {}", wrong(kind))),
    }
}

fn check_float(kind: &Kind, number: f64) -> Result<Value, String> {
    match kind {
        Kind::Float { min, max, .. } if (*min..=*max).contains(&number) => Ok(Value::Float(number)),
        _ => Err(format!("out of range: {}", wrong(kind))),
    }
}

fn check_text(kind: &Kind, text: &str) -> Result<Value, String> {
    let no_duration =
        || format!("not a duration: {}, written such as \"500ms\", \"5s\" or \"5m\"", wrong(kind));
    match kind {
        Kind::Duration { min, max, or_zero, .. } => {
            let value = humantime::parse_duration(text.trim()).map_err(|_| no_duration())?;
            if (*min..=*max).contains(&value) || (*or_zero && value.is_zero()) {
                Ok(Value::Duration(value))
            } else {
                Err(format!("out of range: {}", wrong(kind)))
            }
        }
        Kind::Deadline { .. } => match text.trim().strip_suffix('%') {
            Some(percent) => match percent.trim().parse::<u8>() {
                Ok(percent) if DEADLINE_PERCENT.contains(&percent) => {
                    Ok(Value::Deadline(Deadline::Percent(percent)))
                }
                _ => Err(format!("out of range: {}", wrong(kind))),
            },
            None => humantime::parse_duration(text.trim())
                .map(|value| Value::Deadline(Deadline::Fixed(value)))
                .map_err(|_| no_duration()),
        },
        Kind::Size { default, min, max } => match parse_size(text) {
            Some(0) if *default == 0 => Ok(Value::Size(0)),
            Some(bytes) if (*min..=*max).contains(&bytes) => Ok(Value::Size(bytes)),
            Some(_) => Err(format!("out of range: {}", wrong(kind))),
            None => Err(format!("not a size: {}, written such as \"512MiB\" or \"2GiB\"", wrong(kind))),
        },
        Kind::Choice { of } if of.contains(&text) => Ok(Value::Text(text.to_owned())),
        Kind::Choice { of } => Err(match nearest(text, of.iter().copied()) {
            Some(near) => format!("{}; did you mean {near:?}?", wrong(kind)),
            None => wrong(kind),
        }),
        _ if text.len() > MAX_TEXT_BYTES => {
            Err(format!("too long: {} bytes, the limit is {MAX_TEXT_BYTES}", text.len()))
        }
        _ if text.chars().any(char::is_control) => {
            Err("a control character (such as a line break) cannot stand here".to_owned())
        }
        Kind::Needed { .. } if text.is_empty() => Err("must not be empty".to_owned()),
        _ => Ok(Value::Text(text.to_owned())),
    }
}

fn check_list<'a>(kind: &Kind, texts: impl Iterator<Item = &'a str>) -> Result<Value, String> {
    let texts = texts.map(|text| match check_text(kind, text)? {
        Value::Text(text) if text.is_empty() => Err("an empty text stands in the list".to_owned()),
        Value::Text(text) => Ok(text),
        _ => Err(wrong(kind)),
    });
    texts.collect::<Result<Vec<_>, _>>().map(Value::List)
}

fn wrong(kind: &Kind) -> String {
    format!("expected {}", kind.expected())
}

fn unknown_key(section: &'static Section, name: &str) -> String {
    let title = section.title();
    if let Some(near) = nearest(name, section.keys.iter().map(|key| key.name)) {
        return format!("unknown key {name:?} in {title}; did you mean {near:?}?");
    }
    let home = SECTIONS.iter().find(|other| other.key(name).is_some());
    if let Some(home) = home {
        return format!("unknown key {name:?} in {title}; it belongs under {}", home.title());
    }
    let names: Vec<_> = section.keys.iter().map(|key| key.name).collect();
    format!("unknown key {name:?} in {title}; there are {}", names.join(", "))
}

/// Whether a variable is none of the configuration and yet no mistake, by what comes after `KVMETRY_`.
fn is_of_others(rest: &str) -> bool {
    NO_SETTINGS.contains(&rest)
        // Kubernetes makes these for a service called kvmetry.
        || rest == "SERVICE_HOST"
        || ["SERVICE_PORT", "PORT"].iter().any(|it| rest.strip_prefix(it).is_some_and(|it| it.is_empty() || it.starts_with('_')))
}

/// What to say of a variable that is of no section.
fn unknown_variable(variable: &str, rest: &str) -> String {
    if rest == "DATA_DIR" {
        return format!("{variable} is ignored: the data directory is a flag, --data-dir");
    }
    let named = rest.split_once('_').and_then(|(word, key)| {
        let near = nearest(word, SECTIONS.iter().map(|section| section.name))?.to_uppercase();
        let word = word.to_lowercase();
        Some(format!("there is no section {word:?}; did you mean KVMETRY_{near}_{key}?"))
    });
    let why = named.unwrap_or_else(|| {
        let home = SECTIONS.iter().find(|it| it.key(&rest.to_lowercase()).is_some());
        match home {
            Some(home) => format!("did you mean KVMETRY_{}_{rest}?", home.name.to_uppercase()),
            None => "there is no such setting; kvmetry config lists them".to_owned(),
        }
    });
    format!("{variable} is ignored: {why}")
}

/// The known name that was probably meant.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::jaro_winkler(&name, known), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// A piece of the file for a message: one line, not long. Of a URL nothing: there may be a password in it.
fn quote(text: &str) -> String {
    if text.contains("://") {
        return "…".to_owned();
    }
    let line = text.lines().next().unwrap_or_default();
    let mut quoted: String = line.chars().take(MAX_QUOTED_CHARS).collect();
    if quoted.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

/// What a TOML value is, with its article.
fn a(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
