//! Rotary position embedding: the angles of each position, with Llama 3.1's scaling.

use std::sync::{Arc, LazyLock, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use burn_titan_core::model::Context;
use burn_titan_kernels::rope;

use crate::llama3::config::RopeScaling;

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
