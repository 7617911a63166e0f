//! The lines of one request, until the server has them or has refused them for good. No I/O.
//!
//! ```text
//!            ┌─ 204 ──────────────────────────────▶ delivered
//! all of it ─┼─ lines, by number ─▶ the rest, all or nothing ─┬─ 204 ─▶ delivered; the named ones refused
//!            │                                                └─ lines ─┐
//!            ├─ lines, not known which ────────────────────────────────┤
//!            │                                                         └─▶ each half anew; a single line: refused
//!            └─ too large ─▶ fewer lines at once; a single line: refused
//! ```
//!
//! A single line that is refused as too large though it is no longer than [`LONG_LINE_BYTES`] is not to blame: then
//! the server's limit, or that of a proxy before it, is a person's to raise, and the line is kept.
//!
//! A server's numbers are believed only when the rest is then stored as a whole: that proves that they were meant for
//! these lines. After [`MAX_REQUESTS`] the search ends, and what is left is refused whole.

use std::ops::Range;

use influxdb_line_protocol::split_lines;

use super::answer::{NamedLine, Verdict};

/// Requests that a search for bad lines may take: a few bad lines among ten thousand are found, and a server that
/// refuses everything is not asked for every line.
pub(super) const MAX_REQUESTS: u32 = 64;
/// A limit that refuses a line up to this long is not one for line protocol: nginx takes 1 MiB where nothing is set,
/// the servers more. A longer line, which no collector writes, must not stop what is behind it.
pub(super) const LONG_LINE_BYTES: usize = 64 << 10;

/// Whole lines and where each ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    text: String,
    /// Behind each line's line feed.
    ends: Vec<usize>,
}

impl Text {
    /// Finds the lines. A line feed inside of a text field ends none.
    pub(super) fn new(text: String) -> Self {
        let mut ends = Vec::new();
        let mut from = 0;
        while from < text.len() {
            let rest = &text[from..];
            let plain = rest.find('\n').map_or(rest, |end| &rest[..end]);
            // Nearly all lines: no text field, nothing escaped.
            let line = match plain.contains(['"', '\\']) {
                false => plain,
                true => split_lines(rest).next().unwrap_or(rest),
            };
            from = (from + line.len() + 1).min(text.len());
            if !line.is_empty() {
                ends.push(from);
            }
        }
        Self { text, ends }
    }

    fn start(&self, line: usize) -> usize {
        line.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// These lines.
    pub(super) fn slice(&self, lines: Range<usize>) -> &str {
        if lines.is_empty() { "" } else { &self.text[self.start(lines.start)..self.ends[lines.end - 1]] }
    }

    /// How many.
    pub(super) fn lines(&self) -> usize {
        self.ends.len()
    }

    /// Successive lines of which this is equally true or false, and which it is.
    pub(super) fn runs(&self, is: impl Fn(&str) -> bool) -> Vec<(bool, Range<usize>)> {
        let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
        for line in 0..self.lines() {
            let is = is(self.slice(line..line + 1));
            match runs.last_mut() {
                Some((last, run)) if *last == is => run.end = line + 1,
                _ => runs.push((is, line..line + 1)),
            }
        }
        runs
    }

    /// The lines from this one on that have at most so many bytes together; at least one, if there is one.
    pub(super) fn piece(&self, from: usize, most: usize) -> Range<usize> {
        let start = self.start(from);
        let count = self.ends[from..].iter().take_while(|end| **end - start <= most).count();
        from..(from + count.max(1)).min(self.lines())
    }
}

/// The lines of one request.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    text: &'a Text,
    /// What is still to be done, the last first.
    steps: Vec<Step>,
    /// Requests since lines were refused first.
    searching: u32,
    /// Why lines were refused last.
    why: String,
}

#[derive(Debug)]
enum Step {
    /// Send these lines.
    All(Range<usize>),
    /// Send these lines without those that the server named, all or nothing.
    Rest(Range<usize>, Vec<RefusedLine>),
}

/// A line that the server refuses for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusedLine {
    /// Its place in the [`Text`], from 0.
    pub(super) line: usize,
    /// Why.
    pub(super) why: String,
}

/// What is to be sent next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) lines: String,
    /// Store all of them or none.
    pub(super) strict: bool,
}

/// What came of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// So many lines are stored and these are refused; there may be none of either. Go on.
    Settled { delivered: u64, refused: Vec<RefusedLine> },
    /// The server takes less at once than these many bytes: begin anew at [`Attempt::first_left`], with less.
    TooLarge { bytes: usize },
    /// Wait, then send the same again.
    Again(Verdict),
}

impl<'a> Attempt<'a> {
    /// Nothing of these lines was sent yet.
    pub(super) fn new(text: &'a Text, lines: Range<usize>) -> Self {
        let steps = if lines.is_empty() { Vec::new() } else { vec![Step::All(lines)] };
        Self { text, steps, searching: 0, why: String::new() }
    }

    /// What to send; `None`: all lines are settled.
    pub(super) fn next(&self) -> Option<Request> {
        match self.steps.last()? {
            Step::All(lines) => {
                Some(Request { lines: self.text.slice(lines.clone()).to_owned(), strict: false })
            }
            Step::Rest(lines, refused) => {
                let mut left = String::new();
                let mut from = lines.start;
                for line in refused.iter().map(|refused| refused.line).chain([lines.end]) {
                    left += self.text.slice(from..line);
                    from = line + 1;
                }
                Some(Request { lines: left, strict: true })
            }
        }
    }

    /// The first line that is not settled; all before it are. `None`: all are.
    pub(super) fn first_left(&self) -> Option<usize> {
        self.steps.last().map(|(Step::All(lines) | Step::Rest(lines, _))| lines.start)
    }

    /// Goes on with the answer to [`Attempt::next`].
    pub(super) fn answered(&mut self, verdict: Verdict) -> Next {
        match verdict {
            Verdict::Retry { .. }
            | Verdict::NoAnswer { .. }
            | Verdict::NeedsAPerson { .. }
            | Verdict::TimedOut { .. }
            | Verdict::NotThisDatabase { .. } => return Next::Again(verdict),
            Verdict::Stored | Verdict::Lines { .. } | Verdict::TooLarge { .. } => {}
        }
        if let (Verdict::TooLarge { why }, Some(Step::All(lines) | Step::Rest(lines, _))) =
            (&verdict, self.steps.last())
        {
            let bytes = self.text.slice(lines.clone()).len();
            if lines.len() > 1 {
                return Next::TooLarge { bytes };
            }
            if bytes <= LONG_LINE_BYTES {
                let why = format!(
                    "a single line of {bytes} bytes is too much for the server, or for a proxy before it ({why}); raise \
                     the limit there"
                );
                return Next::Again(Verdict::NotThisDatabase { why });
            }
        }
        let Some(step) = self.steps.pop() else { return settled(0, Vec::new()) };
        if let Verdict::Lines { why, .. } = &verdict {
            self.why.clone_from(why);
        }
        if !self.why.is_empty() {
            self.searching += 1;
        }
        let mut next = self.go_on(step, verdict);
        if let Next::Settled { refused, .. } = &mut next
            && self.searching >= MAX_REQUESTS
        {
            self.give_up(refused);
        }
        next
    }

    fn go_on(&mut self, step: Step, verdict: Verdict) -> Next {
        match (step, verdict) {
            (Step::All(lines), Verdict::Stored) => settled(lines.len(), Vec::new()),
            (Step::Rest(lines, refused), Verdict::Stored) => settled(lines.len() - refused.len(), refused),
            (Step::All(lines), Verdict::Lines { named, why }) => match believable(named, &lines) {
                // Every single line: there is no rest to prove it by, and no need.
                Some(refused) if refused.len() == lines.len() => settled(0, refused),
                Some(refused) => {
                    self.steps.push(Step::Rest(lines, refused));
                    settled(0, Vec::new())
                }
                None => settled(0, self.halve(lines, why)),
            },
            (Step::Rest(lines, _), Verdict::Lines { why, .. }) => settled(0, self.halve(lines, why)),
            // Too large, and a single line.
            (Step::All(lines) | Step::Rest(lines, _), verdict) => {
                settled(0, self.halve(lines, verdict.why()))
            }
        }
    }

    /// Each half is sent anew; a single line is refused.
    fn halve(&mut self, lines: Range<usize>, why: String) -> Vec<RefusedLine> {
        if lines.len() == 1 {
            return vec![RefusedLine { line: lines.start, why }];
        }
        let middle = lines.start + lines.len() / 2;
        self.steps.push(Step::All(middle..lines.end));
        self.steps.push(Step::All(lines.start..middle));
        Vec::new()
    }

    /// All that is left is refused.
    fn give_up(&mut self, refused: &mut Vec<RefusedLine>) {
        let why =
            format!("given up after {MAX_REQUESTS} requests, not each of these lines is bad: {}", self.why);
        for step in self.steps.drain(..).rev() {
            let (Step::All(lines) | Step::Rest(lines, _)) = step;
            refused.extend(lines.map(|line| RefusedLine { line, why: why.clone() }));
        }
    }
}

fn settled(delivered: usize, refused: Vec<RefusedLine>) -> Next {
    Next::Settled { delivered: delivered as u64, refused }
}

/// The lines that a server named, if these can be ours; each once, in order.
fn believable(named: Option<Vec<NamedLine>>, lines: &Range<usize>) -> Option<Vec<RefusedLine>> {
    let mut refused = Vec::new();
    for NamedLine { number, why } in named? {
        let line = lines.start + usize::try_from(number.checked_sub(1)?).ok()?;
        if !lines.contains(&line) {
            return None;
        }
        refused.push(RefusedLine { line, why });
    }
    refused.sort_by_key(|refused| refused.line);
    refused.dedup_by_key(|refused| refused.line);
    Some(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_as_servers_find_them() {
        #[track_caller]
        fn check(text: &str, expect: &[&str]) {
            let text = Text::new(text.to_owned());
            let found: Vec<_> = (0..text.lines()).map(|line| text.slice(line..line + 1)).collect();
            assert_eq!(found, expect);
        }
        check("a v=1 1\nb v=2 2\n", &["a v=1 1\n", "b v=2 2\n"]);
        check("a v=\"x\ny\" 1\nb v=2 2\n", &["a v=\"x\ny\" 1\n", "b v=2 2\n"]);
        check("a v=\"x\\\"\ny\" 1\nb v=2 2\n", &["a v=\"x\\\"\ny\" 1\n", "b v=2 2\n"]);
        check("", &[]);
    }

    #[test]
    fn pieces_are_whole_lines_within_a_bound() {
        let text = Text::new("a v=1 1\nb v=\"long\nlonger\" 2\nc v=3 3\nd v=4 4\n".to_owned());
        let pieces = |most| {
            let mut ends = vec![0];
            while ends[ends.len() - 1] < text.lines() {
                ends.push(text.piece(ends[ends.len() - 1], most).end);
            }
            ends
        };
        assert_eq!(pieces(1000), [0, 4]);
        assert_eq!(pieces(16), [0, 1, 2, 4]);
        assert_eq!(pieces(0), [0, 1, 2, 3, 4]);
        assert_eq!(Text::default().piece(0, 10), 0..0);
    }

    fn lines(count: usize) -> Text {
        Text::new((0..count).map(|n| format!("a v={n}i {n}\n")).collect())
    }

    fn number(line: &str) -> usize {
        line.rsplit(' ').next().unwrap().trim().parse().unwrap()
    }

    /// How servers answer that dislike some lines.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Style {
        /// InfluxDB 3: names all bad lines and stores the others, or (strict) names the first.
        V3,
        /// The same, but its numbers are one too high.
        V3Wrong,
        /// Stores nothing, and does not say which line it was.
        AllOrNothing,
        /// Stores the others, and does not say which line it was.
        Partial,
    }

    /// What a server stored, what was refused, and the requests it took.
    fn run(count: usize, bad: &[usize], style: Style, most_bytes: usize) -> (Vec<usize>, Vec<usize>, u32) {
        let text = lines(count);
        let mut attempt = Attempt::new(&text, 0..count);
        let (mut stored, mut refused, mut requests, mut delivered) = (Vec::new(), Vec::new(), 0, 0);
        let mut end = count;
        while let Some(request) = attempt.next() {
            requests += 1;
            let numbers: Vec<usize> = request.lines.lines().map(number).collect();
            let shift = u64::from(style == Style::V3Wrong);
            let wrong: Vec<NamedLine> = (1..)
                .zip(&numbers)
                .filter(|(_, line)| bad.contains(line))
                .map(|(at, line)| NamedLine { number: at + shift, why: format!("bad {line}") })
                .collect();
            let good = numbers.iter().filter(|line| !bad.contains(line));
            let why = "bad".to_owned();
            let verdict = if request.lines.len() > most_bytes {
                Verdict::TooLarge { why }
            } else if wrong.is_empty() {
                stored.extend(good);
                Verdict::Stored
            } else {
                let v3 = matches!(style, Style::V3 | Style::V3Wrong);
                if (v3 && !request.strict) || style == Style::Partial {
                    stored.extend(good);
                }
                let named = match request.strict {
                    true => wrong[..1].to_vec(),
                    false => wrong,
                };
                Verdict::Lines { named: v3.then_some(named), why }
            };
            match attempt.answered(verdict) {
                Next::Settled { delivered: now, refused: now_refused } => {
                    delivered += now;
                    refused.extend(now_refused.iter().map(|refused| refused.line));
                }
                Next::TooLarge { bytes } => {
                    assert_eq!(bytes, request.lines.len());
                    let piece = text.piece(attempt.first_left().unwrap(), bytes / 2);
                    end = piece.end;
                    attempt = Attempt::new(&text, piece);
                }
                Next::Again(verdict) => panic!("{verdict:?}"),
            }
            if attempt.next().is_none() {
                let piece = text.piece(end, most_bytes);
                end = piece.end;
                attempt = Attempt::new(&text, piece);
            }
        }
        assert_eq!(delivered as usize + refused.len(), count, "every line is settled once");
        stored.sort_unstable();
        stored.dedup();
        (stored, refused, requests)
    }

    #[test]
    fn only_bad_lines_are_refused() {
        const ANY: usize = usize::MAX;
        #[track_caller]
        fn check(count: usize, bad: &[usize], style: Style, most_bytes: usize, most_requests: u32) {
            let (stored, refused, requests) = run(count, bad, style, most_bytes);
            assert_eq!(refused, bad, "{style:?}");
            assert_eq!(stored, (0..count).filter(|line| !bad.contains(line)).collect::<Vec<_>>());
            assert!(requests <= most_requests, "{requests} requests");
        }
        for style in [Style::V3, Style::V3Wrong, Style::AllOrNothing, Style::Partial] {
            check(1, &[], style, ANY, 1);
            check(1, &[0], style, ANY, 2);
            check(1000, &[], style, ANY, 1);
            check(200, &[0, 50, 199], style, ANY, MAX_REQUESTS);
            check(10, &[3], style, 40, 20);
        }
        check(1000, &[0, 500, 999], Style::V3, ANY, 2);
        check(3, &[0, 1, 2], Style::V3, ANY, 1);
        check(1000, &(0..900).collect::<Vec<_>>(), Style::V3, ANY, 2);
    }

    #[test]
    fn a_search_without_end_is_given_up() {
        let bad: Vec<_> = (0..10_000).filter(|line| line % 7 == 0).collect();
        for style in [Style::AllOrNothing, Style::Partial] {
            let (stored, refused, requests) = run(10_000, &bad, style, usize::MAX);
            assert_eq!(requests, MAX_REQUESTS);
            assert!(bad.iter().all(|line| refused.contains(line)), "no bad line is taken for delivered");
            let kept = |line: &usize| refused.contains(line) || stored.contains(line);
            assert!((0..10_000).all(|line| kept(&line)), "no line is lost");
        }
    }

    #[test]
    fn a_line_too_large_is_refused_and_the_rest_is_not() {
        let long = format!("a v=\"{}\" 4\n", "x".repeat(LONG_LINE_BYTES));
        let all: String =
            (0..10).map(|n| if n == 4 { long.clone() } else { format!("a v=1 {n}\n") }).collect();
        let text = Text::new(all);
        let too_large = || Verdict::TooLarge { why: "413".to_owned() };
        let mut attempt = Attempt::new(&text, 3..6);
        let bytes = text.slice(3..6).len();
        assert_eq!(attempt.answered(too_large()), Next::TooLarge { bytes });
        assert_eq!(attempt.first_left(), Some(3), "nothing is settled by it");
        let mut attempt = Attempt::new(&text, 4..5);
        let refused = vec![RefusedLine { line: 4, why: "413".to_owned() }];
        assert_eq!(attempt.answered(too_large()), Next::Settled { delivered: 0, refused });
        assert_eq!(attempt.first_left(), None);
    }

    #[test]
    fn a_limit_below_a_common_line_is_not_the_lines_fault() {
        let text = lines(2);
        let mut attempt = Attempt::new(&text, 0..1);
        let too_large = || Verdict::TooLarge { why: "status 413".to_owned() };
        let first = attempt.next();
        for _ in 0..3 {
            let Next::Again(Verdict::NotThisDatabase { why }) = attempt.answered(too_large()) else {
                panic!("it is not kept")
            };
            assert!(why.starts_with("a single line of 9 bytes is too much for the server"), "{why}");
            assert_eq!(attempt.next(), first);
        }
        assert_eq!(attempt.answered(Verdict::Stored), settled(1, Vec::new()));
        assert_eq!(attempt.next(), None);
    }

    #[test]
    fn a_failure_changes_nothing() {
        let text = lines(4);
        let mut attempt = Attempt::new(&text, 0..4);
        let named = Some(vec![NamedLine { number: 2, why: "x".to_owned() }]);
        attempt.answered(Verdict::Lines { named, why: "x".to_owned() });
        let rest = attempt.next();
        assert_eq!(rest, Some(Request { lines: "a v=0i 0\na v=2i 2\na v=3i 3\n".to_owned(), strict: true }));
        for verdict in [
            Verdict::Retry { why: String::new(), after: None },
            Verdict::NeedsAPerson { why: String::new() },
            Verdict::NotThisDatabase { why: String::new() },
            Verdict::TimedOut { why: String::new() },
        ] {
            assert_eq!(attempt.answered(verdict.clone()), Next::Again(verdict));
            assert_eq!(attempt.next(), rest);
        }
        let refused = vec![RefusedLine { line: 1, why: "x".to_owned() }];
        assert_eq!(attempt.answered(Verdict::Stored), Next::Settled { delivered: 3, refused });
        assert_eq!(attempt.next(), None);
    }
}
