//! Whatever goes wrong, and whenever: what a client would take for a complete answer is the complete answer.
//!
//! Faults are drawn at random for every engine of a small world, and a few requests are sent through it. The seed is in
//! every message; `SCHEDULES=n` and `SEED=n` ask for more, or for one again.

use backstop_core::table::{Across, BalancePolicy, ResumeMode, ResumeSpec};
use backstop_engine_sim::{Cut, Dialect, Fault, Rule, SimConfig};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::client::{CHAT, End, Reply, call};
use crate::world::{World, ms, oracle, side_by_side};

const TOKENS: u64 = 40;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn some_fault(rng: &mut StdRng) -> Rule {
    let after = rng.random_range(0..=TOKENS);
    let how = *[Cut::Fin, Cut::Rst, Cut::End].choose(rng).unwrap();
    let status = *[400, 401, 404, 408, 429, 500, 501, 502, 503].choose(rng).unwrap();
    let fault = match rng.random_range(0..17) {
        0..4 => Fault::Cut { after, how, mid_event: rng.random_bool(0.3) },
        4 => Fault::Stall { after },
        5 => Fault::Garbage { after },
        6 => Fault::InvalidEvent { after },
        7 => Fault::ErrorEvent { after, done: rng.random_bool(0.5) },
        8 => Fault::NoFinish,
        9 => Fault::NoDone,
        10 => Fault::CutAfterFinish { how },
        11 => Fault::Hangup { how: if how == Cut::End { Cut::Fin } else { how } },
        12 => Fault::Status { status, retry_after: None, message: None },
        13 => Fault::PrefillRejected,
        14 => Fault::PlainForStream,
        15 => Fault::HtmlPage,
        _ => Fault::Dribble { bytes: rng.random_range(20..200) },
    };
    let times = rng.random_bool(0.5).then(|| rng.random_range(1..4));
    Rule { times, probability: if rng.random_bool(0.3) { 0.5 } else { 1.0 }, ..Rule::from(fault) }
}

async fn schedule(seed: u64) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let engines = rng.random_range(1..=4);
    let config = SimConfig { tokens: TOKENS, dialect: Dialect::Vllm, seed: 0, ..SimConfig::default() };
    let modes: &[&[ResumeMode]] =
        &[&[ResumeMode::Continue, ResumeMode::Replay], &[ResumeMode::Replay], &[ResumeMode::Continue], &[]];
    let resume = ResumeSpec {
        attempts: rng.random_range(0..4),
        modes: modes.choose(&mut rng).unwrap().to_vec(),
        across: vec![Across::Version, Across::Stable],
    };
    let world = World::of(vec![config; engines], |service| {
        side_by_side(service);
        service.balance = BalancePolicy::Random;
        service.resume = resume;
        service.timeouts.first_token = ms(300);
        service.timeouts.inter_token = ms(300);
        service.timeouts.response = ms(500);
        service.timeouts.total = ms(5000);
    })
    .await;
    for sim in &world.sims {
        for _ in 0..rng.random_range(0..3) {
            sim.set_fault(some_fault(&mut rng));
        }
    }
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (addr, stream) = (world.addr, rng.random_bool(0.75));
        let limit = rng.random_bool(0.5).then(|| rng.random_range(1..=TOKENS));
        requests.spawn(async move {
            let mut body = json!({ "model": "chat", "stream": stream, "messages": [{ "role": "user", "content": "hi" }] });
            if let Some(limit) = limit {
                body["max_tokens"] = limit.into();
            }
            let reply = call(addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
            let whole = oracle(limit.unwrap_or(TOKENS).try_into().unwrap());
            usize::from(is_whole(&reply, stream, &whole, seed))
        });
    }
    let sent = requests.len();
    (requests.join_all().await.iter().sum(), sent)
}

/// Whether it is; or it is an error that a client can't overlook.
#[track_caller]
fn is_whole(reply: &Reply, stream: bool, whole: &str, seed: u64) -> bool {
    let context = format!("SEED={seed}: {}", reply.text());
    assert_eq!(reply.end, End::Complete, "{context}");
    if reply.status != 200 {
        assert!(reply.json()["error"]["message"].is_string(), "{context}");
        return false;
    }
    if stream && !reply.is_done() {
        let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
        assert!(last["error"]["message"].is_string(), "{context}");
        assert!(whole.starts_with(&reply.content()), "{context}");
        return false;
    }
    assert_eq!(reply.content(), whole, "{context}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn no_schedule_of_faults_makes_a_part_look_whole() {
    let seeds = match env("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env("SCHEDULES").unwrap_or(150),
    };
    let (mut whole, mut sent) = (0, 0);
    for seeds in seeds.collect::<Vec<_>>().chunks(10) {
        let mut running = tokio::task::JoinSet::new();
        seeds.iter().for_each(|seed| drop(running.spawn(schedule(*seed))));
        for (of, all) in running.join_all().await {
            whole += of;
            sent += all;
        }
    }
    assert!(whole > sent / 4, "{whole} of {sent} were whole: the schedules show little");
}
