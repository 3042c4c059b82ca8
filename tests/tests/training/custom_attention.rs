//! A user's own attention: a plain Burn module, registered under a name.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Int, Tensor};
use burn_titan_core::model::{Context, Line, PlanError, Split};
use burn_titan_core::plan::plan;
use burn_titan_core::trainer::{prepare, train};
use burn_titan_models::{Attention, AttentionConfig, Llama3, registry};
use burn_titan_parallel::World;
use burn_titan_tests::runs::{Run, SMALL};

/// One head over the last `window` tokens of the document, by plain tensor operations.
#[derive(Module, Debug)]
struct WindowAttention {
    query_key_value: Linear,
    output: Linear,
    window: usize,
}

impl Attention for WindowAttention {
    fn new(config: &AttentionConfig, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(true).init(device);
        Self {
            query_key_value: linear(config.dim, 3 * config.head_dim),
            output: linear(config.head_dim, config.dim),
            window: 8,
        }
    }

    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [query, key, value]: [Tensor<3>; 3] =
            self.query_key_value.forward(x).chunk(3, 2).try_into().expect("three parts");
        let [_, _, head_dim] = query.dims();
        let scores = query.matmul(key.swap_dims(1, 2)) / (head_dim as f64).sqrt();
        let scores = scores.mask_fill(self.hidden(context.first_key.clone()), -1e9);
        self.output.forward(softmax(scores, 2).matmul(value))
    }
}

impl WindowAttention {
    /// `[batch, seq, seq]`: true where a query (dim 1) must not see a key (dim 2).
    fn hidden(&self, first_key: Tensor<2, Int>) -> Tensor<3, Bool> {
        let [batch, seq] = first_key.dims();
        let index = Tensor::<1, Int>::arange(0..seq as i64, &first_key.device());
        let query = index.clone().reshape([1, seq, 1]).expand([batch, seq, seq]);
        let key = index.reshape([1, 1, seq]).expand([batch, seq, seq]);
        let first = first_key.reshape([batch, seq, 1]).expand([batch, seq, seq]);
        let late = key.clone().greater(query.clone());
        let early = key.clone().lower_equal(query - self.window as i64);
        late.bool_or(early).bool_or(key.lower(first))
    }
}

#[test]
fn trains_resumes_and_has_initial_values_of_its_own() {
    let run = Run::new(SMALL);
    let registry = registry().with(Llama3::default().with_attention::<WindowAttention>("window"));
    let steps = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let prepared = prepare(&run.path("run.yaml"), &words, &registry, Some(1)).unwrap();
        train(prepared, &registry, World::alone()).unwrap()
    };
    let window = ["model.attention=window", "optimizer.lr=3e-3"];
    assert_eq!(steps(&window).steps, 20);
    let losses = run.losses();
    assert!(losses[19] < losses[0] - 0.5, "{losses:?}");

    // It resumes from its own checkpoint, bitwise.
    let straight = run.curve();
    std::fs::remove_dir_all(run.path("out/checkpoint/step-00000020")).unwrap();
    steps(&window);
    assert_eq!(run.curve(), straight);

    // It does not say what it keeps, and so the plan does not count it.
    let words = window.map(String::from);
    let prepared = prepare(&run.path("run.yaml"), &words, &registry, Some(4)).unwrap();
    let memory = plan(&prepared, 4).unwrap().memory;
    assert_eq!(memory.not_counted, ["layers.0", "layers.1"]);

    // Without the registration the name is unknown.
    let refused = run.refusal(&window);
    assert!(refused.contains("no attention module is registered as `window`"), "{refused}");
}

/// Query and output matrices of some heads, and nothing of them in its plan but what `LINES` says.
macro_rules! misplanned {
    ($name:ident, $lines:expr) => {
        #[derive(Module, Debug)]
        struct $name {
            wq: Linear,
            wo: Linear,
        }

        impl Attention for $name {
            fn new(config: &AttentionConfig, device: &Device) -> Self {
                let width = config.n_heads * config.head_dim;
                let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
                Self { wq: linear(config.dim, width), wo: linear(width, config.dim) }
            }

            fn plan(_: &AttentionConfig, _: &Device) -> Result<Vec<Line>, PlanError> {
                let lines: &[(&str, Split)] = &$lines;
                Ok(lines.iter().map(|(name, split)| (name.to_string(), *split)).collect())
            }

            fn forward(&self, x: Tensor<3>, _: &Context) -> Tensor<3> {
                self.wo.forward(self.wq.forward(x))
            }
        }
    };
}

misplanned!(Forgotten, [("wq.weight", Split::QueryHeads(1))]);
misplanned!(Doubled, [("w*.weight", Split::QueryHeads(1)), ("wo.*", Split::QueryHeads(0))]);
misplanned!(Halved, [("wq.weight", Split::QueryHeads(1)), ("wo.weight", Split::QueryHeads(2))]);

/// A model whose plan does not fit is refused before anything starts, by the parameter's name; one rank needs none.
#[test]
fn wrong_plans_are_refused_by_name() {
    let run = Run::new(SMALL);
    let family = Llama3::default()
        .with_attention::<Forgotten>("forgotten")
        .with_attention::<Doubled>("doubled")
        .with_attention::<Halved>("halved")
        .with_attention::<WindowAttention>("window");
    let registry = registry().with(family);
    let refused = |attention: &str, degree: &str, ranks: usize| {
        let attention = format!("model.attention={attention}");
        let words = [attention, format!("parallelism.{degree}={ranks}")];
        let prepared = prepare(&run.path("run.yaml"), &words, &registry, Some(ranks));
        prepared.map(|_| ()).expect_err("it is refused").to_string()
    };
    for (attention, message) in [
        ("forgotten", "`layers.0.attention.wo.weight` is matched by no line of the model's plan"),
        (
            "doubled",
            "`layers.0.attention.wo.weight` is matched by two lines of the model's plan: \
             `layers.*.attention.w*.weight` and `layers.*.attention.wo.*`",
        ),
        ("halved", "`layers.0.attention.wo.weight` has 2 dims, and the model's plan splits dim 2"),
        ("window", "`output.bias` of the attention does not depend on the heads"),
    ] {
        let found = refused(attention, "tensor_parallel_degree", 2);
        assert!(found.contains(message), "{found}");
        let words = [format!("model.attention={attention}")];
        assert!(prepare(&run.path("run.yaml"), &words, &registry, Some(1)).is_ok());
    }
    let found = refused("fused", "tensor_parallel_degree", 8);
    let message = "`layers.0.attention.wq.weight` has 4 heads, which cannot be split over 8 ranks";
    assert!(found.contains(message), "{found}");
    let found = refused("forgotten", "context_parallel_degree", 2);
    assert!(found.contains("sees only the keys of its own rank"), "{found}");
}
