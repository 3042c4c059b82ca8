//! bfloat16 computes close to float32, from f32 master weights.

use burn_titan_core::checkpoint::HostDtype;
use burn_titan_tests::runs::{Run, SMALL, tensor_file};

#[test]
fn bf16_follows_f32_and_keeps_f32_masters() {
    let [single, half] = [Run::new(SMALL), Run::new(SMALL)];
    single.train(&[]);
    half.train(&["precision.compute=bfloat16"]);
    let differences: Vec<f64> =
        single.losses().iter().zip(half.losses()).map(|(a, b)| (a - b).abs()).collect();
    let largest = differences.iter().copied().fold(0.0, f64::max);
    println!("largest difference of 20 losses: {largest:.1e}");
    assert_eq!(differences.len(), 20);
    assert!(largest < 2e-2, "{differences:?}");
    // bf16 was really used.
    assert!(differences.iter().all(|difference| *difference > 0.0), "{differences:?}");
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let path = half.path(&format!("out/checkpoint/step-00000020/{name}"));
        let file = tensor_file(&path);
        assert!(file.names().count() >= 21);
        for tensor in file.names() {
            let view = file.view(tensor).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(view.dtype, HostDtype::F32, "{tensor}");
        }
    }
    // The masters hold more than bf16 can: some of their lower 16 bits are set.
    let bytes = half.checkpoint_file(20, "model.safetensors");
    assert!(bytes[bytes.len() - 4096..].chunks_exact(4).any(|word| word[..2] != [0, 0]));
}
