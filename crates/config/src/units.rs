//! Values that carry their unit or form: durations, percentages, addresses, URLs, names.
//!
//! Each is parsed by one function, which the checker calls by the `format` in the schema and serde calls when
//! it builds the types; so what is checked is what is read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use backstop_core::table::Digest;
use serde::{Serialize, Serializer};

pub(crate) use crate::http::NotifyUrl;
use crate::http::{CheckUrl, HeaderName, HeaderText, HttpPath, HttpUrl};
use crate::measure::{MetricName, PromQuery, SecretText};
use crate::shaping::{Param, RequestHeader};
use crate::targeting::{CookieName, CookieText, Network, Sticky, User};
use crate::time::{Clock, DateTime, TimeZoneName};

/// Why a text is not a value of its kind. The texts never repeat the value: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Follows the value: "is not a duration".
    pub(crate) what: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) hint: Option<&'static str>,
}

impl Complaint {
    pub(crate) const fn new(what: &'static str, expected: &'static str) -> Self {
        Self { what, expected, hint: None }
    }

    pub(crate) const fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "value {}, expected {}", self.what, self.expected)
    }
}

/// A text with a form of its own.
pub(crate) trait Unit: Sized {
    /// `format` in the schema.
    const FORMAT: &'static str;
    /// What to write, for messages.
    const EXPECTED: &'static str;

    fn parse(text: &str) -> Result<Self, Complaint>;
}

/// Checks `text` against a `format` of the schema; formats that are not ours pass.
pub(crate) fn check_format(format: &str, text: &str) -> Result<(), Complaint> {
    fn check<U: Unit>(text: &str) -> Result<(), Complaint> {
        U::parse(text).map(drop)
    }
    match format {
        Span::FORMAT => check::<Span>(text),
        Percent::FORMAT => check::<Percent>(text),
        Listen::FORMAT => check::<Listen>(text),
        DnsServer::FORMAT => check::<DnsServer>(text),
        ByteSize::FORMAT => check::<ByteSize>(text),
        KeyHash::FORMAT => check::<KeyHash>(text),
        CheckUrl::FORMAT => check::<CheckUrl>(text),
        HttpUrl::FORMAT => check::<HttpUrl>(text),
        NotifyUrl::FORMAT => check::<NotifyUrl>(text),
        HttpPath::FORMAT => check::<HttpPath>(text),
        Name::FORMAT => check::<Name>(text),
        Store::FORMAT => check::<Store>(text),
        Secret::FORMAT => check::<Secret>(text),
        HeaderName::FORMAT => check::<HeaderName>(text),
        HeaderText::FORMAT => check::<HeaderText>(text),
        Clock::FORMAT => check::<Clock>(text),
        DateTime::FORMAT => check::<DateTime>(text),
        TimeZoneName::FORMAT => check::<TimeZoneName>(text),
        Sticky::FORMAT => check::<Sticky>(text),
        CookieName::FORMAT => check::<CookieName>(text),
        CookieText::FORMAT => check::<CookieText>(text),
        Network::FORMAT => check::<Network>(text),
        User::FORMAT => check::<User>(text),
        Param::FORMAT => check::<Param>(text),
        RequestHeader::FORMAT => check::<RequestHeader>(text),
        MetricName::FORMAT => check::<MetricName>(text),
        PromQuery::FORMAT => check::<PromQuery>(text),
        SecretText::FORMAT => check::<SecretText>(text),
        _ => Ok(()),
    }
}

/// What to write for a `format`, for messages and the reference.
pub(crate) fn expected(format: &str) -> Option<&'static str> {
    Some(match format {
        Span::FORMAT => Span::EXPECTED,
        Percent::FORMAT => Percent::EXPECTED,
        Listen::FORMAT => Listen::EXPECTED,
        DnsServer::FORMAT => DnsServer::EXPECTED,
        ByteSize::FORMAT => ByteSize::EXPECTED,
        KeyHash::FORMAT => KeyHash::EXPECTED,
        CheckUrl::FORMAT => CheckUrl::EXPECTED,
        HttpUrl::FORMAT => HttpUrl::EXPECTED,
        NotifyUrl::FORMAT => NotifyUrl::EXPECTED,
        HttpPath::FORMAT => HttpPath::EXPECTED,
        Name::FORMAT => Name::EXPECTED,
        Store::FORMAT => Store::EXPECTED,
        Secret::FORMAT => Secret::EXPECTED,
        HeaderName::FORMAT => HeaderName::EXPECTED,
        HeaderText::FORMAT => HeaderText::EXPECTED,
        Clock::FORMAT => Clock::EXPECTED,
        DateTime::FORMAT => DateTime::EXPECTED,
        TimeZoneName::FORMAT => TimeZoneName::EXPECTED,
        Sticky::FORMAT => Sticky::EXPECTED,
        CookieName::FORMAT => CookieName::EXPECTED,
        CookieText::FORMAT => CookieText::EXPECTED,
        Network::FORMAT => Network::EXPECTED,
        User::FORMAT => User::EXPECTED,
        Param::FORMAT => Param::EXPECTED,
        RequestHeader::FORMAT => RequestHeader::EXPECTED,
        MetricName::FORMAT => MetricName::EXPECTED,
        PromQuery::FORMAT => PromQuery::EXPECTED,
        SecretText::FORMAT => SecretText::EXPECTED,
        _ => return None,
    })
}

/// Reads through [`Unit::parse`] and describes itself as a string of that format.
macro_rules! unit {
    ($type:ty) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                <Self as crate::units::Unit>::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                <Self as crate::units::Unit>::FORMAT.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": <Self as crate::units::Unit>::FORMAT })
            }
        }
    };
}
pub(crate) use unit;

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

unit!(Span);

impl Unit for Span {
    const FORMAT: &'static str = "duration-with-unit";
    const EXPECTED: &'static str = "a number with a unit, such as `200ms`, `5s` or `10m`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a duration", Span::EXPECTED);
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit_millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(NOT),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit_millis).map(Self::millis).ok_or(NOT);
        }
        let number: f64 = number.parse().map_err(|_| NOT)?;
        let seconds = number * Duration::from_millis(unit_millis).as_secs_f64();
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| NOT)
    }
}

impl Span {
    pub(crate) const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub(crate) const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        // A unit is used from ten of it on, so that limits read as they are usually spoken of: 300s, 24h.
        let units = [(86_400_000, 2, "d"), (3_600_000, 1, "h"), (60_000, 10, "m"), (1000, 0, "s")];
        for (size, least, unit) in units {
            if millis.is_multiple_of(size) && millis / size >= least {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A share, 0 % to 100 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Percent(f64);

unit!(Percent);

impl Unit for Percent {
    const FORMAT: &'static str = "percent";
    const EXPECTED: &'static str = "a number from 0 to 100 followed by `%`, such as `20%` or `0.5%`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a percentage", Percent::EXPECTED);
        let number = text.strip_suffix('%').ok_or(NOT)?.trim_end();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(NOT);
        }
        let percent: f64 = number.parse().map_err(|_| NOT)?;
        if percent > 100.0 { Err(NOT) } else { Ok(Self(percent)) }
    }
}

impl Percent {
    pub(crate) const fn new(percent: f64) -> Self {
        Self(percent)
    }

    /// 0–1.
    pub(crate) fn share(self) -> f64 {
        self.0 / 100.0
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}%", self.0))
    }
}

/// A number of bytes, with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

unit!(ByteSize);

impl Unit for ByteSize {
    const FORMAT: &'static str = "byte-size";
    const EXPECTED: &'static str = "a whole number and `KiB`, `MiB` or `GiB`, such as `256MiB`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let not = Complaint::new("is not a size", Self::EXPECTED);
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit: u64 = match unit {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(not),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.filter(|bytes| (1..=1 << 40).contains(bytes)).map(Self).ok_or(not)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB")];
        let (size, unit) =
            units.into_iter().find(|(size, _)| self.0.is_multiple_of(*size)).unwrap_or((1 << 10, "KiB"));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An address and port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) SocketAddr);

unit!(Listen);

impl Unit for Listen {
    const FORMAT: &'static str = "listen-address";
    const EXPECTED: &'static str =
        "an IP address and a port, such as `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not an address to listen on", Listen::EXPECTED);
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| NOT)?;
            return Ok(Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        if text.starts_with(':') {
            return Err(NOT.hint("to listen on every interface, write the address `0.0.0.0`"));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(NOT.hint("the port is missing"));
        }
        text.parse().map(Self).map_err(|_| NOT)
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A DNS server; the port is 53 if not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DnsServer(pub(crate) SocketAddr);

unit!(DnsServer);

impl Unit for DnsServer {
    const FORMAT: &'static str = "dns-server";
    const EXPECTED: &'static str = "an IP address and perhaps a port, such as `10.0.0.2` or `[::1]:5353`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let with_port = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        let addr = with_port.or_else(|_| text.parse()).ok().filter(|addr| addr.port() > 0);
        addr.map(Self).ok_or(Complaint::new("is not the address of a DNS server", Self::EXPECTED))
    }
}

impl Serialize for DnsServer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// SHA-256 of a key, as `backstop key create` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyHash(pub(crate) Digest);

unit!(KeyHash);

impl Unit for KeyHash {
    const FORMAT: &'static str = "key-hash";
    const EXPECTED: &'static str = "`sha256:` and 64 hexadecimal digits, as `backstop key create` prints it";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let not = Complaint::new("is not the hash of a key", Self::EXPECTED);
        let Some(digits) = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64) else {
            return Err(if text.starts_with("sk-") {
                not.hint("this looks like a key itself; write its hash: `backstop key hash`")
            } else {
                not
            });
        };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or(not.clone())?;
            let low = char::from(pair[1]).to_digit(16).ok_or(not.clone())?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(Digest(digest)))
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("sha256:***")
    }
}

/// Name of a service or version: it appears in headers, metrics and URLs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(pub(crate) String);

unit!(Name);

impl Unit for Name {
    const FORMAT: &'static str = "name";
    const EXPECTED: &'static str = "1 to 128 visible ASCII characters without spaces, such as `chat` or `v1`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        if (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Complaint::new("is not a name", Self::EXPECTED))
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Where lasting state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// `memory:`: nothing outlives the process.
    Memory,
    /// `sqlite:PATH`: one database file.
    Sqlite(PathBuf),
}

unit!(Store);

impl Unit for Store {
    const FORMAT: &'static str = "store";
    const EXPECTED: &'static str = "`sqlite:` and a path, such as `sqlite:./backstop.db`, or `\"memory:\"`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("etcd", _)) => Err(Complaint::new("is not a store of this release", Self::EXPECTED)),
            _ => Err(Complaint::new("is not a store", Self::EXPECTED)),
        }
    }
}

impl Serialize for Store {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Memory => serializer.serialize_str("memory:"),
            Self::Sqlite(path) => serializer.collect_str(&format_args!("sqlite:{}", path.display())),
        }
    }
}

/// A key or password: never shown, not even in a problem.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

unit!(Secret);

impl Unit for Secret {
    const FORMAT: &'static str = "secret";
    const EXPECTED: &'static str =
        "the key as text without spaces, usually `\"${NAME}\"` from the environment";

    fn parse(text: &str) -> Result<Self, Complaint> {
        if text.is_empty() {
            Err(Complaint::new("is empty", Self::EXPECTED))
        } else if text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            // It is sent as a header's value.
            Err(Complaint::new("holds a space or a character that is not ASCII", Self::EXPECTED))
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}
