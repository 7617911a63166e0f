//! Decoding of captured bytes, without a connection: for fuzzing, for benches, for looking at a capture.

use crate::calls::{self, CpuTotals, DomainInfo};
use crate::connection::remote_error;
use crate::error::ErrorCode;
use crate::frame::{self, HEADER};
use crate::stats::{self, StatsVisitor};
use crate::xdr::{Decoder, Malformed};

/// Checks the header of a whole frame; returns its payload.
///
/// # Errors
/// Where a word of the header cannot be.
pub fn frame(bytes: &[u8]) -> Result<&[u8], Malformed> {
    frame::header(bytes)?;
    Ok(&bytes[HEADER..])
}

/// Visits the payload of a reply to a bulk statistics call; returns the number of records.
///
/// # Errors
/// Where the payload is not well formed; the visitor may have seen some records.
pub fn bulk_reply(payload: &[u8], visitor: &mut impl StatsVisitor) -> Result<usize, Malformed> {
    stats::visit(&mut Decoder::new(payload, HEADER), visitor)
}

/// The payload of a reply to DOMAIN_GET_INFO.
///
/// # Errors
/// Where the payload is not well formed.
pub fn domain_info(payload: &[u8]) -> Result<DomainInfo, Malformed> {
    calls::domain_info(&mut Decoder::new(payload, HEADER))
}

/// The payload of a reply to DOMAIN_MEMORY_STATS: pairs of tag and value.
///
/// # Errors
/// Where the payload is not well formed.
pub fn memory_stats(payload: &[u8]) -> Result<Vec<(i32, u64)>, Malformed> {
    calls::memory_stats(&mut Decoder::new(payload, HEADER))
}

/// The payload of a reply to DOMAIN_GET_CPU_STATS.
///
/// # Errors
/// Where the payload is not well formed.
pub fn cpu_stats(payload: &[u8]) -> Result<CpuTotals, Malformed> {
    calls::cpu_totals(&mut Decoder::new(payload, HEADER))
}

/// The code, domain and message of an error reply's payload.
///
/// # Errors
/// Where the payload is not well formed.
pub fn error(payload: &[u8]) -> Result<(ErrorCode, i32, String), Malformed> {
    remote_error(&mut Decoder::new(payload, HEADER))
}

/// An event message's payload, by its procedure number; `None` for a procedure that is no event known here.
///
/// # Errors
/// Where the payload is not well formed.
pub fn event(procedure: i32, payload: &[u8]) -> Result<Option<crate::Event>, Malformed> {
    match crate::procedure::Procedure::from_number(procedure) {
        Some(procedure) => crate::events::decode(procedure, &mut Decoder::new(payload, HEADER)),
        None => Ok(None),
    }
}
