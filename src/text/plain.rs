//! Text from outside on its way to a terminal: what a terminal would obey, or show otherwise than it is, is written out.

use std::borrow::Cow;
use std::ops::RangeInclusive;

/// Characters that turn the direction of what follows, or are not seen at all (Unicode Standard Annex 9, and the zero-width ones): a name
/// with one of them reads as another name.
const UNSEEN: [RangeInclusive<char>; 7] = [
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{e0000}'..='\u{e007f}',
];

/// Whether a character may reach a terminal as it is. Control characters may not, those of C1 (U+0080 to U+009F) included: xterm takes
/// U+009B for the beginning of an escape sequence.
pub fn is_plain(character: char) -> bool {
    !character.is_control() && !UNSEEN.iter().any(|range| range.contains(&character))
}

/// The text with everything else written out, as in `\u{1b}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_plain(character) {
            true => out.push(character),
            false => out.extend(character.escape_default()),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        for (text, shown) in [
            ("sshd", "sshd"),
            ("größe \\ \"x\"", "größe \\ \"x\""),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\x7f\0", "\\u{7f}\\u{0}"),
            ("gpu\u{202e}71-", "gpu\\u{202e}71-"),
            ("ss\u{200b}hd", "ss\\u{200b}hd"),
        ] {
            assert_eq!(plain(text), shown);
        }
        assert!(matches!(plain("sshd"), Cow::Borrowed(_)));
    }
}
