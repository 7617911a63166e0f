//! Lines to standard output and to files.
//!
//! Writing may block for as long as a disk or a reader likes, so each of these outputs has a thread of its own,
//! which the end of the process does not wait for.
//!
//! A file gets whole batches or nothing: when a write fails half-way (a full disk) the file is cut back to where
//! it was, and the batch is tried again later. A file that was moved away (logrotate) is made anew before the
//! next batch. What a crash left of a broken last line is cut off when the file is opened. One process
//! a file: two writers would cut off each other's lines. Files are not synced: they are for looking at and
//! for passing on, and a power loss may take the last seconds.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Batch, Closed, OutputError, Verdict};

/// Who may read a new file: its owner writes, its group reads. The lines name VMs and what they do.
const FILE_MODE: u32 = 0o640;
/// How far back from its end a file is searched for the end of its last whole line, bytes: far above any line.
const MAX_TORN_BYTES: u64 = 1 << 20;

/// A thread that writes one batch at a time.
pub(super) struct Writer {
    jobs: mpsc::Sender<(Batch, oneshot::Sender<Verdict>)>,
}

impl Writer {
    /// Starts the thread with what it does with each batch.
    pub(super) fn spawn(
        name: &str,
        mut write: impl FnMut(&Batch) -> Verdict + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel::<(Batch, oneshot::Sender<Verdict>)>();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            for (batch, answer) in todo {
                // Nobody waits for the answer any more when the program ends.
                let _ = answer.send(write(&batch));
            }
        })?;
        Ok(Self { jobs })
    }

    pub(super) async fn write(&mut self, batch: &Batch) -> Verdict {
        let (answer, verdict) = oneshot::channel();
        let sent = self.jobs.send((batch.clone(), answer));
        match (sent, verdict.await) {
            (Ok(()), Ok(verdict)) => verdict,
            _ => Verdict::Closed(Closed::Failed("its writing thread has ended".to_owned())),
        }
    }
}

/// Standard output.
pub(super) fn stdout() -> Result<Writer, OutputError> {
    Writer::spawn("output-stdout", |batch| write_stream(&mut io::stdout().lock(), &batch.lines))
        .map_err(|error| OutputError::Stdout { problem: format!("no thread for it: {error}") })
}

fn write_stream(stream: &mut impl Write, lines: &[u8]) -> Verdict {
    match stream.write_all(lines).and_then(|()| stream.flush()) {
        Ok(()) => Verdict::delivered(),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Verdict::Closed(Closed::ReaderGone),
        // How much was written is not known, so trying again could print half a line twice.
        Err(error) => Verdict::Closed(Closed::Failed(format!("standard output cannot be written: {error}"))),
    }
}

/// A file to append to, made if it is not there.
pub(super) fn file(path: &Path) -> Result<Writer, OutputError> {
    let refused = |problem| OutputError::File { path: path.display().to_string(), problem };
    let mut lines = LinesFile::open(path).map_err(&refused)?;
    Writer::spawn("output-file", move |batch| match lines.append(&batch.lines) {
        Ok(()) => Verdict::delivered(),
        Err(why) => Verdict::Retry { why, after: None },
    })
    .map_err(|error| refused(format!("no thread for it: {error}")))
}

/// A file of whole lines.
struct LinesFile {
    path: PathBuf,
    file: File,
    /// A device such as /dev/null can neither be cut back nor be rotated.
    regular: bool,
    /// A write failed half-way, and the file could not be cut back then.
    torn: bool,
}

impl LinesFile {
    fn open(path: &Path) -> Result<Self, String> {
        // Looked at before it is opened: opening a pipe would wait for its reader.
        if let Ok(there) = std::fs::metadata(path) {
            let kind = there.file_type();
            if kind.is_fifo() || kind.is_socket() || kind.is_dir() {
                return Err("not a file; for a pipe use --output - and the shell's >".to_owned());
            }
        }
        let open = OpenOptions::new().append(true).read(true).create(true).mode(FILE_MODE).open(path);
        let mut file = open.map_err(|error| format!("cannot be opened: {error}"))?;
        let regular = file.metadata().map_err(|error| format!("cannot be examined: {error}"))?.is_file();
        if regular {
            cut_torn_line(&mut file).map_err(|error| format!("its last line cannot be checked: {error}"))?;
        }
        Ok(Self { path: path.to_owned(), file, regular, torn: false })
    }

    /// Appends whole lines, or nothing.
    fn append(&mut self, lines: &[u8]) -> Result<(), String> {
        self.append_by(lines, |file, lines| file.write_all(lines))
    }

    fn append_by(
        &mut self,
        lines: &[u8],
        write: impl FnOnce(&mut File, &[u8]) -> io::Result<()>,
    ) -> Result<(), String> {
        if self.regular && self.was_moved() {
            *self = Self::open(&self.path)?;
        }
        let examine = |error| format!("its last line cannot be checked: {error}");
        if self.torn {
            cut_torn_line(&mut self.file).map_err(examine)?;
            self.torn = false;
        }
        let length = self.file.metadata().map_err(examine)?.len();
        let Err(error) = write(&mut self.file, lines) else { return Ok(()) };
        self.torn = self.regular && self.file.set_len(length).is_err();
        Err(format!("cannot be written: {error}"))
    }

    /// Whether another file, or none, stands at the path now.
    fn was_moved(&self) -> bool {
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(ours)) => (there.dev(), there.ino()) != (ours.dev(), ours.ino()),
            (Err(error), _) => error.kind() == ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// Cuts a file back to the end of its last whole line.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let look_at = length.min(MAX_TORN_BYTES);
    let mut end = Vec::new();
    // The last byte tells in nearly all cases.
    file.seek(SeekFrom::Start(length.saturating_sub(1)))?;
    (&*file).take(1).read_to_end(&mut end)?;
    if end.is_empty() || end == b"\n" {
        return Ok(());
    }
    end.clear();
    file.seek(SeekFrom::Start(length - look_at))?;
    (&*file).take(look_at).read_to_end(&mut end)?;
    let torn = end.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    if torn == look_at && look_at < length {
        return Err(io::Error::new(ErrorKind::InvalidData, "it has no lines; is it the right file"));
    }
    file.set_len(length - torn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_file_is_appended_to_and_made_anew_when_it_was_moved() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.lp");
        let mut lines = LinesFile::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0, "at most rw-r-----");
        lines.append(b"a v=1i 1\n").unwrap();
        let moved = folder.path().join("lines.lp.1");
        std::fs::rename(&path, &moved).unwrap();
        lines.append(b"a v=2i 2\n").unwrap();
        assert_eq!((read(&moved), read(&path)), ("a v=1i 1\n".to_owned(), "a v=2i 2\n".to_owned()));
        // Replaced by another file.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "theirs\n").unwrap();
        lines.append(b"a v=3i 3\n").unwrap();
        assert_eq!(read(&path), "theirs\na v=3i 3\n");
        // Cut to nothing in place (logrotate's copytruncate).
        File::create(&path).unwrap();
        lines.append(b"a v=4i 4\n").unwrap();
        assert_eq!(read(&path), "a v=4i 4\n");
    }

    #[test]
    fn a_torn_last_line_is_cut_off_when_the_file_is_opened() {
        for (before, after) in
            [("", ""), ("a v=1i 1\n", "a v=1i 1\n"), ("a v=1i 1\na v=2", "a v=1i 1\n"), ("a v=2", "")]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("lines.lp");
            std::fs::write(&path, before).unwrap();
            LinesFile::open(&path).unwrap().append(b"b v=1i 9\n").unwrap();
            assert_eq!(read(&path), format!("{after}b v=1i 9\n"), "{before:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        let length = MAX_TORN_BYTES + 10;
        std::fs::write(&image, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
        assert!(LinesFile::open(&image).is_err(), "a file without lines is not ours");
        assert_eq!(image.metadata().unwrap().len(), length);
    }

    #[test]
    fn a_write_that_fails_half_way_leaves_no_half_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.lp");
        let mut lines = LinesFile::open(&path).unwrap();
        lines.append(b"a v=1i 1\n").unwrap();
        let half = |file: &mut File, lines: &[u8]| {
            file.write_all(&lines[..lines.len() / 2])?;
            Err(ErrorKind::StorageFull.into())
        };
        lines.append_by(b"a v=2i 2\nb v=2i 2\n", half).unwrap_err();
        assert_eq!(read(&path), "a v=1i 1\n");
        lines.append(b"a v=2i 2\nb v=2i 2\n").unwrap();
        assert_eq!(read(&path), "a v=1i 1\na v=2i 2\nb v=2i 2\n");
    }

    #[test]
    fn what_is_no_file_is_refused_with_a_reason() {
        #[track_caller]
        fn check(path: &Path, part: &str) {
            match LinesFile::open(path) {
                Ok(_) => panic!("{} was opened", path.display()),
                Err(problem) => assert!(problem.contains(part), "{problem}"),
            }
        }
        let folder = tempfile::tempdir().unwrap();
        check(folder.path(), "not a file");
        check(&folder.path().join("nowhere/lines.lp"), "cannot be opened: No such file");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        check(&socket, "not a file; for a pipe use --output -");
    }

    #[test]
    fn a_full_device_is_an_error_that_says_so() {
        // /dev/full answers every write with "no space left on device".
        let mut full = LinesFile::open(Path::new("/dev/full")).unwrap();
        let error = full.append(b"a v=1i 1\n").unwrap_err();
        assert!(error.contains("No space left on device"), "{error}");
        LinesFile::open(Path::new("/dev/null")).unwrap().append(b"a v=1i 1\n").unwrap();
    }

    #[test]
    fn a_closed_pipe_ends_standard_output_cleanly() {
        struct Pipe(ErrorKind);
        impl Write for Pipe {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let verdict = write_stream(&mut Pipe(ErrorKind::BrokenPipe), b"a v=1i 1\n");
        assert_eq!(verdict, Verdict::Closed(Closed::ReaderGone));
        let verdict = write_stream(&mut Pipe(ErrorKind::StorageFull), b"a v=1i 1\n");
        assert!(matches!(verdict, Verdict::Closed(Closed::Failed(_))), "{verdict:?}");
        let mut stream = Vec::new();
        assert_eq!(write_stream(&mut stream, b"a v=1i 1\n"), Verdict::delivered());
        assert_eq!(stream, b"a v=1i 1\n");
    }
}
