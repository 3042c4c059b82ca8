//! One run of a program: what is alive between its actions.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor};
use burn_titan_kernels::inject_gradient;
use burn_titan_parallel::{Action, CommError, Keep};

use super::{GradientStore, Machine, ParameterStore, StepError, StepOutcome, scalar};
use crate::model::{Context, Stream, Unit};

/// A unit with its full parameters in the compute dtype.
struct Unsharded {
    /// For a forward whose graph is kept.
    tracked: Box<dyn Unit>,
    /// For a forward that no backward follows directly.
    plain: Box<dyn Unit>,
}

/// What a forward left for the backward.
enum Kept {
    Input(Stream),
    Graph { input: Option<Tensor<3>>, output: Stream },
}

pub(super) struct Pass<'a> {
    machine: Machine<'a>,
    contexts: &'a [Context],
    valid_tokens: usize,
    /// The first unit that has each parameter: the last of the backward to add to its gradient.
    owner: HashMap<String, usize>,
    unsharded: Vec<Option<Unsharded>>,
    kept: HashMap<(usize, usize), Kept>,
    /// Output of the last unit that ran, by micro-batch.
    flow: Vec<Option<Stream>>,
    /// Gradient of the input of the last unit that ran backward, by micro-batch.
    input_gradient: Vec<Option<Tensor<3>>>,
    losses: Vec<Option<Tensor<1>>>,
    gradients: GradientStore,
}

impl<'a> Pass<'a> {
    pub(super) fn new(machine: Machine<'a>, contexts: &'a [Context], valid_tokens: usize) -> Self {
        let mut owner = HashMap::new();
        for (i, unit) in machine.model.units.iter().enumerate() {
            for spec in unit.parameters() {
                owner.entry(spec.name).or_insert(i);
            }
        }
        Self {
            machine,
            contexts,
            valid_tokens,
            owner,
            unsharded: machine.model.units.iter().map(|_| None).collect(),
            kept: HashMap::new(),
            flow: contexts.iter().map(|c| Some(Stream::Tokens(c.tokens.clone()))).collect(),
            input_gradient: contexts.iter().map(|_| None).collect(),
            losses: contexts.iter().map(|_| None).collect(),
            gradients: GradientStore::default(),
        }
    }

    /// Runs an action that computes.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    ///
    /// # Panics
    /// If the program was not checked: something is not there. Also for an action that measures or
    /// updates, which is the caller's.
    pub(super) fn run(
        &mut self,
        action: &Action,
        parameters: &ParameterStore,
    ) -> Result<(), CommError> {
        match *action {
            Action::Unshard { unit } => self.unshard(unit, parameters)?,
            Action::Forward { unit, micro, keep } => self.forward(unit, micro, keep),
            Action::Backward { unit, micro } => self.backward(unit, micro),
            Action::Reshard { unit } => self.unsharded[unit] = None,
            Action::ReduceGradients { unit } => self.reduce_gradients(unit)?,
            Action::ClipGradientNorm | Action::OptimizerStep => {
                unreachable!("{action} is not computed by a pass")
            }
        }
        Ok(())
    }

    fn unshard(&mut self, unit: usize, parameters: &ParameterStore) -> Result<(), CommError> {
        let Machine { model, communicator, compute, .. } = self.machine;
        let mut full = HashMap::new();
        for spec in model.units[unit].parameters() {
            let shard = parameters.get(&spec.name).expect("a unit's parameter is stored").value();
            let whole =
                communicator.all_gather_floats(shard.cast(compute), &[spec.elements()]).wait()?;
            full.insert(spec.name, whole);
        }
        let mut value = |name: &str| full[name].clone();
        let plain = model.units[unit].with_parameters(false, &mut value);
        let tracked = model.units[unit].with_parameters(true, &mut value);
        self.unsharded[unit] = Some(Unsharded { tracked, plain });
        Ok(())
    }

    fn forward(&mut self, unit: usize, micro: usize, keep: Keep) {
        let (input, first) = match self.kept.remove(&(unit, micro)) {
            Some(Kept::Input(input)) => (input, false),
            Some(Kept::Graph { .. }) => unreachable!("a checked program runs a unit once"),
            None => (self.flow[micro].take().expect("the unit before has run"), true),
        };
        let modules = self.unsharded[unit].as_ref().expect("the unit is unsharded");
        let context = &self.contexts[micro];
        let output = if keep == Keep::Graph {
            let (input, leaf) = tracked_input(input);
            let output = modules.tracked.forward(input, context);
            let plain = detached(&output);
            self.kept.insert((unit, micro), Kept::Graph { input: leaf, output });
            plain
        } else {
            if keep == Keep::Input {
                self.kept.insert((unit, micro), Kept::Input(input.clone()));
            }
            modules.plain.forward(input, context)
        };
        if let Stream::Loss(loss) = &output {
            self.losses[micro] = Some(loss.clone());
        }
        if first {
            self.flow[micro] = Some(output);
        }
    }

    fn backward(&mut self, unit: usize, micro: usize) {
        let Some(Kept::Graph { input, output }) = self.kept.remove(&(unit, micro)) else {
            unreachable!("a checked program keeps the graph");
        };
        let mut gradients = match output {
            Stream::Loss(loss) => {
                let share = 1.0 / self.valid_tokens.max(1) as f64;
                let seed = Tensor::<1>::full([1], share, self.machine.device).cast(DType::F32);
                inject_gradient(loss, seed).backward()
            }
            Stream::Hidden(hidden) => {
                let gradient = self.input_gradient[micro].take().expect("the unit after has run");
                inject_gradient(hidden, gradient).backward()
            }
            other => unreachable!("no backward starts from {other:?}"),
        };
        self.input_gradient[micro] = input.and_then(|leaf| leaf.grad_remove(&mut gradients));
        let sums = &mut self.gradients;
        let modules = self.unsharded[unit].as_ref().expect("the unit is unsharded");
        modules
            .tracked
            .take_gradients(&mut gradients, &mut |name, gradient| sums.accumulate(name, gradient));
    }

    fn reduce_gradients(&mut self, unit: usize) -> Result<(), CommError> {
        let Machine { model, communicator, .. } = self.machine;
        for spec in model.units[unit].parameters() {
            // A tied parameter's gradient is whole, and reduced, only at the unit that owns it.
            if self.owner[&spec.name] != unit {
                continue;
            }
            if let Some(gradient) = self.gradients.take(&spec.name) {
                let shard = communicator.reduce_scatter_sum(gradient, &[spec.elements()]).wait()?;
                self.gradients.put(&spec.name, shard);
            }
        }
        Ok(())
    }

    /// The step's loss and the global norm of its gradients.
    pub(super) fn measure(&self, parameters: &ParameterStore) -> Result<StepOutcome, StepError> {
        let loss_of = |loss: &Option<Tensor<1>>| loss.clone().map_or(0.0, scalar);
        let losses: Vec<f64> = self.losses.iter().map(loss_of).collect();
        if let Some(micro) = losses.iter().position(|loss| !loss.is_finite()) {
            let cause = self.machine.broken_loss(parameters, micro, &self.contexts[micro]);
            return Err(cause.into());
        }
        let grad_norm = self.machine.gradient_norm(parameters, &self.gradients)?;
        if !grad_norm.is_finite() {
            return Err(self.machine.broken_gradient(&self.gradients).into());
        }
        let loss = losses.iter().sum::<f64>() / self.valid_tokens.max(1) as f64;
        Ok(StepOutcome { loss, grad_norm })
    }

    /// The gradients so far.
    pub(super) fn gradients(&mut self) -> &mut GradientStore {
        &mut self.gradients
    }

    /// The output of the last unit, of the only micro-batch.
    pub(super) fn into_output(mut self) -> Stream {
        self.flow[0].take().expect("the program has run")
    }
}

/// The stream as a leaf of a new graph, and the leaf whose gradient is the input's.
fn tracked_input(input: Stream) -> (Stream, Option<Tensor<3>>) {
    match input {
        Stream::Hidden(hidden) => {
            let leaf = hidden.autodiff().require_grad();
            (Stream::Hidden(leaf.clone()), Some(leaf))
        }
        other => (other, None),
    }
}

/// The stream without its graph.
fn detached(stream: &Stream) -> Stream {
    match stream.clone() {
        Stream::Tokens(tokens) => Stream::Tokens(tokens),
        Stream::Hidden(hidden) => Stream::Hidden(hidden.inner()),
        Stream::Loss(loss) => Stream::Loss(loss.inner()),
        Stream::Logits(logits) => Stream::Logits(logits.inner()),
    }
}
