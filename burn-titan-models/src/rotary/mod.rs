//! Rotary position embedding: the angles of each position, stretched as Llama 3.1 does or by YaRN.

mod interleaved;
mod llama3;
mod yarn;

pub use interleaved::InterleavedRotary;
pub use llama3::RopeScaling;
pub use yarn::Yarn;

use std::sync::{Arc, LazyLock, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use burn_titan_core::model::Context;
use burn_titan_kernels::rope;

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

impl Rotary {
    /// The frequency of each pair, in radians a position.
    pub fn frequencies(&self) -> Vec<f64> {
        let scaled =
            |frequency| self.scaling.map_or(frequency, |scaling| scaling.scaled(frequency));
        frequencies(self.head_dim, self.theta).map(scaled).collect()
    }

    /// Rotates queries or keys by their positions in their documents.
    ///
    /// `x` and the result are `[batch, seq, heads, head_dim]`.
    pub fn forward(&self, x: Tensor<4>, context: &Context) -> Tensor<4> {
        turned(x, context, &format!("{self:?}"), || (self.frequencies(), 1.0))
    }
}

/// The frequencies of RoPE, in radians a position, for `width / 2` pairs (Su et al., 2021).
fn frequencies(width: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..width / 2).map(move |i| theta.powf(-(2.0 * i as f64) / width as f64))
}

/// Rotates the pairs `(i, i + width / 2)` of `[batch, seq, heads, width]` by the positions of the tokens in their
/// documents. `waves` gives the frequency of each pair, and a factor on what comes out; `name` tells them from others.
fn turned(
    x: Tensor<4>,
    context: &Context,
    name: &str,
    waves: impl FnOnce() -> (Vec<f64>, f64),
) -> Tensor<4> {
    let device = x.device().inner();
    let [batch, seq, _, width] = x.dims();
    let (cos, sin) = context.shared(name, || {
        let longest = context.positions.iter().max().map_or(0, |p| *p as usize + 1);
        let table = table(name, longest, waves);
        table.angles(&context.positions, [batch, seq, width / 2], &device)
    });
    rope(x, cos, sin)
}

/// Cosines and sines of positions from 0 on, `[positions, width / 2]`.
struct Table {
    name: String,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The longest table made so far of each rotation.
static TABLES: LazyLock<Mutex<Vec<Arc<Table>>>> = LazyLock::new(Mutex::default);

/// A table of at least so many positions.
fn table(name: &str, positions: usize, waves: impl FnOnce() -> (Vec<f64>, f64)) -> Arc<Table> {
    let mut tables = TABLES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let known = tables.iter().position(|table| table.name == name);
    if let Some(i) = known
        && tables[i].positions >= positions
    {
        return tables[i].clone();
    }
    let positions = positions.next_power_of_two();
    let (frequencies, factor) = waves();
    let angle = |p: usize| frequencies.iter().map(move |f| p as f64 * f);
    let table = Arc::new(Table {
        name: name.into(),
        positions,
        cos: (0..positions).flat_map(angle).map(|a| (factor * a.cos()) as f32).collect(),
        sin: (0..positions).flat_map(angle).map(|a| (factor * a.sin()) as f32).collect(),
    });
    if let Some(i) = known {
        tables.remove(i);
    }
    tables.push(table.clone());
    table
}

impl Table {
    /// Cosines and sines, each `[batch, seq, width / 2]`.
    fn angles(
        &self,
        positions: &[u32],
        [batch, seq, half]: [usize; 3],
        device: &Device,
    ) -> (Tensor<3>, Tensor<3>) {
        let gather = |values: &[f32]| {
            let rows = positions.iter().flat_map(|p| &values[*p as usize * half..][..half]);
            let data = TensorData::new(rows.copied().collect::<Vec<f32>>(), [batch, seq, half]);
            Tensor::<3>::from_data(data, device)
        };
        (gather(&self.cos), gather(&self.sin))
    }
}
