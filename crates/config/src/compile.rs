//! Turns a valid configuration into the table that the planes share.

use backstop_core::table::{
    BalancePolicy, BreakerSpec, CheckSpec, EndpointSpec, Engine, HealthSpec, InferenceSpec, OutlierSpec,
    RetrySpec, RuleSpec, ServiceSpec, TableSpec, Timeouts, VersionSpec,
};

use crate::types;

pub(crate) fn table(services: &[types::Service], revision: u64) -> TableSpec {
    TableSpec { revision, services: services.iter().map(service).collect() }
}

fn service(service: &types::Service) -> ServiceSpec {
    let name = service.name.0.clone();
    let first = service.versions.first().map(|version| &version.name);
    let stable = service.stable.as_ref().or(first).map(|name| name.0.clone()).unwrap_or_default();
    ServiceSpec {
        models: service.models.clone().unwrap_or_else(|| vec![name.clone()]),
        name,
        stable,
        versions: service.versions.iter().map(version).collect(),
        rules: service.rules.iter().filter_map(rule).collect(),
        balance: balance(service.balance),
        timeouts: timeouts(&service.timeouts),
        retry: RetrySpec { attempts: service.retry.attempts, backoff: service.retry.backoff.0 },
        breaker: BreakerSpec { failures: service.breaker.failures, open: service.breaker.open.0 },
        outlier: OutlierSpec {
            interval: service.outlier.interval.0,
            ejection: service.outlier.ejection.0,
            max_ejected: service.outlier.max_ejected.share(),
        },
        health: health(&service.health),
    }
}

fn version(version: &types::Version) -> VersionSpec {
    VersionSpec { name: version.name.0.clone(), endpoints: version.endpoints.iter().map(endpoint).collect() }
}

fn endpoint(endpoint: &types::Endpoint) -> EndpointSpec {
    EndpointSpec {
        target: endpoint.url.0.clone(),
        engine: engine(endpoint.engine),
        model: endpoint.model.clone(),
        weight: endpoint.weight,
        priority: endpoint.priority,
        api_key: endpoint.api_key.as_ref().map(|key| key.0.clone()),
    }
}

/// `None` for a rule without header, which the check has ruled out.
fn rule(rule: &types::Rule) -> Option<RuleSpec> {
    let (name, value) = rule.matches.header.iter().next()?;
    Some(RuleSpec { header: (name.0.clone(), value.0.clone()), version: rule.version.0.clone() })
}

fn engine(engine: types::Engine) -> Engine {
    match engine {
        types::Engine::Vllm => Engine::Vllm,
        types::Engine::Sglang => Engine::Sglang,
        types::Engine::LlamaCpp => Engine::LlamaCpp,
        types::Engine::Ollama => Engine::Ollama,
        types::Engine::OpenAi => Engine::OpenAi,
        types::Engine::Sim => Engine::Sim,
    }
}

fn balance(balance: types::Balance) -> BalancePolicy {
    match balance {
        types::Balance::RoundRobin => BalancePolicy::RoundRobin,
        types::Balance::Random => BalancePolicy::Random,
        types::Balance::LeastRequests => BalancePolicy::LeastRequests,
        types::Balance::WeightedRoundRobin => BalancePolicy::WeightedRoundRobin,
        types::Balance::DynamicWeights => BalancePolicy::DynamicWeights,
        types::Balance::PeakEwma => BalancePolicy::PeakEwma,
        types::Balance::Rendezvous => BalancePolicy::Rendezvous,
    }
}

fn timeouts(timeouts: &types::Timeouts) -> Timeouts {
    Timeouts {
        connect: timeouts.connect.0,
        first_token: timeouts.first_token.0,
        inter_token: timeouts.inter_token.0,
        response: timeouts.response.0,
        total: timeouts.total.0,
    }
}

fn health(health: &types::Health) -> HealthSpec {
    HealthSpec {
        interval: health.interval.0,
        timeout: health.timeout.0,
        path: health.path.as_ref().map(|path| path.0.clone()),
        up: health.up,
        down: health.down,
        stall: health.stall.0,
        slow_start: health.slow_start.0,
        inference: health.inference.map(|inference| InferenceSpec {
            every: inference.every.0,
            max_latency: inference.max_latency.0,
        }),
        checks: health.checks.iter().map(check).collect(),
    }
}

fn check(check: &types::Check) -> CheckSpec {
    CheckSpec {
        path: check.url.0.clone(),
        json: check.json.clone(),
        max: check.max,
        equals: check.equals.clone(),
    }
}
