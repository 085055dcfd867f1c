//! Which endpoint serves the next attempt.
//!
//! Two steps: [`choose_tier`] by priority and health, then [`pick`] among the tier's endpoints. Both see plain
//! numbers; who is eligible, and how loaded, is the registry's knowledge.

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::table::{BalancePolicy, RegionMode, RegionSpec};

/// A tier keeps all traffic while this much of it, times its health, covers the whole (Envoy's
/// overprovisioning factor).
const OVERPROVISIONING: f64 = 1.4;

/// How fast a latency peak is forgotten (linkerd2-proxy's and tower's default).
const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint is taken to need, in seconds, when none has answered yet.
const UNKNOWN_LATENCY: f64 = 0.03;

/// An endpoint that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Configured share, > 0.
    pub weight: f64,
    /// What health leaves of that share among its siblings, 0–1: halved when degraded, growing during slow start.
    pub health: f64,
    /// The same for its tier, which a degraded endpoint does not make smaller: see [`crate::standby`].
    pub capacity: f64,
    /// Share by latency and errors, 0–1; only [`BalancePolicy::DynamicWeights`] asks for it.
    pub dynamic: f64,
    /// Requests whose upstream part has not ended.
    pub in_flight: u32,
    /// See [`PeakEwma::latency`].
    pub latency: Option<f64>,
    /// Hash of the endpoint's identity, the same in every process.
    pub identity: u64,
}

/// How far `region` is from a gateway in region `own`: 0 is preferred, and higher ranks take over as lower ones lose
/// health. An endpoint without a region is near to all.
pub fn region_rank(spec: &RegionSpec, own: Option<&str>, region: Option<&str>) -> usize {
    let Some(region) = region else { return 0 };
    let named = spec.order.iter().position(|name| name == region).unwrap_or(spec.order.len());
    match (spec.mode, own) {
        (RegionMode::ActivePassive, _) => named,
        (RegionMode::ActiveActive, Some(own)) if own != region => 1 + named,
        (RegionMode::ActiveActive, _) => 0,
    }
}

/// Chooses by `policy`; `None` only if there are no candidates.
///
/// `turn` grows by one with each choice of the same set; `session` is the hash of what a client calls its
/// session, used by [`BalancePolicy::Rendezvous`] alone.
pub fn pick(
    policy: BalancePolicy,
    candidates: &[Candidate],
    turn: u64,
    session: Option<u64>,
    rng: &mut impl Rng,
) -> Option<usize> {
    match candidates.len() {
        0 => return None,
        1 => return Some(0),
        _ => {}
    }
    let all = 0..candidates.len();
    Some(match policy {
        BalancePolicy::RoundRobin if candidates.iter().all(|c| c.health >= 1.0) => {
            (turn % candidates.len() as u64) as usize
        }
        BalancePolicy::RoundRobin => in_turn(candidates, turn, |c| c.health),
        BalancePolicy::WeightedRoundRobin => in_turn(candidates, turn, share),
        BalancePolicy::DynamicWeights => in_turn(candidates, turn, |c| share(c) * c.dynamic),
        BalancePolicy::Random => by_share(candidates, rng.random(), share),
        BalancePolicy::LeastRequests => {
            let load = |i: usize| f64::from(candidates[i].in_flight + 1) / share(&candidates[i]);
            let least = all.clone().map(load).fold(f64::INFINITY, f64::min);
            // Ties are broken in turn, or the first endpoint would get all traffic of an idle service.
            let tied = all.clone().filter(|&i| load(i) <= least).count() as u64;
            all.filter(|&i| load(i) <= least).nth((turn % tied.max(1)) as usize)?
        }
        BalancePolicy::PeakEwma => {
            let first = rng.random_range(0..candidates.len());
            let second = (first + rng.random_range(1..candidates.len())) % candidates.len();
            // A newcomer is taken to be like the others: thought quick, it would be flooded; thought slow, starved.
            let known = candidates.iter().filter_map(|c| c.latency);
            let (sum, count) = known.fold((0.0, 0), |(sum, count), latency| (sum + latency, count + 1));
            let usual = if count == 0 { UNKNOWN_LATENCY } else { sum / f64::from(count) };
            let cost = |i: usize| {
                let c = &candidates[i];
                c.latency.unwrap_or(usual) * f64::from(c.in_flight + 1) / share(c)
            };
            if cost(second) < cost(first) { second } else { first }
        }
        BalancePolicy::Rendezvous => {
            let session = session.unwrap_or_else(|| rng.random());
            // Weighted rendezvous hashing: the largest -weight / ln(uniform hash) wins. Health is left out on
            // purpose: a degraded endpoint keeps its sessions, whose prefixes it has in its cache.
            let score = |i: usize| {
                let uniform = (mix(session ^ candidates[i].identity) >> 11) as f64 / (1u64 << 53) as f64;
                -candidates[i].weight / uniform.max(f64::MIN_POSITIVE).ln()
            };
            all.max_by(|&a, &b| score(a).total_cmp(&score(b)))?
        }
    })
}

fn share(candidate: &Candidate) -> f64 {
    candidate.weight * candidate.health
}

/// Weighted turns without state: the golden-ratio sequence visits every stretch of the unit interval as evenly
/// as a sequence can, so each endpoint is met in proportion to its share, and without runs.
fn in_turn(candidates: &[Candidate], turn: u64, share: impl Fn(&Candidate) -> f64) -> usize {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let position = (turn.wrapping_mul(GOLDEN) >> 11) as f64 / (1u64 << 53) as f64;
    by_share(candidates, position, share)
}

fn by_share(candidates: &[Candidate], position: f64, share: impl Fn(&Candidate) -> f64) -> usize {
    let total: f64 = candidates.iter().map(&share).sum();
    let mut left = position * total;
    for (i, candidate) in candidates.iter().enumerate() {
        left -= share(candidate);
        if left < 0.0 {
            return i;
        }
    }
    candidates.len() - 1
}

/// The finaliser of splitmix64: spreads every bit of the input over the output.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A tier of endpoints of the same priority.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tier {
    /// Sum of the configured weights.
    pub weight: f64,
    /// Sum of what health leaves of them.
    pub healthy: f64,
    /// Of the requests that reach it, how much it may take, 0–1 (see [`crate::standby`]).
    pub share: f64,
}

/// Chooses a tier; `tiers` are in order of priority and `position` is uniform in 0–1.
///
/// The first tier takes all traffic while its health × 1.4 covers it; as it loses more, the rest spills over to
/// the next (Envoy's priority levels). A share that no other tier can take is taken after all. `None` when no tier has
/// any health.
pub fn choose_tier(tiers: &[Tier], position: f64) -> Option<usize> {
    let mut open = 1.0;
    let mut taken = Vec::with_capacity(tiers.len());
    for tier in tiers {
        let takes = if tier.healthy <= 0.0 {
            0.0
        } else {
            (tier.healthy / tier.weight * OVERPROVISIONING).min(open * tier.share)
        };
        open -= takes;
        taken.push(takes);
    }
    // What is left over goes to whoever can take it, whatever its share.
    for (tier, takes) in tiers.iter().zip(&mut taken) {
        if tier.healthy > 0.0 {
            let more = (tier.healthy / tier.weight * OVERPROVISIONING - *takes).clamp(0.0, open.max(0.0));
            open -= more;
            *takes += more;
        }
    }
    let total: f64 = taken.iter().sum();
    let mut left = position * total;
    for (i, takes) in taken.iter().enumerate() {
        left -= takes;
        if *takes > 0.0 && left < 0.0 {
            return Some(i);
        }
    }
    taken.iter().rposition(|&takes| takes > 0.0)
}

/// Latency that follows a peak at once and forgets it slowly (Finagle's Peak EWMA, as in linkerd2-proxy and
/// tower). For streams the latency is the time to the first token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PeakEwma {
    /// Seconds; 0 until the first observation.
    seconds: f64,
}

impl PeakEwma {
    /// From what [`Self::seconds`] gave.
    pub fn from_seconds(seconds: f64) -> Self {
        Self { seconds }
    }

    pub fn seconds(self) -> f64 {
        self.seconds
    }

    /// Takes in a latency, `since_last` after the observation before it.
    #[must_use]
    pub fn observe(self, latency: Duration, since_last: Duration) -> Self {
        let (old, new) = (self.seconds, latency.as_secs_f64());
        let kept = if new >= old { 0.0 } else { decay(since_last) };
        Self { seconds: old * kept + new * (1.0 - kept) }
    }

    /// The estimate in seconds, `since_last` after the last observation: it fades, so that an endpoint that was
    /// slow is tried again. `None` without any observation.
    pub fn latency(self, since_last: Duration) -> Option<f64> {
        (self.seconds > 0.0).then(|| (self.seconds * decay(since_last)).max(1e-6))
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

/// Weight that follows latency and errors.
///
/// `(max(0, 1 − latency/L₀) + max(0, 1 − 10·error_rate)) / 2` with L₀ = 5 s, smoothed, and never below a floor
/// that keeps probing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicWeight(f64);

impl Default for DynamicWeight {
    fn default() -> Self {
        Self(1.0)
    }
}

impl DynamicWeight {
    const FULL_LATENCY: f64 = 5.0;
    const SMOOTHING: f64 = 0.3;
    const FLOOR: f64 = 0.05;

    /// The factor, 0.05–1.
    pub fn factor(self) -> f64 {
        self.0
    }

    /// From what [`Self::factor`] gave.
    pub fn from_factor(factor: f64) -> Self {
        Self(factor.clamp(Self::FLOOR, 1.0))
    }

    /// Takes in the mean latency and the share of failures of an interval that had requests.
    #[must_use]
    pub fn update(self, latency: Duration, error_rate: f64) -> Self {
        let by_latency = (1.0 - latency.as_secs_f64() / Self::FULL_LATENCY).max(0.0);
        let by_errors = (1.0 - 10.0 * error_rate).max(0.0);
        let target = (by_latency + by_errors) / 2.0;
        Self::from_factor(self.0 + Self::SMOOTHING * (target - self.0))
    }
}

/// The share of an endpoint `elapsed` after its recovery: from 10 % to all of it over `window`.
pub fn slow_start(elapsed: Duration, window: Duration) -> f64 {
    if elapsed >= window { 1.0 } else { (elapsed.as_secs_f64() / window.as_secs_f64()).max(0.1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const PLAIN: Candidate = Candidate {
        weight: 1.0,
        health: 1.0,
        capacity: 1.0,
        dynamic: 1.0,
        in_flight: 0,
        latency: Some(0.1),
        identity: 1,
    };

    fn shares(policy: BalancePolicy, candidates: &[Candidate]) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(7);
        let rounds = 20_000u64;
        let mut hits = vec![0.0; candidates.len()];
        for turn in 0..rounds {
            let chosen = pick(policy, candidates, turn, Some(mix(turn)), &mut rng).expect("not empty");
            hits[chosen] += 1.0 / rounds as f64;
        }
        hits
    }

    #[track_caller]
    fn check(policy: BalancePolicy, candidates: &[Candidate], expected: &[f64]) {
        for (got, want) in shares(policy, candidates).iter().zip(expected) {
            assert!((got - want).abs() < 0.015, "{policy:?}: {got} instead of {want}");
        }
    }

    #[test]
    fn near_regions_come_first() {
        let check = |mode, own: Option<&str>, expected: [usize; 4]| {
            let spec = RegionSpec { mode, order: vec!["us".to_owned(), "eu".to_owned()] };
            let ranks =
                [None, Some("eu"), Some("us"), Some("asia")].map(|region| region_rank(&spec, own, region));
            assert_eq!(ranks, expected, "{mode:?} in {own:?}");
        };
        check(RegionMode::ActiveActive, Some("eu"), [0, 0, 1, 3]);
        check(RegionMode::ActiveActive, Some("us"), [0, 2, 0, 3]);
        check(RegionMode::ActiveActive, Some("mars"), [0, 2, 1, 3]);
        check(RegionMode::ActiveActive, None, [0, 0, 0, 0]);
        check(RegionMode::ActivePassive, Some("eu"), [0, 1, 0, 2]);
        check(RegionMode::ActivePassive, None, [0, 1, 0, 2]);
    }

    #[test]
    fn shares_follow_weights_and_health() {
        let three = [
            Candidate { weight: 1.0, identity: 1, ..PLAIN },
            Candidate { weight: 2.0, identity: 2, ..PLAIN },
            Candidate { weight: 1.0, health: 0.5, identity: 3, ..PLAIN },
        ];
        let by_share = [2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0];
        check(BalancePolicy::WeightedRoundRobin, &three, &by_share);
        check(BalancePolicy::Random, &three, &by_share);
        check(BalancePolicy::RoundRobin, &three, &[0.4, 0.4, 0.2]);
        check(BalancePolicy::Rendezvous, &three, &[0.25, 0.5, 0.25]);
        let dynamic = [Candidate { dynamic: 0.25, ..PLAIN }, PLAIN];
        check(BalancePolicy::DynamicWeights, &dynamic, &[0.2, 0.8]);
        check(BalancePolicy::LeastRequests, &[PLAIN, PLAIN], &[0.5, 0.5]);
    }

    #[test]
    fn round_robin_takes_strict_turns() {
        let mut rng = StdRng::seed_from_u64(1);
        let order: Vec<_> =
            (0..6).map(|turn| pick(BalancePolicy::RoundRobin, &[PLAIN; 3], turn, None, &mut rng)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2].map(Some));
    }

    #[test]
    fn load_and_latency_are_avoided() {
        let busy = Candidate { in_flight: 9, ..PLAIN };
        let slow = Candidate { latency: Some(1.0), ..PLAIN };
        check(BalancePolicy::LeastRequests, &[busy, PLAIN], &[0.0, 1.0]);
        check(BalancePolicy::PeakEwma, &[busy, PLAIN], &[0.0, 1.0]);
        check(BalancePolicy::PeakEwma, &[slow, PLAIN], &[0.0, 1.0]);
        // Of three, two equal ones share what the slow one does not get.
        check(BalancePolicy::PeakEwma, &[slow, PLAIN, PLAIN], &[0.0, 0.5, 0.5]);
        // Nothing is known of a newcomer: it gets its share, neither all nor nothing.
        let newcomer = Candidate { latency: None, ..PLAIN };
        check(BalancePolicy::PeakEwma, &[newcomer, PLAIN], &[0.5, 0.5]);
    }

    #[test]
    fn sessions_stay_when_others_leave() {
        let mut rng = StdRng::seed_from_u64(1);
        let five: Vec<_> = (0..5).map(|i| Candidate { identity: mix(i), ..PLAIN }).collect();
        let mut moved = 0;
        for session in 0..1000 {
            let mut at = |set: &[Candidate]| {
                let i =
                    pick(BalancePolicy::Rendezvous, set, 0, Some(mix(session)), &mut rng).expect("not empty");
                set[i].identity
            };
            let before = at(&five);
            let after = at(&five[..4]);
            assert!(before == after || before == five[4].identity);
            moved += i32::from(before != after);
        }
        assert!((150..250).contains(&moved), "{moved} of 1000 moved");
    }

    #[test]
    fn tiers_spill_over() {
        let tier = |weight, healthy| Tier { weight, healthy, share: 1.0 };
        let share = |tiers: &[Tier], of: usize| {
            let hits = (0..1000).filter(|i| choose_tier(tiers, f64::from(*i) / 1000.0) == Some(of)).count();
            hits as f64 / 1000.0
        };
        assert_eq!(share(&[tier(4.0, 4.0), tier(4.0, 4.0)], 0), 1.0);
        assert_eq!(share(&[tier(4.0, 3.0), tier(4.0, 4.0)], 0), 1.0); // 75 % × 1.4 still covers all
        assert!((share(&[tier(4.0, 2.0), tier(4.0, 4.0)], 0) - 0.7).abs() < 0.002);
        assert_eq!(share(&[tier(4.0, 0.0), tier(4.0, 4.0)], 1), 1.0);
        // Nobody else can help: what is left takes everything.
        assert_eq!(share(&[tier(4.0, 1.0), tier(4.0, 0.0)], 0), 1.0);
        assert_eq!(choose_tier(&[tier(4.0, 0.0)], 0.5), None);
        let sharing = |share| Tier { share, ..tier(4.0, 4.0) };
        assert!((share(&[sharing(0.05), tier(4.0, 4.0)], 0) - 0.05).abs() < 0.002);
        assert_eq!(share(&[sharing(0.0), tier(4.0, 4.0)], 0), 0.0);
        assert_eq!(share(&[sharing(0.0), sharing(0.0), tier(4.0, 4.0)], 2), 1.0);
        assert_eq!(share(&[sharing(0.0), tier(4.0, 0.0)], 0), 1.0, "nobody else can");
        let weak = tier(4.0, 1.0);
        assert!((share(&[sharing(0.0), weak], 1) - 0.35).abs() < 0.002, "it takes what it can");
        assert!((share(&[sharing(0.05), weak], 1) - 0.35).abs() < 0.002);
        assert_eq!(share(&[sharing(0.05), tier(4.0, 3.0)], 1), 0.95);
        assert_eq!(choose_tier(&[], 0.5), None);
    }

    #[test]
    fn peaks_are_taken_at_once_and_forgotten_slowly() {
        let second = Duration::from_secs(1);
        let ewma = PeakEwma::default();
        assert_eq!(ewma.latency(second), None);
        let ewma = ewma.observe(second, second).observe(5 * second, second);
        assert!((ewma.latency(Duration::ZERO).expect("known") - 5.0).abs() < 1e-9);
        let calmer = ewma.observe(second, DECAY).latency(Duration::ZERO).expect("known");
        assert!((calmer - (1.0 + 4.0 * (-1.0f64).exp())).abs() < 1e-9);
        assert!(ewma.latency(10 * DECAY).is_some_and(|seconds| seconds < 0.001));
    }

    #[test]
    fn dynamic_weight_has_a_floor_and_returns() {
        let mut weight = DynamicWeight::default();
        for _ in 0..100 {
            weight = weight.update(Duration::from_secs(60), 1.0);
        }
        assert_eq!(weight.factor(), DynamicWeight::FLOOR);
        for _ in 0..100 {
            weight = weight.update(Duration::from_millis(500), 0.0);
        }
        assert!((weight.factor() - 0.95).abs() < 1e-6);
    }

    proptest! {
        /// Whatever the numbers, a choice is one of the candidates.
        #[test]
        fn choice_is_in_range(
            n in 1usize..9, turn: u64, seed: u64, weight in 0.001f64..1000.0, health in 0.0f64..1.0, load: u32,
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let set = vec![Candidate { weight, health, in_flight: load / 2, ..PLAIN }; n];
            for policy in [
                BalancePolicy::RoundRobin, BalancePolicy::Random, BalancePolicy::LeastRequests,
                BalancePolicy::WeightedRoundRobin, BalancePolicy::DynamicWeights, BalancePolicy::PeakEwma,
                BalancePolicy::Rendezvous,
            ] {
                prop_assert!(pick(policy, &set, turn, None, &mut rng).is_some_and(|i| i < n));
            }
        }
    }
}
