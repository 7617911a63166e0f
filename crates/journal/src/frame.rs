//! How an entry or a state rests on disk: bytes that say by themselves what they are, and whether they are whole.
//!
//! All numbers are little endian. Version 1; the version stands in the name of the file.
//!
//! ```text
//!          0       4       8               16              24              32
//!         ┌───────┬─┬─┬───┬───────────────┬───────────────┬───────────────┐
//!       0 │ kvmJ  │k│e│ p │ seq           │ at            │ from          │
//!         ├───────┴─┴─┴───┼───────────────┼───────┬───────┼───────┬───────┤
//!      32 │ to            │ total lines   │ lines │ whole │ crc h │ crc p │
//!         ├───────────────┼───────┬───────┴───────┴───────┴───────┴───────┘
//!      64 │ total bytes   │ len   │ payload: `len` bytes
//!         └───────────────┴───────┘
//! k            1 entry, 2 state
//! p, e         number of the part, from 0; e is 1 in the last part, else 0
//! seq          of the entry; in a state the last one that was there when it was written
//! at           when it was appended, nanoseconds since 1970
//! from, to     earliest and latest time in it; in a state `from` is the number of the commit
//! total lines  of all entries up to this one, itself included; so is
//! total bytes  of their payloads: what lies between two entries is known from the two
//! whole        bytes of the payloads of all parts
//! len          bytes of this part's payload
//! crc h        CRC-32 (IEEE) of the header without crc h itself
//! crc p        CRC-32 (IEEE) of this part's payload
//! ```
//!
//! An entry is one frame or several, as redb gives a value of its own pages, as many as the next power of two: a
//! payload is cut where it fills such pages.
//!
//! A state's payload is the length of its name (one byte), the name and the value.

use crate::Seq;

/// Where a frame begins.
pub(crate) const MAGIC: [u8; 4] = *b"kvmJ";
/// Bytes before the payload.
pub(crate) const HEADER: usize = 76;
/// What redb puts beside a value into its pages, and a little more, bytes: 4 for the page, 4 for the length, 10 for
/// the key.
const BESIDE: usize = 24;
/// redb's pages, bytes.
const PAGE: usize = 4096;

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
    pub(crate) part: u16,
    pub(crate) is_last: bool,
    pub(crate) seq: Seq,
    pub(crate) at: i64,
    pub(crate) span: (i64, i64),
    pub(crate) lines: u32,
    pub(crate) total_lines: u64,
    pub(crate) total_bytes: u64,
    /// Bytes of all parts' payloads.
    pub(crate) whole: u32,
    /// Bytes of this part's.
    pub(crate) len: u32,
    crc_payload: u32,
}

impl Header {
    /// The header of a payload in one part; at most `u32::MAX` bytes, which the caller has checked.
    pub(crate) fn new(
        kind: Kind,
        seq: Seq,
        at: i64,
        span: (i64, i64),
        lines: u32,
        totals: Totals,
        payload: &[u8],
    ) -> Self {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        Self {
            kind,
            part: 0,
            is_last: true,
            seq,
            at,
            span,
            lines,
            total_lines: totals.lines,
            total_bytes: totals.bytes,
            whole: len,
            len,
            crc_payload: crc32fast::hash(payload),
        }
    }

    /// Headers of this payload in parts that each fill their pages, but for the last.
    pub(crate) fn parts(self, payload: &[u8]) -> impl Iterator<Item = (Self, &[u8])> {
        let mut rest = Some((0, payload));
        std::iter::from_fn(move || {
            let (part, payload) = rest.take()?;
            let needed = payload.len() + HEADER + BESIDE;
            let (own, after) = if needed <= PAGE {
                (payload, &[][..])
            } else {
                // The largest power of two that is filled.
                payload.split_at((1 << needed.ilog2()) - HEADER - BESIDE)
            };
            if !after.is_empty() {
                rest = Some((part + 1, after));
            }
            let len = u32::try_from(own.len()).unwrap_or(u32::MAX);
            let crc_payload = crc32fast::hash(own);
            Some((Self { part, is_last: after.is_empty(), len, crc_payload, ..self }, own))
        })
    }

    /// Sums up to the entry before.
    pub(crate) fn totals_before(&self) -> Totals {
        Totals {
            lines: self.total_lines.wrapping_sub(u64::from(self.lines)),
            bytes: self.total_bytes.wrapping_sub(u64::from(self.whole)),
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
        out[5] = self.is_last.into();
        out[6..8].copy_from_slice(&self.part.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..24].copy_from_slice(&self.at.to_le_bytes());
        out[24..32].copy_from_slice(&self.span.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.span.1.to_le_bytes());
        out[40..48].copy_from_slice(&self.total_lines.to_le_bytes());
        out[48..52].copy_from_slice(&self.lines.to_le_bytes());
        out[52..56].copy_from_slice(&self.whole.to_le_bytes());
        out[60..64].copy_from_slice(&self.crc_payload.to_le_bytes());
        out[64..72].copy_from_slice(&self.total_bytes.to_le_bytes());
        out[72..76].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc_header(&out);
        out[CRC_HEADER].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header that begins here, if a whole one does.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        if header[..4] != MAGIC || header[5] > 1 || u32_at(header, 56) != crc_header(header) {
            return None;
        }
        let kind = match header[4] {
            1 => Kind::Entry,
            2 => Kind::State,
            _ => return None,
        };
        Some(Self {
            kind,
            part: u16::from_le_bytes([header[6], header[7]]),
            is_last: header[5] == 1,
            seq: u64_at(header, 8),
            at: u64_at(header, 16).cast_signed(),
            span: (u64_at(header, 24).cast_signed(), u64_at(header, 32).cast_signed()),
            lines: u32_at(header, 48),
            total_lines: u64_at(header, 40),
            total_bytes: u64_at(header, 64),
            whole: u32_at(header, 52),
            len: u32_at(header, 72),
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
