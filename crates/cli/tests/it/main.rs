//! The real binary: its commands, reload, signals and logs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod admin;
mod backstop;
mod check;
#[expect(dead_code, reason = "shared with the gateway's tests, which need all of it")]
#[path = "../../../gateway/tests/it/client.rs"]
mod client;
mod engine_sim;
mod reload;
mod stop;
