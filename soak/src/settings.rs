//! The configuration that Backstop gets, its variations, and files that it must refuse.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// The service, and the model that clients ask for.
pub(crate) const SERVICE: &str = "soak";

const POLICIES: [&str; 7] = [
    "peak_ewma",
    "round_robin",
    "random",
    "least_requests",
    "weighted_round_robin",
    "dynamic_weights",
    "rendezvous",
];

/// Attempts to carry a stream on: more than faults can meet it, so that none is lost.
const RESUMES: u32 = 8;
const RESUME_MODES: [&str; 2] = ["continue, replay", "replay, continue"];

/// What a reload changes. Timeouts stay far above what a healthy replica needs, and low enough that three of them in
/// a row end before the client's patience.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) balance: &'static str,
    /// One for each replica.
    pub(crate) weights: Vec<u32>,
    attempts: u32,
    resume_mode: &'static str,
    backoff_ms: u32,
    first_token_ms: u32,
    inter_token_ms: u32,
    response_ms: u32,
}

/// Where everything is.
pub(crate) struct Places<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) state_dir: &'a Path,
    pub(crate) replicas: &'a [String],
    /// Requests that Backstop takes at a time: more than there are clients, so that all are refused in the end if
    /// places are lost.
    pub(crate) places: u32,
}

impl Settings {
    pub(crate) fn first(replicas: usize) -> Self {
        Self {
            balance: POLICIES[0],
            weights: vec![1; replicas],
            attempts: 3,
            resume_mode: RESUME_MODES[0],
            backoff_ms: 100,
            first_token_ms: 2_500,
            inter_token_ms: 2_500,
            response_ms: 5_000,
        }
    }

    pub(crate) fn draw(replicas: usize, rng: &mut StdRng) -> Self {
        Self {
            balance: POLICIES[rng.random_range(0..POLICIES.len())],
            weights: (0..replicas).map(|_| rng.random_range(1..=4)).collect(),
            attempts: rng.random_range(3..=5),
            resume_mode: RESUME_MODES[rng.random_range(0..RESUME_MODES.len())],
            backoff_ms: rng.random_range(50..200),
            first_token_ms: rng.random_range(2_000..3_000),
            inter_token_ms: rng.random_range(2_000..3_000),
            response_ms: rng.random_range(4_000..6_000),
        }
    }

    /// The file; `step` makes each one different.
    pub(crate) fn yaml(&self, places: &Places, step: u64) -> String {
        let endpoints = places.replicas.iter().zip(&self.weights);
        let endpoints: Vec<String> = endpoints
            .map(|(url, weight)| format!("          - {{ url: \"{url}\", engine: sim, weight: {weight} }}\n"))
            .collect();
        let Places { listen, admin, state_dir, places, .. } = places;
        let Self { balance, attempts, resume_mode, backoff_ms, .. } = self;
        let Self { first_token_ms, inter_token_ms, response_ms, .. } = self;
        format!(
            "# Step {step}
listen: {listen}
admin: {{ listen: {admin} }}
store: \"memory:\"
state_dir: \"{}\"
services:
  - name: {SERVICE}
    versions:
      - name: v1
        endpoints:
{}    balance: {balance}
    admission: {{ limit: {places}, queue: 0 }}
    retry: {{ attempts: {attempts}, backoff: {backoff_ms}ms, budget: 100% }}
    resume: {{ attempts: {RESUMES}, modes: [{resume_mode}] }}
    timeouts: {{ connect: 1s, first_token: {first_token_ms}ms, inter_token: {inter_token_ms}ms, response: {response_ms}ms, total: 300s }}
    breaker: {{ failures: 5, open: 5s }}
    outlier: {{ interval: 5s, ejection: 10s }}
    failover: {{ drain: 2s }}
    health: {{ interval: 500ms, timeout: 1s, up: 1, down: 2, stall: 5s, slow_start: 5s }}
",
            state_dir.display(),
            endpoints.concat(),
        )
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights: Vec<String> = self.weights.iter().map(u32::to_string).collect();
        let Self { balance, attempts, resume_mode, .. } = self;
        let Self { first_token_ms, inter_token_ms, response_ms, .. } = self;
        write!(
            f,
            "{balance}, weights {}, {attempts} retries, resume by {resume_mode}, timeouts {first_token_ms}, {inter_token_ms} and {response_ms} ms",
            weights.join(" ")
        )
    }
}

/// What can be wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    Nothing,
    Half,
    Syntax,
    UnknownKey,
    WrongType,
    WrongUnit,
    SameTwice,
    UnknownPolicy,
}

impl Mistake {
    const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Half,
        Self::Syntax,
        Self::UnknownKey,
        Self::WrongType,
        Self::WrongUnit,
        Self::SameTwice,
        Self::UnknownPolicy,
    ];

    pub(crate) fn draw(rng: &mut impl Rng) -> Self {
        Self::ALL[rng.random_range(0..Self::ALL.len())]
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing in it",
            Self::Half => "its second half missing",
            Self::Syntax => "a bracket that is not closed",
            Self::UnknownKey => "a key that does not exist",
            Self::WrongType => "a word where a number belongs",
            Self::WrongUnit => "a duration without its unit",
            Self::SameTwice => "the same endpoint twice",
            Self::UnknownPolicy => "a balancing policy that does not exist",
        }
    }

    /// Makes it in a valid file.
    pub(crate) fn make_in(self, yaml: &str) -> String {
        let with = |from: &str, to: &str| yaml.replacen(from, to, 1);
        match self {
            Self::Nothing => String::new(),
            // In the middle of the first endpoint: what is left is no valid file by chance.
            Self::Half => yaml.split("engine").next().unwrap_or_default().to_owned(),
            Self::Syntax => with(" total: 300s }", " total: 300s"),
            Self::UnknownKey => with("    retry:", "    retries:"),
            Self::WrongType => with("attempts: ", "attempts: many"),
            Self::WrongUnit => with("total: 300s", "total: 300"),
            Self::SameTwice => {
                let first = yaml.lines().find(|line| line.contains("url:")).unwrap_or_default();
                with(first, &format!("{first}\n{first}"))
            }
            Self::UnknownPolicy => with("    balance: ", "    balance: best_"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn yaml() -> String {
        let replicas = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let places =
            Places { listen: any, admin: any, state_dir: Path::new("/x"), replicas: &replicas, places: 9 };
        Settings::first(2).yaml(&places, 0)
    }

    #[test]
    fn every_mistake_changes_the_file_in_its_own_way() {
        let good = yaml();
        let mut seen = vec![good.clone()];
        for mistake in Mistake::ALL {
            let bad = mistake.make_in(&good);
            assert!(!seen.contains(&bad), "{mistake:?}");
            seen.push(bad);
        }
    }

    #[test]
    fn variations_keep_the_promise_of_the_guard() {
        let mut rng = StdRng::seed_from_u64(1);
        let drawn: Vec<Settings> = (0..500).map(|_| Settings::draw(4, &mut rng)).collect();
        // Three replicas may be met in vain.
        assert!(drawn.iter().all(|it| it.attempts >= 3));
        for policy in POLICIES {
            assert!(drawn.iter().any(|it| it.balance == policy), "{policy}");
        }
        // Three of them pass before the total is used up.
        assert!(drawn.iter().all(|it| 3 * it.response_ms.max(it.first_token_ms) < 20_000));
    }
}
