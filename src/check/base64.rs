//! Bytes in text (RFC 4648, without padding), a third shorter than in hexadecimal digits.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of some bytes.
pub fn encoded(bytes: &[u8]) -> String {
    let digits = bytes.chunks(3).flat_map(|part| {
        let of_part = part.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
        let of_part = of_part << (8 * (3 - part.len()));
        (0..=part.len()).map(move |index| char::from(DIGITS[of_part >> (18 - 6 * index) & 63]))
    });
    digits.collect()
}

/// The bytes of a text; `None` where it is none of [`encoded`].
pub fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for part in text.as_bytes().chunks(4) {
        let mut of_part = 0usize;
        for digit in part {
            of_part = of_part << 6 | DIGITS.iter().position(|known| known == digit)?;
        }
        of_part <<= 6 * (4 - part.len());
        bytes.extend((1..part.len()).map(|index| (of_part >> (24 - 8 * index)) as u8));
    }
    (encoded(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back_and_other_texts_are_refused() {
        let bytes: Vec<u8> = (0..=255).rev().collect();
        for length in 0..=256 {
            assert_eq!(decoded(&encoded(&bytes[..length])).as_deref(), Some(&bytes[..length]));
        }
        assert_eq!(encoded(b"firstdiff"), "Zmlyc3RkaWZm");
        for other in ["Z", "Zm=", "Zm ", "Zn", "é", "Zmlyc"] {
            assert_eq!(decoded(other), None, "{other}");
        }
    }
}
