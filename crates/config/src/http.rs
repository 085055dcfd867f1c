//! Parts of HTTP that appear in a configuration: URLs, paths and headers.

use std::fmt;
use std::net::Ipv6Addr;

use backstop_core::table::{DependencyCheck, Scheme, Target};
use serde::{Serialize, Serializer};

use crate::units::{Complaint, Unit, unit};

/// Where an endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpUrl(pub(crate) Target);

unit!(HttpUrl);

impl Unit for HttpUrl {
    const FORMAT: &'static str = "http-url";
    const EXPECTED: &'static str = "`http://` or `https://`, a host, a port and perhaps a path, such as `http://10.0.0.7:8000` or `https://gpu-1/openai`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not an HTTP URL", HttpUrl::EXPECTED);
        let (target, path) = split_url(text, NOT)?;
        if path.contains('?') {
            return Err(NOT.hint("leave out the query and the fragment"));
        }
        Ok(Self(Target { base_path: base_path(path).to_owned(), ..target }))
    }
}

/// An HTTP URL without credentials and fragment → its target without base path, and its path with the query.
fn split_url(text: &str, not: Complaint) -> Result<(Target, &str), Complaint> {
    let (scheme, rest) = text.split_once("://").ok_or(not.clone().hint("begin it with `http://`"))?;
    let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return Err(not),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('#') {
        return Err(not.hint("leave out the query and the fragment"));
    }
    if authority.contains('@') {
        return Err(not.hint("leave out the user; a key for the upstream goes into `api_key`"));
    }
    let (host, port) = split_authority(authority, default_port).ok_or(not.clone())?;
    let (only_path, query) = path.split_once('?').unwrap_or((path, ""));
    if !is_path(only_path) || !is_query(query) {
        return Err(not);
    }
    Ok((Target { scheme, host: host.to_owned(), port, base_path: String::new() }, path))
}

/// Requests bring their own `/v1/…`, so a base that ends with it would double it.
fn base_path(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/')
}

/// Host (IPv6 without brackets) and port.
fn split_authority(authority: &str, default_port: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        (host, port)
    } else {
        let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(valid) {
            return None;
        }
        (host, port)
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0)?
        }
        _ => return None,
    };
    Some((host, port))
}

/// Empty, or `/` and what RFC 3986 allows in a path.
fn is_path(path: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b);
    (path.is_empty() || path.starts_with('/')) && path.bytes().all(valid)
}

fn is_query(query: &str) -> bool {
    query.bytes().all(|b| b.is_ascii_alphanumeric() || b"/?-._~!$&'()*+,;=:@%".contains(&b))
}

impl Serialize for HttpUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.url())
    }
}

/// A path on the endpoint's own host, with its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpPath(pub(crate) String);

unit!(HttpPath);

impl Unit for HttpPath {
    const FORMAT: &'static str = "http-path";
    const EXPECTED: &'static str = "a path that begins with `/`, such as `/health`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        if path.starts_with('/') && is_path(path) && is_query(query) {
            return Ok(Self(text.to_owned()));
        }
        let complaint = Complaint::new("is not a path", Self::EXPECTED);
        Err(if text.contains("://") {
            complaint.hint("the host is the endpoint's own; leave it out")
        } else {
            complaint
        })
    }
}

impl Serialize for HttpPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Name of a header, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeaderName(pub(crate) String);

unit!(HeaderName);

impl Unit for HeaderName {
    const FORMAT: &'static str = "header-name";
    const EXPECTED: &'static str = "the name of a header, such as `x-gray-release`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > 256 || !text.bytes().all(valid) {
            return Err(Complaint::new("is not the name of a header", Self::EXPECTED));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// Value of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeaderText(pub(crate) String);

unit!(HeaderText);

impl Unit for HeaderText {
    const FORMAT: &'static str = "header-value";
    const EXPECTED: &'static str = "the whole value of the header, in visible ASCII characters";

    fn parse(text: &str) -> Result<Self, Complaint> {
        // Proxies and clients strip spaces at the ends, so such a value would never match.
        let valid = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if valid && !text.is_empty() && text.trim() == text {
            Ok(Self(text.to_owned()))
        } else {
            Err(Complaint::new("is not the value of a header", Self::EXPECTED))
        }
    }
}

impl Serialize for HeaderName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for HeaderText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Where to look whether a dependency is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckUrl {
    pub(crate) check: DependencyCheck,
    written: String,
}

unit!(CheckUrl);

impl Unit for CheckUrl {
    const FORMAT: &'static str = "check-url";
    const EXPECTED: &'static str = "an HTTP URL that answers 200, such as `http://10.0.0.9:6333/healthz`, or `tcp://` with host and port";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a URL to check", CheckUrl::EXPECTED);
        let check = match text.strip_prefix("tcp://") {
            Some(authority) => {
                let (host, port) = split_authority(authority, 0).filter(|(_, port)| *port > 0).ok_or(NOT)?;
                DependencyCheck::Tcp { host: host.to_owned(), port }
            }
            None => {
                let (target, path) = split_url(text, NOT)?;
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                DependencyCheck::Http { target, path }
            }
        };
        Ok(Self { check, written: text.to_owned() })
    }
}

impl Serialize for CheckUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

/// Where somebody is told of events. The path is often all there is of a secret, so only the host is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct NotifyUrl {
    pub(crate) target: Target,
    /// With its query.
    pub(crate) path: String,
}

unit!(NotifyUrl);

impl Unit for NotifyUrl {
    const FORMAT: &'static str = "notify-url";
    const EXPECTED: &'static str = "an HTTP URL, such as `https://hooks.example/backstop`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not an HTTP URL", NotifyUrl::EXPECTED);
        // The hint of other URLs is for those of model servers.
        let (target, path) = split_url(text, NOT).map_err(|_| NOT)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { target, path })
    }
}

impl fmt::Debug for NotifyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/***", self.target.url())
    }
}

impl Serialize for NotifyUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}
