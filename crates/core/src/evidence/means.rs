//! The difference of two means, of tokens or cost for example, with a confidence that looking at any time does not spoil.
//!
//! The boundary is the two-sided normal mixture of Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric,
//! nonasymptotic confidence sequences" (2021). The variances are estimated, which makes it an asymptotic confidence
//! sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
//! confidence sequences", 2024): so small samples say nothing.
//!
//! While the canary's share stays the same, whatever changes with the time of day changes both arms. When it does not, it
//! would be taken for a difference; so samples of different shares are compared apart, and the differences are combined by
//! how exact they are.

use serde::{Deserialize, Serialize};

/// Fewer values of an arm say nothing.
const FEWEST: u64 = 50;
/// The interval is narrowest when it is made of so many values.
const EXPECTED: f64 = 1000.0;

/// Values of one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
}

/// What the canary's mean is more than stable's, and its confidence sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub estimate: f64,
    pub low: f64,
    pub high: f64,
}

impl Sample {
    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// Of the mean.
    fn variance(&self) -> f64 {
        let count = self.count as f64;
        ((self.sum_of_squares - self.sum * self.mean()) / (count - 1.0)).max(0.0) / count
    }
}

/// The difference of the canary's mean from stable's, from pairs of stable's and the canary's values, one pair for each
/// share. `None` if there is too little, or no value differs from another.
pub fn difference(pairs: &[(Sample, Sample)], alpha: f64) -> Option<Difference> {
    let (mut information, mut score, mut values) = (0.0, 0.0, 0.0);
    for (stable, canary) in pairs {
        let variance = stable.variance() + canary.variance();
        if stable.count.min(canary.count) < FEWEST || variance <= 0.0 {
            continue;
        }
        information += 1.0 / variance;
        score += (canary.mean() - stable.mean()) / variance;
        values += 1.0 / (1.0 / stable.count as f64 + 1.0 / canary.count as f64);
    }
    if values <= 0.0 {
        return None;
    }
    // In units in which a value has the variance 1, as many as there are have been added up.
    let deviation = (values / information).sqrt();
    let half = deviation * normal_mixture_bound(values, alpha, EXPECTED, alpha) / values;
    let estimate = score / information;
    Some(Difference { estimate, low: estimate - half, high: estimate + half })
}

/// What the sum of centred values never leaves, in either direction, with probability `1 − alpha`, when their variances add up
/// to `v`. It is tightest at `v_opt` for `alpha_opt`.
pub(super) fn normal_mixture_bound(v: f64, alpha: f64, v_opt: f64, alpha_opt: f64) -> f64 {
    let certain = -2.0 * alpha_opt.ln();
    let rho = v_opt / (certain + certain.ln_1p());
    ((v + rho) * ((v / rho).ln_1p() - 2.0 * alpha.ln())).sqrt()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    impl Sample {
        fn add(&mut self, value: f64) {
            self.count += 1;
            self.sum += value;
            self.sum_of_squares += value * value;
        }
    }

    /// Tokens of answers: far from normal.
    fn tokens(rng: &mut StdRng, mean: f64) -> f64 {
        -mean * (1.0 - rng.random::<f64>()).ln()
    }

    /// Whether the interval ever excludes no difference, looked at after each thousandth part; and the last one. The
    /// load of the day changes both arms between two steps.
    fn run(seed: u64, ratio: f64) -> (bool, Difference) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut pairs, mut ever, mut last) = (Vec::new(), false, None);
        for (share, mean) in [(0.1, 200.0), (0.5, 600.0)] {
            pairs.push((Sample::default(), Sample::default()));
            for i in 0..10_000 {
                let (stable, canary) = pairs.last_mut().expect("was just pushed");
                if rng.random::<f64>() < share {
                    canary.add(tokens(&mut rng, mean * ratio));
                } else {
                    stable.add(tokens(&mut rng, mean));
                }
                if i % 20 == 0 {
                    last = difference(&pairs, 0.05);
                    ever |= last.is_some_and(|it| it.low > 0.0 || it.high < 0.0);
                }
            }
        }
        (ever, last.expect("there is enough"))
    }

    #[test]
    fn two_alike_are_not_told_apart_though_load_and_share_change_together() {
        let wrong = (0..200).filter(|seed| run(*seed, 1.0).0).count();
        assert!(wrong <= 10, "{wrong} of 200 at an error of 5 %");
    }

    #[test]
    fn a_difference_is_found_and_is_inside() {
        let (found, last) = run(1, 1.3);
        assert!(found && last.low > 0.0, "{last:?}");
        // 30 % of 200 and of 600, the former being more exact.
        assert!(last.low < 100.0 && last.high > 60.0, "{last:?}");
    }

    #[test]
    fn too_little_says_nothing() {
        let same = Sample { count: 100, sum: 500.0, sum_of_squares: 2500.0 };
        let few = Sample { count: 10, sum: 50.0, sum_of_squares: 500.0 };
        for pair in [(same, same), (few, few), (Sample::default(), Sample::default())] {
            assert_eq!(difference(&[pair], 0.05), None, "{pair:?}");
        }
        assert_eq!(difference(&[], 0.05), None);
    }
}
