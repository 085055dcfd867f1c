//! Which version a request is assigned to: by the first rule that matches, else by the split of a release, else the stable
//! one.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use backstop_core::assign::{Assigner, BUCKETS, Place};
use backstop_core::table::{Condition, RuleSpec, TrialSpec, UnitSource};
use http::{HeaderMap, HeaderName, header};

use crate::identity::Client;
use crate::request::ip_octets;
use crate::table::Version;
use crate::trial::{Asked, Epoch, Side, Subject, Trial};

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

/// A service's requests between its stable version and another one.
pub(crate) struct Split {
    assigner: Assigner,
    sources: Vec<UnitSource>,
    pub(crate) canary: Arc<Version>,
    pub(crate) buckets: u32,
    trial: Arc<Trial>,
    epoch: Arc<Epoch>,
}

impl Split {
    pub(crate) fn new(
        spec: &TrialSpec,
        sources: &[UnitSource],
        canary: Arc<Version>,
        (trial, epoch): (Arc<Trial>, Arc<Epoch>),
    ) -> Self {
        let (assigner, buckets) = (Assigner::new(&spec.salt), spec.buckets.min(BUCKETS));
        Self { assigner, sources: sources.to_vec(), canary, buckets, trial, epoch }
    }

    pub(crate) fn release(&self) -> &Arc<str> {
        &self.trial.release
    }

    /// The side of a request, and the hash of its unit. One without a unit moves last, with the whole, and is no evidence.
    pub(crate) fn side(&self, asker: Asker<'_>) -> (Side, Option<u64>) {
        let place = self.sources.iter().find_map(|source| self.place(source, asker));
        let is_canary = place.map_or(self.buckets == BUCKETS, |place| place.is_within(self.buckets));
        (if is_canary { Side::Canary } else { Side::Stable }, place.map(|place| place.hash))
    }

    /// A request that is counted from now on.
    pub(crate) fn subject(&self, side: Side, version: &Version, unit: u64, asked: Asked) -> Subject {
        Subject::new(Arc::clone(&self.trial), Arc::clone(&self.epoch), (side, version), unit, asked)
    }

    /// What clients call their sessions and users is theirs: two tenants may mean two by one name.
    fn place(&self, source: &UnitSource, asker: Asker<'_>) -> Option<Place> {
        let tenant = asker.client.map_or(&b""[..], |client| client.tenant.as_bytes());
        let is_given = |value: &&[u8]| !value.is_empty();
        Some(match source {
            UnitSource::Header(name) => {
                let value = asker.headers.get(name).map(|value| value.as_bytes()).filter(is_given)?;
                self.assigner.place(&[b"header", name.as_bytes(), tenant, value])
            }
            UnitSource::Cookie(name) => {
                let value = cookies(asker.headers, name).find(is_given)?;
                self.assigner.place(&[b"cookie", name.as_bytes(), tenant, value])
            }
            UnitSource::User => {
                let user = asker.user.map(str::as_bytes).filter(is_given)?;
                self.assigner.place(&[b"user", tenant, user])
            }
            UnitSource::Key => self.assigner.place(&[b"key", asker.client?.name.as_bytes()]),
            UnitSource::Ip => self.assigner.place(&[b"ip", &ip_octets(asker.ip)]),
            UnitSource::Request => self.assigner.place(&[b"request", &rand::random::<u128>().to_le_bytes()]),
        })
    }
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
