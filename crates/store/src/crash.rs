//! The store against loss of power and failing disks: what was applied and is still in the journal, or was flushed, is
//! there afterwards, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::util::display::array_value_to_string;
use disk::Disk;
use disk::double::{Double, Effect, Failure, Fault, Op};
use telemetry::lines::{Batch, Catalog, Precision, parse};

use crate::backup::restore;
use crate::memory::Times;
use crate::merge::{Rule, merge, times};
use crate::rollup::{self, BUCKETS, Give};
use crate::store::{Options, Store};
use crate::table::{Snapshot, sources};

const ALL: Times = (i64::MIN, i64::MAX);
const DAY_NS: i64 = 86_400_000_000_000;
const START: i64 = 20_781 * DAY_NS;
/// One of which the catalogue knows counters.
const TABLE: &str = "vm_devices";

fn batch(text: &str) -> Batch {
    let parsed = parse(text, Precision::Nanosecond, i64::MAX);
    Catalog::default().admit("db", parsed, false).expect("good lines").batch
}

/// What is applied, as line protocol; entry `n` is number `n + 1`.
type Journal = Vec<String>;
/// By the values of the tags and time, the fields.
type Rows = BTreeMap<(Vec<String>, i64), BTreeMap<String, String>>;

/// A counter, a float, a text and an integer; sometimes one tag more. Any of them may come first in a later entry.
fn random_entry(random: &mut fastrand::Rng) -> String {
    let mut lines = String::new();
    for _ in 0..random.usize(1..6) {
        let (vm, tick) = (random.u8(0..3), random.i64(0..40));
        let slot = if random.u8(0..8) == 0 { ",slot=s" } else { "" };
        let time = START + random.i64(0..2) * DAY_NS + tick * 90_000_000_000;
        // Halves: their sums are exact, in whatever order.
        let (counter, float) = (format!("rxbytes={}i", random.u16(..)), format!("heat={}.5", random.i8(..)));
        let fields = match random.u8(0..4) {
            0 => counter,
            1 => float,
            2 => format!("{counter},{float}"),
            _ => format!("note=\"w{}\"", random.u8(0..9)),
        };
        lines.push_str(&format!("{TABLE},name=vm{vm}{slot} {fields},n={}i {time}\n", random.u16(..)));
    }
    lines
}

fn expected(journal: &Journal) -> Rows {
    let mut rows = Rows::new();
    for line in journal.iter().flat_map(|it| it.lines()) {
        let mut parts = line.split(' ');
        let (series, fields, time) = (parts.next(), parts.next(), parts.next());
        let tags =
            series.expect("a series").split(',').filter_map(|it| Some(it.split_once('=')?.1.to_owned()));
        let row = rows.entry((tags.collect(), time.expect("a time").parse().expect("a number"))).or_default();
        for field in fields.expect("fields").split(',') {
            let (name, value) = field.split_once('=').expect("a field");
            row.insert(name.to_owned(), value.trim_matches('"').trim_end_matches('i').to_owned());
        }
    }
    rows
}

/// All rows of a snapshot, as a query would see them: pieces that are not merged must not share a point.
fn found(snapshot: &Snapshot, rule: Rule) -> Rows {
    let schema = snapshot.columns.resting_schema();
    let groups = snapshot.groups(ALL).expect("it can be read");
    let single = groups.single.into_iter().map(|it| vec![it]);
    let mut rows = Rows::new();
    for pieces in single.chain(groups.merged) {
        let sources = sources(&pieces, &schema, ALL, &[]).expect("sources");
        merge(&schema, sources, rule, |key, batch| {
            for (place, &time) in times(&batch)?.iter().enumerate() {
                let mut row = BTreeMap::new();
                for name in snapshot.columns.fields.keys() {
                    let column = batch.column_by_name(name).expect("a column");
                    if column.is_valid(place) {
                        row.insert(name.clone(), array_value_to_string(column, place)?);
                    }
                }
                let tags = key.iter().flatten().cloned().collect();
                let before = rows.insert((tags, time), row);
                assert!(before.is_none(), "{key:?} {time} is there twice");
            }
            Ok(())
        })
        .expect("it merges");
    }
    rows
}

fn snapshot(store: &Store, table: &str) -> Option<Snapshot> {
    store.inner.find("db", table).map(|it| it.snapshot().expect("a snapshot"))
}

/// The store holds what the journal says, and its roll-ups are those of its rows.
fn check(store: &Store, journal: &Journal) -> Result<(), String> {
    let Some(raw) = snapshot(store, TABLE) else {
        return if journal.is_empty() { Ok(()) } else { Err("no table".to_owned()) };
    };
    let (found_rows, expected_rows) = (found(&raw, Rule::Fields), expected(journal));
    if found_rows != expected_rows {
        return Err(format!("{} rows are there, of {}", found_rows.len(), expected_rows.len()));
    }
    let table = store.inner.find("db", TABLE).expect("it is there");
    let live = table.live_rollups(&raw, &[], i64::MIN, usize::MAX).expect("roll-ups");
    let whole = Snapshot {
        files: Arc::default(),
        carry: None,
        mark: None,
        chunks: all_chunks(journal),
        ..raw.clone()
    };
    let carry = rollup::rebuild(TABLE, &whole, usize::MAX).expect("nothing");
    let anew = rollup::advance(TABLE, &carry, &whole, i64::MIN, Give::All, i64::MAX, usize::MAX);
    let anew = anew.expect("roll-ups").rows;
    for ((bucket, live), anew) in BUCKETS.iter().zip(live).zip(anew) {
        let name = &format!("{TABLE}{}", bucket.suffix);
        let mut rolled = snapshot(store, name).expect("a table of roll-ups");
        rolled.columns = rollup::columns(TABLE, &raw.columns);
        let expect = Snapshot {
            files: Arc::default(),
            chunks: anew.into_iter().map(Arc::new).collect(),
            ..rolled.clone()
        };
        rolled.chunks.extend(live);
        let (rolled, expect) = (found(&rolled, Rule::Rows), found(&expect, Rule::Rows));
        if rolled != expect {
            let missing: Vec<_> = expect.iter().filter(|it| rolled.get(it.0) != Some(it.1)).collect();
            let wrong: Vec<_> = rolled.iter().filter(|it| expect.get(it.0) != Some(it.1)).collect();
            return Err(format!("{name}: missing {missing:#?}, wrong {wrong:#?}"));
        }
    }
    Ok(())
}

fn all_chunks(journal: &Journal) -> Vec<Arc<crate::memory::Chunk>> {
    let mut memory = crate::memory::Memory::new(&Default::default());
    for text in journal {
        memory.append(&batch(text).tables[0]).expect("it takes them");
    }
    memory.show().expect("chunks")
}

fn open(disk: &Double, journal: &Journal) -> Result<Store, String> {
    open_with(disk, journal, Options::default())
}

fn open_with(disk: &Double, journal: &Journal, options: Options) -> Result<Store, String> {
    let options = Options { retention: Arc::new(|_, _| Duration::MAX), ..options };
    let opened = Store::open(Arc::new(disk.clone()) as Arc<dyn Disk>, Path::new("/store"), options);
    let (store, complaints) = opened.map_err(|error| format!("{:?}", error))?;
    if !complaints.is_empty() {
        return Err(complaints.join(", "));
    }
    if store.cursor() > journal.len() as u64 {
        return Err("the cursor is beyond the journal".to_owned());
    }
    for (seq, entry) in (1..).zip(journal).skip(store.cursor() as usize) {
        store.apply(seq, "db", &batch(entry)).map_err(|error| error.to_string())?;
    }
    Ok(store)
}

/// A history with many crashes: what is wrong at the end, if anything, and how many crashes it had.
fn history(seed: u64, crashes: usize, lie: Option<&Fault>) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = Double::new();
    let mut journal = Journal::new();
    for crash in 0..crashes {
        let at = |what: String| format!("seed {seed}, crash {crash}: {what}");
        if let Some(lie) = lie {
            disk.fault(lie.clone());
        }
        let store = open(&disk, &journal).map_err(at)?;
        check(&store, &journal).map_err(at)?;
        disk.fault(Fault::nth(random.u64(0..120), Effect::PowerOff));
        while !disk.is_off() {
            match random.u8(0..6) {
                0 | 1 => drop(store.flush(START + random.i64(0..3) * DAY_NS)),
                2 => drop(store.compact(START + random.i64(0..3) * DAY_NS)),
                _ => {
                    let entry = random_entry(&mut random);
                    journal.push(entry);
                    let seq = journal.len() as u64;
                    store.apply(seq, "db", &batch(&journal[journal.len() - 1])).expect("it takes them");
                }
            }
        }
        drop(store);
        disk.crash(random.u64(..));
    }
    let store = open(&disk, &journal)?;
    check(&store, &journal)
}

/// `KVMETRY_CRASHES` sets how many there are.
fn crashes() -> u64 {
    std::env::var("KVMETRY_CRASHES").ok().and_then(|it| it.parse().ok()).unwrap_or(1_000)
}

#[test]
fn nothing_is_lost_or_doubled_by_crashes() {
    for seed in 0..crashes() / 10 {
        history(seed, 10, None).unwrap_or_else(|what| panic!("{what}"));
    }
}

/// Each sync that the store makes is needed: without it, a crash loses something.
#[test]
fn the_crash_test_notices_each_sync_that_is_missing() {
    let lies = [
        ("contents of a file", Fault::every(Op::Sync, Effect::Ignore).on(".parquet")),
        ("name of a file", Fault::every(Op::SyncDir, Effect::Ignore).on("day=")),
        ("names of folders", Fault::every(Op::CreateDirAll, Effect::Ignore).on("db")),
        ("contents of the manifest", Fault::every(Op::Sync, Effect::Ignore).on("manifest")),
        ("name of the manifest", Fault::every(Op::SyncDir, Effect::Ignore).right_after(Op::Rename)),
    ];
    for (what, lie) in lies {
        let noticed = (0..200).any(|seed| history(seed, 6, Some(&lie)).is_err());
        assert!(noticed, "without syncing the {what} nothing was lost: is it needed?");
    }
}

/// The power goes at each operation of a backup: what is a store in its folder then is all of the store, and the store
/// itself has lost nothing. Likewise of a restore.
#[test]
fn a_backup_is_whole_or_none() {
    let (target, again) = (Path::new("/backup"), Path::new("/again"));
    let whole = |disk: &Double, root: &Path, journal: &Journal| {
        let options = Options { retention: Arc::new(|_, _| Duration::MAX), ..Options::default() };
        let (store, complaints) =
            Store::open(Arc::new(disk.clone()) as Arc<dyn Disk>, root, options).expect("it opens");
        assert!(complaints.is_empty(), "{complaints:?}");
        assert_eq!(store.cursor(), journal.len() as u64);
        check(&store, journal)
    };
    let mut begun = 0;
    for nth in 0.. {
        let disk = Double::new();
        let dyn_disk: Arc<dyn Disk> = Arc::new(disk.clone());
        // The same history each time, so that the power goes at each of its operations.
        let mut random = fastrand::Rng::with_seed(0);
        let mut journal = Journal::new();
        let store = open(&disk, &journal).expect("it opens");
        for step in 0..3 {
            journal.push(random_entry(&mut random));
            store.apply(journal.len() as u64, "db", &batch(&journal[step])).expect("it takes them");
            if step == 0 {
                store.flush(START).expect("it flushes");
            }
        }
        disk.fault(Fault::nth(nth, Effect::PowerOff));
        let made = store.backup(target, START);
        let restored = made.is_ok().then(|| restore(&dyn_disk, target, again));
        let ended = restored.as_ref().is_some_and(|it| it.is_ok());
        drop(store);
        disk.crash(nth);
        if made.is_ok() || disk.open_to_read(&target.join("manifest.json")).is_ok() {
            whole(&disk, target, &journal).unwrap_or_else(|what| panic!("operation {nth}: {what}"));
            begun += 1;
        }
        if disk.open_to_read(&again.join("manifest.json")).is_ok() {
            whole(&disk, again, &journal).unwrap_or_else(|what| panic!("operation {nth}: {what}"));
        } else {
            assert!(!ended, "operation {nth}: what was restored is gone");
        }
        let store = open(&disk, &journal).unwrap_or_else(|what| panic!("operation {nth}: {what}"));
        check(&store, &journal).unwrap_or_else(|what| panic!("operation {nth}: {what}"));
        if ended {
            assert!(nth > 60 && begun > 10, "only {nth} operations were tried, {begun} behind the backup");
            return;
        }
    }
}

#[test]
fn each_operation_may_fail_with_eio() {
    each_operation_may_fail(0, Effect::Fail(Failure::Io));
}

#[test]
fn each_operation_may_fail_for_want_of_space() {
    each_operation_may_fail(1, Effect::Fail(Failure::NoSpace));
}

#[test]
fn each_operation_may_fail_on_a_read_only_disk() {
    each_operation_may_fail(2, Effect::Fail(Failure::ReadOnly));
}

#[test]
fn each_operation_may_be_cut_short() {
    each_operation_may_fail(3, Effect::Short(Failure::NoSpace));
}

/// Each fourth operation from this one on fails once, in a history of its own; then all goes on, and a crash changes
/// nothing. The four tests are one, in pieces that run beside each other.
fn each_operation_may_fail(first: u64, effect: Effect) {
    let run = |store: &Store, journal: &mut Journal, random: &mut fastrand::Rng| {
        for step in 0..9 {
            match step % 4 {
                2 => drop(store.flush(START)),
                3 if step > 4 => drop(store.compact(START + 2 * DAY_NS)),
                _ => {
                    journal.push(random_entry(random));
                    let seq = journal.len() as u64;
                    store.apply(seq, "db", &batch(&journal[journal.len() - 1])).expect("it takes them");
                }
            }
        }
    };
    let mut operations = 1;
    let mut nth = first;
    while nth < operations.max(first + 1) {
        let disk = Double::new();
        let mut random = fastrand::Rng::with_seed(nth);
        let mut journal = Journal::new();
        let store = open(&disk, &journal).expect("it opens");
        let before = disk.operations();
        disk.fault(Fault::nth(nth, effect));
        run(&store, &mut journal, &mut random);
        operations = operations.max(disk.operations() - before);
        disk.heal();
        let context = format!("operation {nth}, {effect:?}");
        check(&store, &journal).unwrap_or_else(|what| panic!("{context}: {what}"));
        store.flush(START).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        journal.push(random_entry(&mut random));
        let seq = journal.len() as u64;
        store.apply(seq, "db", &batch(&journal[journal.len() - 1])).expect("it takes them");
        store.flush(START).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert_eq!(unborn_files(&disk, Path::new("/store")), Vec::<PathBuf>::new(), "{context}");
        drop(store);
        disk.crash(nth);
        let store = open(&disk, &journal).unwrap_or_else(|what| panic!("{context}: {what}"));
        check(&store, &journal).unwrap_or_else(|what| panic!("{context}, after a crash: {what}"));
        nth += 4;
    }
    assert!(operations > 100, "only {operations} operations were tried");
}

/// Files below a folder that were written and do not count.
fn unborn_files(disk: &Double, dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in disk.list(dir).expect("a folder") {
        if entry.is_dir {
            found.extend(unborn_files(disk, &entry.path));
        } else if entry.path.extension().is_some_and(|it| it == "new") {
            found.push(entry.path);
        }
    }
    found
}

/// Below `min_free` the oldest rows in memory go. They are read again from the journal, also those that came meanwhile,
/// and a restart in between changes nothing.
#[test]
fn rows_without_room_come_back_from_the_journal() {
    const SHORT: Option<u64> = Some(1 << 20);
    let options = Options { min_free: Some(2 << 20), memory: 96 << 10, ..Options::default() };
    for is_restarted in [false, true] {
        let disk = Double::new();
        let mut random = fastrand::Rng::with_seed(7);
        let mut journal = Journal::new();
        let mut store = open_with(&disk, &journal, options.clone()).expect("it opens");
        let write = |store: &Store, journal: &mut Journal, random: &mut fastrand::Rng| {
            journal.push(random_entry(random));
            let seq = journal.len() as u64;
            store.apply(seq, "db", &batch(&journal[journal.len() - 1])).expect("it takes them");
            store.maintain(START, 0).expect("it goes on")
        };
        (0..50).for_each(|_| drop(write(&store, &mut journal, &mut random)));
        let cursor = store.flush(START).expect("it flushes").cursor;
        assert_eq!(cursor, 50);
        disk.set_space(SHORT);
        let mut dropped = 0;
        while dropped < 3_000 {
            let done = write(&store, &mut journal, &mut random);
            dropped += done.dropped_rows;
            assert_eq!(done.cursor, cursor, "what was given up is still the journal's to keep");
        }
        assert!(store.stats().memory_bytes <= options.memory);
        assert!(!store.wants_reading().expect("it tells"), "there is no room yet");
        check(&store, &journal).expect_err("something is missing");
        disk.set_space(None);
        assert_eq!(store.flush(START).expect("it may").cursor, cursor, "not with a gap");
        disk.fault(Fault::every(Op::Write, Effect::Fail(Failure::ReadOnly)));
        store.wants_reading().expect_err("there is room, and nothing can be written");
        disk.heal();
        if is_restarted {
            store = open_with(&disk, &journal, options.clone()).expect("it opens");
        } else {
            assert!(store.wants_reading().expect("it tells"));
            let mut after = store.read_again();
            assert_eq!(after, cursor);
            loop {
                for entry in &journal[after as usize..] {
                    after += 1;
                    store.apply_read(after, "db", &batch(entry)).expect("it takes them");
                    store.maintain(START, 0).expect("it goes on");
                }
                if !after.is_multiple_of(7) {
                    write(&store, &mut journal, &mut random);
                    assert!(!store.caught_up(after), "one has come meanwhile");
                } else if store.caught_up(after) {
                    break;
                }
            }
        }
        write(&store, &mut journal, &mut random);
        check(&store, &journal).unwrap_or_else(|what| panic!("{what}"));
        store.flush(START).expect("it flushes");
        assert_eq!(store.cursor(), journal.len() as u64);
        check(&store, &journal).unwrap_or_else(|what| panic!("{what}"));
    }
}

/// One series whose clock is two hours ahead: the others' points are no later for it, before and after a restart.
#[test]
fn a_clock_that_is_ahead_makes_no_others_late() {
    const MINUTE_NS: i64 = 60_000_000_000;
    let (disk, mut journal) = (Double::new(), Journal::new());
    let mut store = open(&disk, &journal).expect("it opens");
    for minute in 0..12 {
        let now = START + minute * MINUTE_NS;
        let line = |vm: &str, time: i64| format!("{TABLE},name={vm} n={minute}i {time}\n");
        let ahead = line("ahead", now + 120 * MINUTE_NS);
        journal.push([ahead, line("a", now), line("b", now + 1)].concat());
        store.apply(journal.len() as u64, "db", &batch(&journal[journal.len() - 1])).expect("it takes them");
        store.flush(now + 2).expect("it flushes");
        if minute == 6 {
            store = open(&disk, &journal).expect("it opens");
        }
    }
    check(&store, &journal).unwrap_or_else(|what| panic!("{what}"));
    let files = snapshot(&store, TABLE).expect("it is there").files;
    assert_eq!(files.len(), 12);
    for file in files.iter() {
        assert_eq!(file.entry.late, None, "{:?}", file.entry);
    }
}
