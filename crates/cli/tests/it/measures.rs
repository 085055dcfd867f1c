//! Releases that go by what Prometheus says, by means and by what engines report.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use backstop_engine_sim::{Sim, SimConfig};
use serde_json::{Value, json};

use crate::backstop::{Backstop, sim};
use crate::client::{call, soon, until};
use crate::release::{Load, all_well, config, history, phase, status};

/// Answers every question about a version with what the test says.
struct Prometheus {
    addr: SocketAddr,
    says: Arc<Mutex<[Says; 2]>>,
    /// Heads of the requests.
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy)]
enum Says {
    Number(&'static str),
    Nothing,
    /// The question is wrong.
    BadData,
    /// Hangs up.
    Down,
}

impl Says {
    fn answer(self) -> Option<(u16, String)> {
        let result = |series: Value| json!({ "status": "success", "data": { "resultType": "vector", "result": series } });
        let (status, body) = match self {
            Self::Number(number) => (200, result(json!([{ "metric": {}, "value": [1, number] }]))),
            Self::Nothing => (200, result(json!([]))),
            Self::BadData => (400, json!({ "status": "error", "error": "parse error: unexpected end" })),
            Self::Down => return None,
        };
        Some((status, body.to_string()))
    }
}

impl Prometheus {
    /// Of `v1` and of `v2`. It has a thread of its own: commands keep that of the test.
    fn saying(v1: Says, v2: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (says, asked): (_, Arc<Mutex<Vec<String>>>) = (Arc::new(Mutex::new([v1, v2])), Arc::default());
        let prometheus = Self { addr, says: Arc::clone(&says), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = vec![0; 8192];
                let length = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let says = says.lock().unwrap()[usize::from(head.contains("%22v2%22"))];
                asked.lock().unwrap().push(head);
                let Some((status, body)) = says.answer() else { continue };
                let reply = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        prometheus
    }

    fn say(&self, v1: Says, v2: Says) {
        *self.says.lock().unwrap() = [v1, v2];
    }

    fn config(&self, sims: &[&Sim], release: &str) -> String {
        format!(
            "prometheus: {{ url: \"http://{}\", token: T0KEN, interval: 100ms }}\n{}",
            self.addr,
            config(sims, release)
        )
    }
}

fn guarded(release: &str, guardrails: &str) -> String {
    format!(
        "    release:\n      warmup: 0s\n      verify: 1s\n{release}      guardrails: [{{ metric: error_rate }}, {guardrails}]\n"
    )
}

const QUEUE: &str = "{ metric: queue, prometheus: 'max(queue{service=\"$service\",version=\"$version\"})', max: 10, for: 1s }";
const SLOW: &str = "      steps: [{ weight: 50%, hold: 1h }, { weight: 100% }]\n";
const QUICK: &str = "      steps: [{ weight: 50%, hold: 1s, min_requests: 20 }, { weight: 100%, min_requests: 5 }]\n      bake: 1s\n";

async fn serve(text: &str, sims: usize) -> Backstop {
    let backstop = Backstop::serve(text, &[]).await;
    all_well(&backstop, sims).await;
    backstop
}

fn metric(status: &Value, name: &str) -> Value {
    let metrics = status["evidence"]["metrics"].as_array().unwrap();
    metrics.iter().find(|metric| metric["metric"] == name).unwrap().clone()
}

async fn held(backstop: &Backstop, hold: &str) -> Value {
    let held = async {
        loop {
            let status = status(backstop);
            assert_eq!(status["ended"], false, "{status:#}");
            if status["holds"].as_array().unwrap().iter().any(|it| it["hold"] == hold) {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(hold, held).await
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_at_the_start() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let prometheus = Prometheus::saying(Says::Down, Says::Nothing);
    let text = prometheus.config(&[&first, &second], &guarded(SLOW, QUEUE));
    let backstop = serve(&text, 2).await;
    for (says, expected) in [
        (Says::Down, "`queue` is not available: Prometheus no answer"),
        (Says::BadData, "`queue` is not available: Prometheus answered 400: parse error: unexpected end"),
        (Says::Nothing, "`queue` is not available: Prometheus has no such data"),
        (Says::Number("NaN"), "`queue` is not available: the answer is not a number"),
    ] {
        prometheus.say(says, Says::Nothing);
        let refused = backstop.ask(&["release", "start", "chat", "--to", "v2"], "");
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains(expected), "{}", refused.err);
        assert!(!refused.err.contains("T0KEN"), "{}", refused.err);
    }
    prometheus.say(Says::Number("1"), Says::Nothing);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let asked = prometheus.asked.lock().unwrap().last().unwrap().to_ascii_lowercase();
    assert!(asked.starts_with("get /api/v1/query?query=max%28queue%7bservice%3d%22chat%22"), "{asked}");
    assert!(asked.contains("authorization: bearer t0ken"), "{asked}");
}

#[tokio::test]
async fn a_source_that_goes_away_holds_the_release_until_it_is_back() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let prometheus = Prometheus::saying(Says::Number("1"), Says::Number("2"));
    let quick = QUICK.replace("hold: 1s", "hold: 3s");
    let text = prometheus.config(&[&first, &second], &guarded(&quick, QUEUE));
    let backstop = serve(&text, 2).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    prometheus.say(Says::Number("1"), Says::Down);
    let status = held(&backstop, "provider").await;
    let queue = metric(&status, "queue");
    assert_eq!(queue["verdict"], "provider_error", "{queue:#}");
    assert!(queue["reason"].as_str().unwrap().contains("no answer"), "{queue:#}");
    let page = call(backstop.admin, "GET", "/metrics", "", b"").await.text();
    let verdict = "backstop_release_verdict{service=\"chat\",version=\"v2\",metric=\"queue\",verdict=\"provider_error\"} 1";
    assert!(page.contains(verdict) && page.contains("hold=\"provider\"} 1"), "{page}");
    until("told", || history(&backstop).contains("does not answer (queue: the new version: ")).await;
    prometheus.say(Says::Number("1"), Says::Number("2"));
    phase(&backstop, "promoted").await;
    load.none_lost();
}

#[tokio::test]
async fn a_number_beyond_its_limit_sends_the_version_back_unless_both_are() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let prometheus = Prometheus::saying(Says::Number("1"), Says::Number("2"));
    let text = prometheus.config(&[&first, &second], &guarded(SLOW, QUEUE));
    let backstop = serve(&text, 2).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    prometheus.say(Says::Number("12"), Says::Number("12"));
    held(&backstop, "incident").await;
    assert!(history(&backstop).contains("incident: v1 is in trouble (queue)"), "{}", history(&backstop));
    prometheus.say(Says::Number("1"), Says::Number("12.5"));
    let status = phase(&backstop, "verifying").await;
    assert_eq!(status["cause"], "regressed: queue");
    let account = backstop.order(&["release", "report", "chat"]);
    assert!(account.contains("| queue | **regressed** | – | 12.5 / 1 |"), "{account}");
    assert!(account.contains("it should be at most 10"), "{account}");
}

#[tokio::test]
async fn answers_that_become_much_longer_send_the_version_back() {
    let (first, second) = (sim(0, 3).await, sim(0, 12).await);
    let text = config(&[&first, &second], &guarded(SLOW, "{ metric: output_tokens }"));
    let backstop = serve(&text, 2).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let status = phase(&backstop, "verifying").await;
    assert_eq!(status["cause"], "regressed: output_tokens");
    let tokens = metric(&status, "output_tokens");
    assert_eq!((&tokens["figures"]["stable"], &tokens["figures"]["canary"]), (&json!(3.0), &json!(12.0)));
    assert!(tokens["figures"]["ratio_low"].as_f64() > Some(1.2), "{tokens:#}");
    let shown = backstop.order(&["release", "status", "chat"]);
    assert!(shown.contains("output_tokens") && shown.contains("12 / 3"), "{shown}");
    let account = backstop.order(&["release", "report", "chat"]);
    assert!(account.contains("| output_tokens | **regressed** | – | 12 / 3 |"), "{account}");
    load.none_lost();
}

#[tokio::test]
async fn an_engine_whose_memory_grows_sends_its_version_back() {
    let sim = async |leak| {
        let config = SimConfig { tokens: 3, leak: Some(leak), ..SimConfig::default() };
        Sim::start(config).await.unwrap()
    };
    let (first, second) = (sim(0).await, sim(10 << 20).await);
    let text = config(&[&first, &second], &guarded(SLOW, "{ metric: memory_growth, max: 20%, for: 1s }"));
    let backstop = serve(&text, 2).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let status = phase(&backstop, "verifying").await;
    assert_eq!(status["cause"], "regressed: memory_growth");
    let growth = metric(&status, "memory_growth");
    assert_eq!(growth["figures"]["stable"], 0.0, "{growth:#}");
    assert!(growth["figures"]["canary"].as_f64() > Some(0.2), "{growth:#}");
    load.none_lost();
}

#[tokio::test]
async fn what_nobody_reports_is_refused_at_the_start() {
    for (guardrail, expected) in [
        ("{ metric: cost }", "`cost` is not available: `v1` has no `price`"),
        ("{ metric: memory_growth, max: 20% }", "`memory_growth` is not available: the engine at http://"),
    ] {
        let (first, second) = (sim(0, 3).await, sim(0, 3).await);
        let backstop = serve(&config(&[&first, &second], &guarded(SLOW, guardrail)), 2).await;
        let refused = backstop.ask(&["release", "start", "chat", "--to", "v2"], "");
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains(expected), "{}", refused.err);
    }
}
