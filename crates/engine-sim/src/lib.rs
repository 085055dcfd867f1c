//! A simulated OpenAI-compatible model server: fast, deterministic, and able to fail in every way real ones do.
//!
//! Tests, the demo and benchmarks put it behind the gateway. What it answers is a pure function of its seed and
//! the conversation ([`expected_text`]), so a test knows what a client must receive whatever went wrong on the
//! way. Faults are set through [`Sim::faults`], `--fault`, the admin calls under `/sim/`, or a request's `x-sim-fault`
//! header.
//!
//! # Faults
//! As `--fault` and the header take them:
//! ```text
#![doc = include_str!("faults.txt")]
//! ```
//! `POST /sim/faults` takes the same as JSON: `{"kind":"cut","after":3,"how":"rst"}`, or an array, with the field's
//! name where the other form has none ([`Fault`]). `times` and `probability` say how often ([`Rule`]); they don't go
//! into the header, where commas separate faults and `;only=NAME` aims at the simulator of that name. `GET` and
//! `DELETE` on `/sim/faults` list and clear; `GET /sim/requests` and `GET /sim/stats` show what arrived.
//!
//! It shares no code with the gateway: it has its own view of the protocol, or both would make the same mistake.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use backstop_engine_sim::{Cut, Fault, Rule, Sim, SimConfig};
//!
//! let sim = Sim::start(SimConfig::default()).await?;
//! sim.faults().add(Rule::times(Fault::Cut { after: 3, how: Cut::Rst, mid_event: false }, 1));
//! println!("{}", sim.url());
//! # Ok(())
//! # }
//! ```

mod answer;
mod api;
mod args;
mod body;
mod config;
mod connection;
mod control;
mod dist;
mod embedding;
mod engine;
mod fault;
mod faults;
mod frame;
mod framing;
mod job;
mod metrics;
mod problem;
mod request;
mod requestlog;
mod responses;
mod rule;
mod schedule;
mod server;
mod text;
mod writer;

pub use args::{SimArgs, run};
pub use config::{Dialect, SimConfig};
pub use dist::{Dist, DistError};
pub use engine::Stats;
pub use fault::{Cut, Fault, PolicyCode};
pub use faults::Faults;
pub use requestlog::LoggedRequest;
pub use rule::{FaultError, Rule};
pub use server::Sim;
pub use text::{expected_completion, expected_text};
