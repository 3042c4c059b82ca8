//! Ranges of a buffer, and their segments: each is one message.

use std::ops::Range;

/// Longest payload of a message: some of them fit into the second-level cache.
pub const SEGMENT: usize = 256 << 10;

/// Ranges of these lengths, one after the other.
pub fn consecutive(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    lengths
        .iter()
        .map(|length| {
            start += length;
            start - length..start
        })
        .collect()
}

/// How many segments the longest range has.
pub fn segments(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(|range| cut(range.len()).count()).max().unwrap_or(0)
}

/// The segments of a buffer of so many bytes. An empty buffer has one too, so that its rank is heard.
pub fn cut(bytes: usize) -> impl Iterator<Item = Range<usize>> {
    (0..).map_while(move |index| segment(bytes, index))
}

/// One of them.
pub fn segment(bytes: usize, index: usize) -> Option<Range<usize>> {
    let start = index * SEGMENT;
    (index == 0 || start < bytes).then(|| start..bytes.min(start + SEGMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_the_whole_buffer_and_never_none() {
        for bytes in [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT] {
            let ranges: Vec<_> = cut(bytes).collect();
            assert_eq!(ranges.len(), bytes.div_ceil(SEGMENT));
            assert_eq!(consecutive(&ranges.iter().map(Range::len).collect::<Vec<_>>()), ranges);
            assert_eq!(ranges.last().map(|range| range.end), Some(bytes));
        }
        assert!(cut(0).eq(std::iter::once(0..0)));
        assert_eq!(segments(&[0..1, 1..2 + SEGMENT, 0..0]), 2);
    }
}
