//! Requests that another version gets as well, whose answers nobody does: what would it say, and how fast?
//!
//! One begins when the client has its answer, or the beginning of it, so that it can't hold that up; nothing waits for it, few
//! run at a time, and none is tried again.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backstop_core::breaker::Outcome;
use backstop_core::similarity::similarity;
use backstop_core::table::ResumeSpec;
use backstop_openai::Api;
use backstop_openai::answer::text;
use http::HeaderValue;
use tokio::sync::oneshot;

use crate::attempt::{self, Won};
use crate::endpoint::{AnswerKind, Lease};
use crate::record::Record;
use crate::relay::Total;
use crate::request::{Routed, detached};
use crate::stream::Step;
use crate::table::{Version, Wish};
use crate::{Shared, clock, tasks};

/// The most that a version has to do at a time besides its own requests.
const MOST_SHADOWS: u32 = 64;

/// Which requests another version gets as well.
pub(crate) struct Shadow {
    pub(crate) version: Arc<Version>,
    pub(crate) share: f64,
    pub(crate) compare: bool,
}

/// Counts of one version as another's shadow.
#[derive(Debug, Default)]
pub(crate) struct ShadowCounts {
    running: AtomicU32,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) left_out: AtomicU64,
    pub(crate) compared: AtomicU64,
    /// In millionths.
    pub(crate) similarity: AtomicU64,
    /// Of the original, and of the shadow.
    pub(crate) characters: [AtomicU64; 2],
    pub(crate) micros: [AtomicU64; 2],
}

/// A whole answer.
pub(crate) struct Answer {
    /// `None` if it is not text, or not kept.
    pub(crate) text: Option<String>,
    pub(crate) took: Duration,
}

/// Begins a shadow of a request that `version` has answered, if it is to have one.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    routed: &Routed,
    version: &Version,
    won: &Won,
    record: &mut Record,
) {
    let Some(shadow) = &routed.shadow else { return };
    let is_good = !matches!(won, Won::Plain { status, .. } if !status.is_success());
    // What other APIs do may be done twice by that.
    let may = is_good && routed.api.is_json_post() && version.name != shadow.version.name;
    if !may || rand::random::<f64>() >= shadow.share {
        return;
    }
    let Some(running) = Running::begin(&shadow.version) else { return };
    let total = Total { deadline: clock::now() + routed.timeouts.total, limit: routed.timeouts.total };
    let mut request = Routed { total, ..routed.clone().detached() };
    let original = shadow.compare.then(|| {
        // Keeps the text.
        request.resume = Arc::new(ResumeSpec { attempts: 1, modes: Vec::new(), across: Vec::new() });
        let (sender, receiver) = oneshot::channel();
        record.compare(sender);
        receiver
    });
    let (shared, request_id) = (Arc::clone(shared), detached(&record.request_id));
    let task = async move {
        let ended = shared.unless_closing(run(&shared, &running.0, request, request_id)).await.flatten();
        let counts = &running.0.metrics.shadow;
        match &ended {
            Some(_) => counts.answered.fetch_add(1, Relaxed),
            None => counts.failed.fetch_add(1, Relaxed),
        };
        if let (Some(answer), Some(original)) = (ended, original)
            && let Some(Ok(original)) = shared.unless_closing(original).await
        {
            counts.compare(&original, &answer);
        }
    };
    drop(tasks::spawn("shadow", task));
}

/// A shadow that counts as running until it is dropped.
struct Running(Arc<Version>);

impl Running {
    /// `None` if there are too many.
    fn begin(version: &Arc<Version>) -> Option<Self> {
        let counts = &version.metrics.shadow;
        let running = Self(Arc::clone(version));
        if counts.running.fetch_add(1, Relaxed) < MOST_SHADOWS {
            return Some(running);
        }
        counts.left_out.fetch_add(1, Relaxed);
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.metrics.shadow.running.fetch_sub(1, Relaxed);
    }
}

impl ShadowCounts {
    fn compare(&self, original: &Answer, shadow: &Answer) {
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        for (side, answer) in [original, shadow].into_iter().enumerate() {
            self.micros[side].fetch_add(micros(answer.took), Relaxed);
            let characters = answer.text.as_ref().map_or(0, |text| text.chars().count());
            self.characters[side].fetch_add(characters as u64, Relaxed);
        }
        let alike = match (&original.text, &shadow.text) {
            (Some(one), Some(other)) => similarity(one, other),
            _ => 0.0,
        };
        self.similarity.fetch_add((alike * 1e6) as u64, Relaxed);
        self.compared.fetch_add(1, Relaxed);
    }
}

/// The version's answer; `None` if it has none.
async fn run(shared: &Shared, version: &Version, request: Routed, request_id: HeaderValue) -> Option<Answer> {
    let started = clock::now();
    let kind = if request.stream { AnswerKind::Stream } else { AnswerKind::Plain };
    let wish = Wish { kind, turn: version.next_turn(), session: request.session };
    let lease = version.lease(&[], wish, started)?;
    let asked = request.shaped(version);
    let (won, lease) = attempt::run(shared, &asked, &[], lease, &request_id).await.ok()?;
    let text = whole(won, lease, &asked).await?;
    Some(Answer { text, took: clock::now() - started })
}

/// Reads an answer to its end; its text, if it is one.
async fn whole(won: Won, lease: Lease, request: &Routed) -> Option<Option<String>> {
    let (mut reader, mut ended) = match won {
        Won::Plain { status, body, .. } => {
            lease.finish(if status.is_success() { Outcome::Success } else { Outcome::Neutral });
            return status.is_success().then(|| text(request.api, &body));
        }
        Won::Stream { reader, ended, .. } => (reader, ended),
    };
    while !ended {
        let deadline = request.total.deadline.min(clock::now() + request.timeouts.inter_token);
        match tokio::time::timeout_at(deadline.into(), poll_fn(|cx| reader.poll_step(cx))).await {
            Ok(Step::Events(_)) => lease.progress(),
            Ok(Step::End(_)) => ended = true,
            Ok(Step::Fault(_, fault)) => {
                lease.finish(fault.outcome());
                return None;
            }
            Err(_) => {
                let is_late = is_over(request.total.deadline);
                lease.finish(if is_late { Outcome::Neutral } else { Outcome::Failure });
                return None;
            }
        }
    }
    let is_text = matches!(request.api, Api::Chat | Api::Completions);
    let text = reader.state().transcript.text().filter(|_| is_text).map(str::to_owned);
    let failed = reader.state().failed;
    lease.finish(if failed { Outcome::Failure } else { Outcome::Success });
    reader.finish();
    (!failed).then_some(text)
}

fn is_over(deadline: Instant) -> bool {
    clock::now() >= deadline
}
