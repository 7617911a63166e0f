//! Files that are not what was written: flipped bits, zeroed pages, cut ends, garbage, in every region of each file.
//!
//! Whatever it is, opening works, what is whole is read in order, and what is not is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Disk as _;
use disk::double::Double;
use journal::{Entry, Journal, Limits, LossCause, Opened, Seq};

const DIR: &str = "/data/journal";
const LIMITS: Limits = Limits { max_bytes: 4 << 20, max_age: std::time::Duration::from_secs(3600) };

/// What redb says of its commits, at the beginning of a file.
const HEADER: usize = 320;

fn open(disk: &Double) -> (Journal, Opened) {
    Journal::open(Arc::new(disk.clone()), Path::new(DIR), LIMITS, &["a"]).unwrap()
}

/// The files of a journal, to be damaged again and again.
struct Base {
    files: Vec<(PathBuf, Vec<u8>)>,
    entries: Vec<Entry>,
}

impl Base {
    /// Segments of small entries, of large ones, and of both. All as a clean stop leaves them, or as a crash does.
    fn new(closed: bool) -> Self {
        let disk = Double::new();
        let (journal, _) = open(&disk);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut entries = Vec::new();
        while journal.stats().segments < 3 {
            let batch: Vec<Entry> = (0..rng.usize(1..6))
                .map(|_| {
                    let len = match journal.stats().segments {
                        0 | 1 => rng.usize(..2000),
                        2 => rng.usize(..90_000),
                        _ => rng.usize(..20_000),
                    };
                    let mut payload = vec![0; len];
                    rng.fill(&mut payload);
                    Entry {
                        payload,
                        lines: rng.u32(1..50),
                        span: (entries.len() as i64, entries.len() as i64),
                    }
                })
                .collect();
            entries.extend(batch.iter().cloned());
            journal.append(&batch, &[("s", b"value"), ("n", &entries.len().to_le_bytes())], 0).unwrap();
        }
        for n in 0..6 {
            let entry = Entry { payload: vec![n; 3000], lines: 1, span: (0, 0) };
            entries.push(entry.clone());
            journal.append(&[entry], &[("n", &entries.len().to_le_bytes())], 0).unwrap();
        }
        if closed {
            drop(journal);
        } else {
            disk.crash(0);
            drop(journal);
        }
        let files = disk
            .list(Path::new(DIR))
            .unwrap()
            .into_iter()
            .map(|it| (it.path.clone(), bytes(&disk, &it.path)));
        Self { files: files.collect(), entries }
    }

    fn is_newest(&self, index: usize) -> bool {
        index + 1 == self.files.len()
    }

    fn restore(&self, index: usize, damage: impl FnOnce(&mut Vec<u8>)) -> Double {
        let disk = Double::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        for (path, bytes) in &self.files {
            disk.create_new(path).unwrap().write_all_at(bytes, 0).unwrap();
        }
        assert!(disk.damage(&self.files[index].0, damage));
        disk
    }

    /// Opens, reads, and goes on. At most so many entries may be lost; how many are. With `told` also the end may
    /// not be missing in silence.
    fn check(&self, disk: &Double, what: &str, most: usize, told: bool) -> usize {
        let (journal, opened) = open(disk);
        let stats = journal.stats();
        let mut after = stats.first - 1;
        let (mut read, mut gone, mut gone_lines) = (0, after as usize, 0);
        assert!(after == 0 || !opened.losses.is_empty(), "{what}: the first {after} are missing in silence");
        while after < stats.last {
            let got = journal.read(after, 200_000).unwrap();
            let mut gaps = got.damaged.iter().peekable();
            for (seq, entry) in &got.entries {
                while let Some(gap) = gaps.next_if(|it| it.first == after + 1) {
                    after = gap.last;
                }
                after += 1;
                assert_eq!(*seq, after, "{what}");
                assert!(self.entries[*seq as usize - 1] == *entry, "{what}: entry {seq} is not what it was");
                read += 1;
            }
            for gap in &got.damaged {
                gone += (gap.last - gap.first + 1) as usize;
                gone_lines += gap.lines;
                let loss = gap.loss("a");
                assert_eq!((loss.cause, loss.entries), (LossCause::Damaged, gap.last - gap.first + 1));
                let lines: u64 = self.entries[gap.first as usize - 1..gap.last as usize]
                    .iter()
                    .map(|it| u64::from(it.lines))
                    .sum();
                // What the last ones had nobody may know.
                let is_right = if gap.last == stats.last { gap.lines <= lines } else { gap.lines == lines };
                assert!(is_right, "{what}: {lines} lines were in {gap:?}");
            }
            after = got.through;
            assert!(!got.entries.is_empty() || !got.damaged.is_empty(), "{what}");
        }
        assert_eq!(read + gone, stats.last as usize, "{what}");
        let cut = self.entries.len() - stats.last as usize;
        let damage = journal.stats().damage;
        assert!(damage.len() <= 1, "{what}: only one file is damaged, not {damage:?}");
        assert!(
            gone == 0 || !damage.is_empty() || !opened.losses.is_empty(),
            "{what}: {gone}, {gone_lines} lines"
        );
        let is_told = !damage.is_empty() || !opened.cut_off.is_empty();
        assert!(cut == 0 || is_told || !told, "{what}: {cut} at the end are missing in silence");
        assert!(gone + cut <= most, "{what}: {gone} and {cut} are lost, at most {most} should be");
        if damage.is_empty() && cut == 0 {
            assert_eq!(journal.state("s").unwrap().as_deref(), Some(b"value".as_slice()), "{what}");
        }

        // It goes on, and in the end at most one damaged file is kept aside.
        let entry = Entry { payload: vec![1; 10], lines: 1, span: (0, 0) };
        let appended = journal.append(std::slice::from_ref(&entry), &[], 0).unwrap();
        assert_eq!(appended.last, stats.last + 1, "{what}");
        assert_eq!(journal.read(stats.last, 1).unwrap().entries, [(appended.last, entry)], "{what}");
        journal.advance("a", appended.last);
        journal.maintain(0).unwrap();
        let names: Vec<String> = disk
            .list(Path::new(DIR))
            .unwrap()
            .iter()
            .map(|it| it.path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names.iter().filter(|it| it.starts_with("segment-")).count(), 1, "{what}: {names:?}");
        assert_eq!(
            names.contains(&"damaged.redb".to_owned()),
            !damage.is_empty(),
            "{what}: {names:?}, {damage:?}"
        );
        assert!(names.len() <= 3, "{names:?}");
        gone + cut
    }
}

fn bytes(disk: &Double, path: &Path) -> Vec<u8> {
    let file = disk.open_to_read(path).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// One part of a machine's processors each.
fn in_parallel(cases: usize, case: impl Fn(usize) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if n >= cases {
                        break;
                    }
                    case(n);
                }
            });
        }
    });
}

#[test]
fn a_flipped_bit_costs_one_entry_at_most() {
    for closed in [true, false] {
        let base = Base::new(closed);
        let lost = std::sync::atomic::AtomicUsize::new(0);
        for (index, (path, bytes)) in base.files.iter().enumerate() {
            // The header closely, then a bit in each 2000 bytes.
            let places: Vec<usize> =
                (0..HEADER).step_by(3).chain((HEADER..bytes.len()).step_by(2003)).collect();
            in_parallel(places.len(), |n| {
                let (place, bit) = (places[n], n % 8);
                let what = format!("bit {bit} of byte {place} of {}, closed: {closed}", path.display());
                let disk = base.restore(index, |bytes| bytes[place] ^= 1 << bit);
                // In a file that a crash left, the last commit counts only if it is whole: it cannot be told from
                // one that was never acknowledged. Commits here have at most five entries. What the header says of it
                // may be what is damaged.
                let most = if closed { 1 } else { 6 };
                let told = closed || !base.is_newest(index) || place >= HEADER;
                let found = base.check(&disk, &what, most, told);
                lost.fetch_add(found, std::sync::atomic::Ordering::Relaxed);
            });
        }
        let lost = lost.into_inner();
        assert!(lost > 30, "only {lost} entries were hit: the test would not notice much");
    }
}

#[test]
fn zeroed_pages_cut_ends_and_garbage_cost_what_was_there() {
    for closed in [true, false] {
        let base = Base::new(closed);
        for (index, (path, bytes)) in base.files.iter().enumerate() {
            let pages = bytes.len() / 4096;
            in_parallel(pages, |page| {
                let what = |how: &str| format!("{how} page {page} of {}, closed: {closed}", path.display());
                let at = page * 4096;
                let all = base.entries.len();
                // Small entries share a page; what a crash left see above.
                let most = 60;
                let told = closed || !base.is_newest(index) || at >= HEADER;
                let disk = base.restore(index, |bytes| bytes[at..at + 4096].fill(0));
                base.check(&disk, &what("zeroed"), most, told);
                let disk =
                    base.restore(index, |bytes| fastrand::Rng::with_seed(7).fill(&mut bytes[at..at + 4096]));
                base.check(&disk, &what("garbage in"), most, told);
                if page % 3 == 0 {
                    let disk = base.restore(index, |bytes| bytes.truncate(at));
                    base.check(&disk, &what("cut at"), all, told);
                    let disk =
                        base.restore(index, |bytes| fastrand::Rng::with_seed(7).fill(&mut bytes[at..]));
                    base.check(&disk, &what("garbage from"), all, told);
                }
            });
        }
    }
}

#[test]
fn of_a_lost_file_only_its_entries_are_lost() {
    let base = Base::new(true);
    for (index, (path, _)) in base.files.iter().enumerate() {
        let disk = base.restore(index, |_| {});
        disk.remove_file(path).unwrap();
        let (journal, opened) = open(&disk);
        let stats = journal.stats();
        if index == 0 {
            // Told at once.
            assert_eq!(opened.losses[0].entries, stats.first - 1);
        } else if base.is_newest(index) {
            // Nobody can know.
            assert!(stats.last < base.entries.len() as Seq && stats.first == 1, "{stats:?}");
        } else {
            // Told to who comes there.
            let mut after = 0;
            let mut gaps = Vec::new();
            while after < stats.last {
                let read = journal.read(after, 1 << 20).unwrap();
                gaps.extend(read.damaged);
                after = read.through;
            }
            assert_eq!(gaps.len(), 1, "{gaps:?}");
            let damage = journal.stats().damage;
            assert_eq!(damage.len(), 1, "what comes after it is whole: {damage:?}");
            assert_eq!(stats.last, base.entries.len() as Seq);
        }
    }
}

/// A disk that cannot read a whole stretch of a file, or its last bytes: what is beside that is read.
#[test]
fn a_stretch_that_cannot_be_read_costs_what_was_there() {
    /// More than is searched at once.
    const STRETCH: u64 = 1 << 20;
    let limits = Limits { max_bytes: 256 << 20, ..LIMITS };
    let open = |disk: &Double| Journal::open(Arc::new(disk.clone()), Path::new(DIR), limits, &["a"]).unwrap();
    let disk = Double::new();
    let journal = open(&disk).0;
    const ENTRIES: u64 = 60;
    for n in 0..ENTRIES {
        let mut payload = vec![0; 50_000];
        fastrand::Rng::with_seed(n).fill(&mut payload);
        journal.append(&[Entry { payload, lines: 1, span: (0, 0) }], &[], 0).unwrap();
    }
    drop(journal);
    let path = disk.list(Path::new(DIR)).unwrap().remove(0).path;
    let len = disk.open_to_read(&path).unwrap().len().unwrap();
    assert!(len > 3 * STRETCH, "{len}");
    let count = |disk: &Double| {
        let journal = open(disk).0;
        journal.read(0, usize::MAX).unwrap().entries.len() as u64
    };
    disk.spoil(&path, len - 10..len);
    assert!(count(&disk) >= ENTRIES - 1);
    disk.spoil(&path, 0..STRETCH);
    let left = count(&disk);
    assert!((ENTRIES / 2..ENTRIES).contains(&left), "{left}");
    // What cannot be read at all says nothing of what was there: that is no damage but a disk that fails.
    disk.spoil(&path, 0..len);
    let all_is_bad = Journal::open(Arc::new(disk.clone()), Path::new(DIR), limits, &["a"]);
    assert!(matches!(all_is_bad, Err(journal::JournalError::Io { .. })));
}
