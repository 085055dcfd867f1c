//! Answers to what was asked before in the very same words, and requests for the same that are under way.
//!
//! Only requests that an engine answers the same each time are kept (`temperature: 0`, embeddings), or those whose client
//! says so. An answer belongs to its version, and to its tenant unless the configuration shares it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstop_core::table::CacheSpec;
use backstop_openai::Api;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::clock;
use crate::request::Routed;
use crate::table::Version;

/// The longest answer that is kept, in bytes.
const MAX_KEPT: usize = 1024 * 1024;
/// What has expired is kept for so much longer, for the time when there is nothing better.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// What an entry takes besides its body, in bytes.
const OVERHEAD: u32 = 256;
/// `on` asks for a cached answer, `off` for a new one.
const WISH: &str = "x-backstop-cache";

/// What was asked, of whom, and by whom.
pub(crate) type Key = [u8; 32];

/// Where answers are.
trait Store: Send + Sync {
    /// An answer, also an old one.
    fn get<'a>(&'a self, key: &'a Key) -> Getting<'a>;

    /// Called as answers end: it must not block.
    fn put(&self, key: Key, kept: Arc<Kept>);
}

type Getting<'a> = Pin<Box<dyn Future<Output = Option<Arc<Kept>>> + Send + 'a>>;

/// Answers in this process.
struct Memory(moka::sync::Cache<Key, Arc<Kept>>);

impl Memory {
    fn new(spec: CacheSpec) -> Self {
        let weigh = |_: &Key, kept: &Arc<Kept>| {
            u32::try_from(kept.body.len()).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
        };
        let kept = moka::sync::Cache::builder()
            .max_capacity(spec.max_bytes)
            .weigher(weigh)
            .time_to_live(spec.ttl + STALE)
            .build();
        Self(kept)
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a Key) -> Getting<'a> {
        Box::pin(std::future::ready(self.0.get(key)))
    }

    fn put(&self, key: Key, kept: Arc<Kept>) {
        self.0.insert(key, kept);
    }
}

/// The answers of one service.
pub(crate) struct Cache {
    pub(crate) spec: CacheSpec,
    kept: Box<dyn Store>,
    /// Told when the one who asks has its answer, or will not have one.
    under_way: Mutex<HashMap<Key, watch::Receiver<()>>>,
}

/// An answer.
pub(crate) struct Kept {
    pub(crate) body: Bytes,
    pub(crate) content_type: HeaderValue,
    pub(crate) version: HeaderValue,
    at: Instant,
}

/// What a look into the cache comes to.
pub(crate) enum Look {
    Hit(Arc<Kept>),
    /// Nobody has asked: the answer may be kept.
    Miss(Keeper),
    /// Somebody asked and got no answer that could be kept.
    Alone,
}

/// Keeps an answer for others; those who wait for it are told when it is dropped.
pub(crate) struct Keeper {
    cache: Arc<Cache>,
    key: Key,
    version: HeaderValue,
    _told: watch::Sender<()>,
}

/// Collects a stream for its keeper.
pub(crate) struct Tee {
    keeper: Keeper,
    content_type: HeaderValue,
    events: BytesMut,
}

impl Cache {
    pub(crate) fn new(spec: CacheSpec) -> Self {
        Self { spec, kept: Box::new(Memory::new(spec)), under_way: Mutex::default() }
    }

    /// What `routed`, as `version` wants it, asks of that version, if answers to it may be kept.
    pub(crate) fn key(&self, routed: &Routed, version: &str) -> Option<Key> {
        let mut request: Map<String, Value> = serde_json::from_slice(&routed.body).ok()?;
        if !is_cacheable(routed.api, &request, &routed.headers) {
            return None;
        }
        // Who asks makes no difference to the answer.
        request.remove("user");
        let tenant = routed.client.as_ref().filter(|_| !self.spec.share_across_tenants);
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        };
        for part in [
            routed.path_and_query.as_str(),
            version,
            tenant.map_or("", |client| &client.tenant),
            // Keys are sorted, and white space is gone.
            &Value::Object(request).to_string(),
        ] {
            add(part.as_bytes());
        }
        for (name, value) in routed.shape.iter().flat_map(|shape| &shape.headers) {
            add(name.as_str().as_bytes());
            add(value.as_bytes());
        }
        Some(hash.finalize().into())
    }

    /// Looks for an answer, and waits for one that is under way until `deadline`.
    pub(crate) async fn look(self: &Arc<Self>, key: Key, version: HeaderValue, deadline: Instant) -> Look {
        if let Some(kept) = self.fresh(&key).await {
            return Look::Hit(kept);
        }
        let mut other = match self.lock().entry(key) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => {
                let (told, waiting) = watch::channel(());
                entry.insert(waiting);
                return Look::Miss(Keeper { cache: Arc::clone(self), key, version, _told: told });
            }
        };
        // An error says that the sender is gone, which is what is waited for.
        let _ = tokio::time::timeout_at(deadline.into(), other.changed()).await;
        self.fresh(&key).await.map_or(Look::Alone, Look::Hit)
    }

    async fn fresh(&self, key: &Key) -> Option<Arc<Kept>> {
        self.any(key).await.filter(|kept| kept.age() < self.spec.ttl)
    }

    /// An answer, even an old one.
    pub(crate) async fn any(&self, key: &Key) -> Option<Arc<Kept>> {
        self.kept.get(key).await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<()>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    pub(crate) fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.at)
    }
}

impl Keeper {
    /// Whether an answer of `version` is what others will ask for.
    pub(crate) fn is_for(&self, version: &Version) -> bool {
        self.version == version.header
    }

    pub(crate) fn keep(self, content_type: Option<&HeaderValue>, body: Bytes) {
        if body.len() <= MAX_KEPT {
            let content_type = content_type.cloned().unwrap_or(HeaderValue::from_static("application/json"));
            let kept = Kept { body, content_type, version: self.version.clone(), at: clock::now() };
            self.cache.kept.put(self.key, Arc::new(kept));
        }
    }

    pub(crate) fn tee(self, content_type: Option<&HeaderValue>) -> Tee {
        let content_type = content_type.cloned().unwrap_or(HeaderValue::from_static("text/event-stream"));
        Tee { keeper: self, content_type, events: BytesMut::new() }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.cache.lock().remove(&self.key);
    }
}

impl Tee {
    pub(crate) fn is_for(&self, version: &Version) -> bool {
        self.keeper.is_for(version)
    }

    /// `None` when the stream has become too long to be kept.
    pub(crate) fn push(mut self: Box<Self>, events: &[u8]) -> Option<Box<Self>> {
        self.events.extend_from_slice(events);
        (self.events.len() <= MAX_KEPT).then_some(self)
    }

    pub(crate) fn keep(self) {
        let Self { keeper, content_type, events } = self;
        keeper.keep(Some(&content_type), events.freeze());
    }
}

fn is_cacheable(api: Api, request: &Map<String, Value>, headers: &HeaderMap) -> bool {
    let says = |name: &str, what: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(what.as_bytes()))
    };
    let control = header::CACHE_CONTROL;
    if says(WISH, "off") || says(control.as_str(), "no-store") || says(control.as_str(), "no-cache") {
        return false;
    }
    let is_one = request.get("n").is_none_or(|n| n.is_null() || *n == 1);
    let is_cold = request.get("temperature").and_then(Value::as_f64) == Some(0.0);
    match api {
        Api::Embeddings => true,
        Api::Chat | Api::Completions | Api::Responses => is_one && (is_cold || says(WISH, "on")),
        Api::Other => false,
    }
}
