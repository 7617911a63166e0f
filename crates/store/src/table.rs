//! One table: its columns, its rows in memory, its files.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arrow::datatypes::SchemaRef;
use telemetry::lines::TableBatch;

use crate::error::{Result, StoreError};
use crate::files::StoredFile;
use crate::last::Last;
use crate::manifest::Mark;
use crate::memory::{Chunk, Keys, Memory, Times, WantedTags, has_tags, overlap};
use crate::merge::{Chunks, Rule, Sorted, Source};
use crate::rollup::{self, Carry, Give};
use crate::schema::{Columns, Kind, TIME};

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) database: String,
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Whether roll-ups are made of it.
    pub(crate) rolls: bool,
    state: Mutex<State>,
    /// The roll-ups of what is in memory, as they were asked for last.
    live: Mutex<Option<Live>>,
}

/// What a table's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// As they were written.
    Raw,
    /// Worked out from those of another table.
    RollUp {
        /// The other table.
        of: String,
        /// The place in [`BUCKETS`].
        size: usize,
    },
}

/// Roll-ups of rows in memory, and of which.
#[derive(Debug)]
struct Live {
    /// It must not stay in memory for this alone.
    carry: Weak<Carry>,
    last_chunk: Option<Arc<Chunk>>,
    /// See [`Table::live_rollups`].
    oldest: i64,
    rows: [Vec<Arc<Chunk>>; 2],
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) columns: Columns,
    pub(crate) memory: Memory,
    /// By day, then in the journal's order.
    pub(crate) files: Arc<Vec<Arc<StoredFile>>>,
    /// Of a raw table, what its roll-ups go on from; `None` before it was made anew from the files.
    pub(crate) carry: Option<Arc<Carry>>,
    /// The newest row of each series.
    pub(crate) last: Last,
    /// Files that are set aside.
    pub(crate) damaged: Vec<Arc<StoredFile>>,
    /// Up to this time rows went before their retention was over.
    pub(crate) removed_until: Option<i64>,
    /// What must be known of the rows in files; `None` where a table has none.
    pub(crate) mark: Option<Mark>,
}

/// All rows of a table at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) columns: Columns,
    pub(crate) files: Arc<Vec<Arc<StoredFile>>>,
    /// In the journal's order; all later than those of the files.
    pub(crate) chunks: Vec<Arc<Chunk>>,
    /// Of these files.
    pub(crate) carry: Option<Arc<Carry>>,
    /// Times of which rows are gone that should be there.
    pub(crate) gone: Vec<Times>,
    /// Of these files.
    pub(crate) mark: Option<Mark>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(database: &str, name: &str, role: Role, rolls: bool) -> Self {
        let (database, name, rolls) = (database.to_owned(), name.to_owned(), rolls && role == Role::Raw);
        Self { database, name, role, rolls, state: Mutex::default(), live: Mutex::default() }
    }

    /// How rows of the same series and time are merged here.
    pub(crate) fn rule(&self) -> Rule {
        match self.role {
            Role::Raw => Rule::Fields,
            Role::RollUp { .. } => Rule::Rows,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rows, in the journal's order.
    pub(crate) fn append(&self, batch: &TableBatch) -> Result<()> {
        if self.role != Role::Raw {
            let problem = format!("{} {} holds roll-ups and cannot be written", self.database, self.name);
            return Err(StoreError::Internal(problem));
        }
        let mut state = self.lock();
        state
            .columns
            .extend(batch)
            .map_err(|problem| StoreError::Internal(format!("{} {}: {problem}", self.database, self.name)))?;
        state.memory.append(batch)?;
        state.last.append(batch);
        Ok(())
    }

    /// The file of this table that the error is about.
    pub(crate) fn file_of(&self, error: &StoreError) -> Option<Arc<StoredFile>> {
        let path = error.path()?;
        self.lock().files.iter().find(|it| it.path == path).cloned()
    }

    /// The latest time of a row.
    pub(crate) fn newest(&self) -> Option<i64> {
        let state = self.lock();
        state.files.iter().map(|it| it.entry.times.1).max().max(state.memory.newest())
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let mut state = self.lock();
        let chunks = state.memory.show()?;
        Ok(state.snapshot(chunks))
    }

    /// What the roll-ups of this table go on from, where its files are those of the snapshot. If it is made anew, it takes
    /// `room` bytes at most.
    pub(crate) fn carry(&self, snapshot: &Snapshot, room: usize) -> Result<Arc<Carry>> {
        if let Some(carry) = &snapshot.carry {
            return Ok(Arc::clone(carry));
        }
        let carry = Arc::new(rollup::rebuild(&self.name, snapshot, room)?);
        let mut state = self.lock();
        if Arc::ptr_eq(&state.files, &snapshot.files) && state.carry.is_none() {
            state.carry = Some(Arc::clone(&carry));
        }
        Ok(carry)
    }

    /// The roll-ups of the rows of a snapshot that are not in files, as of now. `tags`: those that its series have, where
    /// it has not all ([`Snapshot::only`]).
    ///
    /// Rows before `oldest` are left out, as are series for which `room` is not enough ([`rollup::advance`]).
    pub(crate) fn live_rollups(
        &self,
        snapshot: &Snapshot,
        tags: &WantedTags,
        oldest: i64,
        room: usize,
    ) -> Result<[Vec<Arc<Chunk>>; 2]> {
        let carry = self.carry(snapshot, room)?;
        let advance = |carry: &Carry, snapshot: &Snapshot| {
            let rows = rollup::advance(&self.name, carry, snapshot, oldest, Give::All, i64::MAX, room)?.rows;
            Ok(rows.map(|it| it.into_iter().map(Arc::new).collect::<Vec<_>>()))
        };
        if !tags.is_empty() {
            return advance(&carry.only(tags), snapshot);
        }
        let last_chunk = snapshot.chunks.last().cloned();
        // One at a time: whoever asks the same meanwhile waits and takes the answer.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = &*live
            && live.carry.as_ptr() == Arc::as_ptr(&carry)
            && live.last_chunk.as_ref().map(Arc::as_ptr) == last_chunk.as_ref().map(Arc::as_ptr)
            && live.oldest == oldest
        {
            return Ok(live.rows.clone());
        }
        let rows = advance(&carry, snapshot)?;
        *live = Some(Live { carry: Arc::downgrade(&carry), last_chunk, oldest, rows: rows.clone() });
        Ok(rows)
    }
}

impl Snapshot {
    /// The same with chunks of no more than the series with these tags.
    pub(crate) fn only(&self, tags: &WantedTags) -> Result<Self> {
        Ok(Self { chunks: only(&self.chunks, tags)?, ..self.clone() })
    }
}

/// The rows of these chunks that are of series with these tags.
fn only(chunks: &[Arc<Chunk>], tags: &WantedTags) -> Result<Vec<Arc<Chunk>>> {
    let mut found = Vec::new();
    let mut of: Option<(&Keys, Vec<bool>)> = None;
    for chunk in chunks {
        // Mostly the same as those of the chunk before.
        if of.as_ref().is_none_or(|it| !Arc::ptr_eq(it.0, &chunk.keys)) {
            of = Some((&chunk.keys, chunk.keys.iter().map(|it| has_tags(it, tags)).collect()));
        }
        let Some((_, is_wanted)) = &of else { continue };
        found.extend(chunk.only(is_wanted)?.map(Arc::new));
    }
    Ok(found)
}

impl State {
    /// All that takes room.
    pub(crate) fn all_files(&self) -> Vec<Arc<StoredFile>> {
        self.files.iter().chain(&self.damaged).cloned().collect()
    }

    /// What its roll-ups go on from, bytes, roughly.
    pub(crate) fn rollup_bytes(&self) -> usize {
        self.carry.as_ref().map_or(0, |it| it.bytes())
    }

    /// [`State::removed_until`] when these are removed.
    pub(crate) fn removed_by(&self, old: &[Arc<StoredFile>]) -> Option<i64> {
        let is_old = |it: &&Arc<StoredFile>| old.iter().any(|old| Arc::ptr_eq(old, it));
        self.files.iter().filter(is_old).map(|it| it.entry.times.1).max().max(self.removed_until)
    }

    /// Gives up the rows that no file has.
    pub(crate) fn forget_rows(&mut self) {
        let floor = || Mark { floor: self.files.iter().map(|it| it.entry.times.1).max(), ..Mark::default() };
        self.memory = Memory::new(&self.mark.clone().unwrap_or_else(floor));
    }

    /// The files, with these chunks in place of what is in memory.
    pub(crate) fn snapshot(&self, chunks: Vec<Arc<Chunk>>) -> Snapshot {
        let (columns, files) = (self.columns.clone(), Arc::clone(&self.files));
        let removed = self.removed_until.map(|until| (i64::MIN, until));
        let gone = self.damaged.iter().map(|it| it.entry.times).chain(removed).collect();
        Snapshot { columns, files, chunks, carry: self.carry.clone(), gone, mark: self.mark.clone() }
    }
}

impl Columns {
    /// Adds the columns that the batch has and the table lacks.
    fn extend(&mut self, batch: &TableBatch) -> Result<(), String> {
        for series in &batch.series {
            for (name, _) in &series.tags {
                if !self.tags.contains(name) {
                    if name == TIME || self.fields.contains_key(name) {
                        return Err(format!("{name} cannot be a tag"));
                    }
                    self.tags.insert(name.clone());
                }
            }
        }
        for field in &batch.fields {
            let kind = Kind::from(field.values.field_type());
            match self.fields.get(&field.name) {
                Some(known) if *known == kind => {}
                Some(known) => return Err(format!("{} is {known:?}, not {kind:?}", field.name)),
                None if field.name == TIME || self.tags.contains(&field.name) => {
                    return Err(format!("{} cannot be a field", field.name));
                }
                None => {
                    self.fields.insert(field.name.clone(), kind);
                }
            }
        }
        Ok(())
    }
}

/// A piece of a table: a file or a chunk of memory. Pieces stand in the journal's order.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    File(Arc<StoredFile>),
    Chunk(Arc<Chunk>),
}

impl Piece {
    fn times(&self) -> Times {
        match self {
            Self::File(file) => file.entry.times,
            Self::Chunk(chunk) => chunk.times,
        }
    }

    fn late(&self) -> Option<Times> {
        match self {
            Self::File(file) => file.entry.late,
            Self::Chunk(chunk) => chunk.late,
        }
    }

    fn chunk(&self) -> Option<&Arc<Chunk>> {
        match self {
            Self::File(_) => None,
            Self::Chunk(chunk) => Some(chunk),
        }
    }

    /// A file holds each point once; a chunk with late rows may not.
    fn repeats_itself(&self) -> bool {
        matches!(self, Self::Chunk(chunk) if chunk.late.is_some())
    }
}

/// The pieces of a table, sorted out by whether they must be merged.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Pieces that share no point with any other and none with itself.
    pub(crate) single: Vec<Piece>,
    /// Groups of pieces, each in the journal's order, that may share points within the group.
    pub(crate) merged: Vec<Vec<Piece>>,
}

impl Snapshot {
    /// The latest time of a row.
    pub(crate) fn newest(&self) -> Option<i64> {
        let files = self.files.iter().map(|it| it.entry.times.1);
        files.chain(self.chunks.iter().map(|it| it.times.1)).max()
    }

    /// Times within these spans of which rows are gone that should be there: of files that were lost or removed.
    ///
    /// # Errors
    /// As [`Snapshot::pieces`].
    pub(crate) fn gaps(&self, spans: &[Times]) -> Result<Vec<Times>> {
        let is_wanted = |times: Times| spans.iter().any(|&span| overlap(times, span));
        let mut gaps: Vec<Times> = self.gone.iter().copied().filter(|&it| is_wanted(it)).collect();
        for file in self.files.iter().filter(|it| is_wanted(it.entry.times)) {
            if !file.is_whole()? {
                gaps.push(file.entry.times);
            }
        }
        Ok(gaps)
    }

    /// The pieces that have rows of these times, perhaps among others, in the journal's order. (Files stand by day, but
    /// those of two days share no point.)
    ///
    /// # Errors
    /// A file that cannot be read just now; damaged ones are left out.
    pub(crate) fn pieces(&self, wanted: Times) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for file in self.files.iter().filter(|it| overlap(it.entry.times, wanted)) {
            if file.is_whole()? {
                pieces.push(Piece::File(Arc::clone(file)));
            }
        }
        let chunks = self.chunks.iter().filter(|it| overlap(it.times, wanted));
        pieces.extend(chunks.cloned().map(Piece::Chunk));
        Ok(pieces)
    }

    /// Sorts the pieces out that have rows of these times.
    ///
    /// # Errors
    /// As [`Snapshot::pieces`].
    pub(crate) fn groups(&self, wanted: Times) -> Result<Groups> {
        let mut pieces = self.pieces(wanted)?;
        let mut group: Vec<usize> = (0..pieces.len()).collect();
        let mut merges = vec![false; pieces.len()];
        for later in 0..pieces.len() {
            let Some(late) = pieces[later].late() else { continue };
            merges[later] |= pieces[later].repeats_itself();
            for earlier in 0..later {
                if overlap(pieces[earlier].times(), late) {
                    let (from, to) = (group[later], group[earlier]);
                    group.iter_mut().filter(|it| **it == from).for_each(|it| *it = to);
                    merges[later] = true;
                    merges[earlier] = true;
                }
            }
        }
        let mut groups = Groups::default();
        let mut places: Vec<Option<usize>> = vec![None; pieces.len()];
        for (number, piece) in pieces.drain(..).enumerate() {
            if !merges[number] {
                groups.single.push(piece);
                continue;
            }
            let place = *places[group[number]].get_or_insert_with(|| {
                groups.merged.push(Vec::new());
                groups.merged.len() - 1
            });
            groups.merged[place].push(piece);
        }
        Ok(groups)
    }
}

/// Pieces in the journal's order as sources for these times, and for series with these tags, if there are any; chunks of
/// memory, which are the last, are one.
pub(crate) fn sources(
    pieces: &[Piece],
    schema: &SchemaRef,
    wanted: Times,
    tags: &WantedTags,
) -> Result<Vec<Box<dyn Source>>> {
    let chunks: Vec<_> = pieces.iter().filter_map(Piece::chunk).cloned().collect();
    let chunks = if tags.is_empty() { chunks } else { only(&chunks, tags)? };
    let mut sources = file_sources(pieces, schema, wanted, tags)?;
    sources.push(Box::new(Chunks::new(schema, &chunks, |time| overlap((time, time), wanted))?));
    Ok(sources)
}

/// The files among pieces as sources.
pub(crate) fn file_sources(
    pieces: &[Piece],
    schema: &SchemaRef,
    wanted: Times,
    tags: &WantedTags,
) -> Result<Vec<Box<dyn Source>>> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for piece in pieces {
        if let Piece::File(file) = piece {
            sources.push(Box::new(Sorted::new(schema, &file.path, file.rows(schema, wanted, tags)?)));
        }
    }
    Ok(sources)
}
