//! One run of a program: what is alive between its actions.

use std::collections::HashMap;
use std::rc::Rc;

use burn::tensor::{DType, Gradients, Tensor};
use burn_titan_kernels::{WeightGradients, inject_gradient, put_off_weights};
use burn_titan_parallel::{Action, CommError, Keep, Work};

use super::exchange::{Gathering, Reducing};
use super::non_finite::MicroBatch;
use super::{GradientStore, Machine, ParameterStore, StepError, StepOutcome, scalar};
use crate::model::{Context, Stream, Unit};

/// A unit with its full parameters in the compute dtype.
struct Unsharded {
    /// For a forward whose graph is kept.
    tracked: Rc<dyn Unit>,
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
    gathering: Vec<Option<Gathering>>,
    unsharded: Vec<Option<Unsharded>>,
    kept: HashMap<(usize, usize), Kept>,
    /// Outputs that the unit after has not used yet, by unit and micro-batch.
    flow: HashMap<(usize, usize), Stream>,
    /// Gradients of units' outputs that the unit has not used yet, by unit and micro-batch.
    output_gradient: HashMap<(usize, usize), Tensor<3>>,
    /// Gradients of weights that were put off, by unit and micro-batch, with the unit that has the weights.
    put_off: HashMap<(usize, usize), (WeightGradients, Rc<dyn Unit>)>,
    /// Messages to other stages on their way.
    sending: Vec<Work<()>>,
    losses: Vec<Option<Tensor<1>>>,
    /// Gradients of this rank's micro-batches that are not reduced.
    unreduced: GradientStore,
    reducing: Vec<Option<Reducing>>,
    /// This rank's pieces of the gradients, summed over all ranks.
    gradients: GradientStore,
}

impl<'a> Pass<'a> {
    pub(super) fn new(machine: Machine<'a>, contexts: &'a [Context], valid_tokens: usize) -> Self {
        let units = machine.units.len();
        Self {
            machine,
            contexts,
            valid_tokens,
            gathering: (0..units).map(|_| None).collect(),
            unsharded: (0..units).map(|_| None).collect(),
            kept: HashMap::new(),
            flow: HashMap::new(),
            output_gradient: HashMap::new(),
            put_off: HashMap::new(),
            sending: Vec::new(),
            losses: contexts.iter().map(|_| None).collect(),
            unreduced: GradientStore::default(),
            reducing: (0..units).map(|_| None).collect(),
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
            Action::Gather { unit } => {
                self.gathering[unit] = Some(self.machine.gather(unit, parameters));
            }
            Action::Unshard { unit } => self.unshard(unit, parameters)?,
            Action::Forward { unit, micro, keep } => {
                self.forward(unit, micro, keep);
                self.machine.groups.check()?;
            }
            Action::Backward { unit, micro } => {
                self.backward(unit, micro, false);
                self.machine.groups.check()?;
            }
            Action::BackwardInput { unit, micro } => {
                self.backward(unit, micro, true);
                self.machine.groups.check()?;
            }
            Action::BackwardWeight { unit, micro } => self.backward_weight(unit, micro),
            Action::SendActivation { unit, micro } => {
                let output = self.flow.remove(&(unit, micro)).expect("the unit has run");
                let work = self.machine.send(output.hidden(), unit + 1);
                self.sending.push(work);
            }
            Action::ReceiveActivation { unit, micro } => {
                let output = self.machine.receive(&self.contexts[micro], unit)?;
                self.flow.insert((unit, micro), Stream::Hidden(output));
            }
            Action::SendGradient { unit, micro } => {
                let gradient = self.output_gradient.remove(&(unit, micro));
                let gradient = gradient.expect("the unit after has run");
                let work = self.machine.send(gradient, unit);
                self.sending.push(work);
            }
            Action::ReceiveGradient { unit, micro } => {
                let gradient = self.machine.receive(&self.contexts[micro], unit + 1)?;
                self.output_gradient.insert((unit, micro), gradient);
            }
            Action::SumTiedGradients { unit } => {
                self.machine.sum_tied(unit, parameters, &mut self.unreduced)?;
            }
            Action::SumPartialGradients { unit } => {
                self.machine.sum_partial(unit, parameters, &mut self.unreduced)?;
            }
            Action::Reshard { unit } => self.unsharded[unit] = None,
            Action::ReduceGradients { unit } => {
                let reducing = self.machine.reduce(unit, parameters, &mut self.unreduced);
                self.reducing[unit] = Some(reducing);
            }
            Action::AllReduceGradients { unit } => {
                let reducing = self.take_reducing(unit);
                self.reducing[unit] = Some(self.machine.all_reduce(reducing)?);
            }
            Action::AwaitGradients { unit } => {
                let reducing = self.take_reducing(unit);
                self.machine.reduced(unit, reducing, parameters, &mut self.gradients)?;
            }
            Action::SumExpertLoads | Action::ClipGradientNorm | Action::OptimizerStep => {
                unreachable!("{action} is not computed by a pass")
            }
        }
        Ok(())
    }

    fn unshard(&mut self, unit: usize, parameters: &ParameterStore) -> Result<(), CommError> {
        let gathering = self.gathering[unit].take().expect("a checked program gathers first");
        let full = self.machine.gathered(unit, gathering, parameters)?;
        let mut value = |name: &str| full[name].clone();
        let skeleton = &self.machine.units[unit];
        let plain = skeleton.with_parameters(false, &mut value);
        let tracked = skeleton.with_parameters(true, &mut value);
        self.unsharded[unit] = Some(Unsharded { tracked: tracked.into(), plain });
        Ok(())
    }

    fn forward(&mut self, unit: usize, micro: usize, keep: Keep) {
        let (input, first) = match self.kept.remove(&(unit, micro)) {
            Some(Kept::Input(input)) => (input, false),
            Some(Kept::Graph { .. }) => unreachable!("a checked program runs a unit once"),
            None if unit == 0 => (Stream::Tokens(self.contexts[micro].tokens.clone()), true),
            None => (self.flow.remove(&(unit - 1, micro)).expect("the unit before has run"), true),
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
            self.flow.insert((unit, micro), output);
        }
    }

    /// Runs a unit's backward. The gradients of its weights are put off, if asked for, as far as it can.
    fn backward(&mut self, unit: usize, micro: usize, put_off: bool) {
        let Some(Kept::Graph { input, output }) = self.kept.remove(&(unit, micro)) else {
            unreachable!("a checked program keeps the graph");
        };
        let run = || match output {
            Stream::Loss(loss) => {
                let share = 1.0 / self.valid_tokens.max(1) as f64;
                let seed = Tensor::<1>::full([1], share, self.machine.device).cast(DType::F32);
                inject_gradient(loss, seed).backward()
            }
            Stream::Hidden(hidden) => {
                let gradient = self.output_gradient.remove(&(unit, micro));
                inject_gradient(hidden, gradient.expect("the unit after has run")).backward()
            }
            other => unreachable!("no backward starts from {other:?}"),
        };
        let modules = self.unsharded[unit].as_ref().expect("the unit is unsharded");
        let modules = modules.tracked.clone();
        let mut gradients = if put_off {
            let (gradients, rest) = put_off_weights(run);
            self.put_off.insert((unit, micro), (rest, modules.clone()));
            gradients
        } else {
            run()
        };
        if let Some(gradient) = input.and_then(|leaf| leaf.grad_remove(&mut gradients)) {
            self.output_gradient.insert((unit - 1, micro), gradient);
        }
        self.take_gradients(&*modules, &mut gradients);
    }

    /// The gradients that a backward has put off.
    fn backward_weight(&mut self, unit: usize, micro: usize) {
        let put_off = self.put_off.remove(&(unit, micro));
        let (put_off, modules) = put_off.expect("the input's gradient is there");
        for mut gradients in put_off.compute() {
            self.take_gradients(&*modules, &mut gradients);
        }
    }

    fn take_gradients(&mut self, modules: &dyn Unit, gradients: &mut Gradients) {
        let sums = &mut self.unreduced;
        modules.take_gradients(gradients, &mut |name, gradient| sums.accumulate(name, gradient));
    }

    /// Waits until all that was sent has gone.
    fn finish_sending(&mut self) -> Result<(), CommError> {
        self.sending.drain(..).try_for_each(Work::wait)
    }

    fn take_reducing(&mut self, unit: usize) -> Reducing {
        self.reducing[unit].take().expect("a checked program reduces first")
    }

    /// The step's loss and the global norm of its gradients.
    pub(super) fn measure(
        &mut self,
        parameters: &ParameterStore,
    ) -> Result<StepOutcome, StepError> {
        self.finish_sending()?;
        let machine = &self.machine;
        let loss_of = |loss: &Option<Tensor<1>>| loss.clone().map_or(0.0, |x| scalar(x) as f32);
        let losses: Vec<f32> = self.losses.iter().map(loss_of).collect();
        let micro_batches = losses.len();
        let mut losses = machine.groups.all(&losses, machine.device)?;
        if let Some(first) = losses.iter().position(|loss| !loss.is_finite()) {
            let place = MicroBatch { rank: first / micro_batches, micro: first % micro_batches };
            return Err(machine.broken_loss(parameters, place, self.contexts)?.into());
        }
        let roles = &machine.groups.roles;
        let mut place = 0..;
        losses.retain(|_| place.next().is_some_and(|i| roles.gives_loss(i / micro_batches)));
        let grad_norm = machine.gradient_norm(parameters, &self.gradients)?;
        if !grad_norm.is_finite() {
            return Err(machine.broken_gradient(&self.gradients)?.into());
        }
        let sum = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
        let loss = sum / self.valid_tokens.max(1) as f64;
        Ok(StepOutcome { loss, grad_norm, ..StepOutcome::default() })
    }

    /// The gradients so far.
    pub(super) fn gradients(&mut self) -> &mut GradientStore {
        &mut self.gradients
    }

    /// The output of the last unit, of the only micro-batch, where this rank has it.
    ///
    /// # Errors
    /// If an exchange with other ranks fails.
    pub(super) fn into_output(mut self) -> Result<Option<Stream>, CommError> {
        self.finish_sending()?;
        Ok(self.flow.remove(&(self.machine.units.len() - 1, 0)))
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
