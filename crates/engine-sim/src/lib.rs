//! A simulated OpenAI-compatible model server: fast, deterministic, and able to fail in every way real ones do.
//!
//! Tests, the demo and benchmarks put it behind the gateway. What it answers is a pure function of its seed and
//! the conversation ([`expected_text`]), so a test knows what a client must receive whatever went wrong on the
//! way. Faults are set through [`Sim::faults`], the admin calls under `/sim/`, or a request's `x-sim-fault`
//! header.
//!
//! # Faults
//! | header | JSON for `POST /sim/faults` | effect |
//! |---|---|---|
//! | `status=503;retry_after=2` | `{"kind":"status","status":503,"retry_after":2}` | error answer |
//! | `no_answer` | `{"kind":"no_answer"}` | takes the request, never answers |
//! | `hangup=rst` | `{"kind":"hangup","how":"rst"}` | closes before the answer (`fin`, `rst`) |
//! | `slow_first_token=2s` | `{"kind":"slow_first_token","delay":"2s"}` | later by that much |
//! | `cut=3;how=rst;mid_event` | `{"kind":"cut","after":3,"how":"rst","mid_event":true}` | ends after 3 content chunks (`fin`, `rst`, `end`) |
//! | `stall=3` | `{"kind":"stall","after":3}` | sends nothing more, stays open |
//! | `invalid_event=3`, `garbage=3` | `{"kind":"garbage","after":3}` | spoils the stream, goes on |
//! | `error_event=3` | `{"kind":"error_event","after":3}` | error event, then the end |
//! | `no_done`, `no_finish` | `{"kind":"no_done"}` | leaves out the end marks |
//! | `cut_after_finish=rst` | `{"kind":"cut_after_finish","how":"rst"}` | ends before usage and `[DONE]` (`fin`, `rst`, `end`) |
//! | `failed=3` | `{"kind":"failed","after":3}` | `response.failed`, then the end |
//! | `plain_for_stream` | `{"kind":"plain_for_stream"}` | JSON in one piece though a stream was asked for |
//! | `stream_for_plain` | `{"kind":"stream_for_plain"}` | a stream though none was asked for |
//! | `redirect=URL` | `{"kind":"redirect","location":"URL"}` | 307 |
//! | `no_chat` | `{"kind":"no_chat"}` | chat gets 400, other APIs work |
//! | `ping=50ms` | `{"kind":"ping","every":"50ms"}` | comments while the stream has nothing to send |
//! | `empty_finish` | `{"kind":"empty_finish"}` | `"finish_reason":""` in every chunk before the last |
//! | `one_by_one` | `{"kind":"one_by_one"}` | with `n` > 1, one choice after the other |
//! | `dribble=5` | `{"kind":"dribble","bytes":5}` | writes of 5 bytes, across characters |
//! | | `{"kind":"freeze"}` | all decoding stands still, health passes |
//! | | `{"kind":"health","status":503}` | health checks fail |
//!
//! In JSON, `times` and `probability` say how often ([`Rule`]); an array adds several rules. In the header,
//! commas separate faults and `;only=NAME` aims at the simulator of that name. `GET` and `DELETE` on
//! `/sim/faults` list and clear; `GET /sim/requests` and `GET /sim/stats` show what arrived.
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
mod frame;
mod job;
mod metrics;
mod problem;
mod request;
mod requestlog;
mod responses;
mod schedule;
mod server;
mod text;
mod writer;

pub use args::{SimArgs, run};
pub use config::{Dialect, SimConfig};
pub use dist::{Dist, DistError};
pub use engine::Stats;
pub use fault::{Cut, Fault, FaultError, Faults, Rule};
pub use requestlog::LoggedRequest;
pub use server::Sim;
pub use text::{expected_completion, expected_text};
