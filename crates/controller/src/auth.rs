//! Who may use the control API.
//!
//! With tokens: whoever bears one, as far as its role goes. Without: everybody on this machine, which is why the
//! listener is then a loopback address; but not a web page that a browser on this machine happens to show.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use backstop_core::table::{Role, TokenSpec};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tracing::warn;

use crate::api::Api;
use crate::change::Actor;
use crate::error::ApiError;

/// The log tells of failed authentications at most this often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Lets a request pass, with its [`Actor`] among the extensions.
pub(crate) async fn guard(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tokens = &api.control.current().tokens;
    let actor = if tokens.is_empty() {
        refuse_other_sites(&request)?;
        Actor::Local
    } else {
        let token = match authenticate(tokens, request.headers()) {
            Ok(token) => token,
            Err(error) => {
                api.failures.count();
                return Err(error);
            }
        };
        let needed = role_for(request.method());
        if token.role < needed {
            let message = format!("`{}` is a {}; this needs the role `{needed}`", token.name, token.role);
            return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
                .hint("use another token, or raise its `role` in `admin.tokens`"));
        }
        Actor::Token(token.name.clone())
    };
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

/// Looking is for viewers, everything else for operators.
fn role_for(method: &Method) -> Role {
    if matches!(*method, Method::GET | Method::HEAD) { Role::Viewer } else { Role::Operator }
}

fn authenticate<'t>(tokens: &'t [TokenSpec], headers: &HeaderMap) -> Result<&'t TokenSpec, ApiError> {
    let refused = |code, message: &str| {
        ApiError::new(StatusCode::UNAUTHORIZED, code, message)
            .hint("send `authorization: Bearer TOKEN` with one of the tokens in `admin.tokens`")
    };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bearer = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, secret)) = bearer else {
        return Err(refused("no_token", "this control API asks for a token"));
    };
    let digest = backstop_config::digest(secret.trim());
    // All are looked at, whichever it is, so that the time tells nothing.
    let (mut found, mut index) = (Choice::from(0), 0);
    for (position, token) in (0_u32..).zip(tokens) {
        let equal = token.digest.0.ct_eq(&digest.0);
        index = u32::conditional_select(&index, &position, equal);
        found |= equal;
    }
    if bool::from(found) {
        return Ok(&tokens[index as usize]);
    }
    Err(refused("wrong_token", "this is none of the tokens"))
}

/// A page of another site may make a browser send requests here, under its own name (`Origin`), or under a name of
/// its own that it has pointed at this machine (`Host`).
fn refuse_other_sites(request: &Request) -> Result<(), ApiError> {
    let forbidden = |message: String| {
        ApiError::new(StatusCode::FORBIDDEN, "other_site", message).hint(
            "without tokens the control API serves this machine only: use `127.0.0.1` or `localhost` in the URL, or \
             list `admin.tokens`",
        )
    };
    let host = request.headers().get(HOST).map(|value| value.to_str().unwrap_or_default());
    for authority in [host, request.uri().authority().map(Authority::as_str)].into_iter().flatten() {
        if !is_loopback(authority) {
            return Err(forbidden(format!("`{authority}` is not a name of this machine alone")));
        }
    }
    let Some(origin) = request.headers().get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let site = origin.split_once("://").map(|(_, site)| site);
    if site.is_some() && site == host {
        return Ok(());
    }
    Err(forbidden(format!("a page of `{origin}` may not use the control API")))
}

/// Whether `host` or `host:port` means this machine, whatever DNS says.
fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match address.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Counts failed authentications and tells of them now and then.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    untold: u64,
    told: Option<Instant>,
}

impl Failures {
    fn count(&self) {
        if let Some(failed) = self.due(Instant::now()) {
            warn!(failed, "authentication at the control API failed");
        }
    }

    /// How many there were since the last time, if they are to be told of now.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.untold += 1;
        if counted.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
            return None;
        }
        counted.told = Some(now);
        Some(std::mem::take(&mut counted.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for ours in [
            "localhost",
            "LOCALHOST:9090",
            "127.0.0.1:9090",
            "127.8.9.1",
            "[::1]:9090",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(ours), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example:9090",
            "10.0.0.1:9090",
            "0.0.0.0",
            "127.0.0.1.evil.example",
            "a@127.0.0.1@b",
            "[::2]:1",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn failures_are_told_of_now_and_then() {
        let failures = Failures::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(failures.due(start), Some(1));
        assert_eq!([1, 2, 9].map(|seconds| failures.due(after(seconds))), [None; 3]);
        assert_eq!(failures.due(after(11)), Some(4));
    }
}
