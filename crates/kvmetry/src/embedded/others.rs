//! What of the data directory counts against `[store] max_size` beside the store's files: refused lines (`rejects/`), and
//! the damaged segment that the journal keeps aside. The journal has a limit of its own; backups are somebody's wish.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use disk::Disk;

/// How often it is counted, and not each second: it is at most some dozens of files, which grow slowly.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// The journal's name for it.
const DAMAGED: &str = "damaged.redb";

/// Counts it now and then.
#[derive(Debug)]
pub(crate) struct Others {
    disk: Arc<dyn Disk>,
    /// The data directory.
    dir: PathBuf,
    /// When, and how many bytes.
    counted: Mutex<Option<(Duration, u64)>>,
}

impl Others {
    /// Of this data directory.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, counted: Mutex::default() }
    }

    /// What they take on the disk, bytes; at most a minute old. `now` is the monotonic clock's time.
    pub(crate) fn bytes(&self, now: Duration) -> u64 {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        match *counted {
            Some((at, bytes)) if now.saturating_sub(at) < COUNT_EVERY => bytes,
            _ => {
                let bytes = self.count();
                *counted = Some((now, bytes));
                bytes
            }
        }
    }

    fn count(&self) -> u64 {
        // A folder that is not there takes nothing; one that cannot be read is told by whoever uses it.
        let list = |name: &str| self.disk.list(&self.dir.join(name)).unwrap_or_default();
        let damaged = list("journal").into_iter().filter(|it| it.path.ends_with(DAMAGED));
        list("rejects").into_iter().chain(damaged).map(|it| it.taken).sum()
    }
}

#[cfg(test)]
mod tests {
    use disk::RealDisk;

    use super::*;

    #[test]
    fn refused_lines_and_the_damaged_segment_count() {
        let folder = tempfile::tempdir().unwrap();
        let others = Others::new(Arc::new(RealDisk), folder.path().to_owned());
        assert_eq!(others.bytes(Duration::ZERO), 0);
        for (dir, file) in
            [("rejects", "00000001.lp"), ("journal", DAMAGED), ("journal", "segment"), ("store", "x")]
        {
            std::fs::create_dir_all(folder.path().join(dir)).unwrap();
            std::fs::write(folder.path().join(dir).join(file), [1; 40_960]).unwrap();
        }
        assert_eq!(others.bytes(COUNT_EVERY / 2), 0, "not each second");
        let bytes = others.bytes(COUNT_EVERY);
        assert!((81_920..100_000).contains(&bytes), "{bytes}");
    }
}
