//! Tiers of endpoints: who has the work, and how it moves. What moves when is [`backstop_core::standby`]'s knowledge.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::balance::mix;
use backstop_core::event::What;
use backstop_core::outlier::Counts;
use backstop_core::standby::{Away, Change, Fitness, NoReturn, Stage, Switch, View};
use backstop_core::status::TierStatus;

use crate::endpoint::Endpoint;
use crate::events::Events;
use crate::table::{Service, Table, Tier, Version};
use crate::{Shared, clock};

/// How often tiers are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What is known of a tier that has others after it; it outlives changes of the table.
pub(crate) struct TierSwitch {
    switch: Mutex<Switch>,
    /// [`Switch::share`], in the bits of an f64.
    share: AtomicU64,
}

impl TierSwitch {
    pub(crate) fn new() -> Self {
        Self { switch: Mutex::new(Switch::new(clock::now())), share: AtomicU64::new(1f64.to_bits()) }
    }

    pub(crate) fn away() -> Self {
        Self { switch: Mutex::new(Switch::away(clock::now())), share: AtomicU64::new(0f64.to_bits()) }
    }

    /// Of the requests that reach the tier, how much it may take, 0–1.
    pub(crate) fn share(&self) -> f64 {
        f64::from_bits(self.share.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self, tier: &Tier, now: Instant) -> TierStatus {
        let switch = self.lock();
        TierStatus {
            name: tier.name.clone(),
            stage: switch.stage(),
            share: self.share(),
            reason: switch.reason().to_owned(),
            since_seconds: now.saturating_duration_since(switch.since()).as_secs_f64(),
        }
    }
}

/// Tiers whose work is with their standby, or not yet all back.
pub(crate) fn away(table: &Table) -> Vec<Away> {
    let mut away = Vec::new();
    for service in table.services.values() {
        for (version, _, tier, of_tier) in switches(service) {
            if matches!(of_tier.lock().stage(), Stage::Standby | Stage::Returning) {
                let (priority, nearness) = tier.rank;
                let (service, version) = (service.name.to_string(), version.name.to_string());
                away.push(Away { service, version, priority, nearness });
            }
        }
    }
    away
}

/// Why nothing was failed back.
#[derive(Debug, thiserror::Error)]
pub enum FailbackError {
    #[error("there is no service `{0}`")]
    UnknownService(String),
    #[error("nothing of `{0}` has moved to a standby")]
    NotAway(String),
    #[error("{0} is on its way back already")]
    Returning(String),
    #[error("{tier} is {state}")]
    Unfit { tier: String, state: &'static str },
}

pub(crate) async fn watch(shared: Arc<Shared>, events: Arc<Events>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let table = shared.table.load_full();
        for service in table.services.values() {
            for (version, index, tier, of_tier) in switches(service) {
                let now = clock::now();
                let view = view(version, index, now);
                // Endpoints that have left the table meanwhile are not down.
                if !Arc::ptr_eq(&table, &shared.table.load()) {
                    break;
                }
                let mut switch = of_tier.lock();
                let change = switch.observe(view, &service.failover, now);
                // A new ramp counts at once.
                of_tier.share.store(switch.share(&service.failover).to_bits(), Relaxed);
                drop(switch);
                if let Some(change) = change {
                    events.emit(event(service, version, tier, change));
                }
            }
        }
    }
}

/// Begins to give tiers of `service` that have recovered their work back; gives their names.
pub(crate) fn fail_back(table: &Table, events: &Events, service: &str) -> Result<Vec<String>, FailbackError> {
    let service =
        table.services.get(service).ok_or_else(|| FailbackError::UnknownService(service.to_owned()))?;
    let mut back = Vec::new();
    let mut error = FailbackError::NotAway(service.name.to_string());
    for (version, index, tier, of_tier) in switches(service) {
        let name = format!("{} of version `{}`", tier.name, version.name);
        let now = clock::now();
        let mut switch = of_tier.lock();
        match switch.fail_back(view(version, index, now), &service.failover, now) {
            Ok(change) => {
                of_tier.share.store(change.share.to_bits(), Relaxed);
                drop(switch);
                events.emit(event(service, version, tier, change));
                back.push(name);
            }
            Err(NoReturn::NotAway) => {}
            Err(NoReturn::Returning) => error = FailbackError::Returning(name),
            Err(NoReturn::Unfit(fitness)) => {
                let state = match fitness {
                    Fitness::Unknown => "not checked yet",
                    Fitness::Degraded => "degraded",
                    Fitness::Good | Fitness::Down => "down",
                };
                error = FailbackError::Unfit { tier: name, state };
            }
        }
    }
    if back.is_empty() { Err(error) } else { Ok(back) }
}

/// All tiers of a service that have others after them, each with its place among those of its version.
fn switches(service: &Service) -> impl Iterator<Item = (&Arc<Version>, usize, &Tier, &TierSwitch)> {
    service.real_versions().flat_map(|version| {
        let tiers = version.tiers.iter().enumerate();
        tiers.filter_map(move |(index, tier)| Some((version, index, tier, tier.switch.as_deref()?)))
    })
}

fn view(version: &Version, index: usize, now: Instant) -> View {
    let (mut of_tier, mut of_standby) = (Side::default(), Side::default());
    for target in &version.targets {
        match target.tier.cmp(&index) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => of_tier.add(&target.endpoint, now),
            std::cmp::Ordering::Greater => of_standby.add(&target.endpoint, now),
        }
    }
    // A side that is still looked for is not down.
    let looks = version.looks_for_more();
    (of_tier.unknown, of_standby.unknown) = (of_tier.unknown || looks, of_standby.unknown || looks);
    View {
        tier: of_tier.fitness(),
        standby: of_standby.fitness(),
        tier_counts: of_tier.counts,
        standby_counts: of_standby.counts,
        members: of_tier.members ^ of_standby.members.rotate_left(1),
    }
}

/// The endpoints of one side, taken together.
#[derive(Default)]
struct Side {
    counts: Counts,
    /// Of the endpoints' places in memory: the same as long as they are.
    members: u64,
    good: bool,
    degraded: bool,
    unknown: bool,
}

impl Side {
    fn add(&mut self, endpoint: &Arc<Endpoint>, now: Instant) {
        self.members ^= mix(Arc::as_ptr(endpoint) as u64);
        let [(_, success), (_, failure), _] = endpoint.attempts();
        self.counts.success += success;
        self.counts.failure += failure;
        match endpoint.fitness(now) {
            Fitness::Good => self.good = true,
            Fitness::Degraded => self.degraded = true,
            Fitness::Unknown => self.unknown = true,
            Fitness::Down => {}
        }
    }

    fn fitness(&self) -> Fitness {
        match self {
            Self { good: true, .. } => Fitness::Good,
            Self { degraded: true, .. } => Fitness::Degraded,
            Self { unknown: true, .. } => Fitness::Unknown,
            _ => Fitness::Down,
        }
    }
}

fn event(service: &Service, version: &Version, tier: &Tier, change: Change) -> What {
    What::Failover {
        service: service.name.to_string(),
        version: version.name.to_string(),
        tier: tier.name.clone(),
        stage: change.stage,
        share: change.share,
        reason: change.reason,
    }
}

/// Of a version with several tiers.
pub(crate) fn status(version: &Version, now: Instant) -> Vec<TierStatus> {
    let of = |tier: &Tier| tier.switch.as_ref().map(|switch| switch.status(tier, now));
    version.tiers.iter().filter_map(of).collect()
}
