//! Rotary position embedding: the angles of each position, with Llama 3.1's scaling.

use std::sync::{Arc, LazyLock, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use burn_titan_core::model::Context;
use burn_titan_kernels::rope;
use serde::{Deserialize, Serialize};

use crate::config::above_0;

/// Base, width and scaling of the rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Width of a head; pairs `(i, i + head_dim / 2)` are rotated together.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching of the low frequencies.
    pub scaling: Option<RopeScaling>,
}

/// RoPE scaling of Llama 3.1: frequencies whose wavelength is longer than the original context (over
/// `low_freq_factor`) are divided by `factor`, short ones are kept, those between are interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context of pre-training, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Cosines and sines of positions from 0 on, `[positions, head_dim / 2]`.
struct Table {
    rotary: Rotary,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The longest table made so far of each rotation.
static TABLES: LazyLock<Mutex<Vec<Arc<Table>>>> = LazyLock::new(Mutex::default);

impl Rotary {
    /// The frequency of each pair, in radians a position.
    pub fn frequencies(&self) -> Vec<f64> {
        (0..self.head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-(2.0 * i as f64) / self.head_dim as f64);
                self.scaling.as_ref().map_or(frequency, |scaling| scaled(frequency, scaling))
            })
            .collect()
    }

    /// Rotates queries or keys by their positions in their documents.
    ///
    /// `x` and the result are `[batch, seq, heads, head_dim]`.
    pub fn forward(&self, x: Tensor<4>, context: &Context) -> Tensor<4> {
        let device = x.device().inner();
        let dims = x.dims();
        let (cos, sin) = context.shared(&format!("{self:?}"), || {
            self.angles(&context.positions, [dims[0], dims[1]], &device)
        });
        rope(x, cos, sin)
    }

    /// Cosines and sines, each `[batch, seq, head_dim / 2]`.
    fn angles(
        &self,
        positions: &[u32],
        [batch, seq]: [usize; 2],
        device: &Device,
    ) -> (Tensor<3>, Tensor<3>) {
        let longest = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let table = self.table(longest);
        let half = self.head_dim / 2;
        let gather = |values: &[f32]| {
            let rows = positions.iter().flat_map(|p| &values[*p as usize * half..][..half]);
            let data = TensorData::new(rows.copied().collect::<Vec<f32>>(), [batch, seq, half]);
            Tensor::<3>::from_data(data, device)
        };
        (gather(&table.cos), gather(&table.sin))
    }

    /// A table of at least so many positions.
    fn table(&self, positions: usize) -> Arc<Table> {
        let mut tables = TABLES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = tables.iter().position(|table| table.rotary == *self);
        if let Some(i) = known
            && tables[i].positions >= positions
        {
            return tables[i].clone();
        }
        let positions = positions.next_power_of_two();
        let frequencies = self.frequencies();
        let angle = |p: usize| frequencies.iter().map(move |f| p as f64 * f);
        let table = Arc::new(Table {
            rotary: self.clone(),
            positions,
            cos: (0..positions).flat_map(angle).map(|a| a.cos() as f32).collect(),
            sin: (0..positions).flat_map(angle).map(|a| a.sin() as f32).collect(),
        });
        if let Some(i) = known {
            tables.remove(i);
        }
        tables.push(table.clone());
        table
    }
}

impl RopeScaling {
    /// What is wrong with the numbers, and what was expected.
    pub fn problem(&self) -> Option<String> {
        if !(self.factor.is_finite() && self.factor >= 1.0) {
            return Some(format!("has factor {}: expected a number of at least 1", self.factor));
        }
        if !(above_0(self.low_freq_factor) && above_0(self.high_freq_factor)) {
            return Some("has a frequency factor that is not a number above 0".into());
        }
        if self.low_freq_factor >= self.high_freq_factor {
            return Some(format!(
                "has low_freq_factor {}: expected less than high_freq_factor ({})",
                self.low_freq_factor, self.high_freq_factor
            ));
        }
        (self.original_max_position_embeddings == 0)
            .then(|| "has original_max_position_embeddings 0: expected at least 1".into())
    }
}

/// Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between interpolated.
fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    let old = scaling.original_max_position_embeddings as f64;
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    if wavelength < old / high {
        frequency
    } else if wavelength > old / low {
        frequency / scaling.factor
    } else {
        let smooth = (old / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
    }
}
