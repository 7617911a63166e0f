//! How an entry or a state rests on disk: bytes that say by themselves what they are, and whether they are whole.
//!
//! All numbers are little endian. Version 1; the version stands in the name of the file.
//!
//! ```text
//!          0       4       8               16              24              32
//!         ┌───────┬─┬─────┬───────────────┬───────────────┬───────────────┐
//!       0 │ kvmJ  │k│  0  │ seq           │ at            │ from          │
//!         ├───────┴─┴─────┼───────────────┼───────┬───────┼───────┬───────┤
//!      32 │ to            │ total lines   │ lines │ len   │ crc h │ crc p │
//!         ├───────────────┼───────────────┴───────┴───────┴───────┴───────┘
//!      64 │ total bytes   │ payload: `len` bytes
//!         └───────────────┘
//! k            1 entry, 2 state
//! seq          of the entry; in a state the last one that was there when it was written
//! at           when it was appended, nanoseconds since 1970
//! from, to     earliest and latest time in it; in a state `from` is the number of the commit
//! total lines  of all entries up to this one, itself included; so is
//! total bytes  of their payloads: what lies between two entries is known from the two
//! crc h        CRC-32 (IEEE) of the header without crc h itself
//! crc p        CRC-32 (IEEE) of the payload
//! ```
//!
//! A state's payload is the length of its name (one byte), the name and the value.

use crate::Seq;

/// Where a frame begins.
pub(crate) const MAGIC: [u8; 4] = *b"kvmJ";
/// Bytes before the payload.
pub(crate) const HEADER: usize = 72;

const CRC_HEADER: std::ops::Range<usize> = 56..60;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry,
    State,
}

/// What stands before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) seq: Seq,
    pub(crate) at: i64,
    pub(crate) span: (i64, i64),
    pub(crate) lines: u32,
    pub(crate) total_lines: u64,
    pub(crate) total_bytes: u64,
    /// Of the payload.
    pub(crate) len: u32,
    crc_payload: u32,
}

impl Header {
    /// The header of this payload; at most `u32::MAX` bytes, which the caller has checked.
    pub(crate) fn new(
        kind: Kind,
        seq: Seq,
        at: i64,
        span: (i64, i64),
        lines: u32,
        totals: Totals,
        payload: &[u8],
    ) -> Self {
        Self {
            kind,
            seq,
            at,
            span,
            lines,
            total_lines: totals.lines,
            total_bytes: totals.bytes,
            len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            crc_payload: crc32fast::hash(payload),
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals { lines: self.total_lines, bytes: self.total_bytes }
    }

    /// The bytes before the payload.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let kind: u8 = match self.kind {
            Kind::Entry => 1,
            Kind::State => 2,
        };
        out[..4].copy_from_slice(&MAGIC);
        out[4] = kind;
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.at.to_le_bytes());
        out[24..32].copy_from_slice(&self.span.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.span.1.to_le_bytes());
        out[40..48].copy_from_slice(&self.total_lines.to_le_bytes());
        out[48..52].copy_from_slice(&self.lines.to_le_bytes());
        out[52..56].copy_from_slice(&self.len.to_le_bytes());
        out[60..64].copy_from_slice(&self.crc_payload.to_le_bytes());
        out[64..72].copy_from_slice(&self.total_bytes.to_le_bytes());
        let crc = crc_header(&out);
        out[CRC_HEADER].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header that begins here, if a whole one does.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        if header[..4] != MAGIC || header[5..8] != [0; 3] || u32_at(header, 56) != crc_header(header) {
            return None;
        }
        let kind = match header[4] {
            1 => Kind::Entry,
            2 => Kind::State,
            _ => return None,
        };
        Some(Self {
            kind,
            seq: u64_at(header, 8),
            at: u64_at(header, 16).cast_signed(),
            span: (u64_at(header, 24).cast_signed(), u64_at(header, 32).cast_signed()),
            lines: u32_at(header, 48),
            total_lines: u64_at(header, 40),
            total_bytes: u64_at(header, 64),
            len: u32_at(header, 52),
            crc_payload: u32_at(header, 60),
        })
    }

    /// Whether the payload is the one that was written.
    pub(crate) fn fits(&self, payload: &[u8]) -> bool {
        payload.len() == self.len as usize && crc32fast::hash(payload) == self.crc_payload
    }
}

/// Sums over all entries up to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

impl Totals {
    /// With one entry more. Wraps around, as differences then still come out right.
    pub(crate) fn plus(self, lines: u32, bytes: usize) -> Self {
        Self {
            lines: self.lines.wrapping_add(u64::from(lines)),
            bytes: self.bytes.wrapping_add(bytes as u64),
        }
    }
}

/// A whole frame that fills these bytes, if they are one.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let header = Header::decode(bytes)?;
    let payload = &bytes[HEADER..];
    header.fits(payload).then_some((header, payload))
}

/// A state's payload.
pub(crate) fn join_state(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + name.len() + value.len());
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value);
    out
}

/// Name and value of a state's payload.
pub(crate) fn split_state(payload: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = payload.split_first()?;
    let (name, value) = rest.split_at_checked(usize::from(*len))?;
    Some((std::str::from_utf8(name).ok()?, value))
}

fn crc_header(header: &[u8; HEADER]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CRC_HEADER.start]);
    hasher.update(&header[CRC_HEADER.end..]);
    hasher.finalize()
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(header: &[u8; HEADER], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(out)
}
