//! Proving a program before it runs.

use std::collections::HashMap;

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
    Done,
}

#[derive(Default)]
struct State {
    /// Whether each unit's full parameters are there.
    unsharded: Vec<bool>,
    /// What each unit keeps of each micro-batch.
    kept: HashMap<(usize, usize), Kept>,
    /// How often each unit's gradients were reduced.
    reduced: Vec<usize>,
    /// Whether any backward ran, so that an update must follow.
    trains: bool,
    clipped: bool,
    stepped: bool,
}

/// Proves that a program of one rank uses nothing before it is there or after it was freed, runs every
/// micro-batch forward and backward through every unit exactly once, and reduces every gradient once.
///
/// # Errors
/// Names the first action that breaks a rule, or what is missing at the end.
pub fn check(program: &Program) -> Result<(), ProgramError> {
    let mut state = State {
        unsharded: vec![false; program.units],
        reduced: vec![0; program.units],
        ..State::default()
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
        if let Action::Unshard { unit }
        | Action::Reshard { unit }
        | Action::Forward { unit, .. }
        | Action::Backward { unit, .. }
        | Action::ReduceGradients { unit } = action
            && *unit >= program.units
        {
            return Err(format!("the model has {} units", program.units));
        }
        if let Action::Forward { micro, .. } | Action::Backward { micro, .. } = action
            && *micro >= program.micro_batches
        {
            return Err(format!("the step has {} micro-batches", program.micro_batches));
        }
        if self.stepped {
            return Err("the optimizer has taken its step".into());
        }
        match *action {
            Action::Unshard { unit } if self.unsharded[unit] => {
                return Err("the unit is unsharded already".into());
            }
            Action::Unshard { unit } => self.unsharded[unit] = true,
            Action::Reshard { unit } if !self.unsharded[unit] => {
                return Err("the unit is not unsharded".into());
            }
            Action::Reshard { unit } => self.unsharded[unit] = false,
            Action::Forward { unit, micro, keep } => self.forward(unit, micro, keep)?,
            Action::Backward { unit, micro } => self.backward(program, unit, micro)?,
            Action::ReduceGradients { unit } => {
                if let Some(micro) = (0..program.micro_batches)
                    .find(|micro| self.kept.get(&(unit, *micro)) != Some(&Kept::Done))
                {
                    return Err(format!("micro-batch {micro} has not run backward"));
                }
                self.reduced[unit] += 1;
            }
            Action::ClipGradientNorm => {
                self.all_reduced()?;
                self.clipped = true;
            }
            Action::OptimizerStep if !self.clipped => {
                return Err("the gradient norm is not known".into());
            }
            Action::OptimizerStep => self.stepped = true,
        }
        Ok(())
    }

    fn forward(&mut self, unit: usize, micro: usize, keep: Keep) -> Result<(), String> {
        if !self.unsharded[unit] {
            return Err("the unit is not unsharded".into());
        }
        match self.kept.get(&(unit, micro)) {
            None if unit > 0 && !self.kept.contains_key(&(unit - 1, micro)) => {
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
        if !self.unsharded[unit] {
            return Err("the unit is not unsharded".into());
        }
        self.trains = true;
        match self.kept.get(&(unit, micro)) {
            Some(Kept::Graph) => {}
            Some(Kept::Input) => return Err("only the input was kept".into()),
            Some(Kept::Done) => return Err("what the forward kept is gone".into()),
            None => return Err("the unit has not run forward".into()),
        }
        if unit + 1 < program.units && self.kept.get(&(unit + 1, micro)) != Some(&Kept::Done) {
            return Err(format!("unit {} has given no gradient yet", unit + 1));
        }
        self.kept.insert((unit, micro), Kept::Done);
        Ok(())
    }

    fn all_reduced(&self) -> Result<(), String> {
        match self.reduced.iter().position(|times| *times != 1) {
            Some(unit) => Err(format!(
                "the gradients of unit {unit} were reduced {} times, not once",
                self.reduced[unit]
            )),
            None => Ok(()),
        }
    }

    fn finish(&self, program: &Program) -> Result<(), String> {
        for unit in 0..program.units {
            if self.unsharded[unit] {
                return Err(format!("unit {unit} is still unsharded"));
            }
            for micro in 0..program.micro_batches {
                if self.kept.get(&(unit, micro)) != Some(&Kept::Done) {
                    return Err(format!("unit {unit} is not done with micro-batch {micro}"));
                }
            }
        }
        if self.trains && !self.stepped { Err("the optimizer took no step".into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step;

    #[test]
    fn written_programs_pass() {
        for units in 1..6 {
            for micro_batches in 1..5 {
                for recompute in [false, true] {
                    check(&step::training(units, micro_batches, recompute)).unwrap();
                }
            }
            check(&step::inference(units)).unwrap();
        }
    }

    /// Leaving out any one action, or swapping neighbours that depend on each other, is noticed.
    #[test]
    fn broken_programs_are_refused() {
        let good = step::training(3, 2, true);
        for index in 0..good.actions.len() {
            let mut broken = good.clone();
            let left_out = broken.actions.remove(index);
            assert!(check(&broken).is_err(), "nothing misses {left_out}");
        }
        let mut swapped = good.clone();
        swapped.actions.swap(0, 1);
        assert_eq!(
            check(&swapped).unwrap_err().to_string(),
            "action 0 of the step, Forward(0, 0, Input): the unit is not unsharded"
        );
        let refused = |change: &dyn Fn(&mut Vec<Action>)| {
            let mut broken = good.clone();
            change(&mut broken.actions);
            check(&broken).unwrap_err().reason
        };
        let updates = [Action::ClipGradientNorm, Action::OptimizerStep];
        assert_eq!(
            refused(&|actions| actions.retain(|a| !updates.contains(a))),
            "the optimizer took no step"
        );
        assert_eq!(
            refused(&|actions| actions.push(Action::OptimizerStep)),
            "the optimizer has taken its step"
        );
        assert_eq!(
            refused(
                &|actions| actions[1] = Action::Forward { unit: 0, micro: 2, keep: Keep::Graph }
            ),
            "the step has 2 micro-batches"
        );
        let early = Action::Reshard { unit: 2 };
        let move_before_backward = |actions: &mut Vec<Action>| {
            let at = actions.iter().position(|a| *a == early).unwrap();
            actions.swap(at, at - 1);
        };
        assert_eq!(refused(&move_before_backward), "the unit is not unsharded");
        let mut twice = good.clone();
        let reduce = Action::ReduceGradients { unit: 0 };
        let at = twice.actions.iter().position(|a| *a == reduce).unwrap();
        twice.actions.insert(at, reduce);
        assert_eq!(
            check(&twice).unwrap_err().reason,
            "the gradients of unit 0 were reduced 2 times, not once"
        );
    }
}
