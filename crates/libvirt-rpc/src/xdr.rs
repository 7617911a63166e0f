//! XDR (RFC 4506) as libvirt uses it: big-endian, everything padded to four bytes.
//!
//! ```text
//! int, unsigned, enum, bool   4 bytes
//! hyper, unsigned hyper       8 bytes
//! double                      8 bytes, IEEE 754
//! opaque[N]                   N bytes, padded
//! string<>, opaque<>          4 bytes length, then the bytes, padded
//! T *                         4 bytes 0, or 1 followed by T
//! T<>                         4 bytes count, then the elements
//! ```
//!
//! Decoding borrows from the message and allocates nothing. Every length is compared with the bytes that
//! are really there, and with the protocol's own limit, before it is used.

use std::borrow::Cow;

/// Longest string that libvirt sends or takes: REMOTE_STRING_MAX of `remote_protocol.x`.
pub(crate) const MAX_STRING: usize = 4 * 1024 * 1024;

/// What does not fit, and where. The connection adds who sent it and in answer to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Bytes from the start of the frame, its length word included.
    pub offset: usize,
    /// What should have stood there.
    pub expected: String,
}

/// Reads XDR from a message.
#[derive(Clone)]
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Offset of `bytes[0]` in the frame, for messages.
    base: usize,
}

impl<'a> Decoder<'a> {
    /// `base` is where `bytes` begins in the frame; it only serves error messages.
    pub(crate) fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, at: 0, base }
    }

    pub(crate) fn offset(&self) -> usize {
        self.base + self.at
    }

    #[cold]
    pub(crate) fn malformed(&self, expected: impl Into<String>) -> Malformed {
        Malformed { offset: self.offset(), expected: expected.into() }
    }

    /// The next `len` bytes and their padding.
    #[inline]
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], Malformed> {
        let padded = len.checked_add(3).map(|l| l & !3);
        match padded.and_then(|padded| self.bytes.get(self.at..self.at.checked_add(padded)?)) {
            Some(slice) => {
                self.at += slice.len();
                Ok(&slice[..len])
            }
            None => Err(self.short(len, what)),
        }
    }

    #[cold]
    fn short(&self, len: usize, what: &str) -> Malformed {
        self.malformed(format!("{what} of {len} bytes, {} bytes are left", self.bytes.len() - self.at))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let b = self.take(4, "integer")?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    #[inline]
    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(self.u32()? as i32)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let b = self.take(8, "hyper integer")?;
        Ok(u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(self.u64()? as i64)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, Malformed> {
        Ok(f64::from_bits(self.u64()?))
    }

    /// A count of elements that take at least `min_size` bytes each: refused when the message cannot hold
    /// them, so that nobody reserves memory for elements that never come.
    pub(crate) fn count(&mut self, max: usize, min_size: usize, what: &str) -> Result<usize, Malformed> {
        let before = self.clone();
        let count = self.u32()? as usize;
        if count > max {
            return Err(before.malformed(format!("at most {max} {what}, not {count}")));
        }
        let left = self.bytes.len() - self.at;
        if count.saturating_mul(min_size) > left {
            return Err(before.malformed(format!("as many {what} as fit into {left} bytes, not {count}")));
        }
        Ok(count)
    }

    /// Variable-length bytes, at most `max` of them.
    #[inline]
    pub(crate) fn opaque(&mut self, max: usize, what: &str) -> Result<&'a [u8], Malformed> {
        let before = self.at;
        let len = self.u32()? as usize;
        if len > max {
            self.at = before;
            return Err(self.malformed(format!("{what} of at most {max} bytes, not {len}")));
        }
        self.take(len, what)
    }

    /// Fixed-length bytes.
    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N, "opaque")?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    /// A string that must be UTF-8, as all of libvirt's are but the words of its errors.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let before = self.at;
        let bytes = self.opaque(MAX_STRING, "string")?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s),
            Err(_) => {
                self.at = before;
                Err(self.malformed("string in UTF-8"))
            }
        }
    }

    /// A string that is only shown. libvirt cuts long messages at a number of bytes, and takes the operating system's
    /// words in whatever locale the daemon has: what is no UTF-8 is replaced.
    pub(crate) fn text(&mut self) -> Result<Cow<'a, str>, Malformed> {
        Ok(String::from_utf8_lossy(self.opaque(MAX_STRING, "string")?))
    }

    /// A pointer: absent or one element.
    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        let before = self.at;
        match self.u32()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            other => {
                self.at = before;
                Err(self.malformed(format!("pointer flag 0 or 1, not {other}")))
            }
        }
    }

    /// Says that the message ends here.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(self.malformed(format!("end of message, {left} bytes are left over"))),
        }
    }
}

/// Writes XDR to the end of a buffer.
pub(crate) struct Encoder<'a>(pub(crate) &'a mut Vec<u8>);

impl Encoder<'_> {
    pub(crate) fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }

    pub(crate) fn i32(&mut self, v: i32) -> &mut Self {
        self.u32(v as u32)
    }

    pub(crate) fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        // Nothing that this client sends comes near 4 GiB: names are read from replies of at most 32 MiB, and a frame
        // that is too long is not sent.
        self.u32(bytes.len() as u32);
        self.fixed(bytes)
    }

    pub(crate) fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len() + bytes.len().wrapping_neg() % 4, 0);
        self
    }

    pub(crate) fn string(&mut self, s: &str) -> &mut Self {
        self.opaque(s.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buf = Vec::new();
        Encoder(&mut buf).u32(7).i32(-1).string("vnet0").opaque(b"").fixed(&[9; 16]);
        let mut d = Decoder::new(&buf, 28);
        assert_eq!(d.u32(), Ok(7));
        assert_eq!(d.i32(), Ok(-1));
        assert_eq!(d.string(), Ok("vnet0"));
        assert_eq!(d.opaque(10, "x"), Ok(&b""[..]));
        assert_eq!(d.fixed::<16>(), Ok([9; 16]));
        assert_eq!(d.end(), Ok(()));
        assert_eq!(d.offset(), 28 + 4 + 4 + 12 + 4 + 16);
    }

    /// Each malformed input, the offset that is blamed, and a part of what was expected.
    #[test]
    fn malformed_input_is_named_with_its_offset() {
        type Read = fn(&mut Decoder<'_>) -> Result<(), Malformed>;
        let check = |bytes: &[u8], read: Read, offset: usize, expected: &str| {
            let error = read(&mut Decoder::new(bytes, 100)).expect_err(expected);
            assert_eq!(error.offset, offset, "{error:?}");
            assert!(error.expected.contains(expected), "{error:?} does not say {expected:?}");
        };
        let string: Read = |d| d.string().map(drop);
        check(&[0, 0], |d| d.u32().map(drop), 100, "integer of 4 bytes, 2 bytes are left");
        check(&[0, 0, 0, 9, b'a'], string, 104, "string of 9 bytes, 1 bytes are left");
        check(&[0, 0, 0, 1, b'a'], string, 104, "string of 1 bytes"); // its padding is missing
        check(&[0xff; 8], string, 100, "at most 4194304");
        check(&[0, 0, 0, 1, 0xff, 0, 0, 0], string, 100, "UTF-8");
        check(&[0, 0, 0, 2], |d| d.option(|d| d.u32()).map(drop), 100, "0 or 1");
        check(&[0, 0, 0, 5, 0, 0, 0, 0], |d| d.count(9, 4, "domains").map(drop), 100, "fit into 4 bytes");
        check(&[0, 0, 0, 9], |d| d.count(8, 4, "domains").map(drop), 100, "at most 8 domains");
        check(&[0, 0, 0, 0], |d| d.end(), 100, "4 bytes are left over");
    }
}
