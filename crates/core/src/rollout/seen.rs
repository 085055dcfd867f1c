//! Units that something bad has happened to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::BadEvent;

/// Bad units of one kind that are kept apart, of all steps together.
const MOST_UNITS: usize = 2048;

/// Units that had something happen to them in a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) event: BadEvent,
    /// The last step in which each of them was.
    #[serde(with = "units")]
    units: BTreeMap<u64, u32>,
    /// A step in which a gateway has counted too many: nothing of it counts any more, of either arm.
    pub(super) full: Option<u32>,
    /// Units above it are left out, of both arms alike, since there are too many.
    bound: u64,
}

impl Seen {
    pub(super) fn new(event: BadEvent) -> Self {
        Self { event, units: BTreeMap::new(), full: None, bound: u64::MAX }
    }

    /// How many of `units` were never seen before, and how many in earlier steps only.
    pub(super) fn add(&mut self, units: Vec<u64>, step: u32) -> (u64, u64) {
        let (mut new, mut again) = (0, 0);
        let bound = self.bound;
        for unit in units.into_iter().filter(|unit| *unit <= bound) {
            match self.units.insert(unit, step) {
                None => new += 1,
                Some(before) if before < step => again += 1,
                Some(before) => {
                    self.units.insert(unit, before);
                }
            }
        }
        (new, again)
    }

    /// Forgets the units of early steps; if that is not enough, every other one is left out from now on.
    pub(super) fn make_room(&mut self, step: u32) {
        if self.units.len() > MOST_UNITS {
            self.units.retain(|_, last| *last >= step);
        }
        while self.units.len() > MOST_UNITS {
            self.bound /= 2;
            let bound = self.bound;
            self.units.retain(|unit, _| *unit <= bound);
        }
    }
}

/// Units in few bytes: the steps, each with the hashes in hexadecimal digits.
mod units {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(units: &BTreeMap<u64, u32>, s: S) -> Result<S::Ok, S::Error> {
        let mut steps: BTreeMap<u32, String> = BTreeMap::new();
        for (unit, step) in units {
            // Nothing fails to be written to a text.
            let _ = write!(steps.entry(*step).or_default(), "{unit:016x}");
        }
        steps.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, u32>, D::Error> {
        let mut units = BTreeMap::new();
        for (step, text) in BTreeMap::<u32, String>::deserialize(d)? {
            for digits in text.as_bytes().chunks(16) {
                let digits = std::str::from_utf8(digits).map_err(D::Error::custom)?;
                units.insert(u64::from_str_radix(digits, 16).map_err(D::Error::custom)?, step);
            }
        }
        Ok(units)
    }
}
