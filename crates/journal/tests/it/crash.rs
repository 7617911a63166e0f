//! The journal against a plain model, on a disk that crashes at any operation and forgets what was not synced; and
//! the proof that the test bites: without any one of the syncs it fails.
//!
//! `KVMETRY_CRASHES` sets how many crashes there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk::double::{Double, Effect, Fault, Op};
use journal::{Entry, Journal, Limits, Loss, LossCause, Opened, Seq};

const DIR: &str = "/data/journal";
const READERS: [&str; 2] = ["fast", "slow"];
const LIMITS: Limits = Limits { max_bytes: 4 << 20, max_age: std::time::Duration::from_secs(3600) };
/// Crashes of one file system, one after the other.
const CRASHES_A_RUN: u64 = 25;

/// What a life of the process consists of, for mutations that hit one part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Run,
    Close,
}

/// A sync that is not done.
struct Mutation {
    what: &'static str,
    phase: Option<Phase>,
    fault: fn() -> Fault,
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        what: "a commit's sync",
        phase: Some(Phase::Run),
        fault: || Fault::every(Op::Sync, Effect::Ignore).on("/segment-").right_after(Op::Write),
    },
    Mutation {
        what: "the sync of a file that grew",
        phase: Some(Phase::Run),
        fault: || Fault::every(Op::Sync, Effect::Ignore).on("/segment-").right_after(Op::SetLen),
    },
    Mutation {
        what: "the syncs of a new file",
        phase: None,
        fault: || Fault::every(Op::Sync, Effect::Ignore).on("/spare"),
    },
    Mutation {
        what: "the sync of a new file's name",
        phase: None,
        fault: || Fault::every(Op::SyncDir, Effect::Ignore).on(DIR).right_after(Op::Rename),
    },
    Mutation {
        what: "the sync of a removal",
        phase: None,
        fault: || Fault::every(Op::SyncDir, Effect::Ignore).on(DIR).right_after(Op::RemoveFile),
    },
    Mutation {
        what: "the syncs of a repair",
        phase: Some(Phase::Open),
        fault: || Fault::every(Op::Sync, Effect::Ignore).on("/segment-"),
    },
    Mutation {
        what: "the syncs of a close",
        phase: Some(Phase::Close),
        fault: || Fault::every(Op::Sync, Effect::Ignore).on("/segment-"),
    },
];

type States = BTreeMap<String, Vec<u8>>;

/// What the journal must hold.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Seq, Entry>,
    last: Seq,
    states: States,
    /// What an append would have added that did not return.
    attempt: Option<(Vec<Entry>, States)>,
    readers: BTreeMap<&'static str, Reader>,
}

#[derive(Clone, Copy, Default)]
struct Reader {
    /// Where it must be at least after a crash.
    durable: Seq,
    /// Where it is.
    done: Seq,
}

struct Run {
    disk: Double,
    rng: fastrand::Rng,
    model: Model,
    mutation: Option<&'static Mutation>,
    now: i64,
}

/// A complaint; or the power went.
enum Stop {
    Wrong(String),
    Off,
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

fn ensure(right: bool, what: impl FnOnce() -> String) -> Result<(), Stop> {
    if right { Ok(()) } else { Err(Stop::Wrong(what())) }
}

impl Run {
    fn new(seed: u64, mutation: Option<&'static Mutation>) -> Self {
        let disk = Double::new();
        disk.seed(seed);
        let readers = READERS.iter().map(|it| (*it, Reader::default())).collect();
        let model = Model { readers, ..Model::default() };
        Self { disk, rng: fastrand::Rng::with_seed(seed), model, mutation, now: 0 }
    }

    /// Lives and crashes so many times; counts the crashes that came amid an operation.
    fn live(&mut self, crashes: u64, amid: &AtomicU64) -> Result<(), String> {
        for _ in 0..crashes {
            // Also in the middle of opening, and now and then not at all before the end.
            let fuse = if self.rng.u8(..8) == 0 { self.rng.u64(..40) } else { self.rng.u64(..600) };
            self.disk.fault(Fault::nth(fuse, Effect::PowerOff));
            match self.life() {
                Ok(()) => {}
                Err(Stop::Off) => {
                    amid.fetch_add(1, Ordering::Relaxed);
                }
                Err(Stop::Wrong(what)) => return Err(what),
            }
            self.disk.crash(self.rng.u64(..));
        }
        // The last crash counts too.
        match self.open() {
            Err(Stop::Wrong(what)) => Err(what),
            _ => Ok(()),
        }
    }

    fn life(&mut self) -> Result<(), Stop> {
        let mut journal = self.open()?;
        for _ in 0..self.rng.u32(1..60) {
            match self.rng.u8(..32) {
                0..16 => self.append(&journal)?,
                16..22 => self.advance(&journal),
                22..28 => self.maintain(&journal)?,
                28..31 => self.check(&journal)?,
                _ => {
                    self.close(journal)?;
                    journal = self.open()?;
                }
            }
        }
        if self.rng.bool() { self.close(journal) } else { Ok(()) }
    }

    /// Lets the mutation do harm in this phase.
    fn mutate(&self, phase: Phase) {
        if let Some(mutation) = self.mutation
            && mutation.phase.is_none_or(|it| it == phase)
        {
            self.disk.fault((mutation.fault)());
        } else if self.mutation.is_some() {
            self.disk.unfault(Effect::Ignore);
        }
    }

    /// An error is only right if the power is off.
    fn off<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Result<T, Stop> {
        result.map_err(|error| {
            if self.disk.is_off() { Stop::Off } else { Stop::Wrong(format!("without a fault: {error:#}")) }
        })
    }

    fn open(&mut self) -> Result<Journal, Stop> {
        self.mutate(Phase::Open);
        let opened = Journal::open(Arc::new(self.disk.clone()), Path::new(DIR), LIMITS, &READERS);
        let (journal, Opened { damage, losses, .. }) = self.off(opened)?;
        self.mutate(Phase::Run);
        ensure(damage.is_empty(), || format!("damage after a crash: {damage:?}"))?;
        let last = journal.stats().last;
        if let Some((entries, states)) = self.model.attempt.take() {
            // What did not return is there as a whole, or not at all.
            let came = if entries.is_empty() {
                states.iter().all(|(name, value)| journal.state(name).unwrap().as_ref() == Some(value))
            } else {
                last != self.model.last
            };
            if came {
                self.acknowledge(entries, states);
            }
        }
        ensure(last == self.model.last, || format!("ends at {last}, not at {}", self.model.last))?;
        self.lose(&journal, &losses, LossCause::Damaged)?;
        for (name, reader) in &mut self.model.readers {
            let cursor = journal.cursor(name);
            ensure((reader.durable..=reader.done).contains(&cursor), || {
                format!("{name} is at {cursor}, not from {} to {}", reader.durable, reader.done)
            })?;
            *reader = Reader { durable: cursor, done: cursor };
        }
        self.check(&journal)?;
        Ok(journal)
    }

    fn close(&mut self, journal: Journal) -> Result<(), Stop> {
        self.mutate(Phase::Close);
        drop(journal);
        if self.disk.is_off() { Err(Stop::Off) } else { Ok(()) }
    }

    fn append(&mut self, journal: &Journal) -> Result<(), Stop> {
        let rng = &mut self.rng;
        let entries: Vec<Entry> = (0..rng.usize(..4))
            .map(|_| {
                let len = if rng.u8(..10) == 0 { rng.usize(..60_000) } else { rng.usize(..3000) };
                let from = rng.i64(-100..100);
                let mut payload = vec![0; len];
                rng.fill(&mut payload);
                Entry { payload, lines: rng.u32(..100), span: (from, from + rng.i64(..50)) }
            })
            .collect();
        let states: States = (0..rng.usize(..3))
            .map(|_| (format!("s{}", rng.u8(..4)), vec![rng.u8(..); rng.usize(1..200)]))
            .collect();
        let given: Vec<(&str, &[u8])> = states.iter().map(|(name, value)| (&**name, &**value)).collect();
        self.now += 1_000_000_000;
        // Cursors as they are now come with it.
        let done: BTreeMap<_, _> = self.model.readers.iter().map(|(name, it)| (*name, it.done)).collect();
        let result = journal.append(&entries, &given, self.now);
        if result.is_err() {
            self.model.attempt = Some((entries.clone(), states.clone()));
        }
        let appended = self.off(result)?;
        let first = self.model.last + 1;
        self.acknowledge(entries, states);
        ensure((appended.first, appended.last) == (first, self.model.last), || format!("{appended:?}"))?;
        for (name, reader) in &mut self.model.readers {
            reader.durable = done[name];
        }
        self.lose(journal, &appended.losses, LossCause::Full)
    }

    fn acknowledge(&mut self, entries: Vec<Entry>, states: States) {
        for entry in entries {
            self.model.last += 1;
            self.model.entries.insert(self.model.last, entry);
        }
        self.model.states.extend(states);
    }

    fn advance(&mut self, journal: &Journal) {
        let name = if self.rng.u8(..5) == 0 { "slow" } else { "fast" };
        let Some(reader) = self.model.readers.get_mut(name) else { return };
        let done = self.rng.u64(reader.done..=self.model.last);
        reader.done = done;
        journal.advance(name, done);
    }

    fn maintain(&mut self, journal: &Journal) -> Result<(), Stop> {
        self.now += 1_000_000_000;
        let losses = self.off(journal.maintain(self.now))?;
        for reader in self.model.readers.values_mut() {
            reader.durable = reader.done;
        }
        self.lose(journal, &losses, LossCause::Full)
    }

    /// What readers are told that they lost must be what they lost.
    fn lose(&mut self, journal: &Journal, losses: &[Loss], cause: LossCause) -> Result<(), Stop> {
        for (name, reader) in &mut self.model.readers {
            let told: Vec<&Loss> = losses.iter().filter(|it| it.reader == *name).collect();
            let entries: u64 = told.iter().map(|it| it.entries).sum();
            if entries == 0 {
                continue;
            }
            // After a crash, from where its cursor was durable.
            let from = if cause == LossCause::Damaged { reader.durable } else { reader.done };
            let to = journal.cursor(name);
            ensure(told.iter().all(|it| it.cause == cause), || format!("{told:?}"))?;
            if cause == LossCause::Full {
                let lines: u64 =
                    self.model.entries.range(from + 1..=to).map(|(_, it)| u64::from(it.lines)).sum();
                let told_lines: u64 = told.iter().map(|it| it.lines).sum();
                ensure((entries, told_lines) == (to - from, lines), || {
                    format!("{name} lost {from} to {to}, {lines} lines, but was told {told:?}")
                })?;
            } else {
                ensure(entries <= to - from, || {
                    format!("{name} lost {from} to {to}, but was told {told:?}")
                })?;
            }
            reader.done = reader.done.max(to);
        }
        Ok(())
    }

    /// Everything from the oldest entry on is there, in order, and as it was appended.
    fn check(&mut self, journal: &Journal) -> Result<(), Stop> {
        let first = journal.stats().first;
        for (name, reader) in &self.model.readers {
            ensure(first <= reader.done + 1, || {
                format!("{name} is at {}, but {first} is the first", reader.done)
            })?;
        }
        let mut after = first - 1;
        loop {
            let max_bytes = self.rng.usize(..200_000);
            let read = self.off(journal.read(after, max_bytes))?;
            ensure(read.damaged.is_empty(), || format!("gaps after a crash: {:?}", read.damaged))?;
            for (seq, entry) in &read.entries {
                after += 1;
                ensure(*seq == after, || format!("{seq} comes after {}", after - 1))?;
                ensure(self.model.entries.get(seq) == Some(entry), || {
                    format!("entry {seq} is not what it was")
                })?;
            }
            ensure(read.through == after, || format!("through {} after {after}", read.through))?;
            if read.entries.is_empty() {
                break;
            }
        }
        ensure(after == self.model.last, || format!("read up to {after} of {}", self.model.last))?;
        for (name, value) in &self.model.states {
            let found = journal.state(name).map_err(|error| Stop::Wrong(error.to_string()))?;
            ensure(found.as_ref() == Some(value), || format!("state {name} is not what it was"))?;
        }
        self.model.entries = self.model.entries.split_off(&first);
        Ok(())
    }
}

/// Runs until so many crashes; the first complaint, with its seed.
fn crash(crashes: u64, mutation: Option<&'static Mutation>) -> Result<u64, String> {
    let runs = crashes.div_ceil(CRASHES_A_RUN);
    let (next, amid) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs {
                return Ok(());
            }
            if let Err(what) = Run::new(seed, mutation).live(CRASHES_A_RUN, &amid) {
                next.store(runs, Ordering::Relaxed);
                return Err(format!("seed {seed}: {what}"));
            }
        }
    };
    std::thread::scope(|scope| {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|it| it.join().unwrap())
    })?;
    Ok(amid.into_inner())
}

#[test]
fn nothing_acknowledged_is_lost_by_a_crash() {
    let crashes = std::env::var("KVMETRY_CRASHES").map_or(10_000, |it| it.parse().unwrap());
    let amid = crash(crashes, None).unwrap();
    assert!(amid > crashes / 2, "only {amid} of {crashes} crashes came amid an operation");
}

#[test]
fn without_any_one_sync_it_would_be() {
    for mutation in MUTATIONS {
        let found = crash(2000, Some(mutation));
        assert!(found.is_err(), "the test does not notice that {} is missing", mutation.what);
        // For whoever changes the test: what each one breaks.
        eprintln!("without {}: {}", mutation.what, found.unwrap_err());
    }
}
