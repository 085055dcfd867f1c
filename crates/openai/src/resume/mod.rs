//! Carrying on elsewhere with a chat or completion whose stream has ended too soon.
//!
//! Two ways: *continue* sends the text so far as the beginning of the answer, in the engine's own dialect; *replay* asks
//! anew and goes on where the new answer leaves the old one, if it begins with all of it. [`Interrupted`] decides
//! whether either is safe and makes the request; [`Splice`] makes the new events look like the rest of the old stream.
//!
//! Nothing here decides where to go on, or how often.

mod interrupted;
mod splice;

pub use interrupted::{Before, Dialect, Hindrance, Interrupted, Next};
pub use splice::{Diverged, Splice, Spliced};
