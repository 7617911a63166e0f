//! The system's own file system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt as _, chown};
use std::path::Path;

use crate::{Disk, DiskFile, Entry, Space};

/// The system's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        give_to_owner(path)?;
        Ok(Box::new(file))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        give_to_owner(path)?;
        Ok(Box::new(file))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
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
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => give_to_owner(dir)?,
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

/// What root makes in a directory of another user's becomes that user's: a command that root runs on a service's data
/// must leave nothing behind that the service cannot replace. Refusing such commands instead would keep root from asking.
fn give_to_owner(path: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(path)?;
    let Some(above) = path.parent().filter(|_| about.uid() == 0) else { return Ok(()) };
    let above = fs::metadata(if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
    if above.uid() == 0 {
        return Ok(());
    }
    chown(path, Some(above.uid()), Some(above.gid()))
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
