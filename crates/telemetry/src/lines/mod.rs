//! Line protocol read back: from the body of a write to checked columns.

mod batch;

pub use batch::{Batch, FieldColumn, FieldType, SeriesKey, TableBatch, Values};
