//! Words of a peer (a daemon, an ssh, a certificate) on their way into an error message.

/// Most characters of a peer's words in a message; the rest is replaced by `…`. libvirt's own messages are shorter, and a
/// log line stays one. A daemon may send up to 4 MiB.
const MAX_SHOWN: usize = 300;

/// The peer's words as one line that a terminal and a log take as text: a line's end becomes a space, what could steer
/// a terminal or reorder the line becomes `�`.
pub(crate) fn printable(text: &str) -> String {
    let mut chars = text.trim_end().chars();
    let mut shown: String = chars.by_ref().take(MAX_SHOWN).map(harmless).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

fn harmless(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
        // Marks that change the direction of what follows, or are not seen at all.
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
            char::REPLACEMENT_CHARACTER
        }
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_are_one_harmless_line() {
        let check = |text: &str, expect: &str| assert_eq!(printable(text), expect, "{text:?}");
        check(
            "Domain not found: no domain with matching name 'é'",
            "Domain not found: no domain with matching name 'é'",
        );
        check("two\nlines\r\n", "two lines");
        check("\x1b[31mred\x07\0", "�[31mred��");
        check("\u{85}a\u{202e}b\u{2028}c\u{feff}", "�a�b c�");
        check("", "");
        check(&"é".repeat(MAX_SHOWN), &"é".repeat(MAX_SHOWN));
        check(&"é".repeat(MAX_SHOWN + 1), &("é".repeat(MAX_SHOWN) + "…"));
    }
}
