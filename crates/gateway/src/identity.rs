//! Who asks: clients by their API keys, operators by their tokens.
//!
//! Secrets are recognised by their SHA-256. What an attacker could learn from the time that a look-up takes is about
//! the digest of what they sent, which says nothing about other digests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backstop_core::table::{Digest, KeySpec, RateSpec, Role, TableSpec, TokenSpec};
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

use crate::fault::Refusal;

/// Everybody who is known.
#[derive(Default)]
pub(crate) struct Identities {
    /// Empty = everybody may use every service.
    keys: HashMap<Digest, Arc<Client>>,
    tokens: HashMap<Digest, Role>,
}

/// The holder of an API key.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: Arc<str>,
    /// Whom its requests count for.
    pub(crate) tenant: Arc<str>,
    pub(crate) limits: RateSpec,
    /// `None` = all.
    services: Option<Vec<String>>,
}

/// What an operator's token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Known(Role),
    Unknown,
    /// There are no tokens.
    Open,
}

impl Identities {
    pub(crate) fn new(spec: &TableSpec) -> Self {
        let token = |token: &TokenSpec| (token.digest, token.role);
        Self {
            keys: spec.keys.iter().map(|key| (key.digest, Arc::new(Client::new(key)))).collect(),
            tokens: spec.tokens.iter().map(token).collect(),
        }
    }

    /// The client that sent `headers`; `None` where no keys are asked for.
    pub(crate) fn client(&self, headers: &HeaderMap) -> Result<Option<&Arc<Client>>, Refusal> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let secret = secret(headers).ok_or(Refusal::NoKey)?;
        self.keys.get(&digest(secret)).map(Some).ok_or(Refusal::WrongKey)
    }

    /// Names of the keys that have rate limits.
    pub(crate) fn limited(&self) -> HashSet<&str> {
        self.keys.values().filter(|client| !client.limits.is_none()).map(|client| &*client.name).collect()
    }

    pub(crate) fn operator(&self, headers: &HeaderMap) -> Operator {
        if self.tokens.is_empty() {
            return Operator::Open;
        }
        let role = secret(headers).and_then(|secret| self.tokens.get(&digest(secret)));
        role.map_or(Operator::Unknown, |role| Operator::Known(*role))
    }
}

impl Client {
    fn new(spec: &KeySpec) -> Self {
        Self {
            name: spec.name.as_str().into(),
            tenant: spec.tenant.as_ref().unwrap_or(&spec.name).as_str().into(),
            limits: spec.limits,
            services: spec.services.clone(),
        }
    }

    pub(crate) fn may_use(&self, service: &str) -> bool {
        self.services.as_ref().is_none_or(|services| services.iter().any(|name| name == service))
    }
}

fn digest(secret: &[u8]) -> Digest {
    Digest(Sha256::digest(secret).into())
}

/// The key or token that a request brings: `authorization: Bearer …` as OpenAI's clients send it, `x-api-key` or
/// `api-key` as others do.
fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| {
        let (scheme, secret) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| secret.trim_ascii())
    });
    let given = match bearer {
        Some(bearer) => bearer,
        None => {
            ["x-api-key", "api-key"].iter().find_map(|name| headers.get(*name)).map(|value| value.as_bytes())
        }
    };
    given.filter(|secret| !secret.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_wherever_clients_put_it() {
        let spec = KeySpec {
            name: "a".into(),
            digest: digest(b"sk-1"),
            tenant: None,
            services: None,
            limits: RateSpec::default(),
        };
        let known = Identities::new(&TableSpec { keys: vec![spec], ..TableSpec::default() });
        let check = |lines: &[(&'static str, &'static str)], expected: Result<&str, &str>| {
            let headers = lines.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
            });
            let found = known.client(&headers.collect());
            let found =
                found.as_ref().map(|client| client.map_or("nobody", |it| &it.name)).map_err(Refusal::code);
            assert_eq!(found, expected, "{lines:?}");
        };
        check(&[("authorization", "Bearer sk-1")], Ok("a"));
        check(&[("authorization", "bearer  sk-1 ")], Ok("a"));
        check(&[("x-api-key", "sk-1")], Ok("a"));
        check(&[("api-key", "sk-1")], Ok("a"));
        check(&[], Err("missing_api_key"));
        check(&[("authorization", "Bearer ")], Err("missing_api_key"));
        check(&[("authorization", "Bearer sk-2")], Err("invalid_api_key"));
        check(&[("authorization", "Bearer sk-1x")], Err("invalid_api_key"));
        check(&[("authorization", "Basic c2stMQ==")], Err("missing_api_key"));
        check(&[("authorization", "sk-1")], Err("missing_api_key"));
        // What stands in `authorization` counts, right or wrong.
        check(&[("authorization", "Bearer sk-2"), ("x-api-key", "sk-1")], Err("invalid_api_key"));
        assert!(Identities::default().client(&HeaderMap::new()).is_ok_and(|client| client.is_none()));
    }
}
