//! The real binary: its commands, reload, signals and logs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod backstop;
mod bad_days;
mod bad_store;
mod check;
#[expect(dead_code, reason = "shared with the gateway's tests, which need all of it")]
#[path = "../../../gateway/tests/it/client.rs"]
mod client;
mod commands;
mod control;
mod crash;
mod drill;
mod engine_sim;
#[expect(dead_code, reason = "shared with the gateway's tests, which need all of it")]
#[path = "../../../gateway/tests/it/h2client.rs"]
mod h2client;
mod https;
mod lab;
mod leave;
mod measures;
mod notify;
mod operators;
mod record;
mod release;
mod reload;
#[expect(dead_code, reason = "shared with the gateway's tests, which need all of it")]
#[path = "../../../gateway/tests/it/secure.rs"]
mod secure;
mod snapshot;
mod stop;
mod store;
mod tiers;
mod tls;
mod upgrade;
mod version;
