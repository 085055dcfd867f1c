//! The endpoint of a version that a request goes to.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use backstop_core::balance::{self, Candidate};
use smallvec::SmallVec;

use super::{Target, Tier, Version, Wish};
use crate::discovery::Linked;
use crate::endpoint::{Endpoint, Lease};

impl Version {
    /// Whether its endpoints are still being looked for.
    pub(crate) fn is_pending(&self) -> bool {
        self.targets.is_empty() && self.looks_for_more()
    }

    /// Whether there may be further endpoints in a moment.
    pub(crate) fn looks_for_more(&self) -> bool {
        self.names.iter().any(Linked::is_pending)
    }

    /// One turn a request: were each attempt to take one, a bad endpoint could come first for every request.
    pub(crate) fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Relaxed)
    }

    /// Starts an attempt on the best endpoint that is not among `without`.
    ///
    /// With no eligible endpoint left, those kept out only by passive evidence (breaker, ejection, back-pressure)
    /// or not checked yet are used rather than none; those that fail active checks never are.
    pub(crate) fn lease(&self, without: &[Arc<Endpoint>], wish: Wish, now: Instant) -> Option<Lease> {
        let open = |target: &&Target| !without.iter().any(|other| Arc::ptr_eq(other, &target.endpoint));
        // A breaker may let only one request through; whoever comes second chooses again.
        for _ in 0..=self.targets.len() {
            let Some(chosen) = self.choose(open, |endpoint| endpoint.is_eligible(now), wish, now) else {
                break;
            };
            if let Some(lease) = chosen.lease(wish.kind, now) {
                return Some(lease);
            }
        }
        self.choose(open, Endpoint::may_serve, wish, now).map(|endpoint| endpoint.lease_regardless(wish.kind))
    }

    pub(crate) fn has(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.targets.iter().any(|target| Arc::ptr_eq(&target.endpoint, endpoint))
    }

    /// Whether an endpoint that is not among `without` could take a request now.
    pub(crate) fn has_another(&self, without: &[Arc<Endpoint>], now: Instant) -> bool {
        let is_other = |target: &&Target| !without.iter().any(|it| Arc::ptr_eq(it, &target.endpoint));
        self.targets.iter().filter(is_other).any(|target| target.endpoint.is_eligible(now))
    }

    fn choose(
        &self,
        fresh: impl Fn(&&Target) -> bool,
        admits: impl Fn(&Endpoint) -> bool,
        wish: Wish,
        now: Instant,
    ) -> Option<&Arc<Endpoint>> {
        let rng = &mut rand::rng();
        // On the stack for as many endpoints as versions usually have.
        let mut open: SmallVec<[&Target; 8]> = SmallVec::new();
        let mut candidates: SmallVec<[Candidate; 8]> = SmallVec::new();
        let mut tiers: SmallVec<[(usize, balance::Tier); 2]> = SmallVec::new();
        for target in self.targets.iter().filter(&fresh) {
            if tiers.last().is_none_or(|(tier, _)| *tier != target.tier) {
                let share = self.tiers.get(target.tier).map_or(1.0, Tier::share);
                tiers.push((target.tier, balance::Tier { weight: 0.0, healthy: 0.0, share }));
            }
            let Some((_, tier)) = tiers.last_mut() else { continue };
            tier.weight += target.weight;
            if admits(&target.endpoint) {
                let candidate = target.endpoint.candidate(target.weight, wish.kind, now);
                tier.healthy += target.weight * candidate.capacity;
                open.push(target);
                candidates.push(candidate);
            }
        }
        let chosen = match tiers.as_slice() {
            [] => return None,
            [(tier, _)] => *tier,
            several => {
                let levels: SmallVec<[balance::Tier; 4]> = several.iter().map(|(_, tier)| *tier).collect();
                several[balance::choose_tier(&levels, rand::RngExt::random(rng))?].0
            }
        };
        // Endpoints of a tier are next to each other.
        let first = open.iter().take_while(|target| target.tier != chosen).count();
        let among = open[first..].iter().take_while(|target| target.tier == chosen).count();
        let candidates = &candidates[first..first + among];
        let chosen = balance::pick(self.balance, candidates, wish.turn, Some(wish.session), rng)?;
        Some(&open[first + chosen].endpoint)
    }
}
