//! Sizes at the edge: every dim of 1, lengths that are no multiple of anything.

use burn_titan_tests::runs::{ODD_VOCABULARY, Run, random_tokens};

const CONFIG: &str = "
run: {output_dir: HERE/out}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 3}
checkpoint: {enable: false}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// `[n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size, seq_len, local_batch_size]`.
const SHAPES: [[usize; 9]; 12] = [
    [1, 1, 1, 1, 2, 1, 331, 1, 1],
    [1, 1, 1, 1, 2, 1, 331, 2, 1],
    [1, 2, 2, 1, 2, 1, 331, 1, 3],
    [3, 7, 3, 1, 2, 5, 331, 31, 1],
    [1, 17, 5, 5, 6, 3, 337, 63, 2],
    [2, 33, 2, 1, 34, 65, 331, 64, 1],
    [2, 31, 1, 1, 66, 127, 509, 65, 2],
    [1, 129, 7, 7, 18, 1, 331, 127, 1],
    [1, 64, 8, 2, 64, 255, 1021, 129, 1],
    [2, 96, 6, 2, 130, 96, 331, 257, 1],
    [4, 3, 9, 3, 4, 2, 331, 300, 3],
    [1, 256, 1, 1, 256, 31, 331, 33, 5],
];

#[test]
fn any_shape_trains_and_recomputes_to_the_same() {
    for shape in SHAPES {
        let [layers, dim, heads, kv_heads, head_dim, ffn, vocab, seq, batch] = shape;
        let words = [
            format!(
                "model.overrides={{n_layers: {layers}, dim: {dim}, n_heads: {heads}, n_kv_heads: \
                 {kv_heads}, head_dim: {head_dim}, ffn_dim: {ffn}, vocab_size: {vocab}}}"
            ),
            format!("training.seq_len={seq}"),
            format!("training.local_batch_size={batch}"),
        ];
        let words = words.each_ref().map(String::as_str);
        let curve = |further: &[&str]| {
            let run = Run::new(CONFIG);
            run.write("tokens.bin", &random_tokens(5, 4001, ODD_VOCABULARY));
            run.train(&[&words[..], further].concat());
            let uniform = (vocab as f64).ln();
            assert!(
                run.losses().iter().all(|loss| (loss / uniform - 1.0).abs() < 0.5),
                "{shape:?}"
            );
            run.curve()
        };
        let plain = curve(&[]);
        assert_eq!(plain.len(), 3);
        assert_eq!(plain, curve(&["activation_checkpoint.mode=full"]), "{shape:?}");
        curve(&["precision.compute=bfloat16", "data.pack=false"]);
    }
}
