//! The simulator as a command.

use std::io::{self, Write};
use std::net::SocketAddr;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Dialect, SimConfig};
use crate::dist::Dist;
use crate::rule::Rule;
use crate::server::Sim;

/// Said behind the options.
const FAULTS: &str = concat!(
    "Faults, as --fault and a request's header `x-sim-fault` take them. In the header commas separate several, and\n\
     `;only=NAME` aims at one engine; with --fault `;times=N` and `;probability=P` say how often.\n\n",
    include_str!("faults.txt"),
    "\nThe same as JSON at run time: POST, GET and DELETE on /sim/faults, such as\n\
     {\"kind\":\"cut\",\"after\":3,\"how\":\"rst\",\"times\":1}.\n\
     GET /sim/requests and /sim/stats show what arrived."
);

/// Options of the simulated engine.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = FAULTS)]
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
    /// Longest prompt and answer together, in tokens; beyond it 400 [default: no limit]
    #[arg(long, value_name = "N")]
    pub context: Option<u64>,
    /// Engine whose habits to follow: continuation, forms of errors, metrics
    #[arg(long, value_enum, default_value_t)]
    pub dialect: Dialect,
    /// What goes wrong from the start; may be given several times; see --help
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<Rule>,
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
            context: args.context,
            dialect: args.dialect,
            events_per_write: args.events_per_write,
            bytes_per_write: args.chunk_bytes.map(std::num::NonZeroUsize::get),
            ..Self::default()
        }
    }
}

/// Serves until SIGTERM or SIGINT; prints the address once it listens.
pub async fn run(mut args: SimArgs) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let faults = std::mem::take(&mut args.faults);
    let sim = Sim::start(args.into()).await?;
    for rule in faults {
        sim.faults().add(rule);
    }
    writeln!(io::stdout(), "listening on {}", sim.url())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    sim.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;
    use crate::fault::Fault;

    fn command() -> Command {
        SimArgs::augment_args(Command::new("engine-sim"))
    }

    fn read(args: &[&str]) -> Result<SimArgs, clap::Error> {
        let matches = command().try_get_matches_from([&["engine-sim"], args].concat())?;
        SimArgs::from_arg_matches(&matches)
    }

    #[test]
    fn faults_are_read_from_the_command_line() {
        let args = read(&["--fault", "no_done;times=2", "--fault", "trailers", "--context", "100"]).unwrap();
        assert_eq!(args.faults, [Rule::times(Fault::NoDone, 2), Fault::Trailers.into()]);
        assert_eq!(args.context, Some(100));
        let error = read(&["--fault", "cut=x"]).unwrap_err().to_string();
        assert!(error.contains("`{\"after\":\"x\",\"kind\":\"cut\"}` is not a fault"), "{error}");
    }

    /// Every kind that can be read is in the help, and every example there can be read.
    #[test]
    fn the_help_lists_all_faults() {
        let help = command().render_long_help().to_string();
        let examples: Vec<&str> = include_str!("faults.txt")
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
            .filter(|example| !example.is_empty())
            .collect();
        for example in &examples {
            example.parse::<Rule>().unwrap();
            assert!(help.contains(example), "{example}");
        }
        // serde lists the kinds in the error about one that it does not know.
        let kinds = "?".parse::<Rule>().unwrap_err().to_string();
        let kinds = kinds.split("expected one of ").nth(1).unwrap().split("; hint").next().unwrap();
        for kind in kinds.split('`').skip(1).step_by(2) {
            let is_kind = |example: &&str| example.split([';', '=']).next() == Some(kind);
            assert!(examples.iter().any(is_kind), "no `{kind}`");
        }
    }
}
