//! A client of libvirt's RPC protocol in Rust, asynchronous, without the C library.
//!
//! It connects to a libvirt daemon (`virtqemud`, `libvirtd`, …) over a unix socket, TCP, TLS or SSH, makes
//! the calls that a collector of telemetry needs, and receives events. It knows nothing of metrics.
//!
//! ```text
//! Uri ──▶ transport::dial ──▶ auth ──▶ Connection ──▶ calls (one method each)
//!                                          │ ├──▶ StatsVisitor (bulk statistics, in place)
//!                                          │ └──▶ Event
//!                                       Budget (the host's, across reconnects)
//! ```
//!
//! Read in this order: [`uri`], [`transport`], `auth` and `sasl`; `printable`, `xdr`, `frame`, `procedure`;
//! `connection` (the heart), [`Budget`]; `calls`, `stats`, `events`.
//!
//! *Invariant:* every length that comes from the wire is checked before it is believed, every call has a
//! deadline, and what was given up is counted until the daemon has answered it.
//!
//! ```no_run
//! # async fn example() -> Result<(), libvirt_rpc::Error> {
//! use libvirt_rpc::{Access, Budget, Connection, Options};
//! use std::time::Duration;
//!
//! let options = Options {
//!     access: Access::ReadOnly,
//!     connect_deadline: Duration::from_secs(5),
//!     call_deadline: Duration::from_secs(2),
//!     budget: Budget::new(libvirt_rpc::DEFAULT_MAX_ABANDONED),
//! };
//! let connection = Connection::open(&"qemu:///system".parse()?, options).await?;
//! for domain in connection.list_active().await? {
//!     let info = connection.domain_info(&domain).await?;
//!     println!("{}: {} vCPUs, {} KiB", domain.name, info.vcpus, info.memory_kib);
//! }
//! connection.close().await;
//! # Ok(())
//! # }
//! ```

mod auth;
mod authfile;
mod backoff;
mod budget;
mod calls;
mod connection;
pub mod decode;
mod error;
mod events;
mod frame;
mod printable;
mod procedure;
mod sasl;
mod stats;
pub mod transport;
pub mod uri;
mod xdr;

pub use backoff::Backoff;
pub use budget::{Budget, DEFAULT_MAX_ABANDONED, ORPHAN_RELEASE};
pub use calls::{BlockStats, CpuTotals, Domain, DomainInfo, DomainRef, InterfaceStats, NodeInfo, Version};
pub use connection::{Connection, Late, MONITOR_CALLS, Options};
pub use error::{Error, ErrorCode};
pub use events::{Event, EventKind};
pub use stats::{Groups, MAX_DOMAINS, StatsFlags, StatsVisitor, Value};
pub use transport::{Access, DaemonProcess};
pub use uri::{Uri, UriError};
pub use xdr::Malformed;
