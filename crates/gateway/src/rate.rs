//! Rate limits: what a request counts for, where that is kept, and what clients are told of it.
//!
//! The buckets are [`backstop_core::rate`]'s. They are in this process; a store that several gateways share is another
//! [`Store`].

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::rate::{Buckets, Charge, Exceeded, Level, Owner, Reason, Standing};
use backstop_openai::Usage;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::identity::Client;
use crate::table::Service;

/// End users that are remembered, over all services; some 200 bytes each.
const MOST_USERS: usize = 50_000;

/// Where the buckets are.
pub(crate) trait Store: Send + Sync {
    /// Takes all that is asked for, or nothing if any limit is in the way.
    fn take<'a>(&'a self, charges: &'a [Charge], now: Instant) -> Taking<'a>;

    /// Sets right what was taken: so many tokens it really were. Called as requests end, also those that are dropped:
    /// it must not block.
    fn settle(&self, charges: &[Charge], tokens: u64, now: Instant);

    /// Forgets keys and services that are not to be kept.
    fn retain(&self, keep: &dyn Fn(&Owner) -> bool);
}

pub(crate) type Taking<'a> = Pin<Box<dyn Future<Output = Result<Standing, Box<Exceeded>>> + Send + 'a>>;

/// Buckets in this process.
pub(crate) struct Memory(Mutex<Buckets>);

impl Default for Memory {
    fn default() -> Self {
        Self(Mutex::new(Buckets::new(MOST_USERS)))
    }
}

impl Store for Memory {
    fn take<'a>(&'a self, charges: &'a [Charge], now: Instant) -> Taking<'a> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(charges, now);
        Box::pin(std::future::ready(taken))
    }

    fn settle(&self, charges: &[Charge], tokens: u64, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).settle(charges, tokens, now);
    }

    fn retain(&self, keep: &dyn Fn(&Owner) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(keep);
    }
}

/// What a request counts for.
#[derive(Debug)]
pub(crate) struct Asks {
    /// Against the limits of the client's own.
    own: Vec<Charge>,
    /// As far as it can be told at its entry.
    pub(crate) tokens: Usage,
}

impl Asks {
    pub(crate) fn new(client: Option<&Client>, service: &Service, user: Option<&str>, tokens: Usage) -> Self {
        let all = total(tokens);
        let key = client.filter(|client| !client.limits.is_none()).map(|client| Charge {
            owner: Owner::Key(Arc::clone(&client.name)),
            limits: client.limits,
            tokens: all,
        });
        let user = user.filter(|user| !user.is_empty() && !service.limits_per_user.is_none());
        let user = user.map(|user| Charge {
            owner: Owner::User(digest(client.map_or("", |client| &client.tenant), &service.name, user)),
            limits: service.limits_per_user,
            tokens: all,
        });
        Self { own: key.into_iter().chain(user).collect(), tokens }
    }

    /// With the limits of the client's own, and those of `service` if it has any.
    pub(crate) fn at(&self, service: &Service) -> Vec<Charge> {
        let mut charges = self.own.clone();
        charges.extend(self.of(service));
        charges
    }

    /// With the limits of the client's own only.
    pub(crate) fn own(&self) -> &[Charge] {
        &self.own
    }

    /// The same for an answer of so many tokens at most.
    pub(crate) fn at_most(&self, output: u64) -> Self {
        let tokens = Usage { output: self.tokens.output.min(output), ..self.tokens };
        Self { own: self.own.clone(), tokens }
    }

    /// With the limits of `service` only.
    pub(crate) fn of(&self, service: &Service) -> Option<Charge> {
        let owner = Owner::Service(Arc::clone(&service.name));
        let charge = Charge { owner, limits: service.limits, tokens: total(self.tokens) };
        (!service.limits.is_none()).then_some(charge)
    }
}

fn total(tokens: Usage) -> u64 {
    tokens.input.saturating_add(tokens.output)
}

/// Names of tenants and services have no zero byte in them.
fn digest(tenant: &str, service: &str, user: &str) -> [u8; 32] {
    Sha256::digest([tenant, service, user].join("\0")).into()
}

/// What was taken from the buckets for a request.
pub(crate) struct Taken {
    store: Arc<dyn Store>,
    charges: Vec<Charge>,
    pub(crate) estimate: Usage,
    pub(crate) standing: Standing,
}

impl Taken {
    pub(crate) async fn take(
        store: &Arc<dyn Store>,
        charges: Vec<Charge>,
        estimate: Usage,
    ) -> Result<Self, Box<Exceeded>> {
        let standing = store.take(&charges, clock::now()).await?;
        Ok(Self { store: Arc::clone(store), charges, estimate, standing })
    }

    /// The request counts for what the other was taken for as well.
    pub(crate) fn join(&mut self, other: Self) {
        self.charges.extend(other.charges);
    }

    pub(crate) fn counts_for(&self, owner: &Owner) -> bool {
        self.charges.iter().any(|charge| charge.owner == *owner)
    }

    /// The request has ended, and took so many tokens.
    pub(crate) fn settle(self, tokens: u64) {
        self.store.settle(&self.charges, tokens, clock::now());
    }
}

/// Tells the client when to come back, or that it need not, and what it has left.
pub(crate) fn advise(exceeded: &Exceeded, headers: &mut HeaderMap) {
    show(&exceeded.standing, headers);
    match exceeded.reason {
        Reason::Wait(wait) => {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
            headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(millis));
        }
        Reason::TooLarge(_) => {
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
    }
}

/// Tells the client what it has left, as OpenAI does.
pub(crate) fn show(standing: &Standing, headers: &mut HeaderMap) {
    let mut show = |level: Option<Level>, [limit, remaining, reset]: [&'static str; 3]| {
        let Some(level) = level else { return };
        headers.insert(HeaderName::from_static(limit), HeaderValue::from(level.per_minute));
        headers.insert(HeaderName::from_static(remaining), HeaderValue::from(level.remaining));
        if let Ok(value) = HeaderValue::try_from(spoken(level.reset)) {
            headers.insert(HeaderName::from_static(reset), value);
        }
    };
    show(
        standing.requests,
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
    );
    show(
        standing.tokens,
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    );
}

/// `120ms`, `1.5s`, `6m0s`, `1h0m2s`.
fn spoken(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    // Written by f64, which leaves out what is not needed.
    let seconds = millis as f64 / 1000.0;
    match (hours, minutes) {
        (0, 0) if millis > 0 && millis < 1000 => format!("{millis}ms"),
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_clients_read_them() {
        for (millis, expected) in [
            (0, "0s"),
            (1, "1ms"),
            (120, "120ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (60_000, "1m0s"),
            (90_951, "1m30.951s"),
            (3_602_000, "1h0m2s"),
        ] {
            assert_eq!(spoken(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn users_of_different_tenants_and_services_differ() {
        let all =
            [digest("a", "s", "u"), digest("b", "s", "u"), digest("a", "t", "u"), digest("a", "s", "v")];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one));
        }
        assert_eq!(digest("a", "s", "u"), all[0]);
    }
}
