//! Exchanges of rows: tensors whose dims but the last are rows, in the order that they lie in memory.

use burn::tensor::Tensor;

use crate::peers::Peers;

/// The sum of the ranks' summands, for all of them.
pub(super) fn sum<const D: usize>(peers: &Peers, summand: Tensor<D>) -> Tensor<D> {
    let (shape, like) = (summand.dims(), like(&summand));
    let work = peers.communicator().all_reduce_sum(flat(summand));
    shaped(peers.settle(work, || zeros(shape.iter().product(), &like)), shape)
}

/// The ranks' rows one after the other; `rows` has the number of each rank's.
pub(super) fn gather<const D: usize, const E: usize>(
    peers: &Peers,
    own: Tensor<D>,
    rows: &[usize],
    shape: [usize; E],
) -> Tensor<E> {
    let like = like(&own);
    let lengths = lengths(rows, own.dims()[D - 1]);
    let work = peers.communicator().all_gather_floats(flat(own), &lengths);
    shaped(peers.settle(work, || zeros(shape.iter().product(), &like)), shape)
}

/// This rank's rows of the sum of the ranks' summands; `rows` has the number of each rank's.
pub(super) fn sum_own<const D: usize, const E: usize>(
    peers: &Peers,
    summand: Tensor<D>,
    rows: &[usize],
    shape: [usize; E],
) -> Tensor<E> {
    let like = like(&summand);
    let lengths = lengths(rows, summand.dims()[D - 1]);
    let work = peers.communicator().reduce_scatter_sum(flat(summand), &lengths);
    shaped(peers.settle(work, || zeros(shape.iter().product(), &like)), shape)
}

fn lengths(rows: &[usize], width: usize) -> Vec<usize> {
    rows.iter().map(|rows| rows * width).collect()
}

/// No elements, of the device and dtype of a tensor. (The tensor itself goes into the exchange, which need not copy
/// what nobody else holds.)
fn like<const D: usize>(tensor: &Tensor<D>) -> Tensor<1> {
    Tensor::empty([0], (&tensor.device(), tensor.dtype()))
}

fn zeros(length: usize, like: &Tensor<1>) -> Tensor<1> {
    Tensor::zeros([length], (&like.device(), like.dtype()))
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let elements = tensor.dims().iter().product();
    shaped(tensor, [elements])
}

/// To Burn, a 0 in a new shape stands for the old dim.
fn shaped<const D: usize, const E: usize>(tensor: Tensor<D>, shape: [usize; E]) -> Tensor<E> {
    if shape.contains(&0) {
        return Tensor::empty(shape, (&tensor.device(), tensor.dtype()));
    }
    tensor.reshape(shape)
}
