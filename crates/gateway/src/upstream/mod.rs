//! Connections to model servers: an own HTTP/1.1 client, hyper's for HTTP/2, and their pool.
//!
//! Own code, because the way from the upstream's socket to the client's is where a gateway spends its time and
//! memory (docs/decisions.md has the figures): the request's own task reads the socket, so that no chunk hops
//! between tasks; a stream that waits holds no buffer; and a request that found its pooled connection closed can
//! be told apart from one that an engine may have begun to work on.

mod connection;
mod connector;
mod dial;
mod exchange;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http1;
mod http2;
mod pool;
mod wire;

pub(crate) use connector::{ConnectError, Connector};
pub(crate) use exchange::{Answer, Exchange, SendError, UpstreamRequest};
pub(crate) use pool::Pool;
pub(crate) use wire::WireError;
