//! What requests are told apart by: the units of a split, cookies and networks.

use std::net::{IpAddr, Ipv6Addr};

use backstop_core::table::UnitSource;
use serde::{Serialize, Serializer};

use crate::http::HeaderName;
use crate::problem::nearest;
use crate::units::{Complaint, Unit, unit};

/// What a request is split by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sticky(pub(crate) UnitSource);

unit!(Sticky);

impl Sticky {
    pub(crate) fn header(name: &str) -> Self {
        Self(UnitSource::Header(name.to_owned()))
    }

    pub(crate) fn cookie(name: &str) -> Self {
        Self(UnitSource::Cookie(name.to_owned()))
    }
}

impl Unit for Sticky {
    const FORMAT: &'static str = "split-unit";
    const EXPECTED: &'static str = "one of `header:NAME`, `cookie:NAME`, `body:user`, `key`, `ip` or `request`, such as `header:x-session-id`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is nothing to split requests by", Sticky::EXPECTED);
        let source = match text.split_once(':') {
            Some(("header", name)) => {
                let HeaderName(name) = HeaderName::parse(name)
                    .map_err(|_| NOT.hint("put the name of a header after `header:`"))?;
                UnitSource::Header(name)
            }
            Some(("cookie", name)) => {
                let CookieName(name) = CookieName::parse(name)
                    .map_err(|_| NOT.hint("put the name of a cookie after `cookie:`"))?;
                UnitSource::Cookie(name)
            }
            Some(("body", "user")) => UnitSource::User,
            None if text == "key" => UnitSource::Key,
            None if text == "ip" => UnitSource::Ip,
            None if text == "request" => UnitSource::Request,
            _ => return Err(meant(text).map_or(NOT, |hint| NOT.hint(hint))),
        };
        Ok(Self(source))
    }
}

fn meant(text: &str) -> Option<&'static str> {
    const HINTS: [(&str, &str); 9] = [
        ("header", "did you mean `header:NAME`?"),
        ("cookie", "did you mean `cookie:NAME`?"),
        ("body:user", "did you mean `body:user`?"),
        ("user", "did you mean `body:user`?"),
        ("key", "did you mean `key`?"),
        ("api_key", "did you mean `key`?"),
        ("ip", "did you mean `ip`?"),
        ("request", "did you mean `request`?"),
        ("session", "did you mean `header:x-session-id`?"),
    ];
    let kind = if text.starts_with("body") { text } else { text.split(':').next().unwrap_or_default() };
    let name = nearest(kind, HINTS.iter().map(|(name, _)| *name))?;
    HINTS.iter().find(|(known, _)| *known == name).map(|(_, hint)| *hint)
}

impl Serialize for Sticky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            UnitSource::Header(name) => serializer.collect_str(&format_args!("header:{name}")),
            UnitSource::Cookie(name) => serializer.collect_str(&format_args!("cookie:{name}")),
            UnitSource::User => serializer.serialize_str("body:user"),
            UnitSource::Key => serializer.serialize_str("key"),
            UnitSource::Ip => serializer.serialize_str("ip"),
            UnitSource::Request => serializer.serialize_str("request"),
        }
    }
}

/// What a request's body names as `user`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User(pub(crate) String);

unit!(User);

impl Unit for User {
    const FORMAT: &'static str = "user";
    const EXPECTED: &'static str = "what requests name as `user`, 1 to 256 characters";

    fn parse(text: &str) -> Result<Self, Complaint> {
        if (1..=256).contains(&text.chars().count()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Complaint::new("is not a user", Self::EXPECTED))
        }
    }
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Name of a cookie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CookieName(pub(crate) String);

unit!(CookieName);

impl Unit for CookieName {
    const FORMAT: &'static str = "cookie-name";
    const EXPECTED: &'static str = "the name of a cookie, such as `backstop`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        // What is allowed in the name of a header is allowed here, but the case matters.
        HeaderName::parse(text).map_err(|_| Complaint::new("is not the name of a cookie", Self::EXPECTED))?;
        Ok(Self(text.to_owned()))
    }
}

impl Serialize for CookieName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Value of a cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CookieText(pub(crate) String);

unit!(CookieText);

impl Unit for CookieText {
    const FORMAT: &'static str = "cookie-value";
    const EXPECTED: &'static str =
        "the whole value of the cookie: visible ASCII characters, but no space, `\"`, `,`, `;` or `\\`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        let valid = |b: u8| b.is_ascii_graphic() && !b"\",;\\".contains(&b);
        if !text.is_empty() && text.bytes().all(valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Complaint::new("is not the value of a cookie", Self::EXPECTED))
        }
    }
}

impl Serialize for CookieText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) ip: IpAddr,
    pub(crate) bits: u8,
}

unit!(Network);

impl Unit for Network {
    const FORMAT: &'static str = "network";
    const EXPECTED: &'static str =
        "an address or a network, such as `10.1.2.3`, `10.1.0.0/16` or `2001:db8::/32`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint = Complaint::new("is not a network", Network::EXPECTED);
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| NOT)?;
        let width: u8 = if ip.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|bits| *bits <= width).ok_or(NOT)?
            }
            Some(_) => return Err(NOT),
        };
        if has_bits_beyond(ip, bits) {
            return Err(Complaint::new("has more than its first bits", Self::EXPECTED)
                .hint("set the bits of the address that are not in the network to 0"));
        }
        Ok(match ip {
            // Clients of IPv4 are known by their IPv4 address.
            IpAddr::V6(v6) if bits >= 96 => {
                v6.to_ipv4_mapped().map_or(Self { ip, bits }, |v4| Self { ip: v4.into(), bits: bits - 96 })
            }
            _ => Self { ip, bits },
        })
    }
}

fn has_bits_beyond(ip: IpAddr, bits: u8) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().checked_shl(bits.into()).unwrap_or(0) != 0,
        IpAddr::V6(ip) => Ipv6Addr::to_bits(ip).checked_shl(bits.into()).unwrap_or(0) != 0,
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.ip, self.bits))
    }
}
