//! Reading and making flex tensors as plain `f32` slices.

use std::ops::Deref;

use burn::tensor::{DType, Shape, bf16, f16};
use burn_flex::{FlexTensor, Layout};
use bytemuck::Pod;

/// The values of a float tensor as a contiguous row-major `f32` slice.
///
/// An f32 tensor that is contiguous already is borrowed; everything else is copied once.
pub(crate) struct F32View {
    tensor: FlexTensor,
    converted: Option<Vec<f32>>,
}

impl F32View {
    pub(crate) fn new(tensor: &FlexTensor) -> Self {
        let tensor = tensor.to_contiguous();
        let converted = match tensor.dtype() {
            DType::F32 => None,
            DType::BF16 => Some(tensor.storage::<bf16>().iter().map(|x| x.to_f32()).collect()),
            DType::F16 => Some(tensor.storage::<f16>().iter().map(|x| x.to_f32()).collect()),
            DType::F64 => Some(tensor.storage::<f64>().iter().map(|x| *x as f32).collect()),
            other => unreachable!("a float tensor has the dtype {other:?}"),
        };
        Self { tensor, converted }
    }
}

impl Deref for F32View {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.converted {
            Some(values) => values,
            None => self.tensor.storage(),
        }
    }
}

/// A float tensor of the given dtype from row-major `f32` values.
pub(crate) fn float_tensor(values: Vec<f32>, shape: Shape, dtype: DType) -> FlexTensor {
    match dtype {
        DType::F32 => tensor_of(values, shape, dtype),
        DType::BF16 => {
            tensor_of(values.into_iter().map(bf16::from_f32).collect::<Vec<_>>(), shape, dtype)
        }
        DType::F16 => {
            tensor_of(values.into_iter().map(f16::from_f32).collect::<Vec<_>>(), shape, dtype)
        }
        DType::F64 => {
            tensor_of(values.into_iter().map(f64::from).collect::<Vec<_>>(), shape, dtype)
        }
        other => unreachable!("no float tensor has the dtype {other:?}"),
    }
}

fn tensor_of<E: Pod + Send + Sync>(values: Vec<E>, shape: Shape, dtype: DType) -> FlexTensor {
    FlexTensor::new(burn::tensor::Bytes::from_elems(values), Layout::contiguous(shape), dtype)
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
