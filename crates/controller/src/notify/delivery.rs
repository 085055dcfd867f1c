//! Tells one recipient one thing after the other, so that nobody hears of an end before its beginning.

use std::time::Duration;

use backstop_config::{Form, Recipient};
use backstop_store::{CommitError, Op, Pending};
use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::client::Client;
use super::notice::Notice;
use super::outbox::{Outbox, kind};
use super::{Pace, format};
use crate::control::unix_millis;

/// The longest `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How often a recipient's queue is looked at although nobody said that there is something.
const LOOK: Duration = Duration::from_secs(30);

/// What came of an attempt.
enum Outcome {
    Told,
    /// It may be better later, and is not before the recipient says.
    Later(String, Option<Duration>),
    /// It would be the same each time.
    Refused(String),
}

/// Tells `recipient` what is in the outbox for it, until this process has lost the lease. `given_up` is told what the
/// recipient never will be.
pub(super) async fn deliver(
    recipient: Recipient,
    outbox: Outbox,
    client: &Client,
    pace: Pace,
    mut news: watch::Receiver<u64>,
    given_up: impl Fn(&Recipient, &Notice, String),
) {
    let kind = kind(&recipient);
    loop {
        news.mark_unchanged();
        match outbox.next(&kind).await {
            Ok(None) => drop(timeout(LOOK, news.changed()).await),
            Ok(Some(next)) => match one(&recipient, &outbox, client, pace, next, &given_up).await {
                Ok(()) => {}
                Err(CommitError::Fenced { .. }) => return,
                Err(error) => {
                    warn!(%recipient, %error, "what was sent can't be noted, and may be sent again");
                    sleep(pace.backoff_max).await;
                }
            },
            Err(error) => {
                warn!(%recipient, %error, "what is to be sent can't be read");
                sleep(pace.backoff_max).await;
            }
        }
    }
}

/// One attempt for what comes next, when its time has come.
async fn one(
    recipient: &Recipient,
    outbox: &Outbox,
    client: &Client,
    pace: Pace,
    next: Pending,
    given_up: &impl Fn(&Recipient, &Notice, String),
) -> Result<(), CommitError> {
    let Pending { effect, attempts, .. } = next;
    let finish = vec![Op::Finish { effect: effect.id.clone() }];
    let Ok(notice) = serde_json::from_value::<Notice>(effect.body) else {
        return outbox.commit(Vec::new(), finish).await;
    };
    sleep(until(effect.not_before, unix_millis())).await;
    let outcome = attempt(recipient, &notice, client, pace).await;
    let now = unix_millis();
    match outcome {
        Outcome::Told => {
            if attempts > 0 {
                info!(%recipient, attempts, "can be told again");
            }
            outbox.commit(Vec::new(), finish).await
        }
        Outcome::Later(reason, after) => {
            if now >= notice.at.saturating_add(millis(pace.give_up)) {
                outbox.commit(Vec::new(), finish).await?;
                given_up(recipient, &notice, reason);
                return Ok(());
            }
            if attempts == 0 {
                warn!(%recipient, reason, "can't be told now; trying again");
            }
            let pause = pause(pace, attempts).max(after.unwrap_or_default().min(MAX_RETRY_AFTER));
            let (until, attempts) = (now + millis(pause), attempts.saturating_add(1));
            outbox.commit(Vec::new(), vec![Op::Defer { effect: effect.id, until, attempts }]).await
        }
        Outcome::Refused(reason) => {
            outbox.commit(Vec::new(), finish).await?;
            given_up(recipient, &notice, reason);
            Ok(())
        }
    }
}

/// How long it is from `now` to `not_before`. A time that nobody can have meant is of a clock that was put back since.
fn until(not_before: u64, now: u64) -> Duration {
    let wait = Duration::from_millis(not_before.saturating_sub(now));
    if wait > MAX_RETRY_AFTER { Duration::ZERO } else { wait }
}

async fn attempt(recipient: &Recipient, notice: &Notice, client: &Client, pace: Pace) -> Outcome {
    let request = match format::request(recipient, notice, unix_millis()) {
        Ok(request) => request,
        Err(error) => return Outcome::Refused(format!("it can't be sent: {error}")),
    };
    let (head, body) = match timeout(pace.timeout, client.send(&recipient.target, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => return Outcome::Later(reason, None),
        Err(_) => return Outcome::Later(format!("no answer for {} s", pace.timeout.as_secs()), None),
    };
    let status = head.status;
    if status.is_success() {
        return Outcome::Told;
    }
    let mut reason = format!("answered {}", status.as_u16());
    // Slack says why in one word; others may say our URL.
    if recipient.form == Form::Slack
        && let Some(word) = std::str::from_utf8(&body).ok().filter(|text| is_word(text))
    {
        reason = format!("{reason} `{word}`");
    }
    const PASSING: [StatusCode; 3] =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    if status.is_server_error() || PASSING.contains(&status) {
        Outcome::Later(reason, retry_after(&head.headers))
    } else {
        Outcome::Refused(reason)
    }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// In seconds; a date is left to the backoff.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Doubles with each attempt; between half of it and all of it, so that many don't come at once.
fn pause(pace: Pace, attempts: u32) -> Duration {
    let whole = pace.backoff.saturating_mul(1 << attempts.min(20)).min(pace.backoff_max);
    whole.mul_f64(rand::rng().random_range(0.5..=1.0))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_put_back_does_not_make_it_wait_for_long() {
        let hour = 3_600_000;
        for (not_before, now, expected) in
            [(500, 200, 300), (500, 900, 0), (hour, 0, hour), (24 * hour, 0, 0)]
        {
            assert_eq!(until(not_before, now), Duration::from_millis(expected), "{not_before} at {now}");
        }
    }
}
