//! Lines by column: what parsing gives and what the store takes.

use std::sync::Arc;

/// The type of a field. It belongs to the field's name in its table and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldType {
    /// `1.5`
    Float,
    /// `1i`
    Integer,
    /// `1u`
    Unsigned,
    /// `"text"`
    String,
    /// `true`
    Boolean,
}

/// The accepted lines of one write to one database, in the order in which they stood there, table by table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// A table stands here once.
    pub tables: Vec<TableBatch>,
    /// How many lines, in all tables.
    pub lines: u32,
    /// The earliest and the latest time, nanoseconds since 1970; `None` without lines.
    pub span: Option<(i64, i64)>,
}

/// The lines of one table. Row `n` is what stands at place `n` of `times`, `rows` and every field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableBatch {
    /// The table's name, unescaped.
    pub table: String,
    /// The distinct series, each once.
    pub series: Vec<Arc<SeriesKey>>,
    /// For each row the place of its series in `series`.
    pub rows: Vec<u32>,
    /// For each row its time, nanoseconds since 1970.
    pub times: Vec<i64>,
    /// The fields that occur, each name once.
    pub fields: Vec<FieldColumn>,
}

/// The tags of a series, by name; no name twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// `(name, value)`, unescaped, sorted by name.
    pub tags: Vec<(String, String)>,
}

/// One field's values.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldColumn {
    /// The field's name, unescaped.
    pub name: String,
    /// A value a row; where `present` says no, any value.
    pub values: Values,
    /// Whether the row has this field; `None` if every row has.
    pub present: Option<Vec<bool>>,
}

impl FieldColumn {
    /// Whether a row has this field.
    pub fn has(&self, row: usize) -> bool {
        self.present.as_ref().is_none_or(|present| present.get(row).copied().unwrap_or(false))
    }
}

/// Values of one type, one a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// See [`FieldType::Float`]; finite.
    Float(Vec<f64>),
    /// See [`FieldType::Integer`].
    Integer(Vec<i64>),
    /// See [`FieldType::Unsigned`].
    Unsigned(Vec<u64>),
    /// See [`FieldType::String`].
    String(Vec<String>),
    /// See [`FieldType::Boolean`].
    Boolean(Vec<bool>),
}

impl Values {
    /// Their type.
    pub fn field_type(&self) -> FieldType {
        match self {
            Self::Float(_) => FieldType::Float,
            Self::Integer(_) => FieldType::Integer,
            Self::Unsigned(_) => FieldType::Unsigned,
            Self::String(_) => FieldType::String,
            Self::Boolean(_) => FieldType::Boolean,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Integer(values) => values.len(),
            Self::Unsigned(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Boolean(values) => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
