//! The parameters at rest: this rank's pieces of the f32 master weights and their gradients, flat, by name.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};

use super::layout::{Layout, LocalParameter};
use crate::checkpoint::{HostTensor, Region, TensorError};
use crate::model::{Model, ParameterSpec, initial_values};

/// This rank's piece of a parameter.
pub struct Parameter {
    /// The parameter, and what of it this rank of `tp` has.
    pub local: LocalParameter,
    /// Which elements of that, row-major, are here; at least one.
    pub range: Range<usize>,
    value: Option<Tensor<1>>,
}

impl Parameter {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.local.spec.name
    }

    /// What is here, as a part of the whole parameter.
    ///
    /// # Errors
    /// If the parameter's size overflows: a fault of the program.
    pub fn region(&self) -> Result<Region, TensorError> {
        self.local.region(self.range.clone())
    }

    /// The value, flat, in f32.
    ///
    /// # Panics
    /// Inside [`Parameter::update`]: a fault of the caller.
    pub fn value(&self) -> Tensor<1> {
        self.value.clone().expect("the parameter's value is in its place")
    }

    /// Replaces the value. It is given away, so that the update can happen in place.
    pub fn update(&mut self, f: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        self.value = self.value.take().map(f);
    }
}

/// Gradients by parameter name: flat, in f32; the whole ones while they are computed, this rank's pieces
/// once they are reduced.
#[derive(Default)]
pub struct GradientStore {
    gradients: HashMap<String, Tensor<1>>,
    /// Parameters that have a gradient on some rank, if not here.
    elsewhere: HashSet<String>,
}

impl GradientStore {
    /// Adds to a parameter's gradient, in f32.
    pub fn accumulate(&mut self, name: &str, gradient: Tensor<1>) {
        let gradient = gradient.cast(DType::F32);
        let sum = match self.gradients.remove(name) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.gradients.insert(name.into(), sum);
    }

    /// Notes that a parameter has a gradient, but no element of it is here.
    pub fn note(&mut self, name: &str) {
        self.elsewhere.insert(name.into());
    }

    /// Whether a parameter has a gradient, here or on another rank.
    pub fn has(&self, name: &str) -> bool {
        self.gradients.contains_key(name) || self.elsewhere.contains(name)
    }

    /// A parameter's gradient.
    pub fn get(&self, name: &str) -> Option<Tensor<1>> {
        self.gradients.get(name).cloned()
    }

    /// Takes a parameter's gradient out.
    pub fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.gradients.remove(name)
    }

    /// Puts a parameter's gradient in.
    pub fn put(&mut self, name: &str, gradient: Tensor<1>) {
        self.gradients.insert(name.into(), gradient);
    }
}

/// This rank's pieces of all parameters of a model, in the order of the units. A parameter of which no
/// element is here has no entry.
pub struct ParameterStore {
    layout: Layout,
    device: Device,
    parameters: Vec<Parameter>,
    index: HashMap<String, usize>,
}

impl ParameterStore {
    /// The initial parameters of a model, a function of the seed and their names.
    ///
    /// # Errors
    /// If a parameter's size overflows.
    pub fn initial(
        model: &Model,
        seed: u64,
        layout: Layout,
        device: &Device,
    ) -> Result<Self, TensorError> {
        Self::read(layout, device, |spec, region| {
            let initial = (model.initial)(spec);
            let whole = Region::whole(&spec.shape);
            let whole =
                whole.map_err(|source| TensorError::Region { name: spec.name.clone(), source })?;
            // A range of a matrix is one run, some of its columns one for each row.
            let mut values = Vec::new();
            for run in region.runs(&whole) {
                let part = initial_values(initial, seed, &spec.name, run.target, run.length);
                if values.is_empty() { values = part } else { values.extend(part) }
            }
            Ok(values)
        })
    }

    /// The parameters of a model from the values that `read` gives of a part of one.
    ///
    /// # Errors
    /// What `read` returns, and if a parameter's size overflows.
    pub fn read<E: From<TensorError>>(
        layout: Layout,
        device: &Device,
        mut read: impl FnMut(&ParameterSpec, &Region) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let (mut parameters, mut index) = (Vec::new(), HashMap::new());
        for local in layout.parameters() {
            let range = layout.own_piece(&local.spec.name);
            if range.is_empty() {
                continue;
            }
            let values = read(&local.spec, &local.region(range.clone())?)?;
            index.insert(local.spec.name.clone(), parameters.len());
            let value = Some(on_device(values, device));
            parameters.push(Parameter { local: local.clone(), range, value });
        }
        Ok(Self { layout, device: device.clone(), parameters, index })
    }

    /// Which rank holds what.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The device that the parameters at rest are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All pieces that are here, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter()
    }

    /// All pieces that are here, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.parameters.iter_mut()
    }

    /// This rank's piece of a parameter.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).map(|i| &self.parameters[*i])
    }

    /// This rank's piece of a parameter.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Parameter> {
        self.index.get(name).map(|i| &mut self.parameters[*i])
    }

    /// Every value as a host tensor, where this rank holds everything.
    ///
    /// # Errors
    /// If a tensor's size and shape disagree: a rank that holds only pieces.
    pub fn to_host(&self) -> Result<Vec<HostTensor>, TensorError> {
        self.parameters
            .iter()
            .map(|p| HostTensor::from_f32(p.name(), &p.local.spec.shape, &on_host(p.value())))
            .collect()
    }
}

/// A flat f32 tensor of host values.
pub(crate) fn on_device(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = values.len();
    Tensor::from_data(burn::tensor::TensorData::new(values, [length]), device)
}

/// The values of a flat f32 tensor on the host.
pub(crate) fn on_host(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("master weights and optimizer state are f32")
}
