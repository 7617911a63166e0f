//! What redb in one file and fjall cost, for 0004. Not part of the workspace: fjall is needed by nothing else.
//!
//! In a new package with fjall 3.1, redb 4.6 and fastrand 2, for each of redb, redb-two-phase, redb-quick-repair, fjall:
//! `cargo run --release -- DIR 2048 redb; cargo run --release -- DIR 2048 redb again`. The first fills and aborts, the
//! second opens, removes all but the last entry and gives room back.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition, WriteTransaction};

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");

enum Store {
    Redb(Database, String),
    Fjall(fjall::Database, Keyspace),
}

impl Store {
    fn open(dir: &Path, kind: &str) -> Self {
        if kind == "fjall" {
            let db = fjall::Database::builder(dir.join("fjall")).open().unwrap();
            let keyspace = db.keyspace("entries", KeyspaceCreateOptions::default).unwrap();
            return Self::Fjall(db, keyspace);
        }
        let db = Database::builder().set_cache_size(16 << 20).create(dir.join("redb")).unwrap();
        Self::Redb(db, kind.to_owned())
    }

    fn begin(db: &Database, kind: &str) -> WriteTransaction {
        let mut txn = db.begin_write().unwrap();
        txn.set_two_phase_commit(kind == "redb-two-phase");
        txn.set_quick_repair(kind == "redb-quick-repair");
        txn
    }

    fn append(&self, first: u64, entries: &[Vec<u8>]) {
        match self {
            Self::Redb(db, kind) => {
                let txn = Self::begin(db, kind);
                let mut table = txn.open_table(TABLE).unwrap();
                for (seq, entry) in (first..).zip(entries) {
                    table.insert(seq, entry.as_slice()).unwrap();
                }
                drop(table);
                txn.commit().unwrap();
            }
            Self::Fjall(db, keyspace) => {
                let mut batch = db.batch();
                for (seq, entry) in (first..).zip(entries) {
                    batch.insert(keyspace, seq.to_be_bytes(), entry.as_slice());
                }
                batch.commit().unwrap();
                db.persist(PersistMode::SyncData).unwrap();
            }
        }
    }

    fn remove_to(&self, end: u64) {
        match self {
            Self::Redb(db, kind) => {
                let txn = Self::begin(db, kind);
                txn.open_table(TABLE).unwrap().retain_in(..end, |_, _| false).unwrap();
                txn.commit().unwrap();
            }
            Self::Fjall(db, keyspace) => {
                (0..end).for_each(|seq| keyspace.remove(seq.to_be_bytes()).unwrap());
                db.persist(PersistMode::SyncData).unwrap();
            }
        }
    }

    fn give_back(&mut self) {
        match self {
            Self::Redb(db, _) => drop(db.compact().unwrap()),
            Self::Fjall(_, keyspace) => {
                keyspace.rotate_memtable_and_wait().unwrap();
                keyspace.major_compact().unwrap();
            }
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Redb(db, _) => db.begin_read().unwrap().open_table(TABLE).unwrap().len().unwrap(),
            Self::Fjall(_, keyspace) => keyspace.len().unwrap() as u64,
        }
    }
}

fn taken_mib(path: &Path) -> u64 {
    fn bytes(path: &Path) -> u64 {
        let about = std::fs::metadata(path).unwrap();
        if about.is_dir() {
            return std::fs::read_dir(path).unwrap().map(|it| bytes(&it.unwrap().path())).sum();
        }
        about.blocks() * 512
    }
    bytes(path) >> 20
}

fn entry(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    println!("{what}: p50 {:.2?}, p99 {:.2?}", at(500), at(990));
}

fn fill(dir: &Path, at: &Path, kind: &str, mib: u64) {
    let store = Store::open(at, kind);
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut seq, mut bytes) = (0, 0);
    while bytes < mib << 20 {
        let lens = [(); 8].map(|()| rng.usize(2_000..200_000));
        let entries: Vec<_> = lens.map(|len| entry(&mut rng, len)).into();
        bytes += lens.iter().sum::<usize>() as u64;
        store.append(seq, &entries);
        seq += 8;
    }
    println!("{kind}: {mib} MiB of entries take {} MiB", taken_mib(at));
    // Measured on a full store, by turns with the bare disk.
    let file = File::create(dir.join("bare")).unwrap();
    let (mut bare, mut appended) = (Vec::new(), Vec::new());
    for n in 0..1000 {
        let entries = [entry(&mut rng, 32 << 10)];
        bare.push(timed(|| {
            file.write_all_at(&entries[0], n * (32 << 10)).unwrap();
            file.sync_data().unwrap();
        }));
        appended.push(timed(|| store.append(seq, &entries)));
        seq += 1;
    }
    report("32 KiB, bare", &mut bare);
    report("32 KiB, store", &mut appended);
    std::fs::write(dir.join("seq"), seq.to_string()).unwrap();
    std::process::abort();
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (dir, mib, kind) = (PathBuf::from(&args[1]), args[2].parse().unwrap(), &args[3]);
    let at = dir.join(kind);
    if args.len() == 4 {
        std::fs::create_dir_all(&at).unwrap();
        fill(&dir, &at, kind, mib);
    }
    let seq: u64 = std::fs::read_to_string(dir.join("seq")).unwrap().parse().unwrap();
    let start = Instant::now();
    let mut store = Store::open(&at, kind);
    println!("open after the abort: {:.0?}", start.elapsed());
    assert_eq!(store.count(), seq);
    let removing = timed(|| store.remove_to(seq - 1));
    let giving = timed(|| store.give_back());
    println!("removed in {removing:.0?}, given back in {giving:.0?}: takes {} MiB", taken_mib(&at));
    drop(store);
    println!("closed: takes {} MiB", taken_mib(&at));
}
