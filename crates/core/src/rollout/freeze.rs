//! Freezes: times in which nothing is to change.

use serde::{Deserialize, Serialize};

/// A time in which no step begins and nothing is promoted. Going back is always possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Milliseconds since the Unix epoch.
    pub from: u64,
    /// The first moment after it, likewise; `None` = until somebody ends it.
    pub until: Option<u64>,
    pub reason: String,
    /// Who wants it: `file`, or the operator.
    pub by: String,
}

impl Freeze {
    /// Whether it is in force at `now`, in milliseconds since the Unix epoch.
    pub fn holds(&self, now: u64) -> bool {
        self.from <= now && !self.is_over(now)
    }

    pub fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_its_first_moment_and_ends_before_its_last() {
        let freeze = |until| Freeze { from: 10, until, reason: String::new(), by: "ops".to_owned() };
        for (now, bounded, open) in [(9, false, false), (10, true, true), (19, true, true), (20, false, true)]
        {
            assert_eq!((freeze(Some(20)).holds(now), freeze(None).holds(now)), (bounded, open), "{now}");
        }
        assert!(!freeze(Some(20)).is_over(9), "one that is still to come is not over");
    }
}
