//! The OpenAI wire format as far as a gateway needs it.
//!
//! Pure functions over bytes: what a request asks for ([`peek`]), what an event of a stream says ([`stream`]),
//! how an error looks ([`error`]). No I/O, no clock.
