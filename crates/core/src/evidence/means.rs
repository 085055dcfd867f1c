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
/// Relative to the mean.
const LEAST_DEVIATION: f64 = 0.1;
/// Where ratios are looked for.
const RATIOS: (f64, f64) = (1e-3, 1e3);

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

/// How many times stable's mean the canary's is, and its confidence sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub estimate: f64,
    pub low: f64,
    pub high: f64,
}

impl Sample {
    /// All values of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            sum_of_squares: self.sum_of_squares + other.sum_of_squares,
        }
    }

    /// `None` if there is no value.
    pub fn average(&self) -> Option<f64> {
        (self.count > 0).then(|| self.mean())
    }

    /// As if each value were so many times as large.
    fn times(self, factor: f64) -> Self {
        Self { sum: self.sum * factor, sum_of_squares: self.sum_of_squares * factor * factor, ..self }
    }

    /// With a deviation of at least a tenth of the mean: what was the same each time so far need not stay so, and then the
    /// interval must not be nothing.
    fn loosened(self) -> Self {
        let least =
            (1.0 + LEAST_DEVIATION * LEAST_DEVIATION) * self.sum * self.sum / (self.count.max(1) as f64);
        Self { sum_of_squares: self.sum_of_squares.max(least), ..self }
    }

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

/// The ratio of the canary's mean to stable's, from the same. `None` if there is too little.
///
/// A ratio is inside as long as the canary's values may have the mean of stable's times the ratio: so with probability
/// `1 − alpha` the true one is never outside, and any limit may be held against the interval, or several.
pub fn ratio(pairs: &[(Sample, Sample)], alpha: f64) -> Option<Ratio> {
    let at = |ratio: f64| {
        let scaled = pairs.iter().map(|(stable, canary)| (stable.loosened().times(ratio), canary.loosened()));
        difference(&scaled.collect::<Vec<_>>(), alpha)
    };
    at(1.0)?;
    let edge = |is_below: &dyn Fn(Difference) -> bool| least(|ratio| !at(ratio).is_some_and(is_below));
    let low = edge(&|it| it.low > 0.0);
    let high = edge(&|it| it.high >= 0.0);
    Some(Ratio {
        estimate: edge(&|it| it.estimate > 0.0),
        low: if low <= RATIOS.0 * (1.0 + 1e-9) { 0.0 } else { low },
        high: if high >= RATIOS.1 * (1.0 - 1e-9) { f64::INFINITY } else { high },
    })
}

/// The least ratio that is `enough`, as all above it are; the greatest if none is.
fn least(enough: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (RATIOS.0.ln(), RATIOS.1.ln());
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if enough(middle.exp()) { high = middle } else { low = middle }
    }
    high.exp()
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

    /// The values of a run: its tokens are `mean`, or `ratio` times that for the canary.
    fn pairs(seed: u64, ratio: f64) -> Vec<(Sample, Sample)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pairs = vec![(Sample::default(), Sample::default()); 2];
        for ((share, mean), (stable, canary)) in [(0.1, 200.0), (0.5, 600.0)].into_iter().zip(&mut pairs) {
            for _ in 0..5_000 {
                if rng.random::<f64>() < share {
                    canary.add(tokens(&mut rng, mean * ratio));
                } else {
                    stable.add(tokens(&mut rng, mean));
                }
            }
        }
        pairs
    }

    #[test]
    fn the_ratio_is_between_its_ends() {
        for (seed, true_ratio) in [(1, 1.0), (2, 1.3), (3, 0.5), (4, 3.0)] {
            let found = ratio(&pairs(seed, true_ratio), 0.01).unwrap();
            assert!(found.low < true_ratio && true_ratio < found.high, "{true_ratio}: {found:?}");
            assert!((found.estimate / true_ratio - 1.0).abs() < 0.1, "{true_ratio}: {found:?}");
            assert!(found.high / found.low < 1.4, "{true_ratio}: {found:?}");
        }
    }

    #[test]
    fn answers_that_are_all_alike_are_compared_too() {
        let all = |count: u64, value: f64| Sample {
            count,
            sum: count as f64 * value,
            sum_of_squares: count as f64 * value * value,
        };
        let found = ratio(&[(all(500, 3.0), all(500, 30.0))], 0.01).unwrap();
        assert!(found.low > 9.0 && found.high < 11.0 && (found.estimate - 10.0).abs() < 0.01, "{found:?}");
        assert_eq!(ratio(&[(all(500, 3.0), all(49, 30.0))], 0.01), None);
        assert_eq!(ratio(&[(all(500, 0.0), all(500, 0.0))], 0.01), None, "there is nothing to compare");
    }

    #[test]
    fn a_true_ratio_is_hardly_ever_outside() {
        // Tokens of few long answers among many short ones, looked at again and again.
        let outside = |seed: u64| {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut stable, mut canary) = (Sample::default(), Sample::default());
            (0..6_000).any(|i| {
                let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                let value = 100.0 * normal.exp();
                if rng.random::<f64>() < 0.1 {
                    canary.add(value)
                } else {
                    stable.add(value)
                }
                let pairs = [(stable, canary)];
                i % 50 == 0 && ratio(&pairs, 0.01).is_some_and(|it| it.low > 1.0 || it.high < 1.0)
            })
        };
        let wrong = (0..300).filter(|seed| outside(*seed)).count();
        assert!(wrong <= 6, "{wrong} of 300 at an error of 1 %");
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
