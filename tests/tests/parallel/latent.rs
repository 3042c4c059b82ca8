//! Latent attention against one rank: heads are split, what they are made of is not.

use burn_titan_tests::runs::{Run, random_tokens};

use crate::equal::{assert_close, curve};

/// Three heads of odd widths, with YaRN.
const ODD: &str = "
run: {output_dir: HERE/out}
model:
  name: deepseek_v3
  overrides:
    {n_layers: 2, n_dense_layers: 2, dim: 44, n_heads: 3, q_lora_rank: 19, kv_lora_rank: 13, qk_nope_head_dim: 7,
     qk_rope_head_dim: 6, v_head_dim: 9, ffn_dim: 77, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 129, global_batch_size: 4, local_batch_size: 2}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

const TP2: &str = "parallelism.tensor_parallel_degree=2";
const TP3: &str = "parallelism.tensor_parallel_degree=3";
const NO_SP: &str = "parallelism.enable_sequence_parallel=false";
const CP2: &str = "parallelism.context_parallel_degree=2";
const GATHER: &str = "parallelism.context_parallel_method=all_gather";
const PP2: &str = "parallelism.pipeline_parallel_degree=2";

const CASES: [(&str, usize, &[&str]); 7] = [
    ("tp 2", 2, &[TP2]),
    ("tp 3, no sp", 3, &[TP3, NO_SP]),
    ("cp 2", 2, &[CP2]),
    ("cp 2, gathered", 2, &[CP2, GATHER]),
    ("fsdp 2 x tp 2", 4, &[TP2]),
    ("tp 2 x cp 2", 4, &[TP2, CP2]),
    ("pp 2", 2, &[PP2]),
];

fn odd() -> Run {
    let run = Run::new(ODD);
    run.write("tokens.bin", &random_tokens(7, 3001, 331));
    run
}

#[test]
fn odd_sizes() {
    for queries in ["model.overrides.q_lora_rank=19", "model.overrides.q_lora_rank=null"] {
        let one = odd();
        one.train(&[queries]);
        let reference = curve(&one);
        for (name, ranks, words) in CASES {
            let run = odd();
            run.simulate(ranks, &[&[queries], words].concat());
            assert_close(&format!("{name}, {queries}"), &reference, &curve(&run));
        }
    }
}
