//! What the kernels hold at their peak on flex, counted by the process's allocator. One test, whose
//! parts run one after another: what runs beside it would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::tensor::{Device, Int, Tensor};
use burn_titan_kernels::cross_entropy::{CHUNK_ELEMENTS, linear_cross_entropy};
use burn_titan_kernels::{AttentionMask, Scores, attention, inject_gradient};

/// The system's allocator, counting bytes in use and their peak.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    PEAK.fetch_max(IN_USE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to `System` unchanged; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    // Not by `alloc`, which would clear pages that are clear: large buffers must stay cheap.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` returns, and the bytes in use at its peak above those before it.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

/// For packed blocks of matrix products, statistics of rows, and the graph.
const SLACK: usize = 8 << 20;

#[test]
fn peaks() {
    loss_of_a_large_vocabulary_holds_one_chunk();
    attention_of_a_long_sequence_holds_no_scores();
}

/// Llama 3's vocabulary: all logits would be 359 MB, and so would be their gradients.
fn loss_of_a_large_vocabulary_holds_one_chunk() {
    let (tokens, dim, vocab) = (700, 32, 128_256);
    let device = Device::flex().autodiff();
    let hidden = Tensor::<2>::ones([tokens, dim], &device).require_grad();
    let weight = Tensor::<2>::full([dim, vocab], 0.01, &device).require_grad();
    let targets: Vec<i64> = (0..tokens as i64).map(|i| i * 183).collect();
    let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &device);
    let ((loss, gradients), peak) = peak_of(|| {
        let loss = linear_cross_entropy(hidden.clone(), weight.clone(), targets);
        let mut gradients = (loss.clone() * 0.5).backward();
        let hidden = hidden.grad_remove(&mut gradients).expect("a gradient");
        (loss, [hidden, weight.grad_remove(&mut gradients).expect("a gradient")])
    });
    let loss = loss.into_scalar::<f32>();
    let want = tokens as f32 * (vocab as f32).ln();
    assert!((loss / want - 1.0).abs() < 1e-5, "{loss} instead of {want}");
    assert_eq!(gradients.map(|x| x.dims()), [[tokens, dim], [dim, vocab]]);

    let gradients = 4 * (tokens * dim + dim * vocab);
    let chunk = 4 * CHUNK_ELEMENTS;
    println!("peak {peak} bytes: gradients {gradients}, chunk {chunk}");
    assert!(peak < gradients + chunk + SLACK, "{peak} bytes");
}

/// The scores of one head would be 268 MB; query, key, value and output are 16.8 MB, and so are their
/// gradients. All of it, and what the kernel needs, stays below four times the former.
fn attention_of_a_long_sequence_holds_no_scores() {
    let [batch, heads, seq, head_dim] = [1, 2, 8192, 64];
    let device = Device::flex().autodiff();
    let x = |value: f32| Tensor::<4>::full([batch, heads, seq, head_dim], value, &device);
    let leaves = [x(0.1).require_grad(), x(0.2).require_grad(), x(0.3).require_grad()];
    let gradient = x(0.4).inner();
    let mask = AttentionMask::causal(batch, seq, &Device::flex());
    let (gradients, peak) = peak_of(|| {
        let [q, k, v] = leaves.clone();
        let output = attention(q, k, v, &mask, Scores::scaled(head_dim)).output;
        let mut gradients = inject_gradient(output.clone(), gradient).backward();
        let gradients = leaves.map(|x| x.grad_remove(&mut gradients).expect("a gradient"));
        (output, gradients)
    });
    assert_eq!(gradients.1.map(|x| x.dims()), [[batch, heads, seq, head_dim]; 3]);

    // Query, key, value and the output's gradient were there before.
    let tensor = 4 * batch * heads * seq * head_dim;
    let peak = peak + 4 * tensor;
    println!("peak {peak} bytes; query, key, value and output {}", 4 * tensor);
    assert!(peak < 4 * 4 * tensor, "{peak} bytes");
}
