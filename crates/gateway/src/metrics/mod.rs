//! What is counted, and how Prometheus reads it.
//!
//! [`ALL`] is the one table of metrics: the exposition and `docs/metrics.md` are made from it. Handles are resolved
//! when a table is linked; on the way of a request there are only atomics. Label values come from the configuration
//! and from fixed sets, never from clients, so that their number is bounded.

mod histogram;
mod page;
mod process;
mod service;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backstop_core::assign::BUCKETS;
use backstop_core::event::Medium;
use backstop_core::health::State;
use backstop_core::status::DependencyState;
use backstop_core::table::ResumeMode;
use backstop_openai::Usage;

use crate::Shared;
use crate::clock;
use crate::discovery::{Discovery, Figures};
use crate::endpoint::Endpoint;
use crate::events::Events;
use crate::latencies::Recent;
use crate::shadow::ShadowCounts;
use crate::table::Table;
pub(crate) use process::resident_bytes;
pub(crate) use service::{Rejected, ServiceMetrics};

use histogram::Histogram;
use page::Page;

/// One metric: its name, its kind, its labels and what it means.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const SERVICE: &[&str] = &["service"];
const VERSION: &[&str] = &["service", "version"];
const ENDPOINT: &[&str] = &["service", "version", "endpoint"];

macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(const $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: $labels, help: $help };)*
        /// All metrics, in the order in which they are exposed.
        pub(crate) const ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    REQUESTS = Counter "backstop_requests_total" &["service", "version", "outcome"],
        "Requests by how they ended: answered (whole), failed (an error in place of an answer), cut (a stream that ended with an error event), cancelled (the client left).";
    REFUSED = Counter "backstop_refused_total" &["code"],
        "Requests refused for a mistake of the client's, by the code of the error.";
    ERRORS = Counter "backstop_errors_total" &["service", "version", "code"],
        "Requests that failed or were cut, by the code of the error that the client got.";
    RETRIES = Counter "backstop_retries_total" VERSION,
        "Attempts beyond the first of a request.";
    DEGRADED = Counter "backstop_degraded_total" VERSION,
        "Requests of the version that were answered by an entry of its service's fallback.";
    CACHE = Counter "backstop_cache_requests_total" &["service", "version", "result"],
        "Requests whose answers may be kept, by whether there was one (result: hit or miss).";
    RESUMES = Counter "backstop_resumes_total" &["service", "version", "mode"],
        "Streams that ended too soon and were carried on by the version (mode: continue or replay).";
    QUEUE = Gauge "backstop_admission_queue_length" SERVICE,
        "Requests that wait for a place; only of services with `admission`, as all that follow with this prefix.";
    QUEUED = Histogram "backstop_admission_wait_seconds" SERVICE,
        "Time in the queue of requests that were admitted, 0 for those that did not have to wait.";
    LIMIT = Gauge "backstop_admission_limit" SERVICE,
        "How many requests the service takes at a time.";
    IN_PLACE = Gauge "backstop_admission_in_flight" SERVICE,
        "Requests that hold a place, until their client has its answer.";
    REJECTED = Counter "backstop_admission_rejected_total" &["service", "reason"],
        "Requests that were not admitted: queue_full, displaced (from a full queue by one with more right to it), waited_too_long, no_room (came from another service's fallback or resume, which does not wait).";
    RATE_LIMITED = Counter "backstop_rate_limited_total" &["service", "limit", "unit"],
        "Requests beyond a rate limit, by whose it is (limit: key, user or service) and what it counts (unit: requests or tokens).";
    FIRST_TOKEN = Histogram "backstop_first_token_seconds" VERSION,
        "From the request to the first meaningful output of a stream, retries included.";
    PER_TOKEN = Histogram "backstop_time_per_output_token_seconds" VERSION,
        "Mean time between the pieces of a whole stream after its first.";
    DURATION = Histogram "backstop_request_duration_seconds" VERSION,
        "From the request to the end of a whole answer.";
    TOKENS = Counter "backstop_tokens_total" &["service", "version", "direction"],
        "Tokens of whole answers as the engine reports them (direction: input or output); for streams without a report, the pieces of text.";
    ATTEMPTS = Counter "backstop_attempts_total" &["service", "version", "endpoint", "outcome"],
        "Attempts by what they said about the endpoint: success, failure, or neutral (client errors, back-pressure, clients that left).";
    IN_FLIGHT = Gauge "backstop_in_flight" ENDPOINT,
        "Requests whose upstream part has not ended.";
    STATE = Gauge "backstop_endpoint_state" &["service", "version", "endpoint", "state"],
        "1 for the state that the endpoint is in, 0 for the others.";
    BREAKER = Gauge "backstop_breaker_open" ENDPOINT,
        "1 while the circuit breaker is open or half-open.";
    EJECTED = Gauge "backstop_endpoint_ejected" ENDPOINT,
        "1 while the endpoint is ejected as an outlier.";
    TIER_SHARE = Gauge "backstop_tier_share_ratio" &["service", "version", "tier"],
        "Of the requests that reach a tier of endpoints which has others after it, how much it may take: 1 while it has its work, 0 while its standby has it, between them on the way.";
    ENGINE_RUNNING = Gauge "backstop_engine_requests_running" ENDPOINT,
        "Requests that the engine says it runs; only of engines that report it.";
    ENGINE_WAITING = Gauge "backstop_engine_requests_waiting" ENDPOINT,
        "Requests that the engine says wait in its queue; only of engines that report it.";
    ENGINE_KV = Gauge "backstop_engine_kv_cache_usage_ratio" ENDPOINT,
        "Used share of the engine's KV cache, 0 to 1; only of engines that report it.";
    ENGINE_MEMORY = Gauge "backstop_engine_resident_memory_bytes" ENDPOINT,
        "Resident memory of the engine's process; only of engines that report it.";
    ENGINE_CPU = Counter "backstop_engine_cpu_seconds_total" ENDPOINT,
        "Processor time that the engine's process has used; only of engines that report it.";
    MODEL_LOADED = Gauge "backstop_endpoint_model_loaded" ENDPOINT,
        "1 if the endpoint lists its model as loaded, 0 if not; only of endpoints that list models.";
    CHECK = Gauge "backstop_endpoint_check_value" &["service", "version", "endpoint", "check"],
        "Number that a check of `health.checks` last read, such as the used share of a GPU's memory; the label is the check's path and value.";
    DEPENDENCY = Gauge "backstop_dependency_up" &["service", "dependency"],
        "1 while the dependency is there, 0 while it is not or not checked yet.";
    RESOLUTION_FAILURES = Counter "backstop_resolution_failures_total" &["name"],
        "Questions for the addresses of a host name that were not answered well; the last good answer stays in use.";
    RESOLUTION_AGE = Gauge "backstop_resolution_age_seconds" &["name"],
        "Time since the addresses of a host name were last answered well; only of names that once were.";
    RESOLUTION_ADDRESSES = Gauge "backstop_resolution_addresses" &["name"],
        "Addresses of a host name that are in use.";
    CERTIFICATE = Gauge "backstop_certificate_not_after_seconds" &["listener"],
        "End of the certificate that a listener shows (listener: clients or admin), in seconds since the Unix epoch.";
    STORAGE = Gauge "backstop_storage_up" &["what"],
        "1 while what is decided about releases can be written down, 0 while it can't (what: store, or routes for `routes.json` in the state directory).";
    DRIFT = Gauge "backstop_config_drift" &["service"],
        "In how many points a service differs from what the configuration file says of it: by releases, run-time changes and restored snapshots.";
    RELEASE_SHARE = Gauge "backstop_release_share_ratio" VERSION,
        "Share of the service's requests that a release gives to its new version; only while one is on its way.";
    DRILL_PASSED = Gauge "backstop_drill_passed" SERVICE,
        "1 if the last drill of the service passed, 0 if it did not; only of services that had one.";
    DRILL_RECOVERY = Gauge "backstop_drill_recovery_seconds" SERVICE,
        "In the last drill: from the decision to go back until nothing more was assigned to the version that was left; only if it came to that.";
    DRILL_TIME = Gauge "backstop_drill_timestamp_seconds" SERVICE,
        "When the last drill of the service ended, in seconds since the Unix epoch.";
    SHADOWS = Counter "backstop_shadow_requests_total" &["service", "version", "outcome"],
        "Requests that the version was sent as a shadow (outcome: answered or failed), or was not because it had enough of them (left_out); only of the version that `shadow` names.";
    SHADOW_COMPARED = Counter "backstop_shadow_compared_total" VERSION,
        "Answers of a shadow that were compared with the client's. The sums that follow are of these.";
    SHADOW_SIMILARITY = Counter "backstop_shadow_similarity_total" VERSION,
        "Sum of the similarities: of the pairs of neighbouring words in either answer, the share that is in both, 0 to 1.";
    SHADOW_CHARACTERS = Counter "backstop_shadow_characters_total" &["service", "version", "side"],
        "Sum of the lengths (side: original or shadow).";
    SHADOW_SECONDS = Counter "backstop_shadow_seconds_total" &["service", "version", "side"],
        "Sum of the times that the whole answers took (side: original or shadow).";
    VERSION_INFO = Gauge "backstop_version_info" &["service", "version", "env"],
        "1 for each version, with what it is: stable, or gray for all others. To be joined by version with the others.";
    SWAP = Gauge "backstop_table_swap_seconds" &[],
        "How long it took, from the order, until the table that serves now was in its place.";
    REVISION = Gauge "backstop_table_revision" &[],
        "Revision of the configuration that serves.";
    BUILD = Gauge "backstop_build_info" &["release"],
        "1, with the release of this program.";
    MEMORY = Gauge "process_resident_memory_bytes" &[],
        "Resident memory of this process.";
    DESCRIPTORS = Gauge "process_open_fds" &[],
        "Open file descriptors of this process.";
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Answered,
    Failed,
    Cut,
    /// Nothing else was said of it: the client has gone.
    Cancelled,
    /// For a mistake of the client's, before it came to a version.
    Refused,
}

impl Ended {
    pub(crate) const COUNT: usize = 5;
    /// Those that versions count, for [`REQUESTS`].
    const OF_VERSIONS: [Self; 4] = [Self::Answered, Self::Failed, Self::Cut, Self::Cancelled];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Cut => "cut",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}

/// Counts by the code of an error: a fixed set, and not on the usual path.
#[derive(Debug, Default)]
pub(crate) struct ByCode(Mutex<BTreeMap<&'static str, u64>>);

impl ByCode {
    pub(crate) fn count(&self, code: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts of one version; they outlive changes of the table that keep it.
#[derive(Debug, Default)]
pub(crate) struct VersionMetrics {
    ended: [AtomicU64; Ended::COUNT],
    errors: ByCode,
    retries: AtomicU64,
    degraded: AtomicU64,
    /// Misses and hits.
    cache: [AtomicU64; 2],
    /// By [`ResumeMode`].
    resumes: [AtomicU64; 2],
    first_token: Histogram,
    per_token: Histogram,
    duration: Histogram,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    pub(crate) recent: Recent,
    pub(crate) shadow: ShadowCounts,
}

impl VersionMetrics {
    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after);
    }

    pub(crate) fn degraded(&self) {
        self.degraded.fetch_add(1, Relaxed);
    }

    pub(crate) fn looked(&self, hit: bool) {
        self.cache[usize::from(hit)].fetch_add(1, Relaxed);
    }

    pub(crate) fn resumed(&self, mode: ResumeMode) {
        self.resumes[mode as usize].fetch_add(1, Relaxed);
    }

    /// `code` is that of the error the client got, if any.
    pub(crate) fn ended(&self, ended: Ended, duration: Duration, code: Option<&'static str>) {
        self.ended[ended as usize].fetch_add(1, Relaxed);
        if ended == Ended::Answered {
            self.duration.observe(duration);
        } else if let Some(code) = code {
            self.errors.count(code);
        }
    }

    pub(crate) fn tokens(&self, usage: Usage) {
        self.input_tokens.fetch_add(usage.input, Relaxed);
        self.output_tokens.fetch_add(usage.output, Relaxed);
    }

    /// A whole stream brought `pieces` of text, the last one `elapsed` after the first.
    /// Gives the time between two.
    pub(crate) fn paced(&self, pieces: u64, elapsed: Duration) -> Option<Duration> {
        let gaps =
            pieces.checked_sub(1).and_then(|gaps| u32::try_from(gaps).ok()).filter(|gaps| *gaps > 0)?;
        self.per_token.observe(elapsed / gaps);
        Some(elapsed / gaps)
    }
}

/// The exposition, in Prometheus' text format.
pub(crate) fn page(shared: &Shared, discovery: &Discovery, events: &Events) -> String {
    let table = shared.table.load();
    let mut page = Page::default();
    for (code, count) in shared.refused.all() {
        page.add(&REFUSED, &[code], count as f64);
    }
    for (listener, end) in shared.certificates.ends() {
        page.add(&CERTIFICATE, &[listener], end as f64);
    }
    for medium in Medium::ALL {
        page.add(&STORAGE, &[medium.name()], f64::from(u8::from(events.works(medium))));
    }
    page.add(&REVISION, &[], table.revision as f64);
    page.add(&SWAP, &[], shared.swap.load(Relaxed) as f64 / 1e9);
    page.add(&BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
    if let Some(bytes) = resident_bytes() {
        page.add(&MEMORY, &[], bytes as f64);
    }
    if let Some(open) = process::open_descriptors() {
        page.add(&DESCRIPTORS, &[], open as f64);
    }
    for Figures { name, failures, age, addresses } in discovery.figures(clock::now()) {
        page.add(&RESOLUTION_FAILURES, &[&name], failures as f64);
        page.add(&RESOLUTION_ADDRESSES, &[&name], addresses as f64);
        if let Some(age) = age {
            page.add(&RESOLUTION_AGE, &[&name], age.as_secs_f64());
        }
    }
    add_versions(&mut page, &table);
    page.finish(ALL)
}

fn add_versions(page: &mut Page, table: &Table) {
    for service in table.services.values() {
        service::add(page, service);
        page.add(&DRIFT, &[&service.name], service.drift as f64);
        if let Some(split) = &service.split {
            let share = f64::from(split.buckets) / f64::from(BUCKETS);
            page.add(&RELEASE_SHARE, &[&service.name, &split.canary.name], share);
        }
        if let Some(shadow) = &service.shadow {
            add_shadow(page, [&service.name, &shadow.version.name], &shadow.version.metrics.shadow);
        }
        for dependency in &service.dependencies {
            let up = dependency.state() == DependencyState::Up;
            page.add(&DEPENDENCY, &[&service.name, &dependency.name], f64::from(u8::from(up)));
        }
        for version in &service.versions {
            let names = [&*service.name, &*version.name];
            let [service_name, version_name] = names;
            let metrics = &version.metrics;
            page.add(&VERSION_INFO, &[service_name, version_name, version.env], 1.0);
            for ended in Ended::OF_VERSIONS {
                let count = metrics.ended[ended as usize].load(Relaxed);
                page.add(&REQUESTS, &[service_name, version_name, ended.name()], count as f64);
            }
            for (code, count) in metrics.errors.all() {
                page.add(&ERRORS, &[service_name, version_name, code], count as f64);
            }
            page.add(&RETRIES, &names, metrics.retries.load(Relaxed) as f64);
            page.add(&DEGRADED, &names, metrics.degraded.load(Relaxed) as f64);
            for (count, result) in metrics.cache.iter().zip(["miss", "hit"]) {
                page.add(&CACHE, &[service_name, version_name, result], count.load(Relaxed) as f64);
            }
            for (mode, name) in [(ResumeMode::Continue, "continue"), (ResumeMode::Replay, "replay")] {
                let count = metrics.resumes[mode as usize].load(Relaxed);
                page.add(&RESUMES, &[service_name, version_name, name], count as f64);
            }
            page.add_histogram(&FIRST_TOKEN, &names, &metrics.first_token);
            page.add_histogram(&PER_TOKEN, &names, &metrics.per_token);
            page.add_histogram(&DURATION, &names, &metrics.duration);
            let tokens = [("input", &metrics.input_tokens), ("output", &metrics.output_tokens)];
            for (direction, count) in tokens {
                page.add(&TOKENS, &[service_name, version_name, direction], count.load(Relaxed) as f64);
            }
            if version.is_twin {
                continue;
            }
            for tier in version.tiers.iter().filter(|tier| tier.switch.is_some()) {
                page.add(&TIER_SHARE, &[service_name, version_name, &tier.name], tier.share());
            }
            for target in &version.targets {
                add_endpoint(page, names, &target.endpoint);
            }
        }
    }
}

fn add_shadow(page: &mut Page, [service, version]: [&str; 2], counts: &ShadowCounts) {
    let ShadowCounts { answered, failed, left_out, compared, similarity, characters, micros, .. } = counts;
    for (outcome, count) in [("answered", answered), ("failed", failed), ("left_out", left_out)] {
        page.add(&SHADOWS, &[service, version, outcome], count.load(Relaxed) as f64);
    }
    page.add(&SHADOW_COMPARED, &[service, version], compared.load(Relaxed) as f64);
    page.add(&SHADOW_SIMILARITY, &[service, version], similarity.load(Relaxed) as f64 / 1e6);
    for (side, (characters, micros)) in ["original", "shadow"].iter().zip(characters.iter().zip(micros)) {
        page.add(&SHADOW_CHARACTERS, &[service, version, side], characters.load(Relaxed) as f64);
        page.add(&SHADOW_SECONDS, &[service, version, side], micros.load(Relaxed) as f64 / 1e6);
    }
}

fn add_endpoint(page: &mut Page, [service, version]: [&str; 2], endpoint: &Endpoint) {
    let url = &*endpoint.id.url;
    let names = [service, version, url];
    for (outcome, count) in endpoint.attempts() {
        page.add(&ATTEMPTS, &[service, version, url, outcome], count as f64);
    }
    page.add(&IN_FLIGHT, &names, f64::from(endpoint.in_flight()));
    let now = endpoint.state();
    for state in State::ALL {
        page.add(&STATE, &[service, version, url, &state.to_string()], f64::from(u8::from(state == now)));
    }
    page.add(&BREAKER, &names, f64::from(u8::from(endpoint.breaker_is_open())));
    page.add(&EJECTED, &names, f64::from(u8::from(endpoint.is_ejected(clock::now()))));
    let report = endpoint.last_report();
    if let Some(loaded) = report.model_loaded {
        page.add(&MODEL_LOADED, &names, f64::from(u8::from(loaded)));
    }
    for (check, number) in &report.checks {
        page.add(&CHECK, &[service, version, url, check], *number);
    }
    if let Some(engine) = report.engine {
        page.add(&ENGINE_RUNNING, &names, engine.running as f64);
        page.add(&ENGINE_WAITING, &names, engine.waiting as f64);
        if let Some(usage) = engine.kv_usage {
            page.add(&ENGINE_KV, &names, usage);
        }
        if let Some(bytes) = engine.resident_bytes {
            page.add(&ENGINE_MEMORY, &names, bytes);
        }
        if let Some(seconds) = engine.cpu_seconds {
            page.add(&ENGINE_CPU, &names, seconds);
        }
    }
}

/// `docs/metrics.md`, which a test keeps up to date.
#[cfg(test)]
pub(crate) fn reference() -> String {
    let mut out = String::from(
        "# Metrics\n\n<!-- Generated from crates/gateway/src/metrics/mod.rs: UPDATE_DOCS=1 cargo test -p backstop-gateway -->\n\n\
         Prometheus reads them from `/metrics` on the admin port. Counters begin at 0 with the process; those of a\n\
         version live as long as the configuration names it.\n\n\
         | Metric | Kind | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for Metric { name, kind, labels, help } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        out += &format!("| `{name}` | {} | {labels} | {help} |\n", kind.name());
    }
    let bounds = histogram::BOUNDS.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    out += &format!("\nHistograms have these upper bounds, in seconds: {bounds}.\n");
    out
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        // What the control plane has to say follows; a test of its own keeps that up to date.
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let (ours, theirs) = written.split_at(written.find("\n## Of releases\n").unwrap_or(written.len()));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, reference() + theirs).unwrap();
        } else {
            assert!(ours == reference(), "run: UPDATE_DOCS=1 cargo test -p backstop-gateway");
        }
    }

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.name != metric.name), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
