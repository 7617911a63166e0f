//! What an append costs against the bare disk, how soon a large journal is open again after kill -9, and whether it
//! gives room back. `cargo bench -p journal`; numbers and reading: docs/decisions/0004.
//!
//! `KVMETRY_BENCH_DIR` is where to write (a folder on the disk in question; default: below the target folder),
//! `KVMETRY_BENCH_MIB` how large the journal grows (default 256).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench tells what it found, and fails by panicking"
)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::RealDisk;
use journal::{Entry, Journal, Limits};

/// Appends of each size; the 99th percentile has ten beyond it.
const APPENDS: usize = 1000;
/// The second between two calls of `maintain`, in appends: more of them than in life.
const MAINTAIN_EVERY: usize = 50;

fn main() {
    // `cargo test --benches` and nextest ask for a list; this has nothing to say then.
    if !std::env::args().any(|it| it == "--bench") {
        return;
    }
    let base = std::env::var_os("KVMETRY_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(base).unwrap();
    println!("append + fsync, {APPENDS} each, ms             p50    p90    p99    max   p99 against bare");
    for len in [4 << 10, 32 << 10, 128 << 10, 1 << 20] {
        append(dir.path(), len);
    }
    large(dir.path());
}

fn entry(len: usize, rng: &mut fastrand::Rng) -> Entry {
    let mut payload = vec![0; len];
    rng.fill(&mut payload);
    Entry { payload, lines: 1, span: (0, 0) }
}

/// By turns on the bare disk and through the journal, so that both see the same disk.
fn append(dir: &Path, len: usize) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let (journal, _) =
        Journal::open(Arc::new(RealDisk), &dir.path().join("journal"), Limits::default(), &["r"]).unwrap();
    let file = File::create(dir.path().join("bare")).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut bare, mut appended) = (Vec::new(), Vec::new());
    for n in 0..APPENDS {
        let entry = entry(len, &mut rng);
        bare.push(timed(|| {
            file.write_all_at(&entry.payload, (n * len) as u64).unwrap();
            file.sync_data().unwrap();
        }));
        let entries = [entry];
        appended.push(timed(|| drop(journal.append(&entries, &[], 0).unwrap())));
        if n % MAINTAIN_EVERY == 0 {
            journal.advance("r", journal.stats().last);
            journal.maintain(0).unwrap();
        }
    }
    let bare_p99 = report(&format!("{:5} KiB, bare", len >> 10), &mut bare, None);
    report(&format!("{:5} KiB, journal", len >> 10), &mut appended, Some(bare_p99));
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, times: &mut [Duration], bare_p99: Option<f64>) -> f64 {
    times.sort();
    let ms = |part: usize| times[(times.len() - 1) * part / 1000].as_secs_f64() * 1000.0;
    let against = bare_p99.map_or(String::new(), |it| format!("{:6.2}", ms(990) / it));
    println!("{what:40} {:7.2}{:7.2}{:7.2}{:7.2}   {against}", ms(500), ms(900), ms(990), ms(1000));
    ms(990)
}

fn large(dir: &Path) {
    let mib: u64 = std::env::var("KVMETRY_BENCH_MIB").map_or(256, |it| it.parse().unwrap());
    let limits = Limits { max_bytes: mib << 20, ..Limits::default() };
    let open = || Journal::open(Arc::new(RealDisk), dir, limits, &["r"]).unwrap();
    let (journal, _) = open();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut written = 0;
    let filling = timed(|| {
        let mut full = false;
        while !full {
            let entries: Vec<Entry> =
                (0..8).map(|_| entry(rng.usize(2_000..200_000), &mut rng.fork())).collect();
            written += entries.iter().map(|it| it.payload.len()).sum::<usize>();
            full = !journal.append(&entries, &[], 0).unwrap().losses.is_empty();
            full |= !journal.maintain(0).unwrap().is_empty();
        }
    });
    let stats = journal.stats();
    println!(
        "filled with {} MiB in {:.1} s: {} MiB of entries in {} MiB of {} files",
        written >> 20,
        filling.as_secs_f64(),
        stats.entry_bytes >> 20,
        stats.file_bytes >> 20,
        stats.segments
    );
    // As kill -9 leaves it: nothing is closed.
    std::mem::forget(journal);
    let mut reopened = None;
    let opening = timed(|| reopened = Some(open().0));
    let journal = reopened.unwrap();
    println!(
        "open after kill -9 with {} MiB: {:.0} ms",
        stats.file_bytes >> 20,
        opening.as_secs_f64() * 1000.0
    );
    let mut after = 0;
    let mut read = 0;
    let reading = timed(|| {
        while after < stats.last {
            let got = journal.read(after, 4 << 20).unwrap();
            assert!(got.damaged.is_empty());
            read += got.entries.iter().map(|(_, it)| it.payload.len()).sum::<usize>();
            after = got.through;
            journal.advance("r", after);
        }
    });
    println!("read {} MiB in {:.1} s", read >> 20, reading.as_secs_f64());
    let trimming = timed(|| drop(journal.maintain(0).unwrap()));
    drop(journal);
    let left: u64 = std::fs::read_dir(dir)
        .unwrap()
        .map(|it| it.unwrap().metadata().unwrap())
        .filter(std::fs::Metadata::is_file)
        .map(|it| it.len())
        .sum();
    println!("given back in {:.0} ms: {} KiB are left", trimming.as_secs_f64() * 1000.0, left >> 10);
}
