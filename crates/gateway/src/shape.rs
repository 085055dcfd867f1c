//! What a version changes in the requests that it gets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_core::table::ShapeSpec;
use backstop_openai::{canned, shape};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::request::Routed;
use crate::table::Version;

/// A version's own system prompt, parameters and headers.
pub(crate) struct Shape {
    system: Option<String>,
    params: BTreeMap<String, Value>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Shape {
    /// `None` if it changes nothing.
    pub(crate) fn new(spec: &ShapeSpec) -> Option<Arc<Self>> {
        if *spec == ShapeSpec::default() {
            return None;
        }
        let header = |(name, value): (&String, &String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        Some(Arc::new(Self {
            system: spec.system.clone(),
            params: spec.params.clone(),
            headers: spec.headers.iter().filter_map(header).collect(),
        }))
    }
}

impl Routed {
    /// The request as `version` wants it. What it is made from is always the client's own: the next attempt may go to another
    /// version.
    pub(crate) fn shaped(&self, version: &Version) -> Cow<'_, Self> {
        version.shape.as_ref().map_or(Cow::Borrowed(self), |shape| Cow::Owned(self.shaped_by(shape)))
    }

    pub(crate) fn shaped_by(&self, shape: &Arc<Shape>) -> Self {
        let body = shape::shaped(self.api, &self.body, shape.system.as_deref(), &shape.params);
        let mut shaped = body.map_or_else(|| self.clone(), |body| self.with_body(body));
        // A shorter answer was the condition.
        if let Some(body) = self.most.and_then(|most| canned::shorter(self.api, &shaped.body, most)) {
            shaped = shaped.with_body(body);
        }
        shaped.shape = Some(Arc::clone(shape));
        shaped
    }
}
