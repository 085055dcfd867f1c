//! Whether something that a service needs is there.

use crate::status::DependencyState;
use crate::table::DependencySpec;

/// What is known of one dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// By its checks.
    found: DependencyState,
    passes: u32,
    fails: u32,
    reason: String,
    /// Set by an operator; overrules the checks.
    forced: Option<DependencyState>,
}

/// A change of state and its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub to: DependencyState,
    pub reason: String,
}

impl Default for Dependency {
    fn default() -> Self {
        let reason = "not checked yet".to_owned();
        Self { found: DependencyState::Unknown, passes: 0, fails: 0, reason, forced: None }
    }
}

impl Dependency {
    pub fn state(&self) -> DependencyState {
        self.forced.unwrap_or(self.found)
    }

    pub fn is_forced(&self) -> bool {
        self.forced.is_some()
    }

    /// Evidence of the last change.
    pub fn reason(&self) -> &str {
        if self.is_forced() { "set by an operator" } else { &self.reason }
    }

    /// Takes in what a check found; an error is its evidence.
    pub fn observe(&mut self, found: Result<(), String>, spec: &DependencySpec) -> Option<Change> {
        let before = self.state();
        match found {
            Ok(()) => {
                (self.passes, self.fails) = (self.passes + 1, 0);
                if self.passes >= spec.up || self.found == DependencyState::Unknown {
                    self.found = DependencyState::Up;
                    "its check passes".clone_into(&mut self.reason);
                }
            }
            Err(evidence) => {
                (self.passes, self.fails) = (0, self.fails + 1);
                if self.fails >= spec.down {
                    self.found = DependencyState::Down;
                    self.reason = evidence;
                }
            }
        }
        self.changed(before)
    }

    /// Sets the state, whatever the checks find; `None` gives it back to them.
    pub fn force(&mut self, state: Option<DependencyState>) -> Option<Change> {
        let before = self.state();
        self.forced = state;
        self.changed(before)
    }

    fn changed(&self, before: DependencyState) -> Option<Change> {
        let to = self.state();
        (to != before).then(|| Change { to, reason: self.reason().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::{DependencyCheck, DependencyEffect};
    use DependencyState::{Down, Up};

    /// `+` a pass, `-` a failure → the states it goes through, with two of either needed.
    fn check(looks: &str, states: &[DependencyState]) {
        let spec = DependencySpec {
            name: "db".into(),
            check: DependencyCheck::Tcp { host: "h".into(), port: 1 },
            effect: DependencyEffect::NotReady,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            up: 2,
            down: 2,
        };
        let mut dependency = Dependency::default();
        let found = |look| if look == '+' { Ok(()) } else { Err("refused".to_owned()) };
        let seen: Vec<_> =
            looks.chars().filter_map(|look| dependency.observe(found(look), &spec)).map(|it| it.to).collect();
        assert_eq!(seen, states, "{looks}");
    }

    #[test]
    fn thresholds() {
        check("+", &[Up]);
        check("+-+-+-", &[Up]);
        check("+--", &[Up, Down]);
        check("+--+", &[Up, Down]);
        check("+--++", &[Up, Down, Up]);
        check("--", &[Down]);
        check("-+", &[Up]);
    }

    #[test]
    fn an_operator_overrules_the_checks() {
        let mut dependency = Dependency::default();
        assert_eq!(dependency.force(Some(Down)).map(|it| it.to), Some(Down));
        assert_eq!((dependency.force(Some(Down)), dependency.reason()), (None, "set by an operator"));
        assert_eq!(dependency.force(None).map(|it| it.to), Some(DependencyState::Unknown));
    }
}
