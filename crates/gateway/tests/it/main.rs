//! The gateway between real sockets: raw clients in front, simulated engines behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(
    clippy::disallowed_methods,
    reason = "a test's runtime ends its tasks, and it awaits those that may panic"
)]

mod admission;
mod api;
mod assign;
mod balance;
mod cache;
mod cancel;
mod client;
mod discovery;
mod dns;
mod duty;
mod endless;
mod failure_modes;
mod fallback;
mod flapping;
mod framing;
mod front;
mod h2client;
mod health;
mod hostile;
mod http2;
mod identity;
mod input;
mod leave;
mod metrics;
mod moving;
mod own_health;
mod rate;
mod recorder;
mod refusals;
mod resume;
mod retry;
mod schedules;
mod secure;
mod shadow;
mod shaping;
mod smuggling;
mod stream_end;
mod switchover;
mod targeting;
mod tiers;
mod tls;
mod trial;
mod twin;
mod upstream;
mod upstream_tls;
mod world;
