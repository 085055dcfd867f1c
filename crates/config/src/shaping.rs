//! What a version may change in requests.

use serde::{Serialize, Serializer};

use crate::http::HeaderName;
use crate::units::{Complaint, Unit, unit};

/// A field of a request's body that a version may set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Param(pub(crate) String);

unit!(Param);

impl Unit for Param {
    const FORMAT: &'static str = "request-param";
    const EXPECTED: &'static str = "a parameter such as `temperature`; not what is asked (`messages`, `prompt`, `input`), of which `model`, nor `stream`";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const CLIENTS: [&str; 5] = ["model", "messages", "prompt", "input", "stream"];
        if text.is_empty() || text.len() > 256 {
            return Err(Complaint::new("is not the name of a parameter", Self::EXPECTED));
        }
        // Some engines do not mind the case.
        if CLIENTS.iter().any(|name| text.eq_ignore_ascii_case(name)) {
            return Err(Complaint::new("is for the client to say", Self::EXPECTED));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Serialize for Param {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A header that a version may set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestHeader(pub(crate) String);

unit!(RequestHeader);

impl Unit for RequestHeader {
    const FORMAT: &'static str = "request-header";
    const EXPECTED: &'static str = "a header of the request's own, such as `x-namespace`; none of the connection's, of the body's or with credentials";

    fn parse(text: &str) -> Result<Self, Complaint> {
        const NOT: Complaint =
            Complaint::new("is not a header that a version can set", RequestHeader::EXPECTED);
        /// About the connection or the body, which the gateway knows better, or between it and its client.
        const OURS: [&str; 16] = [
            "accept-encoding",
            "connection",
            "content-encoding",
            "content-length",
            "content-type",
            "cookie",
            "expect",
            "host",
            "http2-settings",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "x-request-id",
        ];
        const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "x-api-key", "api-key"];
        let HeaderName(name) = HeaderName::parse(text)
            .map_err(|_| Complaint::new("is not the name of a header", Self::EXPECTED))?;
        // Servers that hand headers on as variables take `_` for `-`.
        let dashed = name.replace('_', "-");
        if CREDENTIALS.contains(&dashed.as_str()) {
            return Err(NOT.hint("credentials go into `api_key` of the endpoints"));
        }
        if OURS.contains(&dashed.as_str()) {
            return Err(NOT);
        }
        Ok(Self(name))
    }
}

impl Serialize for RequestHeader {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
