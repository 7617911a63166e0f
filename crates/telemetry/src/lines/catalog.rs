//! What databases, tables and columns there are.
//!
//! As bytes it is text, so that a person can read what a journal or a store has:
//!
//! ```text
//! kvmetry catalog 1
//! database kvmetry
//! retention 2592000
//! table vm_devices
//! tag VMID
//! integer rxbytes
//! float load
//! ```
//!
//! `retention` is how long the database above it keeps its points, seconds; where there is none, as configured.
//! One entry a line: a word and a name, up to the newline (names have no control characters). A table belongs to the
//! database above it, a column (`tag`, `float`, `integer`, `unsigned`, `string`, `boolean`) to the table above it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::admit::Refused;
use super::batch::FieldType;
use super::limits::{MAX_CATALOG_BYTES, MAX_DATABASES, check_database_name, told};

const HEAD: &str = "kvmetry catalog ";
const VERSION: u32 = 1;

/// What a column is. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Column {
    /// A part of the series' identity.
    Tag,
    /// A field with the type of its values.
    Field(FieldType),
}

impl Column {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Tag, "tag"),
        (Self::Field(FieldType::Float), "float"),
        (Self::Field(FieldType::Integer), "integer"),
        (Self::Field(FieldType::Unsigned), "unsigned"),
        (Self::Field(FieldType::String), "string"),
        (Self::Field(FieldType::Boolean), "boolean"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(column, _)| *column == self).map_or("", |(_, word)| word)
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(column, _)| *column)
    }
}

impl fmt::Display for Column {
    /// As InfluxDB 3 calls it in its errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tag => "iox::column_type::tag",
            Self::Field(FieldType::Float) => "iox::column_type::field::float",
            Self::Field(FieldType::Integer) => "iox::column_type::field::integer",
            Self::Field(FieldType::Unsigned) => "iox::column_type::field::uinteger",
            Self::Field(FieldType::String) => "iox::column_type::field::string",
            Self::Field(FieldType::Boolean) => "iox::column_type::field::boolean",
        })
    }
}

pub(crate) type Columns = BTreeMap<String, Column>;
pub(crate) type Tables = BTreeMap<String, Columns>;

/// Databases, their tables and their columns. Grows by [`Catalog::admit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub(crate) databases: BTreeMap<String, Tables>,
    /// By database; zero keeps points for ever.
    retentions: BTreeMap<String, Duration>,
    /// What tables and columns take in [`Catalog::to_bytes`].
    bytes: usize,
}

/// Why bytes are no catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogFault {
    /// A newer kvmetry wrote it.
    Newer {
        /// Its version.
        version: u32,
    },
    /// It is damaged.
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What should stand there.
        expected: &'static str,
    },
}

impl fmt::Display for CatalogFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { version } => write!(
                f,
                "the catalogue of tables has version {version}, this kvmetry knows up to {VERSION}: use a newer kvmetry"
            ),
            Self::Malformed { line, expected } => {
                write!(f, "the catalogue of tables is damaged: its line {line} should be {expected}")
            }
        }
    }
}

impl std::error::Error for CatalogFault {}

/// Two catalogues disagree on a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeConflict {
    /// The database.
    pub database: String,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// What it is here.
    pub ours: Column,
    /// What it is in the other.
    pub theirs: Column,
}

impl fmt::Display for MergeConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "column '{}' of table '{}' in database '{}' is {} in one place and {} in another",
            told(&self.column),
            told(&self.table),
            self.database,
            self.ours,
            self.theirs
        )
    }
}

impl std::error::Error for MergeConflict {}

/// What a table takes in [`Catalog::to_bytes`], without its columns.
pub(crate) fn table_bytes(name: &str) -> usize {
    "table \n".len() + name.len()
}

/// What a column takes there.
pub(crate) fn column_bytes(name: &str, column: Column) -> usize {
    column.word().len() + " \n".len() + name.len()
}

impl Catalog {
    /// The names of the databases, sorted.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        self.databases.keys().map(String::as_str)
    }

    /// The names of a database's tables, sorted; none where there is no such database.
    pub fn tables(&self, database: &str) -> impl Iterator<Item = &str> {
        self.databases.get(database).into_iter().flat_map(|tables| tables.keys().map(String::as_str))
    }

    /// A table's columns but `time`, sorted by name; none where there is no such table.
    pub fn columns(&self, database: &str, table: &str) -> impl Iterator<Item = (&str, Column)> {
        let columns = self.databases.get(database).and_then(|tables| tables.get(table));
        columns.into_iter().flatten().map(|(name, column)| (name.as_str(), *column))
    }

    /// How long a database keeps its points, whole seconds; `None`: as configured.
    pub fn retention(&self, database: &str) -> Option<Duration> {
        self.retentions.get(database).copied()
    }

    /// Makes a database. False if it is there; then nothing has changed.
    ///
    /// # Errors
    /// [`Refused::DatabaseName`], [`Refused::TooManyDatabases`].
    pub fn create_database(&mut self, database: &str, retention: Option<Duration>) -> Result<bool, Refused> {
        check_database_name(database).map_err(Refused::DatabaseName)?;
        if self.databases.contains_key(database) {
            return Ok(false);
        }
        if self.databases.len() >= MAX_DATABASES {
            return Err(Refused::TooManyDatabases);
        }
        self.databases.insert(database.to_owned(), Tables::new());
        self.set_retention(database, retention);
        Ok(true)
    }

    /// Changes how long a database keeps its points. False if there is no such database.
    pub fn set_retention(&mut self, database: &str, retention: Option<Duration>) -> bool {
        if !self.databases.contains_key(database) {
            return false;
        }
        match retention {
            Some(retention) => self.retentions.insert(database.to_owned(), retention),
            None => self.retentions.remove(database),
        };
        true
    }

    /// Adds a column, with its table and database where they are not there. One that is there stays as it is.
    pub fn add_column(&mut self, database: &str, table: &str, name: &str, column: Column) {
        self.add(database, table, [(name, column)]);
    }

    /// Adds columns, with their table and database where they are not there. Those that are there stay as they are.
    pub(crate) fn add<'a>(
        &mut self,
        database: &str,
        table: &str,
        columns: impl IntoIterator<Item = (&'a str, Column)>,
    ) {
        let tables = self.databases.entry(database.to_owned()).or_default();
        let known = tables.entry(table.to_owned()).or_insert_with(|| {
            self.bytes += table_bytes(table);
            Columns::new()
        });
        for (name, column) in columns {
            known.entry(name.to_owned()).or_insert_with(|| {
                self.bytes += column_bytes(name, column);
                column
            });
        }
    }

    /// How many bytes more tables and columns may take: see [`MAX_CATALOG_BYTES`].
    pub(crate) fn room(&self) -> usize {
        MAX_CATALOG_BYTES.saturating_sub(self.bytes)
    }

    /// Takes in what another catalogue has.
    ///
    /// # Errors
    /// [`MergeConflict`] if they disagree; then nothing has changed.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeConflict> {
        let theirs = other.databases.iter().flat_map(|(database, tables)| {
            tables.iter().map(move |(table, columns)| (database, table, columns))
        });
        for (database, table, columns) in theirs {
            let Some(ours) = self.databases.get(database).and_then(|tables| tables.get(table)) else {
                continue;
            };
            for (column, theirs) in columns {
                match ours.get(column) {
                    Some(ours) if ours != theirs => {
                        return Err(MergeConflict {
                            database: database.clone(),
                            table: table.clone(),
                            column: column.clone(),
                            ours: *ours,
                            theirs: *theirs,
                        });
                    }
                    _ => {}
                }
            }
        }
        for (database, retention) in &other.retentions {
            self.retentions.entry(database.clone()).or_insert(*retention);
        }
        for (database, tables) in &other.databases {
            self.databases.entry(database.clone()).or_default();
            for (table, columns) in tables {
                self.add(database, table, columns.iter().map(|(name, column)| (name.as_str(), *column)));
            }
        }
        Ok(())
    }

    /// As bytes, for the journal and the store's manifest. Equal catalogues give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!("{HEAD}{VERSION}\n");
        let mut push = |word: &str, name: &str| {
            out.push_str(word);
            out.push(' ');
            out.push_str(name);
            out.push('\n');
        };
        for (database, tables) in &self.databases {
            push("database", database);
            if let Some(retention) = self.retentions.get(database) {
                push("retention", &retention.as_secs().to_string());
            }
            for (table, columns) in tables {
                push("table", table);
                for (name, column) in columns {
                    push(column.word(), name);
                }
            }
        }
        out.into_bytes()
    }

    /// From [`Catalog::to_bytes`].
    ///
    /// # Errors
    /// [`CatalogFault`]: a version newer than this program's, or what is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CatalogFault> {
        let malformed = |line, expected| CatalogFault::Malformed { line, expected };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => {
                let line = bytes[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
                return Err(malformed(line, "UTF-8"));
            }
        };
        let text =
            text.strip_suffix('\n').ok_or(malformed(text.lines().count().max(1), "ended by a newline"))?;
        let mut lines = (1..).zip(text.split('\n'));
        let head = lines.next().and_then(|(_, head)| head.strip_prefix(HEAD)?.parse().ok());
        match head.ok_or(malformed(1, "'kvmetry catalog' and a version"))? {
            VERSION => {}
            version => return Err(CatalogFault::Newer { version }),
        }
        let mut catalog = Self::default();
        // Where the entries go that follow.
        let (mut database, mut table) = (None, None);
        for (at, line) in lines {
            let (word, name) = line.split_once(' ').ok_or(malformed(at, "a word and a name"))?;
            if name.is_empty() || name.contains(char::is_control) {
                return Err(malformed(at, "a name without control characters"));
            }
            let is_new = match word {
                "database" => {
                    (database, table) = (Some(name), None);
                    catalog.databases.insert(name.to_owned(), Tables::new()).is_none()
                }
                "retention" => {
                    let seconds = name.parse().map_err(|_| malformed(at, "a number of seconds"))?;
                    let database = database.filter(|_| table.is_none());
                    let database = database.ok_or(malformed(at, "behind a database"))?;
                    catalog.retentions.insert(database.to_owned(), Duration::from_secs(seconds)).is_none()
                }
                "table" => {
                    let tables = database.and_then(|database| catalog.databases.get_mut(database));
                    let tables = tables.ok_or(malformed(at, "behind a database"))?;
                    table = Some(name);
                    catalog.bytes += table_bytes(name);
                    tables.insert(name.to_owned(), Columns::new()).is_none()
                }
                word => {
                    let column =
                        Column::of_word(word).ok_or(malformed(at, "a database, a table or a column"))?;
                    let tables = database.and_then(|database| catalog.databases.get_mut(database));
                    let columns = table.and_then(|table| tables?.get_mut(table));
                    let columns = columns.ok_or(malformed(at, "behind a table"))?;
                    catalog.bytes += column_bytes(name, column);
                    columns.insert(name.to_owned(), column).is_none()
                }
            };
            if !is_new {
                return Err(malformed(at, "a name that was not there before"));
            }
        }
        Ok(catalog)
    }
}
