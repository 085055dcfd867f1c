//! Questions to the hosts file and to DNS.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::table::DnsSpec;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Semaphore;

use super::hosts;
use crate::clock;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often these files are looked at, at most, and how long an answer from the first is used.
const LOOK: Duration = Duration::from_secs(2);
/// How long each server may take when all are asked, and when they are asked again.
const ROUNDS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3)];
/// Questions at once, so that a table with many names does not flood the server.
const AT_ONCE: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// The answer for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Addresses {
        addresses: Vec<IpAddr>,
        life: Duration,
    },
    /// The name is there, but has no such addresses.
    None,
    /// There is no such name.
    Unknown,
    Failed(String),
    /// No server answered.
    Silence,
}

impl Found {
    /// Why there is no address.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Addresses { .. } => "",
            Self::None => "it has no address",
            Self::Unknown => "no such name",
            Self::Failed(reason) => reason,
            Self::Silence => "no answer",
        }
    }
}

pub(super) struct Resolver {
    system: Mutex<System>,
    questions: Semaphore,
}

/// What questions are asked with.
struct System {
    spec: Arc<DnsSpec>,
    hosts: Arc<str>,
    dns: Option<Arc<Dns>>,
    /// What the files looked like when they were read, and when they were last looked at.
    stamps: [Option<Stamp>; 2],
    looked_at: Option<Instant>,
}

/// Whom to ask, and for what.
struct Dns {
    /// One for each server: the library gives all of them together the time for one, and takes the first one's failure
    /// for all.
    servers: Vec<TokioResolver>,
    /// A name with fewer dots is looked for in the search domains first.
    dots: usize,
    search: Vec<Name>,
}

/// Device, inode, length and time of change of a file.
type Stamp = (u64, u64, u64, i64, i64);

impl Resolver {
    pub(super) fn new() -> Self {
        let system = System {
            spec: Arc::default(),
            hosts: "".into(),
            dns: None,
            stamps: [None, None],
            looked_at: None,
        };
        Self { system: Mutex::new(system), questions: Semaphore::new(AT_ONCE) }
    }

    /// Whether that is a change.
    pub(super) fn configure(&self, spec: &DnsSpec) -> bool {
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = *system.spec != *spec;
        if changes {
            system.spec = Arc::new(spec.clone());
            system.dns = None;
        }
        changes
    }

    pub(super) fn spec(&self) -> Arc<DnsSpec> {
        Arc::clone(&self.system.lock().unwrap_or_else(PoisonError::into_inner).spec)
    }

    /// What the hosts file says of `name`, by family; `None` if it does not know it. As in every system, it then is
    /// the whole answer.
    pub(super) fn in_hosts_file(&self, name: &str) -> Option<[Found; 2]> {
        let file = self.with_system(|system| Arc::clone(&system.hosts));
        let all = hosts::addresses(&file, name);
        let of = |v6: bool| match all.iter().filter(|it| it.is_ipv6() == v6).copied().collect::<Vec<_>>() {
            addresses if addresses.is_empty() => Found::None,
            addresses => Found::Addresses { addresses, life: LOOK },
        };
        (!all.is_empty()).then(|| [of(false), of(true)])
    }

    /// The names that `name` may stand for, by which to ask one after the other.
    pub(super) fn candidates(&self, name: &str) -> Result<Vec<Name>, String> {
        // Names of machines often have an underscore.
        let name = Name::from_str_relaxed(name).map_err(|error| format!("it is no name for DNS: {error}"))?;
        Ok(self.dns()?.candidates(name))
    }

    /// What the first server says that can say something.
    pub(super) async fn lookup(&self, name: &Name, family: Family) -> Found {
        let Ok(_permit) = self.questions.acquire().await else { return Found::Silence };
        let dns = match self.dns() {
            Ok(dns) => dns,
            Err(reason) => return Found::Failed(reason),
        };
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let mut worst = Found::Silence;
        for limit in ROUNDS {
            for server in &dns.servers {
                match ask(server, name, kind, limit).await {
                    Found::Silence => {}
                    failed @ Found::Failed(_) => worst = failed,
                    found => return found,
                }
            }
        }
        worst
    }

    fn dns(&self) -> Result<Arc<Dns>, String> {
        self.with_system(System::dns)
    }

    /// Looks first whether the files have changed.
    fn with_system<T>(&self, use_it: impl FnOnce(&mut System) -> T) -> T {
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        if system.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK) {
            system.looked_at = Some(now);
            system.look();
        }
        use_it(&mut system)
    }
}

impl System {
    fn look(&mut self) {
        let stamps = [HOSTS, RESOLV_CONF].map(stamp);
        if stamps[0] != self.stamps[0] {
            // Without the file there are no names in it.
            let bytes = std::fs::read(HOSTS).unwrap_or_default();
            self.hosts = String::from_utf8_lossy(&bytes).into();
        }
        if stamps[1] != self.stamps[1] {
            self.dns = None;
        }
        self.stamps = stamps;
    }

    fn dns(&mut self) -> Result<Arc<Dns>, String> {
        if let Some(dns) = &self.dns {
            return Ok(Arc::clone(dns));
        }
        let dns = Dns::new(&self.spec.servers)
            .map_err(|error| format!("no DNS server is known ({error}); hint: `dns.servers`"))?;
        let dns = Arc::new(dns);
        self.dns = Some(Arc::clone(&dns));
        Ok(dns)
    }
}

impl Dns {
    /// Asks `servers`, or the system's; search domains are the system's in any case.
    fn new(servers: &[SocketAddr]) -> Result<Self, NetError> {
        // A system without servers of its own is none the worse for it if some are configured.
        let system = read_system_conf();
        let (system, options) = match system {
            Ok(system) => system,
            Err(_) if !servers.is_empty() => {
                (ResolverConfig::from_parts(None, Vec::new(), Vec::new()), ResolverOpts::default())
            }
            Err(error) => return Err(error),
        };
        let own = servers.iter().map(server).collect();
        let servers: Vec<_> = if servers.is_empty() { system.name_servers().to_vec() } else { own };
        let search = match system.search() {
            [] => system.domain().cloned().into_iter().collect(),
            search => search.to_vec(),
        };
        let servers = servers.into_iter().map(|server| client(server, options.clone()));
        Ok(Self { servers: servers.collect::<Result<_, _>>()?, dots: options.ndots, search })
    }
}

impl Dns {
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        let mut candidates: Vec<Name> = Vec::new();
        if !name.is_fqdn() && !name.is_localhost() {
            // With some domains it may be too long for a name.
            candidates
                .extend(self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()));
        }
        let first = usize::from(name.num_labels()) > self.dots;
        name.set_fqdn(true);
        candidates.insert(if first { 0 } else { candidates.len() }, name);
        candidates
    }
}

fn stamp(path: &str) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Asks one server for whole names.
fn client(server: NameServerConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    options.timeout = ROUNDS[1];
    options.attempts = 0;
    // When an answer has expired, the watcher of the name decides.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let provider = TokioRuntimeProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(options).build()
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

async fn ask(server: &TokioResolver, name: &Name, kind: RecordType, limit: Duration) -> Found {
    match tokio::time::timeout(limit, server.lookup(name.clone(), kind)).await {
        Ok(Ok(lookup)) => found(lookup.answers()),
        Ok(Err(error)) => failure(&error),
        Err(_) => Found::Silence,
    }
}

fn found(records: &[Record]) -> Found {
    let addresses: Vec<_> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
    if addresses.is_empty() {
        return Found::None;
    }
    // Aliases on the way count: they may expire before what they lead to.
    let life = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    Found::Addresses { addresses, life: Duration::from_secs(life.into()) }
}

fn failure(error: &NetError) -> Found {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NoError => Found::None,
            ResponseCode::NXDomain => Found::Unknown,
            other => Found::Failed(format!("the DNS server answered `{other}`")),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => {
            Found::Failed(format!("the DNS server answered `{code}`"))
        }
        NetError::Timeout => Found::Silence,
        other => Found::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_looked_for_in_the_search_domains() {
        let name = |text: &str| Name::from_str_relaxed(text).unwrap();
        let check = |dots, given: &str, expected: &[&str]| {
            let search = vec![name("svc.test."), name("test.")];
            let candidates = Dns { servers: Vec::new(), dots, search }.candidates(name(given));
            let candidates: Vec<_> = candidates.iter().map(Name::to_string).collect();
            assert_eq!(candidates, expected, "{given}");
            assert!(candidates.iter().all(|it| it.ends_with('.')));
        };
        check(1, "llm", &["llm.svc.test.", "llm.test.", "llm."]);
        check(1, "gpu_5.rack", &["gpu_5.rack.", "gpu_5.rack.svc.test.", "gpu_5.rack.test."]);
        check(5, "llm.prod", &["llm.prod.svc.test.", "llm.prod.test.", "llm.prod."]);
        check(5, "llm.example.", &["llm.example."]);
        check(5, "localhost", &["localhost."]);
    }
}
