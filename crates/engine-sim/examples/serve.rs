//! Runs the simulator by itself, without the rest of the project.

use backstop_engine_sim::{SimArgs, run};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: SimArgs,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    run(Cli::parse().args).await
}
