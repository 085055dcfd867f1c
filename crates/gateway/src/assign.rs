//! Which version a request is assigned to: by the first rule that matches, else the stable one.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use backstop_core::table::{Condition, RuleSpec};
use http::{HeaderMap, HeaderName, header};

use crate::identity::Client;
use crate::table::Version;

/// What tells a request from others.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// What the body names as `user`.
    pub(crate) user: Option<&'a str>,
    pub(crate) client: Option<&'a Client>,
    pub(crate) ip: IpAddr,
}

/// Sends requests to a version whatever the split is.
pub(crate) struct Rule {
    when: Vec<Test>,
    pub(crate) version: Arc<Version>,
}

/// A [`Condition`] with the users of its group.
enum Test {
    Header(HeaderName, String),
    Cookie(String, String),
    User(String),
    Group(HashSet<String>),
    Key(String),
    Ip(IpAddr, u8),
    /// Of something that there is none of.
    Never,
}

impl Rule {
    pub(crate) fn new(
        spec: &RuleSpec,
        groups: &BTreeMap<String, Vec<String>>,
        version: Arc<Version>,
    ) -> Self {
        Self { when: spec.when.iter().map(|condition| Test::new(condition, groups)).collect(), version }
    }

    pub(crate) fn matches(&self, asker: Asker<'_>) -> bool {
        self.when.iter().all(|test| test.holds(asker))
    }
}

impl Test {
    fn new(condition: &Condition, groups: &BTreeMap<String, Vec<String>>) -> Self {
        match condition {
            Condition::Header(name, value) => HeaderName::from_bytes(name.as_bytes())
                .map_or(Self::Never, |name| Self::Header(name, value.clone())),
            Condition::Cookie(name, value) => Self::Cookie(name.clone(), value.clone()),
            Condition::User(user) => Self::User(user.clone()),
            Condition::Group(name) => {
                groups.get(name).map_or(Self::Never, |users| Self::Group(users.iter().cloned().collect()))
            }
            Condition::Key(name) => Self::Key(name.clone()),
            Condition::Ip(network, bits) => Self::Ip(*network, *bits),
        }
    }

    fn holds(&self, asker: Asker<'_>) -> bool {
        match self {
            Self::Header(name, value) => {
                asker.headers.get_all(name).iter().any(|given| given.as_bytes() == value.as_bytes())
            }
            Self::Cookie(name, value) => cookies(asker.headers, name).any(|given| given == value.as_bytes()),
            Self::User(user) => asker.user == Some(user),
            Self::Group(users) => asker.user.is_some_and(|user| users.contains(user)),
            Self::Key(name) => asker.client.is_some_and(|client| *client.name == **name),
            Self::Ip(network, bits) => is_within(asker.ip, *network, *bits),
            Self::Never => false,
        }
    }
}

/// The values of the cookies called `name`. HTTP/2 clients may send each in a header of its own.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|all| all.as_bytes().split(|b| *b == b';'));
    pairs.filter_map(move |pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Whether `ip` shares the first `bits` bits of `network`. An IPv4 client is one however the listener shows it.
fn is_within(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (ip.to_canonical(), network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let differing = ip.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= u32::from(bits)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let differing = ip.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= u32::from(bits)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_clients_of_both_families() {
        let check = |ip: &str, network: &str, bits: u8, expected: bool| {
            let [ip, network] = [ip, network].map(|text| text.parse().expect("an address"));
            assert_eq!(is_within(ip, network, bits), expected, "{ip} in {network}/{bits}");
        };
        check("10.1.2.3", "10.1.0.0", 16, true);
        check("10.2.2.3", "10.1.0.0", 16, false);
        check("10.1.2.3", "10.1.2.3", 32, true);
        check("10.1.2.4", "10.1.2.3", 32, false);
        check("203.0.113.9", "0.0.0.0", 0, true);
        check("::ffff:10.1.2.3", "10.1.0.0", 16, true);
        check("2001:db8:7::1", "2001:db8::", 32, true);
        check("2001:db9::1", "2001:db8::", 32, false);
        check("2001:db8::1", "2001:db8::1", 128, true);
        check("10.1.2.3", "::", 0, false);
        check("::1", "0.0.0.0", 0, false);
    }

    #[test]
    fn cookies_are_found_among_others() {
        let check = |lines: &[&'static str], expected: &[&str]| {
            let lines = lines.iter().map(|line| (header::COOKIE, http::HeaderValue::from_static(line)));
            let headers: HeaderMap = lines.collect();
            let found: Vec<_> = cookies(&headers, "id").map(String::from_utf8_lossy).collect();
            assert_eq!(found, expected, "{headers:?}");
        };
        check(&["id=1"], &["1"]);
        check(&["a=b; id=1;id=2 ; ID=3"], &["1", "2"]);
        check(&["a=b", "id=a=b"], &["a=b"]);
        check(&["id", "id =1", "xid=1", ";;=;", "id="], &[""]);
        check(&[], &[]);
    }
}
