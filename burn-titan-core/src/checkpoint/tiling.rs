//! Whether the pieces of a tensor make the whole of it.

use std::collections::BTreeSet;

use super::region::{Block, Region, RegionError};

/// Why pieces are not the whole of a tensor. Pieces are named by their place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TilingError {
    /// A piece is not in the tensor.
    Outside(RegionError),
    /// Two pieces share an element.
    Overlap(usize, usize),
    /// The pieces have too few elements.
    Hole { found: usize, expected: usize },
}

/// Checks that every element of a tensor of `shape` is in exactly one of `pieces`.
pub(super) fn check_tiling(shape: &[usize], pieces: &[Region]) -> Result<(), TilingError> {
    let expected = Region::whole(shape).map_err(TilingError::Outside)?.elements();
    let mut found = 0usize;
    for piece in pieces {
        piece.check(shape).map_err(TilingError::Outside)?;
        found = found.saturating_add(piece.elements());
    }
    // Pieces of which no two share an element are the whole if they have as many elements.
    let overlap = match pieces.iter().all(|piece| piece.is_box_whole(shape)) {
        true => overlap_of_ranges(pieces),
        false => overlap(shape.len(), pieces),
    };
    if let Some((a, b)) = overlap {
        return Err(TilingError::Overlap(a.min(b), a.max(b)));
    }
    if found != expected {
        return Err(TilingError::Hole { found, expected });
    }
    Ok(())
}

/// Two ranges of the same box that share an element, if there are such.
fn overlap_of_ranges(pieces: &[Region]) -> Option<(usize, usize)> {
    let mut ranges: Vec<_> = pieces.iter().map(Region::range).enumerate().collect();
    ranges.retain(|(_, range)| !range.is_empty());
    ranges.sort_by_key(|(_, range)| range.start);
    let mut neighbours = ranges.windows(2);
    neighbours.find(|pair| pair[0].1.end > pair[1].1.start).map(|pair| (pair[0].0, pair[1].0))
}

/// Two pieces that share an element, if there are such: a sweep along the dim that parts the pieces
/// best, so that shards of one dim are compared with their neighbours only.
fn overlap(dims: usize, pieces: &[Region]) -> Option<(usize, usize)> {
    let mut blocks: Vec<(usize, Block)> = Vec::new();
    for (piece, region) in pieces.iter().enumerate() {
        blocks.extend(region.blocks().into_iter().map(|block| (piece, block)));
    }
    let starts = |dim: &usize| {
        blocks.iter().map(|(_, block)| block.start[*dim]).collect::<BTreeSet<_>>().len()
    };
    let Some(dim) = (0..dims).max_by_key(starts) else {
        // A scalar: any two pieces that are not empty are the same element.
        return (blocks.len() > 1).then(|| (blocks[0].0, blocks[1].0));
    };
    blocks.sort_by_key(|(_, block)| block.start[dim]);
    let mut active: Vec<&(usize, Block)> = Vec::new();
    for entry in &blocks {
        let (piece, block) = entry;
        active.retain(|(_, other)| other.end(dim) > block.start[dim]);
        let shares = |other: &&&(usize, Block)| other.1.intersection(block).is_some();
        if let Some((other, _)) = active.iter().find(shares) {
            return Some((*other, *piece));
        }
        active.push(entry);
    }
    None
}
