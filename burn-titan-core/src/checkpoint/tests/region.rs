//! Regions, compared with what one does element by element.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::super::tiling::{TilingError, check_tiling};
use super::*;

/// Where each element of the tensor (its place in row-major order) is in the region's data.
fn naive(shape: &[usize], region: &Region) -> BTreeMap<usize, usize> {
    let mut places = BTreeMap::new();
    let volume: usize = region.length().iter().product();
    for in_box in 0..volume {
        let mut rest = in_box;
        let mut element = 0;
        let mut stride = 1;
        for dim in (0..shape.len()).rev() {
            element += (region.start()[dim] + rest % region.length()[dim]) * stride;
            rest /= region.length()[dim];
            stride *= shape[dim];
        }
        if region.range().contains(&in_box) {
            places.insert(element, in_box - region.range().start);
        }
    }
    places
}

fn range(limit: usize) -> impl Strategy<Value = Range<usize>> {
    (0..=limit, 0..=limit).prop_map(|(a, b)| a.min(b)..a.max(b))
}

fn region(shape: Vec<usize>) -> impl Strategy<Value = Region> {
    let dims: Vec<_> = shape.iter().map(|dim| range(*dim).boxed()).collect();
    dims.prop_flat_map(|dims| {
        let start: Vec<usize> = dims.iter().map(|dim| dim.start).collect();
        let length: Vec<usize> = dims.iter().map(|dim| dim.len()).collect();
        let volume = length.iter().product();
        // All of the box is as likely as part of it.
        prop_oneof![Just(0..volume), range(volume)]
            .prop_map(move |range| Region::new(&start, &length, range).unwrap())
    })
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..6, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn runs_are_what_both_have(
        (shape, source, target) in shape().prop_flat_map(|shape| {
            (Just(shape.clone()), region(shape.clone()), region(shape))
        })
    ) {
        source.check(&shape).unwrap();
        let (from, to) = (naive(&shape, &source), naive(&shape, &target));
        prop_assert_eq!(from.len(), source.elements());
        prop_assert_eq!(source.shape().iter().product::<usize>(), source.elements());
        let mut wanted: Vec<(usize, usize)> = from
            .iter()
            .filter_map(|(element, place)| Some((*place, *to.get(element)?)))
            .collect();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for run in source.runs(&target) {
            prop_assert!(run.length > 0);
            found.extend((0..run.length).map(|i| (run.source + i, run.target + i)));
        }
        wanted.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn a_tiling_has_every_element_once(
        (shape, pieces) in shape().prop_flat_map(|shape| {
            (Just(shape.clone()), prop::collection::vec(region(shape), 0..4))
        })
    ) {
        judged_as_naive(&shape, &pieces)?;
    }

    #[test]
    fn cut_tensors_are_tilings_until_a_piece_is_changed(
        (shape, cut, dim, at, change) in prop::collection::vec(1usize..6, 1..4).prop_flat_map(|shape| {
            let volume: usize = shape.iter().product();
            let dims = 0..shape.len();
            let cuts = prop::collection::vec(0..=volume, 0..4);
            (Just(shape), cuts, dims, 0usize..6, any::<prop::sample::Index>())
        })
    ) {
        let pieces = cut_in_boxes(&shape, &cut, dim, at);
        prop_assert_eq!(check_tiling(&shape, &pieces), Ok(()));
        judged_as_naive(&shape, &pieces)?;
        let mut changed = pieces.clone();
        let doubled = changed[change.index(pieces.len())].clone();
        changed.push(doubled);
        judged_as_naive(&shape, &changed)?;
        let mut changed = pieces.clone();
        changed.swap_remove(change.index(pieces.len()));
        judged_as_naive(&shape, &changed)?;
    }
}

/// Cuts a tensor into two boxes along `dim`, and each of them into ranges.
fn cut_in_boxes(shape: &[usize], cuts: &[usize], dim: usize, at: usize) -> Vec<Region> {
    let at = at.min(shape[dim]);
    let mut pieces = Vec::new();
    for part in [0..at, at..shape[dim]] {
        let (mut start, mut length) = (vec![0; shape.len()], shape.to_vec());
        (start[dim], length[dim]) = (part.start, part.len());
        let volume: usize = length.iter().product();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| (*cut).min(volume)).collect();
        ends.extend([0, volume]);
        ends.sort_unstable();
        for pair in ends.windows(2) {
            pieces.push(Region::new(&start, &length, pair[0]..pair[1]).unwrap());
        }
    }
    pieces
}

fn judged_as_naive(shape: &[usize], pieces: &[Region]) -> Result<(), TestCaseError> {
    let total: usize = shape.iter().product();
    let mut owners: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, piece) in pieces.iter().enumerate() {
        for element in naive(shape, piece).into_keys() {
            owners.entry(element).or_default().push(number);
        }
    }
    let overlap = owners.values().any(|owners| owners.len() > 1);
    match check_tiling(shape, pieces) {
        Ok(()) => prop_assert!(!overlap && owners.len() == total),
        Err(TilingError::Overlap(a, b)) => {
            prop_assert!(owners.values().any(|owners| owners.contains(&a) && owners.contains(&b)));
            prop_assert!(a < b);
        }
        Err(TilingError::Hole { found, expected }) => {
            prop_assert!(!overlap);
            prop_assert_eq!((found, expected), (owners.len(), total));
        }
        Err(TilingError::Outside(error)) => return Err(TestCaseError::fail(error.to_string())),
    }
    Ok(())
}

#[test]
fn runs_are_as_long_as_they_can_be() {
    let shape = [40, 7, 11];
    let flat = |range| Region::flat(&shape, range).unwrap();
    // Ranges that begin and end within rows share one run.
    let runs = flat(100..2000).runs(&flat(1001..3000));
    assert_eq!(runs, [Run { source: 901, target: 0, length: 999 }]);
    let rows = Region::of_box(&[10, 0, 0], &[20, 7, 11]).unwrap();
    assert_eq!(flat(0..3080).runs(&rows), [Run { source: 770, target: 0, length: 1540 }]);
    let columns = Region::of_box(&[0, 0, 4], &[40, 7, 5]).unwrap();
    assert_eq!(flat(0..3080).runs(&columns).len(), 40 * 7);
    assert_eq!(columns.runs(&columns).len(), 1);
}

#[test]
fn regions_that_are_none_are_refused() {
    let message = |region: Result<Region, RegionError>| region.unwrap_err().to_string();
    assert_eq!(message(Region::flat(&[2, 3], 4..7)), "elements 4 to 7 are not in a box of [2, 3]");
    assert_eq!(
        message(Region::of_box(&[0], &[2, 3])),
        "a box that starts at [0] cannot be [2, 3] long: give both for each dim"
    );
    let long = vec![usize::MAX, 2];
    assert_eq!(
        message(Region::whole(&long)),
        "a box of [18446744073709551615, 2] elements overflows: check the shape"
    );
    assert_eq!(Region::whole(&[usize::MAX, 2, 0]).unwrap().elements(), 0);
    let outside = Region::of_box(&[1, 0], &[2, 3]).unwrap();
    assert_eq!(
        outside.check(&[2, 3]).unwrap_err().to_string(),
        "the box from [1, 0] of [2, 3] is not in a tensor of [2, 3]"
    );
    assert!(outside.check(&[3]).is_err());
    let far = Region::of_box(&[usize::MAX], &[1]).unwrap();
    assert!(far.check(&[usize::MAX]).is_err());
}

#[test]
fn a_tensor_of_100_gb_is_counted_right() {
    let shape = [1 << 17, 200_000];
    let elements = shape[0] * shape[1];
    assert!(elements * 4 > 100_000_000_000, "bytes of f32");
    let third = elements / 3;
    let ranges = [0..third, third..2 * third + 5, 2 * third + 5..elements];
    let pieces = ranges.map(|range| Region::flat(&shape, range).unwrap());
    assert_eq!(check_tiling(&shape, &pieces), Ok(()));
    let end = Region::of_box(&[shape[0] - 1, 199_990], &[1, 10]).unwrap();
    let run = Run { source: elements - 10 - (2 * third + 5), target: 0, length: 10 };
    assert_eq!(pieces[2].runs(&end), [run]);
    assert!(pieces[0].runs(&end).is_empty());
}
