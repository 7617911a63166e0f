//! The frame of libvirt's RPC (`docs/kbase/internals/rpc.rst`, `src/rpc/virnetprotocol.x`).
//!
//! ```text
//!  0        4        8        12       16       20       24       28
//!  +--------+--------+--------+--------+--------+--------+--------+-----------+
//!  | length | program| version| proc.  | type   | serial | status | payload … |
//!  +--------+--------+--------+--------+--------+--------+--------+-----------+
//! ```
//!
//! Big-endian; `length` counts the whole frame, itself included. Type 0 is a call, 1 a reply, 2 a message
//! that nobody asked for (an event, a keepalive). Status 0 is well, 1 says that the payload is an error.

use crate::xdr::{Decoder, Encoder, Malformed};

/// Bytes before the payload, the length word included.
pub(crate) const HEADER: usize = 28;
/// Longest frame: VIR_NET_MESSAGE_MAX and the length word. A longer one is refused before it is read.
pub(crate) const MAX_FRAME: usize = 32 * 1024 * 1024 + 4;

/// The program that carries all calls and events, REMOTE_PROGRAM.
pub(crate) const REMOTE: u32 = 0x2000_8086;
/// The program of the keepalive, KEEPALIVE_PROGRAM ("keep").
pub(crate) const KEEPALIVE: u32 = 0x6b65_6570;
/// Both programs have had one version since they exist.
pub(crate) const VERSION: u32 = 1;

/// virNetMessageType
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Call,
    Reply,
    Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) program: u32,
    pub(crate) procedure: i32,
    pub(crate) kind: Type,
    pub(crate) serial: u32,
    /// The payload is an error.
    pub(crate) failed: bool,
}

/// The frame's length from its first four bytes, checked against the limits.
pub(crate) fn length(word: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes(word) as usize;
    if (HEADER..=MAX_FRAME).contains(&length) {
        Ok(length)
    } else {
        Err(Malformed {
            offset: 0,
            expected: format!("frame length from {HEADER} to {MAX_FRAME} bytes, not {length}"),
        })
    }
}

/// Decodes the header of a whole frame.
pub(crate) fn header(frame: &[u8]) -> Result<Header, Malformed> {
    let mut d = Decoder::new(frame, 0);
    let length = d.u32()? as usize;
    if length != frame.len() {
        return Err(Malformed {
            offset: 0,
            expected: format!("length {}, the frame's own, not {length}", frame.len()),
        });
    }
    let program = d.u32()?;
    if program != REMOTE && program != KEEPALIVE {
        return Err(Malformed { offset: 4, expected: format!("program of libvirt, not {program:#x}") });
    }
    let version = d.u32()?;
    if version != VERSION {
        return Err(Malformed { offset: 8, expected: format!("version {VERSION}, not {version}") });
    }
    let procedure = d.i32()?;
    let kind = match d.u32()? {
        0 => Type::Call,
        1 => Type::Reply,
        2 => Type::Message,
        other => {
            return Err(Malformed { offset: 16, expected: format!("call, reply or message, not {other}") });
        }
    };
    let serial = d.u32()?;
    let failed = match d.u32()? {
        0 => false,
        1 => true,
        other => return Err(Malformed { offset: 24, expected: format!("status 0 or 1, not {other}") }),
    };
    Ok(Header { program, procedure, kind, serial, failed })
}

/// Gives a frame its serial.
pub(crate) fn set_serial(frame: &mut [u8], serial: u32) {
    frame[20..24].copy_from_slice(&serial.to_be_bytes());
}

/// A whole frame around what `payload` writes.
pub(crate) fn encode(header: Header, payload: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128);
    let mut e = Encoder(&mut frame);
    let kind = match header.kind {
        Type::Call => 0,
        Type::Reply => 1,
        Type::Message => 2,
    };
    e.u32(0).u32(header.program).u32(VERSION).i32(header.procedure).u32(kind).u32(header.serial);
    e.u32(u32::from(header.failed));
    payload(&mut e);
    let length = frame.len() as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Header =
        Header { program: REMOTE, procedure: 59, kind: Type::Call, serial: 4, failed: false };

    #[test]
    fn a_frame_is_read_back() {
        let mut frame = encode(Header { serial: 0, ..CALL }, |e| {
            e.u32(1);
        });
        set_serial(&mut frame, CALL.serial);
        assert_eq!(frame.len(), HEADER + 4);
        assert_eq!(length([frame[0], frame[1], frame[2], frame[3]]), Ok(HEADER + 4));
        assert_eq!(header(&frame), Ok(CALL));
    }

    #[test]
    fn a_wrong_word_is_blamed_at_its_offset() {
        let frame = encode(CALL, |_| {});
        for (offset, word) in [(0, 29u32), (4, 1), (8, 2), (16, 3), (24, 2)] {
            let mut bad = frame.clone();
            bad[offset..offset + 4].copy_from_slice(&word.to_be_bytes());
            assert_eq!(header(&bad).expect_err("malformed").offset, offset);
        }
        assert!(length(27u32.to_be_bytes()).is_err());
        assert!(length(u32::MAX.to_be_bytes()).is_err());
    }
}
