//! The simulator seen from its clients: raw TCP, so that every byte and every way of closing counts.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod client;
mod endpoints;
mod faults;
mod load;
mod process;
mod protocol;
mod refusals;
mod wire;
