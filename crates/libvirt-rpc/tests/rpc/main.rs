//! The client against a scripted daemon on a unix socket, and its decoders against frames captured from libvirt 9.0.
//!
//! Time is paused where deadlines matter: it moves on only when nobody has anything left to do, so no test waits
//! for real, and none depends on how fast the machine is.

mod answers;
mod auth;
mod budget;
mod calls;
mod captured;
mod daemon;
mod events;
mod keepalive;
mod lost;
mod mutated;
