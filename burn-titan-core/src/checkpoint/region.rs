//! The part of a tensor that a rank holds.

use std::convert::Infallible;
use std::ops::Range;

use super::tensor::HostTensor;

/// What is wrong with a [`Region`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// The number of elements does not fit the address space.
    #[error("a box of {length:?} elements overflows: check the shape")]
    Overflow {
        /// Length of each dim.
        length: Vec<usize>,
    },
    /// Start and length are of different numbers of dims.
    #[error("a box that starts at {start:?} cannot be {length:?} long: give both for each dim")]
    Dims {
        /// Start in each dim.
        start: Vec<usize>,
        /// Length of each dim.
        length: Vec<usize>,
    },
    /// The range does not lie in the box.
    #[error("elements {} to {} are not in a box of {length:?}", range.start, range.end)]
    Range {
        /// The range.
        range: Range<usize>,
        /// Length of each dim of the box.
        length: Vec<usize>,
    },
    /// The box does not lie in the tensor.
    #[error("the box from {start:?} of {length:?} is not in a tensor of {shape:?}")]
    Outside {
        /// Start in each dim.
        start: Vec<usize>,
        /// Length of each dim.
        length: Vec<usize>,
        /// Shape of the tensor.
        shape: Vec<usize>,
    },
}

/// Part of a tensor: a box of it (a start and a length in each dim), and of that box, row-major, a
/// contiguous range of elements. A shard of tensor parallelism is a box; one of FSDP is a range of the
/// whole tensor or of such a box, which may begin in the middle of a row, be empty, or be all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    start: Vec<usize>,
    length: Vec<usize>,
    range: Range<usize>,
}

/// Elements that two regions share and that are contiguous in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where they begin in the source region, in elements.
    pub source: usize,
    /// Where they begin in the target region, in elements.
    pub target: usize,
    /// How many they are.
    pub length: usize,
}

impl Region {
    /// All of a tensor.
    ///
    /// # Errors
    /// [`RegionError::Overflow`].
    pub fn whole(shape: &[usize]) -> Result<Self, RegionError> {
        Self::of_box(&vec![0; shape.len()], shape)
    }

    /// All of a tensor that is there, so that its elements can be counted.
    pub(super) fn whole_of(tensor: &HostTensor) -> Self {
        let elements = tensor.data().len() / tensor.dtype().size();
        let length = tensor.shape().to_vec();
        Self { start: vec![0; length.len()], length, range: 0..elements }
    }

    /// The elements `range` of a tensor, row-major.
    ///
    /// # Errors
    /// [`RegionError::Overflow`], [`RegionError::Range`].
    pub fn flat(shape: &[usize], range: Range<usize>) -> Result<Self, RegionError> {
        Self::new(&vec![0; shape.len()], shape, range)
    }

    /// All of a box.
    ///
    /// # Errors
    /// [`RegionError::Overflow`], [`RegionError::Dims`].
    pub fn of_box(start: &[usize], length: &[usize]) -> Result<Self, RegionError> {
        Self::new(start, length, 0..volume(length)?)
    }

    /// The elements `range` of a box, row-major.
    ///
    /// # Errors
    /// [`RegionError::Overflow`], [`RegionError::Dims`], [`RegionError::Range`].
    pub fn new(
        start: &[usize],
        length: &[usize],
        range: Range<usize>,
    ) -> Result<Self, RegionError> {
        let volume = volume(length)?;
        let (start, length) = (start.to_vec(), length.to_vec());
        if start.len() != length.len() {
            return Err(RegionError::Dims { start, length });
        }
        if range.start > range.end || range.end > volume {
            return Err(RegionError::Range { range, length });
        }
        Ok(Self { start, length, range })
    }

    /// Start of the box in each dim.
    pub fn start(&self) -> &[usize] {
        &self.start
    }

    /// Length of the box in each dim.
    pub fn length(&self) -> &[usize] {
        &self.length
    }

    /// The range of the box's elements, row-major.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.range.len()
    }

    /// Whether it is all of a tensor of `shape`.
    pub fn is_whole(&self, shape: &[usize]) -> bool {
        self.is_box_whole(shape) && self.is_whole_box()
    }

    /// Its shape as a tensor of its own: the box's, or flat where the box is not whole.
    pub fn shape(&self) -> Vec<usize> {
        if self.is_whole_box() { self.length.clone() } else { vec![self.elements()] }
    }

    /// Whether it lies in a tensor of `shape`.
    ///
    /// # Errors
    /// [`RegionError::Outside`] where it does not.
    pub fn check(&self, shape: &[usize]) -> Result<(), RegionError> {
        let fits = |((start, length), dim): ((&usize, &usize), &usize)| {
            start.checked_add(*length).is_some_and(|end| end <= *dim)
        };
        let dims = self.start.iter().zip(&self.length).zip(shape);
        if self.start.len() == shape.len() && dims.into_iter().all(fits) {
            return Ok(());
        }
        let (start, length) = (self.start.clone(), self.length.clone());
        Err(RegionError::Outside { start, length, shape: shape.to_vec() })
    }

    /// What this region and `target`, both of one tensor, share: from where in this one to where in the
    /// target. No element comes twice.
    pub fn runs(&self, target: &Self) -> Vec<Run> {
        let mut runs = Vec::new();
        let Ok(()) = self.try_for_each_run(target, |run| {
            runs.push(run);
            Ok::<(), Infallible>(())
        });
        runs
    }

    /// Its elements out of all `values` of a tensor of `shape`.
    ///
    /// # Errors
    /// [`RegionError::Overflow`], [`RegionError::Outside`].
    ///
    /// # Panics
    /// If there are fewer values than the shape says.
    pub fn of_values(&self, shape: &[usize], values: &[f32]) -> Result<Vec<f32>, RegionError> {
        self.check(shape)?;
        let mut own = Vec::with_capacity(self.elements());
        let Ok(()) = self.try_for_each_run(&Self::whole(shape)?, |run| {
            own.extend_from_slice(&values[run.target..][..run.length]);
            Ok::<(), Infallible>(())
        });
        Ok(own)
    }

    /// As [`runs`](Self::runs), without a list of them: a column of a matrix has one for each row.
    ///
    /// # Errors
    /// The first that `visit` returns.
    pub fn try_for_each_run<E>(
        &self,
        target: &Self,
        mut visit: impl FnMut(Run) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pending: Option<Run> = None;
        let targets = target.blocks();
        for own in self.blocks() {
            for other in &targets {
                let Some(shared) = own.intersection(other) else { continue };
                for run in shared.runs(self, target) {
                    match &mut pending {
                        Some(last) if last.continues_with(&run) => last.length += run.length,
                        _ => pending.replace(run).map_or(Ok(()), &mut visit)?,
                    }
                }
            }
        }
        pending.map_or(Ok(()), visit)
    }

    /// Whether the range is all of the box.
    pub(super) fn is_whole_box(&self) -> bool {
        self.range.start == 0 && volume(&self.length) == Ok(self.range.end)
    }

    /// Whether the box is all of a tensor of `shape`.
    pub(super) fn is_box_whole(&self, shape: &[usize]) -> bool {
        self.length == shape && self.start.iter().all(|start| *start == 0)
    }

    /// The elements as boxes of the tensor, in row-major order: a range of a box of n dims is at most
    /// 2n - 1 smaller boxes.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        if !self.range.is_empty() {
            self.cut(&mut vec![], self.range.clone(), &mut blocks);
        }
        blocks
    }

    /// Cuts the non-empty `range` of the sub-box at the indices `prefix` of the first dims.
    fn cut(&self, prefix: &mut Vec<usize>, range: Range<usize>, blocks: &mut Vec<Block>) {
        let dim = prefix.len();
        if dim + 1 >= self.length.len() {
            return blocks.push(self.block(prefix, range));
        }
        let inner: usize = self.length[dim + 1..].iter().product();
        let (first, last) = (range.start / inner, range.end / inner);
        let (head, tail) = (range.start % inner, range.end % inner);
        if first == last {
            return self.cut_row(prefix, first, head..tail, blocks);
        }
        if head > 0 {
            self.cut_row(prefix, first, head..inner, blocks);
        }
        let full = first + usize::from(head > 0)..last;
        if !full.is_empty() {
            blocks.push(self.block(prefix, full));
        }
        if tail > 0 {
            self.cut_row(prefix, last, 0..tail, blocks);
        }
    }

    fn cut_row(
        &self,
        prefix: &mut Vec<usize>,
        index: usize,
        part: Range<usize>,
        blocks: &mut Vec<Block>,
    ) {
        prefix.push(index);
        self.cut(prefix, part, blocks);
        prefix.pop();
    }

    /// The block at the indices `prefix` of the first dims, `rows` of the next, and all of the rest.
    fn block(&self, prefix: &[usize], rows: Range<usize>) -> Block {
        let dim = prefix.len();
        let mut block = Block { start: self.start.clone(), length: self.length.clone() };
        for (i, index) in prefix.iter().enumerate() {
            block.start[i] += index;
            block.length[i] = 1;
        }
        // A scalar has no dim to cut.
        if dim < self.length.len() {
            block.start[dim] += rows.start;
            block.length[dim] = rows.len();
        }
        block
    }

    /// Where the element at these indices of the tensor is in this region's data.
    fn offset(&self, indices: &[usize]) -> usize {
        let dims = indices.iter().zip(&self.start).zip(&self.length);
        let in_box = dims.fold(0, |offset, ((i, start), length)| offset * length + (i - start));
        in_box - self.range.start
    }
}

impl Run {
    fn continues_with(&self, next: &Self) -> bool {
        self.source + self.length == next.source && self.target + self.length == next.target
    }
}

/// A box of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: Vec<usize>,
    pub(super) length: Vec<usize>,
}

impl Block {
    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        if self.start.len() != other.start.len() {
            return None;
        }
        let mut shared = self.clone();
        for dim in 0..self.start.len() {
            let start = self.start[dim].max(other.start[dim]);
            let end = self.end(dim).min(other.end(dim));
            if start >= end {
                return None;
            }
            (shared.start[dim], shared.length[dim]) = (start, end - start);
        }
        Some(shared)
    }

    pub(super) fn end(&self, dim: usize) -> usize {
        self.start[dim] + self.length[dim]
    }

    /// The runs of this block, which is in both regions.
    fn runs<'a>(
        &'a self,
        source: &'a Region,
        target: &'a Region,
    ) -> impl Iterator<Item = Run> + 'a {
        // A run takes in a further dim where all inner ones are whole in both boxes.
        let is_whole = |dim: usize| {
            let length = self.length[dim];
            length == source.length[dim] && length == target.length[dim]
        };
        let mut outer = self.length.len().saturating_sub(1);
        while outer > 0 && is_whole(outer) {
            outer -= 1;
        }
        let length = self.length[outer..].iter().product();
        let count: usize = self.length[..outer].iter().product();
        (0..count).map(move |number| {
            let mut indices = self.start.clone();
            let mut rest = number;
            for dim in (0..outer).rev() {
                indices[dim] += rest % self.length[dim];
                rest /= self.length[dim];
            }
            Run { source: source.offset(&indices), target: target.offset(&indices), length }
        })
    }
}

fn volume(length: &[usize]) -> Result<usize, RegionError> {
    // Zeros first: a tensor without elements is one, however long its other dims are.
    if length.contains(&0) {
        return Ok(0);
    }
    let product = length.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    product.ok_or_else(|| RegionError::Overflow { length: length.to_vec() })
}
