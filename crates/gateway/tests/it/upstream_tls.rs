//! Model servers behind TLS: who is believed, and what is said of those who are not.

use std::time::Duration;

use backstop_core::health::State;
use backstop_core::status::DependencyState;
use backstop_core::table::{
    DependencyCheck, DependencyEffect, DependencySpec, EndpointSpec, Engine, Protocol, Scheme, Target,
    TlsSpec,
};
use backstop_engine_sim::{Sim, SimConfig};

use crate::client::{CHAT, chat, hi, until};
use crate::front::{BOTH, Front, Fronted, HTTP1, MANY, Speaks, check_answers, parrot};
use crate::secure::{Authority, Folder, Pair, days_from_now, self_signed};
use crate::world::{TOKENS, World, ms, oracle, service};

#[tokio::test]
async fn every_way_brings_the_same() {
    for (speaks, offered, protocol, context) in [
        (Speaks::Http1, HTTP1, Protocol::Auto, "TLS, offered both"),
        (Speaks::Http1, HTTP1, Protocol::Http1, "TLS, offered HTTP/1.1"),
        (Speaks::Http1, &[][..], Protocol::Auto, "TLS without ALPN"),
        (MANY, BOTH, Protocol::Auto, "HTTP/2 by TLS"),
        (MANY, BOTH, Protocol::Http2, "HTTP/2 by TLS, only"),
    ] {
        let fronted = Fronted::tls(SimConfig::default(), speaks, offered, protocol).await;
        check_answers(&fronted.world, context).await;
        let log = fronted.world.sims[0].request_log();
        let sent = log.last().unwrap();
        assert_eq!(sent.header("host"), Some(fronted.front.addr.to_string().as_str()), "{context}");
        assert_eq!(sent.body, hi(false), "{context}");
    }
    let fronted = Fronted::cleartext(SimConfig::default(), MANY).await;
    check_answers(&fronted.world, "HTTP/2 with prior knowledge").await;
}

/// A body that does not fit into any window, up and down.
#[tokio::test]
async fn large_bodies() {
    for (speaks, offered) in [(Speaks::Http1, HTTP1), (MANY, BOTH)] {
        let config = SimConfig { tokens: 200_000, ..SimConfig::default() };
        let fronted = Fronted::tls(config, speaks, offered, Protocol::Auto).await;
        let mut body = hi(false);
        body.pop();
        body.extend(format!(r#","pad":"{}"}}"#, "x".repeat(5_000_000)).as_bytes());
        let reply = crate::client::call(fronted.world.addr, "POST", CHAT, "", &body).await;
        assert_eq!(reply.status, 200);
        assert!(reply.content() == oracle(200_000));
        let log = fronted.world.sims[0].request_log();
        assert!(log.last().is_some_and(|sent| sent.body == body));
    }
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_trusted_itself() {
    let pair = self_signed();
    let tls = Some((pair.cert.as_str(), pair.server(HTTP1)));
    let fronted = Fronted::of(SimConfig::default(), Speaks::Http1, tls, Protocol::Auto, |_| {}).await;
    fronted.world.until_all(State::Healthy).await;
    check_answers(&fronted.world, "self-signed").await;
}

/// What is wrong with a certificate can be read where people look first.
#[tokio::test]
async fn certificates_that_prove_nothing() {
    let authority = Authority::new();
    let other = Authority::new();
    let names = &["127.0.0.1"];
    let good = days_from_now(30);
    let cases: [(Pair, &str); 5] = [
        (authority.issue_for(names, days_from_now(-2)), "certificate expired on 20"),
        (
            authority.issue_for(&["engine.example"], good),
            "certificate is for another name: `engine.example`, not `127.0.0.1`; hint: `tls.server_name`",
        ),
        (
            authority.issue_for(&[], good),
            "certificate is for no name at all, not for `127.0.0.1`; hint: `tls.server_name`",
        ),
        (other.issue_for(names, good), "certificate is by an unknown authority; hint: `tls.ca`"),
        (self_signed(), "certificate is self-signed and not trusted itself; hint: `tls.ca`"),
    ];
    for (pair, reason) in cases {
        let tls = Some((authority.pem.as_str(), pair.server(BOTH)));
        let mut fronted = Fronted::of(SimConfig::default(), MANY, tls, Protocol::Auto, |_| {}).await;
        fronted.world.apply(|spec| spec.services[0].health.down = 1);
        fronted.world.until_all(State::Unhealthy).await;
        let told = fronted.world.endpoints()[0].reason.clone();
        assert!(told.contains(reason), "{told}");
        let reply = chat(fronted.world.addr, true).await;
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(fronted.world.sims[0].requests(), 0, "not even a check got through");

        // A right one mends it, without a word to us.
        fronted.front.show(authority.issue().server(BOTH));
        fronted.world.apply(|spec| spec.services[0].health.interval = ms(20));
        fronted.world.until_all(State::Healthy).await;
        check_answers(&fronted.world, reason).await;
    }
}

#[tokio::test]
async fn the_name_in_the_certificate_can_be_told() {
    let authority = Authority::new();
    let pair = authority.issue_for(&["engine.example"], days_from_now(30));
    let tls = Some((authority.pem.as_str(), pair.server(HTTP1)));
    let named = |endpoint: &mut EndpointSpec| endpoint.tls.server_name = Some("engine.example".to_owned());
    let fronted = Fronted::of(SimConfig::default(), Speaks::Http1, tls, Protocol::Auto, named).await;
    fronted.world.until_all(State::Healthy).await;
    check_answers(&fronted.world, "named").await;
}

/// Whoever does not speak as agreed is told apart from whoever is not there.
#[tokio::test]
async fn servers_that_speak_something_else() {
    let bad_request = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let http1 = parrot(bad_request).await;
    let silent = parrot(b"").await;
    let authority = Authority::new();
    let folder = Folder::new();
    let ca = Some(folder.write("ca.pem", &authority.pem));
    let tls = TlsSpec { ca, server_name: None };
    let tls_http1 = Front::start(http1, Speaks::Http1, Some(authority.issue().server(HTTP1))).await;
    let tls_no_alpn = Front::start(http1, Speaks::Http1, Some(authority.issue().server(&[]))).await;
    let of = |scheme, addr: std::net::SocketAddr, protocol| EndpointSpec {
        protocol,
        tls: tls.clone(),
        ..EndpointSpec::new(Target { scheme, ..addr.into() }, Engine::Sim)
    };
    let no_http2 = "does not speak HTTP/2; hint: `protocol: auto` or `http1`";
    for (endpoint, reason) in [
        (of(Scheme::Http, http1, Protocol::Http2), no_http2),
        (of(Scheme::Http, silent, Protocol::Http2), no_http2),
        (of(Scheme::Https, tls_no_alpn.addr, Protocol::Http2), no_http2),
        (
            of(Scheme::Https, tls_http1.addr, Protocol::Http2),
            "speaks no version of HTTP that was offered; hint: `protocol`",
        ),
        (of(Scheme::Https, http1, Protocol::Auto), "does not speak TLS; hint: `http://` in the `url`"),
        (of(Scheme::Https, silent, Protocol::Auto), "closed in the middle of the TLS handshake"),
    ] {
        let mut spec = service(&[]);
        spec.health.down = 1;
        spec.versions[0].endpoints.push(endpoint.clone());
        let world = World::serve(Vec::new(), vec![spec]).await;
        world.until_all(State::Unhealthy).await;
        let told = world.endpoints()[0].reason.clone();
        assert!(told.contains(reason), "{:?}: {told}", endpoint.target);
    }
}

#[tokio::test]
async fn dependencies_by_tls_are_checked_as_such() {
    let sim = Sim::start(SimConfig::default()).await.unwrap();
    let authority = Authority::new();
    let front = Front::start(sim.addr(), Speaks::Http1, Some(authority.issue().server(HTTP1))).await;
    let mut spec = service(&[]);
    spec.dependencies.push(DependencySpec {
        name: "store".to_owned(),
        check: DependencyCheck::Http {
            target: front.endpoint(Protocol::Auto, TlsSpec::default()).target,
            path: "/health".to_owned(),
        },
        effect: DependencyEffect::Degraded,
        interval: ms(50),
        timeout: Duration::from_secs(5),
        up: 1,
        down: 1,
    });
    let world = World::serve(Vec::new(), vec![spec]).await;
    let found = || world.gateway.status().services[0].dependencies[0].clone();
    // The system does not know our authority.
    until("checked", || found().state == DependencyState::Down).await;
    assert!(found().reason.contains("unknown authority"), "{}", found().reason);
}

#[tokio::test]
async fn a_table_whose_authorities_are_unreadable_is_refused() {
    let mut fronted = Fronted::tls(SimConfig::default(), Speaks::Http1, HTTP1, Protocol::Auto).await;
    let world = &mut fronted.world;
    let good = world.spec.clone();
    let broken =
        fronted.folder.write("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let empty = fronted.folder.write("empty.pem", "");
    let nowhere = fronted.folder.path("nowhere.pem");
    for (path, problem) in [
        (&broken, "not a PEM file"),
        (&empty, "there is no certificate in the file"),
        (&nowhere, "no such file"),
    ] {
        let mut bad = good.clone();
        bad.revision += 1;
        bad.services[0].models.push("more".to_owned());
        bad.services[0].versions[0].endpoints[0].tls.ca = Some(path.clone());
        let error = world.gateway.apply(&bad).unwrap_err();
        assert!(error.to_string().starts_with(&format!("`{}`: {problem}", path.display())), "{error}");
        assert_eq!(world.gateway.status().revision, good.revision);
        check_answers(world, problem).await;
    }
}

/// The file is read again with each table: what it says now counts for new connections.
#[tokio::test]
async fn authorities_are_read_again() {
    let mut fronted = Fronted::tls(SimConfig::default(), Speaks::Http1, HTTP1, Protocol::Auto).await;
    check_answers(&fronted.world, "first").await;
    let connections = fronted.connections();
    fronted.world.apply(|_| {});
    check_answers(&fronted.world, "nothing has changed").await;
    assert_eq!(fronted.connections(), connections);

    let other = Authority::new();
    fronted.folder.write("ca.pem", &other.pem);
    fronted.world.apply(|spec| spec.services[0].health.down = 1);
    fronted.world.until_all(State::Unhealthy).await;
    assert_eq!(chat(fronted.world.addr, true).await.status, 503);
    fronted.folder.write("ca.pem", &format!("{}{}", other.pem, fronted.ca));
    fronted.world.apply(|_| {});
    fronted.world.until_all(State::Healthy).await;
    check_answers(&fronted.world, "mended").await;
}

/// One connection tells which HTTP the server speaks; the others need not wait for each other.
#[tokio::test]
async fn many_connections_are_made_at_once() {
    const MANY_REQUESTS: usize = 50;
    let fronted = Fronted::tls(SimConfig::default(), Speaks::Http1, HTTP1, Protocol::Auto).await;
    let (world, front) = (&fronted.world, &fronted.front);
    let before = fronted.connections();
    front.hold();
    let clients: Vec<_> = (0..MANY_REQUESTS).map(|i| tokio::spawn(chat(world.addr, i % 2 == 0))).collect();
    until("all have asked", || world.totals().requests == MANY_REQUESTS as u64).await;
    until("one connects", || fronted.connections() == before + 1).await;
    front.let_in(1);
    until("the others as well", || fronted.connections() >= before + MANY_REQUESTS - 1).await;
    front.let_in(MANY_REQUESTS);
    for client in clients {
        let reply = client.await.unwrap();
        assert_eq!((reply.status, reply.content(), reply.attempts()), (200, oracle(TOKENS), 1));
    }
}

/// Whoever waited while the settings changed connects by the new ones.
#[tokio::test]
async fn old_settings_make_no_new_connections() {
    let mut fronted = Fronted::tls(SimConfig::default(), MANY, BOTH, Protocol::Auto).await;
    fronted.world.apply(|spec| spec.services[0].retry.attempts = 0);
    let addr = fronted.world.addr;
    let before = fronted.connections();
    fronted.front.hold();
    let clients: Vec<_> = (0..2).map(|_| tokio::spawn(chat(addr, true))).collect();
    until("both have asked", || fronted.world.totals().requests == 2).await;
    until("one connects", || fronted.connections() == before + 1).await;
    // Nobody trusts the server any more.
    fronted.folder.write("ca.pem", &Authority::new().pem);
    fronted.world.apply(|_| {});
    fronted.front.let_in(100);
    let mut answers = Vec::new();
    for client in clients {
        answers.push(client.await.unwrap().status);
    }
    answers.sort_unstable();
    assert_eq!(answers, [200, 502], "only the one that was connecting already");
    assert_eq!(chat(addr, true).await.status, 502);
}
