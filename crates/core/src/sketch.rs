//! Quantiles of positive numbers in bounded memory: counts in buckets that grow by a constant factor, so that the relative
//! error is bounded (Masson, Rim and Lee, DDSketch, VLDB 2019).
//!
//! Only the arithmetic is here; whoever counts keeps the counts, with atomics or without.

/// Largest relative error of a quantile within the range.
pub const ERROR: f64 = 0.02;
/// Buckets of a sketch.
pub const SLOTS: usize = 420;
/// Numbers below this one, in seconds, count as this one.
const LEAST: f64 = 1e-4;
/// By which each bucket is larger than the one before it.
const GROWTH: f64 = (1.0 + ERROR) / (1.0 - ERROR);

/// The bucket of a number. Those beyond the last, at 1,900 times a second, count there.
pub fn slot(number: f64) -> usize {
    let steps = (number / LEAST).ln() / GROWTH.ln();
    // Of NaN and what is below the range this is 0.
    (steps.ceil().max(0.0) as usize).min(SLOTS - 1)
}

/// The number that stands for a bucket.
pub fn number(slot: usize) -> f64 {
    LEAST * GROWTH.powi(slot as i32) * 2.0 / (GROWTH + 1.0)
}

/// The number that a share `q`, 0–1, of all is not above; 0 if there are none.
pub fn quantile(counts: &[u64], q: f64) -> f64 {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return 0.0;
    }
    let rank = ((all as f64 * q).ceil() as u64).clamp(1, all);
    let mut below = 0;
    let at = counts.iter().position(|count| {
        below += count;
        below >= rank
    });
    at.map_or(0.0, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(numbers: &mut [f64]) {
        let mut counts = vec![0; SLOTS];
        for number in &*numbers {
            counts[slot(*number)] += 1;
        }
        numbers.sort_by(f64::total_cmp);
        for q in [0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0] {
            let rank = ((numbers.len() as f64 * q).ceil() as usize).max(1);
            let (exact, found) = (numbers[rank - 1], quantile(&counts, q));
            assert!((found / exact - 1.0).abs() <= ERROR + 1e-9, "{q}: {found} for {exact}");
        }
    }

    #[test]
    fn quantiles_are_within_two_percent() {
        check(&mut (1..=10_000).map(|i| f64::from(i) / 1000.0).collect::<Vec<_>>());
        check(&mut (0..1000).map(|i| 1e-4 * 1.0155_f64.powi(i)).collect::<Vec<_>>());
        check(&mut [0.25]);
        check(&mut [0.001, 900.0]);
    }

    #[test]
    fn what_is_out_of_range_counts_at_its_end() {
        assert_eq!(quantile(&[0; SLOTS], 0.5), 0.0);
        assert_eq!([slot(0.0), slot(-1.0), slot(f64::NAN), slot(1e-9)], [0; 4]);
        assert_eq!([slot(f64::INFINITY), slot(1e9)], [SLOTS - 1; 2]);
        assert!(number(SLOTS - 1) > 1500.0);
    }
}
