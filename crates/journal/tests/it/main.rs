//! The journal at its boundary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod basics;
mod crash;
mod damaged;
mod faults;
mod killed;
