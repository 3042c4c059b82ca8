//! The kernels' mathematics in f64 by plain loops, and derivatives by differences.
//!
//! Everything is row-major. Nothing here is shared with the kernels.

/// Sizes of an attention problem; shapes are `[batch, heads, seq, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionSizes {
    /// Elements of query, key and value.
    pub fn elements(&self) -> [usize; 3] {
        let kv = self.batch * self.kv_heads * self.seq * self.head_dim;
        [self.batch * self.heads * self.seq * self.head_dim, kv, kv]
    }

    /// Calls `f(query_row, key_row, pair)` for every query and key that it sees; rows count
    /// `[batch, heads, seq]`, pairs `[batch, heads, seq, seq]`. Keys of one query come in a row.
    pub fn for_pairs(&self, first_key: &[i64], mut f: impl FnMut(usize, usize, usize)) {
        let Self { batch, heads, kv_heads, seq, .. } = *self;
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let head = b * heads + h;
            let kv_head = b * kv_heads + h / (heads / kv_heads);
            for i in 0..seq {
                for j in first_key[b * seq + i] as usize..=i {
                    f(head * seq + i, kv_head * seq + j, (head * seq + i) * seq + j);
                }
            }
        }
    }
}

/// Causal attention: output and probabilities `[batch, heads, seq, seq]`. Query `i` of sequence `b`
/// sees the keys `first_key[b, i]..=i`; scores are divided by the root of the head's width.
pub fn attention(
    [query, key, value]: [&[f64]; 3],
    first_key: &[i64],
    sizes: AttentionSizes,
) -> (Vec<f64>, Vec<f64>) {
    let AttentionSizes { batch, heads, seq, head_dim, .. } = sizes;
    let row = |x: usize| x * head_dim..(x + 1) * head_dim;
    let scale = (head_dim as f64).powf(-0.5);
    let rows = batch * heads * seq;
    let (mut scores, mut top, mut total) =
        (vec![0.0; rows * seq], vec![f64::NEG_INFINITY; rows], vec![0.0; rows]);
    sizes.for_pairs(first_key, |q, k, pair| {
        let (q_row, k_row) = (&query[row(q)], &key[row(k)]);
        scores[pair] = scale * q_row.iter().zip(k_row).map(|(q, k)| q * k).sum::<f64>();
        top[q] = top[q].max(scores[pair]);
    });
    sizes.for_pairs(first_key, |q, _, pair| {
        scores[pair] = (scores[pair] - top[q]).exp();
        total[q] += scores[pair];
    });
    let mut output = vec![0.0; rows * head_dim];
    sizes.for_pairs(first_key, |q, k, pair| {
        scores[pair] /= total[q];
        for (y, v) in output[row(q)].iter_mut().zip(&value[row(k)]) {
            *y += scores[pair] * v;
        }
    });
    (output, scores)
}

/// `weight x / sqrt(mean(x^2) + eps)` over rows of the weight's length.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let dim = weight.len();
    x.chunks(dim)
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let inverse = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(x, w)| x * inverse * w)
        })
        .collect()
}

/// Half-split rotation of `[tokens, heads, 2 half]` by tables `[tokens, half]`.
pub fn rope(x: &[f64], cos: &[f64], sin: &[f64], [heads, half]: [usize; 2]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for (h, start) in (0..x.len()).step_by(2 * half).enumerate() {
        for i in 0..half {
            let (c, s) = (cos[h / heads * half + i], sin[h / heads * half + i]);
            let (a, b) = (x[start + i], x[start + half + i]);
            (y[start + i], y[start + half + i]) = (a * c - b * s, b * c + a * s);
        }
    }
    y
}

/// `gate / (1 + e^-gate) up`.
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(a, b)| a / (1.0 + (-a).exp()) * b).collect()
}

/// `[m, k]` by `[k, n]`.
pub fn matmul(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for (i, p) in (0..m).flat_map(|i| (0..k).map(move |p| (i, p))) {
        for j in 0..n {
            c[i * n + j] += a[i * k + p] * b[p * n + j];
        }
    }
    c
}

/// The softmax of each row of `[rows, width]`.
pub fn softmax(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks(width)
        .flat_map(|row| {
            let total = log_sum_exp(row);
            row.iter().map(move |x| (x - total).exp())
        })
        .collect()
}

/// The summed cross-entropy of rows of logits `[targets, vocab]`; a negative target does not count.
pub fn cross_entropy(logits: &[f64], targets: &[i64]) -> f64 {
    let vocab = logits.len() / targets.len();
    let loss = |(row, target): (&[f64], &i64)| {
        usize::try_from(*target).map_or(0.0, |target| log_sum_exp(row) - row[target])
    };
    logits.chunks(vocab).zip(targets).map(loss).sum()
}

fn log_sum_exp(row: &[f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// The inner product of two slices.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The gradients of `f` by central differences of width 1e-5: for functions of order 1, within about
/// 1e-10 of the derivative.
pub fn numeric_gradients<const N: usize>(
    inputs: [&[f64]; N],
    f: impl Fn([&[f64]; N]) -> f64,
) -> [Vec<f64>; N] {
    const STEP: f64 = 1e-5;
    let mut inputs = inputs.map(<[f64]>::to_vec);
    let mut gradients = inputs.each_ref().map(|x| vec![0.0; x.len()]);
    for (input, gradient) in gradients.iter_mut().enumerate() {
        for (element, slope) in gradient.iter_mut().enumerate() {
            let centre = inputs[input][element];
            let mut at = |x: f64| {
                inputs[input][element] = x;
                f(inputs.each_ref().map(Vec::as_slice))
            };
            *slope = (at(centre + STEP) - at(centre - STEP)) / (2.0 * STEP);
            inputs[input][element] = centre;
        }
    }
    gradients
}
