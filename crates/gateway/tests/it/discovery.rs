//! Host names: what is resolved, when, and what becomes of an answer.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstop_core::event::{ResolutionState, What};
use backstop_core::health::State;
use backstop_core::table::{Addresses, DnsSpec, EndpointSpec, Engine, ServiceSpec, TableSpec, Target};
use backstop_engine_sim::{Dist, Sim, SimConfig};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::client::{CHAT, Conn, End, call, chat, hi, soon, until};
use crate::dns::{Dns, Say, addresses};
use crate::world::{TOKENS, World, ms, oracle, service};

const NAME: &str = "engine.test";

/// Engines on one port of 127.0.0.2, 127.0.0.3 and so on.
async fn engines(count: u8, config: SimConfig) -> Vec<Sim> {
    let at = |i: u8, port| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + i), port));
    'port: loop {
        let first = Sim::start(SimConfig { listen: at(0, 0), log: 65536, ..config.clone() }).await.unwrap();
        let port = first.addr().port();
        let mut sims = vec![first];
        for i in 1..count {
            let config = SimConfig { listen: at(i, port), log: 65536, ..config.clone() };
            let Ok(sim) = Sim::start(config).await else { continue 'port };
            sims.push(sim);
        }
        return sims;
    }
}

/// Answers are used for 10 ms.
fn quick(dns: &Dns) -> DnsSpec {
    DnsSpec { servers: vec![dns.addr], min_ttl: ms(10), max_ttl: ms(10) }
}

/// A service `chat` whose only endpoint is at `name`, on the port of `sim`.
fn named(sim: &Sim, name: &str, each: Addresses) -> ServiceSpec {
    let target = Target { host: name.to_owned(), ..sim.addr().into() };
    let mut service = service(&[]);
    service.versions[0].endpoints =
        vec![EndpointSpec { addresses: each, ..EndpointSpec::new(target, Engine::Sim) }];
    service
}

async fn world(sims: Vec<Sim>, dns: DnsSpec, each: Addresses) -> World {
    let services = vec![named(&sims[0], NAME, each)];
    World::with(sims, TableSpec { revision: 1, dns, services, ..TableSpec::default() }).await
}

impl World {
    async fn answers(&self) {
        let reply = chat(self.addr, true).await;
        assert_eq!((reply.status, reply.is_done()), (200, true), "{}", reply.text());
    }

    /// The next request needs a new connection.
    async fn drop_connections(&self) {
        let reply = call(self.addr, "POST", "/health/trigger_gc", "", b"").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// What was told of names, as state, addresses in use and reason.
    fn resolutions(&self) -> Vec<(ResolutionState, usize, String)> {
        let told = |what| match what {
            What::Resolution { name, state, addresses, reason } => {
                assert_eq!(name, NAME);
                Some((state, addresses, reason))
            }
            _ => None,
        };
        self.gateway.events_after(0).into_iter().filter_map(|event| told(event.what)).collect()
    }

    fn metric(&self, line: &str) -> f64 {
        let page = self.gateway.metrics();
        let value = page.lines().find_map(|it| it.strip_prefix(line));
        value.unwrap_or_else(|| panic!("no {line} in {page}")).trim().parse().unwrap()
    }

    fn failures(&self) -> f64 {
        self.metric(&format!("backstop_resolution_failures_total{{name=\"{NAME}\"}}"))
    }

    fn urls(&self) -> BTreeSet<String> {
        self.endpoints().into_iter().map(|it| it.url).collect()
    }
}

fn urls(sims: &[&Sim]) -> BTreeSet<String> {
    sims.iter().map(|sim| sim.url()).collect()
}

/// Requests from now on, half of them streams, none of which may fail.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(world: &World) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let addr = world.addr;
        let clients = (0..4).map(|client| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let reply = chat(addr, client % 2 == 0).await;
                    assert_eq!((reply.status, reply.end), (200, End::Complete), "{}", reply.text());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self { clients: clients.collect(), stop, answered }
    }

    async fn goes_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        until("more answers", || self.answered.load(Ordering::Relaxed) > before + 4).await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            soon("a client", client).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_server_that_moves_is_followed() {
    let dns = Dns::start().await;
    let sims = engines(2, SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() }).await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let world = world(sims, quick(&dns), Addresses::One).await;
    world.until_all(State::Healthy).await;
    let mut streaming = Conn::open(world.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    reply.body = streaming.contents(2).await;
    world.answers().await;
    assert_eq!(world.requests(), [2, 0]);

    dns.set(NAME, addresses(0, "127.0.0.3"));
    let moved = async {
        while world.requests()[1] == 0 {
            world.answers().await;
        }
    };
    soon("moved", moved).await;
    let there = world.requests()[0];
    for _ in 0..3 {
        world.answers().await;
    }
    assert_eq!(world.requests()[0], there, "connections to the old address are used again");
    // What runs there may end.
    streaming.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true));
    assert!(world.resolutions().is_empty(), "moving is no trouble: {:?}", world.resolutions());
    // The server is told the name that it is known by.
    let log = world.sims[1].request_log();
    let host = format!("{NAME}:{}", world.sims[1].addr().port());
    assert!(log.iter().all(|it| it.header("host") == Some(&host)), "{log:?}");
}

#[tokio::test]
async fn the_last_good_answer_stays() {
    let failures = [
        (Say::Code(2), "Server Failure"),
        (Say::Code(3), "no such name"),
        (Say::Code(5), "Query Refused"),
        (addresses(0, ""), "it has no address"),
        (Say::AliasOnly { ttl: 0, name: "nowhere.test" }, "no such name"),
        (Say::Garbage, ""),
        (Say::Nothing, "no answer"),
    ];
    let mut cases = Vec::new();
    for (say, reason) in failures {
        cases.push(tokio::spawn(async move {
            let dns = Dns::start().await;
            dns.set(NAME, addresses(0, "127.0.0.2"));
            let world = world(engines(1, SimConfig::default()).await, quick(&dns), Addresses::One).await;
            world.until_all(State::Healthy).await;
            assert_eq!(world.failures(), 0.0);
            let more = if matches!(say, Say::Nothing) { 1.0 } else { 3.0 };
            dns.set(NAME, say);
            until("it fails again and again", || world.failures() >= more).await;
            // On kept connections and new ones.
            for _ in 0..5 {
                world.answers().await;
                world.drop_connections().await;
            }
            let told = world.resolutions();
            let [(ResolutionState::Failing, 1, why)] = told.as_slice() else { panic!("{told:?}") };
            assert!(why.contains(reason), "{why}");
            assert_eq!(world.metric(&format!("backstop_resolution_addresses{{name=\"{NAME}\"}}")), 1.0);
            assert!(world.metric(&format!("backstop_resolution_age_seconds{{name=\"{NAME}\"}}")) > 0.0);

            dns.set(NAME, addresses(0, "127.0.0.2"));
            until("told", || world.resolutions().len() == 2).await;
            assert_eq!(world.resolutions()[1], (ResolutionState::Resolved, 1, "resolved again".to_owned()));
        }));
    }
    crate::client::all(cases).await;
}

#[tokio::test]
async fn dns_that_comes_and_goes_harms_nobody() {
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    for each in [Addresses::One, Addresses::Each] {
        let world = world(engines(1, SimConfig::default()).await, quick(&dns), each).await;
        until("known", || world.endpoints().len() == 1).await;
        world.until_all(State::Healthy).await;
        let load = Load::on(&world);
        for i in 0..50 {
            let failures = world.failures();
            dns.set(NAME, Say::Code([2, 3, 5][i % 3]));
            until("it fails", || world.failures() > failures).await;
            let told = world.resolutions().len();
            dns.set(NAME, addresses(0, "127.0.0.2"));
            until("it works", || world.resolutions().len() > told).await;
        }
        load.goes_on().await;
        load.end().await;
        let told = world.resolutions();
        assert_eq!(told.len(), 100, "one for each change");
        assert!(
            told.chunks(2)
                .all(|it| it[0].0 == ResolutionState::Failing && it[1].0 == ResolutionState::Resolved)
        );
    }
}

#[tokio::test]
async fn how_long_an_answer_is_used_has_bounds() {
    let sims = engines(1, SimConfig::default()).await;
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let spec = DnsSpec { servers: vec![dns.addr], min_ttl: ms(60_000), max_ttl: ms(60_000) };
    let mut world = world(sims, spec, Addresses::One).await;
    for _ in 0..20 {
        world.answers().await;
        world.drop_connections().await;
    }
    assert_eq!(dns.asked(), 2, "once for each family");
    // A change of the bounds is heeded at once; however long an answer says that it lasts.
    dns.set(NAME, addresses(u32::MAX >> 1, "127.0.0.2"));
    world.apply(|spec| spec.dns = quick(&dns));
    until("asked again", || dns.asked() > 20).await;
    // An alias may expire before what it leads to.
    let says = Box::new(addresses(1_000_000, "127.0.0.2"));
    dns.set(NAME, Say::Alias { ttl: 0, name: "other.test", says });
    world.apply(|spec| spec.dns.max_ttl = ms(1_000_000));
    let asked = dns.asked();
    until("asked again", || dns.asked() > asked + 20).await;
}

#[tokio::test]
async fn aliases_are_followed() {
    let dns = Dns::start().await;
    let end = Box::new(addresses(0, "127.0.0.2"));
    let middle = Box::new(Say::Alias { ttl: 0, name: "c.test", says: end });
    dns.set(NAME, Say::Alias { ttl: 0, name: "b.test", says: middle });
    let sims = engines(1, SimConfig::default()).await;
    let world = world(sims, quick(&dns), Addresses::One).await;
    world.answers().await;
    // Or step by step.
    dns.set("c.test", addresses(0, "127.0.0.2"));
    dns.set("b.test", Say::AliasOnly { ttl: 0, name: "c.test" });
    dns.set(NAME, Say::AliasOnly { ttl: 0, name: "b.test" });
    let asked = dns.asked();
    until("asked again", || dns.asked() > asked + 10).await;
    assert_eq!(world.failures(), 0.0);
    // In a circle there is no end, and nobody waits for it.
    dns.set("c.test", Say::AliasOnly { ttl: 0, name: NAME });
    until("noticed", || world.failures() > 0.0).await;
    world.answers().await;
}

fn thousand(last: &str) -> String {
    let mut all: String = (1..1000).map(|i| format!("127.1.{}.{} ", i / 250, i % 250 + 1)).collect();
    all += last;
    all
}

#[tokio::test]
async fn a_thousand_addresses_of_one_server() {
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, &thousand("127.0.0.2")));
    let sims = engines(1, SimConfig::default()).await;
    let world = world(sims, quick(&dns), Addresses::One).await;
    // The last one is it.
    world.answers().await;
    assert!(dns.asked_by_tcp() > 0, "too long for UDP");
    assert_eq!(world.metric(&format!("backstop_resolution_addresses{{name=\"{NAME}\"}}")), 1000.0);
    let load = Load::on(&world);
    load.goes_on().await;
    load.end().await;
}

#[tokio::test]
async fn of_a_thousand_servers_the_first_are_used() {
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, &thousand("127.0.0.2")));
    let sims = engines(1, SimConfig::default()).await;
    let world = world(sims, quick(&dns), Addresses::Each).await;
    until("linked", || world.endpoints().len() == 256).await;
    let url = world.sims[0].url();
    until("the one that is there", || {
        world.endpoints().iter().any(|it| it.url == url && it.state == State::Healthy)
    })
    .await;
    let asked = dns.asked();
    until("asked again", || dns.asked() > asked + 10).await;
    let told = world.resolutions();
    let limited = "1000 addresses; the first 256 in order are endpoints".to_owned();
    assert_eq!(told, [(ResolutionState::Limited, 256, limited)], "once");
}

#[tokio::test]
async fn servers_come_and_go_with_their_addresses() {
    let dns = Dns::start().await;
    let config = SimConfig { itl: Dist::Constant(ms(2)), ..SimConfig::default() };
    let sims = engines(4, config).await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let world = world(sims, quick(&dns), Addresses::Each).await;
    let [a, b, c, d] = world.sims.as_slice() else { unreachable!("there are four") };
    until("the first", || world.urls() == urls(&[a])).await;
    world.until_all(State::Healthy).await;
    let load = Load::on(&world);
    load.goes_on().await;
    let rounds: [(&str, &[&Sim]); 6] = [
        ("127.0.0.2 127.0.0.3", &[a, b]),
        ("127.0.0.5 127.0.0.4 127.0.0.3 127.0.0.2", &[a, b, c, d]),
        ("127.0.0.4 127.0.0.2", &[a, c]),
        ("127.0.0.2", &[a]),
        ("127.0.0.3 127.0.0.2", &[a, b]),
        ("127.0.0.2 127.0.0.3 127.0.0.4 127.0.0.5", &[a, b, c, d]),
    ];
    let mut of_a = 0;
    for round in 0..24 {
        let (answer, there) = rounds[round % rounds.len()];
        dns.set(NAME, addresses(0, answer));
        until(answer, || world.urls() == urls(there)).await;
        load.goes_on().await;
        // What stays keeps all that is known of it.
        let requests = world.endpoints().into_iter().find(|it| it.url == a.url()).unwrap().requests;
        assert!(requests >= of_a, "{requests} after {of_a}");
        of_a = requests;
    }
    world.until_all(State::Healthy).await;
    until("all serve", || world.requests().iter().all(|count| *count > 0)).await;
    load.end().await;
    assert!(of_a > 0);
    // It is one revision all the time, and the servers are told the name that they are known by.
    assert_eq!(world.gateway.status().revision, 1);
    let host = format!("{NAME}:{}", b.addr().port());
    assert!(b.request_log().iter().all(|it| it.header("host") == Some(&host)));
    assert!(world.health_changes().iter().any(|it| it.ends_with("its host name leads elsewhere")));
}

#[tokio::test]
async fn a_stream_ends_on_a_server_that_leaves() {
    let dns = Dns::start().await;
    let sims = engines(2, SimConfig { itl: Dist::Constant(ms(10)), ..SimConfig::default() }).await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let world = world(sims, quick(&dns), Addresses::Each).await;
    until("the first", || world.urls() == urls(&[&world.sims[0]])).await;
    let mut streaming = Conn::open(world.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    dns.set(NAME, addresses(0, "127.0.0.3"));
    until("the other", || world.urls() == urls(&[&world.sims[1]])).await;
    streaming.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true));
    // A new revision keeps what was found, and a name that fails keeps its servers.
    let mut world = world;
    dns.set(NAME, Say::Code(3));
    until("it fails", || world.failures() > 0.0).await;
    world.apply(|spec| spec.services[0].retry.attempts = 1);
    assert_eq!(world.urls(), urls(&[&world.sims[1]]));
    world.answers().await;
}

#[tokio::test]
async fn a_name_without_servers() {
    let dns = Dns::start().await;
    let world = world(engines(1, SimConfig::default()).await, quick(&dns), Addresses::Each).await;
    until("told", || !world.resolutions().is_empty()).await;
    assert_eq!(world.resolutions(), [(ResolutionState::Failing, 0, "no such name".to_owned())]);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "no_healthy_endpoint"));
    let ready = call(world.addr, "GET", "/ready", "", b"").await;
    assert_eq!((ready.status, &ready.json()["reason"]), (503, &"no_healthy_endpoint".into()));
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let there = async { while chat(world.addr, true).await.status != 200 {} };
    soon("there", there).await;
}

#[tokio::test]
async fn one_server_without_an_address() {
    let dns = Dns::start().await;
    let sims = engines(1, SimConfig::default()).await;
    let mut services = vec![named(&sims[0], NAME, Addresses::One)];
    services[0].health.down = 1;
    services[0].health.interval = ms(50);
    let spec = TableSpec { revision: 1, dns: quick(&dns), services, ..TableSpec::default() };
    let world = World::with(sims, spec).await;
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_unreachable"));
    let told = "`engine.test` can't be resolved: no such name";
    until("told", || world.endpoints()[0].reason.contains(told)).await;
    dns.set(NAME, addresses(0, "127.0.0.2"));
    let there = async { while chat(world.addr, false).await.status != 200 {} };
    soon("there", there).await;
}

/// Whoever needs no name notices nothing.
#[tokio::test]
async fn dns_that_never_answers_holds_up_nobody_else() {
    let dns = Dns::start().await;
    dns.set(NAME, Say::Nothing);
    for each in [Addresses::One, Addresses::Each] {
        let sims = engines(1, SimConfig::default()).await;
        let mut other = service(&sims);
        (other.name, other.models) = ("other".to_owned(), vec!["other".to_owned()]);
        let mut world = world(sims, quick(&dns), each).await;
        world.apply(|spec| {
            spec.services[0].timeouts.connect = ms(300);
            spec.services.push(other);
        });
        let body = String::from_utf8(hi(true)).unwrap().replace("\"chat\"", "\"other\"");
        let reply = call(world.addr, "POST", CHAT, "", body.as_bytes()).await;
        assert_eq!((reply.status, reply.is_done()), (200, true));
        // Nothing has been heard yet, so it is worth a wait, but not longer than for a connection.
        let reply = chat(world.addr, true).await;
        let expected = match each {
            Addresses::One => (502, "upstream_unreachable"),
            Addresses::Each => (503, "no_healthy_endpoint"),
        };
        assert_eq!((reply.status, reply.error_code().as_str()), expected, "{}", reply.text());
        world.apply(|spec| spec.services[0].models.push("more".to_owned()));
        assert_eq!(world.gateway.status().revision, 3);
    }
}

/// Nobody is sent away because a name has not been heard of before.
#[tokio::test]
async fn the_first_answer_is_waited_for() {
    for each in [Addresses::One, Addresses::Each] {
        let dns = Dns::start().await;
        dns.set(NAME, Say::Nothing);
        let sims = engines(1, SimConfig::default()).await;
        let other = service(&sims);
        let found = named(&sims[0], NAME, each);
        let mut world = World::serve(sims, vec![other]).await;
        world.until_all(State::Healthy).await;
        world.apply(|spec| {
            spec.dns = quick(&dns);
            spec.services = vec![found];
        });
        let asking = tokio::spawn(chat(world.addr, true));
        until("asked", || dns.asked() > 0).await;
        dns.set(NAME, addresses(0, "127.0.0.2"));
        let reply = soon("an answer", asking).await.unwrap();
        assert_eq!((reply.status, reply.is_done()), (200, true), "{}", reply.text());
    }
}

#[tokio::test]
async fn localhost_needs_no_dns() {
    let dns = Dns::start().await;
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let services = vec![named(&sim, "LocalHost", Addresses::One)];
    let spec = TableSpec { revision: 1, dns: quick(&dns), services, ..TableSpec::default() };
    let world = World::with(vec![sim], spec).await;
    world.until_all(State::Healthy).await;
    world.answers().await;
    assert_eq!(dns.asked(), 0);
}

#[tokio::test]
async fn one_question_serves_all_who_need_the_name() {
    let dns = Dns::start().await;
    dns.set(NAME, addresses(1000, "127.0.0.2"));
    let mut sims = engines(1, SimConfig::default()).await;
    sims.extend(engines(1, SimConfig::default()).await);
    let mut services =
        vec![named(&sims[0], NAME, Addresses::One), named(&sims[1], "Engine.Test", Addresses::Each)];
    services[1].name = "other".to_owned();
    services[1].models = vec!["other".to_owned()];
    let dns_spec = DnsSpec { servers: vec![dns.addr], ..DnsSpec::default() };
    let spec = TableSpec { revision: 1, dns: dns_spec, services, ..TableSpec::default() };
    let world = World::with(sims, spec).await;
    until("both", || world.endpoints().len() == 2).await;
    world.until_all(State::Healthy).await;
    world.answers().await;
    assert_eq!(dns.asked(), 2, "once for each family");
}

#[tokio::test]
async fn servers_are_asked_one_after_the_other() {
    let (silent, bad, good) = (Dns::start().await, Dns::start().await, Dns::start().await);
    silent.set(NAME, Say::Nothing);
    bad.set(NAME, Say::Code(2));
    good.set(NAME, addresses(0, "127.0.0.2"));
    // Nobody is at the first one.
    let servers = vec![([127, 0, 0, 1], 1).into(), bad.addr, silent.addr, good.addr];
    let spec = DnsSpec { servers, ..quick(&good) };
    let world = world(engines(1, SimConfig::default()).await, spec, Addresses::One).await;
    world.answers().await;
    assert!(bad.asked() > 0 && silent.asked() > 0);
    assert_eq!(world.failures(), 0.0);
}

#[tokio::test]
async fn the_family_that_is_not_answered_for_is_not_waited_for() {
    let dns = Dns::start().await;
    for silent in [Say::Nothing, Say::Code(2), Say::Code(3), addresses(0, "")] {
        dns.set(NAME, Say::Each(Box::new([addresses(0, "127.0.0.2"), silent])));
        let world = world(engines(1, SimConfig::default()).await, quick(&dns), Addresses::One).await;
        world.answers().await;
        assert_eq!(world.failures(), 0.0);
    }
}

#[tokio::test]
async fn both_families_are_tried() {
    let v6 = SimConfig { listen: "[::1]:0".parse().unwrap(), ..SimConfig::default() };
    let Ok(sim) = Sim::start(v6).await else {
        // There is no IPv6 here.
        return;
    };
    let dns = Dns::start().await;
    dns.set(NAME, addresses(0, "127.0.0.9 127.0.0.8 ::1"));
    let world = world(vec![sim], quick(&dns), Addresses::One).await;
    world.until_all(State::Healthy).await;
    world.answers().await;
    // With the families the other way round.
    let sim = engines(1, SimConfig::default()).await;
    dns.set(NAME, addresses(0, "127.0.0.2 ::1"));
    let world = self::world(sim, quick(&dns), Addresses::One).await;
    world.answers().await;
}

/// A listener whose queue is full: whoever connects hears nothing.
async fn deaf(addr: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(addr).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(ms(200), TcpStream::connect(addr)).await {
        waiting.push(stream.unwrap());
    }
    (listener, waiting)
}

#[tokio::test]
async fn an_address_that_says_nothing_is_not_waited_for() {
    let dns = Dns::start().await;
    let sims = engines(1, SimConfig::default()).await;
    let _held = deaf(SocketAddr::new([127, 0, 0, 9].into(), sims[0].addr().port())).await;
    dns.set(NAME, addresses(0, "127.0.0.9 127.0.0.8 127.0.0.2"));
    let mut services = vec![named(&sims[0], NAME, Addresses::One)];
    services[0].timeouts.connect = ms(5000);
    let spec = TableSpec { revision: 1, dns: quick(&dns), services, ..TableSpec::default() };
    let world = World::with(sims, spec).await;
    for _ in 0..3 {
        world.answers().await;
        world.drop_connections().await;
    }
    assert_eq!(world.totals().retries, 0);
}
