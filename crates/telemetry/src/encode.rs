//! InfluxDB line protocol, written into a caller's buffer.
//!
//! ```text
//!  vm_devices,VMID=7,device=vnet0,devtype=nic,host=h1,name=db\ 1,uuid=0123… rxbytes=180i,rxpackets=2i 1763770000000000000\n
//!  ╰───────────── measurement and tags: built once, reused ──────────────╯ ╰───── fields ─────────╯ ╰──── ns ────────╯
//! ```
//!
//! Tags are sorted by key, which InfluxDB recommends for speed. Integers end in `i`; a value over `i64::MAX` is
//! written as `i64::MAX`. A float that is not finite is not written. A line without fields is not written.
//! Source of the escaping: InfluxDB's page "line protocol", and its parser, the crate `influxdb-line-protocol`, which
//! the tests read everything back with.
//!
//! No line and no field costs an allocation beyond the growth of the caller's buffer.

use std::borrow::Cow;
use std::io::Write as _;

use crate::units::{DomainId, Uuid};

/// How the tags of a VM are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagStyle {
    /// `uuid` and `name`.
    #[default]
    Dashboard,
    /// `UUID` and `Dom`, for databases filled by the older script.
    Reference,
}

/// Maps a text onto what line protocol can carry: control characters become U+FFFD, and a trailing backslash, which
/// would swallow what follows it, is followed by one. Everything else stays as it is. This is the only place where a
/// name changes; an empty tag is left out.
pub fn map_text(text: &str) -> Cow<'_, str> {
    const STAND_IN: char = '\u{fffd}';
    if !text.ends_with('\\') && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut mapped: String = text.chars().map(|c| if c.is_control() { STAND_IN } else { c }).collect();
    if mapped.ends_with('\\') {
        mapped.push(STAND_IN);
    }
    Cow::Owned(mapped)
}

/// The tags of one series; what is empty or `None` is left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tags<'a> {
    pub(crate) id: Option<DomainId>,
    pub(crate) device: Option<(&'static str, &'a str)>,
    pub(crate) event: &'a str,
    pub(crate) host: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uuid: Option<Uuid>,
}

/// Appends `,key=value` for every tag, sorted by key.
pub(crate) fn push_tags(out: &mut Vec<u8>, tags: &Tags<'_>, style: TagStyle) {
    let id = tags.id.filter(|id| id.is_live()).map(|id| id.to_string()).unwrap_or_default();
    let uuid = tags.uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
    let (devtype, device) = tags.device.unwrap_or_default();
    let (name_key, uuid_key) = match style {
        TagStyle::Dashboard => ("name", "uuid"),
        TagStyle::Reference => ("Dom", "UUID"),
    };
    let mut pairs = [
        ("VMID", id.as_str()),
        ("device", device),
        ("devtype", devtype),
        ("event", tags.event),
        ("host", tags.host),
        (name_key, tags.name),
        (uuid_key, uuid.as_str()),
    ];
    pairs.sort_unstable_by_key(|(key, _)| *key);
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        out.push(b',');
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        push_tag_value(out, &map_text(value));
    }
}

/// Appends a tag's value, escaped.
///
/// A backslash stands for itself, unless what follows it could be taken for something escaped: then it is doubled.
/// Never doubling would break `a\ b`; always doubling would change `a\b` for servers that do not undo it (InfluxDB 1
/// and 2).
fn push_tag_value(out: &mut Vec<u8>, value: &str) {
    let bytes = value.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let escaped = match byte {
            b',' | b'=' | b' ' => true,
            b'\\' => matches!(bytes.get(at + 1), Some(b',' | b'=' | b' ' | b'\\')),
            _ => false,
        };
        if escaped {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

/// A line being written. Ended by [`Line::end`], which takes it back if it has no field.
pub(crate) struct Line<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// What stands before the next field: a space before the first, a comma before the others.
    separator: u8,
}

impl<'a> Line<'a> {
    /// Begins a line with the measurement and its tags, as [`push_tags`] made them.
    pub(crate) fn begin(out: &'a mut Vec<u8>, measurement: &str, tags: &[u8]) -> Self {
        let start = out.len();
        out.extend_from_slice(measurement.as_bytes());
        out.extend_from_slice(tags);
        Self { out, start, separator: b' ' }
    }

    /// Appends an integer field; `prefix` and `name` together are its name.
    pub(crate) fn integer(&mut self, prefix: &str, name: &str, value: u64) {
        self.name(prefix, name);
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.out.push(b'i');
    }

    /// Appends a float field, unless it is not finite.
    pub(crate) fn float(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.name("", name);
            // `Debug` writes the shortest text that reads back equal, with a point or an exponent; a Vec takes any.
            let _infallible = write!(self.out, "{value:?}");
        }
    }

    /// Appends a text field.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.name("", name);
        self.out.push(b'"');
        for byte in map_text(value).bytes() {
            if matches!(byte, b'"' | b'\\') {
                self.out.push(b'\\');
            }
            self.out.push(byte);
        }
        self.out.push(b'"');
    }

    /// Ends the line with its time. Tells whether there is a line.
    pub(crate) fn end(self, time: &Stamp) -> bool {
        if self.separator == b' ' {
            self.out.truncate(self.start);
            return false;
        }
        self.out.extend_from_slice(&time.text);
        true
    }

    fn name(&mut self, prefix: &str, name: &str) {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.extend_from_slice(prefix.as_bytes());
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'=');
    }
}

/// The end of a line: its time in ns since 1970. Written once for all lines of a cycle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamp {
    time_ns: i64,
    text: Vec<u8>,
}

impl Stamp {
    /// Makes this the stamp of another time.
    pub(crate) fn set(&mut self, time_ns: i64) {
        if self.time_ns != time_ns || self.text.is_empty() {
            self.time_ns = time_ns;
            self.text.clear();
            self.text.push(b' ');
            self.text.extend_from_slice(itoa::Buffer::new().format(time_ns).as_bytes());
            self.text.push(b'\n');
        }
    }
}
