use burn_titan_parallel::{Action, Keep, Program};

/// FSDP, breadth first: a unit runs all micro-batches while its parameters are there, so that it is gathered
/// twice a step and reduced once, whatever their number. The price: all their inputs are kept at once.
pub fn breadth_first(units: usize, micro_batches: usize) -> Program {
    let mut actions = Vec::new();
    for unit in 0..units {
        actions.extend([Action::Gather { unit }, Action::Unshard { unit }]);
        for micro in 0..micro_batches {
            actions.push(Action::Forward { unit, micro, keep: Keep::Input });
        }
        actions.push(Action::Reshard { unit });
    }
    for unit in (0..units).rev() {
        actions.extend([Action::Gather { unit }, Action::Unshard { unit }]);
        for micro in 0..micro_batches {
            actions.push(Action::Forward { unit, micro, keep: Keep::Graph });
            actions.push(Action::Backward { unit, micro });
        }
        actions.extend([Action::Reshard { unit }, Action::ReduceGradients { unit }]);
    }
    for unit in (0..units).rev() {
        actions.push(Action::AwaitGradients { unit });
    }
    actions.extend([Action::ClipGradientNorm, Action::OptimizerStep]);
    Program { units, owned: vec![true; units], micro_batches, actions }
}
