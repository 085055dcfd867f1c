//! A bounded sample of distinct units, fair to both sides of a split: those whose hashes are lowest.

use std::collections::HashSet;

/// The most units that a sample keeps, of both sides together.
pub const MOST_SAMPLED: usize = 4096;

/// Distinct units of two sides whose hashes are not above a bound that both share.
#[derive(Debug, Clone)]
pub struct Sample {
    most: usize,
    bound: u64,
    sides: [HashSet<u64>; 2],
}

impl Default for Sample {
    fn default() -> Self {
        Self::of_at_most(MOST_SAMPLED)
    }
}

impl Sample {
    /// An empty one, for so many units of both sides together.
    pub fn of_at_most(most: usize) -> Self {
        Self { most, bound: u64::MAX, sides: Default::default() }
    }

    /// Takes a unit of a side (0 or 1) in, if its hash is low enough. When there are too many, those with the higher half of the
    /// hashes go. True if it was not in yet.
    pub fn add(&mut self, side: usize, hash: u64) -> bool {
        if hash > self.bound {
            return false;
        }
        let is_new = self.sides[side].insert(hash);
        while self.sides[0].len() + self.sides[1].len() > self.most {
            self.bound /= 2;
            for side in &mut self.sides {
                side.retain(|hash| *hash <= self.bound);
            }
        }
        is_new
    }

    /// Units whose hashes are above this are not taken; it only falls.
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// Units of a side.
    pub fn len(&self, side: usize) -> usize {
        self.sides[side].len()
    }

    pub fn is_empty(&self) -> bool {
        self.sides.iter().all(HashSet::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::Assigner;

    #[test]
    fn a_sample_is_bounded_and_keeps_the_proportion() {
        let assigner = Assigner::new("r");
        let mut sample = Sample::default();
        assert!(sample.is_empty());
        // Each unit comes three times, as users do.
        for unit in (0..100_000_u32).chain(0..100_000).chain(0..100_000) {
            let place = assigner.place(&[&unit.to_le_bytes()]);
            sample.add(usize::from(place.is_within(25_000)), place.hash);
        }
        let [stable, canary] = [sample.len(0), sample.len(1)];
        assert!((MOST_SAMPLED / 3..=MOST_SAMPLED).contains(&(stable + canary)), "{stable} {canary}");
        let share = canary as f64 / (stable + canary) as f64;
        assert!((share - 0.25).abs() < 0.05, "{share}");
    }

    #[test]
    fn all_units_are_kept_while_they_are_few() {
        let mut sample = Sample::default();
        for hash in [1, 2, u64::MAX, 2] {
            sample.add(0, hash);
        }
        sample.add(1, 7);
        assert_eq!((sample.len(0), sample.len(1), sample.bound()), (3, 1, u64::MAX));
    }
}
