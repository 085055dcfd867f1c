//! Cases of which CPU time is measured: per answer of the closed loop, or per chunk of paced streams.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{MIB, Runner};
use crate::fleet::Fleet;
use crate::load::{self, Case, Pressure, Prober};
use crate::measure::Usage;
use crate::peer::{self, Running};
use crate::results::{CaseResult, Latency, Part, Round, Summary};

/// What a proxy may still do for requests that are answered, such as its own accounting.
const SETTLE: Duration = Duration::from_millis(200);
/// Share of the chunks that must come in time; less shows that the proxy can't keep up. What comes late it
/// passes on in heaps, which looks cheap. A busy machine alone costs up to a third.
const KEPT_UP: f64 = 0.5;

/// What one peer did in a round.
struct Measured {
    count: u64,
    seconds: f64,
    cpu_seconds: f64,
    latency: Option<Latency>,
    after: Usage,
}

impl Runner {
    /// All peers stay up; only the one whose turn it is gets requests.
    pub(super) async fn cpu(&mut self, case: Case) -> Result<CaseResult> {
        let (_upstream, upstream) = peer::start_upstream(self.scratch.path(), self.pace(case)).await?;
        let connections = self.connections(case);
        let mut peers = Vec::new();
        for entry in &self.peers.clone() {
            let wanted = entry.0.limits.map_or(connections, |limits| match case {
                Case::Paced => limits.paced_streams.min(connections),
                _ => limits.connections.min(connections),
            });
            let mut part = Part::new(entry.0.name, wanted);
            let started = match self.start(entry, upstream, case, wanted).await {
                Ok(running) => self.warm_up(&running, case, wanted).await.map(|()| running),
                Err(error) => Err(error),
            };
            let running = started.map_err(|error| self.fail(case, &mut part, &error)).ok();
            peers.push((running, part));
        }
        let rounds = if case == Case::Paced { self.parameters.paced_rounds } else { self.parameters.rounds };
        for round in 0..rounds {
            for (running, part) in &mut peers {
                self.take_turn(running, part, case, round).await;
            }
        }
        for (running, part) in &mut peers {
            let Some(running) = running else { continue };
            if let Err(error) = Prober::new(running.port).check(case).await {
                self.fail(case, part, &error.context("wrong answer after the rounds"));
            }
        }
        Ok(CaseResult {
            case,
            connections,
            request_bytes: case.body().len(),
            answer_bytes: case.answer_len(),
            peers: peers.into_iter().map(|(_, part)| part).collect(),
        })
    }

    /// One round of one peer, which is over for it at the first fault.
    async fn take_turn(
        &mut self,
        running: &mut Option<Running>,
        part: &mut Part<Round, Summary>,
        case: Case,
        round: u32,
    ) {
        let Some(peer) = running.as_ref() else { return };
        match self.round(peer, case, round, part.connections).await {
            Ok(result) => part.rounds.push(result),
            Err(error) => {
                eprintln!("  last words of {}: {}", part.peer, peer.last_words());
                self.fail(case, part, &error.context(format!("round {}", round + 1)));
                *running = None;
            }
        }
    }

    /// Pools fill and allocators settle; not counted.
    async fn warm_up(&self, running: &Running, case: Case, connections: u32) -> Result<()> {
        if !case.is_closed_loop() {
            return Ok(());
        }
        let pressure = Pressure { seconds: 1, ..self.pressure(running, connections) };
        load::drive(&self.wrk, self.scratch.path(), case, running.port, pressure).await?;
        Ok(())
    }

    fn pressure(&self, running: &Running, connections: u32) -> Pressure {
        let seconds = self.parameters.seconds;
        match running.peer.limits {
            None => Pressure { connections, seconds, patience_seconds: 2 },
            Some(limits) => {
                Pressure { connections, seconds: limits.seconds.min(seconds), patience_seconds: 30 }
            }
        }
    }

    async fn round(&self, running: &Running, case: Case, round: u32, connections: u32) -> Result<Round> {
        let measured = if case == Case::Paced {
            self.paced(running, connections).await?
        } else {
            self.closed_loop(running, case, connections).await?
        };
        let Measured { count, seconds, cpu_seconds, latency, after } = measured;
        let result = Round {
            round,
            count,
            seconds,
            cpu_seconds,
            cpu_us: cpu_seconds * 1e6 / count as f64,
            rate: count as f64 / seconds,
            latency,
            rss_mib: after.rss_kib as f64 / MIB,
            peak_rss_mib: after.peak_rss_kib as f64 / MIB,
        };
        eprintln!(
            "{:8} {:13} round {}: {:8.1} us CPU each, {:6.0}/s",
            case.name(),
            running.peer.name,
            round + 1,
            result.cpu_us,
            result.rate
        );
        Ok(result)
    }

    async fn closed_loop(&self, running: &Running, case: Case, connections: u32) -> Result<Measured> {
        let before = running.usage()?;
        let pressure = self.pressure(running, connections);
        let outcome = load::drive(&self.wrk, self.scratch.path(), case, running.port, pressure).await?;
        tokio::time::sleep(SETTLE).await;
        let after = running.usage()?;
        if let Some(problem) = outcome.problem(case) {
            bail!(problem);
        }
        Ok(Measured {
            count: outcome.requests,
            seconds: outcome.seconds(),
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            latency: Some(Latency { p50_us: outcome.p50_us, p99_us: outcome.p99_us }),
            after,
        })
    }

    /// CPU time while streams are open and each has a token now and then; opening them is not counted.
    async fn paced(&self, running: &Running, streams: u32) -> Result<Measured> {
        let fleet = Fleet::open(running.port, streams).await?;
        fleet.second_token(self.pace(Case::Paced)).await?;
        let (before, tokens_before, begun) = (running.usage()?, fleet.tokens()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.parameters.paced_seconds)).await;
        let (after, tokens, seconds) = (running.usage()?, fleet.tokens()?, begun.elapsed().as_secs_f64());
        let count = tokens - tokens_before;
        let sent = seconds / self.pace(Case::Paced).as_secs_f64() * f64::from(streams);
        ensure!(
            count as f64 >= sent * KEPT_UP,
            "did not keep up: {count} of {sent:.0} chunks came in {seconds:.1} s"
        );
        drop(fleet);
        // Closing its streams is not to burden the next peer's turn.
        tokio::time::sleep(SETTLE).await;
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Ok(Measured { count, seconds, cpu_seconds, latency: None, after })
    }
}
