//! Reading and making flex tensors as plain slices.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

use burn::tensor::{Bytes, DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};
use bytemuck::Pod;
use rayon::prelude::*;

use super::number::{Number, convert, with_number};

/// Elements that a task converts.
const CHUNK: usize = 32 * 1024;

/// The values of a tensor of the dtype of `E`, row-major. A tensor that is contiguous, or a contiguous
/// part of another, is borrowed; any other is copied once.
pub(crate) struct Values<E> {
    tensor: FlexTensor,
    range: Range<usize>,
    element: PhantomData<E>,
}

impl<E: Element + Pod> Values<E> {
    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        let (tensor, range) = match tensor.layout().contiguous_offsets() {
            Some((start, end)) => (tensor.clone(), start..end),
            None => (tensor.to_contiguous(), 0..tensor.layout().num_elements()),
        };
        Self { tensor, range, element: PhantomData }
    }
}

impl<E: Element + Pod> Deref for Values<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.tensor.storage()[self.range.clone()]
    }
}

/// The values of a float tensor as a contiguous row-major `f32` slice: those of an f32 tensor as
/// [`Values`] has them, others converted once.
pub(crate) enum F32View {
    Borrowed(Values<f32>),
    Converted(Vec<f32>),
}

impl F32View {
    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        if tensor.dtype() == DType::F32 {
            return Self::Borrowed(Values::new(tensor));
        }
        with_number!(tensor.dtype(), E => {
            let values = Values::<E>::new(tensor);
            let mut converted = vec![0.0; values.len()];
            convert_in_parallel::<E, f32>(&values, &mut converted);
            Self::Converted(converted)
        })
    }
}

impl Deref for F32View {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Borrowed(values) => values,
            Self::Converted(values) => values,
        }
    }
}

/// The tensor as one whose values can be changed in place: itself if no one else holds it, else a copy.
pub(crate) fn owned<E: Number>(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_unique() && tensor.is_contiguous() {
        return tensor;
    }
    let values = Values::<E>::new(&tensor).to_vec();
    let layout = Layout::contiguous(tensor.layout().shape().clone());
    FlexTensor::new(Bytes::from_elems(values), layout, E::dtype())
}

/// The values of an [`owned`] tensor.
pub(crate) fn values_mut<E: Number>(tensor: &mut FlexTensor) -> &mut [E] {
    let offsets = tensor.layout().contiguous_offsets();
    let (start, end) = offsets.expect("an owned tensor is contiguous");
    &mut tensor.storage_mut()[start..end]
}

/// A float tensor of the given dtype from row-major `f32` values.
pub(crate) fn float_tensor(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    if dtype == DType::F32 {
        return FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), dtype);
    }
    let mut tensor = zeros(shape, dtype);
    with_number!(dtype, E => convert_in_parallel::<f32, E>(&values, tensor.storage_mut()));
    tensor
}

/// A tensor of zeros whose pages are not touched. (`FlexTensor::zeros` copies what it allocates.)
pub(crate) fn zeros(shape: Shape, dtype: DType) -> FlexTensor {
    let n = shape.num_elements();
    let bytes = match dtype.size() {
        2 => Bytes::from_elems(vec![0_u16; n]),
        4 => Bytes::from_elems(vec![0_u32; n]),
        8 => Bytes::from_elems(vec![0_u64; n]),
        _ => unreachable!("no number tensor has the dtype {dtype:?}"),
    };
    FlexTensor::new(bytes, Layout::contiguous(shape), dtype)
}

/// An f32 tensor of values that `set` sets and gives back. What is set in one piece need not be cleared before, which
/// takes as long as reading it.
///
/// # Panics
/// If `set` gives something else back.
pub(crate) fn f32_tensor_set_by(
    shape: Shape,
    set: impl for<'a> FnOnce(&'a mut [MaybeUninit<f32>]) -> &'a mut [f32],
) -> FlexTensor {
    let n = shape.num_elements();
    let mut values: Vec<f32> = Vec::with_capacity(n);
    let (start, spare) = (values.as_ptr(), &mut values.spare_capacity_mut()[..n]);
    let filled = set(spare);
    assert_eq!((filled.as_ptr(), filled.len()), (start, n), "all values are set");
    // SAFETY: there are so many values, and they are set.
    unsafe { values.set_len(n) };
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// [`convert`] by chunks in parallel.
pub(crate) fn convert_in_parallel<A: Number, B: Number>(from: &[A], to: &mut [B]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
}

/// The values of an integer tensor, row-major.
pub(crate) fn int_values(tensor: &FlexTensor) -> Vec<i64> {
    let tensor = tensor.to_contiguous();
    match tensor.dtype() {
        DType::I64 => tensor.storage::<i64>().to_vec(),
        DType::I32 => tensor.storage::<i32>().iter().map(|x| i64::from(*x)).collect(),
        DType::U64 => tensor.storage::<u64>().iter().map(|x| *x as i64).collect(),
        DType::U32 => tensor.storage::<u32>().iter().map(|x| i64::from(*x)).collect(),
        other => unreachable!("an index tensor has the dtype {other:?}"),
    }
}
