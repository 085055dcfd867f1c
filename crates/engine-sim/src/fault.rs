//! What can go wrong with an answer, a health check or the whole engine.
//!
//! A new fault is one variant of [`Fault`], its place in [`Fault::scope`], its line in `faults.txt` and its effect
//! where answers are written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dist::delay;

/// One way to go wrong. `after` counts content chunks, so 0 is after the role chunk; plain answers are hit
/// in the middle of their body whatever `after` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Answer with this status and an OpenAI error; `retry_after` in seconds.
    Status {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Take the request and never answer.
    NoAnswer,
    /// Close the connection instead of answering.
    Hangup {
        #[serde(default)]
        how: Cut,
    },
    /// This much later than usual with the first token.
    SlowFirstToken {
        #[serde(with = "delay")]
        delay: Duration,
    },
    /// Stop after so many chunks; with `mid_event` half of the next event is still sent.
    Cut {
        after: u64,
        #[serde(default)]
        how: Cut,
        #[serde(default)]
        mid_event: bool,
    },
    /// Send nothing more after so many chunks and keep the connection open.
    Stall { after: u64 },
    /// One event that is not JSON, then go on.
    InvalidEvent { after: u64 },
    /// Bytes that are neither SSE nor UTF-8, then go on.
    Garbage { after: u64 },
    /// An error event inside the stream, which ends there: without `[DONE]`, or with it, as from vLLM and SGLang.
    ErrorEvent {
        after: u64,
        #[serde(default)]
        done: bool,
    },
    /// One event with this much padding, on one line, then go on; a plain answer has it in front.
    HugeEvent {
        after: u64,
        #[serde(default = "hundred_megabytes")]
        bytes: u64,
    },
    /// A complete answer, but without `[DONE]`.
    NoDone,
    /// `[DONE]`, but no finish reason before it.
    NoFinish,
    /// Everything up to the finish reason, but neither usage nor `[DONE]` after it.
    CutAfterFinish {
        #[serde(default)]
        how: Cut,
    },
    /// The responses API's `response.failed`, which ends the stream; an error event from other APIs.
    Failed { after: u64 },
    /// The answer stops after so many tokens with the finish reason `content_filter`, streamed or not.
    ContentFilter { after: u64 },
    /// Tokens for ever, whatever the request's limits; a plain answer never comes.
    Endless,
    /// Answer a streamed request with JSON in one piece.
    PlainForStream,
    /// Answer a plain request with a stream.
    StreamForPlain,
    /// Answer 307 with this `Location`.
    Redirect {
        #[serde(default = "elsewhere")]
        location: String,
    },
    /// Answer 200 with a page of HTML.
    HtmlPage,
    /// The right answer under this content type.
    ContentType { value: String },
    /// Answer 400, as to a prompt beyond the context, in the dialect's form.
    ContextLength,
    /// Answer 400, as to a prompt that offends, with this code.
    ContentPolicy {
        #[serde(default)]
        code: PolicyCode,
    },
    /// Chat is answered 400, as by an engine that only embeds.
    NoChat,
    /// A chat that gives the beginning of its answer gets 400 in the dialect's form: one that ends with an assistant
    /// message or sets `continue_final_message`. Others are spared.
    PrefillRejected,
    /// A comment this often while a stream has nothing else to send: stalled, frozen or slow.
    Ping {
        #[serde(with = "delay")]
        every: Duration,
    },
    /// Chunks before the last carry `"finish_reason":""` instead of null.
    EmptyFinish,
    /// Of several choices each is streamed to its finish before the next begins.
    OneByOne,
    /// No pauses whatever the engine's delays, and many events in one write.
    Flood,
    /// HTTP/1.0 without a length: the answer ends with the connection.
    Http10,
    /// Chunks of the transfer coding have extensions, which is legal.
    ChunkExtensions,
    /// Trailers follow the last chunk, which is legal.
    Trailers,
    /// Write the whole stream in pieces of so many bytes, across events and characters.
    Dribble { bytes: usize },
    /// All decoding stands still while this is set, whatever `times` says; health passes and counters stop.
    Freeze,
    /// The engine dies `up` after it began to serve, refuses connections for `down`, and serves again, and so on.
    /// `times` counts outages.
    Refuse {
        #[serde(with = "delay")]
        up: Duration,
        #[serde(with = "delay")]
        down: Duration,
    },
    /// Health checks get this status.
    Health { status: u16 },
    /// Of the health checks `up` pass, then `down` get this status, and so on.
    Flap {
        up: u32,
        down: u32,
        #[serde(default = "unavailable")]
        status: u16,
    },
    /// Health checks are answered this much later.
    SlowHealth {
        #[serde(with = "delay")]
        delay: Duration,
    },
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Closed in an orderly way (FIN), but in the middle of the body.
    #[default]
    Fin,
    /// Reset, which may overtake what the client has not read yet.
    Rst,
    /// The body ends properly as far as HTTP goes, but no finish reason and no `[DONE]` were sent.
    End,
}

/// What a refusal for its content is called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyCode {
    /// By OpenAI.
    #[default]
    ContentPolicyViolation,
    /// By Azure, with the categories that were hit.
    ContentFilter,
}

/// What a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Request,
    /// How an answer is written; comes on top of what else hits the request.
    Manner,
    Chat,
    /// Chats that give the beginning of their answer.
    Prefill,
    Health,
    /// All decoding.
    Decoding,
    /// The engine as a process.
    Process,
}

impl Fault {
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Freeze => Scope::Decoding,
            Self::Refuse { .. } => Scope::Process,
            Self::Health { .. } | Self::Flap { .. } | Self::SlowHealth { .. } => Scope::Health,
            Self::NoChat => Scope::Chat,
            Self::PrefillRejected => Scope::Prefill,
            Self::Ping { .. }
            | Self::EmptyFinish
            | Self::OneByOne
            | Self::Flood
            | Self::Http10
            | Self::ChunkExtensions
            | Self::Trailers => Scope::Manner,
            _ => Scope::Request,
        }
    }

    /// Content chunks before this happens in a stream, for faults that do.
    pub(crate) fn after(&self) -> Option<u64> {
        match self {
            Self::Cut { after, .. }
            | Self::Stall { after }
            | Self::InvalidEvent { after }
            | Self::Garbage { after }
            | Self::HugeEvent { after, .. }
            | Self::Failed { after }
            | Self::ErrorEvent { after, .. } => Some(*after),
            _ => None,
        }
    }

    /// Whether the fault stands in place of an answer.
    pub(crate) fn comes_first(&self) -> bool {
        matches!(
            self,
            Self::Status { .. }
                | Self::NoAnswer
                | Self::Hangup { .. }
                | Self::Redirect { .. }
                | Self::HtmlPage
                | Self::ContentPolicy { .. }
                | Self::NoChat
                | Self::PrefillRejected
        )
    }

    pub(crate) fn dribble(&self) -> Option<usize> {
        match self {
            Self::Dribble { bytes } => Some(*bytes),
            _ => None,
        }
    }

    pub(crate) fn ping(&self) -> Option<Duration> {
        match self {
            Self::Ping { every } => Some(*every),
            _ => None,
        }
    }

    pub(crate) fn first_token_delay(&self) -> Option<Duration> {
        match self {
            Self::SlowFirstToken { delay } => Some(*delay),
            _ => None,
        }
    }

    pub(crate) fn content_filter(&self) -> Option<u64> {
        match self {
            Self::ContentFilter { after } => Some(*after),
            _ => None,
        }
    }

    pub(crate) fn content_type(&self) -> Option<&str> {
        match self {
            Self::ContentType { value } => Some(value),
            _ => None,
        }
    }
}

fn elsewhere() -> String {
    "http://127.0.0.1:9/elsewhere".to_owned()
}

fn hundred_megabytes() -> u64 {
    100 << 20
}

fn unavailable() -> u16 {
    503
}
