//! `kvmetry backup` and `kvmetry restore`.
//!
//! A backup is a data directory by itself, and can be asked as one (`kvmetry query --data-dir DIR`):
//!
//! ```text
//! DIR/unfinished   only as long as it is being made
//!     version      as in every data directory
//!     store/       all points: the Parquet files of the store under one more name (hard links), and their manifest
//!     journal/     no entries: the databases, their retentions and schemas
//!     tokens.json  as it was, unless [http] tokens names a file elsewhere
//! ```
//!
//! It is made in `DATA/backups/<time>` by the process that has the data directory, and the command moves it from
//! there to DIR, or copies it to another file system. So nobody can make a server write where he likes, and the server
//! needs no right to write elsewhere. What was still to be delivered to an
//! InfluxDB server is in the store, but not in the backup's journal: it is not delivered from a restored directory.
//!
//! Access stays as it was, which is why the hashes of tokens are carried: without them a restored port on loopback
//! would be open. A data directory that has tokens keeps its own.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use disk::{Disk, RealDisk, copy};
use journal::{Journal, Limits};
use serde::{Deserialize, Serialize};
use store::{Carried, Store};

use crate::clock::{Clock, rfc3339};
use crate::datadir::{self, DataDir, UNFINISHED, has_version, write_version};
use crate::keep::STORE;
use crate::write::CATALOG;

/// Backups that lie in the data directory at most: each holds on disk what retention and compaction have removed
/// since. One more is refused.
const MAX_BACKUPS: usize = 16;
/// Who may look into a backup until its owner says otherwise: what is in it names VMs, and there are the tokens' hashes.
const DIR_MODE: u32 = 0o700;
/// What a data directory may hold before a restore: what the system and the start of this program put there.
const HARMLESS: [&str; 8] =
    ["lock", "version", "lost+found", "backups", "tokens.json", "tokens.lock", UNFINISHED, "version.new"];
/// What a restore replaces.
const REPLACED: [&str; 2] = ["store", "journal"];

/// What a backup is made of.
pub(crate) struct Source {
    /// The data directory.
    pub(crate) dir: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) store: Store,
    pub(crate) journal: Arc<Journal>,
    /// The file of tokens, wherever it is.
    pub(crate) tokens: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) one_at_a_time: Mutex<()>,
}

/// Another backup is being made.
#[derive(Debug, thiserror::Error)]
#[error("a backup is being made already: ask for one when that is done")]
pub(crate) struct Running;

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Where; absolute.
    pub(crate) dir: PathBuf,
    /// Parquet files.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Roll-ups among them.
    pub(crate) rows: u64,
    /// What the store has lost, and so the backup has not.
    pub(crate) missing: Vec<String>,
}

impl Made {
    fn new(dir: PathBuf, carried: Carried) -> Self {
        let Carried { files, bytes, rows, complaints, .. } = carried;
        Self { dir, files, bytes, rows, missing: complaints }
    }
}

impl Source {
    /// Makes a backup in the data directory.
    ///
    /// # Errors
    /// [`Running`]; there are too many already; the disk. What was begun is removed.
    pub(crate) fn make(&self) -> anyhow::Result<Made> {
        // Nobody waits here: who asks often would take all threads that may.
        let _one_at_a_time = match self.one_at_a_time.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(Running),
            Err(TryLockError::Poisoned(free)) => free.into_inner(),
            Ok(free) => free,
        };
        let backups = self.dir.join("backups");
        self.make_dir(&backups)?;
        let mut whole = 0;
        for entry in self.disk.list(&backups).with_context(|| format!("listing {}", backups.display()))? {
            if entry.path.join(UNFINISHED).exists() {
                // Nobody else makes one: this one was broken off.
                remove_all(&entry.path)?;
            } else {
                whole += 1;
            }
        }
        if whole >= MAX_BACKUPS {
            bail!("there are {whole} backups in {}: move or remove some first", backups.display());
        }
        let now_ns = self.clock.wall_ns();
        let at = rfc3339(now_ns).replace(':', "-");
        let names = std::iter::once(at.clone()).chain((2..=MAX_BACKUPS + 1).map(|it| format!("{at}-{it}")));
        let free = names.map(|name| backups.join(name)).find(|it| !it.exists());
        let into = free.context("no name is free for the backup")?;
        self.make_dir(&into)?;
        let made = self.fill(&into, now_ns).with_context(|| format!("making a backup in {}", into.display()));
        if made.is_err() {
            // If it stays, the next one removes it.
            let _ = remove_all(&into);
        }
        made
    }

    /// Makes a folder in the data directory, durably, unless it is there. It is its owner's, also where root makes it.
    fn make_dir(&self, dir: &Path) -> anyhow::Result<()> {
        let made = self.disk.create_dir_all(dir);
        let made = made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(DIR_MODE)));
        made.with_context(|| {
            format!(
                "{} cannot be made, or is not the user's that kvmetry runs as: give it to that one",
                dir.display()
            )
        })
    }

    /// Fills an empty folder.
    fn fill(&self, into: &Path, now_ns: i64) -> anyhow::Result<Made> {
        let disk = &*self.disk;
        begin(disk, into)?;
        let carried = self.store.backup(&into.join("store"), now_ns)?;
        // After the store's rows were taken: so it knows the tables of all of them.
        let catalog = self.journal.state(CATALOG)?;
        let states: Vec<_> = catalog.iter().map(|bytes| (CATALOG, bytes.as_slice())).collect();
        let limits = Limits::default();
        let (journal, _) = Journal::open(Arc::clone(&self.disk), &into.join("journal"), limits, &[STORE])?;
        // No number is given again that the store has seen.
        journal.advance(STORE, carried.cursor);
        journal.append(&[], &states, now_ns)?;
        drop(journal);
        if self.tokens.starts_with(&self.dir) && self.tokens.exists() {
            carry_tokens(&self.tokens, &into.join("tokens.json"))?;
        }
        finish(disk, into)?;
        Ok(Made::new(into.to_owned(), carried))
    }
}

/// Says that what is in this folder is not whole.
fn begin(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.open(&dir.join(UNFINISHED))?.sync()?;
    disk.sync_dir(dir)
}

/// Says that it is.
fn finish(disk: &dyn Disk, dir: &Path) -> anyhow::Result<()> {
    if !has_version(dir)? {
        write_version(dir)?;
    }
    disk.sync_dir(dir)?;
    disk.remove_file(&dir.join(UNFINISHED))?;
    Ok(disk.sync_dir(dir)?)
}

/// Checks where a backup shall go, before one is made.
///
/// # Errors
/// It is there and not empty, in the data directory, or nowhere.
pub(crate) fn check_target(dir: &Path, data_dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = std::path::absolute(dir).with_context(|| format!("{} cannot be found", dir.display()))?;
    // A link to a folder is that folder.
    let dir = fs::canonicalize(&dir).unwrap_or(dir);
    let above = dir.parent().context("a backup cannot be /: name a folder that is not there yet")?;
    let above = fs::canonicalize(above).with_context(|| format!("{} cannot be found", above.display()))?;
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    if above.starts_with(&data_dir) {
        bail!("{} is in the data directory, and would be lost with it: name another place", dir.display());
    }
    match fs::read_dir(&dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => bail!("{} is not empty: a backup goes into a folder of its own", dir.display()),
        Ok(false) => {}
        // Before a backup is made that nobody can take there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&dir)
            .and_then(|()| fs::remove_dir(&dir))
            .with_context(|| format!("{} cannot be made", dir.display()))?,
        Err(error) => return Err(error).with_context(|| format!("{} cannot be used", dir.display())),
    }
    Ok(dir)
}

/// Where the backup is that a server says it made: in this data directory, whatever else it says. It may be another
/// user's, who does not choose what is moved; in a container the same place has another name.
///
/// # Errors
/// There is no such folder.
pub(crate) fn find(made: &Path, data_dir: &Path) -> anyhow::Result<PathBuf> {
    let backups = data_dir.join("backups");
    let name = made.file_name().context("the server does not tell where the backup is")?;
    let dir = backups.join(name);
    // No link is followed.
    let is_folder = |it: &PathBuf| fs::symlink_metadata(it).is_ok_and(|it| it.is_dir());
    if ![&backups, &dir].into_iter().all(is_folder) {
        bail!(
            "the server says that it made a backup in {}, but {} is no folder",
            made.display(),
            dir.display()
        );
    }
    Ok(dir)
}

/// Moves a backup out of the data directory, to where [`check_target`] has been; copies it to another file system.
///
/// # Errors
/// What the system says. The backup stays where it is then, and what is in `to` says that it is not whole.
pub(crate) fn move_to(made: &Path, to: &Path) -> anyhow::Result<()> {
    let failed = || format!("the backup is in {} and cannot be moved to {}", made.display(), to.display());
    let is_copied = match fs::rename(made, to) {
        Ok(()) => false,
        // EBUSY: it is a mount point, and so another file system.
        Err(error) if matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::ResourceBusy) => {
            copy_to(made, to).with_context(failed)?;
            true
        }
        Err(error) => return Err(error).with_context(failed),
    };
    // The new name first: then the old one may go.
    sync_name(to)?;
    if is_copied {
        remove_all(made)?;
    }
    sync_name(made)
}

fn sync_name(path: &Path) -> anyhow::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    RealDisk.sync_dir(folder).with_context(|| format!("syncing {}", folder.display()))
}

fn copy_to(made: &Path, to: &Path) -> anyhow::Result<()> {
    make_dir(to)?;
    // One that was there may be open to all.
    fs::set_permissions(to, fs::Permissions::from_mode(DIR_MODE))
        .with_context(|| format!("{} is another user's: name a folder of your own", to.display()))?;
    begin(&RealDisk, to)?;
    copy_all(&RealDisk, made, to)?;
    finish(&RealDisk, to)
}

/// Copies what is in a folder into one that is there.
fn copy_all(disk: &dyn Disk, from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in disk.list(from)? {
        let Some(name) = entry.path.file_name() else { continue };
        let to = to.join(name);
        if entry.is_dir {
            disk.create_dir_all(&to)?;
            copy_all(disk, &entry.path, &to)?;
        } else {
            copy(disk, &entry.path, &to).with_context(|| format!("copying {}", entry.path.display()))?;
            // Of tokens above all.
            let mode = fs::metadata(&entry.path)?.permissions();
            fs::set_permissions(&to, mode)?;
        }
    }
    Ok(disk.sync_dir(to)?)
}

/// Fills a data directory that no process has from a backup. `tokens` is where the port looks for its tokens; those that
/// are there stay.
///
/// # Errors
/// It is no backup, not whole, or in use; the data directory is in use, or holds something and `replace` is not said; the disk.
pub(crate) fn restore(from: &Path, data_dir: &Path, tokens: &Path, replace: bool) -> anyhow::Result<Made> {
    let from = fs::canonicalize(from).with_context(|| format!("{} cannot be found", from.display()))?;
    if is_within(data_dir, &from) {
        bail!(
            "{} is in {}, and a backup stays as it is: name another place",
            data_dir.display(),
            from.display()
        );
    }
    if fs::canonicalize(data_dir).is_ok_and(|it| it == from) {
        bail!("{} is the data directory itself", from.display());
    }
    check_backup(&from)?;
    let _held = hold(&from)?;
    if let Some(found) = find_harmful(data_dir)? {
        let (place, found) = (data_dir.display(), found.display());
        if !has_version(data_dir)? && !data_dir.join(UNFINISHED).exists() {
            bail!("{place} is no data directory of kvmetry ({found} is in it): name another --data-dir");
        }
        if !replace {
            bail!(
                "{place} is not empty ({found} is in it): --replace gives up what it holds, also what is still to be \
                 delivered"
            );
        }
    }
    let dir = DataDir::open_to_restore(data_dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let carried = replace_with(&disk, &from, dir.path(), tokens);
    // Also what a failure leaves: a lock of root's would keep the service out.
    give_to_owner_of(dir.path(), dir.path());
    let carried = carried?;
    finish(&*disk, dir.path())?;
    Ok(Made::new(dir.path().to_owned(), carried))
}

/// Puts what a backup has in the place of what is in a data directory, which is not whole meanwhile.
fn replace_with(disk: &Arc<dyn Disk>, from: &Path, dir: &Path, tokens: &Path) -> anyhow::Result<Carried> {
    // Else a restore was broken off before, and what becomes of this one does not mend that.
    let was_whole = !dir.join(UNFINISHED).exists();
    let begun = begin(&**disk, dir).with_context(|| format!("writing into {}", dir.display()));
    let carried = match begun.and_then(|()| carry_in(disk, from, dir)) {
        Ok(carried) => carried,
        Err(error) => {
            // What was there is as it was.
            REPLACED.iter().for_each(|name| drop(remove_all(&new(dir, name))));
            if was_whole {
                let _ = disk.remove_file(&dir.join(UNFINISHED));
            }
            return Err(error);
        }
    };
    for name in REPLACED {
        let (new, place) = (new(dir, name), dir.join(name));
        remove_all(&place)?;
        fs::rename(&new, &place).with_context(|| format!("renaming {}", new.display()))?;
    }
    let (kept, tokens) = (from.join("tokens.json"), std::path::absolute(tokens)?);
    if kept.exists() && !tokens.exists() {
        if let Some(folder) = tokens.parent() {
            disk.create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        carry_tokens(&kept, &tokens)?;
    }
    Ok(carried)
}

/// Whether a place, which need not be there yet, is below a folder.
fn is_within(place: &Path, folder: &Path) -> bool {
    let Ok(place) = std::path::absolute(place) else { return false };
    let there = place.ancestors().find_map(|it| fs::canonicalize(it).ok());
    there.is_some_and(|it| it.starts_with(folder) && (it != folder || !place.exists()))
}

fn check_backup(from: &Path) -> anyhow::Result<()> {
    if from.join(UNFINISHED).exists() {
        bail!("{} holds only a part of a backup: making it was broken off; use another one", from.display());
    }
    if !has_version(from)? || !from.join("store/manifest.json").exists() {
        bail!("{} is no backup of kvmetry: name what kvmetry backup made", from.display());
    }
    Ok(())
}

/// Keeps every process from writing into a backup while it is read. A data directory in use changes meanwhile: its journal
/// and its store would be of different moments.
fn hold(from: &Path) -> anyhow::Result<Option<File>> {
    let path = from.join("lock");
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("{} cannot be opened", path.display()))?,
    };
    match lock.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => bail!(
            "{} is in use by process {}, and changes: make a backup of it (kvmetry backup), and restore that",
            from.display(),
            datadir::told(from, "pid").as_deref().unwrap_or("unknown")
        ),
        // Where nothing can be locked, nothing is written either: a read-only file system.
        _ => Ok(Some(lock)),
    }
}

/// Where a part of the data directory is made.
fn new(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.new"))
}

/// Makes store and journal beside those that are there.
///
/// # Errors
/// What is no store or journal, or a newer version's; the disk.
fn carry_in(disk: &Arc<dyn Disk>, from: &Path, dir: &Path) -> anyhow::Result<Carried> {
    for name in REPLACED {
        // A restore that was broken off.
        remove_all(&new(dir, name))?;
    }
    let mut carried = store::restore(disk, &from.join("store"), &new(dir, "store"))?;
    let journal = new(dir, "journal");
    disk.create_dir_all(&journal)?;
    // Copied, as it is written on.
    let theirs = from.join("journal");
    copy_all(&**disk, &theirs, &journal)
        .with_context(|| format!("{} cannot be copied: the backup is not whole", theirs.display()))?;
    carried.complaints.extend(damage_of_journal(disk, &journal, &theirs)?);
    Ok(carried)
}

/// What is damaged in a journal that was copied from there, for a person. Without it schemas and retentions of databases
/// may be those that the store knows, no others.
fn damage_of_journal(disk: &Arc<dyn Disk>, journal: &Path, from: &Path) -> anyhow::Result<Vec<String>> {
    // Nothing is too large or too old here: the configuration says later what stays.
    let limits = Limits { max_bytes: u64::MAX, max_age: Duration::MAX };
    let (_, opened) = Journal::open(Arc::clone(disk), journal, limits, &[])?;
    let told = |it: String| {
        let it = it.replace(&journal.display().to_string(), &from.display().to_string());
        format!("the backup's journal is damaged, what can be read of it is taken: {it}")
    };
    let cut_off = opened.cut_off.iter().map(|it| format!("{}: its last commit is not whole", it.display()));
    Ok(opened.damage.into_iter().chain(cut_off).map(told).collect())
}

/// Something in the data directory that a restore would take away or mix with.
fn find_harmful(data_dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(|| format!("{} cannot be read", data_dir.display()))?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if !HARMLESS.iter().any(|it| *it == name) {
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("{} cannot be made", dir.display()))
        }
        _ => Ok(()),
    }
}

fn remove_all(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

fn carry_tokens(from: &Path, to: &Path) -> anyhow::Result<()> {
    copy(&RealDisk, from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(0o600))?)
}

/// Where root restores for a service that has its own user, the service must be able to use it. Nobody else can give
/// files away, and needs not.
fn give_to_owner_of(folder: &Path, below: &Path) {
    let Ok(owner) = fs::metadata(folder) else { return };
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let _ = lchown(entry.path(), Some(owner.uid()), Some(owner.gid()));
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            give_to_owner_of(folder, &entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use store::Options;

    use super::*;
    use crate::clock::SystemClock;

    fn source(dir: &DataDir) -> Source {
        let (disk, path): (Arc<dyn Disk>, _) = (Arc::new(dir.disk()), dir.path());
        let journal = Journal::open(Arc::clone(&disk), &path.join("journal"), Limits::default(), &[STORE]);
        Source {
            dir: path.to_owned(),
            store: Store::open(Arc::clone(&disk), &path.join("store"), Options::default()).unwrap().0,
            disk,
            journal: Arc::new(journal.unwrap().0),
            tokens: path.join("tokens.json"),
            clock: Arc::new(SystemClock),
            one_at_a_time: Mutex::default(),
        }
    }

    /// With the tokens where they are by default.
    fn restore(from: &Path, data_dir: &Path, replace: bool) -> anyhow::Result<Made> {
        super::restore(from, data_dir, &data_dir.join("tokens.json"), replace)
    }

    /// A backup of no rows, moved to this place.
    fn backup_at(place: &Path) {
        let folder = tempfile::tempdir_in(place.parent().unwrap()).unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        move_to(&source(&dir).make().unwrap().dir, place).unwrap();
    }

    /// Some user who is not root; there need be none of that number.
    const SOMEBODY: u32 = 4_711;

    /// Gives a folder to another user, which only root can; whose it is then.
    fn give_away(folder: &Path) -> u32 {
        let _ = lchown(folder, Some(SOMEBODY), Some(SOMEBODY));
        owner_of(folder)
    }

    fn owner_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().uid()
    }

    #[test]
    fn backups_belong_to_the_owner_of_the_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        let owner = give_away(folder.path());
        let dir = DataDir::open(folder.path()).unwrap();
        let made = source(&dir).make().unwrap().dir;
        for dir in [made.parent().unwrap(), &made] {
            let about = fs::metadata(dir).unwrap();
            assert_eq!(
                (about.uid(), about.permissions().mode() & 0o777),
                (owner, DIR_MODE),
                "{}",
                dir.display()
            );
        }
    }

    #[test]
    fn a_server_names_backups_of_its_data_directory_only() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let (there, link) = (data.join("backups/1"), data.join("backups/link"));
        let found = |made: &str| find(Path::new(made), &data).ok();
        fs::create_dir_all(folder.path().join("1")).unwrap();
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(folder.path(), data.join("backups")).unwrap();
        assert_eq!(found("/data/backups/1"), None, "backups is a link");
        fs::remove_file(data.join("backups")).unwrap();
        fs::create_dir_all(&there).unwrap();
        std::os::unix::fs::symlink(&there, link).unwrap();
        assert_eq!(found("/in/a/container/backups/1"), Some(there));
        for made in ["/etc", "/data/backups/link", "/", ".."] {
            assert_eq!(found(made), None, "{made}");
        }
    }

    #[test]
    fn one_backup_is_made_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let source = source(&dir);
        let making = source.one_at_a_time.lock().unwrap();
        assert!(source.make().unwrap_err().is::<Running>());
        drop(making);
        source.make().unwrap();
    }

    #[test]
    fn no_backup_is_made_where_the_data_directory_is_not_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let (data, away) = (folder.path().join("data"), folder.path().join("away"));
        let dir = DataDir::open(&data).unwrap();
        let source = source(&dir);
        fs::rename(&data, &away).unwrap();
        fs::create_dir(&data).unwrap();
        let told = format!("{:#}", source.make().unwrap_err());
        assert!(told.contains("is not the data directory any more"), "{told}");
        assert!(data.read_dir().unwrap().next().is_none());
    }

    /// As on another file system, whatever the folder there was.
    #[test]
    fn a_copied_backup_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("backup"), folder.path().join("copy"));
        backup_at(&from);
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        copy_to(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, DIR_MODE);
        assert!(check_backup(&to).is_ok());
    }

    #[test]
    fn what_a_failed_restore_leaves_is_the_services() {
        let folder = tempfile::tempdir().unwrap();
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        backup_at(&from);
        fs::write(from.join("store/manifest.json"), "damaged").unwrap();
        fs::create_dir(&data).unwrap();
        let owner = give_away(&data);
        restore(&from, &data, false).unwrap_err();
        for name in ["lock", "version"] {
            assert_eq!(owner_of(&data.join(name)), owner, "{name}");
        }
    }

    #[test]
    fn a_restore_replaces_data_directories_only() {
        let folder = tempfile::tempdir().unwrap();
        let (from, other) = (folder.path().join("backup"), folder.path().join("log"));
        backup_at(&from);
        let theirs = other.join("journal/theirs");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "").unwrap();
        let told = restore(&from, &other, true).unwrap_err().to_string();
        assert!(told.contains("is no data directory of kvmetry (journal is in it)"), "{told}");
        assert!(theirs.exists() && !other.join("lock").exists());
        // Of a backup that was copied and broken off there is a part.
        fs::write(other.join(UNFINISHED), "").unwrap();
        restore(&from, &other, true).unwrap();
        assert!(!theirs.exists());
    }

    #[test]
    fn tokens_are_restored_where_the_port_looks() {
        let folder = tempfile::tempdir().unwrap();
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        backup_at(&from);
        fs::write(from.join("tokens.json"), "tokens").unwrap();
        let tokens = data.join("own/tokens");
        super::restore(&from, &data, &tokens, false).unwrap();
        assert_eq!(fs::read_to_string(&tokens).unwrap(), "tokens");
        assert_eq!(fs::metadata(&tokens).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!data.join("tokens.json").exists());
    }

    #[test]
    fn a_backup_goes_where_a_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to, link) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("link"));
        backup_at(&from);
        fs::create_dir(&to).unwrap();
        std::os::unix::fs::symlink(&to, &link).unwrap();
        let found = check_target(&link, &folder.path().join("data")).unwrap();
        move_to(&from, &found).unwrap();
        assert!(to.join("store/manifest.json").exists() && fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(check_target(&link, &folder.path().join("data")).is_err(), "it is not empty any more");
        fs::remove_dir_all(&to).unwrap();
        assert!(check_target(&link, &folder.path().join("data")).is_err(), "it leads nowhere");
    }

    #[test]
    fn a_damaged_journal_of_a_backup_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        backup_at(&from);
        assert_eq!(restore(&from, &data, false).unwrap().missing, Vec::<String>::new());
        let segment = fs::read_dir(from.join("journal")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&segment).unwrap();
        bytes[..4_096].fill(0xA5);
        fs::write(&segment, bytes).unwrap();
        let told = restore(&from, &data, true).unwrap().missing;
        let [told] = &told[..] else { panic!("{told:?}") };
        assert!(
            told.contains("journal is damaged") && told.contains(&segment.display().to_string()),
            "{told}"
        );
        // It can be used all the same.
        source(&DataDir::open(&data).unwrap());
    }

    /// A restore that fails leaves a directory as it was: whole, or not.
    #[test]
    fn a_restore_that_fails_makes_nothing_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (from, data) = (folder.path().join("backup"), folder.path().join("data"));
        backup_at(&from);
        restore(&from, &data, false).unwrap();
        fs::write(from.join("store/manifest.json"), "damaged").unwrap();
        let unfinished = data.join(UNFINISHED);
        restore(&from, &data, true).unwrap_err();
        assert!(!unfinished.exists());
        fs::write(&unfinished, "").unwrap();
        restore(&from, &data, true).unwrap_err();
        assert!(unfinished.exists());
        assert!(!data.join("store.new").exists() && data.join("store/manifest.json").exists());
    }
}
