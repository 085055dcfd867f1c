//! Random numbers that are the same on every machine and with every version of a library.

/// xoshiro256++ of Blackman and Vigna.
pub(crate) struct Chance {
    state: [u64; 4],
    spare: Option<f64>,
}

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        let mut next = seed;
        Self { state: std::array::from_fn(|_| split_mix(&mut next)), spare: None }
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// From 0 to below 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Below `count`.
    pub(crate) fn below(&mut self, count: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u32
    }

    /// Exponential with mean 1.
    pub(crate) fn wait(&mut self) -> f64 {
        -(1.0 - self.share()).ln()
    }

    /// Normal with mean 0 and deviation 1, by Marsaglia's polar method, which makes two at a time.
    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (self.share() * 2.0 - 1.0, self.share() * 2.0 - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(y * scale);
                return x * scale;
            }
        }
    }
}

/// The seed of a run, so that neighbouring ones have nothing in common.
pub(crate) fn seed(of: u64, case: &str, run: u64) -> u64 {
    let mut next = of;
    for byte in case.bytes().map(u64::from).chain([run]) {
        next ^= byte;
        next = split_mix(&mut next);
    }
    next
}

/// SplitMix64 of Steele, Lea and Flood.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_values() {
        // The first three of xoshiro256++ from the state 1, 2, 3, 4, and of SplitMix64 from 0.
        let mut chance = Chance { state: [1, 2, 3, 4], spare: None };
        assert_eq!(
            [chance.next(), chance.next(), chance.next()],
            [41_943_041, 58_720_359, 3_588_806_011_781_223]
        );
        let mut state = 0;
        assert_eq!(split_mix(&mut state), 16_294_208_416_658_607_535);
    }

    #[test]
    fn means_and_deviations() {
        let mut chance = Chance::new(1);
        let mut moments = |of: fn(&mut Chance) -> f64| {
            let values: Vec<f64> = (0..100_000).map(|_| of(&mut chance)).collect();
            let mean = values.iter().sum::<f64>() / 1e5;
            (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5).sqrt())
        };
        let close = |(mean, deviation): (f64, f64), expected: (f64, f64)| {
            assert!(
                (mean - expected.0).abs() < 0.015 && (deviation - expected.1).abs() < 0.015,
                "{mean} {deviation}"
            );
        };
        close(moments(Chance::normal), (0.0, 1.0));
        close(moments(Chance::wait), (1.0, 1.0));
        close(moments(Chance::share), (0.5, (1.0f64 / 12.0).sqrt()));
        close(moments(|chance| f64::from(chance.below(2))), (0.5, 0.5));
    }
}
