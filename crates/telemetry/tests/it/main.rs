//! The crate from outside: what is read comes out as line protocol that InfluxDB's own parser understands.

mod absence;
mod contract;
mod docs;
mod features;
mod lines;
mod lines_model;
mod roundtrip;
mod support;
mod workload;
