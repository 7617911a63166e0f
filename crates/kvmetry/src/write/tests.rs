//! Writes through a real journal, on a disk that fails or hangs as told.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use disk::{Disk, DiskFile, RealDisk, Space};
use journal::Limits;

use super::*;
use crate::clock::SystemClock;
use crate::logging::log_of_this_thread;

const CLOSE: Duration = Duration::from_secs(60);

/// The system's disk, until it is told otherwise.
#[derive(Debug, Default)]
struct Faulty {
    /// Every sync of a file fails: the disk is full.
    full: Arc<AtomicBool>,
    /// Every sync waits until it is open.
    gate: Arc<Gate>,
    syncs: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Box<dyn DiskFile>,
    full: Arc<AtomicBool>,
    gate: Arc<Gate>,
    syncs: Arc<AtomicUsize>,
}

impl Faulty {
    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let (full, gate, syncs) = (Arc::clone(&self.full), Arc::clone(&self.gate), Arc::clone(&self.syncs));
        Box::new(FaultyFile { file, full, gate, syncs })
    }
}

impl Disk for Faulty {
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path).map(|file| self.wrap(file))
    }
    fn create_new(&self, path: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        RealDisk.create_new(path).map(|file| self.wrap(file))
    }
    fn open_to_read(&self, path: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        RealDisk.open_to_read(path).map(|file| self.wrap(file))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.hard_link(from, to)
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove_file(path)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.sync_dir(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<disk::Entry>> {
        RealDisk.list(path)
    }
    fn space(&self, path: &Path) -> std::io::Result<Space> {
        RealDisk.space(path)
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.gate.pass();
        if self.full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync()
    }
}

/// What was applied, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Seq, String, u32)>>>);

impl Applied for Seen {
    fn apply(&mut self, seq: Seq, database: &str, batch: Batch) {
        self.0.lock().unwrap().push((seq, database.to_owned(), batch.lines));
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    full: Arc<AtomicBool>,
    gate: Arc<Gate>,
    syncs: Arc<AtomicUsize>,
    journal: Arc<Journal>,
    losses: Arc<Losses>,
    seen: Seen,
    writer: Writer,
}

fn open(folder: tempfile::TempDir) -> Fixture {
    let faulty = Faulty::default();
    let (full, gate, syncs) = (Arc::clone(&faulty.full), Arc::clone(&faulty.gate), Arc::clone(&faulty.syncs));
    let journal = Journal::open(Arc::new(faulty), folder.path(), Limits::default(), &["reader"]).unwrap().0;
    let (journal, seen) = (Arc::new(journal), Seen::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let losses = Arc::new(Losses::new(Arc::clone(&clock)));
    let applied: Box<dyn Applied> = Box::new(seen.clone());
    let writer = Writer::start(Setup {
        journal: Arc::clone(&journal),
        applied: Some(applied),
        known: Catalog::default(),
        retentions: Arc::default(),
        losses: Arc::clone(&losses),
        clock: Arc::clone(&clock),
    })
    .unwrap();
    Fixture { folder, full, gate, syncs, journal, losses, seen, writer }
}

fn fixture() -> Fixture {
    open(tempfile::tempdir().unwrap())
}

impl Fixture {
    /// All entries.
    fn entries(&self) -> Vec<entry::Lines> {
        let read = self.journal.read(0, usize::MAX).unwrap();
        read.entries.iter().map(|(_, entry)| entry::decode(&entry.payload).unwrap()).collect()
    }

    async fn write(&self, database: &str, body: &str) -> Result<Written, WriteError> {
        self.writer.write(database, body.to_owned(), Precision::Auto, true).await
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_in_the_journal_and_in_memory_in_one_order() {
    let fixture = fixture();
    let body = "a,t=1 v=1i 1700000000\nbad\n# a comment\nb v=2 1700000001";
    let written = fixture.write("one", body).await.unwrap();
    assert_eq!((written.lines, written.errors.len()), (2, 1));
    assert_eq!(written.errors[0].line_number, 2);
    fixture.write("two", "c v=t 1700000002\n").await.unwrap();
    let lines = |database: &str, text: &str| entry::Lines { database: database.into(), text: text.into() };
    let expect = [
        lines("one", "a,t=1 v=1i 1700000000000000000\nb v=2 1700000001000000000\n"),
        lines("two", "c v=t 1700000002000000000\n"),
    ];
    assert_eq!(fixture.entries(), expect);
    assert_eq!(*fixture.seen.0.lock().unwrap(), [(1, "one".to_owned(), 2), (2, "two".to_owned(), 1)]);
    assert_eq!(*fixture.writer.last().borrow(), 2);
    let read = fixture.journal.read(0, usize::MAX).unwrap();
    let s = 1_000_000_000;
    assert_eq!(
        (read.entries[0].1.lines, read.entries[0].1.span),
        (2, (1_700_000_000 * s, 1_700_000_001 * s))
    );
}

#[tokio::test]
async fn a_write_without_a_good_line_leaves_no_entry() {
    let fixture = fixture();
    let written = fixture.write("one", "bad\n").await.unwrap();
    assert_eq!((written.lines, written.errors.len()), (0, 1));
    for (body, partial, part) in [
        (&b"a v=1\nbad\n"[..], false, "1 lines are bad"),
        (b"\n", true, "incoming write was empty"),
        (b"a v=\"\xff\" 1\n", true, "not UTF-8 from byte 5 on"),
    ] {
        let error = fixture.writer.write("one", body, Precision::Auto, partial).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.is_retryable());
    }
    assert!(fixture.writer.close(CLOSE).await);
    assert!(fixture.entries().is_empty() && fixture.seen.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_schema_survives_with_the_lines_that_made_it() {
    let fixture = fixture();
    fixture.write("one", "a v=1i 1700000000\n").await.unwrap();
    assert!(fixture.writer.close(CLOSE).await);
    assert!(matches!(fixture.write("one", "a v=2i 1700000001\n").await, Err(WriteError::Ended)));
    let Fixture { folder, journal, writer, .. } = fixture;
    drop((journal, writer));
    let fixture = open(folder);
    assert_eq!(*fixture.writer.last().borrow(), 1);
    let written = fixture.write("one", "a v=2.5 1700000001\na v=3i 1700000002\n").await.unwrap();
    assert_eq!((written.lines, written.errors.len()), (1, 1));
    assert!(written.errors[0].message.contains("invalid column type for column 'v'"), "{written:?}");
    assert_eq!(fixture.seen.0.lock().unwrap()[0].0, 2, "numbers go on");
}

#[tokio::test]
async fn writes_that_wait_share_one_append() {
    let fixture = fixture();
    fixture.write("one", "a v=0i 1700000000\n").await.unwrap();
    let alone = fixture.syncs.load(Ordering::SeqCst);
    fixture.write("one", "a v=0i 1700000000\n").await.unwrap();
    let one_append = fixture.syncs.load(Ordering::SeqCst) - alone;
    assert!(one_append > 0, "an append is synced");
    let before = fixture.syncs.load(Ordering::SeqCst);
    fixture.gate.set(true);
    let writes: Vec<_> = (0..100)
        .map(|n| {
            let (writer, body) = (fixture.writer.clone(), format!("a v={n}i {n}\n"));
            tokio::spawn(async move { writer.write("one", body, Precision::Nanosecond, true).await })
        })
        .collect();
    // All are admitted: one is on its way to the disk, the others wait.
    while MAX_WAITING_BYTES / UNIT - fixture.writer.shared.room.available_permits() < 100 {
        tokio::task::yield_now().await;
    }
    assert!(writes.iter().all(|write| !write.is_finished()), "none is acknowledged before it is durable");
    fixture.gate.set(false);
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let appends = (fixture.syncs.load(Ordering::SeqCst) - before) / one_append;
    assert!((1..=5).contains(&appends), "{appends} appends");
    assert_eq!(fixture.entries().len(), 102);
    let seqs: Vec<_> = fixture.seen.0.lock().unwrap().iter().map(|(seq, ..)| *seq).collect();
    assert_eq!(seqs, (1..=102).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_a_failed_append_nothing_is_left() {
    let fixture = fixture();
    fixture.write("one", "a v=1i 1700000000\n").await.unwrap();
    fixture.full.store(true, Ordering::SeqCst);
    let error = fixture.write("one", "b v=1i 1700000001\n").await.unwrap_err();
    assert!(matches!(error, WriteError::DiskFull(_)) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("no storage space"), "{error}");
    fixture.writer.offer(b"c v=1i 1700000001000000000\n", 1, 7);
    while fixture.losses.lines_of(JOURNAL) == 0 {
        tokio::task::yield_now().await;
    }
    fixture.full.store(false, Ordering::SeqCst);
    assert_eq!(fixture.entries().len(), 1);
    assert_eq!(fixture.seen.0.lock().unwrap().len(), 1);
    // Column b.v was not made an integer.
    let written = fixture.write("one", "b v=1.5 1700000002\n").await.unwrap();
    assert_eq!((written.lines, written.errors), (1, Vec::new()));
    assert!(fixture.writer.close(CLOSE).await);
    let Fixture { folder, journal, writer, .. } = fixture;
    drop((journal, writer));
    let fixture = open(folder);
    assert_eq!(fixture.entries().len(), 2);
    let written = fixture.write("one", "b v=1i 1700000003\n").await.unwrap();
    assert_eq!(written.errors.len(), 1, "the catalogue that is durable says float");
}

#[test]
fn the_end_of_each_outage_is_told() {
    let fixture = fixture();
    let mut thread = Thread {
        shared: Arc::clone(&fixture.writer.shared),
        journal: Arc::clone(&fixture.journal),
        applied: None,
        troubles: OncePerCause::default(),
        is_failing: false,
    };
    let (log, _guard) = log_of_this_thread();
    for outages in 1..=2 {
        for full in [true, false] {
            fixture.full.store(full, Ordering::SeqCst);
            thread.append(Vec::new(), Some(Catalog::default().to_bytes()));
        }
        let told = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(told.matches("the journal cannot be written").count(), 1, "{told}");
        assert_eq!(told.matches("the journal can be written again").count(), outages, "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_costs_the_collector_lines_and_no_time() {
    let fixture = fixture();
    let (log, _guard) = log_of_this_thread();
    fixture.gate.set(true);
    let line = format!("a v=\"{}\" 1700000000000000000\n", "x".repeat(900 << 10));
    let mut offered = 0;
    while fixture.losses.lines_of(JOURNAL) < 3 {
        fixture.writer.offer(line.as_bytes(), 1, offered * 1_000_000_000);
        offered += 1;
        assert!(offered < 100, "memory is bounded");
    }
    // A client waits a while, then is told to come again; the collector's lines do not take its room.
    let large = "x".repeat(MAX_WAITING_BYTES);
    let begun = tokio::time::Instant::now();
    let (first, second) = tokio::join!(
        async {
            let write = fixture.writer.write("one", line.clone(), Precision::Nanosecond, true);
            tokio::time::timeout(3 * MAX_WAIT, write).await.map(|_| ())
        },
        async {
            tokio::task::yield_now().await;
            fixture.writer.write("one", large, Precision::Nanosecond, true).await
        }
    );
    assert!(first.is_err(), "it waits for the disk");
    assert!(matches!(second, Err(WriteError::Busy)), "{second:?}");
    assert!(begun.elapsed() >= MAX_WAIT);
    // The end does not wait for the disk either.
    assert!(!fixture.writer.close(Duration::from_secs(1)).await);
    let told = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    let slow =
        r#"ERROR lines lost: the disk is too slow, or hangs who="journal" lines=1 from="1970-01-01T00:00:"#;
    assert_eq!(told.matches(slow).count(), 1, "{told}");
    assert!(told.contains(r#"lines lost: the disk is too slow, or hangs who="journal" lines=2"#), "{told}");
    assert!(told.contains(r#"ERROR lines lost: kvmetry is ending who="journal""#), "{told}");
    fixture.gate.set(false);
    let all = u64::try_from(offered).unwrap();
    let lost = fixture.losses.lines_of(JOURNAL);
    assert!(lost >= 3 && lost <= all, "{lost} of {all}");
}

#[tokio::test]
async fn the_collectors_lines_are_written_before_the_end() {
    let fixture = fixture();
    for n in 0..50 {
        fixture.writer.offer(format!("a v={n}i {n}\n").as_bytes(), 1, n);
    }
    fixture.writer.offer(b"a v=1.5 50\n", 1, 50);
    assert!(fixture.writer.close(CLOSE).await);
    let lines: usize = fixture.entries().iter().map(|entry| entry.text.lines().count()).sum();
    assert_eq!((lines, fixture.losses.lines_of(JOURNAL)), (50, 1));
    assert!(fixture.entries().iter().all(|entry| entry.database == DATABASE));
}
