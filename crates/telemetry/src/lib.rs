//! What kvmetry measures: reading libvirt's replies, deriving, and writing line protocol.
//!
//! Pure: bytes and numbers in, bytes out. No I/O, no clock, no async; time comes as an argument ([`Moment`]).
//!
//! ```text
//!   bulk record, parameter by parameter        older calls
//!   SampleReader::param(key, value)            Sample::domain_info, ::memory_stats, ::nic, …
//!                  │                                        │
//!                  └────────────▶  Sample  ◀────────────────┘      one reading of one domain; absent stays absent
//!                                    │
//!        catalogue ─ ─ ─ ─ ─▶  HostTracker::encode                 what was seen before: tags, devices, sources
//!     (every field, once)            │      └─ derive: MemoryTrend
//!                                    ▼
//!                              line protocol, appended to a Vec<u8>
//! ```
//!
//! To follow one field from key to line, read [`catalogue`] from the top.
//!
//! *Invariant:* an absent reading is never taken for a 0 before the encoder, and there only where it is known that
//! the hypervisor never gives it.

pub mod catalogue;
pub mod derive;
mod docs;
mod encode;
pub mod lines;
mod read;
pub mod sample;
mod tracker;
pub mod units;
pub mod workload;

pub use catalogue::{Collector, Event};
pub use derive::{FeatureOptions, Features, MemorySource, Moment, increase};
pub use docs::metrics_markdown;
pub use encode::{TagStyle, map_text};
pub use read::{DomainInfo, Driver, SampleReader, Value};
pub use sample::{DeviceReading, Groups, Sample};
pub use tracker::{
    CpuSource, Encoded, FORGET_AFTER_CYCLES, HostTracker, MAX_EVENT_SHIFT_NS, SILENT_ANSWERS, TrackerOptions,
};
pub use units::{DomainId, Uuid};
