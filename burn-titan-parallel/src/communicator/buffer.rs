//! Flat tensors of floats or integers, and their bytes.

use burn::tensor::{Bytes, DType, Device, Int, Tensor, TensorData};

use crate::host::{CommError, Element, Memory};

/// A flat tensor that is exchanged: f32, f16, bf16, i32 or u8.
#[derive(Debug, Clone)]
pub enum Buffer {
    /// f32, f16 or bf16.
    Float(Tensor<1>),
    /// i32 or u8.
    Int(Tensor<1, Int>),
}

impl From<Tensor<1>> for Buffer {
    fn from(tensor: Tensor<1>) -> Self {
        Self::Float(tensor)
    }
}

impl From<Tensor<1, Int>> for Buffer {
    fn from(tensor: Tensor<1, Int>) -> Self {
        Self::Int(tensor)
    }
}

impl Buffer {
    /// The tensor of floats.
    ///
    /// # Panics
    /// If it holds integers: an operation returns the kind that it was given.
    pub fn float(self) -> Tensor<1> {
        match self {
            Self::Float(tensor) => tensor,
            Self::Int(tensor) => panic!("integers where floats were exchanged: {tensor:?}"),
        }
    }

    /// The tensor of integers.
    ///
    /// # Panics
    /// If it holds floats: an operation returns the kind that it was given.
    pub fn int(self) -> Tensor<1, Int> {
        match self {
            Self::Int(tensor) => tensor,
            Self::Float(tensor) => panic!("floats where integers were exchanged: {tensor:?}"),
        }
    }

    /// Its elements.
    pub fn elements(&self) -> usize {
        match self {
            Self::Float(tensor) => tensor.dims()[0],
            Self::Int(tensor) => tensor.dims()[0],
        }
    }

    /// The device that holds it.
    #[cfg(feature = "nccl")]
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Float(tensor) => tensor.device(),
            Self::Int(tensor) => tensor.device(),
        }
    }

    /// The type of its elements.
    ///
    /// # Errors
    /// If the dtype is none that is exchanged.
    #[cfg(feature = "nccl")]
    pub(crate) fn element(&self) -> Result<Element, CommError> {
        self.kind().map(|kind| kind.element)
    }

    /// So many elements of the same kind, whatever they hold.
    #[cfg(feature = "nccl")]
    pub(crate) fn empty_like(&self, elements: usize) -> Self {
        match self {
            Self::Float(x) => Tensor::<1>::empty([elements], (&x.device(), x.dtype())).into(),
            Self::Int(x) => Tensor::<1, Int>::empty([elements], (&x.device(), x.dtype())).into(),
        }
    }

    /// What is needed to make a buffer of the same kind from bytes.
    ///
    /// # Errors
    /// If the dtype is none that is exchanged.
    pub(super) fn kind(&self) -> Result<Kind, CommError> {
        let (dtype, device) = match self {
            Self::Float(tensor) => (tensor.dtype(), tensor.device()),
            Self::Int(tensor) => (tensor.dtype(), tensor.device()),
        };
        let element = match dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::BF16,
            DType::I32 => Element::I32,
            DType::U8 => Element::U8,
            other => return Err(CommError::Dtype(format!("{other:?}"))),
        };
        Ok(Kind { element, dtype, device })
    }

    /// Its bytes on the host. Waits for the device.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Float(tensor) => tensor.into_data().into_bytes(),
            Self::Int(tensor) => tensor.into_data().into_bytes(),
        }
    }
}

/// The dtype and the device of a buffer.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) element: Element,
    dtype: DType,
    device: Device,
}

impl Kind {
    /// A buffer of this kind.
    pub(super) fn buffer(&self, bytes: Bytes) -> Buffer {
        let elements = bytes.len() / self.element.size();
        let data = TensorData::from_bytes(bytes, [elements], self.dtype);
        match self.element {
            Element::F32 | Element::F16 | Element::BF16 => {
                Tensor::<1>::from_data(data, (&self.device, self.dtype)).into()
            }
            Element::I32 | Element::U8 => {
                Tensor::<1, Int>::from_data(data, (&self.device, self.dtype)).into()
            }
        }
    }
}

/// Operations on host memory leave their results in memory that becomes a tensor without a copy.
impl Memory for Bytes {
    fn zeroed(bytes: usize, element: Element) -> Self {
        match element.size() {
            4 => Self::from_elems(vec![0_u32; bytes / 4]),
            2 => Self::from_elems(vec![0_u16; bytes / 2]),
            _ => Self::from_elems(vec![0_u8; bytes]),
        }
    }

    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}
