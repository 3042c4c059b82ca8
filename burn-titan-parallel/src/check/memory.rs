//! Bytes that are alive, by what they are for.

use std::cell::RefCell;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::rc::Rc;

use serde::Serialize;

use crate::program::Action;

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// This rank's shards of the parameters, in f32.
    pub parameters: u64,
    /// The optimizer's state of these shards.
    pub optimizer_state: u64,
    /// Gradients in f32: whole ones that are not reduced, and shards that are.
    pub gradients: u64,
    /// Full parameters in the compute dtype, on their way or in use.
    pub gathered: u64,
    /// Inputs, outputs and graphs that are kept.
    pub activations: u64,
    /// Shards and gradients in the buckets that go between ranks, and messages on their way.
    pub buckets: u64,
    /// What is held while an action runs.
    pub working: u64,
}

impl Memory {
    /// All bytes.
    pub fn total(&self) -> u64 {
        self.each().map(|(_, bytes)| bytes).sum()
    }

    /// The bytes of each purpose, with its name.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("parameters", self.parameters),
            ("optimizer state", self.optimizer_state),
            ("gradients", self.gradients),
            ("gathered parameters", self.gathered),
            ("activations", self.activations),
            ("buckets", self.buckets),
            ("working memory", self.working),
        ]
        .into_iter()
    }

    fn map2(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            parameters: f(self.parameters, other.parameters),
            optimizer_state: f(self.optimizer_state, other.optimizer_state),
            gradients: f(self.gradients, other.gradients),
            gathered: f(self.gathered, other.gathered),
            activations: f(self.activations, other.activations),
            buckets: f(self.buckets, other.buckets),
            working: f(self.working, other.working),
        }
    }
}

impl AddAssign for Memory {
    fn add_assign(&mut self, other: Self) {
        *self = self.map2(other, u64::add);
    }
}

impl SubAssign for Memory {
    fn sub_assign(&mut self, other: Self) {
        *self = self.map2(other, u64::sub);
    }
}

/// The memory of a rank over a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// When most bytes are alive on the device.
    pub peak: Moment,
    /// The most of each purpose on the device; not all at one time.
    pub most: Memory,
    /// The most of each purpose in the host's memory, where parameters rest there.
    pub host: Memory,
}

/// What is alive while an action runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Position of the action.
    pub index: usize,
    /// The action.
    pub action: Action,
    /// Bytes that are alive.
    pub memory: Memory,
}

/// What is alive, and when most was.
#[derive(Clone)]
pub(super) struct Meter(Rc<RefCell<Readings>>);

struct Readings {
    /// The action that runs.
    at: (usize, Action),
    device: Place,
    host: Place,
    peak: Moment,
}

#[derive(Default)]
struct Place {
    live: Memory,
    most: Memory,
}

/// Bytes that are alive as long as the value is.
pub(super) struct Held {
    pub(super) memory: Memory,
    on_host: bool,
    meter: Meter,
}

/// A tensor, or several: whoever clones it holds it too.
pub(super) type Tensor = Rc<Held>;

impl Meter {
    /// Nothing is alive before this action, the first.
    pub(super) fn new(first: Action) -> Self {
        let peak = Moment { index: 0, action: first, memory: Memory::default() };
        let (device, host) = (Place::default(), Place::default());
        Self(Rc::new(RefCell::new(Readings { at: (0, first), device, host, peak })))
    }

    /// An action begins.
    pub(super) fn begin(&self, index: usize, action: Action) {
        self.0.borrow_mut().at = (index, action);
    }

    /// Holds bytes, on the device or in the host's memory.
    pub(super) fn hold(&self, memory: Memory, on_host: bool) -> Tensor {
        let mut readings = self.0.borrow_mut();
        let place = readings.place(on_host);
        place.live += memory;
        place.most = place.most.map2(place.live, u64::max);
        let live = readings.device.live;
        if live.total() > readings.peak.memory.total() {
            let (index, action) = readings.at;
            readings.peak = Moment { index, action, memory: live };
        }
        drop(readings);
        Rc::new(Held { memory, on_host, meter: self.clone() })
    }

    /// All that was alive so far.
    pub(super) fn footprint(&self) -> Footprint {
        let Readings { peak, device, host, .. } = &*self.0.borrow();
        Footprint { peak: peak.clone(), most: device.most, host: host.most }
    }
}

impl Readings {
    fn place(&mut self, on_host: bool) -> &mut Place {
        if on_host { &mut self.host } else { &mut self.device }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.0.borrow_mut().place(self.on_host).live -= self.memory;
    }
}
