//! Writing programs.

use crate::program::{Action, Keep, Program};

/// A training step of one rank that holds the whole model: every micro-batch runs forward through all
/// units and backward again; the last unit, which ends in the loss, is never recomputed.
///
/// With `recompute`, the other units keep only their input and run forward again before their backward
/// (full activation checkpointing, Chen et al., 2016).
pub fn training(units: usize, micro_batches: usize, recompute: bool) -> Program {
    let mut actions = Vec::new();
    let last_micro = micro_batches.saturating_sub(1);
    for micro in 0..micro_batches {
        for unit in 0..units {
            if micro == 0 {
                actions.push(Action::Unshard { unit });
            }
            let keep = if recompute && unit + 1 < units { Keep::Input } else { Keep::Graph };
            actions.push(Action::Forward { unit, micro, keep });
        }
        for unit in (0..units).rev() {
            if recompute && unit + 1 < units {
                actions.push(Action::Forward { unit, micro, keep: Keep::Graph });
            }
            actions.push(Action::Backward { unit, micro });
            if micro == last_micro {
                actions.push(Action::Reshard { unit });
                actions.push(Action::ReduceGradients { unit });
            }
        }
    }
    actions.extend([Action::ClipGradientNorm, Action::OptimizerStep]);
    Program { units, micro_batches, actions }
}

/// A forward of one micro-batch through all units, for validation and inference.
pub fn inference(units: usize) -> Program {
    let actions = (0..units)
        .flat_map(|unit| {
            [
                Action::Unshard { unit },
                Action::Forward { unit, micro: 0, keep: Keep::Nothing },
                Action::Reshard { unit },
            ]
        })
        .collect();
    Program { units, micro_batches: 1, actions }
}
