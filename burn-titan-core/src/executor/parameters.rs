//! The parameters at rest: flat f32 master weights and their gradients, by name.

use std::collections::HashMap;

use burn::tensor::{DType, Device, Tensor};

use crate::checkpoint::{HostTensor, TensorError};
use crate::model::{Model, ParameterSpec, initial_values};

/// One parameter at rest.
pub struct Parameter {
    /// Name and shape.
    pub spec: ParameterSpec,
    value: Option<Tensor<1>>,
}

impl Parameter {
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

/// Gradients by parameter name: flat, in f32.
#[derive(Default)]
pub struct GradientStore {
    gradients: HashMap<String, Tensor<1>>,
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

/// All parameters of a model, each once, in the order of the units.
pub struct ParameterStore {
    parameters: Vec<Parameter>,
    index: HashMap<String, usize>,
}

impl ParameterStore {
    /// The initial parameters of a model, a function of the seed and their names.
    pub fn initial(model: &Model, seed: u64, device: &Device) -> Self {
        Self::from_values(model, |spec| {
            let values =
                initial_values((model.initial)(spec), seed, &spec.name, 0, spec.elements());
            Ok::<_, std::convert::Infallible>(on_device(values, device))
        })
        .unwrap_or_else(|never| match never {})
    }

    /// The parameters of a model from host tensors that `read(name)` gives.
    ///
    /// # Errors
    /// What `read` returns.
    pub fn read<E: From<TensorError>>(
        model: &Model,
        device: &Device,
        mut read: impl FnMut(&ParameterSpec) -> Result<HostTensor, E>,
    ) -> Result<Self, E> {
        Self::from_values(model, |spec| Ok(on_device(read(spec)?.to_f32()?, device)))
    }

    fn from_values<E>(
        model: &Model,
        mut value: impl FnMut(&ParameterSpec) -> Result<Tensor<1>, E>,
    ) -> Result<Self, E> {
        let mut parameters = Vec::new();
        let mut index = HashMap::new();
        for spec in model.parameters() {
            index.insert(spec.name.clone(), parameters.len());
            parameters.push(Parameter { value: Some(value(&spec)?), spec });
        }
        Ok(Self { parameters, index })
    }

    /// All parameters, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter()
    }

    /// All parameters, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.parameters.iter_mut()
    }

    /// A parameter by name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).map(|i| &self.parameters[*i])
    }

    /// Every value as a host tensor.
    ///
    /// # Errors
    /// If a tensor's size and shape disagree: a fault of the program.
    pub fn to_host(&self) -> Result<Vec<HostTensor>, TensorError> {
        self.parameters
            .iter()
            .map(|p| HostTensor::from_f32(&p.spec.name, &p.spec.shape, &on_host(p.value())))
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
