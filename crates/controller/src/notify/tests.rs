//! People are told, by real servers on this machine, whatever happens to these and to us.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use backstop_core::event::EndpointName;
use backstop_core::health::State;
use backstop_core::rollout::{About, Told};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rustls::RootCertStore;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::notice::Status;
use super::*;
use crate::tests::World;

/// Quick, and with nothing that is told again or given up by itself.
const QUICK: Pace = Pace {
    look: Duration::from_millis(50),
    refresh: Duration::from_secs(3600),
    window: Duration::from_secs(3600),
    timeout: Duration::from_millis(200),
    backoff: Duration::from_millis(1),
    backoff_max: Duration::from_millis(20),
    // The events of these tests are of 1970.
    give_up: Duration::MAX,
};

const SERVICES: &str = "
listen: 127.0.0.1:0
services:
  - name: chat
    versions: [{ name: v1, endpoints: [{ url: \"http://h:1\" }, { url: \"http://h:2\" }] }]
";

/// How a server answers.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    RetryAfter(&'static str),
    /// Never.
    Hang,
}

/// What it was sent.
#[derive(Clone)]
struct Got {
    path: String,
    headers: HeaderMap,
    text: String,
    body: Value,
}

/// Keeps what it is sent. Answers as it was told, then with 200.
#[derive(Clone, Default)]
struct Receiver {
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Receiver {
    async fn start(answers: &[Answer]) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (Self::on(listener, answers), url)
    }

    fn on(listener: TcpListener, answers: &[Answer]) -> Self {
        let receiver =
            Self { got: Arc::default(), answers: Arc::new(Mutex::new(answers.iter().copied().collect())) };
        let router = Router::new().fallback(take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn got(&self) -> MutexGuard<'_, Vec<Got>> {
        self.got.lock().unwrap()
    }

    /// Once there are so many.
    async fn wait_for(&self, count: usize) -> Vec<Got> {
        until(|| self.got().len() >= count).await;
        self.got().clone()
    }

    /// `status state` of all that it was sent as a webhook.
    fn states(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.got()
            .iter()
            .map(|it| format!("{} {}", text(&it.body["status"]), text(&it.body["state"])))
            .collect()
    }
}

async fn take(Shared(receiver): Shared<Receiver>, uri: Uri, headers: HeaderMap, bytes: Bytes) -> Response {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let body = serde_json::from_str(&text).unwrap();
    receiver.got().push(Got { path: uri.to_string(), headers, text, body });
    let answer = receiver.answers.lock().unwrap().pop_front();
    match answer {
        None => StatusCode::OK.into_response(),
        Some(Answer::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Answer::RetryAfter(text)) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", text)]).into_response()
        }
        Some(Answer::Hang) => std::future::pending().await,
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waited).await.expect("it becomes so");
}

/// A Backstop that tells people.
struct Site {
    world: World,
    control: Arc<Control>,
    store: Store,
    running: JoinHandle<()>,
}

impl Site {
    async fn start(notify: &str, pace: Pace) -> Self {
        let world = World::new(&format!("notify: [{notify}]\n{SERVICES}"));
        let store = Store::open(&world.path("backstop.db")).await.unwrap();
        let control = world.start().unwrap();
        let running = run(&control, &store, pace);
        Self { world, control, store, running }
    }

    fn emit(&self, what: What) {
        self.control.data_plane().emit(what);
    }

    fn undelivered(&self) -> Vec<(String, String)> {
        let told = |what| match what {
            What::Undelivered { recipient, reason, .. } => Some((recipient, reason)),
            _ => None,
        };
        self.world.plane.happened().into_iter().filter_map(told).collect()
    }

    async fn waiting(&self, recipient: usize) -> Vec<backstop_store::Pending> {
        let kind = outbox::kind(&self.control.current().config.notify()[recipient]);
        self.store.pending(&kind, u64::MAX, 10).await.unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn run(control: &Arc<Control>, store: &Store, pace: Pace) -> JoinHandle<()> {
    let client = Client::trusting(RootCertStore::empty());
    tokio::spawn(Notifier::new(Arc::clone(control), store.clone(), client, pace).run())
}

fn health(endpoint: u8, to: State) -> What {
    let url = format!("http://h:{endpoint}");
    let endpoint = EndpointName { service: "chat".to_owned(), version: "v1".to_owned(), url };
    What::Health { endpoint, from: State::Healthy, to, reason: "process: <refused>".to_owned() }
}

#[tokio::test]
async fn everybody_is_told_in_their_own_form() {
    let (webhook, webhook_url) = Receiver::start(&[]).await;
    let (slack, slack_url) = Receiver::start(&[]).await;
    let (alertmanager, alertmanager_url) = Receiver::start(&[]).await;
    let (releases, releases_url) = Receiver::start(&[]).await;
    let site = Site::start(
        &format!(
            "{{ webhook: \"{webhook_url}/in?key=k\", secret: whsec_c2VjcmV0, token: t0k }}, \
             {{ slack: \"{slack_url}/T0/B0\" }}, {{ alertmanager: \"{alertmanager_url}\" }}, \
             {{ webhook: \"{releases_url}\", events: [release] }}"
        ),
        QUICK,
    )
    .await;
    site.emit(health(1, State::Unhealthy));
    site.emit(health(1, State::Healthy));

    let [down, up] = &webhook.wait_for(2).await[..] else { panic!("two") };
    assert_eq!(
        (down.path.as_str(), &down.headers["authorization"]),
        ("/in?key=k", &"Bearer t0k".parse().unwrap())
    );
    let header = |name: &str| down.headers[name].to_str().unwrap();
    let signed = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), down.text);
    let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
    mac.update(signed.as_bytes());
    let tag = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    assert_eq!(header("webhook-signature"), format!("v1,{tag}"));
    assert_eq!(header("webhook-id"), down.body["id"].as_str().unwrap());
    for (key, value) in [
        ("topic", "failover"),
        ("severity", "warning"),
        ("status", "firing"),
        ("state", "unhealthy"),
        ("title", "http://h:1 of chat/v1 can't serve"),
        ("reason", "process: <refused>"),
    ] {
        assert_eq!(down.body[key], json!(value));
    }
    assert_eq!((&up.body["status"], &up.body["labels"]), (&json!("resolved"), &down.body["labels"]));
    assert_eq!(up.body["labels"]["endpoint"], json!("http://h:1"));

    let slack = slack.wait_for(2).await;
    let text = "*WARNING* http://h:1 of chat/v1 can't serve\nprocess: &lt;refused&gt;";
    assert_eq!((slack[0].path.as_str(), &slack[0].body), ("/T0/B0", &json!({ "text": text })));
    assert!(slack[1].body["text"].as_str().unwrap().starts_with("*RESOLVED* "));

    let alerts = alertmanager.wait_for(2).await;
    let (down, up) = (&alerts[0].body[0], &alerts[1].body[0]);
    assert_eq!(alerts[0].path, "/api/v2/alerts");
    assert_eq!(down["labels"]["alertname"], json!("BackstopFailover"));
    assert_eq!(down["labels"], up["labels"]);
    assert!(down["startsAt"].as_str() < down["endsAt"].as_str(), "{down}");
    assert_eq!((&up["startsAt"], up["endsAt"].is_string()), (&Value::Null, true));
    assert!(releases.got().is_empty());
}

#[tokio::test]
async fn it_is_tried_again_in_order_until_it_is_taken() {
    let answers = [Answer::Status(500), Answer::Hang, Answer::RetryAfter("0"), Answer::Status(408)];
    let (receiver, url) = Receiver::start(&answers).await;
    let site = Site::start(&format!("{{ webhook: \"{url}\" }}"), QUICK).await;
    site.emit(health(1, State::Unhealthy));
    site.emit(health(2, State::Unhealthy));
    let got = receiver.wait_for(6).await;
    let ids: Vec<_> = got.iter().map(|it| it.body["id"].as_str().unwrap()).collect();
    assert_eq!(ids[..5], [ids[0]; 5]);
    assert_ne!(ids[4], ids[5]);
    assert!(got[5].body["title"].as_str().unwrap().contains("http://h:2"));
    assert_eq!(site.undelivered(), []);
}

#[tokio::test]
async fn whoever_asks_for_time_gets_it() {
    let (receiver, url) = Receiver::start(&[Answer::RetryAfter("1800")]).await;
    let site = Site::start(&format!("{{ slack: \"{url}\" }}"), QUICK).await;
    let before = unix_millis();
    site.emit(health(1, State::Unhealthy));
    receiver.wait_for(1).await;
    let mut waiting = site.waiting(0).await;
    while waiting[0].attempts == 0 {
        tokio::task::yield_now().await;
        waiting = site.waiting(0).await;
    }
    assert!(waiting[0].effect.not_before >= before + 1_800_000);
    assert_eq!((waiting.len(), receiver.got().len()), (1, 1));
}

/// As after `kill -9`: another process has only the store.
#[tokio::test]
async fn what_was_not_told_is_told_by_the_next_process() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut site = Site::start(&format!("{{ webhook: \"http://{address}/\" }}"), QUICK).await;
    site.emit(health(1, State::Unhealthy));
    let mut waiting = site.waiting(0).await;
    while waiting.first().is_none_or(|it| it.attempts < 2) {
        tokio::task::yield_now().await;
        waiting = site.waiting(0).await;
    }
    site.running.abort();

    // The events of the process that died are gone; this one finds the endpoint dead too.
    let receiver = Receiver::on(TcpListener::bind(address).await.unwrap(), &[]);
    let world = World::new(&format!("notify: [{{ webhook: \"http://{address}/\" }}]\n{SERVICES}"));
    let control = world.start().unwrap();
    control.data_plane().emit(health(1, State::Unhealthy));
    control.data_plane().emit(health(2, State::Unhealthy));
    // Its lease has run out.
    let epoch = site.store.acquire(LEASE, "nobody", Duration::ZERO, u64::MAX / 4).await.unwrap().unwrap();
    site.store.release(LEASE, epoch).await.unwrap();
    site.running = run(&control, &site.store, QUICK);
    let got = receiver.wait_for(2).await;
    assert_eq!(got[0].body["id"], waiting[0].effect.body["id"]);
    assert!(
        got[1].body["title"].as_str().unwrap().contains("http://h:2"),
        "the same is no news: {}",
        got[1].body
    );
    site.running.abort();
}

#[tokio::test]
async fn what_goes_up_and_down_is_told_once() {
    let (receiver, url) = Receiver::start(&[]).await;
    let pace = Pace { window: Duration::from_millis(300), ..QUICK };
    let site = Site::start(&format!("{{ webhook: \"{url}\" }}"), pace).await;
    for _ in 0..5 {
        site.emit(health(1, State::Unhealthy));
        site.emit(health(1, State::Healthy));
    }
    site.emit(health(1, State::Unhealthy));
    receiver.wait_for(3).await;
    assert_eq!(receiver.states(), ["firing unhealthy", "resolved serving", "firing unhealthy"]);
    let last = receiver.got()[2].body["reason"].as_str().unwrap().to_owned();
    assert!(last.ends_with("; it has changed 9 times meanwhile"), "{last}");
}

#[tokio::test]
async fn what_is_refused_is_given_up_with_an_event() {
    let (receiver, url) = Receiver::start(&[Answer::Status(404)]).await;
    let site = Site::start(&format!("{{ webhook: \"{url}/s3cret\" }}"), QUICK).await;
    site.emit(health(1, State::Unhealthy));
    site.emit(health(2, State::Unhealthy));
    assert_eq!(receiver.wait_for(2).await.len(), 2);
    assert_eq!(site.undelivered(), [(format!("webhook at {url}"), "answered 404".to_owned())]);
}

#[tokio::test]
async fn what_is_too_old_is_given_up_with_an_event() {
    let (receiver, url) = Receiver::start(&[Answer::Status(503), Answer::Status(503)]).await;
    let pace = Pace { give_up: Duration::ZERO, ..QUICK };
    let site = Site::start(&format!("{{ webhook: \"{url}\" }}"), pace).await;
    site.emit(health(1, State::Unhealthy));
    until(|| site.undelivered().len() == 1).await;
    assert_eq!(site.waiting(0).await.len(), 0);
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn of_too_much_the_oldest_is_given_up() {
    let world = World::new(&format!("notify: [{{ webhook: \"http://127.0.0.1:1/\" }}]\n{SERVICES}"));
    let control = world.start().unwrap();
    let store = Store::in_memory().await.unwrap();
    let epoch = store.acquire(LEASE, "us", LEASE_LASTS, 0).await.unwrap().unwrap();
    let fence = Fence { lease: LEASE.to_owned(), epoch };
    let outbox = Outbox { control, store: store.clone(), fence, window: 60_000 };
    let mut dropped = Vec::new();
    for number in 0..1002 {
        let (subject, id) = (number.to_string(), format!("n{number}"));
        let (title, reason, labels) = (id.clone(), String::new(), BTreeMap::new());
        let (topic, status, state) = (Topic::Failover, Status::Firing, "down".to_owned());
        let severity = backstop_core::rollout::Severity::Warning;
        let notice = Notice { id, topic, at: 0, severity, status, subject, state, title, reason, labels };
        store.commit(Commit { ops: vec![notice.enqueue()], ..Commit::default() }).await.unwrap();
        dropped.extend(outbox.fan_out(0).await.unwrap());
    }
    let dropped: Vec<_> = dropped.iter().map(|(_, notice)| notice.id.as_str()).collect();
    assert_eq!(dropped, ["n0", "n1"]);
    assert_eq!(store.count(&outbox::kind(&outbox.recipients()[0])).await, Ok(1000));
}

#[tokio::test]
async fn of_two_processes_on_one_store_one_tells() {
    let (receiver, url) = Receiver::start(&[]).await;
    let notify = format!("{{ webhook: \"{url}\" }}");
    let site = Site::start(&notify, QUICK).await;
    let other = World::new(&format!("notify: [{notify}]\n{SERVICES}"));
    let control = other.start().unwrap();
    until_led(&site.store).await;
    let second = run(&control, &site.store, QUICK);
    control.data_plane().emit(health(2, State::Unhealthy));
    site.emit(health(1, State::Unhealthy));
    receiver.wait_for(2).await;
    site.emit(health(1, State::Healthy));
    let got = receiver.wait_for(3).await;
    let mut titles: Vec<_> = got.iter().map(|it| it.body["title"].as_str().unwrap()).collect();
    titles[..2].sort_unstable();
    let can_not = |endpoint| format!("http://h:{endpoint} of chat/v1 can't serve");
    assert_eq!(titles, [can_not(1), can_not(2), "http://h:1 of chat/v1 serves again".to_owned()]);
    second.abort();
}

async fn until_led(store: &Store) {
    while store.acquire(LEASE, "nobody", Duration::ZERO, 0).await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_alertmanager_is_reminded_of_what_lasts_until_it_is_gone() {
    let (receiver, url) = Receiver::start(&[]).await;
    let pace = Pace { refresh: Duration::from_millis(50), ..QUICK };
    let site = Site::start(&format!("{{ alertmanager: \"{url}\" }}"), pace).await;
    site.emit(health(1, State::Unhealthy));
    let got = receiver.wait_for(4).await;
    let first = &got[0].body[0];
    assert!(got.iter().all(|it| it.body[0]["labels"] == first["labels"]));
    assert!(got.iter().all(|it| it.body[0]["startsAt"] == first["startsAt"]));
    // The endpoint leaves the configuration.
    let text = format!("notify: [{{ alertmanager: \"{url}\" }}]\n{SERVICES}");
    site.world.write(&text.replace("{ url: \"http://h:1\" }, ", ""));
    site.control.reload(&crate::Actor::Signal, None).unwrap();
    let is_over = |got: &Got| got.body[0]["annotations"]["state"] == json!("gone");
    until(|| receiver.got().iter().any(is_over)).await;
    let over = receiver.got().iter().find(|got| is_over(got)).unwrap().body[0].clone();
    assert_eq!(over["labels"], first["labels"]);
    let count = receiver.got().len();
    site.emit(health(2, State::Unhealthy));
    // Told, and twice reminded of.
    for later in &receiver.wait_for(count + 3).await[count..] {
        let alerts = later.body.as_array().unwrap();
        assert!(
            alerts.iter().all(|alert| alert["labels"]["endpoint"] == json!("http://h:2")),
            "{}",
            later.text
        );
    }
}

#[tokio::test]
async fn a_recipient_that_is_gone_is_not_told_and_a_new_one_is() {
    let (first, first_url) = Receiver::start(&[Answer::RetryAfter("1800")]).await;
    let (second, second_url) = Receiver::start(&[]).await;
    let site = Site::start(&format!("{{ webhook: \"{first_url}\" }}"), QUICK).await;
    site.emit(health(1, State::Unhealthy));
    first.wait_for(1).await;
    let kind = outbox::kind(&site.control.current().config.notify()[0]);
    site.world.write(&format!("notify: [{{ webhook: \"{second_url}\" }}]\n{SERVICES}"));
    site.control.reload(&crate::Actor::Signal, None).unwrap();
    site.emit(health(2, State::Unhealthy));
    assert!(second.wait_for(1).await[0].body["title"].as_str().unwrap().contains("http://h:2"));
    while site.store.count(&kind).await.unwrap() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(first.got().len(), 1);
}

#[tokio::test]
async fn nobody_is_told_of_what_leaves_the_configuration() {
    let (receiver, url) = Receiver::start(&[]).await;
    let site = Site::start(&format!("{{ webhook: \"{url}\" }}"), QUICK).await;
    site.emit(health(9, State::Draining));
    site.emit(health(1, State::Draining));
    let got = receiver.wait_for(1).await;
    assert_eq!(got[0].body["title"], json!("http://h:1 of chat/v1 is being drained"));
}

/// The rest is the gateway's affair; a certificate by an unknown authority must not pass here either.
#[tokio::test]
async fn servers_have_to_show_who_they_are() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    });
    let text = format!("notify: [{{ webhook: \"https://localhost:{port}/s3cret\" }}]\n{SERVICES}");
    let recipient = World::new(&text).start().unwrap().current().config.notify().remove(0);
    let ask = async |client: Client| {
        let request = hyper::Request::post(&recipient.path).header("host", "localhost");
        let sent =
            client.send(&recipient.target, request.body(http_body_util::Full::default()).unwrap()).await;
        sent.map(|(head, _)| head.status.as_u16())
    };
    let refused = ask(Client::trusting(RootCertStore::empty())).await.unwrap_err();
    assert!(refused.starts_with("TLS: ") && !refused.contains("s3cret"), "{refused}");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    assert_eq!(ask(Client::trusting(roots)).await, Ok(204));
}

#[tokio::test]
async fn what_a_release_says_is_told() {
    let (receiver, url) = Receiver::start(&[]).await;
    let (triggers, triggers_url) = Receiver::start(&[]).await;
    let site = Site::start(
        &format!("{{ webhook: \"{url}\", events: [release] }}, {{ webhook: \"{triggers_url}\", events: [trigger] }}"),
        QUICK,
    )
    .await;
    let settings = site.control.current().config.release("chat").unwrap();
    let kind = backstop_core::rollout::Kind::Canary;
    let release = backstop_core::rollout::Release::begin("r1", "chat", kind, "v1", "v2", settings.plan);
    let severity = backstop_core::rollout::Severity::Critical;
    // What it says does not tell what it is about.
    let all = [(About::Release, "v2 goes on with 1%: trigger: none"), (About::Trigger, "v2 goes back")];
    for (index, (about, text)) in all.into_iter().enumerate() {
        let told = Told { severity, about, text: text.to_owned() };
        let ops = vec![of_release(&release, (1, index), &told)];
        site.store.commit(Commit { ops, ..Commit::default() }).await.unwrap();
    }
    let got = receiver.wait_for(2).await;
    assert_eq!(got[0].body["title"], json!("chat: v2 goes on with 1%: trigger: none"));
    assert_eq!((&got[1].body["topic"], &got[1].body["severity"]), (&json!("trigger"), &json!("critical")));
    assert_eq!(triggers.wait_for(1).await[0].body["id"], got[1].body["id"]);
}
