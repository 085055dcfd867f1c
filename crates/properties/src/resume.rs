use backstop_openai::Api;
use backstop_openai::peek::peek;
use backstop_openai::resume::{Before, Dialect, Interrupted, Next, Splice, Spliced};
use backstop_openai::sse::{EventBuffer, MAX_EVENT, events};
use backstop_openai::stream::{Expected, StreamState, scan};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::json;

const APIS: [Api; 2] = [Api::Chat, Api::Completions];
const ONE: Expected = Expected { choices: 1, usage: false };
/// Parts the stream that broke off from that of the next attempt.
const SEAM: &[u8] = b"=====\n";

/// However two engines answer, what the client gets of both is one stream that holds by itself, and its text is the one
/// followed by the other, or the other's alone where that was asked anew.
pub fn resume(streams: &[u8]) {
    if streams.len() > MAX_EVENT {
        return;
    }
    let seam = streams.windows(SEAM.len()).position(|it| it == SEAM);
    let (old, new) = seam.map_or((streams, &b""[..]), |at| (&streams[..at], &streams[at + SEAM.len()..]));
    for api in APIS {
        let (old, state) = accepted(api, old);
        if state.is_complete() {
            continue;
        }
        let Ok(lost) = Interrupted::new(api, &request(), &state, Before::Nothing) else { continue };
        assert_eq!(Some(lost.text()), state.transcript.text());
        assert!(lost.tokens() >= state.pieces);
        asks_for_the_rest(api, &lost, &old);
        let (new, _) = accepted(api, new);
        for replay in [false, true] {
            let splice = || if replay { lost.splice_replayed() } else { lost.splice_continued() };
            let whole = spliced(splice(), [&new[..]]);
            let starts = [0].into_iter().chain(events(&new).map(|event| event.end));
            let ends = events(&new).map(|event| event.end);
            let one_by_one = starts.zip(ends).map(|(start, end)| &new[start..end]);
            assert_eq!(spliced(splice(), one_by_one), whole, "blocks do not matter");
            is_the_rest(api, &lost, &old, &new, replay, &whole);
        }
    }
}

fn request() -> Vec<u8> {
    let request = json!({
        "model": "m",
        "stream": true,
        "max_tokens": 50,
        "stop": ["END", "éé"],
        "prompt": "p",
        "messages": [{ "role": "user", "content": "hi" }],
    });
    request.to_string().into_bytes()
}

/// What the gateway takes of a stream, and what it knows then.
fn accepted(api: Api, stream: &[u8]) -> (Bytes, StreamState) {
    let block = EventBuffer::default().push(Bytes::copy_from_slice(stream)).expect("short enough");
    let (mut state, mut passed) = (StreamState::new(ONE), 0);
    for event in events(&block) {
        let good = event.is_well_formed && event.data.is_none_or(|data| scan(api, &data, &mut state).is_ok());
        if !good || state.done {
            break;
        }
        passed = event.end;
    }
    // Once more without what was refused, which may have left its traces.
    let mut clean = StreamState::new(ONE);
    for data in events(&block[..passed]).filter_map(|event| event.data) {
        scan(api, &data, &mut clean).expect("good the first time");
    }
    assert_eq!(clean.transcript.text(), state.transcript.text().or(clean.transcript.text()));
    (block.slice(..passed), clean)
}

fn asks_for_the_rest(api: Api, lost: &Interrupted, old: &[u8]) {
    for dialect in [Dialect::ContinueFinalMessage, Dialect::TrailingMessage] {
        match lost.continued(dialect) {
            Ok(Some(Next::Send(body))) => {
                let asked = peek(&body).expect("a request");
                assert_eq!((&*asked.model, asked.stream), ("m", true));
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                let sent = match api {
                    Api::Chat => {
                        body["messages"].as_array().and_then(|all| all.last()).map(|it| &it["content"])
                    }
                    _ => body.get("prompt"),
                };
                assert!(sent.and_then(Value::as_str).is_some_and(|sent| sent.ends_with(lost.text())));
                assert_eq!(body["max_tokens"], 50 - lost.tokens());
            }
            Ok(Some(Next::Finish(end))) => {
                assert!(lost.tokens() >= 50);
                assert!(client(api, &[old, &end].concat()).done);
            }
            Ok(None) | Err(_) => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Rest {
    events: Vec<u8>,
    diverged: bool,
    /// A stop string came together from both parts.
    stopped: bool,
    has_caught_up: bool,
}

/// What comes of the new attempt. Where it diverges, nothing of it counts.
fn spliced<'a>(mut splice: Splice, blocks: impl IntoIterator<Item = &'a [u8]>) -> Rest {
    let mut rest = Rest::default();
    for block in blocks {
        match splice.events(block) {
            Ok(Spliced::Events(events)) => rest.events.extend_from_slice(&events),
            Ok(Spliced::Finished(events)) => {
                rest.events.extend_from_slice(&events);
                rest.stopped = true;
                break;
            }
            Err(_) => return Rest { diverged: true, ..Rest::default() },
        }
    }
    rest.has_caught_up = splice.has_caught_up();
    rest
}

fn is_the_rest(api: Api, lost: &Interrupted, old: &[u8], new: &[u8], replay: bool, rest: &Rest) {
    if rest.diverged {
        return;
    }
    let both = client(api, &[old, &rest.events].concat());
    assert!(!rest.stopped || both.done);
    if !events(new).filter_map(|event| event.data).all(|data| is_plain(api, &data)) {
        return;
    }
    let (Some(text), Some(answer)) =
        (both.transcript.text(), client(api, new).transcript.text().map(str::to_owned))
    else {
        return;
    };
    match (replay, rest.has_caught_up) {
        (true, true) => assert_eq!(text, answer),
        (true, false) => {
            assert_eq!(text, lost.text());
            assert!(lost.text().starts_with(&answer));
        }
        // What may yet become a stop string is held back.
        (false, _) => assert!(format!("{}{answer}", lost.text()).starts_with(text)),
    }
}

/// What a client makes of a stream: it must hold by itself.
fn client(api: Api, stream: &[u8]) -> StreamState {
    let mut state = StreamState::new(ONE);
    for event in events(stream) {
        assert!(event.is_well_formed);
        if let Some(data) = event.data {
            let result = scan(api, &data, &mut state);
            assert_eq!(result, Ok(()), "{}", String::from_utf8_lossy(&data));
        }
    }
    state
}

/// Whether a chunk has one choice with one text at most, the one of this API.
fn is_plain(api: Api, data: &[u8]) -> bool {
    let Some(json) = std::str::from_utf8(data).ok().and_then(json::parse) else { return false };
    let none = Vec::new();
    let choices = json.value["choices"].as_array().unwrap_or(&none);
    let other_text = |choice: &Value| match api {
        Api::Chat => !choice["text"].is_null(),
        _ => !choice["delta"].is_null(),
    };
    !json.has_twins
        && json.value.get("type").is_none()
        && choices.len() <= 1
        && choices.iter().all(|choice| choice["index"].as_u64().unwrap_or(0) == 0 && !other_text(choice))
}
