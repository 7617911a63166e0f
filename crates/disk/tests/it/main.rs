//! What every disk does, and what the double forgets and breaks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod crash;
mod every;
mod owner;
