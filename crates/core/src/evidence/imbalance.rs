//! Whether the arms get what they should.
//!
//! If the canary has clearly more or fewer units than its share, something other than chance chose them, and the arms
//! can't be compared. The counts are held against the shares by a multinomial Bayes factor (Lindon and Malek, arXiv
//! 2011.03567), which may be looked at at any time: `1 / BF` is a p-value that stays one.

use serde::{Deserialize, Serialize};

use super::process::Arms;

/// How firmly the alternative believes in the shares: small imbalances are found late, but are found.
const CONCENTRATION: f64 = 100.0;

/// Distinct units that were assigned while the canary had this share, 0–1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Assigned {
    pub share: f64,
    pub units: Arms,
}

/// The p-value of all together being assigned by their shares, valid at any time. Counts for different shares are
/// evidence of their own.
pub fn imbalance(assigned: &[Assigned]) -> f64 {
    let evidence: f64 = assigned.iter().map(log_bayes_factor).sum();
    (-evidence).exp().min(1.0)
}

fn log_bayes_factor(assigned: &Assigned) -> f64 {
    let Assigned { share, units } = *assigned;
    if share <= 0.0 || share >= 1.0 {
        return 0.0;
    }
    let (stable, canary) = (units.stable as f64, units.canary as f64);
    let prior = [CONCENTRATION * (1.0 - share), CONCENTRATION * share];
    ln_beta(prior[0] + stable, prior[1] + canary)
        - ln_beta(prior[0], prior[1])
        - stable * (1.0 - share).ln()
        - canary * share.ln()
}

pub(super) fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// ln Γ(x) for x > 0: Stirling's series, where it is as exact as an `f64`, and the recurrence to get there.
fn ln_gamma(x: f64) -> f64 {
    const LEAST: f64 = 15.0;
    let (mut x, mut product) = (x, 1.0);
    while x < LEAST {
        product *= x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - product.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(share: f64, stable: u64, canary: u64) -> f64 {
        imbalance(&[Assigned { share, units: Arms { stable, canary } }])
    }

    #[test]
    fn gamma_is_the_factorial() {
        for (x, factorial) in
            [(1.0, 1.0), (5.0, 24.0), (11.0, 3_628_800.0), (21.0, 2_432_902_008_176_640_000.0)]
        {
            assert!((ln_gamma(x) - f64::ln(factorial)).abs() < 1e-12, "{x}");
        }
        assert!((ln_gamma(0.5) - 0.5 * std::f64::consts::PI.ln()).abs() < 1e-13);
    }

    #[test]
    fn what_is_split_as_it_should_is_no_imbalance() {
        assert!(p(0.1, 0, 0) >= 1.0);
        assert!(p(0.1, 90_000, 10_000) >= 0.5);
        assert!(p(0.01, 9_910, 90) > 0.01, "one deviation off");
        assert!(p(0.0, 1000, 0) >= 1.0 && p(1.0, 0, 1000) >= 1.0, "nothing was split");
    }

    #[test]
    fn what_is_not_is_found() {
        assert!(p(0.1, 90_000, 9_000) < 0.01);
        assert!(p(0.5, 500, 700) < 0.01);
        assert!(p(0.01, 99_000, 0) < 0.01);
        // A little in each of two shares is more than in one.
        let little = |share, stable, canary| Assigned { share, units: Arms { stable, canary } };
        let (one, two) = (little(0.1, 9_000, 800), little(0.5, 5_000, 4_600));
        assert!(imbalance(&[one, two]) < imbalance(&[one]).min(imbalance(&[two])));
    }

    #[test]
    fn agrees_with_the_formula_for_a_few_units() {
        // One unit of each arm: E of p(1−p) under Beta(10, 90), against 0.1 · 0.9.
        let expected = (10.0 * 90.0) / (100.0 * 101.0) / 0.09;
        let evidence = log_bayes_factor(&Assigned { share: 0.1, units: Arms { stable: 1, canary: 1 } });
        assert!((evidence - f64::ln(expected)).abs() < 1e-12, "{evidence}");
    }
}
