//! What must hold of Backstop's parsers, whatever they are given.
//!
//! Each property takes bytes and panics if it does not hold. The fuzz targets in `fuzz/` look for such bytes; the test
//! of this crate tries the same seeds with some edits, so that `make test` notices the obvious.
//!
//! Wherever it can be had, a property compares with another implementation: serde_json's tree, or a few naive
//! lines written for the purpose. Those say what is right, and so must not call what they judge.

mod config;
mod cuts;
mod forward;
mod json;
mod peek;
mod resume;
mod sse;
mod stream;
mod wire;

pub use config::config;
pub use forward::forward;
pub use peek::peek;
pub use resume::resume;
pub use sse::sse;
pub use stream::stream;
pub use wire::wire;

/// Panics if it does not hold of the bytes.
pub type Property = fn(&[u8]);

/// All properties by the names of their fuzz targets.
pub const ALL: [(&str, Property); 7] = [
    ("config", config),
    ("forward", forward),
    ("peek", peek),
    ("resume", resume),
    ("sse", sse),
    ("stream", stream),
    ("wire", wire),
];
