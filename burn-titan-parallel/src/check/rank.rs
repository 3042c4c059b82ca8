//! One rank's program, by itself.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use crate::program::{Action, Keep, Program};

/// Why a program is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("action {index} of the step, {action}: {reason}")]
pub struct ProgramError {
    /// Position in the program, from 0.
    pub index: usize,
    /// The action.
    pub action: String,
    /// What it lacks.
    pub reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Input,
    Graph,
    /// What the gradients of the weights need.
    Weights,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameters {
    Sharded,
    Gathering,
    Full,
}

/// Where the sum of a unit's gradients is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    /// None is under way.
    None,
    OverShards,
    OverCopies,
}

struct State {
    /// Which units the rank has.
    owned: Vec<bool>,
    /// Outputs of others' units, and gradients of the own ones' outputs, that have come.
    activations: HashSet<(usize, usize)>,
    gradients: HashSet<(usize, usize)>,
    /// What was sent.
    sent: HashSet<Action>,
    /// Units whose tied gradients are summed.
    tied: HashSet<usize>,
    /// Where each unit's full parameters are.
    parameters: Vec<Parameters>,
    /// What each unit keeps of each micro-batch.
    kept: HashMap<(usize, usize), Kept>,
    /// Micro-batches whose gradients each unit holds in full.
    unreduced: Vec<usize>,
    /// The sum of each unit's gradients that is under way, and of how many micro-batches.
    sums: Vec<(Sum, usize)>,
    /// Micro-batches whose gradients are in each unit's shard.
    reduced: Vec<usize>,
    /// Whether any backward ran, so that an update must follow.
    trains: bool,
    clipped: bool,
    /// Whether the loads of experts are summed.
    loads_summed: bool,
    stepped: bool,
    /// Whether each unit's partial gradients are summed.
    summed: Vec<bool>,
    sharing: Sharing,
}

/// What of the model several ranks have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sharing {
    /// Copies of it, over which gradients must be summed.
    pub(super) copies: bool,
    /// Parts of split units, whose partial gradients must be summed.
    pub(super) split: bool,
    /// Experts, whose loads must be summed.
    pub(super) experts: bool,
}

/// Proves that a program of one rank uses nothing before it is there or after it was freed, runs every
/// micro-batch forward and backward through every unit exactly once, and reduces every gradient once.
///
/// # Errors
/// Names the first action that breaks a rule, or what is missing at the end.
pub fn check(program: &Program) -> Result<(), ProgramError> {
    prove(program, Sharing::default())
}

/// As [`check`]; what several ranks have must be summed over them too.
pub(super) fn prove(program: &Program, sharing: Sharing) -> Result<(), ProgramError> {
    let units = program.units;
    let mut state = State {
        owned: program.owned.clone(),
        activations: HashSet::new(),
        gradients: HashSet::new(),
        sent: HashSet::new(),
        tied: HashSet::new(),
        parameters: vec![Parameters::Sharded; units],
        kept: HashMap::new(),
        unreduced: vec![0; units],
        summed: vec![false; units],
        sums: vec![(Sum::None, 0); units],
        reduced: vec![0; units],
        trains: false,
        loads_summed: false,
        clipped: false,
        stepped: false,
        sharing,
    };
    for (index, action) in program.actions.iter().enumerate() {
        state.apply(program, action).map_err(|reason| ProgramError {
            index,
            action: action.to_string(),
            reason,
        })?;
    }
    state.finish(program).map_err(|reason| ProgramError {
        index: program.actions.len(),
        action: "end".into(),
        reason,
    })
}

impl State {
    fn apply(&mut self, program: &Program, action: &Action) -> Result<(), String> {
        if action.unit().is_some_and(|unit| unit >= program.units) {
            return Err(format!("the model has {} units", program.units));
        }
        if action.micro().is_some_and(|micro| micro >= program.micro_batches) {
            return Err(format!("the step has {} micro-batches", program.micro_batches));
        }
        let elsewhere =
            matches!(action, Action::ReceiveActivation { .. } | Action::SendGradient { .. });
        if action.unit().is_some_and(|unit| self.owned[unit] == elsewhere) {
            let whose =
                if elsewhere { "the rank has the unit" } else { "another rank has the unit" };
            return Err(whose.into());
        }
        if self.stepped {
            return Err("the optimizer has taken its step".into());
        }
        match *action {
            Action::Gather { unit } => self.gather(unit),
            Action::Unshard { unit } => self.unshard(unit),
            Action::Reshard { unit } => self.full(unit).map(|()| {
                self.parameters[unit] = Parameters::Sharded;
            }),
            Action::SumExpertLoads | Action::Forward { .. } if self.loads_summed => {
                Err("the loads of experts are summed already".into())
            }
            Action::Forward { unit, micro, keep } => self.forward(unit, micro, keep),
            Action::Backward { unit, micro } => {
                self.backward(program, unit, micro)?;
                self.backward_weight(unit, micro)
            }
            Action::BackwardInput { unit, micro } => self.backward(program, unit, micro),
            Action::BackwardWeight { unit, micro } => self.backward_weight(unit, micro),
            Action::SendActivation { unit, micro } => match self.kept.get(&(unit, micro)) {
                None => Err("the unit has not run forward".into()),
                Some(_) => self.send(*action),
            },
            Action::SendGradient { unit, micro } => match self.kept.get(&(unit + 1, micro)) {
                Some(Kept::Weights | Kept::Done) => self.send(*action),
                _ => Err(format!("unit {} has given no gradient yet", unit + 1)),
            },
            Action::ReceiveActivation { unit, micro } => {
                match self.activations.insert((unit, micro)) {
                    true => Ok(()),
                    false => Err("the output has come already".into()),
                }
            }
            Action::ReceiveGradient { unit, micro } => match self.gradients.insert((unit, micro)) {
                true => Ok(()),
                false => Err("the gradient has come already".into()),
            },
            Action::SumTiedGradients { unit } => {
                if self.unreduced[unit] != program.micro_batches {
                    return Err("not all gradients of the unit are there".into());
                }
                match self.tied.insert(unit) {
                    true => Ok(()),
                    false => Err("the tied gradients are summed already".into()),
                }
            }
            Action::SumPartialGradients { unit } => self.sum_partial(unit),
            Action::ReduceGradients { unit } => self.reduce(unit),
            Action::AllReduceGradients { unit } => self.all_reduce(unit),
            Action::AwaitGradients { unit } => self.await_gradients(unit),
            Action::SumExpertLoads => {
                self.loads_summed = true;
                Ok(())
            }
            Action::ClipGradientNorm => self.all_reduced(program).map(|()| self.clipped = true),
            Action::OptimizerStep if self.sharing.experts && !self.loads_summed => {
                Err("the loads of experts are not summed".into())
            }
            Action::OptimizerStep if !self.clipped => Err("the gradient norm is not known".into()),
            Action::OptimizerStep => {
                self.stepped = true;
                Ok(())
            }
        }
    }

    fn gather(&mut self, unit: usize) -> Result<(), String> {
        match self.parameters[unit] {
            Parameters::Sharded => self.parameters[unit] = Parameters::Gathering,
            Parameters::Gathering => return Err("the unit is being gathered already".into()),
            Parameters::Full => return Err("the unit is unsharded already".into()),
        }
        Ok(())
    }

    fn unshard(&mut self, unit: usize) -> Result<(), String> {
        match self.parameters[unit] {
            Parameters::Gathering => self.parameters[unit] = Parameters::Full,
            Parameters::Sharded => return Err("the unit was not gathered".into()),
            Parameters::Full => return Err("the unit is unsharded already".into()),
        }
        Ok(())
    }

    fn full(&self, unit: usize) -> Result<(), String> {
        match self.parameters[unit] {
            Parameters::Full => Ok(()),
            _ => Err("the unit is not unsharded".into()),
        }
    }

    fn sum_partial(&mut self, unit: usize) -> Result<(), String> {
        if self.unreduced[unit] == 0 {
            return Err("the unit has no gradient that is not reduced".into());
        }
        match std::mem::replace(&mut self.summed[unit], true) {
            true => Err("the partial gradients are summed already".into()),
            false => Ok(()),
        }
    }

    fn reduce(&mut self, unit: usize) -> Result<(), String> {
        if self.unreduced[unit] == 0 {
            return Err("the unit has no gradient that is not reduced".into());
        }
        if !std::mem::replace(&mut self.summed[unit], false) && self.sharing.split {
            return Err("the partial gradients are not summed".into());
        }
        if self.sums[unit].0 != Sum::None {
            return Err("the unit's gradients are being reduced already".into());
        }
        self.sums[unit] = (Sum::OverShards, std::mem::take(&mut self.unreduced[unit]));
        Ok(())
    }

    fn all_reduce(&mut self, unit: usize) -> Result<(), String> {
        match self.sums[unit].0 {
            Sum::OverShards => self.sums[unit].0 = Sum::OverCopies,
            Sum::OverCopies => return Err("the sum over the copies is under way already".into()),
            Sum::None => return Err("the unit's gradients are not being reduced".into()),
        }
        Ok(())
    }

    fn await_gradients(&mut self, unit: usize) -> Result<(), String> {
        let (sum, micro_batches) = std::mem::replace(&mut self.sums[unit], (Sum::None, 0));
        match sum {
            Sum::None => return Err("the unit's gradients are not being reduced".into()),
            Sum::OverShards if self.sharing.copies => {
                return Err("the sum is not taken over the copies of the model".into());
            }
            _ => {}
        }
        self.reduced[unit] += micro_batches;
        Ok(())
    }

    fn forward(&mut self, unit: usize, micro: usize, keep: Keep) -> Result<(), String> {
        self.full(unit)?;
        match self.kept.get(&(unit, micro)) {
            None if unit > 0 && !self.has_output(unit - 1, micro) => {
                return Err(format!("unit {} has no output yet", unit - 1));
            }
            None => {}
            Some(Kept::Input) if keep == Keep::Graph => {}
            Some(_) => return Err("the unit has run on this micro-batch".into()),
        }
        let kept = match keep {
            Keep::Graph => Kept::Graph,
            Keep::Input => Kept::Input,
            Keep::Nothing => Kept::Done,
        };
        self.kept.insert((unit, micro), kept);
        Ok(())
    }

    fn backward(&mut self, program: &Program, unit: usize, micro: usize) -> Result<(), String> {
        self.full(unit)?;
        self.trains = true;
        match self.kept.get(&(unit, micro)) {
            Some(Kept::Graph) => {}
            Some(Kept::Input) => return Err("only the input was kept".into()),
            Some(Kept::Weights | Kept::Done) => return Err("what the forward kept is gone".into()),
            None => return Err("the unit has not run forward".into()),
        }
        if unit + 1 < program.units && !self.has_gradient(unit, micro) {
            return Err(format!("unit {} has given no gradient yet", unit + 1));
        }
        self.kept.insert((unit, micro), Kept::Weights);
        Ok(())
    }

    fn backward_weight(&mut self, unit: usize, micro: usize) -> Result<(), String> {
        if self.kept.get(&(unit, micro)) != Some(&Kept::Weights) {
            return Err("the gradient of the input comes first".into());
        }
        if self.summed[unit] {
            return Err("the partial gradients before it are summed, but not reduced".into());
        }
        self.kept.insert((unit, micro), Kept::Done);
        self.unreduced[unit] += 1;
        Ok(())
    }

    fn has_output(&self, unit: usize, micro: usize) -> bool {
        match self.owned[unit] {
            true => self.kept.contains_key(&(unit, micro)),
            false => self.activations.contains(&(unit, micro)),
        }
    }

    /// Whether the gradient of a unit's output is there.
    fn has_gradient(&self, unit: usize, micro: usize) -> bool {
        match self.owned[unit + 1] {
            true => matches!(self.kept.get(&(unit + 1, micro)), Some(Kept::Weights | Kept::Done)),
            false => self.gradients.contains(&(unit, micro)),
        }
    }

    fn send(&mut self, action: Action) -> Result<(), String> {
        match self.sent.insert(action) {
            true => Ok(()),
            false => Err("it was sent already".into()),
        }
    }

    fn all_reduced(&self, program: &Program) -> Result<(), String> {
        let mut own = (0..program.units).filter(|unit| self.owned[*unit]);
        match own.find(|unit| self.reduced[*unit] != program.micro_batches) {
            Some(unit) => Err(format!(
                "the gradients of unit {unit} are there of {} of {} micro-batches",
                self.reduced[unit], program.micro_batches
            )),
            None => Ok(()),
        }
    }

    fn finish(&self, program: &Program) -> Result<(), String> {
        for unit in (0..program.units).filter(|unit| self.owned[*unit]) {
            if self.parameters[unit] != Parameters::Sharded {
                return Err(format!("unit {unit} is still unsharded"));
            }
            for micro in 0..program.micro_batches {
                if self.kept.get(&(unit, micro)) != Some(&Kept::Done) {
                    return Err(format!("unit {unit} is not done with micro-batch {micro}"));
                }
                // What a stage gives goes to the next.
                if self.owned.get(unit + 1) == Some(&false)
                    && !self.sent.contains(&Action::SendActivation { unit, micro })
                {
                    return Err(format!("the output of unit {unit} was not sent"));
                }
                if self.trains
                    && unit > 0
                    && !self.owned[unit - 1]
                    && !self.sent.contains(&Action::SendGradient { unit: unit - 1, micro })
                {
                    return Err(format!("the gradient of unit {}'s output was not sent", unit - 1));
                }
            }
        }
        if self.trains && !self.stepped { Err("the optimizer took no step".into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
