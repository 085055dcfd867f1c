//! TLS towards clients: which of them get in, with which certificate, and what is said about it.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::event::{CertificateState, What};
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use backstop_gateway::{Certificate, CertificateFiles, Listener, check_certificate};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::client::{CHAT, Conn, End, Reply, hi, soon, until};
use crate::h2client::{H2, piece};
use crate::secure::{Authority, Folder, Pair, client, connect, days_from_now};
use crate::stream_end::check_cut;
use crate::world::{TOKENS, World, ms, oracle};

const HTTP1: &[&str] = &["http/1.1"];
const BOTH: &[&str] = &["h2", "http/1.1"];

/// A world with another door.
struct Secured {
    world: World,
    addr: std::net::SocketAddr,
    folder: Folder,
    ca: String,
    certificate: Arc<Certificate>,
}

impl Secured {
    async fn start(config: SimConfig) -> Self {
        let authority = Authority::new();
        Self::with(config, &authority, &authority.issue()).await
    }

    async fn with(config: SimConfig, authority: &Authority, pair: &Pair) -> Self {
        let world = World::of(vec![config], |service| service.timeouts.inter_token = ms(2000)).await;
        let folder = Folder::new();
        let certificate = world.gateway.certificate(Listener::Clients, folder.pair(pair)).unwrap();
        let certificate = Arc::new(certificate);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn({
            let (gateway, certificate) = (Arc::clone(&world.gateway), Arc::clone(&certificate));
            async move {
                gateway.serve(listener, Some(&certificate), std::future::pending(), Duration::ZERO).await;
            }
        });
        Self { world, addr, folder, ca: authority.pem.clone(), certificate }
    }

    async fn connect(&self, protocols: &[&str]) -> TlsStream<TcpStream> {
        connect(self.addr, &self.ca, protocols).await
    }

    /// What the listener shows now.
    async fn shown(&self) -> CertificateDer<'static> {
        let stream = self.connect(HTTP1).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// State and reason of what happened to certificates.
    fn events(&self) -> Vec<(CertificateState, String)> {
        let events = self.world.gateway.events_after(0).into_iter();
        let certificates = events.filter_map(|event| match event.what {
            What::Certificate { listener, state, reason, .. } if listener == "clients" => {
                Some((state, reason))
            }
            _ => None,
        });
        certificates.collect()
    }
}

/// HTTP/1.1 by hand: one request, the whole connection's answer.
async fn ask(mut stream: TlsStream<TcpStream>, streamed: bool) -> Reply {
    let body = hi(streamed);
    let length = body.len();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", stream.read_to_end(&mut answer)).await.expect("a proper end of TLS");
    // The same parser as everywhere, over a socket of its own.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (to, from) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let mut to = to.unwrap();
    let writing = tokio::spawn(async move { to.write_all(&answer).await });
    let reply = Conn::of(from.unwrap().0).reply().await;
    writing.await.unwrap().unwrap();
    reply
}

#[tokio::test]
async fn every_version_gets_in() {
    let secured = Secured::start(SimConfig::default()).await;
    for (versions, protocols) in [
        (rustls::ALL_VERSIONS, HTTP1),
        (rustls::ALL_VERSIONS, &[]),
        (&[&rustls::version::TLS12][..], HTTP1),
        (&[&rustls::version::TLS13][..], HTTP1),
    ] {
        let connector = client(&secured.ca, protocols, versions);
        for streamed in [true, false] {
            let stream = TcpStream::connect(secured.addr).await.unwrap();
            let stream = connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap();
            let reply = ask(stream, streamed).await;
            assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(TOKENS)));
        }
    }
    let stream = secured.connect(BOTH).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let client = H2::over(stream).await;
    for streamed in [true, false] {
        let reply = client.chat(streamed).await;
        assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(TOKENS)));
    }
}

#[tokio::test]
async fn streams_break_and_end_as_without() {
    let slow = SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() };
    let secured = Secured::start(slow).await;
    let cut = Fault::Cut { after: 3, how: Cut::Fin, mid_event: true };
    secured.world.sims[0].set_fault(cut);
    let reply = ask(secured.connect(HTTP1).await, true).await;
    check_cut(&reply, &oracle(3), "upstream_disconnected", "HTTP/1.1");
    let reply = H2::over(secured.connect(BOTH).await).await.chat(true).await;
    check_cut(&reply, &oracle(3), "upstream_disconnected", "HTTP/2");
    // A client that leaves cancels its work.
    secured.world.sims[0].set_fault(Fault::Stall { after: 3 });
    let client = H2::over(secured.connect(BOTH).await).await;
    let mut leaves = client.begin().await;
    piece(&mut leaves).await;
    drop(leaves);
    until("cancelled upstream", || secured.world.sims[0].cancelled() == 1).await;
}

#[tokio::test]
async fn those_without_tls_are_told() {
    let secured = Secured::start(SimConfig::default()).await;
    let reply = crate::client::call(secured.addr, "POST", CHAT, "", &hi(true)).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "tls_required"));
    assert!(reply.text().contains("https://"), "{}", reply.text());
    // What is neither gets nothing that it could take for an answer.
    for junk in [&b"\x00\x01\x02"[..], b"hello there\r\n\r\n", b"\x16\x03\x01\x00\x05hello"] {
        let mut conn = Conn::open(secured.addr).await;
        conn.write(junk).await;
        conn.stream.shutdown().await.unwrap();
        let (rest, _) = conn.rest().await;
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    assert_eq!(secured.world.requests(), [0]);
}

/// A handshake that does not go on is nobody else's concern.
#[tokio::test]
async fn slow_handshakes_hold_up_nobody() {
    let secured = Secured::start(SimConfig::default()).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(secured.addr).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
        waiting.push(stream);
    }
    assert_eq!(ask(secured.connect(HTTP1).await, true).await.content(), oracle(TOKENS));
}

#[tokio::test]
async fn files_that_can_not_be_served() {
    let world = World::start(1, |_| {}).await;
    let (authority, folder) = (Authority::new(), Folder::new());
    let (pair, other) = (authority.issue(), authority.issue());
    let nowhere = folder.path("nowhere.pem");
    let good = folder.pair(&pair);
    let number = std::cell::Cell::new(0);
    let write = |text: &str| {
        number.set(number.get() + 1);
        folder.write(&format!("{}.pem", number.get()), text)
    };
    let cert = |text: &str| CertificateFiles { cert: write(text), key: good.key.clone() };
    let key = |text: &str| CertificateFiles { cert: good.cert.clone(), key: write(text) };
    let encrypted = pair.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let garbled = pair.cert.replacen('M', "!", 1);
    let cut = format!("{}\n-----END CERTIFICATE-----\n", &pair.cert[..100]);
    let foreign = "the private key does not belong to the certificate in";
    for (files, the_key, problem) in [
        (CertificateFiles { cert: nowhere.clone(), key: good.key.clone() }, false, "no such file"),
        (CertificateFiles { cert: good.cert.clone(), key: nowhere.clone() }, true, "no such file"),
        (CertificateFiles { cert: folder.0.clone(), key: good.key.clone() }, false, "this is a directory"),
        (cert(""), false, "there is no certificate in the file"),
        (cert(&pair.key), false, "there is no certificate in the file"),
        (cert(&garbled), false, "not a PEM file"),
        (cert(&cut), false, "a certificate in the file can't be read"),
        (key(""), true, "there is no private key in the file"),
        (key(&pair.cert), true, "there is no private key in the file"),
        (key(&encrypted), true, "the private key is encrypted"),
        (key(&other.key), true, foreign),
    ] {
        let error = check_certificate(&files).unwrap_err();
        let whose = if the_key { &files.key } else { &files.cert };
        let start = format!("`{}`: {problem}", whose.display());
        assert!(error.to_string().starts_with(&start), "{error}; expected {start}");
        assert_eq!(world.gateway.certificate(Listener::Clients, files).unwrap_err(), error);
    }
    // Both in one file is fine, and so is an authority behind the certificate.
    let both = cert(&format!("{}{}{}", pair.key, pair.cert, authority.pem));
    assert_eq!(check_certificate(&CertificateFiles { key: both.cert.clone(), ..both }), Ok(None));
    assert_eq!(check_certificate(&good), Ok(None));
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up() {
    let (authority, other) = (Authority::new(), Authority::new());
    let first = authority.issue();
    let secured = Secured::with(SimConfig::default(), &authority, &first).await;
    assert_eq!(secured.shown().await, first.der());
    let old = H2::over(secured.connect(BOTH).await).await;

    let second = authority.issue();
    secured.folder.pair(&second);
    until("renewed", || !secured.events().is_empty()).await;
    let (state, reason) = secured.events().pop().unwrap();
    assert_eq!(state, CertificateState::Renewed, "{reason}");
    assert_eq!(secured.shown().await, second.der());
    assert_eq!(old.chat(true).await.content(), oracle(TOKENS), "old connections go on");

    // What does not fit together is not taken, and said so once.
    secured.folder.write("cert.pem", &other.issue().cert);
    until("refused", || secured.events().len() == 2).await;
    let (state, reason) = secured.events().pop().unwrap();
    assert_eq!(state, CertificateState::Refused);
    assert!(reason.contains("does not belong to the certificate"), "{reason}");
    assert_eq!(secured.shown().await, second.der());
    std::fs::remove_file(secured.folder.path("key.pem")).unwrap();
    until("refused", || secured.events().len() == 3).await;
    assert_eq!(ask(secured.connect(HTTP1).await, true).await.content(), oracle(TOKENS));

    let third = authority.issue();
    secured.folder.pair(&third);
    until("renewed", || secured.events().len() == 4).await;
    assert_eq!(secured.shown().await, third.der());
}

#[tokio::test]
async fn the_end_of_a_certificate_is_announced() {
    let authority = Authority::new();
    for (days, expected) in [
        (-3, Some((CertificateState::Expired, "the certificate expired on "))),
        (5, Some((CertificateState::Expiring, "the certificate expires on "))),
        (20, None),
    ] {
        let end = days_from_now(days);
        let pair = authority.issue_for(&["127.0.0.1"], end);
        let secured = Secured::with(SimConfig::default(), &authority, &pair).await;
        let events = secured.events();
        match expected {
            None => assert!(events.is_empty(), "{events:?}"),
            Some((state, start)) => {
                assert_eq!((events.len(), events[0].0), (1, state));
                assert!(events[0].1.starts_with(start), "{events:?}");
                let files = CertificateFiles {
                    cert: secured.folder.path("cert.pem"),
                    key: secured.folder.path("key.pem"),
                };
                assert_eq!(check_certificate(&files), Ok(Some(events[0].1.clone())));
            }
        }
        let line =
            format!("backstop_certificate_not_after_seconds{{listener=\"clients\"}} {}\n", end.as_secs());
        let page = secured.world.gateway.metrics();
        assert!(page.contains(&line), "{page}");
        // Better than nothing: those who do not check are served.
        let shown = TcpStream::connect(secured.addr).await.unwrap();
        let connected = client(&secured.ca, HTTP1, rustls::ALL_VERSIONS)
            .connect(ServerName::try_from("127.0.0.1").unwrap(), shown)
            .await;
        assert_eq!(connected.is_ok(), days > 0);
        drop(secured.certificate);
    }
}

/// It is said when it happens, not with the next daily complaint.
#[tokio::test]
async fn an_end_that_comes_is_announced() {
    let authority = Authority::new();
    let soon = days_from_now(0) + Duration::from_secs(6);
    let pair = authority.issue_for(&["127.0.0.1"], soon);
    let secured = Secured::with(SimConfig::default(), &authority, &pair).await;
    until("expired", || secured.events().iter().any(|(state, _)| *state == CertificateState::Expired)).await;
    let states: Vec<_> = secured.events().into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [CertificateState::Expiring, CertificateState::Expired]);
}

/// An old certificate behind the server's own is dispensable, as one that links to an authority which has gone.
#[tokio::test]
async fn only_the_server_s_own_certificate_counts() {
    let authority = Authority::new();
    let mut pair = authority.issue();
    pair.cert.push_str(&authority.issue_for(&["authority"], days_from_now(-3)).cert);
    let secured = Secured::with(SimConfig::default(), &authority, &pair).await;
    assert_eq!(secured.events(), []);
    let files =
        CertificateFiles { cert: secured.folder.path("cert.pem"), key: secured.folder.path("key.pem") };
    assert_eq!(check_certificate(&files), Ok(None));
    assert_eq!(ask(secured.connect(HTTP1).await, true).await.content(), oracle(TOKENS));
}
