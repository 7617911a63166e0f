//! Lines that a server refused, kept for a person: `DATA/rejects/00000001.lp` and so on.
//!
//! A file is line protocol, with the reason as a comment before the lines it is about:
//!
//! ```text
//! # 2026-11-22T21:48:59Z http://influx:8181 kvmetry: invalid column type for column 'v', expected …
//! vm_totals,VMID=7,… v=1i 1795384139000000000
//! ```
//!
//! So, once the reason is mended, a file can be sent as it is. At most [`MAX_FILES`] files of [`MAX_FILE_BYTES`] are
//! kept; then the oldest goes, which is logged.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, DiskFile, Entry};

use crate::clock::rfc3339;

/// One file, bytes: still easy to open in an editor.
pub(crate) const MAX_FILE_BYTES: u64 = 4 << 20;
/// With [`MAX_FILE_BYTES`] 64 MiB in all: a hundred thousand lines are more than anybody reads to find the cause.
pub(crate) const MAX_FILES: usize = 16;
/// A longer line is not kept, only told of, bytes: with a file's worth of such lines the bound still holds.
const MAX_LINE_BYTES: usize = 1 << 20;
/// How far from its end a file is read for the last reason, bytes.
const MAX_TAIL_BYTES: u64 = MAX_LINE_BYTES as u64 + (64 << 10);

/// The folder of refused lines.
#[derive(Debug)]
pub(crate) struct Rejects {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    current: Mutex<Option<Current>>,
}

/// The file that is written.
#[derive(Debug)]
struct Current {
    file: Box<dyn DiskFile>,
    len: u64,
}

/// What is in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// The last reason, with its time and server, if it could be found.
    pub(crate) last: Option<String>,
}

impl Rejects {
    /// Nothing is done before the first refused line.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, current: Mutex::new(None) }
    }

    /// Keeps lines, each with its reason: durable when this returns. `of` says whose: the server and database.
    ///
    /// # Errors
    /// What the system says; a part of the lines may be there.
    pub(crate) fn keep<'a>(
        &self,
        now_ns: i64,
        of: &str,
        lines: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = self.append(&mut current, now_ns, of, lines);
        if kept.is_err() {
            // How much of it is there is not known: the next file begins anew.
            *current = None;
        }
        kept
    }

    fn append<'a>(
        &self,
        current: &mut Option<Current>,
        now_ns: i64,
        of: &str,
        lines: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<()> {
        let at = rfc3339(now_ns);
        let mut pending = String::new();
        let mut last_why = None;
        for (line, why) in lines {
            let len = current.as_ref().map_or(0, |current| current.len);
            if len + pending.len() as u64 + line.len() as u64 > MAX_FILE_BYTES && !pending.is_empty() {
                self.write(current, &pending)?;
                pending.clear();
                last_why = None;
            }
            if last_why != Some(why) {
                let _ = writeln!(pending, "# {at} {of}: {why}");
                last_why = Some(why);
            }
            if line.len() > MAX_LINE_BYTES {
                let _ = writeln!(pending, "# a line of {} bytes is too long to be kept here", line.len());
            } else {
                pending.push_str(line);
            }
        }
        self.write(current, &pending)
    }

    fn write(&self, current: &mut Option<Current>, text: &str) -> io::Result<()> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Ok(());
        }
        let fits = |current: &Current| current.len == 0 || current.len + bytes.len() as u64 <= MAX_FILE_BYTES;
        if !current.as_ref().is_some_and(fits) {
            *current = Some(self.next_file(bytes.len() as u64)?);
        }
        let Some(current) = current else { return Ok(()) };
        current.file.write_all_at(bytes, current.len)?;
        current.len += bytes.len() as u64;
        current.file.sync()
    }

    /// The last file if it has room for so many bytes and was ended well, else a new one.
    fn next_file(&self, room: u64) -> io::Result<Current> {
        self.disk.create_dir_all(&self.dir)?;
        let mut files = files(&*self.disk, &self.dir)?;
        if let Some((_, last)) = files.last()
            && (1..=MAX_FILE_BYTES.saturating_sub(room)).contains(&last.len)
        {
            let file = self.disk.open(&last.path)?;
            let mut end = [0];
            file.read_exact_at(&mut end, last.len - 1)?;
            if end == *b"\n" {
                return Ok(Current { file, len: last.len });
            }
        }
        while files.len() >= MAX_FILES {
            let (_, oldest) = files.remove(0);
            self.disk.remove_file(&oldest.path)?;
            tracing::error!(
                file = %oldest.path.display(),
                bytes = oldest.len,
                "refused lines lost: the folder of refused lines is full, its oldest file was removed"
            );
        }
        let number = files.last().map_or(1, |(number, _)| number + 1);
        let file = self.disk.create_new(&self.dir.join(format!("{number:08}.lp")))?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Current { file, len: 0 })
    }
}

/// What is in this folder of refused lines; `None` if there is nothing.
///
/// # Errors
/// What the system says.
pub(crate) fn summary(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Summary>> {
    let files = match files(disk, dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((_, last)) = files.last() else { return Ok(None) };
    let from = last.len.saturating_sub(MAX_TAIL_BYTES);
    let mut tail = vec![0; (last.len - from) as usize];
    disk.open_to_read(&last.path)?.read_exact_at(&mut tail, from)?;
    let tail = String::from_utf8_lossy(&tail);
    let last = tail.lines().rev().filter_map(|line| line.strip_prefix("# ")).find(|line| line.contains(": "));
    let bytes = files.iter().map(|(_, file)| file.len).sum();
    Ok(Some(Summary { files: files.len(), bytes, last: last.map(str::to_owned) }))
}

/// The files by number.
fn files(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(u64, Entry)>> {
    let mut files = Vec::new();
    for entry in disk.list(dir)? {
        let number = entry.path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        let ours = !entry.is_dir && entry.path.extension().is_some_and(|extension| extension == "lp");
        if let (Some(number), true) = (number, ours) {
            files.push((number, entry));
        }
    }
    files.sort_by_key(|(number, _)| *number);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use disk::RealDisk;

    use super::*;

    fn rejects(dir: &Path) -> Rejects {
        Rejects::new(Arc::new(RealDisk), dir.to_owned())
    }

    #[test]
    fn lines_stand_behind_their_reason_and_a_restart_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("rejects");
        assert_eq!(summary(&RealDisk, &dir).unwrap(), None);
        let lines =
            [("a v=1i 1\n", "no float"), ("b v=1i 1\n", "no float"), ("c v=\"x\ny\" 1\n", "other: 7")];
        rejects(&dir).keep(0, "http://a kvmetry", lines).unwrap();
        rejects(&dir).keep(1_000_000_000, "http://a vms", [("d v=1i 1\n", "no float")]).unwrap();
        let kept = fs::read_to_string(dir.join("00000001.lp")).unwrap();
        let expect = "# 1970-01-01T00:00:00Z http://a kvmetry: no float\na v=1i 1\nb v=1i 1\n\
                      # 1970-01-01T00:00:00Z http://a kvmetry: other: 7\nc v=\"x\ny\" 1\n\
                      # 1970-01-01T00:00:01Z http://a vms: no float\nd v=1i 1\n";
        assert_eq!(kept, expect);
        let last = Some("1970-01-01T00:00:01Z http://a vms: no float".to_owned());
        let bytes = expect.len() as u64;
        assert_eq!(summary(&RealDisk, &dir).unwrap(), Some(Summary { files: 1, bytes, last }));
        // A crash left half a line: it is not lengthened.
        fs::write(dir.join("00000001.lp"), "a v=1").unwrap();
        rejects(&dir).keep(0, "http://a kvmetry", lines).unwrap();
        assert!(dir.join("00000002.lp").exists());
    }

    #[test]
    fn the_folder_stays_within_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("rejects");
        let rejects = rejects(&dir);
        let line = format!("a v=\"{}\" 1\n", "x".repeat(MAX_LINE_BYTES - 20));
        let too_long = format!("a v=\"{}\" 1\n", "x".repeat(MAX_LINE_BYTES));
        for round in 0..3 {
            for _ in 0..10 {
                rejects.keep(round, "http://a kvmetry", vec![(line.as_str(), "no"); 3]).unwrap();
                rejects.keep(round, "http://a kvmetry", [(too_long.as_str(), "no")]).unwrap();
            }
        }
        let files = files(&RealDisk, &dir).unwrap();
        assert_eq!(files.len(), MAX_FILES);
        assert!(files[0].0 > 1, "the oldest are gone");
        assert!(files.iter().all(|(_, file)| file.len <= MAX_FILE_BYTES), "{files:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rejects"), "").unwrap();
        rejects(&folder.path().join("rejects")).keep(0, "x", [("a v=1 1\n", "no")]).unwrap_err();
    }
}
