//! Latent attention alone, against its equations in float64: plain tensors, no fused kernel, neighbours rotated as the
//! paper has it.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use burn_titan_core::data::Batch;
use burn_titan_core::model::{
    Context, HeadOutput, ModuleUnit, ParameterSpec, Stream, Unit, UnitModule,
};
use burn_titan_kernels::inject_gradient;
use burn_titan_models::config::ModelConfig;
use burn_titan_models::deepseek_v3::{DeepSeekV3Config, LatentAttention};
use burn_titan_models::rotary::Yarn;
use burn_titan_tests::numbers::{devices, noise, relative, values};
use burn_titan_tests::tiny;

const DIM: usize = 37;
const HEADS: usize = 3;
const ROWS: usize = 2;
/// Documents of each row, in tokens.
const DOCUMENTS: [usize; 3] = [17, 1, 23];
const SEQ: usize = 41;

/// Some pairs are kept, some stretched, one is between.
const YARN: Yarn = Yarn {
    factor: 8.0,
    beta_fast: 2.0,
    beta_slow: 0.5,
    mscale: 0.7,
    mscale_all_dim: 0.9,
    original_max_position_embeddings: 32,
};

fn config(
    q_lora_rank: Option<usize>,
    rope_scaling: Option<Yarn>,
    value: usize,
) -> DeepSeekV3Config {
    DeepSeekV3Config {
        dim: DIM,
        n_heads: HEADS,
        q_lora_rank,
        kv_lora_rank: 11,
        qk_nope_head_dim: 7,
        qk_rope_head_dim: 10,
        v_head_dim: value,
        rope_theta: 100.0,
        rope_scaling,
        ..DeepSeekV3Config::flavor("debug").expect("a flavor")
    }
}

/// The attention as a unit.
#[derive(Module, Debug)]
struct Alone {
    attention: LatentAttention,
}

impl UnitModule for Alone {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        Stream::Hidden(self.attention.attend(input.hidden(), context))
    }
}

/// Values of each parameter, by the last part but one of its name.
fn weights(unit: &dyn Unit) -> BTreeMap<String, Vec<f32>> {
    let value = |(i, spec): (usize, &ParameterSpec)| {
        let noise = noise(spec.elements(), 10 + i as u64);
        let is_norm = spec.shape.len() == 1;
        let value = |x: f32| if is_norm { 1.0 + 0.3 * x } else { 0.4 * x };
        (spec.name.clone(), noise.into_iter().map(value).collect())
    };
    unit.parameters().iter().enumerate().map(value).collect()
}

fn batch() -> Batch {
    let tokens = vec![0; ROWS * SEQ];
    tiny::documents(&DOCUMENTS, &tokens, &tokens)
}

/// The output, and the gradients of the input (`x`) and of each parameter.
fn ours(
    unit: &dyn Unit,
    weights: &BTreeMap<String, Vec<f32>>,
    [x, gradient]: [&[f32]; 2],
    device: &Device,
) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    let flat = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::<1>::from_data(data, device)
    };
    let unit = unit.with_parameters(true, &mut |name| flat(&weights[name]));
    let x = flat(x).reshape([ROWS, SEQ, DIM]).autodiff().require_grad();
    let context = Context::new(&batch(), HeadOutput::Loss, device);
    let output = unit.forward(Stream::Hidden(x.clone()), &context).hidden();
    let gradient = flat(gradient).reshape([ROWS, SEQ, DIM]);
    let mut gradients = inject_gradient(output.clone(), gradient).backward();
    let mut found = BTreeMap::new();
    unit.take_gradients(&mut gradients, &mut |name, gradient| {
        found.insert(name.to_string(), values(gradient));
    });
    found.insert("x".into(), values(x.grad(&gradients).expect("a gradient of the input")));
    (values(output.inner()), found)
}

/// `weight x / sqrt(mean(x^2) + eps)` of rows.
fn norm(x: Tensor<2>, weight: Tensor<2>, eps: f64) -> Tensor<2> {
    let mean = x.clone().powf_scalar(2.0).mean_dim(1);
    x / (mean + eps).sqrt() * weight
}

/// Frequencies of the pairs and a factor on what they rotate, as DeepSeek's `yarn` makes them.
fn yarn_frequencies(width: usize, theta: f64, yarn: Option<Yarn>) -> (Vec<f64>, f64) {
    let base = |i: usize| theta.powf(-2.0 * i as f64 / width as f64);
    let Some(yarn) = yarn else { return ((0..width / 2).map(base).collect(), 1.0) };
    let original = yarn.original_max_position_embeddings as f64;
    let turns = |rotations: f64| {
        width as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let low = turns(yarn.beta_fast).floor().max(0.0);
    let high = turns(yarn.beta_slow).ceil().min(width as f64 - 1.0);
    assert!(low > 0.0 && low + 1.0 < high && high < width as f64 / 2.0, "{low} {high}");
    let frequency = |i: usize| {
        let keep = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        base(i) / yarn.factor * (1.0 - keep) + base(i) * keep
    };
    let magnitude = |scale: f64| 0.1 * scale * yarn.factor.ln() + 1.0;
    let factor = magnitude(yarn.mscale) / magnitude(yarn.mscale_all_dim);
    ((0..width / 2).map(frequency).collect(), factor)
}

/// The equations on float64 tensors, and what autodiff makes of plain operations.
struct Reference {
    config: DeepSeekV3Config,
    weights: BTreeMap<String, Tensor<2>>,
    device: Device,
}

impl Reference {
    fn tensor<const D: usize>(&self, values: Vec<f64>, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(values, shape);
        Tensor::from_data(data, (&self.device, DType::F64))
    }

    fn weight(&self, name: &str) -> Tensor<2> {
        self.weights[&format!("attention.{name}.weight")].clone()
    }

    /// Neighbours `(2 i, 2 i + 1)` of `[rows, seq, heads, width]` as complex numbers, turned.
    fn turned(&self, x: Tensor<4>) -> Tensor<4> {
        let [rows, seq, heads, width] = x.dims();
        let DeepSeekV3Config { rope_theta, rope_scaling, .. } = self.config;
        let (frequencies, factor) = yarn_frequencies(width, rope_theta, rope_scaling);
        let positions = DOCUMENTS.iter().flat_map(|length| 0..*length);
        let angles: Vec<f64> = positions
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values = angles.iter().map(|angle| factor * f(*angle)).collect();
            self.tensor::<5>(values, [1, seq, 1, width / 2, 1])
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let pairs = x.reshape([rows, seq, heads, width / 2, 2]);
        let [a, b] = [0, 1].map(|i| pairs.clone().narrow(4, i, 1));
        let real = a.clone() * cos.clone() - b.clone() * sin.clone();
        let imaginary = a * sin + b * cos;
        Tensor::cat(vec![real, imaginary], 4).reshape([rows, seq, heads, width])
    }

    /// Which keys each query does not see.
    fn hidden(&self) -> Tensor<4, Bool> {
        let documents: Vec<usize> =
            (0..DOCUMENTS.len()).flat_map(|i| vec![i; DOCUMENTS[i]]).collect();
        let sees = |q: usize, k: usize| k <= q && documents[k] == documents[q];
        let values: Vec<bool> = (0..SEQ * SEQ).map(|pair| !sees(pair / SEQ, pair % SEQ)).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, SEQ, SEQ]), &self.device)
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let DeepSeekV3Config { qk_nope_head_dim: nope, qk_rope_head_dim: rope, .. } = self.config;
        let DeepSeekV3Config { v_head_dim: value, kv_lora_rank: rank, norm_eps, .. } = self.config;
        let heads = |y: Tensor<2>, width| y.reshape([ROWS, SEQ, HEADS, width]);
        let query = match self.config.q_lora_rank {
            Some(_) => {
                let low = x.clone().matmul(self.weight("wq_a"));
                norm(low, self.weight("q_norm"), norm_eps).matmul(self.weight("wq_b"))
            }
            None => x.clone().matmul(self.weight("wq")),
        };
        let query = heads(query, nope + rope);
        let rotated = self.turned(query.clone().narrow(3, nope, rope));
        let query = Tensor::cat(vec![query.narrow(3, 0, nope), rotated], 3);
        let both = x.matmul(self.weight("wkv_a"));
        let latent = norm(both.clone().narrow(1, 0, rank), self.weight("kv_norm"), norm_eps);
        let pairs = heads(latent.matmul(self.weight("wkv_b")), nope + value);
        let shared = self.turned(both.narrow(1, rank, rope).reshape([ROWS, SEQ, 1, rope]));
        let shared = shared.repeat_dim(2, HEADS);
        let key = Tensor::cat(vec![pairs.clone().narrow(3, 0, nope), shared], 3);
        let value = pairs.narrow(3, nope, value);
        let [query, key, value] = [query, key, value].map(|y| y.swap_dims(1, 2));
        let magnitude = |yarn: Yarn| 0.1 * yarn.mscale_all_dim * yarn.factor.ln() + 1.0;
        let magnitude = self.config.rope_scaling.map_or(1.0, magnitude);
        let scale = magnitude * magnitude / ((nope + rope) as f64).sqrt();
        let scores = query.matmul(key.transpose()) * scale;
        let hidden = self.hidden().expand([ROWS, HEADS, SEQ, SEQ]);
        let mixed = softmax(scores.mask_fill(hidden, -1e9), 3).matmul(value).swap_dims(1, 2);
        let [.., width] = mixed.dims();
        mixed.reshape([ROWS * SEQ, HEADS * width]).matmul(self.weight("wo"))
    }
}

/// As [`ours`], by the reference.
fn reference(
    config: &DeepSeekV3Config,
    unit: &dyn Unit,
    weights: &BTreeMap<String, Vec<f32>>,
    [x, gradient]: [&[f32]; 2],
) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let device = Device::flex().autodiff();
    let mut reference = Reference { config: config.clone(), weights: BTreeMap::new(), device };
    let leaf = |values: &[f32], [rows, columns]: [usize; 2]| {
        let values = values.iter().map(|x| f64::from(*x)).collect();
        reference.tensor(values, [rows, columns])
    };
    let matrix = |spec: &ParameterSpec| {
        let columns = *spec.shape.last().expect("a dim");
        let shape = [spec.elements() / columns, columns];
        (spec.name.clone(), leaf(&weights[&spec.name], shape).require_grad())
    };
    let leaves: BTreeMap<_, _> = unit.parameters().iter().map(matrix).collect();
    let [x, gradient] = [x, gradient].map(|values| leaf(values, [ROWS * SEQ, DIM]));
    let x = x.require_grad();
    reference.weights = leaves;
    let output = reference.forward(x.clone());
    let gradients = (output.clone() * gradient).sum().backward();
    let wide = |x: Tensor<2>| x.into_data().try_into_vec::<f64>().expect("float64");
    let mut found: BTreeMap<_, _> = (reference.weights.iter())
        .map(|(name, leaf)| (name.clone(), wide(leaf.grad(&gradients).expect("a gradient"))))
        .collect();
    found.insert("x".into(), wide(x.grad(&gradients).expect("a gradient of the input")));
    (wide(output.inner()), found)
}

#[test]
fn it_is_what_its_equations_say() {
    assert_eq!(DOCUMENTS.iter().sum::<usize>(), SEQ);
    let x = noise(ROWS * SEQ * DIM, 1);
    let gradient = noise(ROWS * SEQ * DIM, 2);
    let data = [x.as_slice(), gradient.as_slice()];
    for (low, yarn, value) in [
        (Some(13), Some(YARN), 5),
        (Some(13), None, 5),
        (None, Some(YARN), 5),
        (None, None, 9),
        // As wide as the keys.
        (Some(13), Some(YARN), 17),
    ] {
        let config = config(low, yarn, value);
        assert_eq!(config.validate(), []);
        let alone = Alone { attention: LatentAttention::new(&config, &Device::flex()) };
        let unit = ModuleUnit::boxed("alone", "", alone);
        let weights = weights(&*unit);
        let (want, want_gradients) = reference(&config, &*unit, &weights, data);
        for device in devices() {
            let (found, gradients) = ours(&*unit, &weights, data, &device);
            let difference = relative(&found, &want);
            assert!(gradients.keys().eq(want_gradients.keys()));
            let worst = gradients
                .iter()
                .map(|(name, found)| (relative(found, &want_gradients[name]), name))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .expect("gradients");
            println!("{low:?}, {yarn:?}, {value}: {difference:.1e}, {worst:?}");
            assert!(difference < 3e-6, "{low:?}, {yarn:?}, {value}: {difference:e}");
            assert!(worst.0 < 5e-6, "{low:?}, {yarn:?}, {value}: {worst:?}");
        }
    }
}
