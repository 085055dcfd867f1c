//! The list of models, which clients ask for before anything else.

use std::sync::Arc;

use backstop_openai::error::ErrorBody;
use http::{HeaderMap, Response, StatusCode};
use serde_json::json;

use super::say;
use crate::Shared;
use crate::reply::{self, ReplyBody};

/// The models that the client may use, or one of them.
pub(super) fn models(shared: &Shared, headers: &HeaderMap, id: Option<&str>) -> Response<ReplyBody> {
    let table = shared.table.load();
    let client = match table.identities.client(headers) {
        Ok(client) => client.map(Arc::as_ref),
        Err(refusal) => {
            shared.refused.count(refusal.code());
            return reply::refused(&refusal);
        }
    };
    let models = table.models(client);
    let Some(id) = id.map(percent_decoded) else {
        let data: Vec<_> = models.into_iter().map(entry).collect();
        return say(StatusCode::OK, &json!({ "object": "list", "data": data }));
    };
    if models.contains(&id.as_str()) {
        return say(StatusCode::OK, &entry(&id));
    }
    let message = format!("the model `{id}` does not exist");
    let kind = "invalid_request_error";
    let body = ErrorBody { message: &message, kind, param: Some("model"), code: Some("model_not_found") };
    reply::json(StatusCode::NOT_FOUND, body.to_json())
}

fn entry(id: &str) -> serde_json::Value {
    json!({ "id": id, "object": "model", "created": 0, "owned_by": "backstop" })
}

/// Model names often contain `/`, which clients send as `%2F`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.first_chunk::<2>().filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
