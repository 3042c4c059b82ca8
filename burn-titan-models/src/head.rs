//! The last unit of a model: norm, output matrix and loss.
//!
//! The output matrix's product and the loss are one operation, so that the logits of all tokens are never held at once.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::Device;
use burn_titan_core::model::{
    Activations, Context, ModuleUnit, Site, Stream, Unit, UnitModule, Workload,
};
use burn_titan_kernels::cross_entropy::logits_held;

use crate::norm::RmsNorm;
use crate::tape::{Tape, single};

/// Final norm, output matrix, loss.
#[derive(Module, Debug)]
pub struct Head {
    norm: RmsNorm,
    output: Linear,
}

/// The same where the output matrix is the embedding's.
#[derive(Module, Debug)]
pub struct TiedHead {
    norm: RmsNorm,
    tok_embeddings: Embedding,
}

/// The unit for `vocab` words, behind a norm of width `dim`; `tied` if its matrix is the embedding's. Allocates nothing.
pub fn unit(norm: RmsNorm, vocab: usize, tied: bool, device: &Device) -> Box<dyn Unit> {
    let [dim] = norm.weight.lazy_shape().dims();
    if tied {
        let tok_embeddings = EmbeddingConfig::new(vocab, dim).init(device);
        ModuleUnit::boxed("head", "", TiedHead { norm, tok_embeddings })
    } else {
        let output = LinearConfig::new(dim, vocab).with_bias(false).init(device);
        ModuleUnit::boxed("head", "", Head { norm, output })
    }
}

impl UnitModule for Head {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        context.output(self.norm.forward(input.hidden()), self.output.weight.val())
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [dim, words] = self.output.weight.lazy_shape().dims();
        Some(activations(&HeadSizes { words, dim, tied: false }, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [dim, _] = self.output.weight.lazy_shape().dims();
        Some(vec![Site::Output { dim }])
    }
}

impl UnitModule for TiedHead {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        let weight = self.tok_embeddings.weight.val().transpose();
        context.output(self.norm.forward(input.hidden()), weight)
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [words, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(activations(&HeadSizes { words, dim, tied: true }, workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [_, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(vec![Site::Output { dim }])
    }
}

/// The sizes of the last unit.
struct HeadSizes {
    /// Words of this rank.
    words: usize,
    dim: usize,
    /// Whether the output matrix is the embedding's.
    tied: bool,
}

fn activations(sizes: &HeadSizes, workload: &Workload) -> Activations {
    let (plain, kept, backward) = if workload.sharing.splits_products() && workload.sharing.loss {
        let [plain, kept] = [false, true].map(|keep| loss_by_words(sizes, workload, keep));
        (plain, kept, loss_by_words_backward(sizes, workload))
    } else {
        let [plain, kept] = [false, true].map(|keep| whole_loss(sizes, workload, keep));
        (plain, kept, whole_loss_backward(sizes, workload))
    };
    Activations {
        output: 0,
        graph: kept.live(),
        forward: kept.most() - kept.live(),
        plain_forward: plain.most(),
        backward: backward.most(),
        put_off: 0,
        shared: 0,
    }
}

/// The loss of this rank's tokens of the stream, over all words.
fn whole_loss(sizes: &HeadSizes, workload: &Workload, keep: bool) -> Tape {
    let HeadSizes { words, dim, .. } = *sizes;
    let mut tape = Tape::new(workload);
    let hidden = tape.stream(dim);
    let (vocabulary, gathered) = whole_vocabulary(sizes, workload);
    let weight = vocabulary * dim;
    tape.kernel(hidden, [hidden]); // the norm
    if gathered {
        tape.hold(words * dim); // with words before columns
        tape.exchange(words * dim, weight, 0);
    }
    let logits = single(logits_held(workload.stream_tokens(), vocabulary));
    let copies = tape.copy(hidden + weight);
    if keep {
        // With the loss come the gradients of the norm's output and of the matrix, which are kept.
        let gradients = workload.bytes(hidden + weight);
        let sums = if workload.native { single(hidden + weight) } else { gradients };
        tape.pass_bytes(sums + logits + copies);
        tape.pass_bytes(gradients + copies);
        tape.hold_bytes(gradients);
    } else {
        tape.pass_bytes(logits + copies);
    }
    tape.free(hidden);
    if gathered {
        tape.free(weight);
    }
    tape
}

fn whole_loss_backward(sizes: &HeadSizes, workload: &Workload) -> Tape {
    let HeadSizes { words, dim, tied } = *sizes;
    let mut tape = Tape::new(workload);
    let hidden = tape.stream(dim);
    let (vocabulary, gathered) = whole_vocabulary(sizes, workload);
    if gathered && tape.cuts_stream() {
        tape.pass_bytes(workload.bytes(vocabulary * dim)); // with words before columns
        tape.exchange(vocabulary * dim, words * dim, 0);
    }
    tape.kernel(2 * hidden, [hidden, dim]); // the norm's input and weight
    tape.free(hidden); // its output's gradient, which the graph had kept
    if gathered || tied {
        tape.pass_bytes(workload.bytes(words * dim)); // the matrix's gradient is put in the order of the parameter
    }
    tape
}

/// How many words' logits a loss over all words takes, and whether ranks gather the matrix for it.
fn whole_vocabulary(sizes: &HeadSizes, workload: &Workload) -> (usize, bool) {
    let gathered = workload.sharing.splits_products();
    (if gathered { workload.sharing.vocabulary } else { sizes.words }, gathered)
}

/// The loss of all tokens, out of what the words of each rank say about them.
fn loss_by_words(sizes: &HeadSizes, workload: &Workload, keep: bool) -> Tape {
    let HeadSizes { words, dim, .. } = *sizes;
    let mut tape = Tape::new(workload);
    let (stream, inside) = (tape.stream(dim), tape.inside(dim));
    tape.kernel(stream, [stream]); // the norm
    tape.enter(dim);
    let tokens = workload.tokens();
    let logits = single(logits_held(tokens, words));
    tape.pass_bytes(logits + tape.copy(inside + words * dim));
    // A log-sum-exp and a target logit of each token, from every rank.
    tape.pass_bytes(single(2 * tokens * (workload.sharing.tensor.ranks + 1)));
    if keep {
        tape.hold_bytes(single(tokens));
    } else {
        tape.free(inside);
    }
    tape
}

/// The logits are computed again, and the gradients with them.
fn loss_by_words_backward(sizes: &HeadSizes, workload: &Workload) -> Tape {
    let HeadSizes { words, dim, tied } = *sizes;
    let mut tape = Tape::new(workload);
    let (stream, inside, weight) = (tape.stream(dim), tape.inside(dim), words * dim);
    let gradients = workload.bytes(inside + weight);
    let sums = if workload.native { single(inside + weight) } else { gradients };
    let copies = tape.copy(inside + weight);
    tape.pass_bytes(sums + single(logits_held(workload.tokens(), words)) + copies);
    tape.pass_bytes(gradients + copies);
    tape.hold_bytes(gradients);
    tape.free(inside); // what the graph had kept
    tape.enter_backward(dim);
    tape.kernel(2 * stream, [stream, dim]); // the norm's input and weight
    tape.free(stream);
    if tied {
        tape.pass_bytes(workload.bytes(weight)); // the matrix's gradient is transposed
    }
    tape
}
