//! What happened, as server-sent events.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use backstop_core::event::{Event, What};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use utoipa::IntoParams;

use super::Api;
use crate::error::{ApiError, ErrorBody};
use crate::extract::Params;

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Those after the one with this id. All that are kept if not given. Clients that come back send `Last-Event-ID`,
    /// which knows one process from the next.
    after: Option<u64>,
    /// Only these, separated by commas: `health`, `breaker`, `ejected`, `failover`, `release`, `dependency`, `resolution`,
    /// `certificate`, `table`, `change`, `refused`, `undelivered`.
    types: Option<String>,
    /// False: the stream ends after those that have happened.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

type Sent = Result<sse::Event, axum::Error>;

/// What happened, and what happens from now on
///
/// Server-sent events: those kept after the client's last one, then each as it happens. The last 1,024 are kept. A
/// client that has missed some is told how many by an event named `missed`.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    params(Wanted),
    responses(
        (status = OK, body = Event, content_type = "text/event-stream"),
        (status = BAD_REQUEST, body = ErrorBody),
        (status = SERVICE_UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn follow(
    State(api): State<Api>,
    headers: HeaderMap,
    Params(wanted): Params<Wanted>,
) -> Result<Sse<impl Stream<Item = Sent>>, ApiError> {
    let kinds = wanted.types.as_deref().map(kinds).transpose()?;
    let is_wanted = move |event: &Event| kinds.as_ref().is_none_or(|kinds| kinds.contains(event.what.kind()));
    let place = Arc::clone(&api.subscribers).try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_subscribers",
            "too many clients follow events",
        )
        .hint("end some of them, or look with `follow=false` now and then")
    })?;
    let process = api.process;
    let last = headers.get("last-event-id").and_then(|id| last_seen(id.to_str().ok()?, process));
    let last = last.or(wanted.after).unwrap_or(0);
    // Subscribed before the kept ones are read, so that none falls in between.
    let news = api.data_plane().subscribe();
    let Replay { missed, kept, last: sent } = kept_after(&api, last);
    let old: Vec<Sent> = (missed > 0)
        .then(|| as_missed(missed))
        .into_iter()
        .chain(kept.into_iter().filter(|event| is_wanted(event)).map(|event| as_sse(process, event)))
        .collect();
    let new = if wanted.follow {
        as_they_happen(news, (process, sent), is_wanted).left_stream()
    } else {
        stream::empty().right_stream()
    };
    let all = stream::iter(old).chain(new).inspect(move |_| {
        // Kept until the stream is dropped.
        let _ = &place;
    });
    Ok(Sse::new(all).keep_alive(KeepAlive::default()))
}

/// What a client gets at once.
struct Replay {
    /// So many that it has not seen are not kept any more.
    missed: u64,
    kept: Vec<Event>,
    /// The id of the last event that it has seen then.
    last: u64,
}

fn kept_after(api: &Api, last: u64) -> Replay {
    let mut kept = api.data_plane().events_after(0);
    let newest = kept.last().map_or(0, |event| event.id);
    // One that has not been given yet is of another process, whose events are gone.
    let last = if last > newest { 0 } else { last };
    let oldest = kept.first().map_or(1, |event| event.id);
    let missed = if last == 0 { 0 } else { oldest.saturating_sub(last + 1) };
    kept.retain(|event| event.id > last);
    Replay { missed, kept, last: newest }
}

/// What comes after the event with the id `sent`. Nobody waits for the client: what it is too slow for it misses.
fn as_they_happen(
    news: broadcast::Receiver<Event>,
    (process, sent): (u64, u64),
    is_wanted: impl Fn(&Event) -> bool,
) -> impl Stream<Item = Sent> {
    stream::unfold((news, is_wanted), move |(mut news, is_wanted)| async move {
        loop {
            let event = match news.recv().await {
                Ok(event) if event.id > sent && is_wanted(&event) => as_sse(process, event),
                Ok(_) => continue,
                Err(RecvError::Lagged(missed)) => as_missed(missed),
                Err(RecvError::Closed) => return None,
            };
            return Some((event, (news, is_wanted)));
        }
    })
}

fn kinds(list: &str) -> Result<HashSet<String>, ApiError> {
    let kinds: HashSet<String> = list.split(',').map(|kind| kind.trim().to_owned()).collect();
    match kinds.iter().find(|kind| !What::KINDS.contains(&kind.as_str())) {
        None => Ok(kinds),
        Some(unknown) => {
            let message = format!("there are no events of the type `{unknown}`");
            let hint = format!("there are {}", What::KINDS.join(", "));
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_type", message).hint(hint))
        }
    }
}

/// The event that a client has seen last, by what [`as_sse`] called it, or by its number alone. One of another process
/// is none of ours: ids begin anew with each.
fn last_seen(id: &str, process: u64) -> Option<u64> {
    match id.split_once('-') {
        Some((of, id)) => {
            let id = id.parse().ok()?;
            Some(if of.parse() == Ok(process) { id } else { 0 })
        }
        None => id.parse().ok(),
    }
}

fn as_sse(process: u64, event: Event) -> Sent {
    sse::Event::default().id(format!("{process}-{}", event.id)).json_data(event)
}

fn as_missed(missed: u64) -> Sent {
    sse::Event::default().event("missed").json_data(json!({ "missed": missed }))
}
