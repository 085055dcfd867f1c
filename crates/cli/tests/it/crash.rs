//! Releases whose process ends in the middle of a decision, as with `kill -9`, and is started again.
//!
//! Every step of a decision that is kept or served is a point at which the process can be made to end; points are numbered
//! as they are reached. A story is told once for each of them, until it comes to its end without reaching the next. By
//! default a sample is tried, in which each kind of point has its turn; `CRASH_ALL=1` tries all.

mod clients;
mod restoring;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use backstop_engine_sim::{Fault, Sim, SimConfig};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::backstop::{BIN, Backstop, Directory, Said};
use crate::client::{CHAT, Conn, End, Reply};
use crate::release::config;
use clients::Clients;

/// A decision has seven points: one more than that, so that the next decision is met at its next point.
const STRIDE: usize = 8;
/// Runs at a time.
const AT_ONCE: usize = 3;
/// Clients that ask again and again; the last one by the rule for `v2`.
const CLIENTS: usize = 3;
/// Whatever takes longer has hung. A run alone takes about ten seconds.
const HUNG: Duration = Duration::from_secs(180);

const STEPS: &str = "    release:
      steps: [{ weight: 50%, hold: 1s, min_requests: 10 }, { weight: 100%, min_requests: 5 }]
      bake: 1s
      warmup: 0s
      verify: 5s
      guardrails: [{ metric: error_rate }]
";
const STAYS: &str = "    release:
      steps: [{ weight: 50%, hold: 1h }, { weight: 100% }]
      warmup: 0s
      verify: 5s
      rollback: { gradual: { weights: [20%, 0%], every: 1s } }
      guardrails: [{ metric: error_rate }]
";
const BLUE_GREEN: &str =
    "    release: { mode: blue_green, bake: 1s, guardrails: [{ metric: error_rate }] }\n";

const NOTHING: State = State { stable: "v1", buckets: 0, vetoed: false };
const HALF: State = State { stable: "v1", buckets: 50_000, vetoed: false };
const FIFTH: State = State { stable: "v1", buckets: 20_000, vetoed: false };
const ALL: State = State { stable: "v1", buckets: 100_000, vetoed: false };
const RELEASED: State = State { stable: "v2", buckets: 0, vetoed: false };
const BACK: State = State { stable: "v1", buckets: 0, vetoed: true };

/// Who gets the traffic, as it is kept in `routes.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct State<'a> {
    stable: &'a str,
    /// Of `v2`, in thousandths of a percent.
    buckets: u64,
    /// `v2` was sent back.
    vetoed: bool,
}

/// What the operator wants, besides to release `v2`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wish {
    Nothing,
    /// Away from it again at half of the traffic, gradually.
    Retreat,
    /// It is promoted at half of the traffic, and left then.
    Leave {
        gradual: bool,
    },
}

struct Story {
    release: &'static str,
    /// All of `v2`'s answers are errors.
    is_bad: bool,
    wish: Wish,
    /// In this order, none of them twice; some may pass unseen.
    states: &'static [State<'static>],
    ends: &'static str,
    /// The first point that is tried, and one that is always tried: there the store and the routes differ most.
    first: u64,
    always: &'static str,
}

#[tokio::test]
async fn a_promotion() {
    let states = &[NOTHING, HALF, ALL, RELEASED];
    tell(Story {
        release: STEPS,
        is_bad: false,
        wish: Wish::Nothing,
        states,
        ends: "promoted",
        first: 1,
        always: "after-commit:5",
    })
    .await;
}

#[tokio::test]
async fn a_bad_version() {
    let states = &[NOTHING, HALF, BACK];
    tell(Story {
        release: STAYS,
        is_bad: true,
        wish: Wish::Nothing,
        states,
        ends: "rolled back",
        first: 2,
        always: "before-commit:3",
    })
    .await;
}

#[tokio::test]
async fn a_gradual_rollback() {
    let states = &[NOTHING, HALF, FIFTH, BACK];
    tell(Story {
        release: STAYS,
        is_bad: false,
        wish: Wish::Retreat,
        states,
        ends: "rolled back",
        first: 3,
        always: "before-commit:3",
    })
    .await;
}

#[tokio::test]
async fn a_blue_green_release() {
    let states = &[NOTHING, ALL, RELEASED];
    tell(Story {
        release: BLUE_GREEN,
        is_bad: false,
        wish: Wish::Nothing,
        states,
        ends: "promoted",
        first: 4,
        always: "after-commit:4",
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_left_after_its_promotion() {
    let states = &[NOTHING, HALF, RELEASED, BACK];
    let wish = Wish::Leave { gradual: false };
    tell(Story {
        release: STAYS,
        is_bad: false,
        wish,
        states,
        ends: "rolled back",
        first: 5,
        always: "before-commit:4",
    })
    .await;
}

#[tokio::test]
async fn a_version_that_is_left_gradually() {
    let states = &[NOTHING, HALF, RELEASED, FIFTH, BACK];
    let wish = Wish::Leave { gradual: true };
    tell(Story {
        release: STAYS,
        is_bad: false,
        wish,
        states,
        ends: "rolled back",
        first: 6,
        always: "before-commit:4",
    })
    .await;
}

/// Once for each point, some at a time.
async fn tell(story: Story) {
    let all = std::env::var_os("CRASH_ALL").is_some();
    let (first, stride) = if all { (1, 1) } else { (story.first, STRIDE) };
    let mut points = (first..).step_by(stride).map(|point| point.to_string());
    let mut next: Vec<String> = vec![story.always.to_owned()];
    let story = Arc::new(story);
    loop {
        next.extend(points.by_ref().take(AT_ONCE - next.len()));
        let runs: Vec<_> = next
            .drain(..)
            .map(|point| (tokio::spawn(run(Arc::clone(&story), point.clone())), point))
            .collect();
        let mut all_crashed = true;
        for (run, point) in runs {
            let crashed = tokio::time::timeout(HUNG, run).await;
            let crashed = crashed.unwrap_or_else(|_| panic!("hung with a crash at point {point}")).unwrap();
            assert!(crashed || point != story.always, "point {point} is never reached");
            all_crashed &= crashed;
        }
        if !all_crashed {
            return;
        }
    }
}

/// Tells the story with a crash at this point; gives whether there was one.
async fn run(story: Arc<Story>, point: String) -> bool {
    let (story, point) = (&*story, &*point);
    let start = || Sim::start(SimConfig { tokens: 3, log: usize::MAX, ..SimConfig::default() });
    let (first, second) = (start().await.unwrap(), start().await.unwrap());
    if story.is_bad {
        second.set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    }
    let directory = Directory::with(&config(&[&first, &second], story.release));
    let mut backstop = Backstop::start(&directory, &[], &[("BACKSTOP_CRASH_AT", point)]);
    let crashed = !backstop.serves().await;
    if crashed {
        backstop.kill_and_restart().await;
    }
    let clients = Clients::of(&backstop);
    let mut witness = Witness { story, point, crashed, place: 0, counted: BTreeMap::new() };
    loop {
        if backstop.has_ended() {
            assert!(!witness.crashed, "point {point}: it has ended by itself");
            witness.crashed = true;
            backstop.kill_and_restart().await;
            // Before it can know anything from its store.
            let share = share_of_v2(&backstop).await;
            let kept = routes_of(&backstop.path(""));
            witness.look(&route(&kept));
            assert_eq!(share, route(&kept).buckets, "point {point}: {kept:#} is kept");
            clients.turn_to(&backstop);
        }
        witness.look(&route(&routes_of(&backstop.path(""))));
        let Some(status) = status(backstop.admin).await else { continue };
        witness.count(&status);
        if let Some((path, body)) = order(story.wish, &status) {
            // Refused, if a version is not ready yet, or lost; then it is given again.
            drop(ask(backstop.admin, "POST", path, "", &body.to_string()).await);
        } else if status["ended"] == true {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = status(backstop.admin).await.unwrap();
    assert_eq!(status["phase"], story.ends, "point {point}: {status:#}");
    settled(&backstop, point).await;
    let kept = routes_of(&backstop.path(""));
    assert_eq!(Some(&route(&kept)), story.states.last(), "point {point}");
    clients.none_lost(point, &backstop);
    // What was assigned is counted once, by the last release or by the one before.
    let reached = second.requests() + if story.is_bad { first.requests() } else { 0 } + CLIENTS as u64;
    let counted = status["requests_in_all"]["canary"].as_u64().unwrap();
    assert!(counted <= reached, "point {point}: {counted} counted, {reached} sent");
    let late = second.request_log().iter().filter(|it| it.header("x-after-veto").is_some()).count();
    assert_eq!(late, 0, "point {point}: `v2` got requests after it was sent back");
    whole_history(&backstop.path(""), point).await;
    without_store(backstop, &route(&kept), point).await;
    witness.crashed
}

/// What the operator says next.
fn order(wish: Wish, status: &Value) -> Option<(&'static str, Value)> {
    const ROLLBACK: &str = "/api/v1/services/chat/rollback";
    let (phase, kind) = (status["phase"].as_str(), status["kind"].as_str());
    match (wish, phase) {
        (_, None) => Some(("/api/v1/services/chat/releases", json!({ "to": "v2" }))),
        (Wish::Retreat, Some("step 1")) => Some((ROLLBACK, json!({ "gradual": true }))),
        (Wish::Leave { .. }, Some("step 1")) => Some(("/api/v1/services/chat/release/promote", Value::Null)),
        (Wish::Leave { gradual }, Some("promoted")) if kind != Some("rollback") => {
            Some((ROLLBACK, json!({ "gradual": gradual })))
        }
        _ => None,
    }
}

/// Follows a run, and sees that nothing that was decided is undone.
struct Witness<'a> {
    story: &'a Story,
    point: &'a str,
    crashed: bool,
    /// Of the state that was reached.
    place: usize,
    /// Requests of each release, as they were shown.
    counted: BTreeMap<String, u64>,
}

impl Witness<'_> {
    fn look(&mut self, route: &State<'_>) {
        let (point, before) = (self.point, self.story.states[self.place]);
        let place = self.story.states.iter().skip(self.place).position(|state| state == route);
        self.place += place.unwrap_or_else(|| panic!("point {point}: {route:?} after {before:?}"));
    }

    /// Nothing that was shown is lost, as it was kept before.
    fn count(&mut self, status: &Value) {
        let Some(id) = status["id"].as_str() else { return };
        let arms = &status["requests_in_all"];
        let now = arms["canary"].as_u64().unwrap() + arms["stable"].as_u64().unwrap();
        let before = self.counted.insert(id.to_owned(), now).unwrap_or_default();
        assert!(now >= before, "point {}: {before} requests were counted, and now {now}", self.point);
    }
}

/// The release of a process that may end, and may not know of any yet; `None` if it can't tell.
async fn status(admin: SocketAddr) -> Option<Value> {
    let reply = ask(admin, "GET", "/api/v1/services/chat/release", "", "").await?;
    match reply.status {
        200 => Some(reply.json()),
        404 => Some(Value::Null),
        _ => None,
    }
}

/// The release has let go of the route.
async fn settled(backstop: &Backstop, point: &str) {
    for _ in 0..600 {
        let phase = routes_of(&backstop.path(""))["active"]["release"]["phase"]["name"].take();
        if ["promoted", "rolled_back", "verify_failed", "aborted"].iter().any(|end| phase == *end) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("point {point}: the release has ended and is under way in {:#}", routes_of(&backstop.path("")));
}

/// A process that never gets to see its store keeps to what was decided.
async fn without_store(mut backstop: Backstop, kept: &State<'_>, point: &str) {
    backstop.kill();
    std::fs::rename(backstop.path("backstop.db"), backstop.path("old.db")).unwrap();
    std::fs::create_dir(backstop.path("backstop.db")).unwrap();
    backstop.kill_and_restart().await;
    for ruled in [false, true, false, true] {
        let reply = chat(backstop.addr, ruled, "").await.unwrap();
        assert_eq!(reply.header("x-backstop-version"), Some(kept.stable), "point {point}: {reply:?}");
    }
}

async fn whole_history(directory: &Path, point: &str) {
    let mut command = Command::new(BIN);
    command.args(["store", "check"]).current_dir(directory);
    // The servers of other runs are on this thread.
    let check = tokio::task::spawn_blocking(|| Said::of(command)).await.unwrap();
    assert_eq!(check.code, Some(0), "point {point}: {check:?}");
}

/// What is kept of the service; null if nothing is.
fn routes_of(directory: &Path) -> Value {
    let text = std::fs::read(directory.join("state/routes.json")).unwrap_or_default();
    let mut routes: Value = serde_json::from_slice(&text).unwrap_or_default();
    routes["services"]["chat"].take()
}

fn route(kept: &Value) -> State<'_> {
    State {
        stable: kept["stable"].as_str().unwrap_or("v1"),
        buckets: given(&kept["active"]["release"]),
        vetoed: !kept["vetoes"]["v2"].is_null(),
    }
}

async fn share_of_v2(backstop: &Backstop) -> u64 {
    let metrics = ask(backstop.admin, "GET", "/metrics", "", "").await.unwrap().text();
    let share = metrics
        .lines()
        .find_map(|line| line.strip_prefix("backstop_release_share_ratio{")?.split(' ').next_back());
    share.map_or(0, |share| (share.parse::<f64>().unwrap() * 1e5).round() as u64)
}

/// A whole answer; `None` if the process has ended.
async fn ask(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Option<Reply> {
    let mut conn = Conn::of(TcpStream::connect(addr).await.ok()?);
    let headers = format!("content-type: application/json\r\n{headers}");
    conn.send(method, path, &headers, body.as_bytes()).await;
    Some(conn.reply().await).filter(|reply| reply.status > 0 && reply.end == End::Complete)
}

async fn chat(addr: SocketAddr, ruled: bool, headers: &str) -> Option<Reply> {
    let body = json!({ "model": "chat", "messages": [{ "role": "user", "content": "hi" }] });
    let rule = if ruled { "x-version: v2\r\n" } else { "" };
    ask(addr, "POST", CHAT, &format!("{rule}{headers}"), &body.to_string()).await
}

/// What a release gives to its version, in thousandths of a percent.
fn given(release: &Value) -> u64 {
    let (phase, plan) = (&release["phase"], &release["plan"]);
    let index = phase["index"].as_u64().unwrap_or(0) as usize;
    match phase["name"].as_str() {
        Some("step") => plan["steps"][index]["buckets"].as_u64().unwrap(),
        Some("bake") => 100_000,
        Some("retreat") => plan["retreat"][index].as_u64().unwrap(),
        _ => 0,
    }
}
