//! A unit: what is unsharded, run, recomputed and resharded at once.
//!
//! A model author writes a plain Burn `Module` with a `forward`, and implements [`UnitModule`] for it.
//! At rest a unit is a skeleton whose parameters were never allocated; [`Unit::with_parameters`] makes
//! the real thing out of flat tensors, by parameter name.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Shape, Tensor};

use super::activations::{Activations, Workload};
use super::context::{Context, Stream};

/// A plain Burn module that can be a unit of a model.
pub trait UnitModule: Module + Sync + 'static {
    /// Runs the unit on a micro-batch.
    fn forward(&self, input: Stream, context: &Context) -> Stream;

    /// The memory that it takes on a micro-batch; `None` if it does not know. Allocates nothing.
    fn activations(&self, _: &Workload) -> Option<Activations> {
        None
    }

    /// Where it meets other ranks, in the order of the forward, for the bytes that `burn-titan plan` counts; `None` if
    /// it does not know. Allocates nothing.
    fn sites(&self) -> Option<Vec<Site>> {
        None
    }
}

/// Where a module meets the ranks that share its work: the operations of [`Context`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// [`Context::embedding`] to hidden states of this width.
    Embedding {
        /// The width.
        dim: usize,
    },
    /// What [`Context::site`] does before the sub-module.
    Enter {
        /// Width of the hidden states.
        dim: usize,
    },
    /// What it does after it.
    Leave {
        /// Width of the hidden states.
        dim: usize,
    },
    /// [`Context::site_by_token`].
    ByToken {
        /// Width of the hidden states.
        dim: usize,
    },
    /// [`Context::attention`].
    Attention {
        /// Key heads of this rank.
        key_heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// [`Context::experts`].
    Experts {
        /// Width of the hidden states.
        dim: usize,
        /// Experts of the layer.
        experts: usize,
        /// Experts that each token meets.
        top_k: usize,
        /// Whether a loss balances the experts of each sequence.
        balance: bool,
    },
    /// [`Context::output`].
    Output {
        /// Width of the hidden states.
        dim: usize,
    },
}

/// Name and shape of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Full name, for example `layers.3.attention.wq.weight`.
    pub name: String,
    /// Dims of the full tensor.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// Elements of the full tensor.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A unit of a model, whatever its module's type.
pub trait Unit: Send + Sync {
    /// Name of the unit, for messages.
    fn name(&self) -> &str;

    /// Its parameters, in the order of the module's fields. Allocates nothing.
    fn parameters(&self) -> Vec<ParameterSpec>;

    /// The unit with the values that `value(name)` gives, flat and row-major; `tracked` if gradients
    /// of them will be asked for.
    fn with_parameters(
        &self,
        tracked: bool,
        value: &mut dyn FnMut(&str) -> Tensor<1>,
    ) -> Box<dyn Unit>;

    /// The skeleton with parameters of the shapes that `shape(name)` gives: what a rank has of them. Allocates nothing.
    fn reshaped(&self, shape: &dyn Fn(&str) -> Vec<usize>) -> Box<dyn Unit>;

    /// Runs the unit.
    fn forward(&self, input: Stream, context: &Context) -> Stream;

    /// The memory that it takes on a micro-batch, if it knows.
    fn activations(&self, workload: &Workload) -> Option<Activations>;

    /// Where it meets other ranks, if it knows.
    fn sites(&self) -> Option<Vec<Site>>;

    /// Takes the gradients of its parameters out of a backward, flat, by name; a parameter that took
    /// no part has none.
    fn take_gradients(&self, gradients: &mut Gradients, take: &mut dyn FnMut(&str, Tensor<1>));
}

/// A unit made of a module.
pub struct ModuleUnit<M> {
    name: String,
    prefix: String,
    module: M,
}

impl<M: UnitModule> ModuleUnit<M> {
    /// A unit called `name`; `prefix` goes before the names of the module's parameters (it may be
    /// empty).
    pub fn boxed(name: &str, prefix: &str, module: M) -> Box<dyn Unit> {
        Box::new(Self { name: name.into(), prefix: prefix.into(), module })
    }

    fn path(&self) -> Path {
        Path { parts: if self.prefix.is_empty() { vec![] } else { vec![self.prefix.clone()] } }
    }
}

impl<M: UnitModule> Unit for ModuleUnit<M> {
    fn name(&self) -> &str {
        &self.name
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        specs(&self.module, self.path())
    }

    fn with_parameters(
        &self,
        tracked: bool,
        value: &mut dyn FnMut(&str) -> Tensor<1>,
    ) -> Box<dyn Unit> {
        let module = self.module.clone().map(&mut Fill { path: self.path(), tracked, value });
        Box::new(Self { name: self.name.clone(), prefix: self.prefix.clone(), module })
    }

    fn reshaped(&self, shape: &dyn Fn(&str) -> Vec<usize>) -> Box<dyn Unit> {
        let module = self.module.clone().map(&mut Reshape { path: self.path(), shape });
        Box::new(Self { name: self.name.clone(), prefix: self.prefix.clone(), module })
    }

    fn forward(&self, input: Stream, context: &Context) -> Stream {
        self.module.forward(input, context)
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        self.module.activations(workload)
    }

    fn sites(&self) -> Option<Vec<Site>> {
        self.module.sites()
    }

    fn take_gradients(&self, gradients: &mut Gradients, take: &mut dyn FnMut(&str, Tensor<1>)) {
        self.module.visit(&mut Take { path: self.path(), gradients, take });
    }
}

/// A module's parameters. Allocates nothing.
pub fn parameter_specs(module: &impl Module) -> Vec<ParameterSpec> {
    specs(module, Path { parts: vec![] })
}

/// Elements of a module's parameters. Allocates nothing.
pub fn parameter_elements(module: &impl Module) -> usize {
    parameter_specs(module).iter().map(ParameterSpec::elements).sum()
}

fn specs(module: &impl Module, path: Path) -> Vec<ParameterSpec> {
    let mut visitor = Specs { path, specs: vec![] };
    module.visit(&mut visitor);
    visitor.specs
}

/// Where a walk through a module is.
struct Path {
    parts: Vec<String>,
}

impl Path {
    fn enter(&mut self, name: &str) {
        self.parts.push(name.into());
    }

    fn exit(&mut self) {
        self.parts.pop();
    }

    fn name(&self) -> String {
        self.parts.join(".")
    }
}

struct Specs {
    path: Path,
    specs: Vec<ParameterSpec>,
}

impl ModuleVisitor for Specs {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.lazy_shape().to_vec();
        self.specs.push(ParameterSpec { name: self.path.name(), shape });
    }
}

struct Fill<'a> {
    path: Path,
    tracked: bool,
    value: &'a mut dyn FnMut(&str) -> Tensor<1>,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let value: Tensor<D> = (self.value)(&self.path.name()).reshape(shape);
        let value = if self.tracked { value.autodiff().require_grad() } else { value };
        Param::initialized(param.id, value)
    }
}

struct Reshape<'a> {
    path: Path,
    shape: &'a dyn Fn(&str) -> Vec<usize>,
}

impl ModuleMapper for Reshape<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = Shape::from((self.shape)(&self.path.name()));
        let zeros = {
            let shape = shape.clone();
            move |device: &Device, tracked: bool| {
                Tensor::zeros(shape, device).set_require_grad(tracked)
            }
        };
        Param::uninitialized(param.id, zeros, param.lazy_device(), true, shape)
    }
}

struct Take<'a> {
    path: Path,
    gradients: &'a mut Gradients,
    take: &'a mut dyn FnMut(&str, Tensor<1>),
}

impl ModuleVisitor for Take<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.gradients) {
            let elements = gradient.shape().num_elements();
            (self.take)(&self.path.name(), gradient.reshape([elements]));
        }
    }
}
