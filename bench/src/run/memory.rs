//! Cases of which memory per open stream is measured.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::{MIB, Runner};
use crate::fleet::Fleet;
use crate::load::Case;
use crate::peer::{self, Peer};
use crate::results::{IdleResult, IdleRound, Part};

impl Runner {
    /// Each round takes a fresh process: an allocator that keeps memory would hide the cost of the next.
    pub(super) async fn memory(&mut self, case: Case) -> Result<IdleResult> {
        let streams = self.connections(case);
        let peers = self.peers.clone();
        let mut parts = Vec::new();
        for (peer, _) in &peers {
            let most = peer.limits.map_or(streams, |limits| limits.idle_streams.min(streams));
            let mut part = Part::new(peer.name, most);
            // Its memory per stream is known from the smaller case.
            if most < streams && case == Case::Idle9000 {
                part.absent = Some(format!("not measured: too slow for {streams} streams"));
            }
            parts.push(part);
        }
        for round in 0..self.parameters.idle_rounds {
            for (entry, part) in peers.iter().zip(&mut parts) {
                if part.absent.is_some() {
                    continue;
                }
                match self.idle_round(entry, case, part.connections, round).await {
                    Ok(result) => part.rounds.push(result),
                    Err(error) => self.fail(case, part, &error.context(format!("round {}", round + 1))),
                }
            }
        }
        Ok(IdleResult { case, streams, peers: parts })
    }

    async fn idle_round(
        &self,
        entry: &(&'static Peer, PathBuf),
        case: Case,
        streams: u32,
        round: u32,
    ) -> Result<IdleRound> {
        let pace = self.pace(case);
        let (_upstream, upstream) = peer::start_upstream(self.scratch.path(), pace).await?;
        let running = self.start(entry, upstream, case, streams).await?;
        let before = running.usage()?.rss_kib as f64;
        let begun = Instant::now();
        let fleet = Fleet::open(running.port, streams).await?;
        let open_seconds = begun.elapsed().as_secs_f64();
        fleet.second_token(pace).await?;
        let open = running.usage()?.rss_kib as f64;
        let result = IdleRound {
            round,
            rss_before_mib: before / MIB,
            rss_open_mib: open / MIB,
            kib_per_stream: (open - before) / f64::from(streams),
            open_seconds,
        };
        eprintln!(
            "{:8} {:13} round {}: {:8.2} KiB per stream, {streams} streams open in {open_seconds:.1} s",
            case.name(),
            entry.0.name,
            round + 1,
            result.kib_per_stream
        );
        Ok(result)
    }
}
