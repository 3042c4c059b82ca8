//! A named tensor in host memory, in the layout of a safetensors file.

use std::fmt;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::region::RegionError;
use super::tensor_file::TensorView;

/// Element type of a [`HostTensor`], named as in the
/// [safetensors format](https://github.com/huggingface/safetensors#format).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HostDtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl HostDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Name in a safetensors header, for example `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// The type of a safetensors header, or `None` for those that have no use here (float8, packed
    /// 4 and 6 bit types, complex).
    pub(super) fn from_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I64 => Self::I64,
            Dtype::I32 => Self::I32,
            Dtype::I16 => Self::I16,
            Dtype::I8 => Self::I8,
            Dtype::U64 => Self::U64,
            Dtype::U32 => Self::U32,
            Dtype::U16 => Self::U16,
            Dtype::U8 => Self::U8,
            Dtype::BOOL => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of a tensor of this type and `shape`, or `None` where that number overflows.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(self.size(), |bytes, &dim| bytes.checked_mul(dim))
    }
}

impl fmt::Display for HostDtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What is wrong with a tensor by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The data does not fill the shape.
    #[error(
        "tensor `{name}`: {found} bytes of data, but shape {shape:?} of {dtype} needs {expected}: \
         pass the data that belongs to this shape"
    )]
    Size {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: HostDtype,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The number of bytes does not fit the address space.
    #[error("tensor `{name}`: shape {shape:?} of {dtype} overflows: check the shape")]
    Overflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: HostDtype,
    },
    /// The part of the tensor is none.
    #[error("tensor `{name}`: {source}: this is a fault of the program")]
    Region {
        /// The tensor.
        name: String,
        /// What is wrong.
        source: RegionError,
    },
    /// A floating-point tensor was expected.
    #[error(
        "tensor `{name}`: {dtype} is not a floating-point type: expected F32, F16, BF16 or F64"
    )]
    NotFloat {
        /// The tensor.
        name: String,
        /// Its element type.
        dtype: HostDtype,
    },
    /// A matrix was expected.
    #[error("tensor `{name}`: shape {shape:?} is not a matrix: expected two dims")]
    NotMatrix {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}

/// A tensor in host memory: contiguous, row-major, little-endian. The data always fills the shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTensor {
    name: String,
    dtype: HostDtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl HostTensor {
    /// A tensor of little-endian bytes.
    ///
    /// # Errors
    /// [`TensorError::Size`] where `data` does not fill `shape`; [`TensorError::Overflow`].
    pub fn from_bytes(
        name: impl Into<String>,
        dtype: HostDtype,
        shape: &[usize],
        data: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let (name, shape) = (name.into(), shape.to_vec());
        let Some(expected) = dtype.bytes_of(&shape) else {
            return Err(TensorError::Overflow { name, shape, dtype });
        };
        if expected != data.len() {
            let found = data.len();
            return Err(TensorError::Size { name, shape, dtype, expected, found });
        }
        Ok(Self { name, dtype, shape, data })
    }

    /// A tensor of type [`HostDtype::F32`].
    ///
    /// # Errors
    /// [`TensorError::Size`] where `values` does not fill `shape`; [`TensorError::Overflow`].
    pub fn from_f32(
        name: impl Into<String>,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Self, TensorError> {
        let mut data = vec![0; values.len() * 4];
        for (bytes, value) in data.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        Self::from_bytes(name, HostDtype::F32, shape, data)
    }

    /// A copy of a view, whose size was checked when its file was opened.
    pub(super) fn from_view(view: &TensorView<'_>) -> Self {
        let TensorView { name, dtype, shape, data } = *view;
        Self { name: name.into(), dtype, shape: shape.to_vec(), data: data.to_vec() }
    }

    /// A tensor of bytes that are known to fill the shape.
    pub(super) fn new(name: &str, dtype: HostDtype, shape: &[usize], data: Vec<u8>) -> Self {
        debug_assert_eq!(dtype.bytes_of(shape), Some(data.len()));
        Self { name: name.into(), dtype, shape: shape.to_vec(), data }
    }

    /// The values as f32; F16 and BF16 convert exactly, F64 is rounded.
    ///
    /// # Errors
    /// [`TensorError::NotFloat`] for any other type.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        let two = || self.data.as_chunks::<2>().0.iter();
        match self.dtype {
            HostDtype::F32 => {
                Ok(self.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            HostDtype::F64 => Ok(self
                .data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32)
                .collect()),
            HostDtype::F16 => Ok(two().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            HostDtype::BF16 => Ok(two().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            dtype => Err(TensorError::NotFloat { name: self.name.clone(), dtype }),
        }
    }

    /// Name of the tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> HostDtype {
        self.dtype
    }

    /// Length of each dim.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian bytes, row-major.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The matrix `[rows, columns]` as `[columns, rows]`, of any element type.
    ///
    /// # Errors
    /// [`TensorError::NotMatrix`] where there are not two dims.
    pub fn transposed(&self) -> Result<Self, TensorError> {
        let &[rows, columns] = self.shape.as_slice() else {
            let (name, shape) = (self.name.clone(), self.shape.clone());
            return Err(TensorError::NotMatrix { name, shape });
        };
        let data = match self.dtype.size() {
            8 => transpose::<8>(&self.data, rows, columns),
            4 => transpose::<4>(&self.data, rows, columns),
            2 => transpose::<2>(&self.data, rows, columns),
            _ => transpose::<1>(&self.data, rows, columns),
        };
        Ok(Self { name: self.name.clone(), dtype: self.dtype, shape: vec![columns, rows], data })
    }
}

/// Side of the square blocks that are transposed at once: both sides of a block stay in L1.
const BLOCK: usize = 32;

fn transpose<const SIZE: usize>(source: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let mut result = vec![0; source.len()];
    if source.is_empty() {
        return result;
    }
    let (source, _) = source.as_chunks::<SIZE>();
    let (target, _) = result.as_chunks_mut::<SIZE>();
    target.par_chunks_mut(BLOCK * rows).enumerate().for_each(|(strip, target)| {
        for first_row in (0..rows).step_by(BLOCK) {
            let last_row = (first_row + BLOCK).min(rows);
            for (offset, target) in target.chunks_exact_mut(rows).enumerate() {
                let column = strip * BLOCK + offset;
                for row in first_row..last_row {
                    target[row] = source[row * columns + column];
                }
            }
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_round_trips_bitwise() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::MAX];
        let tensor = HostTensor::from_f32("x", &[2, 3], &values).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tensor.to_f32().unwrap()), bits(&values));
    }

    #[test]
    fn narrow_and_wide_floats_convert() {
        let half: Vec<u8> =
            [1.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let brain: Vec<u8> =
            [1.5f32, -3e38].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let double: Vec<u8> = [1.5f64, 0.1].iter().flat_map(|v| v.to_le_bytes()).collect();
        let read = |dtype, data| HostTensor::from_bytes("x", dtype, &[2], data).unwrap().to_f32();
        assert_eq!(read(HostDtype::F16, half).unwrap(), [1.5, -2.0]);
        assert_eq!(read(HostDtype::BF16, brain).unwrap(), [1.5, bf16::from_f32(-3e38).to_f32()]);
        assert_eq!(read(HostDtype::F64, double).unwrap(), [1.5, 0.1]);
        let error = read(HostDtype::U16, vec![0; 4]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `x`: U16 is not a floating-point type: expected F32, F16, BF16 or F64"
        );
    }

    #[test]
    fn shapes_are_checked() {
        let error = HostTensor::from_f32("w", &[2, 3], &[0.0; 5]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor `w`: 20 bytes of data, but shape [2, 3] of F32 needs 24: \
             pass the data that belongs to this shape"
        );
        let error =
            HostTensor::from_bytes("w", HostDtype::F64, &[usize::MAX, 2], vec![]).unwrap_err();
        assert!(matches!(error, TensorError::Overflow { .. }), "{error}");
        assert!(HostTensor::from_f32("scalar", &[], &[1.0]).is_ok());
        assert!(HostTensor::from_f32("empty", &[3, 0], &[]).is_ok());
    }

    #[test]
    fn transposes_odd_sizes_of_every_width() {
        for dtype in [HostDtype::U8, HostDtype::BF16, HostDtype::F32, HostDtype::F64] {
            for (rows, columns) in [(1, 1), (1, 70), (33, 65), (64, 32), (0, 5), (5, 0)] {
                let size = dtype.size();
                let data: Vec<u8> =
                    (0..rows * columns * size).map(|i| (i * 31 % 251) as u8).collect();
                let matrix =
                    HostTensor::from_bytes("m", dtype, &[rows, columns], data.clone()).unwrap();
                let turned = matrix.transposed().unwrap();
                assert_eq!(turned.shape(), [columns, rows]);
                for row in 0..rows {
                    for column in 0..columns {
                        let at = |i: usize| i * size..(i + 1) * size;
                        assert_eq!(
                            turned.data()[at(column * rows + row)],
                            data[at(row * columns + column)]
                        );
                    }
                }
                assert_eq!(turned.transposed().unwrap(), matrix);
            }
        }
        let vector = HostTensor::from_f32("v", &[2], &[0.0; 2]).unwrap();
        assert!(matches!(vector.transposed(), Err(TensorError::NotMatrix { .. })));
    }
}
