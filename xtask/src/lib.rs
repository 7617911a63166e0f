//! The project's own tools, as a library: tests use the lab, `cargo xtask` all of it. Never shipped.

pub mod docs;
pub mod fixture;
pub mod generate;
pub mod lab;
pub mod pages_perf;
pub mod perf;
pub mod store_perf;
pub mod tidy;
