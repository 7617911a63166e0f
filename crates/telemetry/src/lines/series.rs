//! The series of a body, by how they are spelt.
//!
//! Collectors write the same series again and again, in the same order. So the measurement and tags of a line are
//! compared as text with those of the line that followed last time, and not read again. If they differ, a map from
//! text to series is asked. Only a text that is new is taken apart.
//!
//! One series may be spelt in many ways: tags in another order, a character escaped that need not be. The *plain*
//! spelling has tags sorted and exactly the characters `,`, `=`, blank and `\` escaped; if there is any, a blank stands
//! before it, so that it is no line's text (`a\=b` in a line is another measurement than the one whose plain spelling
//! that would be). A series is in the map by its plain spelling and by every other that occurred.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Index;
use std::sync::Arc;

use influxdb_line_protocol::{EscapedStr, ParsedLine};

use super::batch::SeriesKey;
use super::column::twice;
use super::limits::told;

/// Measurement and tags that good lines had.
#[derive(Debug)]
pub(crate) struct KnownSeries<'a> {
    /// As they stand in the line.
    pub(crate) text: &'a str,
    pub(crate) table: u32,
    /// The series' place in the table.
    pub(crate) place: u32,
    /// The column of the last line's first field.
    pub(crate) first_column: usize,
    /// The series that followed last time.
    pub(crate) next: usize,
}

/// All that good lines had so far.
#[derive(Debug)]
pub(crate) struct SeriesIndex<'a> {
    known: Vec<KnownSeries<'a>>,
    by_text: HashMap<Cow<'a, str>, usize>,
    last: Option<usize>,
}

/// A line of a known series that is shorter and reads the same: of the measurement and tags (`series`, as they stand in
/// the line) only the last character is left, as a measurement. (What it was is known; reading it again would take half
/// of the time.)
pub(crate) fn stub<'a>(series: &str, line: &'a str) -> &'a str {
    match series.as_bytes().last() {
        // Others might be something else at the beginning of a line: a comment, an escape, a part of a character.
        Some(last) if last.is_ascii_alphanumeric() => line.get(series.len() - 1..).unwrap_or(line),
        _ => line,
    }
}

/// Series that are remembered in each half of [`SeriesMemory`]: those of 4,000 VMs, some 20 MB.
const MAX_REMEMBERED: usize = 32_768;

/// The series of earlier bodies, for who writes the same ones again and again: they need not be taken apart anew, and
/// their keys are shared.
///
/// Bounded: what was not met since [`MAX_REMEMBERED`] others were is forgotten.
#[derive(Debug, Default)]
pub struct SeriesMemory {
    young: HashMap<Arc<str>, Remembered>,
    old: HashMap<Arc<str>, Remembered>,
}

/// What a plain spelling stands for.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) table: Arc<str>,
    pub(crate) key: Arc<SeriesKey>,
}

impl SeriesMemory {
    pub(crate) fn find(&mut self, text: &str) -> Option<Remembered> {
        if let Some(known) = self.young.get(text) {
            return Some(known.clone());
        }
        let (text, known) = self.old.remove_entry(text)?;
        self.keep(text, known.clone());
        Some(known)
    }

    /// `text` is the plain spelling.
    pub(crate) fn add(&mut self, text: &str, table: &str, key: &Arc<SeriesKey>) {
        self.keep(text.into(), Remembered { table: table.into(), key: Arc::clone(key) });
    }

    fn keep(&mut self, text: Arc<str>, known: Remembered) {
        if self.young.len() >= MAX_REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, known);
    }
}

impl<'a> SeriesIndex<'a> {
    pub(crate) fn new(body_bytes: usize) -> Self {
        /// A guess that is cheap if wrong: lines of this project, no more than a few hundred VMs.
        const LINE_BYTES: usize = 256;
        const MOST: usize = 4_096;
        let by_text = HashMap::with_capacity((body_bytes / LINE_BYTES).min(MOST));
        Self { known: Vec::new(), by_text, last: None }
    }

    /// The series of a line, if it is the one that followed the last line's series before.
    pub(crate) fn expected(&self, line: &str) -> Option<usize> {
        let at = self.last.map_or(0, |last| self.known[last].next);
        let text = self.known.get(at)?.text;
        // The text has no blank that would end it, and this one would not be a part of it either: it was followed by
        // a blank where it was found first.
        (line.as_bytes().get(text.len()) == Some(&b' ') && line.starts_with(text)).then_some(at)
    }

    /// The series with this text.
    pub(crate) fn find(&self, text: &str) -> Option<usize> {
        self.by_text.get(text).copied()
    }

    /// The last line was of this series, and its first field in this column.
    pub(crate) fn follow(&mut self, at: usize, first_column: usize) {
        self.known[at].first_column = first_column;
        if let Some(last) = self.last.replace(at) {
            self.known[last].next = at;
        }
    }

    /// The last line was of this series, whose text is new; `plain` is its plain spelling, unless it is the text.
    pub(crate) fn add(&mut self, known: KnownSeries<'a>, plain: Option<String>) {
        let at = self.known.len();
        if let Some(plain) = plain {
            self.by_text.entry(Cow::Owned(plain)).or_insert(at);
        }
        self.by_text.insert(Cow::Borrowed(known.text), at);
        let first_column = known.first_column;
        self.known.push(KnownSeries { next: at + 1, ..known });
        self.follow(at, first_column);
    }
}

impl<'a> Index<usize> for SeriesIndex<'a> {
    type Output = KnownSeries<'a>;

    fn index(&self, at: usize) -> &KnownSeries<'a> {
        &self.known[at]
    }
}

/// The tags of a line, sorted.
pub(crate) fn series_key(tags: &[(EscapedStr<'_>, EscapedStr<'_>)]) -> Result<SeriesKey, String> {
    let mut key = SeriesKey { tags: Vec::with_capacity(tags.len()) };
    for (name, value) in tags {
        if value.contains('\n') {
            return Err(format!("the value of tag '{}' has a line break", told(name)));
        }
        key.tags.push((name.as_str().to_owned(), value.as_str().to_owned()));
    }
    key.tags.sort_unstable();
    match key.tags.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(twice("tag", &pair[0].0)),
        None => Ok(key),
    }
}

/// The plain spelling of a line's measurement and tags, unless they are spelt so.
pub(crate) fn plain_text(text: &str, line: &ParsedLine<'_>, key: &SeriesKey) -> Option<String> {
    let tags = line.series.tag_set.as_deref().unwrap_or_default();
    let count = |byte| text.bytes().filter(|b| *b == byte).count();
    let has_only_separators = count(b'\\') == 0 && count(b',') == tags.len() && count(b'=') == tags.len();
    if has_only_separators && tags.is_sorted_by(|(a, _), (b, _)| a < b) {
        return None;
    }
    let mut plain = String::with_capacity(text.len() + 16);
    push_escaped(&mut plain, &line.series.measurement);
    for (name, value) in &key.tags {
        plain.push(',');
        push_escaped(&mut plain, name);
        plain.push('=');
        push_escaped(&mut plain, value);
    }
    if plain.contains('\\') {
        plain.insert(0, ' ');
    }
    Some(plain)
}

fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if matches!(c, ',' | '=' | ' ' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_met_again_is_forgotten() {
        let mut memory = SeriesMemory::default();
        let key = Arc::new(SeriesKey::default());
        let often = "t,vm=often";
        memory.add(often, "t", &key);
        for number in 0..4 * MAX_REMEMBERED {
            memory.add(&format!("t,vm={number}"), "t", &key);
            assert!(memory.find(often).is_some_and(|it| Arc::ptr_eq(&it.key, &key)));
        }
        assert!(memory.find("t,vm=0").is_none());
        assert!(memory.young.len() <= MAX_REMEMBERED && memory.old.len() <= MAX_REMEMBERED);
    }
}
