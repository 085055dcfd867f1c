//! The state of one endpoint, from probes, evidence of progress and operators.
//!
//! Breaker and outlier ejection are kept apart from it: they come from traffic, pass quickly, and panic mode may
//! overrule them, but never a state that active checks have found.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::table::HealthSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is known yet.
    Starting,
    Healthy,
    /// Serves, with half its share.
    Degraded,
    Unhealthy,
    /// Takes no new work; what runs may finish.
    Draining,
    /// Taken out by an operator.
    Isolated,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Healthy, Self::Degraded, Self::Unhealthy, Self::Draining, Self::Isolated];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Isolated => "isolated",
        })
    }
}

/// What was looked at, from the machine up to a real answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Machine: the configured checks (GPU state, memory, …).
    Infrastructure,
    /// Process, port and HTTP: the health path answers 200.
    Process,
    /// Model loaded, queue and KV cache, by the engine's own account.
    Application,
    /// A real small request.
    Inference,
    /// Work in flight moves.
    Progress,
}

const LAYERS: usize = 5;

impl Layer {
    const ALL: [Self; LAYERS] =
        [Self::Infrastructure, Self::Process, Self::Application, Self::Inference, Self::Progress];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Infrastructure => "infrastructure",
            Self::Process => "process",
            Self::Application => "application",
            Self::Inference => "inference",
            Self::Progress => "progress",
        })
    }
}

/// The result of one look at one layer, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    Pass,
    /// Serves, but not well.
    Degraded(String),
    Fail(String),
    /// Beyond doubt, no further look needed: the stall watch has waited its whole limit already.
    Certain(String),
}

/// A change of state and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
    /// Layer and evidence, or who ordered it.
    pub reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Level {
    #[default]
    Unknown,
    Up,
    Degraded(String),
    Down(String),
}

#[derive(Debug, Clone, Default)]
struct LayerHealth {
    level: Level,
    passes: u32,
    /// Consecutive findings that were not a pass, and those of them that were failures.
    bad: u32,
    fails: u32,
}

impl LayerHealth {
    fn observe(&mut self, finding: Finding, spec: &HealthSpec) {
        match finding {
            Finding::Pass => {
                *self = Self {
                    passes: self.passes + 1,
                    level: std::mem::take(&mut self.level),
                    ..Self::default()
                };
                if self.passes >= spec.up || self.level == Level::Unknown {
                    self.level = Level::Up;
                }
            }
            Finding::Certain(evidence) => *self = Self { level: Level::Down(evidence), ..Self::default() },
            Finding::Degraded(evidence) => {
                (self.passes, self.fails, self.bad) = (0, 0, self.bad + 1);
                if self.bad >= spec.down {
                    self.level = Level::Degraded(evidence);
                }
            }
            Finding::Fail(evidence) => {
                (self.passes, self.fails, self.bad) = (0, self.fails + 1, self.bad + 1);
                if self.fails >= spec.down {
                    self.level = Level::Down(evidence);
                }
            }
        }
    }
}

/// Health of one endpoint.
#[derive(Debug, Clone)]
pub struct Health {
    state: State,
    since: Instant,
    reason: String,
    layers: [LayerHealth; LAYERS],
    /// `Draining` or `Isolated` while somebody says so, and why.
    order: Option<(State, String)>,
    /// When it last came back from being out of service; the start of slow start.
    recovered_at: Option<Instant>,
}

impl Health {
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Starting,
            since: now,
            reason: "not checked yet".to_owned(),
            layers: Default::default(),
            order: None,
            recovered_at: None,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn recovered_at(&self) -> Option<Instant> {
        self.recovered_at
    }

    /// The process is gone or stands still: whoever waits for it waits in vain. (A model that is not loaded or a
    /// machine out of limits may still answer what it has begun.)
    pub fn is_dead(&self) -> bool {
        let down = |layer: Layer| matches!(self.layers[layer as usize].level, Level::Down(_));
        down(Layer::Process) || down(Layer::Progress)
    }

    /// A stall has been found and only a real answer will clear it: that nothing is in flight any more proves
    /// nothing, since a stalled endpoint gets no work.
    pub fn needs_inference(&self) -> bool {
        matches!(self.layers[Layer::Progress as usize].level, Level::Down(_))
    }

    /// Takes in what was found at a layer.
    pub fn observe(
        &mut self,
        layer: Layer,
        finding: Finding,
        spec: &HealthSpec,
        now: Instant,
    ) -> Option<Change> {
        let passed = finding == Finding::Pass;
        self.layers[layer as usize].observe(finding, spec);
        if layer == Layer::Process && matches!(self.layers[Layer::Process as usize].level, Level::Down(_)) {
            // Whatever comes back is another process, of which nothing is known yet.
            for other in Layer::ALL.into_iter().filter(|other| *other != Layer::Process) {
                self.layers[other as usize] = LayerHealth::default();
            }
        }
        if layer == Layer::Inference && passed {
            self.layers[Layer::Progress as usize] = LayerHealth::default();
        }
        self.update(now)
    }

    /// Takes the endpoint out by order: `Draining` or `Isolated`, and why; `None` gives it back to its checks.
    pub fn order(&mut self, order: Option<(State, &str)>, now: Instant) -> Option<Change> {
        self.order = order.map(|(state, why)| (state, why.to_owned()));
        self.update(now)
    }

    fn update(&mut self, now: Instant) -> Option<Change> {
        let (to, reason) = self.judge();
        if to == self.state {
            return None;
        }
        let from = std::mem::replace(&mut self.state, to);
        let serves = |state| matches!(state, State::Healthy | State::Degraded);
        if serves(to) && !serves(from) && from != State::Starting {
            self.recovered_at = Some(now);
        }
        self.since = now;
        self.reason.clone_from(&reason);
        Some(Change { from, to, reason })
    }

    fn judge(&self) -> (State, String) {
        if let Some(order) = &self.order {
            return order.clone();
        }
        let worst = |down: bool| {
            Layer::ALL.into_iter().find_map(|layer| match &self.layers[layer as usize].level {
                Level::Down(evidence) if down => Some(format!("{layer}: {evidence}")),
                Level::Degraded(evidence) if !down => Some(format!("{layer}: {evidence}")),
                _ => None,
            })
        };
        if let Some(reason) = worst(true) {
            return (State::Unhealthy, reason);
        }
        if self.layers[Layer::Process as usize].level == Level::Unknown {
            return (State::Starting, "not checked yet".to_owned());
        }
        match worst(false) {
            Some(reason) => (State::Degraded, reason),
            None => (State::Healthy, "all checks pass".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use Layer::{Application, Inference, Process, Progress};

    const SPEC: HealthSpec = HealthSpec {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        path: None,
        up: 2,
        down: 3,
        stall: Duration::from_secs(30),
        slow_start: Duration::from_secs(30),
        inference: None,
        checks: Vec::new(),
    };

    fn fail() -> Finding {
        Finding::Fail("no answer".to_owned())
    }

    /// Findings one after another → the states they lead to.
    #[track_caller]
    fn check(findings: &[(Layer, Finding)], states: &[State]) {
        let now = Instant::now();
        let mut health = Health::new(now);
        let seen: Vec<_> = findings
            .iter()
            .filter_map(|(layer, finding)| health.observe(*layer, finding.clone(), &SPEC, now))
            .map(|change| change.to)
            .collect();
        assert_eq!(seen, states);
    }

    #[test]
    fn thresholds() {
        let pass = || (Process, Finding::Pass);
        check(&[pass()], &[State::Healthy]);
        check(&[pass(), (Process, fail()), (Process, fail()), pass(), (Process, fail())], &[State::Healthy]);
        let down = [pass(), (Process, fail()), (Process, fail()), (Process, fail())];
        check(&down, &[State::Healthy, State::Unhealthy]);
        check(&[&down[..], &[pass()]].concat(), &[State::Healthy, State::Unhealthy]);
        check(&[&down[..], &[pass(), pass()]].concat(), &[State::Healthy, State::Unhealthy, State::Healthy]);
        check(&[(Process, fail()), (Process, fail()), (Process, fail())], &[State::Unhealthy]);
    }

    #[test]
    fn degraded_takes_as_long_and_names_its_layer() {
        let now = Instant::now();
        let mut health = Health::new(now);
        health.observe(Process, Finding::Pass, &SPEC, now);
        let full = || Finding::Degraded("KV cache 99 % full".to_owned());
        assert_eq!(health.observe(Application, full(), &SPEC, now), None);
        assert_eq!(health.observe(Application, full(), &SPEC, now), None);
        let change = health.observe(Application, full(), &SPEC, now).expect("a change");
        assert_eq!((change.to, change.reason.as_str()), (State::Degraded, "application: KV cache 99 % full"));
    }

    #[test]
    fn a_stall_ends_only_with_a_real_answer_or_a_restart() {
        let stalled = (Progress, Finding::Certain("no token for 30s".to_owned()));
        let healthy = (Process, Finding::Pass);
        check(&[healthy.clone(), stalled.clone(), healthy.clone()], &[State::Healthy, State::Unhealthy]);
        check(
            &[healthy.clone(), stalled.clone(), (Inference, Finding::Pass)],
            &[State::Healthy, State::Unhealthy, State::Healthy],
        );
        let down = [(Process, fail()), (Process, fail()), (Process, fail())];
        check(
            &[&[healthy.clone(), stalled], &down[..], &[healthy.clone(), healthy]].concat(),
            &[State::Healthy, State::Unhealthy, State::Healthy],
        );
    }

    #[test]
    fn orders_overrule_and_recovery_starts_slowly() {
        let start = Instant::now();
        let mut health = Health::new(start);
        health.observe(Process, Finding::Pass, &SPEC, start);
        assert_eq!(health.recovered_at(), None, "a first start is not a recovery");
        assert_eq!(
            health.order(Some((State::Isolated, "by ops")), start).map(|c| c.to),
            Some(State::Isolated)
        );
        assert_eq!(health.observe(Process, fail(), &SPEC, start), None);
        let later = start + Duration::from_secs(9);
        assert_eq!(health.order(None, later).map(|c| c.to), Some(State::Healthy));
        assert_eq!(health.recovered_at(), Some(later));
    }
}
