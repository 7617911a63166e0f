//! The binary on the real thing: a real libvirtd with real QEMU guests. Needs the feature `real-libvirt`.
//!
//! Each test starts VMs of its own (`xtask::lab`), runs the built `kvmetry` beside them, does to the VMs what a night
//! in production does, and looks at what came out. Other VMs of the same libvirtd may be there: a test looks only at
//! its own. Tests run one at a time (`.config/nextest.toml`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod balloon;
mod commands;
mod counting;
mod dashboard;
mod devices;
mod full;
mod harness;
mod lifecycle;
mod names;
mod older;
mod restart;
mod servers;
mod stuck;
mod transports;
mod values;
