//! Who gets which version while a service is split: by nothing but the release's salt and the unit, so that every
//! gateway comes to the same answer, before and after a restart.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Units fall into so many buckets; a split gives the first few of them to the canary.
pub const BUCKETS: u32 = 100_000;

/// Where the units of one release are.
#[derive(Clone)]
pub struct Assigner {
    /// Has taken the salt in, which is half of the work.
    keyed: Hmac<Sha256>,
}

/// What is known of a unit in one release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Below [`BUCKETS`].
    pub bucket: u32,
    /// The unit's name in reports. It says nothing about the bucket, so that a sample of the units by their hashes is fair to
    /// both sides of a split.
    pub hash: u64,
}

impl Assigner {
    #[expect(clippy::missing_panics_doc, reason = "a key of any length will do")]
    pub fn new(salt: &str) -> Self {
        Self { keyed: Hmac::new_from_slice(salt.as_bytes()).expect("a key of any length will do") }
    }

    /// The place of the unit that is made of these parts, of which no two units have the same.
    pub fn place(&self, parts: &[&[u8]]) -> Place {
        let mut hash = self.keyed.clone();
        for part in parts {
            // With its length, or `ab` and `c` would be `a` and `bc`.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into_bytes().into();
        let (mut first, mut last) = ([0; 16], [0; 8]);
        first.copy_from_slice(&digest[..16]);
        last.copy_from_slice(&digest[24..]);
        // Of so many values the remainder favours no bucket by more than one in 10³³.
        let bucket = u128::from_le_bytes(first) % u128::from(BUCKETS);
        Place { bucket: bucket as u32, hash: u64::from_le_bytes(last) }
    }
}

impl Place {
    /// Whether the canary has it when it gets so many buckets. It keeps what it has when it gets more.
    pub fn is_within(self, buckets: u32) -> bool {
        self.bucket < buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(salt: &str, count: u32) -> impl Iterator<Item = Place> {
        let assigner = Assigner::new(salt);
        (0..count).map(move |unit| assigner.place(&[b"user", unit.to_string().as_bytes()]))
    }

    /// Within five standard deviations, which chance leaves once in two million.
    #[track_caller]
    fn check(name: &str, count: usize, of: usize, share: f64) {
        let expected = of as f64 * share;
        let deviation = (of as f64 * share * (1.0 - share)).sqrt();
        let off = (count as f64 - expected).abs();
        assert!(off <= 5.0 * deviation, "{name}: {count} of {of} for {share}");
    }

    #[test]
    fn a_split_is_what_it_says() {
        const UNITS: usize = 1_000_000;
        let mut counts = vec![0_usize; BUCKETS as usize];
        for place in places("r-1", UNITS as u32) {
            counts[place.bucket as usize] += 1;
        }
        for buckets in [1_000, 10_000, 25_000, 50_000, 99_000] {
            let canary = counts[..buckets].iter().sum();
            check("share", canary, UNITS, buckets as f64 / f64::from(BUCKETS));
        }
        // And any part of it, not only from its beginning.
        for part in counts.chunks(12_500) {
            check("part", part.iter().sum(), UNITS, 0.125);
        }
    }

    #[test]
    fn the_canary_keeps_whom_it_has_when_it_grows() {
        let shares = [0, 10, 1_000, 10_000, 50_000, BUCKETS];
        for place in places("r-1", 10_000) {
            let has: Vec<bool> = shares.iter().map(|buckets| place.is_within(*buckets)).collect();
            assert!(has.is_sorted() && !has[0] && has[5], "{place:?}");
        }
    }

    #[test]
    fn another_release_deals_anew() {
        const UNITS: usize = 100_000;
        let both = places("r-1", UNITS as u32).zip(places("r-2", UNITS as u32));
        let both = both.filter(|(one, two)| one.is_within(10_000) && two.is_within(10_000)).count();
        check("in both", both, UNITS, 0.01);
    }

    #[test]
    fn a_hash_says_nothing_about_the_bucket() {
        let low: Vec<Place> = places("r-1", 200_000).filter(|place| place.hash < u64::MAX / 4).collect();
        check("sample", low.len(), 200_000, 0.25);
        let canary = low.iter().filter(|place| place.is_within(10_000)).count();
        check("of the sample", canary, low.len(), 0.1);
    }

    /// Users stay where they are through restarts and new builds.
    #[test]
    fn places_never_change() {
        let check = |salt: &str, parts: &[&[u8]], bucket: u32, hash: u64| {
            assert_eq!(Assigner::new(salt).place(parts), Place { bucket, hash }, "{salt} {parts:?}");
        };
        check("r-1", &[b"user", b"alice"], 99695, 0xc945_a196_bd4f_10c6);
        check("r-1", &[b"user", b"bob"], 51451, 0x46d5_b7dc_d84f_7fea);
        check("r-2", &[b"user", b"alice"], 1802, 0x03f0_4a76_2df2_821a);
        check("", &[], 82966, 0xadc5_9242_1412_c7c6);
        let assigner = Assigner::new("r-1");
        assert_ne!(assigner.place(&[b"a", b"bc"]), assigner.place(&[b"ab", b"c"]));
    }
}
