//! Whether a model and its optimizer fit into memory, told before either is allocated.

use std::collections::HashMap;

use super::TrainError;
use crate::config::{DeviceKind, OptimizerKind};
use crate::metrics::physical_memory;
use crate::model::ParameterSpec;
use crate::optim::ParameterRule;

/// Refuses parameters that cannot fit into the memory of the machine, shared by so many `ranks`. Only the CPU's
/// is known.
pub(super) fn check(
    device: DeviceKind,
    parameters: &[ParameterSpec],
    rules: &HashMap<String, ParameterRule>,
    ranks: usize,
) -> Result<(), TrainError> {
    match (device, physical_memory()) {
        (DeviceKind::Flex, Some(available)) => fits(parameters, rules, ranks, available),
        _ => Ok(()),
    }
}

fn fits(
    parameters: &[ParameterSpec],
    rules: &HashMap<String, ParameterRule>,
    ranks: usize,
    available: u64,
) -> Result<(), TrainError> {
    let bytes = |spec: &ParameterSpec| {
        let copies = rules.get(&spec.name).map_or(2, |rule| copies(rule.kind));
        4 * copies * spec.elements() as u64
    };
    let needed = parameters.iter().map(bytes).sum::<u64>() / ranks as u64;
    if needed <= available {
        return Ok(());
    }
    let parameters = parameters.iter().map(|spec| spec.elements() as u64).sum();
    Err(TrainError::TooLarge { parameters, needed, available })
}

/// Arrays in single precision for each parameter: weights, gradients, the optimizer's state.
fn copies(optimizer: OptimizerKind) -> u64 {
    match optimizer {
        OptimizerKind::Adamw => 4,
        OptimizerKind::Muon => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optimizer_counts() {
        let spec = |name: &str, rows| ParameterSpec { name: name.into(), shape: vec![rows, 1024] };
        let rule = |kind| ParameterRule { kind, lr: 1.0, weight_decay: 0.0 };
        let parameters = [spec("a", 1 << 18), spec("b", 1 << 19)];
        let rules = HashMap::from([
            ("a".to_string(), rule(OptimizerKind::Adamw)),
            ("b".to_string(), rule(OptimizerKind::Muon)),
        ]);
        let needed = (16 + 2 * 12) << 28;
        assert!(fits(&parameters, &rules, 1, needed).is_ok());
        assert!(fits(&parameters, &rules, 4, needed / 4).is_ok());
        assert!(fits(&parameters, &rules, 4, needed / 4 - 1).is_err());
        assert_eq!(
            fits(&parameters, &rules, 1, needed - (1 << 29)).unwrap_err().to_string(),
            "model: training 805306368 parameters takes at least 10.0 GiB for weights, gradients \
             and the optimizer's state, but this machine has 9.5 GiB of memory: choose a smaller \
             model, or a larger machine"
        );
    }
}
