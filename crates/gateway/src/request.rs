//! The way of a request, top to bottom.
//!
//! accept → read head → who asks → read body → peek → choose service and version → pick endpoint → send → wait for the first
//! meaningful output → commit the head → relay → end. What can still fail over happens before the commit.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use backstop_core::balance::mix;
use backstop_openai::peek::{Peek, peek, with_model};
use backstop_openai::stream::Expected;
use backstop_openai::{Api, estimate};
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::{Body, Incoming};

use crate::assign::Asker;
use crate::body::read_body;
use crate::cache::Cache;
use crate::endpoint::fnv1a;
use crate::fault::{Fault, Refusal};
use crate::identity::Client;
use crate::load::ServiceLoad;
use crate::rate::Asks;
use crate::record::Record;
use crate::relay::Total;
use crate::reply::{self, ReplyBody};
use crate::shadow::Shadow;
use crate::shape::Shape;
use crate::table::{Assigned, Service, Table};
use crate::trial::{Asked, Side};
use crate::{Shared, answer, headers, local};
use backstop_core::table::{ResumeSpec, RetrySpec, Timeouts};

/// Names the service where the body can't.
const SERVICE: &str = "x-backstop-service";
/// What a client calls its session.
const SESSION: &str = "x-session-id";

/// Bodies up to this length, in bytes, may lie in a buffer with other things.
const SHARED_BODY: usize = 64 * 1024;

/// A request that is understood and assigned. The assignment stays for all its attempts.
#[derive(Clone)]
pub(crate) struct Routed {
    pub(crate) api: Api,
    pub(crate) method: Method,
    pub(crate) path_and_query: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Where `model` stands in the body, if it is JSON.
    pub(crate) model_span: Option<Range<usize>>,
    pub(crate) stream: bool,
    /// What a complete stream has.
    pub(crate) expected: Expected,
    pub(crate) timeouts: Timeouts,
    pub(crate) total: Total,
    pub(crate) service: Arc<str>,
    pub(crate) version: Arc<str>,
    /// The release whose split sent it to another version than the stable one.
    pub(crate) release: Option<Arc<str>>,
    /// What the version has changed, in the body already; `None` if this is the client's request.
    pub(crate) shape: Option<Arc<Shape>>,
    /// Who gets it as well.
    pub(crate) shadow: Option<Arc<Shadow>>,
    /// The most tokens that a fallback leaves it.
    pub(crate) most: Option<u64>,
    pub(crate) retry: RetrySpec,
    pub(crate) resume: Arc<ResumeSpec>,
    /// `None` where no keys are asked for.
    pub(crate) client: Option<Arc<Client>>,
    /// Of the service that the client asked for.
    pub(crate) cache: Option<Arc<Cache>>,
    pub(crate) load: Arc<ServiceLoad>,
    pub(crate) session: u64,
    /// What it counts for; `None` if there are no rate limits at all.
    pub(crate) asks: Option<Arc<Asks>>,
}

impl Routed {
    /// Whom it counts for among those who wait.
    pub(crate) fn tenant(&self) -> Option<&Arc<str>> {
        self.client.as_ref().map(|client| &client.tenant)
    }

    /// The same request for a shorter answer, with this body.
    pub(crate) fn shorter(&self, body: Bytes, most: u64) -> Self {
        let all = most.saturating_mul(u64::from(self.expected.choices));
        let asks = self.asks.as_ref().map(|asks| Arc::new(asks.at_most(all)));
        Self { asks, most: Some(most), ..self.with_body(body) }
    }

    /// The value of `model` in the body.
    pub(crate) fn model(&self) -> String {
        let quoted = self.model_span.as_ref().and_then(|span| self.body.get(span.clone()));
        quoted.and_then(|quoted| serde_json::from_slice(quoted).ok()).unwrap_or_default()
    }

    /// The same request to another service, which knows another `model`.
    pub(crate) fn to_service(&self, service: &Service) -> Self {
        let body = match &self.model_span {
            Some(span) => with_model(&self.body, span, &service.model),
            None => self.body.clone(),
        };
        Self {
            service: Arc::clone(&service.name),
            version: Arc::clone(&service.stable().name),
            release: None,
            ..self.with_body(body)
        }
    }

    /// The same in memory of its own: what was read into one buffer with the head, a few values even, would keep all of
    /// that buffer for as long as a stream lasts.
    pub(crate) fn detached(mut self) -> Self {
        if let Ok(copy) = PathAndQuery::try_from(self.path_and_query.as_str()) {
            self.path_and_query = copy;
        }
        for value in self.headers.values_mut() {
            *value = detached(value);
        }
        if self.body.len() <= SHARED_BODY {
            self.body = Bytes::copy_from_slice(&self.body);
        }
        self
    }

    /// The same request with another body of JSON.
    pub(crate) fn with_body(&self, body: Bytes) -> Self {
        let peeked = peek(&body).ok();
        let expected = peeked.as_ref().map_or(self.expected, expected);
        let model_span = peeked.map(|peek| peek.model_span);
        Self { body, model_span, expected, ..self.clone() }
    }
}

/// What a complete stream has.
fn expected(asked: &Peek<'_>) -> Expected {
    Expected { choices: asked.choices, usage: asked.include_usage }
}

/// The same value in memory of its own.
pub(crate) fn detached(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// Serves one request.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<ReplyBody> {
    let (head, body) = request.into_parts();
    if let Some(page) = local::Page::of(&head) {
        return Box::pin(local::answer(&shared, page, peer, &head)).await;
    }
    let mut record = Record::begin(&shared, &head);
    match shared.unless_closing(understand(&shared, peer, head, body, &mut record)).await {
        Some(Ok(routed)) => answer::answer(shared, routed, record).await,
        Some(Err(refusal)) => reply::refusal(&refusal, record),
        None => reply::fault(&Fault::Closing, &HeaderValue::from_static("none"), record),
    }
}

/// Head and body → what is asked for, and of whom.
async fn understand(
    shared: &Shared,
    peer: SocketAddr,
    head: Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<Routed, Refusal> {
    let api = check_head(&head, !body.is_end_stream())?;
    let client = shared.table.load().identities.client(&head.headers)?.cloned();
    record.asked_by(client.clone());
    let body = read_body(body, &head).await?;

    let table = shared.table.load();
    let (service, asked) = find_service(&table, api, &head.headers, &body, client.as_deref())?;
    let user = asked.as_ref().and_then(|asked| asked.user.as_deref());
    let asker = Asker { headers: &head.headers, user, client: client.as_deref(), ip: peer.ip() };
    let Assigned { version, split } = service.assign(asker);
    let stream = asked.as_ref().is_some_and(|peek| peek.stream);
    record.routed(service, version, stream);
    if let Some((split, side, Some(unit))) = split {
        let input = estimate::usage(api, &body, None).input;
        let most_tokens = asked.as_ref().and_then(|peek| peek.max_tokens?.checked_mul(peek.choices.into()));
        record.counts(split.subject(side, version, unit, Asked { stream, most_tokens, input }));
    }
    let release =
        split.filter(|(_, side, _)| *side == Side::Canary).map(|(split, ..)| Arc::clone(split.release()));
    let session = head.headers.get(SESSION).map(|id| fnv1a(id.as_bytes()));
    let session = session.or_else(|| user.map(|user| fnv1a(user.as_bytes())));
    let session = session.unwrap_or_else(|| fnv1a(&ip_octets(peer.ip())));
    let asks = table.is_limited.then(|| {
        let tokens = estimate::usage(api, &body, asked.as_ref());
        Arc::new(Asks::new(client.as_deref(), service, user, tokens))
    });
    let total = Total { deadline: record.started + service.timeouts.total, limit: service.timeouts.total };
    Ok(Routed {
        api,
        method: head.method,
        path_and_query: head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
        headers: head.headers,
        model_span: asked.as_ref().map(|peek| peek.model_span.clone()),
        stream,
        expected: asked.as_ref().map_or(Expected { choices: 1, usage: false }, expected),
        body: body.clone(),
        timeouts: service.timeouts,
        total,
        service: Arc::clone(&service.name),
        version: Arc::clone(&version.name),
        release,
        shape: None,
        shadow: service.shadow.clone(),
        most: None,
        retry: service.retry,
        resume: Arc::clone(&service.resume),
        cache: service.cache.clone(),
        load: Arc::clone(&service.load),
        client,
        session: mix(session),
        asks,
    })
}

/// The same for an IPv4 client, whether or not the listener shows it as an IPv6 one.
pub(crate) fn ip_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The service that a request names, by header or by `model`, and what its JSON body asks for.
fn find_service<'t, 'b>(
    table: &'t Table,
    api: Api,
    headers: &HeaderMap,
    body: &'b [u8],
    client: Option<&Client>,
) -> Result<(&'t Arc<Service>, Option<Peek<'b>>), Refusal> {
    let known_models = || known_models(table, client);
    let allowed = |service: &'t Arc<Service>| {
        let may = client.is_none_or(|client| client.may_use(&service.name));
        if may { Ok(service) } else { Err(Refusal::NotAllowed(service.name.to_string())) }
    };
    let named = named_service(table, headers, known_models)?;
    let is_json = content_type(headers).is_some_and(is_json_type) && !body.is_empty();
    let asked = match (api.is_json_post() || is_json).then(|| peek(body)) {
        Some(Err(error)) if api.is_json_post() => return Err(error.into()),
        // Another API's body may be anything.
        peeked => peeked.and_then(Result::ok),
    };
    if let Some(service) = named {
        return Ok((allowed(service)?, asked));
    }
    let Some(peek) = &asked else { return Err(Refusal::NoService(known_models())) };
    let service = table.by_model(&peek.model).ok_or_else(|| Refusal::UnknownModel {
        model: peek.model.chars().take(100).collect(),
        known: known_models(),
    })?;
    Ok((allowed(service)?, asked))
}

/// The methods of an API that takes a JSON body, and of all others. Of those that are left out some make an upstream
/// show its own credentials (TRACE) or turn a connection into a tunnel (CONNECT).
const JSON_METHODS: (&[Method], &str) = (&[Method::POST], "POST");
const OTHER_METHODS: (&[Method], &str) = (
    &[Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS],
    "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
);

/// What can be refused before the body has been read.
fn check_head(head: &Parts, has_body: bool) -> Result<Api, Refusal> {
    headers::check(head, has_body)?;
    let path = head.uri.path();
    let api = Api::from_path(path).filter(|_| !climbs(path));
    let api = api.ok_or_else(|| Refusal::UnknownPath(path.chars().take(200).collect()))?;
    let (methods, allowed) = if api.is_json_post() { JSON_METHODS } else { OTHER_METHODS };
    if !methods.contains(&head.method) {
        let given = head.method.as_str().chars().take(20).collect();
        return Err(Refusal::Method { path: path.chars().take(200).collect(), given, allowed });
    }
    if api.is_json_post() {
        if let Some(other) = content_type(&head.headers).filter(|given| !is_json_type(given)) {
            return Err(Refusal::ContentType(other.chars().take(100).collect()));
        }
        if let Some(encoding) =
            head.headers.get(header::CONTENT_ENCODING).filter(|e| e.as_bytes() != b"identity")
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).chars().take(100).collect();
            return Err(Refusal::ContentEncoding(encoding));
        }
    }
    Ok(api)
}

/// Whether a server that resolves dot segments could be led out of `/v1/`.
fn climbs(path: &str) -> bool {
    path.split(['/', '\\']).any(|segment| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        matches!(plain.as_str(), "." | "..") || plain.contains("..%2f") || plain.contains("..%5c")
    })
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("(not text)"))
}

fn is_json_type(value: &str) -> bool {
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn named_service<'t>(
    table: &'t Table,
    headers: &HeaderMap,
    known_models: impl Fn() -> String,
) -> Result<Option<&'t Arc<Service>>, Refusal> {
    let Some(name) = headers.get(SERVICE) else { return Ok(None) };
    let service = name.to_str().ok().and_then(|name| table.services.get(name));
    service.map(Some).ok_or_else(|| Refusal::NoService(known_models()))
}

fn known_models(table: &Table, client: Option<&Client>) -> String {
    let models = table.models(client);
    let shown = models.iter().take(20).map(|model| format!("`{model}`")).collect::<Vec<_>>().join(", ");
    if models.len() > 20 { format!("{shown}, …") } else { shown }
}
