//! One table: its columns, its rows in memory, its files.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use telemetry::lines::TableBatch;

use crate::error::{Result, StoreError};
use crate::files::StoredFile;
use crate::memory::{Chunk, Memory, Times, overlap};
use crate::merge::Rule;
use crate::schema::{Columns, Kind, TIME};

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) database: String,
    pub(crate) name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) columns: Columns,
    pub(crate) memory: Memory,
    /// By day, then in the journal's order.
    pub(crate) files: Arc<Vec<Arc<StoredFile>>>,
}

/// All rows of a table at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) columns: Columns,
    pub(crate) files: Arc<Vec<Arc<StoredFile>>>,
    /// In the journal's order; all later than those of the files.
    pub(crate) chunks: Vec<Arc<Chunk>>,
}

impl Table {
    pub(crate) fn new(database: &str, name: &str, columns: Columns, files: Vec<Arc<StoredFile>>) -> Self {
        let floor = files.iter().map(|it| it.entry.times.1).max();
        let state = State { columns, memory: Memory::new(floor), files: Arc::new(files) };
        Self { database: database.to_owned(), name: name.to_owned(), state: Mutex::new(state) }
    }

    /// How rows of the same series and time are merged here.
    pub(crate) fn rule(&self) -> Rule {
        Rule::Fields
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rows, in the journal's order.
    pub(crate) fn append(&self, seq: u64, batch: &TableBatch) -> Result<()> {
        let mut state = self.lock();
        state.columns.extend(batch).map_err(|problem| {
            StoreError::Internal(format!("{} {}: {problem}", self.database, self.name))
        })?;
        state.memory.append(seq, batch)
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let mut state = self.lock();
        let chunks = state.memory.show()?;
        Ok(Snapshot { columns: state.columns.clone(), files: Arc::clone(&state.files), chunks })
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
    /// Sorts the pieces out. A piece that begins or ends outside of `wanted` takes part as a whole.
    pub(crate) fn groups(&self, wanted: Times) -> Groups {
        let files = self.files.iter().filter(|it| it.is_wanted(wanted)).cloned().map(Piece::File);
        let chunks = self.chunks.iter().filter(|it| overlap(it.times, wanted)).cloned().map(Piece::Chunk);
        let mut pieces: Vec<Piece> = files.chain(chunks).collect();
        // Files stand by day, the journal's order goes across days: but pieces of two days share no point, and a
        // chunk is later than every file.
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
        groups
    }
}

impl StoredFile {
    fn is_wanted(&self, wanted: Times) -> bool {
        overlap(self.entry.times, wanted) && self.is_whole()
    }
}
