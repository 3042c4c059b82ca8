//! Blocks of latent attention hold what they say.

use std::sync::PoisonError;

use burn::tensor::{DType, Device};
use burn_titan_core::model::{Context, HeadOutput, Sharing, Workload};
use burn_titan_models::config::ModelConfig;
use burn_titan_models::deepseek_v3::{DeepSeekV3Config, modules};
use burn_titan_tests::tiny;

use super::TURN;
use super::units::{MEASURED, SMALL, Together, measured, said};

#[test]
fn a_block_holds_what_it_says() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (dim, batch, seq) = (128, 4, 512);
    let debug = DeepSeekV3Config::flavor("debug").expect("a flavor");
    let sizes = DeepSeekV3Config {
        dim,
        n_layers: 2,
        n_dense_layers: 2,
        ffn_dim: 256,
        vocab_size: 331,
        ..debug
    };
    let unpadded = DeepSeekV3Config { v_head_dim: 48, ..sizes.clone() };
    let from_stream = DeepSeekV3Config { q_lora_rank: None, ..sizes.clone() };
    let mut wrong = Vec::new();
    for (name, sizes) in [("low", sizes), ("unpadded", unpadded), ("whole", from_stream)] {
        let model = modules::model(&sizes);
        let tokens: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % 331) as i64).collect();
        let rows = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
        let context = Context::new(&rows, HeadOutput::Loss, &Device::flex());
        for compute in [DType::F32, DType::BF16] {
            let workload = Workload { batch, seq, compute, native: true, sharing: Sharing::ALONE };
            // The first block makes what both share.
            let [_, found] = [1, 2].map(|block| {
                measured(&*model.units[block], &context, &workload, dim, Together::ALONE)
            });
            let counted = said(&*model.units[2], &workload);
            for (i, what) in MEASURED.into_iter().enumerate() {
                let (found, said) = (found[i], counted[i]);
                let ratio = found as f64 / said as f64;
                let line =
                    format!("{name}, {compute:?}: {what} {found} bytes, said {said}: {ratio:.3}");
                println!("{line}");
                if found > said + said / 50 + SMALL || found < said * 9 / 10 {
                    wrong.push(line);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
