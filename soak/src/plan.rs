//! What happens next: a pure function of the seed, the number of the step and how things stand.
//!
//! Each step has a generator of its own, so that the same seed makes the same choices wherever the same ones are
//! allowed. The guard is the other half of the proof: as long as it is kept, no request may fail, because there is
//! always a replica that has been left alone for longer than a request waits for its first byte.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::fault::Fault;
use crate::settings::{Mistake, Settings};

/// Pause before an action, in milliseconds.
const PAUSE: std::ops::Range<u64> = 300..1_500;
/// One replica that serves has not been harmed for so long. A request may meet all the others on its way, each for
/// as long as it takes to give up on it, and then still be answered there.
pub(crate) const QUIET: Duration = Duration::from_secs(8);
/// A process is stopped so briefly that nobody may give up on it, in milliseconds.
const STUTTER: std::ops::Range<u64> = 50..700;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// By SIGSTOP.
    Stopped,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    Active,
    Draining,
    Isolated,
    Removed,
}

/// How a replica stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) process: Process,
    pub(crate) duty: Duty,
    /// By Backstop's own account.
    pub(crate) healthy: bool,
    /// When something was last done to it that a request could notice.
    pub(crate) harmed: Option<Duration>,
}

impl Standing {
    pub(crate) fn is_usable(&self) -> bool {
        self.process == Process::Running && self.duty == Duty::Active && self.healthy
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.is_usable() && self.harmed.is_none_or(|at| now.saturating_sub(at) >= QUIET)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// To the replica of this number.
    Replica(Deed, usize),
    /// Another valid configuration.
    Reload(Settings, Trigger),
    /// A configuration that must be refused.
    BadReload(Mistake, Trigger),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Kill,
    Restart,
    Stop,
    Continue,
    /// Stop and continue after this time.
    Stutter(Duration),
    Drain,
    Isolate,
    Restore,
    Remove,
    Add,
    /// Answer the next few requests badly.
    Err(Fault),
}

/// How Backstop hears of a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// It looks by itself.
    File,
    Hangup,
}

/// Kinds of actions, for weights and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Kill,
    Restart,
    Stop,
    Continue,
    Stutter,
    Drain,
    Isolate,
    Restore,
    Remove,
    Add,
    Fault,
    Reload,
    BadReload,
}

/// How often each kind is chosen, relative to the others that are allowed. What mends comes often, or the limit on
/// what may be broken at once would leave little to do.
const WEIGHTS: [(Kind, u32); 13] = [
    (Kind::Kill, 16),
    (Kind::Restart, 60),
    (Kind::Stop, 10),
    (Kind::Continue, 60),
    (Kind::Stutter, 8),
    (Kind::Drain, 6),
    (Kind::Isolate, 6),
    (Kind::Restore, 60),
    (Kind::Remove, 4),
    (Kind::Add, 60),
    (Kind::Fault, 60),
    (Kind::Reload, 40),
    (Kind::BadReload, 12),
];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Restart => "restart",
            Self::Stop => "SIGSTOP",
            Self::Continue => "SIGCONT",
            Self::Stutter => "SIGSTOP and SIGCONT at once",
            Self::Drain => "drain",
            Self::Isolate => "isolate",
            Self::Restore => "restore",
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Fault => "bad answers",
            Self::Reload => "reload",
            Self::BadReload => "reload of an invalid file",
        }
    }

    /// Whether a request could notice.
    fn harms(self) -> bool {
        use Kind::{Drain, Fault, Isolate, Kill, Remove, Stop, Stutter};
        matches!(self, Kill | Stop | Stutter | Drain | Isolate | Remove | Fault)
    }

    /// Whether it makes sense for a replica that stands like this.
    fn fits(self, replica: &Standing) -> bool {
        let Standing { process, duty, .. } = replica;
        match self {
            Self::Kill => *process != Process::Dead,
            Self::Restart => *process == Process::Dead,
            Self::Stop | Self::Stutter | Self::Fault => *process == Process::Running,
            Self::Continue => *process == Process::Stopped,
            Self::Drain | Self::Isolate => *duty == Duty::Active,
            Self::Restore => matches!(duty, Duty::Draining | Duty::Isolated),
            Self::Remove => *duty != Duty::Removed,
            Self::Add => *duty == Duty::Removed,
            Self::Reload | Self::BadReload => true,
        }
    }
}

impl Deed {
    fn of(kind: Kind, rng: &mut StdRng) -> Option<Self> {
        Some(match kind {
            Kind::Kill => Self::Kill,
            Kind::Restart => Self::Restart,
            Kind::Stop => Self::Stop,
            Kind::Continue => Self::Continue,
            Kind::Stutter => Self::Stutter(Duration::from_millis(rng.random_range(STUTTER))),
            Kind::Drain => Self::Drain,
            Kind::Isolate => Self::Isolate,
            Kind::Restore => Self::Restore,
            Kind::Remove => Self::Remove,
            Kind::Add => Self::Add,
            Kind::Fault => Self::Err(Fault::draw(rng)),
            Kind::Reload | Kind::BadReload => return None,
        })
    }

    fn kind(self) -> Kind {
        match self {
            Self::Kill => Kind::Kill,
            Self::Restart => Kind::Restart,
            Self::Stop => Kind::Stop,
            Self::Continue => Kind::Continue,
            Self::Stutter(_) => Kind::Stutter,
            Self::Drain => Kind::Drain,
            Self::Isolate => Kind::Isolate,
            Self::Restore => Kind::Restore,
            Self::Remove => Kind::Remove,
            Self::Add => Kind::Add,
            Self::Err(_) => Kind::Fault,
        }
    }

    pub(crate) fn harms(self) -> bool {
        self.kind().harms()
    }

    /// Whether attempts may be held against the replica. What is drained or removed fails nobody, and what is late by
    /// less than any timeout neither.
    pub(crate) fn is_to_blame(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Isolate | Self::Err(_))
    }
}

impl Action {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Replica(deed, _) => deed.kind(),
            Self::Reload(..) => Kind::Reload,
            Self::BadReload(..) => Kind::BadReload,
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = |trigger: &Trigger| if *trigger == Trigger::Hangup { "by SIGHUP" } else { "by the file" };
        match self {
            Self::Replica(Deed::Stutter(time), replica) => {
                write!(f, "SIGSTOP for {} ms of replica {replica}", time.as_millis())
            }
            Self::Replica(Deed::Err(fault), replica) => write!(f, "{fault} of replica {replica}"),
            Self::Replica(deed, replica) => write!(f, "{} of replica {replica}", deed.kind().name()),
            Self::Reload(settings, trigger) => write!(f, "reload {} ({settings})", by(trigger)),
            Self::BadReload(mistake, trigger) => {
                write!(f, "reload {} of a file with {}", by(trigger), mistake.name())
            }
        }
    }
}

/// How long to wait before step `step`.
pub(crate) fn pause(seed: u64, step: u64) -> Duration {
    Duration::from_millis(generator(seed, step, 0).random_range(PAUSE))
}

/// The action of step `step`. There is always one: a reload is always allowed.
pub(crate) fn next(seed: u64, step: u64, replicas: &[Standing], now: Duration) -> Action {
    let mut rng = generator(seed, step, 1);
    let mut open: Vec<(Kind, usize, u32)> = Vec::new();
    for (kind, weight) in WEIGHTS {
        if matches!(kind, Kind::Reload | Kind::BadReload) {
            open.push((kind, 0, weight));
            continue;
        }
        let all = 0..replicas.len();
        open.extend(all.filter(|&i| is_allowed(kind, i, replicas, now)).map(|i| (kind, i, weight)));
    }
    let mut left = rng.random_range(0..open.iter().map(|(.., weight)| weight).sum());
    let chosen = open.iter().find(|(.., weight)| {
        let found = left < *weight;
        left = left.saturating_sub(*weight);
        found
    });
    let (kind, replica, _) = *chosen.expect("the draw is below the sum of the weights");
    let trigger = if rng.random() { Trigger::Hangup } else { Trigger::File };
    match Deed::of(kind, &mut rng) {
        Some(deed) => Action::Replica(deed, replica),
        None if kind == Kind::Reload => Action::Reload(Settings::draw(replicas.len(), &mut rng), trigger),
        None => Action::BadReload(Mistake::draw(&mut rng), trigger),
    }
}

/// Whether requests can still be expected to succeed if this is done to replica `target`.
fn is_allowed(kind: Kind, target: usize, replicas: &[Standing], now: Duration) -> bool {
    if !kind.fits(&replicas[target]) {
        return false;
    }
    if !kind.harms() {
        return true;
    }
    let others = || replicas.iter().enumerate().filter(|(i, _)| *i != target).map(|(_, replica)| replica);
    let mut impaired = others().filter(|other| !other.is_usable()).count();
    // What answers a few requests badly serves on.
    impaired += usize::from(kind != Kind::Fault);
    impaired <= replicas.len() / 2 && others().any(|other| other.is_quiet(now))
}

fn generator(seed: u64, step: u64, what: u64) -> StdRng {
    let mut bytes = [0; 32];
    for (part, value) in bytes.chunks_exact_mut(8).zip([seed, step, what, 0]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    StdRng::from_seed(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Standing =
        Standing { process: Process::Running, duty: Duty::Active, healthy: true, harmed: None };
    const DEAD: Standing = Standing { process: Process::Dead, ..WELL };
    const STOPPED: Standing = Standing { process: Process::Stopped, ..WELL };
    const UNKNOWN: Standing = Standing { healthy: false, ..WELL };
    const DRAINED: Standing = Standing { duty: Duty::Draining, ..WELL };
    const REMOVED: Standing = Standing { duty: Duty::Removed, healthy: false, ..WELL };
    const NOW: Duration = Duration::from_secs(100);

    fn just_harmed() -> Standing {
        Standing { harmed: Some(NOW - Duration::from_secs(1)), ..WELL }
    }

    #[test]
    fn the_guard() {
        let harmed = just_harmed();
        for (kind, target, replicas, allowed) in [
            (Kind::Kill, 0, [WELL, WELL, WELL, WELL], true),
            (Kind::Kill, 0, [WELL, DEAD, WELL, WELL], true),
            // Never more than half of them.
            (Kind::Kill, 0, [WELL, DEAD, UNKNOWN, WELL], false),
            (Kind::Drain, 0, [WELL, DEAD, DRAINED, WELL], false),
            // More harm to one that is out already costs nothing.
            (Kind::Kill, 0, [STOPPED, DEAD, WELL, WELL], true),
            (Kind::Kill, 0, [DRAINED, DEAD, WELL, WELL], true),
            // One other must have been left alone for a while.
            (Kind::Kill, 0, [WELL, harmed, harmed, harmed], false),
            (Kind::Kill, 0, [WELL, harmed, harmed, WELL], true),
            (Kind::Stop, 0, [WELL, DEAD, harmed, harmed], false),
            // What mends is always allowed.
            (Kind::Restart, 0, [DEAD, DEAD, UNKNOWN, harmed], true),
            (Kind::Continue, 0, [STOPPED, DEAD, UNKNOWN, harmed], true),
            (Kind::Restore, 0, [DRAINED, DEAD, UNKNOWN, harmed], true),
            (Kind::Add, 0, [REMOVED, DEAD, UNKNOWN, harmed], true),
            // What makes no sense never.
            (Kind::Kill, 0, [DEAD, WELL, WELL, WELL], false),
            (Kind::Restart, 0, [WELL, WELL, WELL, WELL], false),
            (Kind::Continue, 0, [WELL, WELL, WELL, WELL], false),
            (Kind::Restore, 0, [WELL, WELL, WELL, WELL], false),
            (Kind::Isolate, 0, [REMOVED, WELL, WELL, WELL], false),
            (Kind::Remove, 0, [REMOVED, WELL, WELL, WELL], false),
            (Kind::Add, 0, [WELL, WELL, WELL, WELL], false),
        ] {
            assert_eq!(is_allowed(kind, target, &replicas, NOW), allowed, "{kind:?} {replicas:?}");
        }
    }

    /// A world in which everything done takes effect at once.
    fn obey(replicas: &mut [Standing], action: &Action, now: Duration) {
        let Action::Replica(deed, i) = action else { return };
        let replica = &mut replicas[*i];
        match deed {
            Deed::Kill => replica.process = Process::Dead,
            Deed::Restart | Deed::Continue => replica.process = Process::Running,
            Deed::Stop => replica.process = Process::Stopped,
            Deed::Stutter(_) | Deed::Err(_) => {}
            Deed::Drain => replica.duty = Duty::Draining,
            Deed::Isolate => replica.duty = Duty::Isolated,
            Deed::Remove => replica.duty = Duty::Removed,
            Deed::Restore | Deed::Add => replica.duty = Duty::Active,
        }
        replica.healthy = replica.process == Process::Running;
        if deed.harms() {
            replica.harmed = Some(now);
        }
    }

    #[test]
    fn within_the_time_a_request_waits_one_replica_is_never_harmed() {
        for seed in 0..20 {
            let (mut replicas, mut now) = ([WELL; 4], Duration::from_secs(60));
            let mut harmed: Vec<(Duration, usize)> = Vec::new();
            for step in 0..1_000 {
                now += pause(seed, step);
                let action = next(seed, step, &replicas, now);
                obey(&mut replicas, &action, now);
                if let Action::Replica(deed, i) = action
                    && deed.harms()
                {
                    harmed.push((now, i));
                }
                let recent = |i: usize| harmed.iter().any(|(at, j)| *j == i && now - *at < QUIET);
                let left_alone = (0..4).filter(|&i| replicas[i].is_usable() && !recent(i)).count();
                assert!(left_alone >= 1, "seed {seed}, step {step}: {replicas:?}");
                assert!(replicas.iter().filter(|it| !it.is_usable()).count() <= 2);
            }
        }
    }

    #[test]
    fn everything_happens_and_a_seed_repeats_it() {
        let run = |seed| {
            let (mut replicas, mut now, mut actions) = ([WELL; 4], Duration::ZERO, Vec::new());
            for step in 0..600 {
                now += pause(seed, step);
                let action = next(seed, step, &replicas, now);
                obey(&mut replicas, &action, now);
                actions.push(action);
            }
            actions
        };
        let actions = run(7);
        for (kind, _) in WEIGHTS {
            let count = actions.iter().filter(|action| action.kind() == kind).count();
            assert!(count >= 5, "{kind:?}: {count}");
        }
        assert_eq!(actions, run(7));
        assert_ne!(actions, run(8));
    }
}
