//! The test of one kind of bad event.
//!
//! After Lindon and Malek, "Anytime-valid inference for multinomial count data" (arXiv 2011.03567). A bad event that
//! came while the canary had the share `w` is one of the canary's with probability `w·θ / (w·θ + 1 − w)`, where `θ` is
//! how many times more often the canary's requests go bad than stable's. However often requests go bad, how that changes
//! with time and with the share, falls out of it: only *whose* a bad event is counts. Held against the ratio `θ₀`, the
//! likelihood ratio of any other `θ` is a martingale, or less if the truth is on the other side of `θ₀`, and so is a
//! mixture of them: it gets to `1/α` with a probability of at most `α`, ever, however often one looks (Ville).

use serde::{Deserialize, Serialize};

/// Ratios, in units of the tolerated one, that are held against it, all with the same weight.
const WORSE: [f64; 8] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];
/// Ratios, in units of the margin, that are held against it to show that the canary is below. They begin close to 1,
/// since a canary that is as good as stable is not far below the margin.
const BETTER: [f64; 8] = [0.97, 0.9, 0.8, 0.67, 0.5, 0.3, 0.1, 0.02];
/// Where ratios are looked for.
const RANGE: (f64, f64) = (1e-4, 1e4);
/// So close the other ratios may be to a tolerated one above 1.
const CLOSEST: f64 = 1.1;

/// How many there are of each arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arms {
    pub stable: u64,
    pub canary: u64,
}

impl Arms {
    pub fn total(self) -> u64 {
        self.stable + self.canary
    }

    pub(super) fn add(&mut self, other: Self) {
        self.stable += other.stable;
        self.canary += other.canary;
    }
}

/// Bad units that were assigned while the canary had this share.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) share: f64,
    pub(super) bad: Arms,
    /// What each changes.
    logs: Logs,
}

/// Evidence from one kind of bad event.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    /// By share; all else follows from it.
    pub(super) tallies: Vec<Tally>,
    /// Logarithms of the likelihood ratios of [`WORSE`].
    log: [f64; WORSE.len()],
    /// The greatest of them, or 0.
    bound: f64,
}

/// Where the ratio of the arms' rates of bad events is, with a confidence that looking at any time does not spoil.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub low: f64,
    pub high: f64,
}

impl Process {
    /// `share` is above 0 and below 1, and the tolerated ratio always the same.
    pub(super) fn add(&mut self, share: f64, tolerated: f64, bad: Arms) {
        let same = |tally: &Tally| tally.share.to_bits() == share.to_bits();
        let at = self.tallies.iter().position(same).unwrap_or_else(|| {
            self.tallies.push(Tally { share, bad: Arms::default(), logs: Logs::new(share, tolerated) });
            self.tallies.len() - 1
        });
        let tally = &mut self.tallies[at];
        tally.bad.add(bad);
        for (log, change) in self.log.iter_mut().zip(tally.logs.of(bad)) {
            *log += change;
        }
        self.bound = self.log.iter().copied().fold(0.0, f64::max);
    }

    pub(super) fn bad(&self) -> Arms {
        let mut sum = Arms::default();
        for tally in &self.tallies {
            sum.add(tally.bad);
        }
        sum
    }

    /// Logarithm of the evidence that the ratio is above the tolerated one; `open` are changes that may still come.
    pub(super) fn log_e(&self, open: &[f64; WORSE.len()]) -> f64 {
        log_mean(self.log.iter().zip(open).map(|(log, open)| log + open))
    }

    /// No evidence that is made of this one's is above it.
    pub(super) fn bound(&self) -> f64 {
        self.bound
    }

    /// Logarithm of the evidence that the ratio is below `margin`.
    pub(super) fn log_below(&self, margin: f64) -> f64 {
        log_mean(BETTER.iter().map(|factor| self.log_likelihood(margin * factor, margin)))
    }

    /// Logarithm of the evidence that the ratio is above `ratio`.
    fn log_above(&self, ratio: f64) -> f64 {
        log_mean(WORSE.iter().map(|factor| self.log_likelihood(ratio * factor, ratio)))
    }

    /// The ratios that the evidence has not ruled out, at `alpha` for each end.
    ///
    /// The likelihood is concave in the ratio's logarithm, so evidence against a ratio only grows the further away that
    /// is: both ends can be found by halving.
    pub(super) fn ratio(&self, alpha: f64) -> Range {
        let certain = -alpha.ln();
        let high = edge(|ratio| self.log_below(ratio) >= certain);
        let low = 1.0 / edge(|inverse| self.log_above(1.0 / inverse) >= certain);
        Range {
            low: if low <= RANGE.0 { 0.0 } else { low },
            high: if high >= RANGE.1 { f64::INFINITY } else { high },
        }
    }

    fn log_likelihood(&self, ratio: f64, null: f64) -> f64 {
        let of = |tally: &Tally| {
            let step = step(tally.share, ratio, null);
            step * tally.bad.total() as f64 + (ratio / null).ln() * tally.bad.canary as f64
        };
        self.tallies.iter().map(of).sum()
    }
}

/// What a bad unit changes, for each of [`WORSE`].
#[derive(Debug, Clone)]
pub(super) struct Logs {
    /// Of either arm.
    any: [f64; WORSE.len()],
    /// The canary's, in addition.
    canary: [f64; WORSE.len()],
}

impl Logs {
    /// `share` of the canary, above 0 and below 1.
    pub(super) fn new(share: f64, tolerated: f64) -> Self {
        // A ratio that is hardly more than the tolerated one, or less, would show nothing.
        let ratio = WORSE.map(|ratio| if ratio > CLOSEST * tolerated { ratio } else { ratio * tolerated });
        Self {
            any: ratio.map(|ratio| step(share, ratio, tolerated)),
            canary: ratio.map(|ratio| (ratio / tolerated).ln()),
        }
    }

    pub(super) fn of(&self, bad: Arms) -> [f64; WORSE.len()] {
        let (any, canary) = (bad.total() as f64, bad.canary as f64);
        std::array::from_fn(|i| self.any[i] * any + self.canary[i] * canary)
    }
}

/// Logarithm of what the probability that a bad unit is stable's becomes if the ratio is `ratio` instead of `null`.
fn step(share: f64, ratio: f64, null: f64) -> f64 {
    ((share * null + 1.0 - share) / (share * ratio + 1.0 - share)).ln()
}

/// The least number in [`RANGE`] that is `ruled_out`, which holds of all above it too; the greatest if none is.
fn edge(ruled_out: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (RANGE.0.ln(), RANGE.1.ln());
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if ruled_out(middle.exp()) { high = middle } else { low = middle }
    }
    high.exp()
}

/// Logarithm of the mean of numbers given by their logarithms.
fn log_mean(logs: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let count = logs.len() as f64;
    log_sum(logs) - count.ln()
}

/// Logarithm of the sum of numbers given by their logarithms.
pub(super) fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + logs.map(|log| (log - most).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(share: f64, tolerated: f64, stable: u64, canary: u64) -> Process {
        let mut process = Process::default();
        process.add(share, tolerated, Arms { stable, canary });
        process
    }

    /// The formula, written down once more without logarithms.
    fn by_definition(share: f64, tolerated: f64, stable: i32, canary: i32) -> f64 {
        let q = |ratio: f64| share * ratio / (share * ratio + 1.0 - share);
        let of = |ratio: f64| {
            (q(ratio) / q(tolerated)).powi(canary) * ((1.0 - q(ratio)) / (1.0 - q(tolerated))).powi(stable)
                / 8.0
        };
        WORSE.iter().map(|ratio| of(*ratio)).sum()
    }

    #[test]
    fn evidence_is_what_the_formula_says() {
        for (share, tolerated, stable, canary) in
            [(0.01, 1.0, 5, 3), (0.1, 1.0, 0, 0), (0.5, 1.1, 40, 60), (0.1, 1.1, 0, 7)]
        {
            let expected = by_definition(share, tolerated, stable, canary).ln();
            let e = process(share, tolerated, stable as u64, canary as u64).log_e(&[0.0; 8]);
            assert!((e - expected).abs() < 1e-10, "{e} {expected}");
        }
    }

    #[test]
    fn evidence_does_not_overflow() {
        let e = process(0.5, 1.0, 0, 1_000_000).log_e(&[0.0; 8]);
        assert!(e.is_finite() && e > 100_000.0, "{e}");
    }

    #[test]
    fn what_is_tolerated_is_no_evidence_and_what_is_worse_is() {
        // The canary is twice as bad.
        for (tolerated, certain) in [(1.0, true), (1.1, true), (1.5, true), (2.0, false), (3.0, false)] {
            let e = process(0.5, tolerated, 1000, 2000).log_e(&[0.0; 8]);
            assert_eq!(e > 100f64.ln(), certain, "{tolerated}: {e}");
        }
    }

    #[test]
    fn the_ratio_is_between_its_bounds() {
        let wide = process(0.1, 1.0, 90, 20).ratio(0.05);
        let close = process(0.1, 1.0, 9000, 2000).ratio(0.05);
        assert!(wide.low < close.low && close.low < 2.0, "{wide:?} {close:?}");
        assert!(close.high > 2.0 && close.high < 2.4 && wide.high > close.high, "{wide:?} {close:?}");
        let nothing = Process::default().ratio(0.05);
        assert_eq!((nothing.low, nothing.high), (0.0, f64::INFINITY));
    }

    #[test]
    fn below_the_margin_is_the_same_as_above_the_bound() {
        let process = process(0.5, 1.0, 500, 500);
        let high = process.ratio(0.01).high;
        assert!(process.log_below(high * 1.01) > 100f64.ln());
        assert!(process.log_below(high * 0.99) < 100f64.ln());
    }
}
