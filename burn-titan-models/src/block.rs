//! A pre-norm block: `x += attention(norm(x))`, `x += feed_forward(norm(x))`.
//!
//! What the two add is a [`Sublayer`] each: every [`Attention`] is one, and every kind of feed-forward.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;
use burn_titan_core::model::{
    Activations, Context, ModuleUnit, Site, Stream, Unit, UnitModule, Workload, parameter_elements,
};

use crate::attention::Attention;
use crate::norm::RmsNorm;
use crate::tape::Tape;

/// What a block adds to the residual stream (a sub-layer of Vaswani et al., 2017).
///
/// The last five methods are for `burn-titan plan`, and allocate nothing; what they give is `None` if the sub-layer
/// does not know. `dim` is the width of the residual stream.
pub trait Sublayer: Module + ModuleDisplay + Sync + 'static {
    /// The summand, out of the normalised stream: both are hidden states of the residual stream. The exchanges of the
    /// ranks that split its products are among its operations, as [`Context::site`] puts them there.
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3>;

    /// Where it meets other ranks, in the order of the forward.
    fn sites(&self, dim: usize) -> Option<Vec<Site>>;

    /// Counts its forward. It finds what it takes, and leaves what it gives; with `keep` also what its graph keeps,
    /// and otherwise not what it took.
    fn hold_forward(&self, tape: &mut Tape, dim: usize, keep: bool) -> Option<()>;

    /// Counts its backward. It finds the gradient of what it gave, which the residual has too, and what its graph
    /// kept; it leaves the gradients of its parameters and of what it took.
    fn hold_backward(&self, tape: &mut Tape, dim: usize) -> Option<()>;

    /// Bytes that the first block makes and the others use.
    fn shared(&self, workload: &Workload) -> Option<u64>;

    /// Bytes that wait for the gradients of its weights, where these are put off: what each product reads, and the
    /// gradient of what it makes. 0 if its backward cannot be split.
    fn put_off(&self, dim: usize, workload: &Workload) -> Option<u64>;
}

/// A block: attention and feed-forward, each with its norm and its residual.
#[derive(Module, Debug)]
pub struct Block<A: Sublayer, F: Sublayer> {
    /// Before the attention, `[dim]`.
    pub attention_norm: RmsNorm,
    /// Mixes the tokens.
    pub attention: A,
    /// Before the feed-forward, `[dim]`.
    pub ffn_norm: RmsNorm,
    /// Treats every token alone.
    pub feed_forward: F,
}

impl<A: Sublayer, F: Sublayer> Block<A, F> {
    /// The unit `layers.<index>`.
    pub fn unit(self, index: usize) -> Box<dyn Unit> {
        let name = format!("layers.{index}");
        ModuleUnit::boxed(&name, &name, self)
    }

    fn dim(&self) -> usize {
        let [dim] = self.attention_norm.weight.lazy_shape().dims();
        dim
    }

    /// The graph keeps the two norms' outputs, as what their sub-layers took, and the sum before the second norm, whose
    /// memory is that of the attention's output. Additions keep nothing; a weight is kept by its unit.
    fn hold_forward(&self, workload: &Workload, keep: bool) -> Option<Tape> {
        let dim = self.dim();
        let mut tape = Tape::new(workload);
        let stream = tape.stream(dim);
        tape.kernel(stream, [stream]); // the first norm
        self.attention.hold_forward(&mut tape, dim, keep)?; // the residual is added to it in place
        tape.kernel(stream, [stream]); // the second norm
        self.feed_forward.hold_forward(&mut tape, dim, keep)?; // and here
        if !keep {
            tape.free(stream); // the sum before the second norm
        }
        Some(tape)
    }

    fn hold_backward(&self, workload: &Workload) -> Option<Tape> {
        let dim = self.dim();
        let mut tape = Tape::new(workload);
        let stream = tape.stream(dim);
        // Burn starts every backward from ones.
        tape.pass_bytes(workload.bytes(stream));
        self.feed_forward.hold_backward(&mut tape, dim)?;
        tape.kernel(2 * stream, [stream, dim]); // the second norm's input and weight
        tape.free(3 * stream); // added to the residual's gradient; the norm's input; its output's gradient
        self.attention.hold_backward(&mut tape, dim)?;
        tape.kernel(2 * stream, [stream, dim]); // the first norm's input and weight
        tape.free(2 * stream); // added to the residual's gradient; its output's gradient
        Some(tape)
    }
}

impl<A: Sublayer, F: Sublayer> UnitModule for Block<A, F> {
    fn forward(&self, input: Stream, context: &Context) -> Stream {
        let x = input.hidden();
        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward(normed, context);
        let normed = self.ffn_norm.forward(x.clone());
        let x = x + self.feed_forward.forward(normed, context);
        Stream::Hidden(x)
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let output = workload.bytes(workload.stream_tokens() * self.dim());
        let kept = self.hold_forward(workload, true)?;
        let plain = self.hold_forward(workload, false)?;
        Some(Activations {
            output,
            graph: kept.live() - output,
            forward: kept.most() - kept.live(),
            plain_forward: plain.most() - plain.live(),
            backward: self.hold_backward(workload)?.most(),
            put_off: self.attention.put_off(self.dim(), workload)?
                + self.feed_forward.put_off(self.dim(), workload)?,
            shared: self.attention.shared(workload)? + self.feed_forward.shared(workload)?,
        })
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let dim = self.dim();
        Some([self.attention.sites(dim)?, self.feed_forward.sites(dim)?].concat())
    }
}

impl<A: Attention> Sublayer for A {
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        context.site(x, |x| Attention::forward(self, x, context))
    }

    fn sites(&self, dim: usize) -> Option<Vec<Site>> {
        let (enter, leave) = (Site::Enter { dim }, Site::Leave { dim });
        Some([&[enter], Attention::sites(self)?.as_slice(), &[leave]].concat())
    }

    fn hold_forward(&self, tape: &mut Tape, dim: usize, keep: bool) -> Option<()> {
        attention_forward(tape, &self.activations(tape.workload())?, dim, keep);
        Some(())
    }

    fn hold_backward(&self, tape: &mut Tape, dim: usize) -> Option<()> {
        let activations = self.activations(tape.workload())?;
        attention_backward(tape, &activations, parameter_elements(self), dim);
        Some(())
    }

    fn shared(&self, workload: &Workload) -> Option<u64> {
        Some(self.activations(workload)?.shared)
    }

    fn put_off(&self, _: usize, workload: &Workload) -> Option<u64> {
        Some(self.activations(workload)?.put_off)
    }
}

/// The forward of a site that takes so much.
pub(crate) fn attention_forward(tape: &mut Tape, attention: &Activations, dim: usize, keep: bool) {
    let inside = tape.inside(dim);
    tape.enter(dim);
    if keep {
        tape.hold_bytes(attention.graph);
        tape.pass_bytes(attention.output + attention.forward);
    } else {
        tape.pass_bytes(attention.output + attention.plain_forward);
        tape.free(inside); // the norm's output
    }
    tape.hold_bytes(attention.output);
    tape.leave(dim);
}

/// Its backward, which leaves the gradients of so many elements of parameters.
pub(crate) fn attention_backward(
    tape: &mut Tape,
    attention: &Activations,
    parameters: usize,
    dim: usize,
) {
    let inside = tape.inside(dim);
    tape.leave_backward(dim, true);
    tape.pass_bytes(attention.backward);
    tape.gradient_used(inside);
    tape.hold(parameters + inside); // the gradients of its parameters and its input
    tape.free_bytes(attention.graph);
    tape.free(inside); // its input
    tape.enter_backward(dim);
}
