//! Points at which a test lets the process end as `kill -9` would: between two steps that only together make a decision.
//! A build for users has none.

/// Ends the process here if `BACKSTOP_CRASH_AT` says so: `N` is the Nth point that is reached, `NAME:N` the Nth time that
/// this one is.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static AT: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    let at = AT.get_or_init(|| {
        let at = std::env::var("BACKSTOP_CRASH_AT").ok()?;
        let (name, number) = at.split_once(':').unwrap_or(("", &at));
        Some((name.to_owned(), number.parse().ok()?))
    });
    let Some((only, number)) = at else { return };
    if (only.is_empty() || only == name) && REACHED.fetch_add(1, Relaxed) + 1 == *number {
        // Like SIGKILL it runs nothing of ours any more.
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str) {}
