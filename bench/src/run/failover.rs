//! One of several replicas dies under many streams: how many are whole in the end, and how long they stood still.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use super::site::{PER_TOKEN, Seen, Setup, follow};
use crate::results::Failover;

const REPLICAS: usize = 4;
/// Of a replica.
const FIRST_TOKEN: Duration = Duration::from_millis(200);
/// Of each answer.
const TOKENS: u32 = 200;
/// How long all streams flow before the replica dies.
const CALM: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// `backstop` is the program.
pub(super) async fn measure(backstop: &Path, streams: u32) -> Result<Failover> {
    let config = |directory: &Path, replicas: &[u16]| {
        let mut endpoints = String::new();
        for port in replicas {
            // Nothing fails to be written to a text.
            let _ = writeln!(endpoints, "          - {{ url: \"http://127.0.0.1:{port}\", engine: sim }}");
        }
        let state = directory.display();
        format!(
            "store: \"memory:\"\nstate_dir: \"{state}\"\nservices:\n  - name: bench\n    balance: round_robin\n    \
             versions:\n      - name: v1\n        endpoints:\n{endpoints}"
        )
    };
    let mut setup = Setup::start(backstop, (REPLICAS, FIRST_TOKEN), TOKENS, config).await?;
    let port = setup.port;
    let expected = follow(port, 0, &AtomicU32::new(0)).await?;
    ensure!(expected.done, "a stream of a healthy replica is not whole");
    let flowing = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for session in 0..streams {
        let flowing = Arc::clone(&flowing);
        clients.spawn(async move { follow(port, session, &flowing).await });
    }
    let deadline = Instant::now() + PATIENCE;
    while flowing.load(Ordering::Relaxed) < streams {
        ensure!(Instant::now() < deadline, "not all streams have begun in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(CALM).await;
    setup.replicas[0].kill()?;
    let seen: Vec<Result<Seen>> = clients.join_all().await;
    let seen: Vec<Seen> = seen.into_iter().flatten().collect();
    // That Backstop has carried on.
    let resumed = setup.metric("backstop_resumes_total").await? as u32;
    Ok(summary(streams, resumed, &seen, &expected))
}

fn summary(streams: u32, resumed: u32, seen: &[Seen], expected: &Seen) -> Failover {
    let whole = seen.iter().filter(|seen| seen.done && seen.text == expected.text).count();
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    // Those that were carried on stood still for longer than any other.
    let mut gaps: Vec<f64> = seen.iter().map(|seen| ms(seen.gap)).collect();
    gaps.sort_by(|a, b| b.total_cmp(a));
    gaps.truncate(resumed as usize);
    gaps.reverse();
    let at = |sorted: &[f64], share: f64| {
        let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
        sorted.get(place).copied().unwrap_or_default()
    };
    Failover {
        replicas: REPLICAS as u32,
        streams,
        whole: whole as u32,
        resumed,
        first_token_ms: ms(expected.first_token),
        per_token_ms: ms(PER_TOKEN),
        gap_p50_ms: at(&gaps, 0.5),
        gap_p99_ms: at(&gaps, 0.99),
        gap_max_ms: at(&gaps, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_that_were_carried_on_have_gaps_to_speak_of() {
        let seen = |gap: u64, text: &str| Seen {
            first_token: Duration::from_millis(200),
            gap: Duration::from_millis(gap),
            text: text.to_owned(),
            done: true,
        };
        let all = [seen(60, "a"), seen(260, "a"), seen(50, "a"), seen(240, "a"), seen(250, "b")];
        let result = summary(5, 3, &all, &seen(50, "a"));
        assert_eq!((result.whole, result.resumed), (4, 3));
        assert_eq!((result.gap_p50_ms, result.gap_max_ms, result.first_token_ms), (250.0, 260.0, 200.0));
    }
}
