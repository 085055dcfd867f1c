//! Connections to model servers.
//!
//! An own pool over `hyper::client::conn`, for two reasons: the connection is driven in the task of the request
//! that uses it, so that no chunk hops between tasks; and a request that found its pooled connection closed can
//! be told apart from one that an engine may have begun to work on.

mod exchange;
mod pool;

pub(crate) use exchange::{Answer, Exchange, SendError};
pub(crate) use pool::{ConnectError, Pool};
