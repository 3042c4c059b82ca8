//! Exchanges of rows: tensors whose dims but the last are rows, in the order that they lie in memory.

use burn::tensor::Tensor;

use crate::communicator::Work;
use crate::peers::Peers;

/// An exchange under way.
pub(super) struct Rows<const D: usize> {
    work: Work<Tensor<1>>,
    peers: Peers,
    shape: [usize; D],
    /// No elements, of the device and dtype of the result. (The tensor itself goes into the exchange, which need not
    /// copy what nobody else holds.)
    like: Tensor<1>,
}

impl<const D: usize> Rows<D> {
    /// Waits for the result; zeros, if the exchange fails.
    pub(super) fn wait(self) -> Tensor<D> {
        let Self { work, peers, shape, like } = self;
        let zeros =
            || Tensor::zeros([shape.iter().product::<usize>()], (&like.device(), like.dtype()));
        shaped(peers.settle(work, zeros), shape)
    }
}

/// The sum of the ranks' summands, for all of them.
pub(super) fn sum<const D: usize>(peers: &Peers, summand: Tensor<D>) -> Rows<D> {
    let (shape, like) = (summand.dims(), like(&summand));
    let work = peers.begin(|ranks| ranks.all_reduce_sum(flat(summand)));
    Rows { work, peers: peers.clone(), shape, like }
}

/// The ranks' rows one after the other; `rows` has the number of each rank's.
pub(super) fn gather<const D: usize, const E: usize>(
    peers: &Peers,
    own: Tensor<D>,
    rows: &[usize],
    shape: [usize; E],
) -> Rows<E> {
    let like = like(&own);
    let lengths = lengths(rows, own.dims()[D - 1]);
    let work = peers.begin(|ranks| ranks.all_gather_floats(flat(own), &lengths));
    Rows { work, peers: peers.clone(), shape, like }
}

/// This rank's rows of the sum of the ranks' summands; `rows` has the number of each rank's.
pub(super) fn sum_own<const D: usize, const E: usize>(
    peers: &Peers,
    summand: Tensor<D>,
    rows: &[usize],
    shape: [usize; E],
) -> Rows<E> {
    let like = like(&summand);
    let lengths = lengths(rows, summand.dims()[D - 1]);
    let work = peers.begin(|ranks| ranks.reduce_scatter_sum(flat(summand), &lengths));
    Rows { work, peers: peers.clone(), shape, like }
}

/// Rows that every rank has already.
pub(super) fn known<const D: usize>(peers: &Peers, rows: Tensor<D>) -> Rows<D> {
    let (shape, like) = (rows.dims(), like(&rows));
    Rows { work: Work::done(flat(rows)), peers: peers.clone(), shape, like }
}

fn lengths(rows: &[usize], width: usize) -> Vec<usize> {
    rows.iter().map(|rows| rows * width).collect()
}

fn like<const D: usize>(tensor: &Tensor<D>) -> Tensor<1> {
    Tensor::empty([0], (&tensor.device(), tensor.dtype()))
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let elements = tensor.dims().iter().product();
    shaped(tensor, [elements])
}

/// To Burn, a 0 in a new shape stands for the old dim.
pub(crate) fn shaped<const D: usize, const E: usize>(
    tensor: Tensor<D>,
    shape: [usize; E],
) -> Tensor<E> {
    if shape.contains(&0) {
        return Tensor::empty(shape, (&tensor.device(), tensor.dtype()));
    }
    tensor.reshape(shape)
}
