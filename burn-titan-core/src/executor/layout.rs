//! Which rank holds what of the parameters.

use std::collections::HashMap;
use std::ops::Range;

use burn_titan_parallel::placement::FlatBucket;

use crate::checkpoint::{Region, TensorError};
use crate::model::{Cut, ExpertRank, Model, ParameterRole, ParameterSpec, PlanError, TensorRank};

/// This rank among those that hold the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharding {
    /// This rank, from 0, among those that share what a rank of `tp` has.
    pub rank: usize,
    /// How many they are.
    pub ranks: usize,
    /// This rank among those that split matrix products.
    pub tensor: TensorRank,
    /// This rank among those that deal out the experts.
    pub expert: ExpertRank,
}

impl Sharding {
    /// One rank holds everything.
    pub const WHOLE: Self =
        Self { rank: 0, ranks: 1, tensor: TensorRank::ALONE, expert: ExpertRank::ALONE };

    /// The ranks that share parameters by a rule: this one, and how many they are.
    pub fn sharers(&self, sharers: Sharers) -> (usize, usize) {
        match sharers {
            Sharers::Shard => (self.rank, self.ranks),
            Sharers::ExpertShard => (self.expert.shard, self.expert.shards),
            Sharers::Nobody => (0, 1),
        }
    }
}

/// Which ranks share a parameter, after what each has of it by `tp` and `ep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharers {
    /// Those of `dp_shard` and `cp`.
    Shard,
    /// Those that have the same experts.
    ExpertShard,
    /// Every rank has all of it.
    Nobody,
}

/// How the parameters of a model lie on the ranks. Each parameter belongs to the first unit that has it. A rank of
/// `tp` and `ep` has a [`Cut`] of each; the cuts of a unit that the same ranks share are one [`FlatBucket`] there.
pub struct Layout {
    sharding: Sharding,
    units: Vec<UnitLayout>,
    /// Unit, and place in it, of each parameter.
    places: HashMap<String, (usize, usize)>,
}

/// A parameter, and what of it this rank of `tp` and `ep` has.
#[derive(Debug, Clone)]
pub struct LocalParameter {
    /// Name and shape of the whole parameter.
    pub spec: ParameterSpec,
    /// What is here.
    pub cut: Cut,
    /// Who shares that.
    pub sharers: Sharers,
    /// Whether it belongs to a unit of another stage, and this is a copy for a unit that has it too.
    pub copy: bool,
    /// Whether a unit of another stage has it too.
    pub apart: bool,
}

impl LocalParameter {
    /// Its elements here.
    pub fn elements(&self) -> usize {
        self.cut.elements()
    }

    /// Whether, of the ranks and the stages that have the same, this is the one that counts: in a norm, in a
    /// checkpoint.
    pub fn counts(&self, sharding: Sharding) -> bool {
        if self.copy || (self.sharers == Sharers::Nobody && sharding.rank > 0) {
            return false;
        }
        self.cut.holders.start == sharding.tensor.rank || self.cut.holders.len() == 1
    }

    /// These elements of the cut, row-major, as a part of the whole parameter.
    ///
    /// # Errors
    /// If the parameter's size overflows: a fault of the program.
    pub fn region(&self, range: Range<usize>) -> Result<Region, TensorError> {
        let region = Region::new(&self.cut.start, &self.cut.shape, range);
        region.map_err(|source| TensorError::Region { name: self.spec.name.clone(), source })
    }
}

/// The parameters of a unit.
pub struct UnitLayout {
    /// Those that belong to it.
    pub owned: Vec<LocalParameter>,
    /// Those that belong to an earlier unit.
    pub tied: Vec<LocalParameter>,
    /// How the owned ones are shared: a bucket for each kind of sharers that there are.
    pub buckets: Vec<Bucket>,
}

/// Parameters of a unit that the same ranks share.
pub struct Bucket {
    /// The ranks.
    pub sharers: Sharers,
    /// Places among the unit's own parameters, in order.
    pub members: Vec<usize>,
    /// Where they lie.
    pub flat: FlatBucket,
}

impl UnitLayout {
    fn new(owned: Vec<LocalParameter>, tied: Vec<LocalParameter>, sharding: Sharding) -> Self {
        let kinds = [Sharers::Shard, Sharers::ExpertShard, Sharers::Nobody];
        let buckets = kinds.into_iter().filter_map(|sharers| {
            let members = owned.iter().enumerate().filter(|(_, local)| local.sharers == sharers);
            let (members, lengths): (Vec<usize>, Vec<usize>) =
                members.map(|(place, local)| (place, local.elements())).unzip();
            let (_, ranks) = sharding.sharers(sharers);
            let flat = FlatBucket::new(lengths, ranks);
            (flat.elements() > 0).then_some(Bucket { sharers, members, flat })
        });
        let buckets = buckets.collect();
        Self { owned, tied, buckets }
    }

    /// The parameters of a bucket.
    pub fn members(&self, bucket: &Bucket) -> impl Iterator<Item = &LocalParameter> {
        bucket.members.iter().map(|place| &self.owned[*place])
    }

    /// Which elements of one of its own parameters a rank holds of those that share it.
    fn piece(&self, place: usize, rank: usize) -> Range<usize> {
        let bucket = self.buckets.iter().find_map(|bucket| {
            let member = bucket.members.iter().position(|member| *member == place)?;
            Some((bucket, member))
        });
        // A parameter without elements may be in no bucket.
        bucket.map_or(0..0, |(bucket, member)| bucket.flat.piece(member, rank))
    }

    /// Its own parameters of which several ranks of `tp` have the same part, and each a summand of the gradient: by
    /// the ranks that have it, in a fixed order.
    pub fn partial(&self) -> Vec<(Range<usize>, Vec<&LocalParameter>)> {
        let mut partial: Vec<(Range<usize>, Vec<&LocalParameter>)> = Vec::new();
        for local in self.owned.iter().filter(|local| local.cut.partial) {
            match partial.iter_mut().find(|(holders, _)| *holders == local.cut.holders) {
                Some((_, locals)) => locals.push(local),
                None => partial.push((local.cut.holders.clone(), vec![local])),
            }
        }
        partial
    }
}

impl Layout {
    /// The layout of those units of a model that this rank has (`owned`).
    ///
    /// # Errors
    /// If the model's parameters cannot be split over so many ranks of `tp`.
    pub fn new(model: &Model, sharding: Sharding, owned: &[bool]) -> Result<Self, PlanError> {
        Ok(Self::of(model, sharding, model.cuts(sharding.tensor, sharding.expert)?, owned))
    }

    fn of(model: &Model, sharding: Sharding, cuts: Vec<Cut>, has: &[bool]) -> Self {
        // The units that have each parameter, in order.
        let mut users: HashMap<String, Vec<usize>> = HashMap::new();
        for (number, unit) in model.units.iter().enumerate() {
            for spec in unit.parameters() {
                users.entry(spec.name).or_default().push(number);
            }
        }
        let local = |(spec, cut): (ParameterSpec, Cut)| {
            let users = &users[&spec.name];
            let copy = users.first().is_some_and(|unit| !has[*unit]);
            let apart = users.iter().any(|unit| !has[*unit]);
            let sharers = match (model.role)(&spec.name) {
                ParameterRole::RouterBias => Sharers::Nobody,
                ParameterRole::Expert if sharding.expert.deals() => Sharers::ExpertShard,
                _ => Sharers::Shard,
            };
            (spec.name.clone(), LocalParameter { spec, cut, sharers, copy, apart })
        };
        let specs = model.parameters().into_iter();
        let mut locals: HashMap<String, LocalParameter> = specs.zip(cuts).map(local).collect();
        let mut places = HashMap::new();
        let mut units: Vec<UnitLayout> = Vec::new();
        for (number, unit) in model.units.iter().enumerate() {
            let (mut owned, mut tied) = (Vec::new(), Vec::new());
            let parameters = if has[number] { unit.parameters() } else { vec![] };
            for ParameterSpec { name, .. } in parameters {
                match locals.remove(&name) {
                    Some(local) => {
                        places.insert(name, (number, owned.len()));
                        owned.push(local);
                    }
                    None => {
                        let (unit, place) = places[&name];
                        tied.push(units[unit].owned[place].clone());
                    }
                }
            }
            units.push(UnitLayout::new(owned, tied, sharding));
        }
        Self { sharding, units, places }
    }

    /// The layout of a model whose parameters are shared by so many ranks, and not split otherwise.
    pub fn flat(model: &Model, rank: usize, ranks: usize) -> Self {
        let cuts = model.parameters().iter().map(|spec| Cut::whole(&spec.shape)).collect();
        let owned = vec![true; model.units.len()];
        Self::of(model, Sharding { rank, ranks, ..Sharding::WHOLE }, cuts, &owned)
    }

    /// This rank among those that hold the parameters.
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// The parameters of a unit.
    pub fn unit(&self, unit: usize) -> &UnitLayout {
        &self.units[unit]
    }

    /// All parameters, each once, in the order of the units.
    pub fn parameters(&self) -> impl Iterator<Item = &LocalParameter> {
        self.units.iter().flat_map(|unit| &unit.owned)
    }

    /// What of a parameter is here of its dims, if anything is.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let (unit, place) = self.places.get(name)?;
        Some(&self.units[*unit].owned[*place].cut.shape)
    }

    /// A parameter.
    ///
    /// # Panics
    /// If the model has no such parameter, or none of it is here.
    pub fn parameter(&self, name: &str) -> &LocalParameter {
        let (unit, place) = self.places[name];
        &self.units[unit].owned[place]
    }

    /// Most ranks of `tp` that have the same part of a split parameter.
    pub fn most_holders(&self) -> usize {
        let ranks = self.sharding.tensor.ranks;
        let holders = self.parameters().map(|local| local.cut.holders.len());
        holders.filter(|holders| *holders < ranks).max().unwrap_or(1)
    }

    /// The unit that a parameter belongs to.
    ///
    /// # Panics
    /// If the model has no such parameter.
    pub fn owner(&self, name: &str) -> usize {
        self.places[name].0
    }

    /// Which elements of this rank's cut of a parameter, row-major, a rank holds of those that share it.
    ///
    /// # Panics
    /// If the model has no such parameter.
    pub fn piece(&self, name: &str, rank: usize) -> Range<usize> {
        let (unit, place) = self.places[name];
        self.units[unit].piece(place, rank)
    }

    /// Which elements of this rank's cut of a parameter, row-major, it holds itself.
    ///
    /// # Panics
    /// If the model has no such parameter.
    pub fn own_piece(&self, name: &str) -> Range<usize> {
        let (rank, _) = self.sharding.sharers(self.parameter(name).sharers);
        self.piece(name, rank)
    }

    /// How many elements of a parameter each rank holds of those that share it.
    pub fn piece_lengths(&self, name: &str) -> Vec<usize> {
        let (_, ranks) = self.sharding.sharers(self.parameter(name).sharers);
        (0..ranks).map(|rank| self.piece(name, rank).len()).collect()
    }

    /// This rank's piece of a parameter, as a part of the whole one; empty where none of it is here.
    ///
    /// # Errors
    /// If the parameter's size overflows: a fault of the program.
    pub fn region(&self, name: &str) -> Result<Region, TensorError> {
        self.parameter(name).region(self.own_piece(name))
    }
}
