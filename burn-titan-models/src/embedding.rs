//! The first unit of a model: token ids to hidden states.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::Device;
use burn_titan_core::model::{
    Activations, Context, ModuleUnit, Site, Stream, Unit, UnitModule, Workload,
};

use crate::tape::Tape;

/// Rows of a matrix, picked by token ids.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    tok_embeddings: Embedding,
}

/// The unit for `vocab` words, of hidden states of width `dim`. Allocates nothing.
pub fn unit(vocab: usize, dim: usize, device: &Device) -> Box<dyn Unit> {
    let tok_embeddings = EmbeddingConfig::new(vocab, dim).init(device);
    ModuleUnit::boxed("tok_embeddings", "", TokenEmbedding { tok_embeddings })
}

impl UnitModule for TokenEmbedding {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        Stream::Hidden(context.embedding(self.tok_embeddings.weight.val(), input.tokens()))
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [vocab, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        let plain = forward(dim, workload, false);
        let kept = forward(dim, workload, true);
        let output = workload.bytes(workload.stream_tokens() * dim);
        Some(Activations {
            output,
            graph: kept.live() - output,
            forward: kept.most() - kept.live(),
            plain_forward: plain.most() - output,
            backward: backward(vocab, dim, workload).most(),
            put_off: 0,
            shared: 0,
        })
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [_, dim] = self.tok_embeddings.weight.lazy_shape().dims();
        Some(vec![Site::Embedding { dim }])
    }
}

fn forward(dim: usize, workload: &Workload, keep: bool) -> Tape {
    let mut tape = Tape::new(workload);
    tape.hold(tape.inside(dim));
    if workload.native && !keep {
        tape.pass_bytes(8 * workload.tokens() as u64); // token ids in 64 bits
    }
    tape.leave(dim);
    tape
}

fn backward(vocab: usize, dim: usize, workload: &Workload) -> Tape {
    let mut tape = Tape::new(workload);
    // Burn starts every backward from ones.
    tape.pass_bytes(workload.bytes(tape.stream(dim)));
    tape.leave_backward(dim, false);
    tape.hold(vocab * dim);
    tape.pass_bytes(tape.copy(workload.tokens() * dim));
    tape
}
