//! The one place of the data plane that reads the clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(now);

/// The time now.
#[expect(clippy::disallowed_methods, reason = "the shell's one source of time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// `at` as nanoseconds since the process began, so that it fits an atomic; 0 for anything earlier.
pub(crate) fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*START).as_nanos()).unwrap_or(u64::MAX)
}

/// The inverse of [`nanos`].
pub(crate) fn instant(nanos: u64) -> Instant {
    *START + Duration::from_nanos(nanos)
}

/// Milliseconds since the Unix epoch, for people.
#[expect(clippy::disallowed_methods, reason = "the shell's one source of time")]
pub(crate) fn unix_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
