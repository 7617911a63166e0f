//! Lines to standard output and to files.
//!
//! Writing may block for as long as a disk or a reader likes, so each of these outputs has a thread of its own,
//! which the end of the process does not wait for.
//!
//! A file gets whole batches or nothing: when a write fails half-way (a full disk) the file is cut back to where
//! it was, and the batch is tried again later. A file that was moved away (logrotate) is made anew before the
//! next batch. What a crash left of a broken last line is cut off when the file is opened; a file that ends in a
//! broken line of somebody else's is not touched but refused, because it was hardly meant. One process a file: two writers would cut off each other's lines. Files are not synced: they are for looking at and
//! for passing on, and a power loss may take the last seconds.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use telemetry::catalogue;
use tokio::sync::oneshot;

use super::{Batch, Closed, OutputError, Verdict};

/// Who may read a new file: its owner writes, its group reads. The lines name VMs and what they do.
const FILE_MODE: u32 = 0o640;
/// How far back from its end a file is searched for the end of its last whole line, bytes: far above any line.
const MAX_TORN_BYTES: u64 = 1 << 20;

/// What our lines begin with.
const MEASUREMENTS: [&str; 6] = [
    catalogue::VM_METRICS.name,
    catalogue::VM_DEVICES.name,
    catalogue::VM_TOTALS.name,
    catalogue::VM_FEATURES.name,
    catalogue::VM_EVENTS.name,
    catalogue::COLLECTOR.name,
];

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
        Ok(()) => Verdict::Delivered,
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
        Ok(()) => Verdict::Delivered,
        Err(why) => Verdict::Retry { why },
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
            cut_torn_line(&mut file, path)?;
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
        if self.torn {
            cut_torn_line(&mut self.file, &self.path)?;
            self.torn = false;
        }
        let length = self.file.metadata().map_err(|error| format!("cannot be examined: {error}"))?.len();
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

/// Cuts a file back to the end of its last whole line, if what stands after that is the beginning of one of ours.
fn cut_torn_line(file: &mut File, path: &Path) -> Result<(), String> {
    let torn = torn_line(file).map_err(|error| format!("its last line cannot be checked: {error}"))?;
    if torn.is_empty() {
        return Ok(());
    }
    if !is_ours(&torn) {
        return Err(
            "its last line has no end and is none of kvmetry's, so the file is left as it is; name another \
                    file, or end that line if this is the right one"
                .to_owned(),
        );
    }
    let bytes = torn.len() as u64;
    let cut = file.metadata().and_then(|about| file.set_len(about.len().saturating_sub(bytes)));
    cut.map_err(|error| format!("its broken last line cannot be cut off: {error}"))?;
    tracing::warn!(file = %path.display(), bytes, "a broken last line was cut off, as a crash leaves it");
    Ok(())
}

/// What stands after a file's last line feed, of a longer text only the last [`MAX_TORN_BYTES`].
fn torn_line(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let mut end = Vec::new();
    // The last byte tells in nearly all cases.
    file.seek(SeekFrom::Start(length.saturating_sub(1)))?;
    (&*file).take(1).read_to_end(&mut end)?;
    if end == b"\n" {
        return Ok(Vec::new());
    }
    end.clear();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_TORN_BYTES)))?;
    (&*file).take(MAX_TORN_BYTES).read_to_end(&mut end)?;
    let torn = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(end.split_off(torn))
}

/// Whether this is the beginning of a line that this program writes: a measurement, or what is there of its name.
fn is_ours(torn: &[u8]) -> bool {
    let word = torn.split(|byte| matches!(byte, b',' | b' ')).next().unwrap_or_default();
    let whole = word.len() < torn.len();
    let known = MEASUREMENTS.iter().any(|name| {
        let name = name.as_bytes();
        if whole { name == word } else { name.starts_with(word) }
    });
    // So much without a line feed began before what was looked at.
    known && (torn.len() as u64) < MAX_TORN_BYTES
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
    fn a_torn_last_line_of_ours_is_cut_off_when_the_file_is_opened() {
        for (before, after) in [
            ("", ""),
            ("theirs v=1i 1\n", "theirs v=1i 1\n"),
            ("vm_metrics v=1i 1\nvm_metrics,VMID=7 v", "vm_metrics v=1i 1\n"),
            ("vm_totals v=1i 1\nkvmetry_coll", "vm_totals v=1i 1\n"),
            ("vm_totals", ""),
            ("v", ""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("lines.lp");
            std::fs::write(&path, before).unwrap();
            LinesFile::open(&path).unwrap().append(b"vm_metrics v=1i 9\n").unwrap();
            assert_eq!(read(&path), format!("{after}vm_metrics v=1i 9\n"), "{before:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let image = "x".repeat(usize::try_from(MAX_TORN_BYTES).unwrap() + 10);
        let late = image.replacen("xxxxxxxxxxxxxxxxxxxxx", "xxxxxxxxxxvm_metrics ", 1);
        for text in
            ["apiv3_secret", "[collect]\ninterval = \"5s\"", "vm_metricsx v=", "vm v=1i", &image, &late]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("token");
            std::fs::write(&path, text).unwrap();
            let Err(problem) = LinesFile::open(&path) else { panic!("{:.20} was opened", text) };
            assert!(problem.contains("none of kvmetry's"), "{problem}");
            assert!(read(&path) == *text, "{text:.20} was changed");
        }
    }

    #[test]
    fn every_measurement_is_known_as_ours() {
        let page = telemetry::metrics_markdown();
        let named: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert!(MEASUREMENTS.iter().all(|name| named.contains(name)), "{named:?}");
        // A heading in words is none.
        let named = named.into_iter().filter(|name| name.contains('_')).count();
        assert_eq!(named, MEASUREMENTS.len());
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
        assert_eq!(write_stream(&mut stream, b"a v=1i 1\n"), Verdict::Delivered);
        assert_eq!(stream, b"a v=1i 1\n");
    }
}
