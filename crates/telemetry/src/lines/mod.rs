//! Line protocol read back: from the body of a write to checked columns.
//!
//! ```text
//!   body ──text──▶ parse ──▶ Parsed ──▶ Catalog::admit ──▶ Admitted { batch, text, errors }
//!                  outside of any lock   under the one lock that orders writes
//! ```
//!
//! [`parse`] judges each line by itself and sorts the good ones by table and column; [`Catalog::admit`] holds the
//! columns against the schema, and only where they disagree does it look at single lines. What comes out is twice the
//! same: columns for the store, and text for the journal and for InfluxDB.
//!
//! Lines are read by `influxdb-line-protocol`, the parser of InfluxDB 3 itself. What is refused beyond it: a float that
//! is not finite (`1e999`), a tag or field twice in a line, `time` as a tag or field, a line break in a name or a tag,
//! and what is beyond the limits of [`limits`].

mod admit;
mod batch;
mod catalog;
mod column;
pub mod limits;
mod parse;
mod precision;
mod series;
mod split;

pub use admit::{Admitted, Refused};
pub use batch::{Batch, FieldColumn, FieldType, SeriesKey, TableBatch, Values};
pub use catalog::{Catalog, CatalogFault, Column, MergeConflict};
pub use parse::{LineError, NotUtf8, Parsed, parse, parse_again, text};
pub use precision::{Precision, UnknownPrecision};
pub use series::SeriesMemory;
