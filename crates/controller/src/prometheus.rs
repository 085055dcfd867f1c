//! Asks Prometheus for one number.

use backstop_config::Prometheus;
use backstop_core::rollout::Answer;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::notify::Client;

/// The longest text of its own that is passed on, in characters.
const MAX_SAID: usize = 300;

/// What came of a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Answered(Answer),
    /// It could not be asked, or had no answer this time.
    Silent(String),
}

/// Asks `query`, for the value at this moment.
pub(crate) async fn ask(client: &Client, prometheus: &Prometheus, query: &str) -> Said {
    let request = match request(prometheus, query) {
        Ok(request) => request,
        Err(error) => return Said::Answered(Answer::Failed(format!("it can't be asked: {error}"))),
    };
    let asked = timeout(prometheus.timeout, client.send(&prometheus.target, request));
    match asked.await {
        Ok(Ok((head, body))) => understand(head.status, &body),
        Ok(Err(reason)) => Said::Silent(format!("Prometheus {reason}")),
        Err(_) => {
            Said::Silent(format!("Prometheus has not answered for {} s", prometheus.timeout.as_secs_f64()))
        }
    }
}

fn request(prometheus: &Prometheus, query: &str) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let target = &prometheus.target;
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let mut request = Request::get(format!("{}/api/v1/query?query={}", target.base_path, encoded(query)))
        .header(HOST, format!("{host}:{}", target.port))
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("backstop/", env!("CARGO_PKG_VERSION")));
    let bearer =
        prometheus.token.as_ref().map(|token| (AUTHORIZATION.to_string(), format!("Bearer {token}")));
    for (name, value) in prometheus.headers.iter().cloned().chain(bearer) {
        let mut value = HeaderValue::from_str(&value)?;
        value.set_sensitive(true);
        request = request.header(HeaderName::try_from(name)?, value);
    }
    request.body(Full::default())
}

/// As it may stand in a URL.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

fn understand(status: StatusCode, body: &[u8]) -> Said {
    let failed = |why: String| Said::Answered(Answer::Failed(why));
    let parsed = serde_json::from_slice::<Body>(body);
    if !status.is_success() {
        let said = parsed.map(|body| shortened(&body.error)).unwrap_or_default();
        let colon = if said.is_empty() { "" } else { ": " };
        let why = format!("Prometheus answered {}{colon}{said}", status.as_u16());
        // A question that was not understood never will be.
        return if status.is_client_error() { failed(why) } else { Said::Silent(why) };
    }
    let Ok(Body { data: Some(Data { result_type, result }), .. }) = parsed else {
        return failed("what answered is no Prometheus, or its answer is too long: aggregate it".to_owned());
    };
    let number = match (result_type.as_str(), &result) {
        ("scalar", pair) => &pair[1],
        ("vector", Value::Array(series)) => match &series[..] {
            [] => return Said::Answered(Answer::Nothing("Prometheus has no such data".to_owned())),
            [one] => &one["value"][1],
            several => {
                let several = several.len();
                return failed(format!(
                    "{several} series instead of one number; aggregate them, such as with `max( )`"
                ));
            }
        },
        (other, _) => return failed(format!("a {} instead of one number", shortened(other))),
    };
    match number.as_str().and_then(|text| text.parse::<f64>().ok()) {
        Some(number) if number.is_nan() => {
            Said::Answered(Answer::Nothing("the answer is not a number (NaN)".to_owned()))
        }
        Some(number) if number.is_finite() => Said::Answered(Answer::Number(number)),
        Some(_) => failed("the answer is infinite".to_owned()),
        None => failed("the answer has no number".to_owned()),
    }
}

/// On one line.
fn shortened(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, expected: &Said) {
        assert_eq!(&understand(StatusCode::from_u16(status).unwrap(), body.as_bytes()), expected, "{body}");
    }

    fn vector(series: &str) -> String {
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#)
    }

    fn failed(why: &str) -> Said {
        Said::Answered(Answer::Failed(why.to_owned()))
    }

    #[test]
    fn one_number_is_an_answer() {
        let one = r#"{"metric":{},"value":[1700000000.1,"12.5"]}"#;
        check(200, &vector(one), &Said::Answered(Answer::Number(12.5)));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"1e3"]}}"#;
        check(200, scalar, &Said::Answered(Answer::Number(1000.0)));
    }

    #[test]
    fn everything_else_is_not_and_says_why() {
        let nothing = |why: &str| Said::Answered(Answer::Nothing(why.to_owned()));
        check(200, &vector(""), &nothing("Prometheus has no such data"));
        let sample = |value: &str| vector(&format!(r#"{{"metric":{{}},"value":[1,"{value}"]}}"#));
        check(200, &sample("NaN"), &nothing("the answer is not a number (NaN)"));
        check(200, &sample("+Inf"), &failed("the answer is infinite"));
        check(200, &sample("x"), &failed("the answer has no number"));
        let two = format!("{0},{0}", r#"{"metric":{},"value":[1,"1"]}"#);
        let several = failed("2 series instead of one number; aggregate them, such as with `max( )`");
        check(200, &vector(&two), &several);
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        check(200, matrix, &failed("a matrix instead of one number"));
        let other = failed("what answered is no Prometheus, or its answer is too long: aggregate it");
        check(200, "<html>", &other);
        check(200, "", &other);
        let bad = r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\":\n 1:2: parse error"}"#;
        let why = r#"Prometheus answered 400: invalid parameter "query": 1:2: parse error"#;
        check(400, bad, &failed(why));
        check(401, "Unauthorized", &failed("Prometheus answered 401"));
        check(503, "", &Said::Silent("Prometheus answered 503".to_owned()));
    }

    #[test]
    fn a_question_arrives_as_it_is() {
        assert_eq!(encoded(r#"a{b="c"} + 1"#), "a%7Bb%3D%22c%22%7D%20%2B%201");
    }
}
