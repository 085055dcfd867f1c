//! Turns a valid configuration into the table that the planes share.

use backstop_core::table::{
    Across, Addresses, AdmissionLimit, AdmissionSpec, BalancePolicy, BreakerSpec, CacheSpec, CheckSpec,
    Condition, DependencyEffect, DependencySpec, DnsSpec, EndpointSpec, Engine, Failback, FailoverSpec,
    FallbackSpec, FallbackStep, HealthSpec, InferenceSpec, KeySpec, OutlierSpec, PriceSpec, Protocol,
    RateSpec, ReadinessSpec, RegionMode, RegionSpec, ResumeMode, ResumeSpec, RetrySpec, Role, RuleSpec,
    ServiceSpec, ShadowSpec, ShapeSpec, TableSpec, Timeouts, TlsSpec, TokenSpec, VersionSpec, When,
};
use sha2::{Digest as _, Sha256};

use crate::concurrency::Concurrency;
use crate::types;
use crate::units::{Name, Percent};

pub(crate) fn table(document: &types::Document, revision: u64) -> TableSpec {
    TableSpec {
        revision,
        region: document.region.as_ref().map(text),
        keys: document.keys.iter().map(key).collect(),
        tokens: document.admin.tokens.iter().map(token).collect(),
        dns: DnsSpec {
            servers: document.dns.servers.iter().map(|server| server.0).collect(),
            min_ttl: document.dns.min_ttl.0,
            max_ttl: document.dns.max_ttl.0,
        },
        readiness: ReadinessSpec {
            max_memory: limit(document.readiness.max_memory),
            max_cpu: limit(document.readiness.max_cpu),
        },
        services: document.services.iter().map(service).collect(),
    }
}

/// The whole is no limit.
fn limit(percent: Percent) -> Option<f64> {
    Some(percent.share()).filter(|share| *share < 1.0)
}

fn text(name: &Name) -> String {
    name.0.clone()
}

fn key(key: &types::Key) -> KeySpec {
    KeySpec {
        name: text(&key.name),
        digest: key.hash.0,
        tenant: key.tenant.as_ref().map(text),
        services: key.services.as_ref().map(|services| services.iter().map(text).collect()),
        limits: limits(key.limits),
    }
}

fn token(token: &types::Token) -> TokenSpec {
    TokenSpec {
        name: text(&token.name),
        digest: digest(&token.token.0),
        role: match token.role {
            types::Role::Viewer => Role::Viewer,
            types::Role::Operator => Role::Operator,
        },
    }
}

/// What a key or token is recognised by.
pub(crate) fn digest(secret: &str) -> backstop_core::table::Digest {
    backstop_core::table::Digest(Sha256::digest(secret).into())
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
        rules: service.rules.iter().map(rule).collect(),
        groups: service
            .groups
            .iter()
            .map(|(name, users)| (text(name), users.iter().map(|user| user.0.clone()).collect()))
            .collect(),
        sticky: service.sticky.iter().map(|unit| unit.0.clone()).collect(),
        trial: None,
        shadow: service.shadow.as_ref().map(|shadow| ShadowSpec {
            to: text(&shadow.to),
            share: shadow.share.share(),
            compare: shadow.compare,
        }),
        balance: balance(service.balance),
        regions: RegionSpec {
            mode: match service.regions.mode {
                types::RegionMode::ActiveActive => RegionMode::ActiveActive,
                types::RegionMode::ActivePassive => RegionMode::ActivePassive,
            },
            order: service.regions.order.iter().map(text).collect(),
        },
        dependencies: service.dependencies.iter().map(dependency).collect(),
        timeouts: timeouts(&service.timeouts),
        retry: RetrySpec {
            attempts: service.retry.attempts,
            backoff: service.retry.backoff.0,
            budget: service.retry.budget.share(),
            retry_after_max: service.retry.retry_after_max.0,
        },
        resume: ResumeSpec {
            attempts: service.resume.attempts,
            modes: service.resume.modes.iter().map(resume_mode).collect(),
            across: service.resume.across.iter().map(across).collect(),
        },
        fallback: service.fallback.iter().filter_map(fallback).collect(),
        cache: service.cache.map(|cache| CacheSpec {
            max_bytes: cache.max_bytes.0,
            ttl: cache.ttl.0,
            share_across_tenants: cache.share_across_tenants,
        }),
        admission: service.admission.map(admission),
        limits: limits(service.limits),
        limits_per_user: limits(service.limits_per_user),
        drift: 0,
        failover: FailoverSpec {
            failback: match service.failover.failback {
                types::Failback::Auto => Failback::Auto,
                types::Failback::Manual => Failback::Manual,
            },
            stable_for: service.failover.stable_for.0,
            ramp: service.failover.ramp.iter().map(|share| share.share()).collect(),
            drain: service.failover.drain.0,
        },
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
    VersionSpec {
        name: text(&version.name),
        endpoints: version.endpoints.iter().map(endpoint).collect(),
        request: shape(&version.request),
        price: version.price.map(|price| PriceSpec { input: price.input, output: price.output }),
        twin_of: None,
    }
}

fn shape(request: &types::Request) -> ShapeSpec {
    let params = request.params.iter().map(|(param, value)| (param.0.clone(), value.clone()));
    let headers = request.headers.iter().map(|(name, value)| (name.0.clone(), value.0.clone()));
    ShapeSpec { system: request.system.clone(), params: params.collect(), headers: headers.collect() }
}

fn endpoint(endpoint: &types::Endpoint) -> EndpointSpec {
    EndpointSpec {
        target: endpoint.url.0.clone(),
        engine: engine(endpoint.engine),
        model: endpoint.model.clone(),
        weight: endpoint.weight,
        priority: endpoint.priority,
        region: endpoint.region.as_ref().map(text),
        protocol: match endpoint.protocol {
            types::Protocol::Auto => Protocol::Auto,
            types::Protocol::Http1 => Protocol::Http1,
            types::Protocol::Http2 => Protocol::Http2,
        },
        tls: endpoint.tls.as_ref().map_or_else(TlsSpec::default, |tls| TlsSpec {
            ca: tls.ca.as_ref().map(Into::into),
            server_name: tls.server_name.clone(),
        }),
        addresses: match endpoint.addresses {
            types::Addresses::One => Addresses::One,
            types::Addresses::Each => Addresses::Each,
        },
        duty: endpoint.duty,
        ordered_by: None,
        api_key: endpoint.api_key.as_ref().map(|key| key.0.clone()),
    }
}

fn dependency(dependency: &types::Dependency) -> DependencySpec {
    DependencySpec {
        name: text(&dependency.name),
        check: dependency.url.check.clone(),
        effect: match dependency.effect {
            types::DependencyEffect::NotReady => DependencyEffect::NotReady,
            types::DependencyEffect::Degraded => DependencyEffect::Degraded,
        },
        interval: dependency.interval.0,
        timeout: dependency.timeout.0,
        up: dependency.up,
        down: dependency.down,
    }
}

fn rule(rule: &types::Rule) -> RuleSpec {
    let types::Match { header, cookie, user, group, key, ip } = &rule.matches;
    let headers = header.iter().map(|(name, value)| Condition::Header(name.0.clone(), value.0.clone()));
    let cookies = cookie.iter().map(|(name, value)| Condition::Cookie(name.0.clone(), value.0.clone()));
    let others = [
        user.as_ref().map(|user| Condition::User(user.0.clone())),
        group.as_ref().map(|name| Condition::Group(text(name))),
        key.as_ref().map(|name| Condition::Key(text(name))),
        ip.map(|network| Condition::Ip(network.ip, network.bits)),
    ];
    let when = headers.chain(cookies).chain(others.into_iter().flatten()).collect();
    RuleSpec { when, version: text(&rule.version) }
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

fn resume_mode(mode: &types::ResumeMode) -> ResumeMode {
    match mode {
        types::ResumeMode::Continue => ResumeMode::Continue,
        types::ResumeMode::Replay => ResumeMode::Replay,
    }
}

fn across(across: &types::Across) -> Across {
    match across {
        types::Across::Version => Across::Version,
        types::Across::Stable => Across::Stable,
        types::Across::Fallback => Across::Fallback,
    }
}

/// `None` for an entry without a step, which the check has ruled out.
fn fallback(fallback: &types::Fallback) -> Option<FallbackSpec> {
    let service = fallback.service.as_ref().map(|name| FallbackStep::Service(text(name)));
    let step = service
        .or(fallback.max_tokens.map(FallbackStep::MaxTokens))
        .or(fallback.cached.filter(|cached| *cached).map(|_| FallbackStep::Cached))
        .or(fallback.text.clone().map(FallbackStep::Static))?;
    let when = When {
        failure: fallback.when.contains(&types::Trouble::Failure),
        overload: fallback.when.contains(&types::Trouble::Overload),
    };
    Some(FallbackSpec { step, when })
}

fn admission(admission: types::Admission) -> AdmissionSpec {
    let limit = match admission.limit {
        Concurrency::Adaptive => AdmissionLimit::Adaptive { max: admission.max },
        Concurrency::Fixed(limit) => AdmissionLimit::Fixed(limit),
    };
    AdmissionSpec { limit, queue: admission.queue }
}

fn limits(limits: types::Limits) -> RateSpec {
    RateSpec { requests_per_minute: limits.requests_per_minute, tokens_per_minute: limits.tokens_per_minute }
}

fn timeouts(timeouts: &types::Timeouts) -> Timeouts {
    Timeouts {
        connect: timeouts.connect.0,
        first_token: timeouts.first_token.0,
        inter_token: timeouts.inter_token.0,
        response: timeouts.response.0,
        total: timeouts.total.0,
        queue: timeouts.queue.0,
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
