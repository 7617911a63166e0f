//! A body cut into its lines.
//!
//! A newline ends a line, unless it stands in the text of a string field or behind a backslash: as
//! `influxdb_line_protocol::split_lines` has it. It differs in one thing: a comment ends at its newline whatever
//! stands in it (there, the quote in `# a="b` would swallow the lines that follow).

/// What stands before a newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// The line without leading blanks; `None` for an empty line or a comment.
    pub(crate) line: Option<&'a str>,
    /// Whether the line is the whole piece and a newline followed.
    pub(crate) is_whole: bool,
    /// Whether the body ended within a text. (The parser might take the line all the same, if a comma stands in a
    /// field's name: it does not count them. But with a newline behind it, it would swallow the next line.)
    pub(crate) is_open: bool,
}

/// The pieces of a body.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(body: &'a str) -> Self {
        Self { rest: body }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let mut end = self.rest.find('\n').unwrap_or(self.rest.len());
        let head = &self.rest[..end];
        let start = head.len() - head.trim_start_matches([' ', '\t']).len();
        let is_line = !matches!(head.as_bytes().get(start), None | Some(b'#'));
        // No early return, so that the compiler looks at many bytes at once.
        let is_intricate = head.bytes().fold(false, |found, byte| found | matches!(byte, b'"' | b'\\'));
        let mut is_open = false;
        if is_line && is_intricate {
            let (len, ends_in_quotes) = line_end(&self.rest.as_bytes()[start..]);
            end = start + len;
            is_open = ends_in_quotes;
        }
        let line = is_line.then(|| &self.rest[start..end]);
        let is_whole = start == 0 && end < self.rest.len();
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(Piece { line, is_whole, is_open })
    }
}

/// Where the line ends that begins here, and whether that is within a text.
fn line_end(bytes: &[u8]) -> (usize, bool) {
    let mut in_fields = false;
    let mut in_quotes = false;
    let (mut equals, mut commas) = (0, 0);
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            // What follows it means nothing. If it has several bytes, the others mean nothing either.
            b'\\' => at += 1,
            b' ' => in_fields = true,
            // Only behind a field's name and `=` does a quote begin a text.
            b'=' if in_fields && !in_quotes => equals += 1,
            b',' if in_fields && !in_quotes => commas += 1,
            b'"' if in_fields && equals > commas => in_quotes = !in_quotes,
            b'\n' if !in_quotes => return (at, false),
            _ => {}
        }
        at += 1;
    }
    (bytes.len(), in_quotes)
}

/// Where the measurement and tags of a line end: at the first blank that no backslash makes a part of them.
pub(crate) fn series_end(line: &str) -> usize {
    let end = line.find(' ').unwrap_or(line.len());
    if !line.as_bytes()[..end].contains(&b'\\') {
        return end;
    }
    let mut is_escaped = false;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b' ' => return at,
            _ => {}
        }
    }
    line.len()
}
