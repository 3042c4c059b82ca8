//! A rank that goes through the first step alone changes nothing of the run.

use burn_titan_tests::runs::Run;

const REHEARSE: &str = "debug.rehearse=true";

#[test]
fn a_rehearsed_run_is_the_same() {
    let tp2 = "parallelism.tensor_parallel_degree=2";
    let cp2 = "parallelism.context_parallel_degree=2";
    let pp2 = "parallelism.pipeline_parallel_degree=2";
    let ep2 = "parallelism.expert_parallel_degree=2";
    let gather = "parallelism.context_parallel_method=all_gather";
    let full = "activation_checkpoint.mode=full";
    let zero_bubble = "parallelism.pipeline_parallel_schedule=zb1p";
    let experts = "model={name: qwen3_moe, overrides: {n_layers: 2, dim: 20, n_heads: 4, n_kv_heads: 2, head_dim: 6, \
                   n_experts: 6, top_k: 2, expert_dim: 9, vocab_size: 331, sequence_balance_loss: 0.1}}";
    let cases: [(usize, &[&str]); 9] = [
        (3, &[full, "training.global_batch_size=18"]),
        (4, &["parallelism.data_parallel_replicate_degree=2"]),
        (2, &["comm.quantize=all"]),
        (2, &[tp2]),
        (2, &[tp2, "parallelism.enable_sequence_parallel=false"]),
        (4, &[tp2, cp2, "model.overrides.tie_embeddings=true"]),
        (2, &[cp2, gather]),
        (2, &[pp2, zero_bubble]),
        (4, &[experts, tp2, ep2]),
    ];
    for (ranks, words) in cases {
        let curve = |more: &[&str]| {
            let run = Run::odd();
            run.simulate(ranks, &[&["training.steps=3"], words, more].concat());
            run.curve()
        };
        assert_eq!(curve(&[]), curve(&[REHEARSE]), "{ranks} ranks, {words:?}");
    }
}
