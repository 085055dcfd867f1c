//! The gateway between real sockets: raw clients in front, simulated engines behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod api;
mod balance;
mod cancel;
mod client;
mod health;
mod input;
mod retry;
mod stream_end;
mod world;
