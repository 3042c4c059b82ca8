//! Valid configs, damaged at random, must never make the checks panic or take long.

use super::{LARGE, SMALLEST, parse};
use crate::config::{Checks, Draft, to_yaml};

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, or 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn range(&mut self, end: usize) -> std::ops::Range<usize> {
        let start = self.below(end);
        start..start + self.below((end - start).min(20) + 1)
    }
}

/// Pieces with a meaning in YAML or for the checks.
const PIECES: [&str; 24] = [
    ":",
    ": ",
    "\n",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "|\n",
    "\"",
    "'",
    "\t",
    "---\n",
    "null",
    ".nan",
    "-1",
    "1e999",
    "é\u{202e}",
    "\0",
    "? ",
];

fn mutate(random: &mut Random, text: &mut Vec<u8>) {
    let end = text.len();
    match random.below(7) {
        0 if end > 0 => text[random.below(end)] ^= 1 << random.below(8),
        1 => drop(text.drain(random.range(end))),
        2 => {
            let piece = PIECES[random.below(PIECES.len())].bytes();
            let at = random.below(end + 1);
            text.splice(at..at, piece);
        }
        3 => {
            let mut lines: Vec<Vec<u8>> =
                text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            let line = lines.get(random.below(lines.len())).cloned().unwrap_or_default();
            lines.insert(random.below(lines.len() + 1), line);
            *text = lines.concat();
        }
        4 => {
            let mut words: Vec<Vec<u8>> =
                text.split_inclusive(|b| b" \n:,".contains(b)).map(<[u8]>::to_vec).collect();
            let (a, b) = (random.below(words.len()), random.below(words.len()));
            if !words.is_empty() {
                words.swap(a, b);
            }
            *text = words.concat();
        }
        5 => {
            let (from, to) = (random.range(end), random.below(end + 1));
            let copy = text[from].to_vec();
            text.splice(to..to, copy);
        }
        _ if random.below(10) == 0 => text.truncate(random.below(end + 1)),
        _ => {}
    }
}

#[test]
fn ten_thousand_mutations() {
    let mut random = Random(2024);
    let (mut sound, mut broken) = (0, 0);
    for round in 0..10_000 {
        let mut text = [SMALLEST, LARGE][round % 2].as_bytes().to_vec();
        let mut word = b"data.train.0.weight=2".to_vec();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut text);
            mutate(&mut random, &mut word);
        }
        let text = String::from_utf8_lossy(&text);
        let overrides = match round % 3 {
            0 => vec![String::from_utf8_lossy(&word).into_owned()],
            _ => vec![],
        };
        match Draft::parse("a.yaml", &text, &overrides, Checks { files: false, ranks: None })
            .finish()
        {
            Ok(loaded) => {
                sound += 1;
                let yaml = to_yaml(&loaded.config);
                let again = parse(&yaml, &[]).unwrap_or_else(|e| panic!("{text}\n{yaml}\n{e}"));
                assert_eq!(again.config, loaded.config, "{text}\n{yaml}");
            }
            Err(errors) => {
                broken += 1;
                assert!(!errors.problems().is_empty());
                let rendered = errors.to_string();
                let clean = |c: char| c == '\n' || !c.is_control();
                assert!(rendered.chars().all(clean), "{rendered}");
            }
        }
    }
    // Both ends must be reached, or the mutations test nothing.
    assert!(sound > 500 && broken > 5000, "{sound} sound, {broken} broken");
}
