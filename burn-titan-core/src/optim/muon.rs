//! Muon: momentum, orthogonalised (Jordan et al., 2024).
//!
//! `B = momentum B + (1 - momentum) G`; `U = B`, or by Nesterov's rule `momentum B + (1 - momentum) G`;
//! `W = (1 - lr weight_decay) W - lr ratio NS(U)`, where NS brings the singular values of U near 1 by
//! quintic Newton-Schulz iterations, and the ratio follows the matrix's shape.

use burn::tensor::Tensor;

use crate::config::MuonAdjustLr;
use crate::executor::scalar;

/// The numbers of one Muon step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonRule {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Whether the update looks ahead.
    pub nesterov: bool,
    /// Newton-Schulz iterations.
    pub ns_steps: usize,
    /// How the learning rate follows the shape.
    pub adjust_lr: MuonAdjustLr,
}

/// One step on a `[inputs, outputs]` matrix, all tensors flat; returns the new value and momentum.
pub fn muon_update(
    shape: [usize; 2],
    value: Tensor<1>,
    gradient: Tensor<1>,
    momentum: Tensor<1>,
    rule: &MuonRule,
) -> (Tensor<1>, Tensor<1>) {
    let (update, momentum) = self::momentum(gradient, momentum, rule);
    (moved(value, direction(shape, update, rule), rule), momentum)
}

/// The update before it is orthogonalised, and the new momentum; element by element, so also of a piece.
pub(super) fn momentum(
    gradient: Tensor<1>,
    momentum: Tensor<1>,
    rule: &MuonRule,
) -> (Tensor<1>, Tensor<1>) {
    let mu = rule.momentum;
    let momentum = momentum * mu + gradient.clone() * (1.0 - mu);
    let update = if rule.nesterov {
        momentum.clone() * mu + gradient * (1.0 - mu)
    } else {
        momentum.clone()
    };
    (update, momentum)
}

/// The direction of the step of a whole `[inputs, outputs]` matrix, flat: its update orthogonalised, times
/// the ratio.
pub(super) fn direction(
    [inputs, outputs]: [usize; 2],
    update: Tensor<1>,
    rule: &MuonRule,
) -> Tensor<1> {
    let (rows, columns) = (outputs as f64, inputs as f64);
    let ratio = match rule.adjust_lr {
        MuonAdjustLr::Original => (rows / columns).max(1.0).sqrt(),
        MuonAdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
    };
    let direction = orthogonalised(update.reshape([inputs, outputs]), rule.ns_steps);
    direction.reshape([inputs * outputs]) * ratio
}

/// The value after the step; element by element, so also of a piece.
pub(super) fn moved(value: Tensor<1>, direction: Tensor<1>, rule: &MuonRule) -> Tensor<1> {
    value * (1.0 - rule.lr * rule.weight_decay) - direction * rule.lr
}

/// Newton-Schulz iterations on the smaller side: `X = a X + (b X X^T + c (X X^T)^2) X`.
fn orthogonalised(matrix: Tensor<2>, steps: usize) -> Tensor<2> {
    const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
    const EPS: f64 = 1e-7;
    let [a, b, c] = COEFFICIENTS;
    let [rows, columns] = matrix.dims();
    let tall = rows > columns;
    let norm = scalar(burn_titan_kernels::sum_of_squares(matrix.clone())).sqrt().max(EPS);
    let mut x = if tall { matrix.transpose() } else { matrix } / norm;
    for _ in 0..steps {
        let gram = x.clone().matmul(x.clone().transpose());
        let poly = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + poly.matmul(x);
    }
    if tall { x.transpose() } else { x }
}
