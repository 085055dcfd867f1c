//! The endpoints: from a request's head to its response.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::body::{SimBody, WriteStyle};
use crate::config::Dialect;
use crate::connection::Steering;
use crate::control;
use crate::embedding::EmbeddingJob;
use crate::engine::{Engine, InFlight, count};
use crate::fault::{Cut, Fault, Scope};
use crate::framing::Framing;
use crate::job::{Job, served_model, unix_now};
use crate::metrics;
use crate::problem::{Problem, json_response};
use crate::request::is_prefill;
use crate::rule::parse_header;
use crate::schedule::{QueueFull, Ticket};
use crate::writer::Writer;

const FAULT_HEADER: &str = "x-sim-fault";

/// Events that a flood puts into one write.
const FLOOD: usize = 256;

const HTML_PAGE: &str =
    "<!doctype html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n";

/// The endpoints of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Chat,
    Text,
    Responses,
    Embeddings,
}

/// What a request wants.
enum Work {
    Text(Job),
    Embeddings(EmbeddingJob),
}

/// Answers a request; an error closes the connection without an answer.
pub(crate) async fn handle(
    engine: Arc<Engine>,
    steering: Arc<Steering>,
    request: Request<Incoming>,
) -> io::Result<Response<SimBody>> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let result = match path.as_str() {
        "/health" => Ok(health(&engine).await),
        "/metrics" => metrics_response(&engine),
        path if path.starts_with("/sim/") => admin(&engine, path, request).await,
        path => serve(engine, steering, path, request).await,
    };
    match result {
        Ok(response) => Ok(response),
        Err(Failure::Problem(problem)) => Ok(problem.into_response()),
        Err(Failure::Closed(error)) => Err(error),
    }
}

enum Failure {
    Problem(Problem),
    Closed(io::Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

async fn admin(
    engine: &Engine,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<SimBody>, Failure> {
    let (head, body) = request.into_parts();
    let body = read_body(body, engine.config.max_body).await?;
    Ok(control::handle(engine, &head.method, path, &body)?)
}

async fn serve(
    engine: Arc<Engine>,
    steering: Arc<Steering>,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<SimBody>, Failure> {
    let number = engine.counters.requests.fetch_add(1, Ordering::SeqCst) + 1;
    let (head, body) = request.into_parts();
    let body = read_body(body, engine.config.max_body).await?;
    engine.log.push(number, &head, &body);
    let endpoint = match (&head.method, path) {
        (&Method::POST, "/v1/chat/completions") => Endpoint::Chat,
        (&Method::POST, "/v1/completions") => Endpoint::Text,
        (&Method::POST, "/v1/responses") => Endpoint::Responses,
        (&Method::POST, "/v1/embeddings") => Endpoint::Embeddings,
        (&Method::GET, "/v1/models") => return Ok(models(&engine)),
        (&Method::GET, path) if path.starts_with("/v1/models/") => {
            let asked = path.trim_start_matches("/v1/models/").to_owned();
            let model = model_json(&served_model(&engine.config, Some(asked))?);
            return Ok(json_response(Bytes::from(model.to_string())));
        }
        _ => {
            let message = format!("unknown request `{} {path}`", head.method);
            return Err(Problem::new(StatusCode::NOT_FOUND, message).into());
        }
    };
    let faults = faults_of(&engine, &head.headers, endpoint, &body)?;
    let in_flight = InFlight::new(&engine);
    let chance = engine.chance(number);
    let writer = Writer { engine, steering, faults, in_flight, chance };
    if let Some(fault) = writer.faults.iter().find(|fault| fault.comes_first()).cloned() {
        return before_answer(writer, fault).await;
    }
    answer(writer, endpoint, number, &body).await
}

async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("request body is larger than {limit} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, message).into())
        }
        Err(error) => Err(Failure::Closed(io::Error::other(error))),
    }
}

fn faults_of(
    engine: &Engine,
    headers: &http::HeaderMap,
    endpoint: Endpoint,
    body: &[u8],
) -> Result<Vec<Fault>, Problem> {
    let mut faults: Vec<Fault> = Vec::new();
    for value in headers.get_all(FAULT_HEADER) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let parsed = parse_header(&text, &engine.config.name);
        faults.extend(parsed.map_err(|error| Problem::invalid(format!("`{FAULT_HEADER}`: {error}")))?);
    }
    let is_chat = endpoint == Endpoint::Chat;
    let by_header = faults.iter().any(|fault| fault.scope() == Scope::Prefill);
    // Most requests need not be read for it.
    let is_prefill = is_chat && (by_header || engine.faults.has(Scope::Prefill)) && is_prefill(body);
    faults.retain(|fault| match fault.scope() {
        Scope::Chat => is_chat,
        Scope::Prefill => is_prefill,
        _ => true,
    });
    if is_chat {
        faults.extend(engine.faults.take(Scope::Chat));
    }
    if is_prefill {
        faults.extend(engine.faults.take(Scope::Prefill));
    }
    faults.extend(engine.faults.take(Scope::Request));
    faults.extend(engine.faults.take(Scope::Manner));
    if !faults.is_empty() {
        count(&engine.counters.faulted, 1);
    }
    Ok(faults)
}

/// Faults that replace the answer.
async fn before_answer(writer: Writer, fault: Fault) -> Result<Response<SimBody>, Failure> {
    match fault {
        Fault::Status { status, retry_after, message } => {
            writer.in_flight.end();
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let message = message.unwrap_or_else(|| format!("simulated status {}", status.as_u16()));
            Err(Problem::new(status, message).retry_after(retry_after).into())
        }
        Fault::NoChat => {
            writer.in_flight.end();
            Err(Problem::invalid("The model does not support chat").into())
        }
        Fault::PrefillRejected => {
            let problem = Problem::prefill_rejected(writer.engine.config.dialect);
            writer.in_flight.end();
            Err(problem.into())
        }
        Fault::ContentPolicy { code } => {
            writer.in_flight.end();
            Err(Problem::content_policy(code).into())
        }
        Fault::HtmlPage => {
            writer.in_flight.end();
            let mut response = Response::new(SimBody::from(Bytes::from_static(HTML_PAGE.as_bytes())));
            let html = header::HeaderValue::from_static("text/html; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, html);
            Ok(response)
        }
        Fault::Redirect { location } => {
            writer.in_flight.end();
            let mut response =
                Problem::new(StatusCode::TEMPORARY_REDIRECT, "simulated redirect").into_response();
            if let Ok(location) = header::HeaderValue::try_from(location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
        Fault::Hangup { how } => {
            if how == Cut::Rst {
                writer.steering.reset();
            }
            writer.in_flight.end();
            Err(Failure::Closed(io::Error::other("simulated hangup")))
        }
        _ => pending().await,
    }
}

async fn answer(
    mut writer: Writer,
    endpoint: Endpoint,
    number: u64,
    body: &[u8],
) -> Result<Response<SimBody>, Failure> {
    let (work, ticket) = match prepare(&writer, endpoint, number, body) {
        Ok(prepared) => prepared,
        Err(problem) => {
            writer.in_flight.end();
            return Err(problem.into());
        }
    };
    let mut style = writer.engine.config.write_style();
    if let Some(bytes) = writer.faults.iter().find_map(Fault::dribble) {
        style.bytes_per_write = Some(bytes);
    }
    if writer.faults.contains(&Fault::Flood) {
        style.events_per_write = FLOOD;
    }
    let dress = Dress::of(&writer);
    let whole = match work {
        Work::Text(job) if writer.streams(job.stream) => {
            let mut response = Response::new(SimBody::written(style, |out| writer.stream(job, ticket, out)));
            let event_stream = header::HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, event_stream);
            return Ok(dress.put_on(response));
        }
        Work::Text(job) => writer.plain(job, ticket).await,
        Work::Embeddings(job) => writer.embeddings(job, ticket).await,
    };
    Ok(dress.put_on(plain_response(writer, whole, style)))
}

/// How an answer looks from outside, where that is not as it should be.
struct Dress {
    content_type: Option<header::HeaderValue>,
    framing: Option<Framing>,
    steering: Arc<Steering>,
}

impl Dress {
    fn of(writer: &Writer) -> Self {
        let content_type = writer.faults.iter().find_map(Fault::content_type);
        Self {
            content_type: content_type.and_then(|value| header::HeaderValue::from_str(value).ok()),
            framing: Framing::of(&writer.faults),
            steering: Arc::clone(&writer.steering),
        }
    }

    fn put_on(self, mut response: Response<SimBody>) -> Response<SimBody> {
        if let Some(value) = self.content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        match self.framing {
            Some(framing) => framing.apply(response, &self.steering),
            None => response,
        }
    }
}

fn plain_response(writer: Writer, whole: Bytes, style: WriteStyle) -> Response<SimBody> {
    let Some(fault) = writer.plain_fault() else {
        writer.in_flight.end();
        return json_response(whole);
    };
    let length = match fault {
        Fault::Cut { how: Cut::End, .. } => whole.len() as u64 / 2,
        Fault::HugeEvent { bytes, .. } => whole.len() as u64 + bytes,
        _ => whole.len() as u64,
    };
    let mut response = json_response(Bytes::new());
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    *response.body_mut() = SimBody::written(style, |out| writer.plain_body(whole, fault, out));
    response
}

fn prepare(writer: &Writer, endpoint: Endpoint, number: u64, body: &[u8]) -> Result<(Work, Ticket), Problem> {
    let engine = &writer.engine;
    let config = &engine.config;
    let work = match endpoint {
        Endpoint::Chat => Work::Text(Job::chat(config, number, parse(body)?)?),
        Endpoint::Text => Work::Text(Job::text(config, number, parse(body)?)?),
        Endpoint::Responses => Work::Text(Job::responses(config, number, parse(body)?)?),
        Endpoint::Embeddings => Work::Embeddings(EmbeddingJob::new(config, parse(body)?)?),
    };
    let (prompt_tokens, kv_tokens) = match &work {
        Work::Text(job) => (job.prompt_tokens, job.kv_tokens()),
        Work::Embeddings(job) => (job.prompt_tokens, job.prompt_tokens),
    };
    if writer.faults.contains(&Fault::ContextLength) {
        let limit = prompt_tokens.saturating_sub(1);
        return Err(Problem::context_length(config.dialect, limit, prompt_tokens, 0));
    }
    // Several choices may together exceed the cache; real engines then preempt, here they take all of it.
    match engine.scheduler.enqueue(kv_tokens.min(config.kv_tokens.unwrap_or(u64::MAX))) {
        Ok(ticket) => Ok((work, ticket)),
        Err(QueueFull) => {
            count(&engine.counters.rejected, 1);
            let message = "the queue is full; try again later";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(Some(1)))
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::invalid(format!("invalid request body: {error}")))
}

fn models(engine: &Engine) -> Response<SimBody> {
    let id = engine.config.model.as_deref().unwrap_or(&engine.config.name);
    json_response(Bytes::from(json!({"object": "list", "data": [model_json(id)]}).to_string()))
}

fn model_json(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": unix_now(), "owned_by": "backstop-sim"})
}

fn metrics_response(engine: &Engine) -> Result<Response<SimBody>, Failure> {
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "there are no metrics");
    let text = metrics::text(engine).ok_or_else(not_found)?;
    let mut response = Response::new(SimBody::from(Bytes::from(text)));
    let text = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

async fn health(engine: &Engine) -> Response<SimBody> {
    count(&engine.counters.health_checks, 1);
    match engine.faults.take(Scope::Health) {
        Some(Fault::Health { status } | Fault::Flap { status, .. }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return Problem::new(status, "simulated ill health").into_response();
        }
        Some(Fault::SlowHealth { delay }) => tokio::time::sleep(delay).await,
        _ => {}
    }
    match engine.config.dialect {
        Dialect::Vllm | Dialect::Sglang | Dialect::OpenAi => Response::new(SimBody::from(Bytes::new())),
        Dialect::LlamaCpp => json_response(Bytes::from_static(b"{\"status\":\"ok\"}")),
    }
}
