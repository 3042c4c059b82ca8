//! The valid name that was probably meant.

use strsim::osa_distance;

/// Names longer than this are no slips of the keyboard, and comparing them would take long.
const MAX_NAME_LEN: usize = 64;

/// The candidate nearest to `word`, if any is near enough to be worth naming.
///
/// Near means: the same but for case and `-` for `_`; at most a third of the letters edited
/// (optimal string alignment, so that swapped neighbours count once); or one begins with the other.
/// Ties go to the earlier candidate.
///
/// ```
/// use burn_titan_core::config::nearest;
/// assert_eq!(nearest("seq_length", ["steps", "seq_len"]), Some("seq_len"));
/// assert_eq!(nearest("banana", ["steps", "seq_len"]), None);
/// ```
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normal(word);
    let letters = word.chars().count();
    if letters == 0 || letters > MAX_NAME_LEN {
        return None;
    }
    let score = |candidate: &'a str| {
        let name = normal(candidate);
        let distance = osa_distance(&word, &name);
        let begins = name.starts_with(&word) || word.starts_with(&name);
        let near = distance <= (letters.max(name.chars().count()) / 3).max(1);
        (near || (begins && letters >= 3 && name.len() >= 3)).then_some((distance, candidate))
    };
    let best = candidates.into_iter().filter_map(score).min_by_key(|(distance, _)| *distance);
    best.map(|(_, candidate)| candidate)
}

fn normal(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_slips_and_ignores_strangers() {
        let names = ["steps", "seq_len", "local_batch_size", "global_batch_size", "lr"];
        for (word, expected) in [
            ("stpes", Some("steps")),
            ("STEPS", Some("steps")),
            ("seq-len", Some("seq_len")),
            ("seq_length", Some("seq_len")),
            ("local_batch", Some("local_batch_size")),
            ("batch_size", None),
            ("rl", Some("lr")),
            ("xy", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, names), expected, "{word}");
        }
        assert_eq!(nearest(&"s".repeat(1_000_000), names), None);
    }
}
