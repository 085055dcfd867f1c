//! How much may be asked for in a minute: token buckets.
//!
//! A bucket holds one minute's worth and is refilled continuously, so that a client may use all of it at once and then as
//! it comes in. Tokens of a request are not known before its end: an estimate is taken at its entry and set right
//! afterwards, which may leave a debt that later requests have to wait for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::table::RateSpec;

/// Whose bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An API key, by its name.
    Key(Arc<str>),
    /// An end user of a tenant at a service, by a digest of the three.
    User([u8; 32]),
    Service(Arc<str>),
}

/// What a request takes from the buckets of one owner: one request, and so many tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub owner: Owner,
    pub limits: RateSpec,
    pub tokens: u64,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    Requests,
    Tokens,
}

/// Why a request may not come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    pub owner: Owner,
    pub unit: Unit,
    pub per_minute: u64,
    pub reason: Reason,
    pub standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There will be enough after this time.
    Wait(Duration),
    /// It asks for so much, more than there ever is.
    TooLarge(u64),
}

/// What is left to a client, by unit that is limited: of several limits the one with the least left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub requests: Option<Level>,
    pub tokens: Option<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub per_minute: u64,
    pub remaining: u64,
    /// Until the bucket is full.
    pub reset: Duration,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        })
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, per_minute, .. } = self;
        let whose = match &self.owner {
            Owner::Key(_) => "this API key".to_owned(),
            Owner::User(_) => "this `user`".to_owned(),
            Owner::Service(name) => format!("the service `{name}`"),
        };
        match self.reason {
            Reason::Wait(wait) => {
                let seconds = wait.as_secs_f64();
                write!(f, "rate limit of {whose} reached: {per_minute} {unit} per minute; ")?;
                write!(f, "try again in {:.1} s", (seconds * 10.0).ceil() / 10.0)
            }
            Reason::TooLarge(asked) => {
                write!(
                    f,
                    "the request may take about {asked} {unit}, and the limit of {whose} is {per_minute} "
                )?;
                write!(f, "{unit} per minute: it can never be let in; ask for a shorter answer or send less")
            }
        }
    }
}

/// All buckets. Those of keys and services are as many as the configuration names; of users so many are
/// remembered, and the least recently seen are forgotten.
#[derive(Debug)]
pub struct Buckets {
    named: HashMap<Owner, Pair>,
    users: HashMap<[u8; 32], (u64, Pair)>,
    /// By when they were seen last.
    seen: BTreeMap<u64, [u8; 32]>,
    clock: u64,
    most_users: usize,
}

/// The buckets of one owner; `None` before a limit has been asked about.
#[derive(Debug, Clone, Copy, Default)]
struct Pair {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Below zero is a debt.
    level: f64,
    per_minute: f64,
    at: Instant,
}

impl Buckets {
    pub fn new(most_users: usize) -> Self {
        Self {
            named: HashMap::new(),
            users: HashMap::new(),
            seen: BTreeMap::new(),
            clock: 0,
            most_users: most_users.max(1),
        }
    }

    /// Takes everything, or nothing if any bucket has too little.
    ///
    /// # Errors
    /// The limit that is in the way: one of the client's own before the service's, and of those the one that is so for
    /// longest.
    pub fn take(&mut self, charges: &[Charge], now: Instant) -> Result<Standing, Box<Exceeded>> {
        let mut worst: Option<(Rank, Exceeded)> = None;
        for charge in charges {
            let pair = self.pair(&charge.owner);
            for (unit, per_minute, amount) in charge.units() {
                let bucket = pair.bucket(unit, per_minute, now);
                let Some(reason) = bucket.lacks(amount) else { continue };
                let rank = Rank::of(&charge.owner, reason);
                if worst.as_ref().is_none_or(|(worst, _)| rank > *worst) {
                    let (owner, standing) = (charge.owner.clone(), Standing::default());
                    worst = Some((rank, Exceeded { owner, unit, per_minute, reason, standing }));
                }
            }
        }
        let is_free = worst.is_none();
        let mut standing = Standing::default();
        for charge in charges {
            let pair = self.pair(&charge.owner);
            for (unit, per_minute, amount) in charge.units() {
                let bucket = pair.bucket(unit, per_minute, now);
                if is_free {
                    bucket.level -= amount as f64;
                }
                standing.add(unit, bucket.standing(per_minute));
            }
        }
        match worst {
            None => Ok(standing),
            Some((_, exceeded)) => Err(Box::new(Exceeded { standing, ..exceeded })),
        }
    }

    /// Sets right what was taken: so many tokens it really were.
    pub fn settle(&mut self, charges: &[Charge], tokens: u64, now: Instant) {
        for charge in charges {
            let Some(per_minute) = charge.limits.tokens_per_minute else { continue };
            // One that was forgotten meanwhile is full when it is needed again.
            let known = match &charge.owner {
                Owner::User(user) => self.users.get_mut(user).map(|(_, pair)| pair),
                named => self.named.get_mut(named),
            };
            if let Some(bucket) = known.and_then(|pair| pair.tokens.as_mut()) {
                bucket.refill(per_minute, now);
                bucket.add(charge.tokens as f64 - tokens as f64);
            }
        }
    }

    /// Forgets the keys and services that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) {
        self.named.retain(|owner, _| keep(owner));
    }

    fn pair(&mut self, owner: &Owner) -> &mut Pair {
        let user = match owner {
            Owner::User(user) => *user,
            named => return self.named.entry(named.clone()).or_default(),
        };
        self.clock += 1;
        if let Some((seen, _)) = self.users.get(&user) {
            self.seen.remove(seen);
        } else if self.users.len() >= self.most_users
            && let Some((_, oldest)) = self.seen.pop_first()
        {
            self.users.remove(&oldest);
        }
        self.seen.insert(self.clock, user);
        let (seen, pair) = self.users.entry(user).or_default();
        *seen = self.clock;
        pair
    }
}

impl Charge {
    /// What is limited: the unit, the limit and the amount.
    fn units(&self) -> impl Iterator<Item = (Unit, u64, u64)> + use<> {
        let RateSpec { requests_per_minute, tokens_per_minute } = self.limits;
        let tokens = self.tokens;
        let requests = requests_per_minute.map(|per_minute| (Unit::Requests, per_minute, 1));
        requests.into_iter().chain(tokens_per_minute.map(|per_minute| (Unit::Tokens, per_minute, tokens)))
    }
}

/// Which of several limits in the way to name.
#[derive(PartialEq, PartialOrd)]
struct Rank {
    is_own: bool,
    wait: Duration,
}

impl Rank {
    fn of(owner: &Owner, reason: Reason) -> Self {
        let wait = match reason {
            Reason::Wait(wait) => wait,
            Reason::TooLarge(_) => Duration::MAX,
        };
        Self { is_own: !matches!(owner, Owner::Service(_)), wait }
    }
}

impl Pair {
    fn bucket(&mut self, unit: Unit, per_minute: u64, now: Instant) -> &mut Bucket {
        let bucket = match unit {
            Unit::Requests => &mut self.requests,
            Unit::Tokens => &mut self.tokens,
        };
        let full = Bucket { level: per_minute as f64, per_minute: per_minute as f64, at: now };
        let bucket = bucket.get_or_insert(full);
        bucket.refill(per_minute, now);
        bucket
    }
}

impl Bucket {
    /// As of now, at what the limit is now. Another limit than before is another speed; what is there stays, as far as
    /// it fits.
    fn refill(&mut self, per_minute: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level += self.per_minute / 60.0 * elapsed;
        self.per_minute = per_minute as f64;
        self.add(0.0);
    }

    fn add(&mut self, amount: f64) {
        self.level = (self.level + amount).min(self.per_minute);
    }

    fn lacks(&self, amount: u64) -> Option<Reason> {
        if amount as f64 > self.per_minute {
            return Some(Reason::TooLarge(amount));
        }
        let lacking = amount as f64 - self.level;
        // Sums of many parts are not exact to the last bit.
        (lacking > 1e-6).then(|| Reason::Wait(self.time_for(lacking)))
    }

    fn standing(&self, per_minute: u64) -> Level {
        let remaining = self.level.max(0.0) as u64;
        Level { per_minute, remaining, reset: self.time_for(self.per_minute - self.level) }
    }

    /// How long it takes for so much to come in. Rounded up, so that it is there then.
    fn time_for(&self, amount: f64) -> Duration {
        let seconds = (amount.max(0.0) / self.per_minute * 60.0 * 1000.0).ceil() / 1000.0;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

impl Standing {
    fn add(&mut self, unit: Unit, level: Level) {
        let least = match unit {
            Unit::Requests => &mut self.requests,
            Unit::Tokens => &mut self.tokens,
        };
        if least.is_none_or(|least| level.remaining < least.remaining) {
            *least = Some(level);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(requests: u64, tokens: u64) -> RateSpec {
        let some = |limit: u64| (limit > 0).then_some(limit);
        RateSpec { requests_per_minute: some(requests), tokens_per_minute: some(tokens) }
    }

    fn key(limits: RateSpec, tokens: u64) -> Charge {
        Charge { owner: Owner::Key("k".into()), limits, tokens }
    }

    fn service(limits: RateSpec, tokens: u64) -> Charge {
        Charge { owner: Owner::Service("s".into()), limits, tokens }
    }

    fn user(number: u8, limits: RateSpec) -> Charge {
        Charge { owner: Owner::User([number; 32]), limits, tokens: 0 }
    }

    fn wait(result: Result<Standing, Box<Exceeded>>) -> Duration {
        match result {
            Ok(_) => Duration::ZERO,
            Err(exceeded) => match exceeded.reason {
                Reason::Wait(wait) => wait,
                Reason::TooLarge(_) => Duration::MAX,
            },
        }
    }

    #[test]
    fn a_minutes_worth_at_once_then_as_it_comes_in() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1);
        let ask = |buckets: &mut Buckets, millis: u64| {
            wait(buckets.take(&[key(limits(60, 0), 0)], start + Duration::from_millis(millis))).as_millis()
        };
        assert!((0..60).all(|_| ask(&mut buckets, 0) == 0));
        assert_eq!([ask(&mut buckets, 0), ask(&mut buckets, 0), ask(&mut buckets, 400)], [1000, 1000, 600]);
        assert_eq!([ask(&mut buckets, 1000), ask(&mut buckets, 1000)], [0, 1000], "as promised, and once");
        // An hour is worth no more than a minute.
        assert_eq!((0..70).filter(|_| ask(&mut buckets, 3_600_000) == 0).count(), 60);
    }

    #[test]
    fn an_estimate_is_set_right() {
        let now = Instant::now();
        let mut buckets = Buckets::new(1);
        let charge = [key(limits(0, 600), 500)];
        let left =
            |result: Result<Standing, Box<Exceeded>>| result.map(|it| it.tokens.expect("limited").remaining);
        assert_eq!(left(buckets.take(&charge, now)), Ok(100));
        assert_eq!(wait(buckets.take(&charge, now)), Duration::from_secs(40));
        buckets.settle(&charge, 20, now);
        assert_eq!(left(buckets.take(&charge, now)), Ok(80));
        // It took far more than was thought: the debt has to be waited for.
        buckets.settle(&charge, 1180, now);
        let small = [key(limits(0, 600), 10)];
        let exceeded = buckets.take(&small, now).expect_err("in debt");
        assert_eq!(exceeded.reason, Reason::Wait(Duration::from_secs(61)));
        assert_eq!(exceeded.standing.tokens.map(|it| (it.remaining, it.reset.as_secs())), Some((0, 120)));
        assert_eq!(wait(buckets.take(&small, now + Duration::from_secs(61))), Duration::ZERO);
        // Giving back never makes more than a minute's worth.
        buckets.settle(&[key(limits(0, 600), 5000)], 0, now + Duration::from_secs(61));
        assert_eq!(left(buckets.take(&small, now + Duration::from_secs(61))), Ok(590));
    }

    #[test]
    fn everything_or_nothing() {
        let now = Instant::now();
        let mut buckets = Buckets::new(4);
        let all = |tokens| {
            [key(limits(10, 1000), tokens), user(1, limits(2, 0)), service(limits(100, 500), tokens)]
        };
        let standing = buckets.take(&all(100), now).expect("room");
        assert_eq!(standing.requests.map(|it| (it.per_minute, it.remaining)), Some((2, 1)), "the least");
        assert_eq!(standing.tokens.map(|it| (it.per_minute, it.remaining)), Some((500, 400)));
        let named = |result: Result<Standing, Box<Exceeded>>| {
            let exceeded = result.expect_err("a limit in the way");
            (exceeded.owner, exceeded.unit, exceeded.per_minute)
        };
        assert_eq!(
            named(buckets.take(&all(450), now)),
            (Owner::Service("s".into()), Unit::Tokens, 500),
            "only there is too little"
        );
        buckets.take(&all(1), now).expect("nothing was taken from the others");
        // The client's own limits come first.
        assert_eq!(named(buckets.take(&all(450), now)), (Owner::User([1; 32]), Unit::Requests, 2));
        assert_eq!(named(buckets.take(&all(2000), now)), (Owner::Key("k".into()), Unit::Tokens, 1000));
    }

    #[test]
    fn what_never_fits_says_so() {
        let now = Instant::now();
        let mut buckets = Buckets::new(1);
        let exceeded = buckets.take(&[key(limits(0, 600), 601)], now).expect_err("too large");
        assert_eq!(exceeded.reason, Reason::TooLarge(601));
        assert_eq!(
            exceeded.to_string(),
            "the request may take about 601 tokens, and the limit of this API key is 600 tokens per minute: it can \
             never be let in; ask for a shorter answer or send less"
        );
        assert!(buckets.take(&[key(limits(0, 600), u64::MAX)], now).is_err());
        assert!(buckets.take(&[key(limits(0, 600), 600)], now).is_ok(), "all of it fits");
        assert!(buckets.take(&[service(limits(1, 0), 0)], now).is_ok());
        let exceeded = buckets.take(&[service(limits(1, 0), 0)], now).expect_err("used up");
        assert_eq!(
            exceeded.to_string(),
            "rate limit of the service `s` reached: 1 requests per minute; try again in 60.0 s"
        );
    }

    #[test]
    fn limits_change_with_the_configuration() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1);
        let ask = |buckets: &mut Buckets, limit, secs: u64| {
            wait(buckets.take(&[key(limits(limit, 0), 0)], start + Duration::from_secs(secs))).as_secs()
        };
        assert_eq!(ask(&mut buckets, 600, 0), 0);
        // Lower: no more than a new minute's worth.
        assert_eq!([ask(&mut buckets, 2, 0), ask(&mut buckets, 2, 0), ask(&mut buckets, 2, 0)], [0, 0, 30]);
        // Higher: faster from now on, but not full at once.
        assert_eq!(ask(&mut buckets, 60, 0), 1);
        assert_eq!(ask(&mut buckets, 60, 1), 0);
        buckets.retain(|owner| !matches!(owner, Owner::Key(_)));
        assert_eq!(ask(&mut buckets, 1, 1), 0, "another key of the same name");
    }

    #[test]
    fn the_least_recently_seen_users_are_forgotten() {
        let now = Instant::now();
        let mut buckets = Buckets::new(2);
        let ask = |buckets: &mut Buckets, number| buckets.take(&[user(number, limits(2, 0))], now).is_ok();
        assert!(ask(&mut buckets, 1) && ask(&mut buckets, 2) && ask(&mut buckets, 1));
        assert!(!ask(&mut buckets, 1));
        assert!(ask(&mut buckets, 3), "2 goes");
        assert!(!ask(&mut buckets, 1), "still remembered");
        assert!(ask(&mut buckets, 2) && ask(&mut buckets, 2), "and is new");
        assert_eq!((buckets.users.len(), buckets.seen.len()), (2, 2));
        buckets.settle(&[Charge { tokens: 5, ..user(9, limits(0, 5)) }], 0, now);
        assert_eq!(buckets.users.len(), 2, "settling brings nobody back");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// In no stretch of time more than a minute's worth and what came in, whatever is asked for when; and whoever
        /// waits as told gets in.
        #[test]
        fn never_more_than_allowed(
            per_minute in 1_u64..1000,
            asks in prop::collection::vec((0_u64..5000, 1_u64..100), 1..100),
        ) {
            let mut now = Instant::now();
            let start = now;
            let mut buckets = Buckets::new(1);
            let mut taken = 0;
            for (pause, tokens) in asks {
                now += Duration::from_millis(pause);
                let charge = [key(limits(0, per_minute), tokens)];
                match buckets.take(&charge, now) {
                    Ok(_) => taken += tokens,
                    Err(exceeded) => match exceeded.reason {
                        Reason::TooLarge(_) => prop_assert!(tokens > per_minute),
                        Reason::Wait(wait) => {
                            now += wait;
                            prop_assert!(buckets.take(&charge, now).is_ok(), "after {wait:?}");
                            taken += tokens;
                        }
                    },
                }
                let came_in = per_minute as f64 * (1.0 + (now - start).as_secs_f64() / 60.0);
                prop_assert!(taken as f64 <= came_in + 1e-6);
            }
        }
    }
}
