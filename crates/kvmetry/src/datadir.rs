//! The data directory: who may use it, and which version wrote it.
//!
//! ```text
//! DATA/
//!   lock      held (flock) by the one process that uses DATA; "pid 1234", "run 9f86d081…", then what others want to
//!             know of it
//!   version   "1": the version of all that is beside it
//!   journal/  what was accepted and is not yet everywhere
//!   store/    Parquet files
//!   rejects/  lines that a server refused, with its reason
//!   backups/  what was asked for over HTTP and not taken away yet, each a data directory
//! ```
//!
//! A second process is refused with the first one's number, a directory of a newer version with that version, and one
//! that `kvmetry restore` did not finish (`unfinished` is in it) with what to do. The lock goes with its process,
//! however that ends; the file stays.
//!
//! DATA may be a file system of its own. While a process runs, [`OwnDisk`] sees to it that nothing is
//! written into what is at its place when it is gone. At the start nobody can tell a new directory from the mount point
//! of one that is missing; whoever puts an empty file `not-mounted` into the bare mount point has it refused.

mod owndisk;

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use self::owndisk::OwnDisk;

/// The version of what this kvmetry writes.
const VERSION: u32 = 1;
/// Who may look into a new directory: its owner, and its group to read. What is in it names VMs and what they do.
const DIR_MODE: u32 = 0o750;
/// Of the lock file, which says no more than that.
const LOCK_MODE: u32 = 0o640;
/// A file that is in a directory as long as what is in it is not whole: a backup or a restore is under way, or was
/// broken off.
pub(crate) const UNFINISHED: &str = "unfinished";
/// An administrator's mark in a mount point: if it can be seen, what belongs there is not mounted.
const NOT_MOUNTED: &str = "not-mounted";
/// In the lock file: which command has the directory, that gives it back by itself.
pub(crate) const COMMAND: &str = "command";
/// In the lock file: where the HTTP port is, as a URL.
pub(crate) const URL: &str = "url";
/// In the lock file: the file with the port's certificate, if it speaks TLS.
pub(crate) const CERTIFICATE: &str = "certificate";
/// A directory that is in use is tried so often again, with such a pause before it: a tenth of a second.
const LOOK_TRIES: u32 = 10;
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// The largest lock or version file that is read, bytes.
const MAX_FILE_BYTES: u64 = 4096;

/// A data directory that is ours as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// How the lock file begins as long as it is ours: no other process and no other run of this one has these words.
    mark: String,
    /// Unlocks when it is closed.
    lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    /// Another process has it.
    #[error(
        "{} is in use by process {who}: end that one, or give this one its own --data-dir",
        path.display()
    )]
    InUse { path: PathBuf, who: String },
    /// A command has it, for as long as it takes.
    #[error("{} is in use by process {who}, a kvmetry {command}: wait until that has ended", path.display())]
    InUseBriefly { path: PathBuf, who: String, command: String },
    /// A newer kvmetry wrote it.
    #[error(
        "{} was written by a newer kvmetry (version {found}, this one knows {VERSION}): run that one, or give this \
         one its own --data-dir",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    /// What should be mounted there is not.
    #[error(
        "{} is not mounted: the file not-mounted in it says so; mount what belongs there, or remove that file",
        path.display()
    )]
    NotMounted { path: PathBuf },
    /// A restore or the copying of a backup did not come to its end.
    #[error(
        "{} holds only a part of a backup: the process that filled it was broken off; run kvmetry restore --replace \
         on it, or name another --data-dir",
        path.display()
    )]
    Unfinished { path: PathBuf },
    /// It is not one of ours.
    #[error("{} does not hold a version, so {} is no data directory of kvmetry: name another --data-dir",
        path.display(), path.parent().unwrap_or(path).display())]
    NotOurs { path: PathBuf },
    /// What the system says.
    #[error("{} cannot be {what}: {problem}; make it writable, or name another --data-dir", path.display())]
    Io { path: PathBuf, what: &'static str, problem: io::Error },
}

impl DataDir {
    /// Takes the directory, made if it is not there.
    ///
    /// # Errors
    /// It is another process's, a newer version's, not whole, or cannot be written.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let dir = Self::open_to_restore(path)?;
        if dir.path.join(UNFINISHED).exists() {
            return Err(DataDirError::Unfinished { path: dir.path });
        }
        Ok(dir)
    }

    /// The same, also where what is in it is not whole.
    ///
    /// # Errors
    /// As [`DataDir::open`].
    pub(crate) fn open_to_restore(path: &Path) -> Result<Self, DataDirError> {
        let path = std::path::absolute(path).map_err(|problem| DataDirError::Io {
            path: path.to_owned(),
            what: "found",
            problem,
        })?;
        demand_mounted(&path)?;
        let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(&path);
        made.map_err(|problem| DataDirError::Io { path: path.clone(), what: "made", problem })?;
        let lock = lock(&path)?;
        check_version(&path)?;
        let mark = format!("pid {}\nrun {:016x}\n", std::process::id(), fastrand::u64(..));
        let mut dir = Self { path, mark, lock };
        dir.tell(&[])?;
        Ok(dir)
    }

    /// Where it is; absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file system for what is in it, as long as it is there.
    pub(crate) fn disk(&self) -> OwnDisk {
        OwnDisk::new(self.path.clone(), self.mark.clone())
    }

    /// Writes into the lock file what other processes want to know: this one's number, and these.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn tell(&mut self, facts: &[(&str, &str)]) -> Result<(), DataDirError> {
        let mut text = self.mark.clone();
        for (name, value) in facts {
            let _ = writeln!(text, "{name} {value}");
        }
        let write = |file: &mut File| {
            // The mark is there at every moment.
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write(&mut self.lock).map_err(|problem| DataDirError::Io {
            path: self.path.join("lock"),
            what: "written",
            problem,
        })
    }
}

/// Who has a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nobody.
    Free,
    /// This process, which answers at this URL, if it does.
    By { who: String, url: Option<String> },
}

/// # Errors
/// An administrator's mark says that what belongs there is not mounted.
pub(crate) fn demand_mounted(dir: &Path) -> Result<(), DataDirError> {
    match dir.join(NOT_MOUNTED).exists() {
        true => Err(DataDirError::NotMounted { path: dir.to_owned() }),
        false => Ok(()),
    }
}

/// Who has a data directory that may not have been used yet; nothing in it is changed.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn held(dir: &Path) -> Result<Held, DataDirError> {
    let path = dir.to_owned();
    demand_mounted(dir)?;
    has_version(dir)?;
    if dir.join(UNFINISHED).exists() {
        return Err(DataDirError::Unfinished { path });
    }
    let lock = match File::open(dir.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::Free),
        opened => opened.map_err(|problem| DataDirError::Io { path, what: "opened", problem })?,
    };
    match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let who = told(dir, "pid").unwrap_or_else(|| "unknown".to_owned());
            Ok(Held::By { who, url: told(dir, "url") })
        }
        _ => Ok(Held::Free),
    }
}

/// What the lock file of a data directory says by this name, if it is there and says it. It may be a process that has
/// ended.
pub(crate) fn told(dir: &Path, name: &str) -> Option<String> {
    let text = read(&dir.join("lock")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(value.to_owned())
}

fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join("lock");
    let failed = |what| {
        let path = path.clone();
        move |problem| DataDirError::Io { path, what, problem }
    };
    let file = disk::open_or_create(&path, LOCK_MODE).map_err(failed("opened"))?;
    match try_lock(&file, || std::thread::sleep(LOOK_PAUSE)) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let (path, who) = (dir.to_owned(), told(dir, "pid").unwrap_or_else(|| "unknown".to_owned()));
            Err(match told(dir, COMMAND) {
                Some(command) => DataDirError::InUseBriefly { path, who, command },
                None => DataDirError::InUse { path, who },
            })
        }
        Err(TryLockError::Error(problem)) => Err(failed("locked")(problem)),
    }
}

/// Whoever looks whether the directory is in use ([`held`]) has the lock for a moment, and must not keep a service from
/// starting: so who finds it locked tries again.
fn try_lock(file: &File, mut pause: impl FnMut()) -> Result<(), TryLockError> {
    for _ in 0..LOOK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => pause(),
            locked => return locked,
        }
    }
    file.try_lock()
}

/// Whether what is in this directory is of a version that is known here; false where none is given.
///
/// # Errors
/// It is newer, or none of ours.
pub(crate) fn has_version(dir: &Path) -> Result<bool, DataDirError> {
    let path = dir.join("version");
    match read(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(1..=VERSION) => Ok(true),
            Ok(found) if found > VERSION => Err(DataDirError::Newer { path: dir.to_owned(), found }),
            _ => Err(DataDirError::NotOurs { path }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(problem) => Err(DataDirError::Io { path, what: "read", problem }),
    }
}

/// Reads the version, and writes it where there is none.
fn check_version(dir: &Path) -> Result<(), DataDirError> {
    if has_version(dir)? {
        return Ok(());
    }
    write_version(dir).map_err(|problem| DataDirError::Io {
        path: dir.join("version"),
        what: "written",
        problem,
    })
}

/// Says that what is in this directory is of this version.
///
/// # Errors
/// What the system says.
pub(crate) fn write_version(dir: &Path) -> io::Result<()> {
    // Under another name first, so that no crash leaves a version file without a version.
    let new = dir.join("version.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = disk::create_new(&new, 0o666)?;
    file.write_all(format!("{VERSION}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join("version"))?;
    File::open(dir)?.sync_all()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_and_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let mut first = DataDir::open(&path).unwrap();
        assert_eq!(first.path(), path);
        let pid = std::process::id().to_string();
        let error = DataDir::open(&path).unwrap_err().to_string();
        let expect = format!("{} is in use by process {pid}: end that one", path.display());
        assert!(error.starts_with(&expect), "{error}");
        first.tell(&[("http", "127.0.0.1:8177")]).unwrap();
        assert_eq!(told(&path, "http").as_deref(), Some("127.0.0.1:8177"));
        first.tell(&[(COMMAND, "query")]).unwrap();
        let error = DataDir::open(&path).unwrap_err().to_string();
        let expect = format!("in use by process {pid}, a kvmetry query: wait until that has ended");
        assert!(error.ends_with(&expect), "{error}");
        first.tell(&[]).unwrap();
        assert_eq!((told(&path, "http"), told(&path, "pid")), (None, Some(pid)));
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn whoever_looks_does_not_keep_others_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        let lock = || File::open(folder.path().join("lock")).unwrap();
        let mut looks = Some(lock());
        looks.as_ref().unwrap().lock_shared().unwrap();
        let mut pauses = 0;
        assert!(matches!(try_lock(&lock(), || pauses += 1), Err(TryLockError::WouldBlock)));
        assert_eq!(pauses, LOOK_TRIES);
        try_lock(&lock(), || drop(looks.take())).unwrap();
    }

    #[test]
    fn a_version_that_is_not_known_is_refused() {
        #[track_caller]
        fn check(version: &str, expect: Result<(), &str>) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("version"), version).unwrap();
            match (DataDir::open(folder.path()), expect) {
                (Ok(_), Ok(())) => {
                    let kept = fs::read_to_string(folder.path().join("version")).unwrap();
                    assert_eq!(kept, version);
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expect) => panic!("{found:?} instead of {expect:?}"),
            }
        }
        check("1\n", Ok(()));
        check("2\n", Err("was written by a newer kvmetry (version 2, this one knows 1)"));
        for text in ["", "0", "hello", "-1"] {
            check(text, Err("is no data directory of kvmetry"));
        }
    }

    #[test]
    fn a_mount_point_that_is_marked_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NOT_MOUNTED), "").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not mounted: the file not-mounted in it says so"), "{error}");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, [NOT_MOUNTED]);
    }

    /// The directory may be a service's, and it is root who runs a command on it.
    #[test]
    fn links_in_a_directory_lead_nowhere() {
        for name in ["lock", "version.new"] {
            let folder = tempfile::tempdir().unwrap();
            let (path, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
            fs::write(&elsewhere, "not ours").unwrap();
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::symlink(&elsewhere, path.join(name)).unwrap();
            assert_eq!(DataDir::open(&path).is_ok(), name == "version.new", "{name}");
            assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "not ours", "{name}");
        }
    }

    #[test]
    fn nothing_is_written_where_the_directory_is_not_any_more() {
        use disk::Disk as _;
        let folder = tempfile::tempdir().unwrap();
        let (path, away) = (folder.path().join("data"), folder.path().join("away"));
        let mut dir = DataDir::open(&path).unwrap();
        dir.tell(&[("url", "http://127.0.0.1:8177")]).unwrap();
        let disk = dir.disk();
        let file = disk.create_new(&path.join("a")).unwrap();
        file.sync().unwrap();
        fs::rename(&path, &away).unwrap();
        let below = DataDir::open(&path).unwrap();
        let gone = |result: io::Result<()>| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("data is not the data directory any more"), "{error}");
        };
        gone(file.sync());
        gone(disk.create_new(&path.join("b")).map(drop));
        gone(disk.open(&path.join("b")).map(drop));
        gone(disk.create_dir_all(&path.join("c")));
        gone(disk.rename(&path.join("lock"), &path.join("d")));
        gone(disk.remove_file(&path.join("lock")));
        gone(disk.list(&path).map(drop));
        gone(disk.sync_dir(&path));
        assert!(!path.join("b").exists() && !path.join("c").exists() && path.join("lock").exists());
        drop(below);
        fs::remove_dir_all(&path).unwrap();
        gone(disk.space(folder.path()).map(drop));
        fs::rename(&away, &path).unwrap();
        file.sync().unwrap();
        disk.create_new(&path.join("b")).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("file/data cannot be made: Not a directory"), "{error}");
    }
}
