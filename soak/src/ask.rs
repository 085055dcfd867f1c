//! What clients ask for.

use std::time::Duration;

use backstop_engine_sim::expected_text;
use bytes::Bytes;
use hyper::Request;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::oracle::Expected;
use crate::settings::SERVICE;

/// Of all replicas: whichever answers, the text is the same.
pub(crate) const ENGINE_SEED: u64 = 11;
/// Texts to embed.
pub(crate) const TEXTS: [&str; 6] =
    ["a river at night", "Straße", "汉字", "one two three", "\"quoted\"", "winter, north of the garden"];
/// The longest plain answer, in tokens: all of it is waited for again when a replica dies.
const LONGEST_PLAIN: u64 = 80;

/// One request of a client.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    /// For logs.
    pub(crate) id: String,
    session: String,
    prompt: String,
    tokens: u64,
    usage: bool,
    pub(crate) leave: Option<Leave>,
    /// On a connection of its own.
    pub(crate) fresh: bool,
    /// Pause after it.
    pub(crate) think: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stream,
    Chat,
    /// Of this one of [`TEXTS`].
    Embedding(usize),
}

/// When a client loses interest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leave {
    AfterPieces(u64),
    After(Duration),
}

impl Ask {
    /// The `number`th request of a client.
    pub(crate) fn draw(seed: u64, client: u64, number: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ (client << 40) ^ (number << 8));
        let rng = &mut rng;
        let kind = match rng.random_range(0..100) {
            0..70 => Kind::Stream,
            70..93 => Kind::Chat,
            _ => Kind::Embedding(rng.random_range(0..TEXTS.len())),
        };
        let tokens = match (kind, rng.random_range(0..10)) {
            (Kind::Stream, 0..2) => rng.random_range(1..12),
            (Kind::Stream, 2..7) => rng.random_range(12..120),
            (Kind::Stream, _) => rng.random_range(120..450),
            _ => rng.random_range(1..LONGEST_PLAIN),
        };
        let leave = match (kind, rng.random_range(0..100)) {
            (Kind::Stream, 0..4) => Some(Leave::AfterPieces(rng.random_range(1..=tokens))),
            (_, 4..8) => Some(Leave::After(Duration::from_millis(rng.random_range(0..300)))),
            _ => None,
        };
        Self {
            kind,
            id: format!("soak-{client}-{number}"),
            session: format!("client-{client}"),
            prompt: format!("Question {number} of client {client}: what keeps a service up?"),
            tokens,
            usage: rng.random(),
            leave,
            fresh: rng.random_range(0..4) == 0,
            think: Duration::from_millis(if rng.random() { 0 } else { rng.random_range(0..1_500) }),
        }
    }

    pub(crate) fn request(&self) -> hyper::http::Result<Request<Bytes>> {
        let path = match self.kind {
            Kind::Stream | Kind::Chat => "/v1/chat/completions",
            Kind::Embedding(_) => "/v1/embeddings",
        };
        Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("x-request-id", &self.id)
            .header("x-session-id", &self.session)
            .body(Bytes::from(self.body()))
    }

    fn body(&self) -> String {
        let mut body = json!({
            "model": SERVICE,
            "max_tokens": self.tokens,
            "messages": [{"role": "user", "content": self.prompt}],
        });
        match self.kind {
            Kind::Stream => {
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": self.usage});
            }
            Kind::Chat => {}
            Kind::Embedding(text) => return embedding(text),
        }
        body.to_string()
    }

    pub(crate) fn expected(&self) -> Expected {
        let tokens = usize::try_from(self.tokens).unwrap_or(usize::MAX);
        Expected {
            text: expected_text(ENGINE_SEED, &[("user", &self.prompt)], tokens),
            tokens: self.tokens,
            usage: self.usage,
        }
    }
}

/// Body of a request for the embedding of one of [`TEXTS`].
pub(crate) fn embedding(text: usize) -> String {
    json!({"model": SERVICE, "input": TEXTS[text]}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sorts_are_asked_for_and_a_seed_repeats_them() {
        let asks = |seed| -> Vec<Ask> { (0..400).map(|number| Ask::draw(seed, 3, number)).collect() };
        let all = asks(1);
        let count = |wanted: &dyn Fn(&Ask) -> bool| all.iter().filter(|ask| wanted(ask)).count();
        assert!(count(&|ask| ask.kind == Kind::Stream) > 200);
        assert!(count(&|ask| ask.kind == Kind::Chat) > 50);
        assert!(count(&|ask| matches!(ask.kind, Kind::Embedding(_))) > 10);
        assert!(count(&|ask| ask.leave.is_some()) > 10);
        assert!(count(&|ask| ask.fresh) > 50);
        assert!(count(&|ask| ask.think.is_zero()) > 100);
        assert!(count(&|ask| ask.kind == Kind::Stream && ask.tokens > 300) > 20);
        assert!(all.iter().all(|ask| ask.kind == Kind::Stream || ask.tokens < LONGEST_PLAIN));
        let shape = |asks: &[Ask]| asks.iter().map(|ask| format!("{ask:?}")).collect::<Vec<_>>();
        assert_eq!(shape(&all), shape(&asks(1)));
        assert_ne!(shape(&all), shape(&asks(2)));
    }
}
