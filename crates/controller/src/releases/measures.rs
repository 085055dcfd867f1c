//! Numbers that releases are judged by and that are not counted by gateways: asked for and looked at.
//!
//! A task of its own asks; releases only ever see what it has heard, and how old that is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop_config::Prometheus;
use backstop_core::health::State;
use backstop_core::rollout::{
    ALL, Answer, Asked, EngineUse, Heard, Mean, Measured, Reading, Settings, Source,
};
use backstop_core::status::{EndpointStatus, Status};
use futures_util::StreamExt;
use futures_util::stream::iter;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{Failure, Kept, Releases, lock};
use crate::control::Current;
use crate::notify::Client;
use crate::prometheus::{Said, ask};

/// Questions that are asked at a time.
const AT_ONCE: usize = 8;
/// Rounds without an answer after which nothing is known.
const ROUNDS: u32 = 3;
/// How often it is looked whether there is somebody to ask.
const LOOK: Duration = Duration::from_secs(10);

/// What has been heard.
pub(super) struct Measures {
    client: Client,
    /// By release.
    heard: Mutex<BTreeMap<String, Vec<Pair>>>,
    /// There is something new to ask.
    news: Notify,
}

/// Of stable and of the canary.
type Pair = [Option<Known>; 2];

#[derive(Debug, Clone)]
struct Known {
    answer: Answer,
    since: Instant,
    silence: Option<String>,
}

impl Measures {
    pub(super) fn new() -> Self {
        Self { client: Client::new(), heard: Mutex::default(), news: Notify::new() }
    }

    /// A release has begun.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    fn readings(&self, release: &str) -> Vec<Reading> {
        let heard = lock(&self.heard);
        let pairs = heard.get(release).map_or(&[][..], Vec::as_slice);
        let heard = |known: &Option<Known>| {
            let Known { answer, since, silence } = known.clone()?;
            let age = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            Some(Heard { answer, age, silence })
        };
        pairs
            .iter()
            .map(|[stable, canary]| Reading { stable: heard(stable), canary: heard(canary) })
            .collect()
    }
}

impl Known {
    /// What is known after something was said, or was not.
    fn after(before: Option<Self>, said: Said) -> Self {
        let since = Instant::now();
        match (said, before) {
            (Said::Answered(answer), _) => Self { answer, since, silence: None },
            (Said::Silent(why), Some(before)) if !matches!(before.answer, Answer::Failed(_)) => {
                Self { silence: Some(why), ..before }
            }
            (Said::Silent(why), _) => Self { answer: Answer::Failed(why), since, silence: None },
        }
    }
}

impl Releases {
    /// Asks for the numbers that releases are judged by, for ever.
    ///
    /// # Cancel safety
    ///
    /// It can end anywhere; what was heard is asked again.
    pub async fn measure(self: Arc<Self>) {
        loop {
            let prometheus = self.control.current().config.prometheus();
            let pause = prometheus.as_ref().map_or(LOOK, |prometheus| prometheus.interval);
            if let Some(prometheus) = prometheus.filter(|_| lock(&self.epoch).is_some()) {
                self.ask_all(&prometheus).await;
            }
            drop(timeout(pause, self.measures.news.notified()).await);
        }
    }

    async fn ask_all(&self, prometheus: &Prometheus) {
        let running: Vec<Arc<Kept>> = lock(&self.seen).values().map(Arc::clone).collect();
        let running: Vec<_> = running.iter().filter(|kept| !kept.release.phase.is_final()).collect();
        lock(&self.measures.heard).retain(|id, _| running.iter().any(|kept| kept.release.id == *id));
        let questions: Vec<Question> = running.iter().flat_map(|kept| questions(kept)).collect();
        let asked = iter(questions).map(|question| async move {
            let said = ask(&self.measures.client, prometheus, &question.query).await;
            (question, said)
        });
        let mut asked = asked.buffer_unordered(AT_ONCE);
        while let Some((Question { release, index, arm, .. }, said)) = asked.next().await {
            let mut heard = lock(&self.measures.heard);
            let pairs = heard.entry(release).or_default();
            if pairs.len() <= index {
                pairs.resize(index + 1, Pair::default());
            }
            let known = &mut pairs[index][arm];
            *known = Some(Known::after(known.take(), said));
        }
    }

    /// Takes what has been heard and what engines use into a release's analysis, at `now` of the release's time.
    pub(super) fn take_measures(&self, kept: &mut Kept, status: &Status, now: u64, age: Option<u64>) {
        let release = &kept.release;
        let interval = self.control.current().config.prometheus().map_or(LOOK, |it| it.interval);
        let stale_after = u64::try_from((interval * ROUNDS).as_millis()).unwrap_or(u64::MAX);
        let (step, has_all) = (release.exposure().step, release.buckets() == ALL);
        let measured = Measured {
            readings: &self.measures.readings(&release.id),
            stale_after,
            stable: &engines(status, &release.service, &release.stable),
            canary: &engines(status, &release.service, &release.canary),
        };
        kept.analysis.measure(now, (step, age), has_all, measured);
    }

    /// Whether all is there that a release of `canary` in place of `stable` would be judged by.
    pub(super) async fn can_be_measured(
        &self,
        settings: &Settings,
        service: &str,
        (stable, canary): (&str, &str),
    ) -> Result<(), Failure> {
        let current = self.control.current();
        if let Some(missing) = missing_price(&current, settings, service, [stable, canary]) {
            let why = format!("`{missing}` has no `price`");
            return Err(Failure::Unmeasured { metric: Mean::Cost.name().to_owned(), why });
        }
        let status = self.control.data_plane().status();
        if let Some((metric, url)) = silent_engine(settings, &status, service, stable) {
            let why = format!("the engine at {url}, of the stable version, does not report it");
            return Err(Failure::Unmeasured { metric, why });
        }
        let questions = settings.questions();
        if questions.is_empty() {
            return Ok(());
        }
        let Some(prometheus) = current.config.prometheus() else {
            let metric = questions.into_iter().next().map(|asked| asked.name).unwrap_or_default();
            return Err(Failure::Unmeasured { metric, why: "there is no Prometheus to ask".to_owned() });
        };
        for Asked { name: metric, query } in questions {
            let version = if query.is_by_version() { stable } else { canary };
            let said = ask(&self.measures.client, &prometheus, &query.about(service, version)).await;
            match said {
                Said::Answered(Answer::Number(_)) => {}
                Said::Answered(Answer::Nothing(why) | Answer::Failed(why)) | Said::Silent(why) => {
                    return Err(Failure::Unmeasured { metric, why });
                }
            }
        }
        Ok(())
    }
}

/// What is asked about one version.
struct Question {
    release: String,
    /// Of the analysis' questions.
    index: usize,
    /// 0 = stable, 1 = the canary.
    arm: usize,
    query: String,
}

fn questions(kept: &Kept) -> Vec<Question> {
    let release = &kept.release;
    let mut questions = Vec::new();
    for (index, Asked { query, .. }) in kept.analysis.questions().into_iter().enumerate() {
        for (arm, version) in [&release.stable, &release.canary].into_iter().enumerate() {
            if query.is_by_version() || arm == 1 {
                let (release, query) = (release.id.clone(), query.about(&release.service, version));
                questions.push(Question { release, index, arm, query });
            }
        }
    }
    questions
}

/// The version whose price would have to be known and is not.
fn missing_price<'a>(
    current: &Current,
    settings: &Settings,
    service: &str,
    versions: [&'a str; 2],
) -> Option<&'a str> {
    let asks = settings.means.iter().any(|mean| mean.metric == Mean::Cost);
    versions.into_iter().find(|version| asks && !current.config.has_price(service, version))
}

/// The first metric that an engine of the stable version which is up does not report, and its URL.
fn silent_engine(
    settings: &Settings,
    status: &Status,
    service: &str,
    stable: &str,
) -> Option<(String, String)> {
    settings.gauges.iter().find_map(|gauge| {
        let reports = |endpoint: &&EndpointStatus| match gauge.source {
            Source::MemoryGrowth => endpoint.resident_bytes.is_some(),
            Source::Cpu => endpoint.cpu_seconds.is_some(),
            Source::Query(_) => true,
        };
        let is_up = |it: &&EndpointStatus| matches!(it.state, State::Healthy | State::Degraded);
        let mut up = endpoints(status, service, stable).filter(is_up);
        let silent = up.find(|endpoint| !reports(endpoint))?;
        Some((gauge.name.clone(), silent.url.clone()))
    })
}

fn endpoints<'a>(
    status: &'a Status,
    service: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a EndpointStatus> {
    let services = status.services.iter().filter(move |it| it.name == service);
    let versions = services.flat_map(|it| &it.versions).filter(move |it| it.name == version);
    versions.flat_map(|it| &it.endpoints)
}

fn engines(status: &Status, service: &str, version: &str) -> Vec<EngineUse> {
    let of = |it: &EndpointStatus| EngineUse {
        url: it.url.clone(),
        resident_bytes: it.resident_bytes,
        cpu_seconds: it.cpu_seconds,
    };
    endpoints(status, service, version).map(of).collect()
}
