//! DeepSeek on meshes, against one rank: a dense block, then blocks of experts in groups, of which one is shared.

use burn_titan_tests::runs::{Run, random_tokens};

use crate::equal::{SAVED, assert_close, biases, curve};

/// Twelve experts in three groups, of which a token meets three of two groups; nothing else in it divides.
const DEEPSEEK: &str = "
run: {output_dir: HERE/out}
model:
  name: deepseek_v3
  overrides:
    {n_layers: 3, n_dense_layers: 1, dim: 44, n_heads: 6, q_lora_rank: 19, kv_lora_rank: 13, qk_nope_head_dim: 7,
     qk_rope_head_dim: 6, v_head_dim: 9, ffn_dim: 77, n_experts: 12, top_k: 3, expert_dim: 37, n_groups: 3,
     vocab_size: 331, sequence_balance_loss: 0.3}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 37, local_batch_size: 1, global_batch_size: 8}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

const TP2: &str = "parallelism.tensor_parallel_degree=2";
const CP2: &str = "parallelism.context_parallel_degree=2";
const PP2: &str = "parallelism.pipeline_parallel_degree=2";
const EP2: &str = "parallelism.expert_parallel_degree=2";

/// Softmax scores without groups: no number balances the choice.
const V2: [&str; 6] = [
    "model.overrides.scores=softmax",
    "model.overrides.renormalise=false",
    "model.overrides.n_groups=1",
    "model.overrides.chosen_groups=1",
    "model.overrides.load_balance_rate=0",
    "model.overrides.q_lora_rank=null",
];

fn deepseek() -> Run {
    let run = Run::new(DEEPSEEK);
    run.write("tokens.bin", &random_tokens(7, 3001, 331));
    run
}

/// The load of the busiest expert of both layers that have some, at every step.
fn loads(run: &Run) -> Vec<Vec<f64>> {
    let loads: Vec<_> = run.metrics().into_iter().map(|metrics| metrics.expert_load).collect();
    assert!(loads.iter().all(|layers| layers.len() == 2 && layers.iter().all(|load| *load >= 1.0)));
    loads
}

fn equal_one_rank(model: &[&str], cases: &[(usize, &[&str])]) {
    let one = deepseek();
    one.train(&[model, &SAVED].concat());
    let (reference, met) = (curve(&one), (loads(&one), biases(&one)));
    for (ranks, words) in cases {
        let run = deepseek();
        run.simulate(*ranks, &[model, words, &SAVED].concat());
        let name = format!("{ranks} ranks, {words:?}");
        assert_close(&name, &reference, &curve(&run));
        assert_eq!(met, (loads(&run), biases(&run)), "{name}");
    }
}

#[test]
fn every_mesh_equals_one_rank() {
    let zero_bubble = "parallelism.pipeline_parallel_schedule=zb1p";
    let full = "activation_checkpoint.mode=full";
    let cases: [(usize, &[&str]); 8] = [
        (2, &[EP2]),
        (2, &[TP2]),
        (2, &[TP2, EP2]),
        (4, &[TP2, EP2, full]),
        (4, &[EP2]),
        (4, &[PP2, EP2]),
        (4, &[PP2, EP2, zero_bubble]),
        (4, &[CP2, EP2]),
    ];
    equal_one_rank(&[], &cases);
}

#[test]
fn softmax_scores_without_balance() {
    equal_one_rank(&V2, &[(2, &[EP2]), (4, &[TP2, EP2])]);
}
