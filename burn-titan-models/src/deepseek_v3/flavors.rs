//! The sizes that were published.

use super::config::{DeepSeekV3Config, ExpertScores};
use crate::rotary::Yarn;

/// The size of that name.
pub(super) fn flavor(name: &str) -> Option<DeepSeekV3Config> {
    let v3 = v3();
    let v2 = v2();
    let config = match name {
        "debug" => DeepSeekV3Config {
            dim: 256,
            n_layers: 6,
            n_dense_layers: 1,
            n_heads: 8,
            q_lora_rank: Some(96),
            kv_lora_rank: 64,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 16,
            v_head_dim: 32,
            ffn_dim: 768,
            n_experts: 8,
            top_k: 2,
            expert_dim: 256,
            n_groups: 4,
            chosen_groups: 2,
            vocab_size: 2048,
            max_seq_len: 2048,
            ..v3
        },
        "16b" => DeepSeekV3Config {
            dim: 2048,
            n_layers: 27,
            n_heads: 16,
            q_lora_rank: None,
            ffn_dim: 10_944,
            n_experts: 64,
            expert_dim: 1408,
            route_scale: 1.0,
            sequence_balance_loss: 1e-3,
            n_groups: 1,
            chosen_groups: 1,
            rope_scaling: v2.rope_scaling.map(|yarn| Yarn {
                mscale: 0.707,
                mscale_all_dim: 0.707,
                ..yarn
            }),
            ..v2
        },
        "236b" => v2,
        "671b" => v3,
        _ => return None,
    };
    Some(config)
}

/// DeepSeek-V3. The rate is that of most of its training (section 4.2 of the report).
fn v3() -> DeepSeekV3Config {
    DeepSeekV3Config {
        dim: 7168,
        n_layers: 61,
        n_dense_layers: 3,
        n_heads: 128,
        q_lora_rank: Some(1536),
        kv_lora_rank: 512,
        qk_nope_head_dim: 128,
        qk_rope_head_dim: 64,
        v_head_dim: 128,
        ffn_dim: 18_432,
        n_experts: 256,
        top_k: 8,
        expert_dim: 2048,
        n_shared_experts: 1,
        scores: ExpertScores::Sigmoid,
        renormalise: true,
        route_scale: 2.5,
        n_groups: 8,
        chosen_groups: 4,
        load_balance_rate: 1e-3,
        sequence_balance_loss: 1e-4,
        router_z_loss: 0.0,
        vocab_size: 129_280,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: Some(Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
            original_max_position_embeddings: 4096,
        }),
        max_seq_len: 163_840,
    }
}

/// DeepSeek-V2.
fn v2() -> DeepSeekV3Config {
    DeepSeekV3Config {
        dim: 5120,
        n_layers: 60,
        n_dense_layers: 1,
        ffn_dim: 12_288,
        n_experts: 160,
        top_k: 6,
        expert_dim: 1536,
        n_shared_experts: 2,
        scores: ExpertScores::Softmax,
        renormalise: false,
        route_scale: 16.0,
        chosen_groups: 3,
        load_balance_rate: 0.0,
        sequence_balance_loss: 3e-3,
        vocab_size: 102_400,
        ..v3()
    }
}
