//! What an entry of the journal holds: the accepted lines of one write to one database.
//!
//! ```text
//! offset  bytes
//!      0      1  version of this format: 1
//!      1      1  n, the length of the database's name, 1 to 255
//!      2      n  the database's name, UTF-8
//!    2+n      4  length of the lines as they are, little endian, at most MAX_LINES_BYTES
//!    6+n   rest  the lines as one LZ4 block
//! ```
//!
//! The lines are line protocol in UTF-8: each whole, ended by a line feed, with its time in nanoseconds; none is
//! blank or a comment. A line feed may stand inside of a text field, too.
//!
//! The journal has checksums, so what does not decode was written by another program, or by a newer kvmetry.

/// The version that is written, and the only one so far.
const VERSION: u8 = 1;
/// The longest name of a database, bytes: what its one byte of length can say.
pub(crate) const MAX_DATABASE_BYTES: usize = u8::MAX as usize;
/// The most lines in one entry, bytes as they are. The largest body is 10 MiB, and the shortest line of it grows
/// fivefold by its time in nanoseconds.
pub(crate) const MAX_LINES_BYTES: usize = 64 << 20;
/// An LZ4 block cannot hold more than this many times its own length, so a length that says so is a lie.
const MAX_LZ4_RATIO: usize = 255;

/// The lines of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    /// The database's name, never empty.
    pub(crate) database: String,
    /// Its lines.
    pub(crate) text: String,
}

/// An entry that this program cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A newer version's.
    #[error("it has format {0}, this kvmetry knows {VERSION}: a newer kvmetry wrote it; run that one")]
    Newer(u8),
    /// It is not what the format says.
    #[error("byte {offset}: expected {expected}")]
    At {
        /// Where, from the entry's beginning.
        offset: usize,
        /// What should stand there.
        expected: &'static str,
    },
}

/// Makes an entry's bytes of a write. The name is cut at [`MAX_DATABASE_BYTES`] and the lines must not be longer
/// than [`MAX_LINES_BYTES`]: whoever accepted the write has seen to both.
pub(crate) fn encode(database: &str, text: &str) -> Vec<u8> {
    let name = &database.as_bytes()[..database.len().min(MAX_DATABASE_BYTES)];
    let head = 6 + name.len();
    let mut bytes = vec![0; head + lz4_flex::block::get_maximum_output_size(text.len())];
    bytes[0] = VERSION;
    bytes[1] = name.len() as u8;
    bytes[2..2 + name.len()].copy_from_slice(name);
    bytes[2 + name.len()..head].copy_from_slice(&(text.len() as u32).to_le_bytes());
    // It fails only where there is less room than its own bound.
    let compressed = lz4_flex::block::compress_into(text.as_bytes(), &mut bytes[head..]).unwrap_or_default();
    bytes.truncate(head + compressed);
    bytes.shrink_to_fit();
    bytes
}

/// How long the lines of an entry are, bytes, without decompressing them.
///
/// # Errors
/// As [`decode`], as far as its head tells.
pub(crate) fn lines_len(bytes: &[u8]) -> Result<usize, Malformed> {
    head(bytes).map(|head| head.len)
}

/// Reads an entry's bytes.
///
/// # Errors
/// What a newer version wrote, and what was never written by [`encode`]. No length is believed before it was checked.
pub(crate) fn decode(bytes: &[u8]) -> Result<Lines, Malformed> {
    let Head { database, len, offset } = head(bytes)?;
    let mut text = vec![0; len];
    let found = lz4_flex::block::decompress_into(&bytes[offset..], &mut text).ok();
    if found != Some(len) {
        return Err(Malformed::At { offset, expected: "an LZ4 block of the length said" });
    }
    let text = String::from_utf8(text).map_err(|_| Malformed::At { offset, expected: "lines in UTF-8" })?;
    if text.is_empty() || !text.ends_with('\n') {
        return Err(Malformed::At { offset, expected: "whole lines" });
    }
    Ok(Lines { database: database.to_owned(), text })
}

/// What stands before the lines.
struct Head<'a> {
    database: &'a str,
    /// The lines as they are, bytes.
    len: usize,
    /// Where the LZ4 block begins.
    offset: usize,
}

fn head(bytes: &[u8]) -> Result<Head<'_>, Malformed> {
    let wrong = |offset, expected| Malformed::At { offset, expected };
    let (version, rest) = bytes.split_first().ok_or(wrong(0, "a version"))?;
    match *version {
        VERSION => {}
        0 => return Err(wrong(0, "a version")),
        newer => return Err(Malformed::Newer(newer)),
    }
    let (name_len, rest) = rest.split_first().ok_or(wrong(1, "the length of a name"))?;
    let name_len = usize::from(*name_len);
    let (name, rest) = rest.split_at_checked(name_len).ok_or(wrong(2, "a name as long as said"))?;
    let database = std::str::from_utf8(name).map_err(|_| wrong(2, "a name in UTF-8"))?;
    if database.is_empty() {
        return Err(wrong(1, "a name"));
    }
    let at = 2 + name_len;
    let (len, block) = rest.split_first_chunk().ok_or(wrong(at, "the length of the lines"))?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > MAX_LINES_BYTES || len > block.len().saturating_mul(MAX_LZ4_RATIO) {
        return Err(wrong(at, "a length that the block can hold"));
    }
    Ok(Head { database, len, offset: at + 4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_read_back() {
        #[track_caller]
        fn check(database: &str, text: &str) {
            let bytes = encode(database, text);
            assert_eq!(lines_len(&bytes), Ok(text.len()));
            assert_eq!(decode(&bytes), Ok(Lines { database: database.to_owned(), text: text.to_owned() }));
        }
        check("kvmetry", "a v=1i 1\n");
        check("\u{fc} /\"", "a v=\"two\nlines\" 1\nb v=1 2\n");
        let many: String = (0..50_000).map(|n| format!("vm_totals,VMID=7 cputime={n}i {n}\n")).collect();
        check(&"d".repeat(MAX_DATABASE_BYTES), &many);
        assert!(encode("d", &many).len() < many.len() / 3, "it is compressed");
    }

    /// The example of the module's picture, byte by byte.
    #[test]
    fn the_format_is_as_drawn() {
        let mut drawn = vec![1, 2, b'd', b'b', 9, 0, 0, 0];
        // A token: nine literals and no match, then they themselves.
        drawn.push(9 << 4);
        drawn.extend_from_slice(b"a v=1i 1\n");
        assert_eq!(encode("db", "a v=1i 1\n"), drawn);
    }

    #[test]
    fn what_is_not_an_entry_is_refused_with_its_place() {
        #[track_caller]
        fn check(bytes: &[u8], expect: &str) {
            assert_eq!(decode(bytes).unwrap_err().to_string(), expect);
        }
        let good = encode("db", "a v=1i 1\n");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        check(&[], "byte 0: expected a version");
        check(&with(0, 0), "byte 0: expected a version");
        check(&with(0, 2), "it has format 2, this kvmetry knows 1: a newer kvmetry wrote it; run that one");
        check(&good[..1], "byte 1: expected the length of a name");
        check(&with(1, 0), "byte 1: expected a name");
        check(&with(1, 200), "byte 2: expected a name as long as said");
        check(&with(2, 0xff), "byte 2: expected a name in UTF-8");
        check(&good[..6], "byte 4: expected the length of the lines");
        // Gigabytes are not made room for, nor what a block of ten bytes cannot hold.
        check(&with(7, 0xff), "byte 4: expected a length that the block can hold");
        check(&with(5, 0x0a), "byte 4: expected a length that the block can hold");
        check(&with(4, 8), "byte 8: expected an LZ4 block of the length said");
        check(&with(4, 10), "byte 8: expected an LZ4 block of the length said");
        check(&good[..good.len() - 1], "byte 8: expected an LZ4 block of the length said");
        check(&with(good.len() - 1, b'x'), "byte 8: expected whole lines");
        check(&with(10, 0xff), "byte 8: expected lines in UTF-8");
    }

    #[test]
    fn no_change_of_bytes_makes_it_panic_or_grow() {
        let good = encode("kvmetry", &"vm_totals,VMID=7 cputime=12i 1000\n".repeat(40));
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                if let Ok(lines) = decode(&bytes) {
                    assert!(lines.text.len() <= good.len() * MAX_LZ4_RATIO);
                }
                let _ = decode(&bytes[..at]);
            }
        }
    }
}
