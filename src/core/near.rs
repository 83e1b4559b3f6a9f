//! The name that was meant.

/// How alike two names must be, from 0 to 1.
const ALIKE: f64 = 0.8;

/// ` (did you mean NAME?)` of the name that is most like one that is not known; nothing where none is.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    let all = known.into_iter().map(|other| (likeness(other), other));
    let best = all.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness >= ALIKE);
    best.map_or(String::new(), |(_, other)| format!(" (did you mean {other}?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_another_word_none() {
        let names = ["rms_norm.cu", "rope.cu", "q_rope", "attn_out"];
        let meant = |name| did_you_mean(name, names);
        assert_eq!(meant("rmsnorm.cu"), " (did you mean rms_norm.cu?)");
        assert_eq!(meant("Rope.cu"), " (did you mean rope.cu?)");
        assert_eq!(meant("qrope"), " (did you mean q_rope?)");
        assert_eq!(meant("banana"), "");
    }
}
