//! A file system in memory that crashes and fails on demand.
//!
//! Beside what a process sees ([`Disk`]) it keeps what would be there after a loss of power, and all changes between
//! the two: writes and lengths of each file, names of each folder. [`Double::crash`] decides for each of these
//! changes by a seeded choice whether it got to the disk; a write may get there in part, sector by sector. That
//! covers reordering: of two changes the later may be there and the earlier not. What was synced is there.
//!
//! - [`Effect::PowerOff`] is the way to crash in the middle: from then on every call fails, until [`Double::crash`].
//! - Whatever was opened before a crash fails after it, so a process that "died" may be dropped at any time.
//! - [`Double::fault`] makes chosen operations fail, be cut short, or lie ([`Effect::Ignore`]: a sync that does
//!   nothing, which is how a test proves that a sync is needed).
//! - A failed sync leaves each change either on the disk or lost for good, whatever later syncs say: as Linux does.
//! - [`Double::set_space`] limits the room, in pages of 4 KiB that were written; holes take none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::{Disk, DiskFile, Entry, Space};

/// What a disk writes whole or not at all, bytes.
pub const SECTOR: usize = 512;
/// What room is counted in, bytes.
const PAGE: u64 = 4096;

/// Kinds of operations: the methods of [`Disk`] and [`DiskFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Op {
    Open,
    CreateNew,
    OpenToRead,
    Rename,
    HardLink,
    RemoveFile,
    CreateDirAll,
    RemoveDir,
    SyncDir,
    List,
    Space,
    Len,
    Read,
    Write,
    SetLen,
    Sync,
}

impl Op {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Open,
        Self::CreateNew,
        Self::OpenToRead,
        Self::Rename,
        Self::HardLink,
        Self::RemoveFile,
        Self::CreateDirAll,
        Self::RemoveDir,
        Self::SyncDir,
        Self::List,
        Self::Space,
        Self::Len,
        Self::Read,
        Self::Write,
        Self::SetLen,
        Self::Sync,
    ];
}

/// Which operations shall go wrong, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// These kinds; none: any.
    pub ops: Vec<Op>,
    /// Those on a path that contains this; empty: any. An open file's path is the name that it was given last.
    pub path: String,
    /// Those right after an operation of this kind on the same path, or on a name in that folder; none: any.
    pub previous: Option<Op>,
    /// The first so many of them go right.
    pub after: u64,
    /// So many go wrong then.
    pub times: u64,
    /// How.
    pub effect: Effect,
}

impl Fault {
    /// The n-th operation from now on, counted from 0.
    pub fn nth(n: u64, effect: Effect) -> Self {
        Self { ops: Vec::new(), path: String::new(), previous: None, after: n, times: 1, effect }
    }

    /// Every operation of this kind from now on.
    pub fn every(op: Op, effect: Effect) -> Self {
        Self { ops: vec![op], path: String::new(), previous: None, after: 0, times: u64::MAX, effect }
    }

    /// Only right after an operation of this kind on the same path, or on a name in that folder.
    #[must_use]
    pub fn right_after(mut self, previous: Op) -> Self {
        self.previous = Some(previous);
        self
    }

    /// Only on paths that contain this.
    #[must_use]
    pub fn on(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }
}

/// What happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails.
    Fail(Failure),
    /// A write does its first half and fails; anything else just fails.
    Short(Failure),
    /// It does nothing and says that it went well: for syncs. `create_dir_all` makes the folders, and leaves out the syncs
    /// of their names. Reads and what gives a file back fail with EIO.
    Ignore,
    /// The power goes.
    PowerOff,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// ENOSPC: no room.
    NoSpace,
    /// EIO: the disk is broken.
    Io,
    /// EROFS: remounted to read only.
    ReadOnly,
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::NoSpace => Errno::NOSPC,
            Self::Io => Errno::IO,
            Self::ReadOnly => Errno::ROFS,
        }
        .into()
    }
}

/// A file system in memory. Clones are the same file system.
#[derive(Clone, Debug, Default)]
pub struct Double {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    dirs: BTreeMap<PathBuf, Dir>,
    files: HashMap<Id, File>,
    next_id: Id,
    /// Counted at each crash: what was opened before is dead.
    life: u64,
    is_off: bool,
    faults: Vec<Fault>,
    counts: BTreeMap<Op, u64>,
    /// The last operation on each path, while there are faults that ask for it.
    previous: HashMap<PathBuf, Op>,
    trace: Option<Vec<(Op, PathBuf)>>,
    space: Option<u64>,
    rng: Option<fastrand::Rng>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> =
            self.dirs.iter().map(|(path, dir)| (path, dir.now.keys().collect::<Vec<_>>())).collect();
        out.debug_struct("State").field("dirs", &names).field("life", &self.life).finish_non_exhaustive()
    }
}

type Id = u64;

/// Names of files. Folders are there from the moment that they are made, as `create_dir_all` promises, unless that lied.
#[derive(Clone, Debug, Default)]
struct Dir {
    now: BTreeMap<OsString, Id>,
    durable: BTreeMap<OsString, Id>,
    pending: Vec<Naming>,
    /// Removed, but not yet durably.
    removed: bool,
    /// Made, but its name is not durable.
    is_loose: bool,
}

/// A change of names in one folder: it happens as a whole or not at all.
#[derive(Clone, Debug)]
struct Naming {
    removed: Option<OsString>,
    added: Option<(OsString, Id)>,
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<OsString, Id>) {
        if let Some(name) = &self.removed {
            names.remove(name);
        }
        if let Some((name, id)) = &self.added {
            names.insert(name.clone(), *id);
        }
    }
}

#[derive(Debug, Default)]
struct File {
    /// The name that it was given last.
    path: PathBuf,
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Pages that take room.
    pages: BTreeSet<u64>,
    /// Bytes that cannot be read.
    spoiled: Vec<Range<u64>>,
    open: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, what) => write(bytes, *offset, what),
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }

    /// As far as it got before the power went.
    fn apply_part(&self, bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) {
        let Self::Write(offset, what) = self else { return self.apply(bytes) };
        let mut from = 0;
        while from < what.len() {
            let to = ((offset + from) / SECTOR * SECTOR + SECTOR - offset).min(what.len());
            if rng.bool() {
                write(bytes, offset + from, &what[from..to]);
            }
            from = to;
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, what: &[u8]) {
    if bytes.len() < offset + what.len() {
        bytes.resize(offset + what.len(), 0);
    }
    bytes[offset..offset + what.len()].copy_from_slice(what);
}

impl File {
    fn free_beyond(&mut self, len: u64) {
        drop(self.pages.split_off(&len.div_ceil(PAGE)));
    }

    /// What a sync that fails leaves: changes that are on the disk, and changes that never will be.
    fn sync_badly(&mut self, rng: &mut fastrand::Rng) {
        for change in std::mem::take(&mut self.pending) {
            if rng.bool() {
                change.apply_part(&mut self.durable, rng);
            }
        }
    }
}

/// How a crash treats what was not synced.
#[derive(Clone, Copy)]
enum Luck {
    AllLost,
    AllKept,
    Mixed,
}

impl Luck {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..8) {
            0 => Self::AllLost,
            1 => Self::AllKept,
            _ => Self::Mixed,
        }
    }

    fn keeps(self, rng: &mut fastrand::Rng) -> bool {
        match self {
            Self::AllLost => false,
            Self::AllKept => true,
            Self::Mixed => rng.bool(),
        }
    }
}

impl Double {
    /// An empty file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// The power went and is back: of what was not synced, the seed decides what is there. Faults are forgotten.
    pub fn crash(&self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut state = self.lock();
        state.life += 1;
        state.is_off = false;
        state.faults.clear();
        state.previous.clear();
        let luck = Luck::draw(&mut rng);
        for dir in state.dirs.values_mut() {
            for naming in std::mem::take(&mut dir.pending) {
                if luck.keeps(&mut rng) {
                    naming.apply(&mut dir.durable);
                }
            }
            dir.now = dir.durable.clone();
            // A folder that has names again was not removed.
            dir.removed = dir.removed && dir.now.is_empty() && luck.keeps(&mut rng);
        }
        state.dirs.retain(|_, dir| !dir.removed);
        let mut lost: Vec<PathBuf> = Vec::new();
        for (path, dir) in &mut state.dirs {
            if std::mem::take(&mut dir.is_loose) && !luck.keeps(&mut rng) {
                lost.push(path.clone());
            }
        }
        state.dirs.retain(|path, _| !lost.iter().any(|it| path.starts_with(it)));
        let names: Vec<(PathBuf, Id)> = state
            .dirs
            .iter()
            .flat_map(|(path, dir)| dir.now.iter().map(|(name, id)| (path.join(name), *id)))
            .collect();
        let named: BTreeSet<Id> = names.iter().map(|(_, id)| *id).collect();
        state.files.retain(|id, _| named.contains(id));
        for (path, id) in names {
            if let Some(file) = state.files.get_mut(&id) {
                file.path = path;
            }
        }
        // In a fixed order: the same seed gives the same disk.
        for id in named {
            let luck = Luck::draw(&mut rng);
            let Some(file) = state.files.get_mut(&id) else { continue };
            for change in std::mem::take(&mut file.pending) {
                if luck.keeps(&mut rng) {
                    if matches!(luck, Luck::Mixed) && rng.bool() {
                        change.apply_part(&mut file.durable, &mut rng);
                    } else {
                        change.apply(&mut file.durable);
                    }
                }
            }
            file.now = file.durable.clone();
            let len = file.now.len() as u64;
            file.free_beyond(len);
            file.open = 0;
        }
    }

    /// Lets operations go wrong. Of several faults that fit, the first counts.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Lets all go right again; the power, if it is off, stays off.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.previous.clear();
    }

    /// Forgets the faults that have this effect.
    pub fn unfault(&self, effect: Effect) {
        self.lock().faults.retain(|it| it.effect != effect);
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.lock().is_off
    }

    /// Limits the room, bytes.
    pub fn set_space(&self, total: Option<u64>) {
        self.lock().space = total;
    }

    /// How many operations there were, whether they went right or not.
    pub fn operations(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// How many of a kind.
    pub fn count(&self, op: Op) -> u64 {
        self.lock().counts.get(&op).copied().unwrap_or(0)
    }

    /// Begins to note every operation.
    pub fn trace(&self) {
        self.lock().trace = Some(Vec::new());
    }

    /// The operations since [`Double::trace`], or since they were taken last.
    pub fn take_trace(&self) -> Vec<(Op, PathBuf)> {
        self.lock().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// The seed for what is left to chance while the power is on: what a failed sync leaves.
    pub fn seed(&self, seed: u64) {
        self.lock().rng = Some(fastrand::Rng::with_seed(seed));
    }

    /// Does something to a file's bytes behind everyone's back, on the disk and as they are seen; false if there is
    /// no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.lock();
        let Ok(id) = state.id(path) else { return false };
        let Some(file) = state.files.get_mut(&id) else { return false };
        change(&mut file.now);
        file.durable.clone_from(&file.now);
        file.pending.clear();
        true
    }

    /// Makes bytes of a file unreadable, as bad sectors are; false if there is no such file.
    pub fn spoil(&self, path: &Path, bytes: Range<u64>) -> bool {
        let mut state = self.lock();
        let Ok(id) = state.id(path) else { return false };
        let Some(file) = state.files.get_mut(&id) else { return false };
        file.spoiled.push(bytes);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_id(&self, state: &mut State, id: Id, may_write: bool) -> Box<dyn DiskFile> {
        if let Some(file) = state.files.get_mut(&id) {
            file.open += 1;
        }
        Box::new(Handle { disk: self.clone(), id, life: state.life, may_write })
    }
}

impl State {
    /// Counts the operation; an error if it is to fail, true if it is to be skipped.
    fn begin(&mut self, op: Op, path: &Path) -> io::Result<bool> {
        self.note(op, path);
        if self.is_off {
            return Err(Failure::Io.error());
        }
        match self.effect(op, path) {
            None => Ok(false),
            Some(Effect::Fail(failure)) => Err(failure.error()),
            Some(Effect::Short(failure)) => Err(failure.error()),
            Some(Effect::Ignore) => Ok(true),
            Some(Effect::PowerOff) => {
                self.is_off = true;
                Err(Failure::Io.error())
            }
        }
    }

    fn note(&mut self, op: Op, path: &Path) {
        *self.counts.entry(op).or_default() += 1;
        if let Some(trace) = &mut self.trace {
            trace.push((op, path.to_owned()));
        }
    }

    fn effect(&mut self, op: Op, path: &Path) -> Option<Effect> {
        if self.faults.is_empty() {
            return None;
        }
        let previous = self.previous.insert(path.to_owned(), op);
        if let (Op::CreateNew | Op::Rename | Op::HardLink | Op::RemoveFile, Some(dir)) = (op, path.parent()) {
            self.previous.insert(dir.to_owned(), op);
        }
        let path = path.to_string_lossy();
        let mut effect = None;
        for fault in &mut self.faults {
            let fits = (fault.ops.is_empty() || fault.ops.contains(&op))
                && path.contains(&fault.path)
                && (fault.previous.is_none() || fault.previous == previous);
            if !fits {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 && effect.is_none() {
                fault.times -= 1;
                effect = Some(fault.effect);
            }
        }
        effect
    }

    fn rng(&mut self) -> &mut fastrand::Rng {
        self.rng.get_or_insert_with(|| fastrand::Rng::with_seed(0))
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).filter(|it| !it.removed).ok_or_else(|| Errno::NOENT.into())
    }

    fn place(&mut self, path: &Path) -> io::Result<(&mut Dir, OsString)> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        if self.dirs.get(path).is_some_and(|it| !it.removed) {
            return Err(Errno::ISDIR.into());
        }
        Ok((self.dir(dir)?, name.to_owned()))
    }

    fn id(&mut self, path: &Path) -> io::Result<Id> {
        let (dir, name) = self.place(path)?;
        dir.now.get(&name).copied().ok_or_else(|| Errno::NOENT.into())
    }

    fn create(&mut self, path: &Path) -> io::Result<Id> {
        let id = self.next_id;
        self.name(path, Naming { removed: None, added: Some((OsString::new(), id)) })?;
        self.next_id += 1;
        self.files.insert(id, File { path: path.to_owned(), ..File::default() });
        Ok(id)
    }

    /// Changes names in the folder of this path, whose own name is put in for an empty one.
    fn name(&mut self, path: &Path, mut naming: Naming) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        if let Some((added, _)) = naming.added.as_mut().filter(|it| it.0.is_empty()) {
            *added = name.clone();
        }
        if let Some(removed) = naming.removed.as_mut().filter(|it| it.is_empty()) {
            *removed = name;
        }
        naming.apply(&mut dir.now);
        dir.pending.push(naming);
        Ok(())
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<Id> = self.dirs.values().flat_map(|it| it.now.values().copied()).collect();
        let takes = |(id, file): &(&Id, &File)| named.contains(*id) || file.open > 0;
        self.files.iter().filter(takes).map(|(_, it)| it.pages.len() as u64 * PAGE).sum()
    }
}

/// Pages that these bytes touch.
fn pages(range: Range<u64>) -> Range<u64> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

impl Disk for Double {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        if state.begin(Op::Open, path)? {
            return Err(Failure::Io.error());
        }
        let id = match state.id(path) {
            Ok(id) => id,
            Err(error) if error.kind() == io::ErrorKind::NotFound => state.create(path)?,
            Err(error) => return Err(error),
        };
        Ok(self.open_id(&mut state, id, true))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        if state.begin(Op::CreateNew, path)? {
            return Err(Failure::Io.error());
        }
        if state.id(path).is_ok() {
            return Err(Errno::EXIST.into());
        }
        let id = state.create(path)?;
        Ok(self.open_id(&mut state, id, true))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        if state.begin(Op::OpenToRead, path)? {
            return Err(Failure::Io.error());
        }
        let id = state.id(path)?;
        Ok(self.open_id(&mut state, id, false))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.begin(Op::Rename, from)? {
            return Ok(());
        }
        let id = state.id(from)?;
        let (_, old) = state.place(from)?;
        state.place(to)?;
        if let Some(file) = state.files.get_mut(&id) {
            to.clone_into(&mut file.path);
        }
        if from.parent() == to.parent() {
            return state.name(to, Naming { removed: Some(old), added: Some((OsString::new(), id)) });
        }
        state.name(to, Naming { removed: None, added: Some((OsString::new(), id)) })?;
        state.name(from, Naming { removed: Some(OsString::new()), added: None })
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.begin(Op::HardLink, to)? {
            return Ok(());
        }
        let id = state.id(from)?;
        if state.id(to).is_ok() {
            return Err(Errno::EXIST.into());
        }
        state.name(to, Naming { removed: None, added: Some((OsString::new(), id)) })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.begin(Op::RemoveFile, path)? {
            return Ok(());
        }
        state.id(path)?;
        state.name(path, Naming { removed: Some(OsString::new()), added: None })
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let skip = state.begin(Op::CreateDirAll, path)?;
        for dir in path.ancestors() {
            let taken = dir.parent().and_then(|it| state.dirs.get(it)).zip(dir.file_name());
            if taken.is_some_and(|(parent, name)| parent.now.contains_key(name)) {
                return Err(Errno::NOTDIR.into());
            }
        }
        for dir in path.ancestors() {
            let is_new = !state.dirs.contains_key(dir);
            let dir = state.dirs.entry(dir.to_owned()).or_default();
            dir.removed = false;
            dir.is_loose = skip && (is_new || dir.is_loose);
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.begin(Op::RemoveDir, path)? {
            return Ok(());
        }
        let below = state.dirs.iter().any(|(it, dir)| it.parent() == Some(path) && !dir.removed);
        let dir = state.dir(path)?;
        if below || !dir.now.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        dir.removed = true;
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let skip = state.begin(Op::SyncDir, path)?;
        let dir = state.dir(path)?;
        if !skip {
            dir.pending.clear();
            dir.durable = dir.now.clone();
            // Folders in it that were removed are so for good, and others are there.
            state.dirs.retain(|it, dir| !(dir.removed && it.parent() == Some(path)));
            let below = state.dirs.iter_mut().filter(|it| it.0.parent() == Some(path));
            below.for_each(|(_, dir)| dir.is_loose = false);
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.lock();
        if state.begin(Op::List, path)? {
            return Err(Failure::Io.error());
        }
        let files = state.dir(path)?.now.clone();
        let mut entries = Vec::new();
        for (name, id) in &files {
            let Some(file) = state.files.get(id) else { continue };
            let (len, taken) = (file.now.len() as u64, file.pages.len() as u64 * PAGE);
            entries.push(Entry { path: path.join(name), is_dir: false, len, taken });
        }
        for (it, _) in state.dirs.iter().filter(|(it, dir)| it.parent() == Some(path) && !dir.removed) {
            entries.push(Entry { path: it.clone(), is_dir: true, len: 0, taken: 0 });
        }
        entries.sort();
        Ok(entries)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let mut state = self.lock();
        if state.begin(Op::Space, path)? {
            return Err(Failure::Io.error());
        }
        state.dir(path)?;
        // Without a limit as much as a large disk.
        let total = state.space.unwrap_or(1 << 40);
        Ok(Space { total, free: total.saturating_sub(state.used()) })
    }
}

#[derive(Debug)]
struct Handle {
    disk: Double,
    id: Id,
    life: u64,
    may_write: bool,
}

impl Handle {
    /// The file system, if the process that opened this is alive; and whether to skip the operation.
    fn begin(&self, op: Op) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.disk.lock();
        if state.life != self.life {
            return Err(Failure::Io.error());
        }
        let path = self.file(&mut state)?.path.clone();
        let skip = state.begin(op, &path)?;
        Ok((state, skip))
    }

    fn file<'a>(&self, state: &'a mut State) -> io::Result<&'a mut File> {
        state.files.get_mut(&self.id).ok_or_else(|| Errno::BADF.into())
    }

    fn may_write(&self) -> io::Result<()> {
        if self.may_write { Ok(()) } else { Err(Errno::BADF.into()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if state.life == self.life
            && let Some(file) = state.files.get_mut(&self.id)
        {
            file.open -= 1;
        }
    }
}

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        let (mut state, skip) = self.begin(Op::Len)?;
        if skip {
            return Err(Failure::Io.error());
        }
        Ok(self.file(&mut state)?.now.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut state, skip) = self.begin(Op::Read)?;
        if skip {
            return Err(Failure::Io.error());
        }
        let file = self.file(&mut state)?;
        let end = offset.saturating_add(buffer.len() as u64);
        if file.spoiled.iter().any(|it| it.start < end && offset < it.end) {
            return Err(Failure::Io.error());
        }
        let found = usize::try_from(offset)
            .ok()
            .and_then(|from| file.now.get(from..from.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.may_write()?;
        // A short write is a write of a part, then the error.
        let mut state = self.disk.lock();
        if state.life != self.life || state.is_off {
            return Err(Failure::Io.error());
        }
        let path = self.file(&mut state)?.path.clone();
        state.note(Op::Write, &path);
        let (len, mut result) = match state.effect(Op::Write, &path) {
            None => (bytes.len(), Ok(())),
            Some(Effect::Fail(failure)) => return Err(failure.error()),
            Some(Effect::Short(failure)) => (bytes.len() / 2, Err(failure.error())),
            Some(Effect::Ignore) => return Ok(()),
            Some(Effect::PowerOff) => {
                state.is_off = true;
                (bytes.len(), Err(Failure::Io.error()))
            }
        };
        let mut bytes = &bytes[..len];
        let end = |bytes: &[u8]| offset + bytes.len() as u64;
        if let Some(total) = state.space {
            let free = total.saturating_sub(state.used()) / PAGE;
            let file = self.file(&mut state)?;
            let new: Vec<u64> = pages(offset..end(bytes)).filter(|it| !file.pages.contains(it)).collect();
            if let Some(beyond) = usize::try_from(free).ok().and_then(|it| new.get(it)) {
                let fits = usize::try_from((beyond * PAGE).saturating_sub(offset)).unwrap_or(0);
                bytes = &bytes[..fits.min(bytes.len())];
                result = Err(Failure::NoSpace.error());
            }
        }
        let at = usize::try_from(offset).map_err(|_| io::Error::from(Errno::FBIG))?;
        let file = self.file(&mut state)?;
        if !bytes.is_empty() {
            file.pages.extend(pages(offset..end(bytes)));
            write(&mut file.now, at, bytes);
            file.pending.push(Change::Write(at, bytes.to_vec()));
        }
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_write()?;
        let (mut state, skip) = self.begin(Op::SetLen)?;
        if skip {
            return Ok(());
        }
        let file = self.file(&mut state)?;
        let change = Change::SetLen(usize::try_from(len).map_err(|_| io::Error::from(Errno::FBIG))?);
        change.apply(&mut file.now);
        file.pending.push(change);
        file.free_beyond(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let begun = self.begin(Op::Sync);
        match begun {
            Ok((_, true)) => Ok(()),
            Ok((mut state, false)) => {
                let file = self.file(&mut state)?;
                for change in std::mem::take(&mut file.pending) {
                    change.apply(&mut file.durable);
                }
                Ok(())
            }
            Err(error) => {
                let mut state = self.disk.lock();
                if state.life == self.life && !state.is_off {
                    let mut rng = state.rng().fork();
                    if let Ok(file) = self.file(&mut state) {
                        file.sync_badly(&mut rng);
                    }
                }
                Err(error)
            }
        }
    }
}
