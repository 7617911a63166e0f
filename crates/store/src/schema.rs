//! A table's columns: what they are in line protocol and what in Arrow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use telemetry::lines::FieldType;

/// The column of a row's time.
pub(crate) const TIME: &str = "time";

/// The columns of a table, apart from [`TIME`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Columns {
    /// Tags, by name. Rows are sorted by them in this order: a tag that came later is null in older rows, so they
    /// stay sorted.
    pub(crate) tags: BTreeSet<String>,
    /// Fields, by name.
    pub(crate) fields: BTreeMap<String, Kind>,
}

/// [`FieldType`] as the manifest writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Float,
    Integer,
    Unsigned,
    String,
    Boolean,
}

impl From<FieldType> for Kind {
    fn from(field_type: FieldType) -> Self {
        match field_type {
            FieldType::Float => Self::Float,
            FieldType::Integer => Self::Integer,
            FieldType::Unsigned => Self::Unsigned,
            FieldType::String => Self::String,
            FieldType::Boolean => Self::Boolean,
        }
    }
}

impl Kind {
    pub(crate) fn field_type(self) -> FieldType {
        match self {
            Self::Float => FieldType::Float,
            Self::Integer => FieldType::Integer,
            Self::Unsigned => FieldType::Unsigned,
            Self::String => FieldType::String,
            Self::Boolean => FieldType::Boolean,
        }
    }

    /// Of a field's column in Arrow.
    pub(crate) fn of(arrow: &DataType) -> Self {
        match arrow {
            DataType::Float64 => Self::Float,
            DataType::Int64 => Self::Integer,
            DataType::UInt64 => Self::Unsigned,
            DataType::Boolean => Self::Boolean,
            _ => Self::String,
        }
    }

    pub(crate) fn arrow(self) -> DataType {
        match self {
            Self::Float => DataType::Float64,
            Self::Integer => DataType::Int64,
            Self::Unsigned => DataType::UInt64,
            Self::String => DataType::Utf8,
            Self::Boolean => DataType::Boolean,
        }
    }
}

/// How a tag rests in memory: few distinct values.
pub(crate) fn tag_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// How a time rests in memory: nanoseconds since 1970, without zone, as InfluxDB 3 shows it.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, None)
}

impl Columns {
    /// As SQL shows them: sorted by name, as in InfluxDB 3.
    pub(crate) fn sql_schema(&self) -> SchemaRef {
        let mut fields = self.resting_fields();
        fields.sort_by(|a, b| a.name().cmp(b.name()));
        Arc::new(Schema::new(fields))
    }

    /// As they rest in files and in memory: tags, time, fields.
    pub(crate) fn resting_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.resting_fields()))
    }

    fn resting_fields(&self) -> Vec<Field> {
        let tags = self.tags.iter().map(|name| Field::new(name, tag_type(), true));
        let time = std::iter::once(Field::new(TIME, time_type(), false));
        let fields = self.fields.iter().map(|(name, kind)| Field::new(name, kind.arrow(), true));
        tags.chain(time).chain(fields).collect()
    }
}
