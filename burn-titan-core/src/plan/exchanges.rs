//! What units exchange in the middle of their computation.

use burn_titan_parallel::check::{Exchanges, Operation, Scope};
use burn_titan_parallel::context_parallel::{ContextParallel, Method, Transfer};
use burn_titan_parallel::host::{Element, Kind};
use burn_titan_parallel::placement::shard_range;

use crate::model::{Sharing, Site, Workload};

/// What the first rank of `tp` and of `cp` exchanges, for each kind of site.
pub(super) struct SiteExchanges {
    pub(super) workload: Workload,
    pub(super) method: Method,
    pub(super) compute: Element,
}

impl SiteExchanges {
    /// What a unit with these sites exchanges.
    pub(super) fn of(&self, sites: &[Site]) -> Exchanges {
        let mut all = Exchanges::default();
        for site in sites {
            let Exchanges { forward, backward } = self.site(site);
            all.forward.extend(forward);
            // Backwards, the last site comes first.
            all.backward.splice(0..0, backward);
        }
        all
    }

    fn site(&self, site: &Site) -> Exchanges {
        let (tokens, own) = (self.workload.tokens(), self.workload.stream_tokens());
        let stream = |dim: usize| (tokens * dim, own * dim);
        match *site {
            Site::Enter { dim } => self.enter(stream(dim)),
            Site::Leave { dim } | Site::Embedding { dim } => self.leave(stream(dim)),
            Site::ByToken { dim } => self.by_token(dim),
            Site::Output { dim } => self.output(dim, stream(dim)),
            Site::Experts { dim, experts, top_k, balance } => {
                self.experts(dim, [experts, top_k], balance)
            }
            Site::Attention { key_heads, head_dim } => self.attention(key_heads, head_dim),
        }
    }

    fn sharing(&self) -> &Sharing {
        &self.workload.sharing
    }

    fn tensor(&self, kind: Kind, (count, own): (usize, usize), element: Element) -> Operation {
        Operation { scope: Scope::Tensor, kind, unit: None, count, own, element }
    }

    fn enter(&self, stream: (usize, usize)) -> Exchanges {
        let of = |kind| vec![self.tensor(kind, stream, self.compute)];
        match self.sharing().tensor.sequence {
            true => Exchanges { forward: of(Kind::AllGather), backward: of(Kind::ReduceScatter) },
            false => Exchanges { forward: vec![], backward: of(Kind::AllReduce) },
        }
    }

    fn leave(&self, stream: (usize, usize)) -> Exchanges {
        let Exchanges { forward, backward } = self.enter(stream);
        Exchanges { forward: backward, backward: forward }
    }

    /// Every chunk enters, and every chunk leaves.
    fn by_token(&self, dim: usize) -> Exchanges {
        let Sharing { tensor, chunks, .. } = *self.sharing();
        let tokens = self.workload.tokens();
        let shares: Vec<usize> = match tensor.sequence {
            true => (0..tensor.ranks)
                .map(|rank| shard_range(tokens, tensor.ranks, rank).len())
                .collect(),
            false => vec![tokens],
        };
        let chunks = chunks.min(shares[0]).max(1);
        let streams = (0..chunks).map(|chunk| {
            let own: Vec<usize> =
                shares.iter().map(|share| shard_range(*share, chunks, chunk).len() * dim).collect();
            (own.iter().sum(), own[0])
        });
        let mut all = Exchanges::default();
        for (enter, leave) in streams.map(|stream| (self.enter(stream), self.leave(stream))) {
            all.forward.extend(enter.forward.into_iter().chain(leave.forward));
            all.backward.extend(leave.backward.into_iter().chain(enter.backward));
        }
        all
    }

    /// How many rows go to which rank is seen only in the run: here, equally many to each.
    fn experts(&self, dim: usize, [experts, top_k]: [usize; 2], balance: bool) -> Exchanges {
        let Sharing { tensor, expert_ranks: ranks, .. } = *self.sharing();
        let tokens = self.workload.tokens();
        let stream = (tokens * dim, self.workload.stream_tokens() * dim);
        let (enter, leave) = (self.enter(stream), self.leave(stream));
        let around = |forward: Vec<Operation>, backward: Vec<Operation>| Exchanges {
            forward: [enter.forward.clone(), forward, leave.forward.clone()].concat(),
            backward: [leave.backward.clone(), backward, enter.backward.clone()].concat(),
        };
        let loads = if balance { self.loads(experts) } else { vec![] };
        if ranks == 1 {
            let chosen = (tokens * top_k, tokens * top_k);
            let chosen =
                (tensor.ranks > 1).then(|| self.tensor(Kind::Broadcast, chosen, Element::I32));
            return around(chosen.into_iter().chain(loads).collect(), vec![]);
        }
        // Every rank of `tp` routes tokens of its own.
        let own = shard_range(tokens, tensor.ranks, 0).len() * dim * top_k;
        let operation = |kind, count, own, element| Operation {
            scope: Scope::Expert,
            kind,
            unit: None,
            count,
            own,
            element,
        };
        let counts = operation(Kind::AllGather, ranks * experts, experts, Element::I32);
        let rows = operation(Kind::AllToAll, ranks * own, own, self.compute);
        let forward = [vec![counts, rows, rows], loads].concat();
        match tensor.sequence {
            true => Exchanges { forward, backward: vec![rows; 2] },
            false => around(forward, vec![rows; 2]),
        }
    }

    /// The loads of each sequence's experts, where ranks have parts of it.
    fn loads(&self, experts: usize) -> Vec<Operation> {
        let Sharing { tensor, expert_ranks, sequences, .. } = self.sharing();
        let count = self.workload.batch * experts;
        let sum = |scope| Operation {
            scope,
            kind: Kind::AllReduce,
            unit: None,
            count,
            own: count,
            element: Element::F32,
        };
        let context = sequences.is_some().then(|| sum(Scope::Context));
        let tensor = (*expert_ranks > 1 && tensor.ranks > 1).then(|| sum(Scope::Tensor));
        context.into_iter().chain(tensor).collect()
    }

    fn output(&self, dim: usize, stream: (usize, usize)) -> Exchanges {
        let Sharing { tensor, loss, vocabulary, .. } = *self.sharing();
        let ranks = tensor.ranks;
        if loss {
            // Of each token, a log-sum-exp and a logit of every rank.
            let tokens = self.workload.tokens();
            let statistics = (2 * tokens * ranks, 2 * tokens);
            let mut all = self.enter(stream);
            all.forward.push(self.tensor(Kind::AllGather, statistics, Element::F32));
            return all;
        }
        let words = shard_range(vocabulary, ranks, 0).len();
        let weight = (dim * vocabulary, dim * words);
        let gather = self.tensor(Kind::AllGather, weight, self.compute);
        match tensor.sequence {
            true => Exchanges {
                forward: vec![gather, self.tensor(Kind::AllReduce, (1, 1), Element::F32)],
                backward: vec![self.tensor(Kind::ReduceScatter, weight, self.compute)],
            },
            false => Exchanges { forward: vec![gather], backward: vec![] },
        }
    }

    fn attention(&self, key_heads: usize, head_dim: usize) -> Exchanges {
        let Some(shards) = &self.sharing().sequences else { return Exchanges::default() };
        let exchanges = ContextParallel::exchanges(
            self.method,
            shards,
            0,
            self.workload.batch,
            key_heads,
            head_dim,
            self.compute,
        );
        let operation = |exchange: burn_titan_parallel::context_parallel::Exchange| {
            let own = match exchange.transfer {
                Transfer::Send(_) => exchange.count,
                Transfer::Receive(_) => 0,
                Transfer::AllGather(own) | Transfer::ReduceScatter(own) => own,
            };
            Operation {
                scope: Scope::Context,
                kind: exchange.kind(),
                unit: None,
                count: exchange.count,
                own,
                element: exchange.element,
            }
        };
        Exchanges {
            forward: exchanges.forward.into_iter().map(operation).collect(),
            backward: exchanges.backward.into_iter().map(operation).collect(),
        }
    }
}
