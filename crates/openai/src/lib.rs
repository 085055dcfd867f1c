//! The OpenAI wire format as far as a gateway needs it.
//!
//! Pure functions over bytes: which API a path names ([`Api`]), what a request asks for ([`peek`]), where the
//! events of a stream begin and end ([`sse`]), what an event says ([`stream`]), whether a plain
//! answer is one ([`answer`]), how an error looks ([`error`]), what a version changes in requests ([`shape`]).
//! No I/O, no clock, no DOM: a body is read once and passed on untouched.

pub mod answer;
mod api;
pub mod canned;
pub mod error;
pub mod estimate;
pub mod peek;
pub mod resume;
pub mod shape;
pub mod sse;
pub mod stream;
mod usage;

pub use api::Api;
pub use usage::Usage;
