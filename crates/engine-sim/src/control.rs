//! The admin calls under `/sim/`: faults, request log and counts.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::SimBody;
use crate::engine::Engine;
use crate::problem::{Problem, json_response};
use crate::requestlog::LoggedRequest;
use crate::rule::Rule;

pub(crate) fn handle(
    engine: &Engine,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Result<Response<SimBody>, Problem> {
    let answer = match (method, path) {
        (&Method::GET, "/sim/faults") => faults(engine),
        (&Method::POST, "/sim/faults") => {
            for rule in read_rules(body)? {
                engine.faults.add(rule);
            }
            faults(engine)
        }
        (&Method::DELETE, "/sim/faults") => {
            engine.faults.clear();
            faults(engine)
        }
        (&Method::GET, "/sim/requests") => {
            let requests: Vec<Value> = engine.log.list().iter().map(LoggedRequest::to_json).collect();
            json!({"requests": requests})
        }
        (&Method::GET, "/sim/stats") => json!(engine.stats()),
        _ => return Err(Problem::new(StatusCode::NOT_FOUND, format!("unknown request `{method} {path}`"))),
    };
    Ok(json_response(Bytes::from(answer.to_string())))
}

fn faults(engine: &Engine) -> Value {
    json!({"faults": engine.faults.list()})
}

/// One rule or an array of them; either all are taken or none.
fn read_rules(body: &[u8]) -> Result<Vec<Rule>, Problem> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("invalid request body: {error}")))?;
    let rules = match value {
        Value::Array(rules) => rules,
        rule => vec![rule],
    };
    let read = |rule| Rule::from_json(rule).map_err(|error| Problem::invalid(error.to_string()));
    rules.into_iter().map(read).collect()
}
