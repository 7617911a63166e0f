//! The embedded time series store: lines by column in, SQL out.
//!
//! ```text
//!  journal ▸ Store::apply ▸ memory (Arrow) ─┬─ flush ▸ Parquet by database, table, day ▸ compaction ▸ retention
//!                                           └─ SQL (DataFusion) over memory and files ▸ Flight
//! ```
//!
//! *Invariant:* the only crate that names arrow, parquet, Flight or DataFusion. What is durable is what the manifest names;
//! rows that no file has yet are the journal's to keep.

mod backup;
#[cfg(test)]
mod crash;
mod error;
mod files;
pub mod flight;
mod last;
mod layout;
mod manifest;
mod memory;
mod merge;
mod rollup;
#[cfg(test)]
mod room;
mod schema;
pub mod sql;
mod store;
mod table;

pub use backup::{Carried, restore};
pub use error::{Result, StoreError};
pub use store::{
    Bounds, Complaints, Done, MaintainError, Options, Retention, RollUps, Room, Stats, Store,
    default_retention,
};
