//! The open files of segments; and what is done where one fails: it is opened anew, then searched, and what is whole in it
//! is read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::frame::{Header, Totals};
use crate::segment::{Fault, Handle};
use crate::{Gap, Journal, JournalError, MAX_OPEN, Segment, Seq, TRIES, lock};

#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) open: Vec<OpenFile>,
    /// Files whose last commit was not whole: found at the opening, which opens each.
    pub(super) cut_off: Vec<PathBuf>,
}

impl Files {
    /// Beyond the limit, closes the one that was used longest ago.
    pub(super) fn close_one_idle(&mut self) {
        let idle = |it: &OpenFile| it.handle.as_ref().is_none_or(|it| Arc::strong_count(it) == 1);
        if self.open.len() > MAX_OPEN + 1
            && let Some(at) = self.open.iter().position(|it| it.scan.is_none() && idle(it))
        {
            self.open.remove(at);
        }
    }
}

#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) serial: u64,
    /// None if it could not be opened.
    pub(super) handle: Option<Arc<Handle>>,
    /// It failed: to be closed and opened anew when nobody uses it. Never before, as two handles that write to one
    /// file would ruin it.
    pub(super) failed: bool,
    /// Stands in for the handle, for the entries up to this one.
    pub(super) scan: Option<(Seq, Arc<Handle>)>,
}

impl Journal {
    /// Asks a segment's file something. On a fault the file is opened anew and asked again; then it is searched,
    /// and what is found there counts.
    pub(super) fn with<T>(
        &self,
        segment: &Segment,
        doing: &'static str,
        mut ask: impl FnMut(&Handle) -> Result<T, Fault>,
    ) -> Result<T, JournalError> {
        let mut tries = 0;
        loop {
            let fault = match self.handle(segment).and_then(|handle| ask(&handle)) {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            tries += 1;
            self.failed(segment.serial);
            if tries > TRIES || self.is_missing(segment, &fault) {
                return Err(JournalError::fault(doing, &segment.path, fault));
            }
            if tries == TRIES {
                let why = match fault {
                    Fault::Io(error) => error.to_string(),
                    Fault::Broken(what) => what,
                };
                self.search(segment, why)
                    .map_err(|fault| JournalError::fault("search", &segment.path, fault))?;
            }
        }
    }

    fn is_missing(&self, segment: &Segment, fault: &Fault) -> bool {
        matches!(fault, Fault::Io(error) if error.kind() == io::ErrorKind::NotFound) && self.is_gone(segment)
    }

    /// The open file of a segment.
    fn handle(&self, segment: &Segment) -> Result<Arc<Handle>, Fault> {
        let ends = {
            let shared = lock(&self.shared);
            let index = shared.segments.iter().position(|it| it.serial == segment.serial);
            index.map_or(0, |it| shared.last_of(it))
        };
        let mut files = lock(&self.files);
        if let Some(at) = files.open.iter().position(|it| it.serial == segment.serial) {
            // The last one used stands last.
            let mut file = files.open.remove(at);
            if file.failed && file.handle.as_ref().is_none_or(|it| Arc::strong_count(it) == 1) {
                file.handle = None;
                file.failed = false;
            }
            let scan = file.scan.clone();
            let handle = file.handle.clone();
            files.open.push(file);
            match (scan, handle) {
                (Some((covers, scan)), _) if covers >= ends => return Ok(scan),
                (Some((_, scan)), _) => {
                    drop(files);
                    let why = scan.damage().unwrap_or_default().to_owned();
                    return self.search(segment, why);
                }
                (None, Some(handle)) => return Ok(handle),
                (None, None) => {}
            }
        }
        let handle = Arc::new(Handle::open(&*self.disk, &segment.path)?);
        if handle.is_cut_off() {
            files.cut_off.push(segment.path.clone());
        }
        match files.open.iter_mut().find(|it| it.serial == segment.serial) {
            Some(file) => file.handle = Some(handle.clone()),
            None => files.open.push(OpenFile {
                serial: segment.serial,
                handle: Some(handle.clone()),
                failed: false,
                scan: None,
            }),
        }
        files.close_one_idle();
        Ok(handle)
    }

    /// The file is to be opened anew.
    pub(super) fn failed(&self, serial: u64) {
        if let Some(file) = lock(&self.files).open.iter_mut().find(|it| it.serial == serial) {
            file.failed = true;
        }
    }

    /// Searches a damaged file; from now on what is found there counts.
    fn search(&self, segment: &Segment, why: String) -> Result<Arc<Handle>, Fault> {
        let ends = lock(&self.shared).last;
        let scan = Arc::new(Handle::scan(&*self.disk, &segment.path, why.clone())?);
        let mut files = lock(&self.files);
        match files.open.iter_mut().find(|it| it.serial == segment.serial) {
            Some(file) => file.scan = Some((ends, scan.clone())),
            None => files.open.push(OpenFile {
                serial: segment.serial,
                handle: None,
                failed: false,
                scan: Some((ends, scan.clone())),
            }),
        }
        drop(files);
        if let Some(it) = lock(&self.shared).segments.iter_mut().find(|it| it.serial == segment.serial) {
            it.damage = Some(why);
        }
        Ok(scan)
    }

    /// Forgets a file; it is closed when the last who reads it is done.
    pub(super) fn close(&self, serial: u64) {
        lock(&self.files).open.retain(|it| it.serial != serial);
    }

    /// Closes segments that are written no more, which writes: then opening them needs no repair.
    pub(super) fn close_idle(&self) {
        let mut files = lock(&self.files);
        files.open.retain(|it| {
            it.scan.is_some()
                || !it.handle.as_ref().is_some_and(|it| it.is_written() && Arc::strong_count(it) == 1)
        });
    }
}

/// Entries as they are met, and what is missing between them.
pub(super) struct Walk {
    pub(super) next: Seq,
    totals: Option<Totals>,
    span_end: Option<i64>,
    pub(super) gaps: Vec<Gap>,
}

impl Walk {
    pub(super) fn new(next: Seq, totals: Option<Totals>) -> Self {
        Self { next, totals, span_end: None, gaps: Vec::new() }
    }

    /// Before a damaged file is read on: what the entry before tells, if nothing else did.
    pub(super) fn look_back(&mut self, handle: &Handle) -> Result<(), Fault> {
        if self.totals.is_none() && handle.damage().is_some() {
            let before = self.next - 1;
            handle.walk(before, before, &mut |header, _| {
                (self.totals, self.span_end) = (Some(header.totals()), Some(header.span.1));
                false
            })?;
        }
        Ok(())
    }

    pub(super) fn meet(&mut self, header: &Header) {
        if header.seq > self.next {
            self.gap(header.seq - 1, header.totals_before().lines, Some(header.span.0));
        }
        self.next = header.seq + 1;
        self.totals = Some(header.totals());
        self.span_end = Some(header.span.1);
    }

    pub(super) fn end(&mut self, last: Seq, totals: Option<Totals>) {
        if last >= self.next {
            let lines = totals.or(self.totals).map_or(0, |it| it.lines);
            self.gap(last, lines, None);
            self.next = last + 1;
        }
    }

    pub(super) fn skip_to(&mut self, next: Seq) {
        if next > self.next {
            *self = Self { gaps: std::mem::take(&mut self.gaps), ..Self::new(next, None) };
        }
    }

    fn gap(&mut self, last: Seq, lines_before_next: u64, next_begins: Option<i64>) {
        let lines = self.totals.map_or(0, |it| lines_before_next.saturating_sub(it.lines));
        let span = match (self.span_end, next_begins) {
            (Some(from), Some(to)) => (from.min(to), to),
            (Some(it), None) | (None, Some(it)) => (it, it),
            (None, None) => (0, 0),
        };
        self.gaps.push(Gap { first: self.next, last, lines, span });
    }
}
