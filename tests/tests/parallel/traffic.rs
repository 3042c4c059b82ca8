//! What `plan` says that ranks send is what they send.

use std::sync::Arc;
use std::time::Duration;

use burn_titan_core::plan::plan;
use burn_titan_core::trainer::prepare;
use burn_titan_parallel::World;
use burn_titan_parallel::host::{Counted, LocalLinks};
use burn_titan_tests::runs::Run;

/// Bytes that the first of `ranks` ranks sends in a run of so many steps.
fn sent(ranks: usize, steps: usize, words: &[&str]) -> u64 {
    let links: Vec<_> =
        LocalLinks::world(ranks).into_iter().map(|links| Arc::new(Counted::new(links))).collect();
    let timeout = Duration::from_secs(120);
    let worlds = links.iter().map(|links| World::over(links.clone(), timeout)).collect();
    let steps = format!("training.steps={steps}");
    let words = [words, &[steps.as_str(), "checkpoint.enable=false"]].concat();
    Run::odd().try_train_on(worlds, &words).unwrap_or_else(|error| panic!("{error}"));
    links[0].sent()
}

#[test]
fn ranks_send_what_is_planned() {
    let full = "activation_checkpoint.mode=full";
    let (tp2, cp2) =
        ("parallelism.tensor_parallel_degree=2", "parallelism.context_parallel_degree=2");
    let no_sp = "parallelism.enable_sequence_parallel=false";
    let no_loss = "parallelism.enable_loss_parallel=false";
    let gather = "parallelism.context_parallel_method=all_gather";
    let tied = "model.overrides.tie_embeddings=true";
    let chunks = "parallelism.async_tensor_parallel_chunks=3";
    let (ep2, ep4) =
        ("parallelism.expert_parallel_degree=2", "parallelism.expert_parallel_degree=4");
    // Every token meets every expert: it does not hang on the router how much goes where.
    let experts = "model={name: qwen3_moe, overrides: {n_layers: 2, dim: 20, n_heads: 4, n_kv_heads: 2, head_dim: 6, \
        n_experts: 4, top_k: 4, expert_dim: 9, vocab_size: 331, sequence_balance_loss: 0.1}}";
    let shared = "model={name: deepseek_v3, overrides: {n_layers: 2, dim: 20, n_heads: 4, q_lora_rank: 7, kv_lora_rank: 5, \
        n_experts: 4, top_k: 4, n_groups: 1, chosen_groups: 1, expert_dim: 9, ffn_dim: 21, vocab_size: 331}}";
    // So that all ranks of `tp` and of `cp` route as many tokens as the first.
    let even = "training.seq_len=128";
    let cases: [(usize, &[&str]); 29] = [
        (2, &[experts, ep2]),
        (4, &[experts, ep2, full]),
        (4, &[experts, tp2, ep4, even]),
        (4, &[experts, tp2, no_sp, ep2, even]),
        (2, &[experts, tp2]),
        (4, &[experts, cp2, ep4, even]),
        (2, &[experts, cp2, "precision.compute=bfloat16"]),
        (4, &[shared, tp2, ep2, even]),
        (4, &[]),
        (3, &["training.global_batch_size=18", full]),
        (2, &["precision.compute=bfloat16", "precision.reduce=bfloat16"]),
        (4, &["parallelism.data_parallel_replicate_degree=2", full]),
        (4, &["parallelism.data_parallel_replicate_degree=4"]),
        (2, &[tied]),
        (3, &["comm.quantize=all"]),
        (4, &["comm.quantize=gradients", "parallelism.data_parallel_replicate_degree=2"]),
        (2, &[tp2]),
        (2, &[tp2, no_sp, full]),
        (2, &[tp2, chunks]),
        (3, &["parallelism.tensor_parallel_degree=3", no_sp, chunks]),
        (2, &[tp2, no_loss, tied]),
        (2, &[tp2, no_sp, no_loss]),
        (5, &["parallelism.tensor_parallel_degree=5", "precision.compute=bfloat16"]),
        (2, &[cp2]),
        (4, &["parallelism.context_parallel_degree=4", full]),
        (3, &["parallelism.context_parallel_degree=3", gather]),
        (4, &[tp2, cp2]),
        (8, &[tp2, cp2, "training.global_batch_size=6", full]),
        (8, &[tp2, "parallelism.data_parallel_replicate_degree=2"]),
    ];
    for (ranks, words) in cases {
        let run = Run::odd();
        let owned: Vec<String> = words.iter().map(ToString::to_string).collect();
        let registry = burn_titan_models::registry();
        let prepared = prepare(&run.path("run.yaml"), &owned, &registry, Some(ranks))
            .unwrap_or_else(|error| panic!("{error}"));
        let planned = plan(&prepared, ranks).unwrap_or_else(|error| panic!("{error}")).sent;
        let planned: u64 = planned.iter().map(|along| along.bytes).sum();
        let step = sent(ranks, 4, words) - sent(ranks, 3, words);
        // Beside the program, ranks tell each other a few counts.
        let counts = step.checked_sub(planned);
        assert!(
            counts.is_some_and(|counts| counts < 1024),
            "{ranks} ranks, {words:?}: {step} bytes, planned {planned}"
        );
    }
}
