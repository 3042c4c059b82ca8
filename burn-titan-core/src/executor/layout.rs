//! Which rank holds what of the parameters.

use std::collections::HashMap;
use std::ops::Range;

use burn_titan_parallel::placement::FlatBucket;

use crate::model::{Model, ParameterSpec};

/// This rank among those that share the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharding {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks that share the parameters.
    pub ranks: usize,
}

impl Sharding {
    /// One rank holds everything.
    pub const WHOLE: Self = Self { rank: 0, ranks: 1 };
}

/// How the parameters of a model lie on the ranks that share them. Each parameter belongs to the first unit
/// that has it; the parameters of a unit are one [`FlatBucket`].
pub struct Layout {
    sharding: Sharding,
    units: Vec<UnitLayout>,
    /// Unit, and place in it, of each parameter.
    places: HashMap<String, (usize, usize)>,
}

/// The parameters of a unit.
pub struct UnitLayout {
    /// Those that belong to it, in the order of the bucket.
    pub owned: Vec<ParameterSpec>,
    /// Those that belong to an earlier unit.
    pub tied: Vec<ParameterSpec>,
    /// How the owned ones are shared.
    pub bucket: FlatBucket,
}

impl Layout {
    /// The layout of a model.
    pub fn new(model: &Model, sharding: Sharding) -> Self {
        let mut places = HashMap::new();
        let mut units = Vec::new();
        for (number, unit) in model.units.iter().enumerate() {
            let (tied, owned): (Vec<_>, Vec<_>) =
                unit.parameters().into_iter().partition(|spec| places.contains_key(&spec.name));
            for (i, spec) in owned.iter().enumerate() {
                places.insert(spec.name.clone(), (number, i));
            }
            let lengths = owned.iter().map(ParameterSpec::elements);
            let bucket = FlatBucket::new(lengths, sharding.ranks);
            units.push(UnitLayout { owned, tied, bucket });
        }
        Self { sharding, units, places }
    }

    /// This rank among those that share the parameters.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The parameters of a unit.
    pub fn unit(&self, unit: usize) -> &UnitLayout {
        &self.units[unit]
    }

    /// All parameters, each once, in the order of the units.
    pub fn parameters(&self) -> impl Iterator<Item = &ParameterSpec> {
        self.units.iter().flat_map(|unit| &unit.owned)
    }

    /// The unit that a parameter belongs to.
    ///
    /// # Panics
    /// If the model has no such parameter.
    pub fn owner(&self, name: &str) -> usize {
        self.places[name].0
    }

    /// Which elements of a parameter, row-major, a rank holds.
    ///
    /// # Panics
    /// If the model has no such parameter.
    pub fn piece(&self, name: &str, rank: usize) -> Range<usize> {
        let (unit, place) = self.places[name];
        self.units[unit].bucket.piece(place, rank)
    }

    /// How many elements of a parameter each rank holds.
    pub fn piece_lengths(&self, name: &str) -> Vec<usize> {
        (0..self.sharding.ranks).map(|rank| self.piece(name, rank).len()).collect()
    }
}
