//! Decisions of Backstop as pure code.
//!
//! Nothing here knows tokio, a clock, a source of randomness, files or the network: every function gets `now`
//! and a random generator from its caller, so that a week of operation runs in a millisecond of test and a seed
//! repeats a failure.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's time has to begin somewhere"))]

pub mod admission;
pub mod assign;
pub mod balance;
pub mod breaker;
pub mod dependency;
pub mod event;
pub mod evidence;
pub mod health;
pub mod outlier;
pub mod progress;
pub mod rate;
pub mod report;
pub mod rollout;
pub mod sample;
pub mod similarity;
pub mod sketch;
pub mod standby;
pub mod status;
pub mod table;
