//! What flows between units, and what every unit sees of a micro-batch.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use burn::tensor::{Device, Int, Tensor};

use crate::data::{Batch, IGNORE};

/// What flows from one unit to the next.
#[derive(Debug, Clone)]
pub enum Stream {
    /// Into the first unit: token ids `[batch, seq]`.
    Tokens(Tensor<2, Int>),
    /// Between units: hidden states `[batch, seq, dim]`.
    Hidden(Tensor<3>),
    /// Out of the last unit: the summed cross-entropy of the valid tokens in nats, `[1]` in f32.
    Loss(Tensor<1>),
    /// Out of the last unit when asked for: `[batch, seq, vocab]`.
    Logits(Tensor<3>),
}

impl Stream {
    /// The hidden states.
    ///
    /// # Panics
    /// If the stream is something else: units are in the wrong order.
    pub fn hidden(self) -> Tensor<3> {
        match self {
            Self::Hidden(hidden) => hidden,
            other => panic!("a unit expected hidden states, but got {other:?}"),
        }
    }

    /// The token ids.
    ///
    /// # Panics
    /// If the stream is something else: units are in the wrong order.
    pub fn tokens(self) -> Tensor<2, Int> {
        match self {
            Self::Tokens(tokens) => tokens,
            other => panic!("the first unit expected tokens, but got {other:?}"),
        }
    }
}

/// What the last unit returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOutput {
    /// [`Stream::Loss`].
    Loss,
    /// [`Stream::Logits`].
    Logits,
}

/// What every unit sees of a micro-batch.
pub struct Context {
    /// Token ids, `[batch, seq]`.
    pub tokens: Tensor<2, Int>,
    /// Target of each token, `[batch * seq]`, or -1 where there is none.
    pub targets: Tensor<1, Int>,
    /// The first token that each token may attend to: the start of its document, `[batch, seq]`.
    pub first_key: Tensor<2, Int>,
    /// Position of each token in its document, `[batch * seq]`, on the host.
    pub positions: Vec<u32>,
    /// What the last unit returns.
    pub head: HeadOutput,
    memo: RefCell<HashMap<String, Rc<dyn Any>>>,
}

impl Context {
    /// Puts a micro-batch on a device.
    pub fn new(batch: &Batch, head: HeadOutput, device: &Device) -> Self {
        let [rows, seq] = [batch.batch, batch.seq];
        let ints = |values: Vec<i32>| Tensor::<1, Int>::from_data(values.as_slice(), device);
        let target = |t: &u32| if *t == IGNORE { -1 } else { *t as i32 };
        let first_key = |(i, position): (usize, &u32)| (i % seq) as i32 - *position as i32;
        Self {
            tokens: ints(batch.tokens.iter().map(|t| *t as i32).collect()).reshape([rows, seq]),
            targets: ints(batch.targets.iter().map(target).collect()),
            first_key: ints(batch.positions.iter().enumerate().map(first_key).collect())
                .reshape([rows, seq]),
            positions: batch.positions.clone(),
            head,
            memo: RefCell::default(),
        }
    }

    /// A value that all units of the micro-batch share, made by the first that asks for it.
    pub fn shared<T: Clone + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> T {
        if let Some(value) = self.memo.borrow().get(key).and_then(|v| v.downcast_ref::<T>()) {
            return value.clone();
        }
        let value = make();
        self.memo.borrow_mut().insert(key.to_string(), Rc::new(value.clone()));
        value
    }
}
