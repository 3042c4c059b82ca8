//! Blocks with experts hold what is planned.

use std::sync::PoisonError;

use burn::tensor::{DType, Device};
use burn_titan_core::model::{
    AuxiliaryLosses, Context, HeadOutput, Model, ModelFamily, Sharing, Unit, Workload,
};
use burn_titan_kernels::{RouterScores, Routing};
use burn_titan_models::attention::AttentionConfig;
use burn_titan_models::block::Block;
use burn_titan_models::moe::{MixtureOfExperts, MoeConfig};
use burn_titan_models::norm::RmsNorm;
use burn_titan_models::rotary::Rotary;
use burn_titan_models::{Attention, FusedAttention, Qwen3Moe};
use burn_titan_tests::tiny;
use serde_json::json;

use super::shared::{PLAIN, Shared};
use super::units::{MEASURED, SMALL, Together, measured, said};
use super::{TURN, compared, measured_and_planned};

const QWEN3_MOE: &str = "model.name=qwen3_moe";

/// In place of the sizes of a dense model.
const SIZES: &str = "model.overrides={n_layers: 8, dim: 128, n_heads: 4, n_kv_heads: 2, head_dim: 32, n_experts: 8, \
                     top_k: 2, expert_dim: 192, vocab_size: 1024}";

/// As [`super::WIDER`].
const WIDER: [&str; 2] = [
    "model.overrides={n_layers: 6, dim: 192, n_heads: 4, n_kv_heads: 2, head_dim: 48, n_experts: 8, top_k: 2, \
     expert_dim: 288, vocab_size: 1024}",
    "training.seq_len=256",
];

const DIM: usize = 128;
const VOCABULARY: usize = 331;

fn model() -> Model {
    // Without numbers that balance: made of noise, they would make some experts busier.
    let sizes = json!({"n_layers": 2, "dim": DIM, "n_heads": 6, "n_kv_heads": 2, "head_dim": 48,
        "n_experts": 8, "top_k": 3, "expert_dim": 96, "load_balance_rate": 0.0,
        "vocab_size": VOCABULARY});
    let family = Qwen3Moe::default();
    let config = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    family.build(&config, "fused").expect("a model")
}

/// A block whose tokens also meet shared experts.
fn with_shared_experts(layer: usize) -> Box<dyn Unit> {
    let device = Device::flex();
    let norm = || RmsNorm::new(DIM, 1e-6, &device);
    let rotary = Rotary { head_dim: 32, theta: 1e4, scaling: None };
    let attention = AttentionConfig { dim: DIM, n_heads: 4, n_kv_heads: 2, head_dim: 32, rotary };
    let routing = Routing {
        top_k: 3,
        scores: RouterScores::Sigmoid,
        renormalise: true,
        scale: 2.5,
        groups: None,
    };
    let mixture = MoeConfig {
        losses: AuxiliaryLosses::default(),
        dim: DIM,
        experts: 8,
        expert_dim: 96,
        shared_dim: 192,
        routing,
        balanced: true,
        layer,
    };
    let block = Block {
        attention_norm: norm(),
        attention: FusedAttention::new(&attention, &device),
        ffn_norm: norm(),
        feed_forward: MixtureOfExperts::new(&mixture, &device),
    };
    block.unit(layer)
}

#[test]
fn blocks_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (batch, seq) = (4, 256);
    let mut model = model();
    model.units.extend([with_shared_experts(2)]);
    let tokens: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % VOCABULARY) as i64).collect();
    let rows = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
    let context = Context::new(&rows, HeadOutput::Loss, &Device::flex());
    let mut wrong = Vec::new();
    for compute in [DType::F32, DType::BF16] {
        let workload = Workload { batch, seq, compute, native: true, sharing: Sharing::ALONE };
        // The first block of each width of heads makes the tables that the others share.
        let blocks = [1, 4, 2, 4].map(|number| &*model.units[number]);
        let found = blocks.map(|block| measured(block, &context, &workload, DIM, Together::ALONE));
        for (block, found) in blocks.into_iter().zip(found).skip(2) {
            let counted = said(block, &workload);
            for (i, what) in MEASURED.into_iter().enumerate() {
                let (found, said) = (found[i], counted[i]);
                let line =
                    format!("{}, {compute:?}: {what} {found} bytes, said {said}", block.name());
                println!("{line}");
                if found > said + said / 50 + SMALL || found < said * 9 / 10 {
                    wrong.push(line);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn blocks_that_ranks_share_hold_what_they_say() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = [
        Shared { name: "tp 2", tensor: 2, ..PLAIN },
        Shared { name: "tp 2, no sp", tensor: 2, sequence: false, ..PLAIN },
        Shared { name: "cp 2", context: 2, ..PLAIN },
        Shared { name: "ep 2", experts: 2, ..PLAIN },
        Shared { name: "ep 4", experts: 4, ..PLAIN },
        Shared { name: "tp 2, ep 2", tensor: 2, experts: 2, ..PLAIN },
        Shared { name: "tp 2, no sp, ep 2", tensor: 2, sequence: false, experts: 2, ..PLAIN },
    ];
    let (model, mut wrong) = (model(), Vec::new());
    for shared in &shared {
        for compute in [DType::F32, DType::BF16] {
            wrong.extend(shared.compare(&model, [4, 512], compute));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_run_holds_what_is_planned() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is made once for the process is counted for none.
    measured_and_planned(2, &[QWEN3_MOE, SIZES]);
    let full = "activation_checkpoint.mode=full";
    let bf16 = "precision.compute=bfloat16";
    let ep2 = "parallelism.expert_parallel_degree=2";
    let tp2 = "parallelism.tensor_parallel_degree=2";
    let pipeline = [
        "parallelism.pipeline_parallel_degree=2",
        "parallelism.pipeline_parallel_schedule=zb1p",
        "training.global_batch_size=32",
    ];
    let wider = [&WIDER[..], &[tp2]].concat();
    let wider_and_dealt = [&wider[..], &[ep2]].concat();
    let cases: [(&str, usize, &[&str]); 9] = [
        ("one rank", 1, &[]),
        ("one rank, full", 1, &[full]),
        ("one rank, bfloat16", 1, &[bf16]),
        ("FSDP 2, full", 2, &[full]),
        ("FSDP 2, EP 2", 2, &[ep2]),
        ("FSDP 2, EP 2, full", 2, &[ep2, full]),
        ("TP 2", 2, &wider),
        ("TP 2, EP 2", 2, &wider_and_dealt),
        ("PP 2, zb1p", 2, &pipeline),
    ];
    let results = cases
        .map(|(name, ranks, words)| compared(name, ranks, &[&[QWEN3_MOE, SIZES], words].concat()));
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
