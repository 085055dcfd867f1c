//! When a tier of endpoints gives its work to the next one, and when it gets it back.
//!
//! What an endpoint that is gone leaves behind goes elsewhere at once; that is [`crate::balance::choose_tier`]'s doing
//! and needs no decision. Decided here is what takes time: to move away from a tier that still serves, but badly, and
//! to come back to one that has recovered. Both go by steps of a ramp, small share first, and each step has to prove
//! itself before the next.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::outlier::Counts;
use crate::table::{Failback, FailoverSpec};

/// A step fails with so many failures of more than this share, if the other side fares better.
const MIN_FAILURES: u64 = 2;
const MAX_FAILED: f64 = 0.1;
/// The stable time doubles with each failed return, up to this multiple.
const MOST_PATIENCE: u32 = 8;

/// How a tier, or all the tiers after it together, are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// Not checked yet.
    Unknown,
    Good,
    /// Serves, but no endpoint of it is well.
    Degraded,
    /// No endpoint serves.
    Down,
}

/// What a [`Switch`] goes by.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub tier: Fitness,
    /// Of the tiers after it.
    pub standby: Fitness,
    /// Ended attempts on the tier, and on those after it, since any moment that stays the same while `members` does.
    pub tier_counts: Counts,
    pub standby_counts: Counts,
    /// Stands for the endpoints on both sides: another number for others.
    pub members: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The tier has all of the work that it can do.
    Primary,
    /// It serves, but badly: the next tiers get a growing share.
    Leaving,
    /// The next tiers have it all.
    Standby,
    /// The tier has recovered and gets a growing share.
    Returning,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Leaving => "leaving",
            Self::Standby => "standby",
            Self::Returning => "returning",
        })
    }
}

/// A tier has more or less of the work from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub stage: Stage,
    /// Of the requests that reach the tier, how much it may take, 0–1.
    pub share: f64,
    pub reason: String,
}

/// A tier whose work is elsewhere, as the next process has to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    pub service: String,
    pub version: String,
    pub priority: u8,
    /// Of its region: 0 is nearest.
    pub nearness: usize,
}

/// Why there is nothing to fail back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReturn {
    /// The tier has its work.
    NotAway,
    /// It is on its way back.
    Returning,
    /// It can't take it.
    Unfit(Fitness),
}

/// One tier that has others after it.
#[derive(Debug)]
pub struct Switch {
    stage: Stage,
    /// Of the ramp, while it is leaving or returning.
    step: usize,
    since: Instant,
    reason: String,
    /// Counts when the step began.
    tier_before: Counts,
    standby_before: Counts,
    members: u64,
    /// Since when the side that is to get the work has been good.
    good_since: Option<Instant>,
    /// Failed moves in a row.
    failed: u32,
}

impl Switch {
    pub fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Primary,
            step: 0,
            since: now,
            reason: String::new(),
            tier_before: Counts::default(),
            standby_before: Counts::default(),
            members: 0,
            good_since: None,
            failed: 0,
        }
    }

    /// Of a tier whose work another process has left with the standby.
    pub fn away(now: Instant) -> Self {
        let reason = "its standby had the work when the last process ended".to_owned();
        Self { stage: Stage::Standby, reason, ..Self::new(now) }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Since when it has been in this step of this stage.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Of the last change; empty if there was none.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Of the requests that reach the tier, how much it may take, 0–1.
    pub fn share(&self, spec: &FailoverSpec) -> f64 {
        match self.stage {
            Stage::Primary => 1.0,
            Stage::Leaving => 1.0 - step_share(spec, self.step),
            Stage::Standby => 0.0,
            Stage::Returning => step_share(spec, self.step),
        }
    }

    /// Looks at both sides; to be called often.
    pub fn observe(&mut self, view: View, spec: &FailoverSpec, now: Instant) -> Option<Change> {
        use Fitness::{Degraded, Down, Good, Unknown};
        if view.tier == Unknown {
            // New endpoints are about to be checked.
            return None;
        }
        if self.members != view.members {
            // What others have done proves nothing: the step begins anew.
            self.begin_step(view, now);
        }
        let target =
            if matches!(self.stage, Stage::Primary | Stage::Leaving) { view.standby } else { view.tier };
        match target {
            Good => _ = self.good_since.get_or_insert(now),
            _ => self.good_since = None,
        }
        let (stage, step, reason) = match (self.stage, view.tier, view.standby) {
            // Whoever is gone is left at once, and nobody is left for somebody who is gone.
            (Stage::Primary | Stage::Leaving, Down, Good | Degraded) => {
                (Stage::Standby, 0, "no endpoint of it serves".to_owned())
            }
            (Stage::Standby | Stage::Returning, Good | Degraded, Down) => {
                (Stage::Primary, 0, "no endpoint of the standby serves".to_owned())
            }

            (Stage::Primary, Degraded, Good) if self.has_been_good(spec, now) => {
                (Stage::Leaving, 0, "all that serve of it are degraded".to_owned())
            }
            (Stage::Leaving, Good, _) => (Stage::Primary, 0, "it is healthy again".to_owned()),
            (Stage::Leaving, _, Degraded | Down) => {
                (Stage::Primary, 0, "the standby is no better".to_owned())
            }
            (Stage::Leaving, _, _) => {
                let (standby, tier) = (self.standby_since(view), self.tier_since(view));
                match verdict(standby, tier, now - self.since, spec) {
                    Some(Err(evidence)) => (Stage::Primary, 0, format!("the standby failed: {evidence}")),
                    Some(Ok(evidence)) => self.next(spec, Stage::Standby, evidence),
                    None => return None,
                }
            }

            (Stage::Standby, Good, _) if spec.failback == Failback::Auto && self.has_been_good(spec, now) => {
                (Stage::Returning, 0, "it has been stable".to_owned())
            }
            (Stage::Returning, Degraded | Down, _) => {
                (Stage::Standby, 0, format!("it is {} again", word(view.tier)))
            }
            (Stage::Returning, _, _) => {
                let (tier, standby) = (self.tier_since(view), self.standby_since(view));
                match verdict(tier, standby, now - self.since, spec) {
                    Some(Err(evidence)) => (Stage::Standby, 0, format!("it failed: {evidence}")),
                    Some(Ok(evidence)) => self.next(spec, Stage::Primary, evidence),
                    None => return None,
                }
            }
            _ => return None,
        };
        let gave_up = match (self.stage, stage) {
            (Stage::Leaving, Stage::Primary) => view.tier != Good,
            (Stage::Returning, Stage::Standby) => true,
            _ => false,
        };
        let went_through = matches!(
            (self.stage, stage),
            (Stage::Leaving, Stage::Standby) | (Stage::Returning, Stage::Primary)
        );
        if gave_up {
            self.failed += 1;
        } else if went_through {
            self.failed = 0;
        }
        Some(self.go(stage, step, reason, view, spec, now))
    }

    /// Begins to give the tier its work back, whatever the configuration says about when.
    ///
    /// # Errors
    ///
    /// Why there is nothing to do.
    pub fn fail_back(&mut self, view: View, spec: &FailoverSpec, now: Instant) -> Result<Change, NoReturn> {
        match (self.stage, view.tier) {
            (Stage::Primary | Stage::Leaving, _) => Err(NoReturn::NotAway),
            (Stage::Returning, _) => Err(NoReturn::Returning),
            (Stage::Standby, Fitness::Good) => {
                Ok(self.go(Stage::Returning, 0, "an operator wants it".to_owned(), view, spec, now))
            }
            (Stage::Standby, fitness) => Err(NoReturn::Unfit(fitness)),
        }
    }

    /// The next step of the ramp, or `last` after it.
    fn next(&self, spec: &FailoverSpec, last: Stage, evidence: String) -> (Stage, usize, String) {
        let step = self.step + 1;
        if step_share(spec, step) < 1.0 { (self.stage, step, evidence) } else { (last, 0, evidence) }
    }

    fn go(
        &mut self,
        stage: Stage,
        step: usize,
        reason: String,
        view: View,
        spec: &FailoverSpec,
        now: Instant,
    ) -> Change {
        // A ramp of one step is none.
        let (stage, step) = match stage {
            Stage::Leaving if step_share(spec, step) >= 1.0 => (Stage::Standby, 0),
            Stage::Returning if step_share(spec, step) >= 1.0 => (Stage::Primary, 0),
            _ => (stage, step),
        };
        if self.stage != stage {
            self.good_since = None;
        }
        (self.stage, self.step) = (stage, step);
        self.begin_step(view, now);
        self.reason.clone_from(&reason);
        Change { stage, share: self.share(spec), reason }
    }

    fn begin_step(&mut self, view: View, now: Instant) {
        self.since = now;
        (self.tier_before, self.standby_before) = (view.tier_counts, view.standby_counts);
        self.members = view.members;
    }

    fn has_been_good(&self, spec: &FailoverSpec, now: Instant) -> bool {
        let patience = match self.stage {
            // The first attempt to leave what is degraded need not wait.
            Stage::Primary if self.failed == 0 => Duration::ZERO,
            _ => spec.stable_for * (1 << self.failed.min(MOST_PATIENCE.ilog2())),
        };
        self.good_since.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    fn tier_since(&self, view: View) -> Counts {
        view.tier_counts.since(self.tier_before)
    }

    fn standby_since(&self, view: View) -> Counts {
        view.standby_counts.since(self.standby_before)
    }
}

fn step_share(spec: &FailoverSpec, step: usize) -> f64 {
    spec.ramp.get(step).copied().unwrap_or(1.0)
}

fn word(fitness: Fitness) -> &'static str {
    match fitness {
        Fitness::Unknown => "unknown",
        Fitness::Good => "healthy",
        Fitness::Degraded => "degraded",
        Fitness::Down => "down",
    }
}

/// Whether the step has proved that `tested`, the side that gets more, is no worse than `other`; `None` if that is
/// not known yet.
fn verdict(
    tested: Counts,
    other: Counts,
    lasted: Duration,
    spec: &FailoverSpec,
) -> Option<Result<String, String>> {
    let rate = tested.failure_rate();
    if tested.failure >= MIN_FAILURES && rate > MAX_FAILED && rate > other.failure_rate() {
        return Some(Err(format!("{} of {} requests", tested.failure, tested.total())));
    }
    if lasted < spec.stable_for {
        return None;
    }
    // Where nobody asks there is nothing to see, and nobody to be harmed.
    match (tested.success, tested.total() + other.total()) {
        (0, 0) => Some(Ok("healthy, without requests".to_owned())),
        (0, _) => None,
        (success, _) => Some(Ok(format!("{success} of {} requests went well", tested.total()))),
    }
}

#[cfg(test)]
mod tests {
    use super::Fitness::{Degraded, Down, Good, Unknown};
    use super::Stage::{Leaving, Primary, Returning, Standby};
    use super::*;

    /// A tier with a standby, a minute of stability and the usual ramp.
    struct World {
        switch: Switch,
        spec: FailoverSpec,
        view: View,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let none = Counts::default();
            let view =
                View { tier: Good, standby: Good, tier_counts: none, standby_counts: none, members: 1 };
            Self { switch: Switch::new(now), spec: FailoverSpec::default(), view, now }
        }

        /// Looks each second, for so long or until something changes.
        fn look(&mut self, tier: Fitness, standby: Fitness, seconds: u64) -> Option<(Stage, f64)> {
            (self.view.tier, self.view.standby) = (tier, standby);
            for second in 0..=seconds {
                if let Some(change) = self.switch.observe(self.view, &self.spec, self.now) {
                    assert!(!change.reason.is_empty());
                    assert_eq!(change.share, self.switch.share(&self.spec));
                    return Some((change.stage, change.share));
                }
                if second < seconds {
                    self.now += Duration::from_secs(1);
                }
            }
            None
        }

        fn tier(&mut self, success: u64, failure: u64) -> &mut Self {
            self.view.tier_counts.success += success;
            self.view.tier_counts.failure += failure;
            self
        }

        fn standby(&mut self, success: u64, failure: u64) -> &mut Self {
            self.view.standby_counts.success += success;
            self.view.standby_counts.failure += failure;
            self
        }

        /// On the standby, since the tier was down.
        fn away() -> Self {
            let mut world = Self::new();
            assert_eq!(world.look(Down, Good, 0), Some((Standby, 0.0)));
            world
        }
    }

    #[test]
    fn a_dead_tier_is_left_at_once_and_got_back_by_steps() {
        let mut world = World::away();
        assert_eq!(world.look(Down, Good, 1000), None);
        assert_eq!(world.look(Good, Good, 59), None);
        assert_eq!(world.look(Good, Good, 1), Some((Returning, 0.05)));
        assert_eq!(world.tier(5, 0).standby(95, 0).look(Good, Good, 59), None);
        assert_eq!(world.look(Good, Good, 1), Some((Returning, 0.25)));
        assert_eq!(world.tier(25, 1).standby(75, 0).look(Good, Good, 60), Some((Primary, 1.0)));
        assert_eq!(world.look(Good, Good, 1000), None);
    }

    #[test]
    fn nobody_is_left_for_somebody_who_is_gone() {
        let mut world = World::new();
        assert_eq!(world.look(Down, Down, 100), None);
        assert_eq!(world.look(Degraded, Down, 100), None);
        let mut world = World::away();
        assert_eq!(world.look(Degraded, Down, 0), Some((Primary, 1.0)));
        let mut world = World::away();
        assert_eq!(world.look(Down, Down, 10), None);
        assert_eq!(world.look(Good, Down, 0), Some((Primary, 1.0)));
    }

    #[test]
    fn flapping_starts_the_wait_anew() {
        let mut world = World::away();
        for _ in 0..10 {
            assert_eq!(world.look(Good, Good, 50), None);
            assert_eq!(world.look(Down, Good, 1), None);
        }
        assert_eq!(world.look(Good, Good, 60), Some((Returning, 0.05)));
        // What is found out on the way back counts as well, and the next time takes longer.
        assert_eq!(world.look(Degraded, Good, 0), Some((Standby, 0.0)));
        assert_eq!(world.look(Good, Good, 119), None);
        assert_eq!(world.look(Good, Good, 1), Some((Returning, 0.05)));
    }

    #[test]
    fn a_step_that_fails_ends_the_return() {
        let mut world = World::away();
        world.look(Good, Good, 60);
        assert_eq!(world.tier(0, 1).standby(20, 0).look(Good, Good, 1), None, "one may happen");
        assert_eq!(world.tier(10, 1).look(Good, Good, 0), Some((Standby, 0.0)));
        // Where both sides fail alike it is not the tier's fault.
        let mut world = World::away();
        world.look(Good, Good, 60);
        assert_eq!(world.tier(5, 5).standby(5, 5).look(Good, Good, 60), Some((Returning, 0.25)));
    }

    #[test]
    fn patience_has_an_end() {
        let mut world = World::away();
        for minutes in [1, 2, 4, 8, 8, 8] {
            assert_eq!(world.look(Good, Good, 60 * minutes - 1), None, "{minutes} minutes");
            assert_eq!(world.look(Good, Good, 1), Some((Returning, 0.05)));
            assert_eq!(world.look(Down, Good, 0), Some((Standby, 0.0)));
        }
    }

    #[test]
    fn a_step_waits_for_something_to_judge_by() {
        let mut world = World::away();
        world.look(Good, Good, 60);
        assert_eq!(world.standby(100, 0).look(Good, Good, 1000), None, "none of it came to the tier");
        assert_eq!(world.tier(1, 0).look(Good, Good, 0), Some((Returning, 0.25)));
        assert_eq!(world.look(Good, Good, 60), Some((Primary, 1.0)), "nobody asks for anything");
    }

    #[test]
    fn a_degraded_tier_is_left_by_steps() {
        let mut world = World::new();
        assert_eq!(world.look(Degraded, Good, 0), Some((Leaving, 0.95)));
        assert_eq!(world.standby(5, 0).tier(95, 0).look(Degraded, Good, 60), Some((Leaving, 0.75)));
        assert_eq!(world.standby(25, 0).look(Degraded, Good, 60), Some((Standby, 0.0)));
        assert_eq!(world.look(Degraded, Good, 1000), None);
        assert_eq!(world.look(Degraded, Degraded, 1000), None, "there is nothing to gain");
    }

    #[test]
    fn leaving_ends_when_it_is_no_use() {
        for (tier, standby, reason) in [
            (Good, Good, "it is healthy again"),
            (Degraded, Degraded, "the standby is no better"),
            (Degraded, Down, "the standby is no better"),
        ] {
            let mut world = World::new();
            world.look(Degraded, Good, 0);
            assert_eq!(world.look(tier, standby, 0), Some((Primary, 1.0)));
            assert_eq!(world.switch.reason(), reason);
        }
        let mut world = World::new();
        world.look(Degraded, Good, 0);
        assert_eq!(world.standby(1, 2).tier(50, 1).look(Degraded, Good, 0), Some((Primary, 1.0)));
        assert_eq!(world.switch.reason(), "the standby failed: 2 of 3 requests");
        assert_eq!(world.look(Degraded, Good, 119), None, "the next try takes a while");
        assert_eq!(world.look(Degraded, Good, 1), Some((Leaving, 0.95)));
        assert_eq!(world.look(Down, Good, 0), Some((Standby, 0.0)), "dead is left at once");
    }

    /// A server with a long history leaves the tier, or one comes.
    #[test]
    fn other_endpoints_begin_the_step_anew() {
        let mut world = World::away();
        world.tier(100_000, 0).look(Good, Good, 60);
        assert_eq!(world.tier(5, 0).look(Good, Good, 59), None);
        (world.view.tier_counts, world.view.members) = (Counts { success: 3, failure: 0 }, 2);
        assert_eq!(world.standby(50, 0).look(Good, Good, 59), None);
        assert_eq!(world.tier(5, 0).look(Good, Good, 1), Some((Returning, 0.25)));
        (world.view.tier_counts, world.view.members) = (Counts { success: 10, failure: 10 }, 3);
        assert_eq!(world.look(Good, Good, 0), None, "those failures are of another time");
    }

    #[test]
    fn short_spells_of_weakness_cost_no_patience() {
        let mut world = World::new();
        for _ in 0..5 {
            assert_eq!(world.look(Degraded, Good, 0), Some((Leaving, 0.95)));
            assert_eq!(world.look(Good, Good, 0), Some((Primary, 1.0)));
        }
        assert_eq!(world.look(Down, Good, 0), Some((Standby, 0.0)));
        assert_eq!(world.look(Good, Good, 60), Some((Returning, 0.05)));
    }

    #[test]
    fn endpoints_that_are_just_being_checked_decide_nothing() {
        let mut world = World::new();
        assert_eq!(world.look(Unknown, Good, 100), None);
        assert_eq!(world.look(Down, Unknown, 100), None);
    }

    #[test]
    fn an_operator_decides_when_the_file_says_so() {
        let mut world = World::away();
        world.spec.failback = Failback::Manual;
        assert_eq!(world.look(Good, Good, 10_000), None);
        let mut back = |view: View| world.switch.fail_back(view, &world.spec, world.now).map(|it| it.stage);
        let good = View { tier: Good, ..world.view };
        assert_eq!(back(View { tier: Degraded, ..good }), Err(NoReturn::Unfit(Degraded)));
        assert_eq!(back(good), Ok(Returning));
        assert_eq!(back(good), Err(NoReturn::Returning));
        assert_eq!(world.look(Good, Good, 60), Some((Returning, 0.25)));
        assert_eq!(world.look(Good, Good, 60), Some((Primary, 1.0)));
        let view = world.view;
        assert_eq!(world.switch.fail_back(view, &world.spec, world.now), Err(NoReturn::NotAway));
    }

    #[test]
    fn a_ramp_of_one_step_is_none() {
        let mut world = World::away();
        world.spec.ramp = vec![1.0];
        world.spec.stable_for = Duration::ZERO;
        assert_eq!(world.look(Good, Good, 0), Some((Primary, 1.0)));
        assert_eq!(world.look(Degraded, Good, 0), Some((Standby, 0.0)));
    }
}
