//! The simulator as a command.

use std::io::{self, Write};
use std::net::SocketAddr;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Dialect, SimConfig};
use crate::dist::Dist;
use crate::server::Sim;

/// Options of the simulated engine.
#[derive(Debug, Clone, Args)]
pub struct SimArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Name that fault headers with `only=NAME` refer to
    #[arg(long, default_value = "sim")]
    pub name: String,
    /// Serve only this model name [default: any]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Seed of texts, delays and faults
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Time to the first token: `20ms`, `lognormal(50ms,0.5)` or `uniform(10ms,30ms)`
    #[arg(long, value_name = "DIST", default_value = "0")]
    pub ttft: Dist,
    /// Time between tokens, written like --ttft
    #[arg(long, value_name = "DIST", default_value = "0")]
    pub itl: Dist,
    /// Length of an answer in tokens if the request does not end it sooner
    #[arg(long, default_value_t = 64)]
    pub tokens: u64,
    /// Requests decoded at the same time; others wait [default: no limit]
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// Requests that may wait; others get 503 [default: no limit]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,
    /// KV cache in tokens [default: no limit]
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<u64>,
    /// Engine whose habits to follow
    #[arg(long, value_enum, default_value_t)]
    pub dialect: Dialect,
    /// Events that go into one write when they are ready together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub events_per_write: usize,
    /// Write streams in pieces of so many bytes instead of whole events
    #[arg(long, value_name = "N")]
    pub chunk_bytes: Option<std::num::NonZeroUsize>,
}

impl From<SimArgs> for SimConfig {
    fn from(args: SimArgs) -> Self {
        Self {
            listen: args.listen,
            name: args.name,
            model: args.model,
            seed: args.seed,
            ttft: args.ttft,
            itl: args.itl,
            tokens: args.tokens,
            slots: args.slots,
            queue: args.queue,
            kv_tokens: args.kv_tokens,
            dialect: args.dialect,
            events_per_write: args.events_per_write,
            bytes_per_write: args.chunk_bytes.map(std::num::NonZeroUsize::get),
            ..Self::default()
        }
    }
}

/// Serves until SIGTERM or SIGINT; prints the address once it listens.
pub async fn run(args: SimArgs) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sim = Sim::start(args.into()).await?;
    writeln!(io::stdout(), "listening on {}", sim.url())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sim.shutdown().await;
    Ok(())
}
