//! A host name, what is known of it, and the task that keeps this up to date.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use backstop_core::event::{ResolutionState, What};
use rand::RngExt;
use tokio::sync::{Notify, watch};

use super::resolver::{Family, Found, Resolver};
use crate::clock;
use crate::events::Events;
use crate::tasks::OwnedTask;

/// The first and the longest pause after a failure; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What was found by [`Family`], as far as it is there.
type Asked = [Option<Found>; 2];

/// A host name; watched until it is dropped.
pub(crate) struct Name {
    state: Arc<State>,
    _watch: OwnedTask,
}

struct State {
    host: String,
    answer: ArcSwap<Answer>,
    /// Told with each new answer, for those who wait for the first.
    news: watch::Sender<()>,
    /// Told when there is a reason to ask before the answer has expired.
    again: Notify,
    failures: AtomicU64,
    /// That there are too many addresses has been said.
    limit_told: AtomicBool,
    /// Told when the set of addresses is another one.
    changes: Arc<Notify>,
    events: Arc<Events>,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// By [`Family`], as they were answered.
    families: [Vec<IpAddr>; 2],
    /// IPv6 and IPv4 in turn: the order in which to try them.
    pub(crate) addresses: Arc<[IpAddr]>,
    pub(crate) sorted: Vec<IpAddr>,
    pub(crate) condition: Condition,
    /// When a question was last answered well.
    pub(crate) good_at: Option<Instant>,
}

/// How the last question was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There has been no answer yet.
    Unasked,
    Good,
    Failing(String),
}

impl Name {
    /// Begins to ask at once.
    pub(super) fn watch(
        host: &str,
        resolver: Arc<Resolver>,
        changes: Arc<Notify>,
        events: Arc<Events>,
    ) -> Self {
        let state = Arc::new(State {
            host: host.to_owned(),
            answer: ArcSwap::from_pointee(Answer::none()),
            news: watch::Sender::new(()),
            again: Notify::new(),
            failures: AtomicU64::new(0),
            limit_told: AtomicBool::new(false),
            changes,
            events,
        });
        let watch = OwnedTask::spawn("host name", follow(Arc::clone(&state), resolver));
        Self { state, _watch: watch }
    }

    pub(crate) fn host(&self) -> &str {
        &self.state.host
    }

    pub(crate) fn answer(&self) -> Arc<Answer> {
        self.state.answer.load_full()
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.state.answer.load().sorted.binary_search(&address).is_ok()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.state.failures.load(Relaxed)
    }

    pub(super) fn ask_again(&self) {
        self.state.again.notify_one();
    }

    /// The addresses; waits for the first answer, and tells why there are none.
    pub(super) async fn addresses(&self) -> Result<Arc<[IpAddr]>, String> {
        let mut news = self.state.news.subscribe();
        loop {
            let answer = self.state.answer.load();
            if !answer.addresses.is_empty() {
                return Ok(Arc::clone(&answer.addresses));
            }
            if let Condition::Failing(reason) = &answer.condition {
                return Err(format!("`{}` can't be resolved: {reason}", self.state.host));
            }
            drop(answer);
            if news.changed().await.is_err() {
                return Err(format!("`{}` is not resolved any more", self.state.host));
            }
        }
    }

    /// Says, once, if there are more than `limit` addresses.
    pub(super) fn tell_limit(&self, limit: usize) {
        let found = self.state.answer.load().sorted.len();
        if found > limit {
            if !self.state.limit_told.swap(true, Relaxed) {
                let reason = format!("{found} addresses; the first {limit} in order are endpoints");
                self.state.emit(ResolutionState::Limited, limit, reason);
            }
        } else {
            self.state.limit_told.store(false, Relaxed);
        }
    }
}

/// Asks again and again.
async fn follow(state: Arc<State>, resolver: Arc<Resolver>) {
    let mut failed = 0;
    loop {
        let asked = state.ask(&resolver).await;
        let spec = resolver.spec();
        let pause = match asked {
            Ok(ttl) => {
                failed = 0;
                // Names that were answered together need not be asked together.
                let early = ttl.mul_f64(rand::rng().random_range(0.9..=1.0));
                early.max(spec.min_ttl).min(spec.max_ttl)
            }
            Err(reason) => {
                state.fail(reason);
                let doubled = spec.min_ttl.min(FIRST_PAUSE).saturating_mul(1 << failed.min(20));
                failed += 1;
                doubled.min(LONGEST_PAUSE).mul_f64(rand::rng().random_range(0.75..=1.0))
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = state.again.notified() => {}
        }
    }
}

impl State {
    /// How long the answer may be used, or why there is none.
    async fn ask(&self, resolver: &Resolver) -> Result<Duration, String> {
        if let Some(found) = resolver.in_hosts_file(&self.host) {
            let found = found.map(Some);
            self.learn(&found);
            return life(&found);
        }
        let (mut failed, mut unknown) = (None, None);
        for name in resolver.candidates(&self.host)? {
            let found = self.ask_for(&name, resolver).await;
            let reason = match life(&found) {
                Ok(life) => return Ok(life),
                Err(reason) => reason,
            };
            // That there is no such name is no news where something went wrong.
            if found.iter().flatten().any(|it| matches!(it, Found::Failed(_) | Found::Silence)) {
                failed.get_or_insert(reason);
            } else {
                unknown.get_or_insert(reason);
            }
            // Nobody will answer for another name either.
            if found.iter().flatten().all(|it| *it == Found::Silence) {
                break;
            }
        }
        Err(failed.or(unknown).unwrap_or_default())
    }

    /// Asks for both families and uses what comes first at once: some servers never answer for IPv6.
    async fn ask_for(&self, name: &hickory_resolver::proto::rr::Name, resolver: &Resolver) -> Asked {
        const V4: usize = Family::V4 as usize;
        const V6: usize = Family::V6 as usize;
        let mut found = [None, None];
        let mut v4 = pin!(resolver.lookup(name, Family::V4));
        let mut v6 = pin!(resolver.lookup(name, Family::V6));
        tokio::select! {
            it = &mut v4 => found[V4] = Some(it),
            it = &mut v6 => found[V6] = Some(it),
        }
        self.learn(&found);
        if found[V4].is_none() {
            found[V4] = Some(v4.await);
        } else {
            found[V6] = Some(v6.await);
        }
        self.learn(&found);
        found
    }

    /// Uses what was found, if it has any address.
    fn learn(&self, found: &Asked) {
        let old = self.answer.load_full();
        let Some(new) = old.with(found, clock::now()) else { return };
        let (recovered, addresses) = (matches!(old.condition, Condition::Failing(_)), new.sorted.len());
        let changed = old.sorted != new.sorted;
        if changed {
            tracing::debug!(name = self.host, addresses = ?new.addresses, "resolved");
        }
        self.publish(new, changed);
        if recovered {
            self.emit(ResolutionState::Resolved, addresses, "resolved again".to_owned());
        }
    }

    /// Keeps the addresses there are.
    fn fail(&self, reason: String) {
        self.failures.fetch_add(1, Relaxed);
        let old = self.answer.load_full();
        let mut new = Answer::clone(&old);
        new.condition = Condition::Failing(reason.clone());
        self.publish(new, old.condition == Condition::Unasked);
        if !matches!(old.condition, Condition::Failing(_)) {
            self.emit(ResolutionState::Failing, old.sorted.len(), reason);
        }
    }

    fn publish(&self, answer: Answer, changes: bool) {
        self.answer.store(Arc::new(answer));
        self.news.send_replace(());
        if changes {
            self.changes.notify_one();
        }
    }

    fn emit(&self, state: ResolutionState, addresses: usize, reason: String) {
        self.events.emit(What::Resolution { name: self.host.clone(), state, addresses, reason });
    }
}

/// How long what was found may be used; what went wrong if nothing was.
fn life(found: &Asked) -> Result<Duration, String> {
    let lives = found.iter().flatten().filter_map(|found| match found {
        Found::Addresses { life, .. } => Some(*life),
        _ => None,
    });
    lives.min().ok_or_else(|| {
        let failed = found.iter().flatten().filter(|found| **found != Found::None);
        failed.map(Found::reason).next().unwrap_or(Found::None.reason()).to_owned()
    })
}

impl Answer {
    fn none() -> Self {
        Self {
            families: [Vec::new(), Vec::new()],
            addresses: Arc::new([]),
            sorted: Vec::new(),
            condition: Condition::Unasked,
            good_at: None,
        }
    }

    /// This answer with what was found since; `None` if that is not one address. A family keeps its addresses where
    /// it failed or is not answered yet, and loses them where it has none and the other has some.
    fn with(&self, found: &Asked, now: Instant) -> Option<Self> {
        if !found.iter().any(|found| matches!(found, Some(Found::Addresses { .. }))) {
            return None;
        }
        let mut families = self.families.clone();
        for (old, found) in families.iter_mut().zip(found) {
            match found {
                // Servers turn the order; as long as it is the same set, nothing has changed.
                Some(Found::Addresses { addresses, .. }) if sorted(old) == sorted(addresses) => {}
                Some(Found::Addresses { addresses, .. }) => old.clone_from(addresses),
                Some(Found::None) => old.clear(),
                Some(Found::Unknown | Found::Failed(_) | Found::Silence) | None => {}
            }
        }
        let [v4, v6] = &families;
        let in_turn = (0..v4.len().max(v6.len())).flat_map(|i| [v6.get(i), v4.get(i)]);
        let addresses: Arc<[IpAddr]> = in_turn.flatten().copied().collect();
        let sorted = sorted(&addresses);
        Some(Self { families, addresses, sorted, condition: Condition::Good, good_at: Some(now) })
    }
}

fn sorted(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|it| it.parse().unwrap()).collect()
    }

    /// `-` = none, `x` = unknown, `!` = failed, `?` = not answered yet.
    fn found(text: &str) -> Option<Found> {
        match text {
            "-" => Some(Found::None),
            "x" => Some(Found::Unknown),
            "!" => Some(Found::Failed("it failed".to_owned())),
            "?" => None,
            text => Some(Found::Addresses { addresses: ips(text), life: Duration::from_secs(9) }),
        }
    }

    #[test]
    fn what_is_known_after_which_answers() {
        let check = |answers: &[[&str; 2]], expected: &str| {
            let mut answer = Answer::none();
            for [v4, v6] in answers {
                answer = answer.with(&[found(v4), found(v6)], clock::now()).unwrap_or(answer);
            }
            assert_eq!(*answer.addresses, ips(expected), "{answers:?}");
            assert_eq!(answer.sorted, sorted(&answer.addresses));
            assert_eq!(answer.condition == Condition::Good, !expected.is_empty());
        };
        check(&[["-", "-"]], "");
        check(&[["!", "!"]], "");
        check(&[["1.0.0.1 1.0.0.2", "-"]], "1.0.0.1 1.0.0.2");
        // In turn, IPv6 first.
        check(&[["1.0.0.1 1.0.0.2 1.0.0.3", "::1 ::2"]], "::1 1.0.0.1 ::2 1.0.0.2 1.0.0.3");
        // Whatever fails, the last good answer stays; of a family, too.
        check(&[["1.0.0.1", "::1"], ["!", "!"], ["-", "-"], ["-", "!"]], "::1 1.0.0.1");
        check(&[["1.0.0.1", "::1"], ["1.0.0.2", "!"]], "::1 1.0.0.2");
        check(&[["1.0.0.1", "::1"], ["1.0.0.2", "?"]], "::1 1.0.0.2");
        check(&[["1.0.0.1", "::1"], ["1.0.0.2", "x"]], "::1 1.0.0.2");
        check(&[["1.0.0.1", "::1"], ["1.0.0.2", "-"]], "1.0.0.2");
        check(&[["1.0.0.1", "::1"], ["-", "::2"]], "::2");
        // A turned order is no change.
        check(&[["1.0.0.1 1.0.0.2", "-"], ["1.0.0.2 1.0.0.1", "-"]], "1.0.0.1 1.0.0.2");
        check(&[["1.0.0.1 1.0.0.1", "-"]], "1.0.0.1 1.0.0.1");
    }

    #[test]
    fn the_shorter_life_counts_and_failures_are_told() {
        let longer = Found::Addresses { addresses: ips("1.0.0.1"), life: Duration::from_secs(10) };
        assert_eq!(life(&[Some(longer), found("::1")]), Ok(Duration::from_secs(9)));
        assert_eq!(life(&[found("!"), found("::1")]), Ok(Duration::from_secs(9)));
        assert_eq!(life(&[found("-"), found("!")]), Err("it failed".to_owned()));
        assert_eq!(life(&[found("x"), found("-")]), Err("no such name".to_owned()));
        assert_eq!(life(&[found("-"), found("-")]), Err("it has no address".to_owned()));
    }
}
