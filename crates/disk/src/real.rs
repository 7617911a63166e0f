//! The system's own file system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::{Disk, DiskFile, Entry, Space};

/// Tries to open a name or make it that comes and goes meanwhile.
const OPEN_TRIES: usize = 4;

/// The system's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(open_or_create(path, 0o666)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(create_new(path, 0o666)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        // What root links into another user's folder would be that user's too: to be copied.
        let above = folder_of(to).ok_or(io::ErrorKind::InvalidInput)?;
        if fs::symlink_metadata(from)?.uid() != fs::metadata(above)?.uid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        fs::hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path.ancestors().take_while(|it| !it.is_dir()).collect();
        // Whoever made the last one that is there may have died before its name was durable. A folder above that we
        // may not read was set up by someone else.
        if let Some(above) = path.ancestors().nth(missing.len()).and_then(Path::parent) {
            match self.sync_dir(above) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Ok(()) => give_dir_to_owner(dir)?,
                // Another thread was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                Err(error) => return Err(error),
            }
            if let Some(parent) = dir.parent() {
                self.sync_dir(parent)?;
            }
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let about = match entry.metadata() {
                // Removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                about => about?,
            };
            let len = if about.is_dir() { 0 } else { about.len() };
            // Blocks of stat are 512 bytes, whatever the file system's are.
            let taken = about.blocks() * 512;
            entries.push(Entry { path: entry.path(), is_dir: about.is_dir(), len, taken });
        }
        entries.sort();
        Ok(entries)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let about = rustix::fs::statvfs(path)?;
        Ok(Space { total: about.f_blocks * about.f_frsize, free: about.f_bavail * about.f_frsize })
    }
}

/// What the name stands in; `None` for the root.
fn folder_of(path: &Path) -> Option<&Path> {
    let above = path.parent()?;
    Some(if above.as_os_str().is_empty() { Path::new(".") } else { above })
}

/// Makes a new file to read and write, with this mode less the umask. No link of this name is followed.
///
/// What root makes in a directory of another user's becomes that user's: a command that root runs on a service's data
/// must leave nothing behind that the service cannot replace. Refusing such commands instead would keep root from asking.
/// But that user may put links into its directory, or another directory in its place, at any moment: so only what was
/// made here is given away, to the owner of the folder that it was made in, and both are held open meanwhile.
///
/// # Errors
/// `AlreadyExists` if the name is taken; what the system says.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let (Some(above), Some(name)) = (folder_of(path), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::open(above, folder, Mode::empty())?;
    let new = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&above, name, new, Mode::from_raw_mode(mode))?);
    give(&file, &rustix::fs::fstat(&above)?)?;
    Ok(file)
}

/// The same, or opens the file that has the name, not truncated.
///
/// # Errors
/// The name is a link; what the system says.
pub fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    // Whoever removes and makes it at the same time has another one the next time.
    for _ in 0..OPEN_TRIES {
        let not_through_links = OFlags::NOFOLLOW.bits().cast_signed();
        match OpenOptions::new().read(true).write(true).custom_flags(not_through_links).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create_new(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A folder that was just made.
fn give_dir_to_owner(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    // The folder that this one is in, wherever that is by now.
    let above = rustix::fs::statat(&dir, "..", AtFlags::empty())?;
    give(&dir, &above)
}

fn give(made: impl AsFd, above: &rustix::fs::Stat) -> io::Result<()> {
    if above.st_uid == 0 || rustix::fs::fstat(&made)?.st_uid != 0 {
        return Ok(());
    }
    fchown(made, Some(above.st_uid), Some(above.st_gid))
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn a_file_where_a_folder_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("b")] {
            let error = RealDisk.create_dir_all(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{}", path.display());
        }
    }

    #[test]
    fn a_link_in_a_folder_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (theirs, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        fs::create_dir(&theirs).unwrap();
        symlink(&elsewhere, theirs.join("a")).unwrap();
        assert!(RealDisk.open(&theirs.join("a")).is_err());
        assert!(!elsewhere.exists(), "a file was made behind the link");
        fs::write(&elsewhere, "not for them").unwrap();
        assert!(RealDisk.open(&theirs.join("a")).is_err());
        assert!(RealDisk.create_new(&theirs.join("a")).is_err());
        assert!(open_or_create(&theirs.join("b"), 0o600).is_ok());
        assert!(open_or_create(&theirs.join("b"), 0o600).is_ok());
    }

    /// Else a restore for a service would give it the backup's files.
    #[test]
    fn a_file_gets_no_name_in_another_users_folder() {
        let (folder, owner) = (tempfile::tempdir().unwrap(), 65_534);
        if fs::metadata(folder.path()).unwrap().uid() != 0 {
            return;
        }
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        fs::write(&ours, "ours").unwrap();
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(owner), Some(owner)).unwrap();
        crate::link_or_copy(&RealDisk, &ours, &theirs.join("it")).unwrap();
        crate::link_or_copy(&RealDisk, &ours, &folder.path().join("it")).unwrap();
        let about = |path: &Path| fs::metadata(path).unwrap();
        assert_eq!((about(&ours).uid(), about(&ours).nlink()), (0, 2));
        assert_eq!((about(&theirs.join("it")).uid(), about(&theirs.join("it")).nlink()), (owner, 1));
    }

    #[test]
    fn what_root_makes_is_the_owners_of_its_folder_and_what_was_there_stays_whose_it_was() {
        let (folder, owner) = (tempfile::tempdir().unwrap(), 65_534);
        // Nobody else can give anything away.
        if fs::metadata(folder.path()).unwrap().uid() != 0 {
            return;
        }
        let theirs = folder.path().join("data");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("there"), "").unwrap();
        chown(&theirs, Some(owner), Some(owner)).unwrap();
        RealDisk.open(&theirs.join("there")).unwrap();
        RealDisk.open(&theirs.join("opened")).unwrap();
        RealDisk.create_new(&theirs.join("made")).unwrap();
        RealDisk.create_dir_all(&theirs.join("folder/below")).unwrap();
        RealDisk.create_new(&theirs.join("folder/below/file")).unwrap();
        for (name, expect) in [
            ("there", 0),
            ("opened", owner),
            ("made", owner),
            ("folder", owner),
            ("folder/below", owner),
            ("folder/below/file", owner),
        ] {
            assert_eq!(fs::metadata(theirs.join(name)).unwrap().uid(), expect, "{name}");
        }
    }
}
