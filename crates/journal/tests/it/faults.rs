//! Every operation of the disk fails in turn: once, three times, and until further notice.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::double::{Double, Effect, Failure, Fault, Op};
use journal::{Entry, Journal, JournalError, Limits, Loss, LossCause, Seq};

const DIR: &str = "/data/journal";
const LIMITS: Limits = Limits { max_bytes: 4 << 20, max_age: std::time::Duration::from_secs(3600) };

fn open(disk: &Double) -> Result<Journal, JournalError> {
    Ok(Journal::open(Arc::new(disk.clone()), Path::new(DIR), LIMITS, &["a", "b"])?.0)
}

fn entry(n: u64, len: usize) -> Entry {
    let mut payload = vec![0; len];
    fastrand::Rng::with_seed(n).fill(&mut payload);
    Entry { payload, lines: 1, span: (0, n.cast_signed()) }
}

/// What was acknowledged.
#[derive(Default)]
struct Acked {
    entries: Vec<Entry>,
    state: Option<Vec<u8>>,
    /// Appends that failed since the last that did not.
    failed: Vec<(Entry, Vec<u8>)>,
    errors: u64,
    /// Whether the disk may be full: then the oldest entries may go.
    full: bool,
}

impl Acked {
    fn append(&mut self, journal: &Journal, n: u64) {
        let (entry, state) = (entry(n, 3000 + n as usize % 5 * 14_000), vec![n as u8; 50]);
        match journal.append(std::slice::from_ref(&entry), &[("s", &state)], 0) {
            Ok(appended) => {
                self.entries.push(entry);
                self.state = Some(state);
                self.failed.clear();
                assert_eq!(appended.last, self.entries.len() as Seq);
                self.lose(&appended.losses);
            }
            Err(error) => {
                self.failed.push((entry, state));
                self.note(error);
            }
        }
    }

    fn lose(&self, losses: &[Loss]) {
        for loss in losses {
            assert!(self.full && loss.cause == LossCause::DiskFull, "{loss:?}");
            // Each has one line.
            assert_eq!(loss.lines, loss.entries);
        }
    }

    fn note(&mut self, error: JournalError) {
        assert!(matches!(error, JournalError::Io { .. }), "the disk is at fault, but this says: {error}");
        self.errors += 1;
    }

    fn read(&mut self, journal: &Journal) {
        let mut after = journal.stats().first - 1;
        loop {
            match journal.read(after, 100_000) {
                Err(error) => return self.note(error),
                Ok(read) => {
                    assert_eq!(read.damaged, [], "nothing is lost by a disk that fails and recovers");
                    if read.entries.is_empty() {
                        break;
                    }
                    for (seq, entry) in read.entries {
                        after += 1;
                        assert_eq!(seq, after);
                        assert!(self.entries[seq as usize - 1] == entry);
                    }
                }
            }
        }
        assert_eq!(after, self.entries.len() as Seq);
    }

    /// After a start: the last appends that failed may be there.
    fn reopened(&mut self, journal: &Journal) {
        let last = journal.stats().last as usize;
        if last > self.entries.len() {
            let read = journal.read(self.entries.len() as Seq, 1).unwrap();
            let (entry, state) = self.failed.iter().find(|(it, _)| *it == read.entries[0].1).unwrap();
            self.entries.push(entry.clone());
            self.state = Some(state.clone());
            assert_eq!(last, self.entries.len());
        }
        self.failed.clear();
        assert_eq!(journal.state("s").unwrap(), self.state);
    }
}

/// A bit of everything; returns how many calls failed.
fn live(disk: &Double, fault: Option<Fault>) -> u64 {
    let mut acked = Acked::default();
    if let Some(fault) = fault {
        acked.full = matches!(fault.effect, Effect::Fail(Failure::NoSpace) | Effect::Short(_));
        disk.fault(fault);
    }
    for life in 0..2 {
        let journal = loop {
            match open(disk) {
                Ok(journal) => break journal,
                Err(error) => {
                    acked.note(error);
                    disk.heal();
                }
            }
        };
        acked.reopened(&journal);
        for n in 0..6 {
            acked.append(&journal, life * 100 + n);
            if n % 3 == 2 {
                journal.advance("a", journal.stats().last);
                journal.advance("b", journal.stats().last.saturating_sub(5));
                match journal.maintain(0) {
                    Ok(losses) => acked.lose(&losses),
                    Err(error) => acked.note(error),
                }
                acked.read(&journal);
            }
        }
        // The disk is well again: so is the journal.
        disk.heal();
        let before = acked.errors;
        acked.read(&journal);
        acked.append(&journal, life * 100 + 90);
        journal.maintain(0).unwrap();
        acked.read(&journal);
        assert_eq!(acked.errors, before);
    }
    disk.crash(1);
    let journal = open(disk).unwrap();
    assert_eq!(journal.stats().last, acked.entries.len() as Seq);
    acked.read(&journal);
    assert_eq!(journal.state("s").unwrap(), acked.state);
    acked.errors
}

#[test]
fn whatever_fails_nothing_is_lost_and_the_journal_goes_on() {
    let well = Double::new();
    assert_eq!(live(&well, None), 0);
    let operations = well.operations();
    assert!(operations > 200, "{operations}");
    let (io, full) = (Effect::Fail(Failure::Io), Effect::Fail(Failure::NoSpace));
    let faults = [
        (io, 1),
        (io, 3),
        (io, u64::MAX),
        (full, 1),
        (full, u64::MAX),
        (Effect::Short(Failure::NoSpace), 1),
        (Effect::Fail(Failure::ReadOnly), u64::MAX),
    ];
    let (next, errors) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= operations {
                        break;
                    }
                    for (effect, times) in faults {
                        let disk = Double::new();
                        disk.seed(n);
                        let found = live(&disk, Some(Fault { times, ..Fault::nth(n, effect) }));
                        errors.fetch_add(found, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    // Else the faults hit nothing.
    assert!(errors.into_inner() > operations);
}

#[test]
fn a_full_disk_costs_the_oldest_entries_and_recovers() {
    let disk = Double::new();
    disk.set_space(Some(2 << 20));
    let journal = open(&disk).unwrap();
    let mut losses = Vec::new();
    for n in 0..200 {
        losses.extend(journal.append(&[entry(n, 30_000)], &[], 0).unwrap().losses);
        journal.advance("b", n + 1);
    }
    assert!(losses.iter().all(|it| it.reader == "a" && it.cause == LossCause::DiskFull), "{losses:?}");
    let stats = journal.stats();
    assert_eq!(losses.iter().map(|it| it.entries).sum::<u64>(), stats.first - 1);
    assert!(stats.first > 100 && stats.last == 200, "{stats:?}");
    assert_eq!(journal.read(0, 1).unwrap().entries[0].0, stats.first);

    // Not even that: it says so, and goes on when there is room.
    disk.set_space(Some(disk.used()));
    disk.fault(Fault::every(Op::Write, Effect::Fail(Failure::NoSpace)));
    let error = journal.append(&[entry(200, 30_000)], &[], 0).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(journal.append(&[entry(200, 30_000)], &[], 0).unwrap_err().is_disk_full());
    assert!(journal.stats().first < stats.last - 10, "no more goes in vain than once: {:?}", journal.stats());
    disk.heal();
    disk.set_space(None);
    let last = journal.append(&[entry(200, 30_000)], &[], 0).unwrap().last;
    assert_eq!(last, 201);
}
