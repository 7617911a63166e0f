//! The lines of some entries of the journal, by the server's databases.

use journal::{Entry, Seq};

use super::attempt::Text;
use super::size::PREFERRED_BYTES;
use crate::config::DATABASE;
use crate::entry::{self, Malformed};
use crate::losses::Lost;

/// What goes to `devices_database`.
const DEVICES: &str = telemetry::catalogue::VM_DEVICES.name;

/// Lines of entries, sorted by database.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Each database once.
    pub(super) texts: Vec<(String, Text)>,
    /// Entries that are none of ours.
    pub(super) unreadable: Vec<(Seq, Lost)>,
    /// An entry that a newer version wrote, and its format's version. Nothing of what is behind it is in this.
    pub(super) newer: Option<(Seq, u8)>,
    /// The last entry that is in this.
    pub(super) through: Option<Seq>,
}

impl Chunk {
    /// Sorts the lines of entries, each database's in order. `database` stands for our default one.
    pub(super) fn of(entries: &[(Seq, Entry)], database: &str, devices: Option<&str>) -> Self {
        let mut chunk = Self::default();
        let mut texts: Vec<(String, String)> = Vec::new();
        let mut push = |database: &str, text: &str| match texts.iter_mut().find(|(name, _)| name == database)
        {
            Some((_, all)) => all.push_str(text),
            None => texts.push((database.to_owned(), text.to_owned())),
        };
        for (seq, entry) in entries {
            match entry::decode(&entry.payload) {
                Ok(lines) if lines.database != DATABASE => push(&lines.database, &lines.text),
                Ok(lines) => match devices {
                    None => push(database, &lines.text),
                    Some(devices) => {
                        let text = Text::new(lines.text);
                        for (is_devices, run) in text.runs(|line| is_of(line, DEVICES)) {
                            push(if is_devices { devices } else { database }, text.slice(run));
                        }
                    }
                },
                Err(Malformed::Newer(version)) => {
                    chunk.newer = Some((*seq, version));
                    break;
                }
                Err(wrong) => {
                    let why = format!("an entry of the journal cannot be read: {wrong}");
                    let (lines, span) = (u64::from(entry.lines), entry.span);
                    chunk.unreadable.push((*seq, Lost { who: String::new(), why, lines, span }));
                }
            }
            chunk.through = Some(*seq);
        }
        chunk.texts = texts.into_iter().map(|(database, text)| (database, Text::new(text))).collect();
        chunk
    }
}

/// How many of the first of these entries make a chunk: at most [`PREFERRED_BYTES`] of lines, but at least one.
pub(super) fn count<'a>(entries: impl ExactSizeIterator<Item = &'a (Seq, Entry)>) -> usize {
    let (all, mut bytes) = (entries.len(), 0);
    let fits = |(_, entry): &&(Seq, Entry)| {
        bytes += entry::lines_len(&entry.payload).unwrap_or_default();
        bytes <= PREFERRED_BYTES
    };
    entries.take_while(fits).count().max(1).min(all)
}

/// Whether a line is of this measurement, which needs no escaping.
fn is_of(line: &str, measurement: &str) -> bool {
    line.strip_prefix(measurement).is_some_and(|rest| rest.starts_with([',', ' ']))
}
