//! Every fault in every situation, seen from both sides. What is seen becomes `docs/failure-modes.md`, which a change of
//! behaviour so changes with it; what must hold in any case is asserted here.

use std::fmt::Write as _;

use backstop_core::health::State;
use backstop_core::table::{
    Across, Duty, FallbackSpec, FallbackStep, ResumeMode, ResumeSpec, ServiceSpec, When,
};
use backstop_engine_sim::{Cut, Dist, Fault, PolicyCode, SimConfig};
use serde_json::Value;

use crate::client::{CHAT, Conn, End, Reply, chat, hi, until};
use crate::world::{TOKENS, World, ms, oracle, service};

/// Which of the two forms of an answer a fault concerns.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Both,
    Stream,
    Plain,
}

struct Scenario {
    what: &'static str,
    /// `None`: the engine is dead.
    fault: Option<Fault>,
    form: Form,
}

/// Who is left when the first engine fails.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// Another endpoint of the version.
    Spare,
    /// Another service, by the fallback.
    Fallback,
    Nothing,
}

fn scenarios() -> Vec<Scenario> {
    let status = |status, retry_after| Fault::Status { status, retry_after, message: None };
    let cut = |how, mid_event| Fault::Cut { after: 10, how, mid_event };
    let both = |what, fault| Scenario { what, fault: Some(fault), form: Form::Both };
    let stream = |what, fault| Scenario { what, fault: Some(fault), form: Form::Stream };
    vec![
        Scenario { what: "refuses connections", fault: None, form: Form::Both },
        both("closes the connection instead of answering", Fault::Hangup { how: Cut::Fin }),
        both("resets the connection instead of answering", Fault::Hangup { how: Cut::Rst }),
        both("takes the request and says nothing", Fault::NoAnswer),
        both("500", status(500, None)),
        both("503", status(503, None)),
        both("429", status(429, None)),
        both("429, Retry-After a minute", status(429, Some(60))),
        both("401 to Backstop's key", status(401, None)),
        both("400", status(400, None)),
        both("prompt longer than the context", Fault::ContextLength),
        both("prompt against the content policy", Fault::ContentPolicy { code: PolicyCode::default() }),
        both("a page of HTML", Fault::HtmlPage),
        both("a redirection", Fault::Redirect { location: "http://127.0.0.1:9/".to_owned() }),
        stream("JSON in one piece for a stream", Fault::PlainForStream),
        Scenario {
            what: "a stream for JSON in one piece",
            fault: Some(Fault::StreamForPlain),
            form: Form::Plain,
        },
        both("closes the connection in the middle", cut(Cut::Fin, false)),
        both("resets the connection in the middle", cut(Cut::Rst, false)),
        stream("closes the connection within an event", cut(Cut::Fin, true)),
        stream("ends the body in the middle, properly", cut(Cut::End, false)),
        both("stops sending in the middle", Fault::Stall { after: 10 }),
        stream("an event that is not JSON", Fault::InvalidEvent { after: 10 }),
        stream("bytes that are no text", Fault::Garbage { after: 10 }),
        stream("an error event", Fault::ErrorEvent { after: 10, done: false }),
        stream("an error event and `[DONE]`", Fault::ErrorEvent { after: 10, done: true }),
        stream("an event of 1.5 MB", Fault::HugeEvent { after: 10, bytes: 1_500_000 }),
        stream("`[DONE]` without a finish reason", Fault::NoFinish),
        stream("no `[DONE]` after the finish reason", Fault::NoDone),
        stream("closes the connection after the finish reason", Fault::CutAfterFinish { how: Cut::Fin }),
        both("ends the answer by its content filter", Fault::ContentFilter { after: 10 }),
        both("never ends", Fault::Endless),
        both("HTTP/1.0, ended by closing", Fault::Http10),
        both("chunk extensions", Fault::ChunkExtensions),
        both("trailers", Fault::Trailers),
        stream("events cut anywhere, also within characters", Fault::Dribble { bytes: 50 }),
    ]
}

fn patient(service: &mut ServiceSpec) {
    service.timeouts.first_token = ms(2000);
    service.timeouts.inter_token = ms(2000);
    service.timeouts.response = ms(3000);
    service.timeouts.total = ms(8000);
    service.resume = ResumeSpec {
        attempts: 2,
        modes: vec![ResumeMode::Continue, ResumeMode::Replay],
        across: vec![Across::Version, Across::Stable],
    };
}

async fn world(left: Left) -> World {
    let count = if left == Left::Nothing { 1 } else { 2 };
    // A fault that arrives together with the first output is met before anything was sent, and told otherwise.
    let config = SimConfig { itl: Dist::Constant(ms(15)), ..SimConfig::default() };
    let mut world = World::of(vec![config; count], patient).await;
    if left == Left::Fallback {
        let mut small = service(&world.sims[1..]);
        patient(&mut small);
        (small.name, small.models) = ("small".to_owned(), vec!["small".to_owned()]);
        world.apply(|spec| {
            let chat = &mut spec.services[0];
            chat.versions[0].endpoints.truncate(1);
            let when = When { failure: true, overload: true };
            chat.fallback = vec![FallbackSpec { step: FallbackStep::Service("small".to_owned()), when }];
            spec.services.push(small);
        });
        world.until_all(State::Healthy).await;
    }
    world
}

/// What happened, in words: what the client got, what each engine was asked, and what was recorded.
async fn observe(scenario: &Scenario, left: Left, stream: bool) -> String {
    let world = world(left).await;
    match &scenario.fault {
        Some(fault) => world.sims[0].set_fault(fault.clone()),
        None => world.sims[0].kill().await,
    }
    let reply = chat(world.addr, stream).await;
    let case = format!("{} ({})", scenario.what, if stream { "stream" } else { "plain" });
    let seen = client_view(&reply, stream, &case);
    account(&world, &seen, &case).await
}

/// What the engines were asked, and what was recorded.
async fn account(world: &World, seen: &str, case: &str) -> String {
    until("the accounts are settled", || {
        let totals = world.totals();
        totals.answered + totals.failed + totals.cut + totals.cancelled == 1
    })
    .await;
    let totals = world.totals();
    let recorded = match (totals.answered, totals.cut, totals.cancelled) {
        (1, ..) => "answered",
        (_, 1, _) => "cut",
        (.., 1) => "cancelled",
        _ => "failed",
    };
    let asked: Vec<String> = world.requests().iter().map(usize::to_string).collect();
    assert!(world.requests().iter().sum::<usize>() <= 6, "{case}: attempts are bounded: {asked:?}");
    until(&format!("{case}: nothing is left in flight"), || {
        world.endpoints().iter().all(|endpoint| endpoint.in_flight == 0)
    })
    .await;
    format!("{seen}; asked {}; {recorded}", asked.join("+"))
}

/// What the client would take it for; and that it would not be deceived.
fn client_view(reply: &Reply, stream: bool, case: &str) -> String {
    assert_eq!(reply.end, End::Complete, "{case}: HTTP is ended properly");
    if reply.status != 200 {
        let error = &reply.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{case}: {}", reply.text());
        return format!(
            "{} {}",
            reply.status,
            error["code"].as_str().map_or("as the engine said it".to_owned(), |code| format!("`{code}`"))
        );
    }
    let level =
        reply.header("x-backstop-degraded").map(|level| format!(", degraded to {level}")).unwrap_or_default();
    if !stream {
        let choice = &reply.json()["choices"][0];
        let finish = choice["finish_reason"].as_str().unwrap_or_default().to_owned();
        return whole(&reply.content(), &finish, case) + &level;
    }
    let events = reply.events();
    let (last, before) = events.split_last().unwrap_or_else(|| panic!("{case}: an empty stream"));
    if last == "[DONE]" {
        let finishes: Vec<String> = before
            .iter()
            .filter_map(|event| {
                let event: Value = serde_json::from_str(event).ok()?;
                Some(event["choices"][0]["finish_reason"].as_str()?.to_owned())
            })
            .collect();
        assert_eq!(finishes.len(), 1, "{case}: {}", reply.text());
        return whole(&reply.content(), &finishes[0], case) + &level;
    }
    let error: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{case}: ends with {last}"));
    let code = error["error"]["code"].as_str().unwrap_or_else(|| panic!("{case}: ends with {last}"));
    assert!(!before.iter().any(|event| event == "[DONE]"), "{case}: an end before the error");
    let finished = before.iter().any(|event| event.contains(r#""finish_reason":""#));
    assert!(!finished, "{case}: a finish before the error: {}", reply.text());
    format!("the text so far, then an error event `{code}`{level}")
}

fn whole(text: &str, finish: &str, case: &str) -> String {
    if finish == "content_filter" {
        assert!(oracle(TOKENS).starts_with(text), "{case}");
        return "the answer as far as the filter let it".to_owned();
    }
    assert_eq!((text, finish), (oracle(TOKENS).as_str(), "stop"), "{case}: looks whole");
    "the whole answer".to_owned()
}

/// What happens to a stream of the first of three engines besides.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    /// These engines have these faults from the start.
    Faults(&'static str, &'static [(usize, Fault)]),
    Order(&'static str, Duty),
    Removed,
    FoundDead,
    AllDead,
    /// The client goes, after so many pieces.
    Left(&'static str, usize),
}

const CUT: Fault = Fault::Cut { after: 10, how: Cut::Rst, mid_event: false };

const TURNS: [Turn; 12] = [
    Turn::Faults("the spare breaks off too", &[(0, CUT), (1, CUT)]),
    Turn::Faults("one after the other breaks off", &[(0, CUT), (1, CUT), (2, CUT)]),
    Turn::Faults(
        "the spare does not continue what others have begun",
        &[(0, CUT), (1, Fault::PrefillRejected)],
    ),
    Turn::Faults("the spare takes the rest and says nothing", &[(0, CUT), (1, Fault::NoAnswer)]),
    Turn::Faults(
        "it stalls, and the spare closes the connection",
        &[(0, Fault::Stall { after: 10 }), (1, Fault::Hangup { how: Cut::Fin })],
    ),
    Turn::Order("an operator drains it, and `failover.drain` passes", Duty::Draining),
    Turn::Order("an operator isolates it", Duty::Isolated),
    Turn::Removed,
    Turn::FoundDead,
    Turn::AllDead,
    Turn::Left("the client leaves before the first token", 0),
    Turn::Left("the client leaves in the middle", 5),
];

impl Turn {
    fn what(self) -> &'static str {
        match self {
            Self::Faults(what, _) | Self::Order(what, _) | Self::Left(what, _) => what,
            Self::Removed => "it is removed, and `failover.drain` passes",
            Self::FoundDead => "it falls silent, and fails its health checks",
            Self::AllDead => "all engines are dead",
        }
    }
}

async fn take(turn: Turn) -> String {
    let config = SimConfig { itl: Dist::Constant(ms(40)), ..SimConfig::default() };
    let mut world = World::of(vec![config; 3], |service| {
        patient(service);
        service.timeouts.total = ms(20_000);
        service.failover.drain = ms(50);
        if turn == Turn::FoundDead {
            service.timeouts.inter_token = ms(15_000);
            (service.health.interval, service.health.down) = (ms(30), 1);
        }
    })
    .await;
    let case = turn.what();
    match turn {
        Turn::Faults(_, faults) => {
            faults.iter().for_each(|(sim, fault)| world.sims[*sim].set_fault(fault.clone()));
        }
        Turn::FoundDead => world.sims[0].set_fault(Fault::Stall { after: 10 }),
        Turn::Left(_, 0) => world.sims[0].set_fault(Fault::NoAnswer),
        Turn::AllDead => {
            for sim in &world.sims {
                sim.kill().await;
            }
        }
        _ => {}
    }
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    if let Turn::Left(_, pieces) = turn {
        until("it is asked", || world.requests()[0] == 1).await;
        if pieces > 0 {
            conn.head().await.unwrap();
            conn.contents(pieces).await;
        }
        drop(conn);
        return account(&world, "–", case).await;
    }
    let mut reply = conn.head().await.unwrap();
    if reply.status == 200 {
        reply.body = conn.contents(2).await;
    }
    match turn {
        Turn::Order(_, duty) => world.apply(|spec| spec.services[0].versions[0].endpoints[0].duty = duty),
        Turn::Removed => world.apply(|spec| _ = spec.services[0].versions[0].endpoints.remove(0)),
        Turn::FoundDead => world.sims[0].set_fault(Fault::Health { status: 503 }),
        _ => {}
    }
    conn.body(&mut reply).await;
    let seen = client_view(&reply, true, case);
    account(&world, &seen, case).await
}

const HEAD: &str = "\
# Failure modes

<!-- Generated from crates/gateway/tests/it/failure_modes.rs: UPDATE_DOCS=1 cargo test -p backstop-gateway --test it failure_modes -->

What happens when a model server fails, as the test suite sees it from both sides: real Backstop between a client and
simulated engines with seeded faults. The first engine has the fault; *spare* is another endpoint of its version,
*fallback* another service that is configured as `fallback`. Each cell says what the client gets, how often each engine
was asked (first + other), and how the request is recorded. A change of behaviour changes this page.

In every cell: an answer that looks whole is whole, an error is one that OpenAI's clients raise, HTTP ends properly, and
nothing stays in flight.

";

#[tokio::test]
async fn the_contract_is_as_documented() {
    let mut cells = tokio::task::JoinSet::new();
    let few_at_a_time = std::sync::Arc::new(tokio::sync::Semaphore::new(24));
    for (row, scenario) in scenarios().into_iter().enumerate() {
        let scenario = std::sync::Arc::new(scenario);
        for (column, left) in [Left::Spare, Left::Fallback, Left::Nothing].into_iter().enumerate() {
            for (form, stream) in [(Form::Stream, true), (Form::Plain, false)] {
                if scenario.form == Form::Both || scenario.form == form {
                    let scenario = std::sync::Arc::clone(&scenario);
                    let few_at_a_time = std::sync::Arc::clone(&few_at_a_time);
                    cells.spawn(async move {
                        let _turn = few_at_a_time.acquire_owned().await.unwrap();
                        ((!stream, row, column), observe(&scenario, left, stream).await)
                    });
                }
            }
        }
    }
    let mut cells = cells.join_all().await;
    cells.sort();
    let mut page = HEAD.to_owned();
    let rows = scenarios();
    for (plain, title) in [(false, "Streams"), (true, "Answers in one piece")] {
        let _ = write!(
            page,
            "## {title}\n\n| The engine | with a spare | with a fallback only | with nothing left |\n|---|---|---|---|\n"
        );
        for (row, scenario) in rows.iter().enumerate() {
            let line: Vec<&str> = cells
                .iter()
                .filter(|((is_plain, at, _), _)| *is_plain == plain && *at == row)
                .map(|(_, cell)| cell.as_str())
                .collect();
            if !line.is_empty() {
                let _ = writeln!(page, "| {} | {} |", scenario.what, line.join(" | "));
            }
        }
        page.push('\n');
    }
    page += "## Streams, with two spares\n\n| What happens | what becomes of it |\n|---|---|\n";
    let mut turns = tokio::task::JoinSet::new();
    for (row, turn) in TURNS.into_iter().enumerate() {
        turns.spawn(async move { (row, turn.what(), take(turn).await) });
    }
    let mut turns = turns.join_all().await;
    turns.sort_unstable();
    for (_, what, seen) in turns {
        let _ = writeln!(page, "| {what} | {seen} |");
    }
    let page = page.trim_end().to_owned() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/failure-modes.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    for (now, then) in page.lines().zip(written.lines()) {
        assert_eq!(now, then, "docs/failure-modes.md; UPDATE_DOCS=1 writes it anew");
    }
    assert_eq!(page.len(), written.len(), "docs/failure-modes.md; UPDATE_DOCS=1 writes it anew");
}
