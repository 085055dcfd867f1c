//! Which headers pass, in either direction, and which heads can't be taken in two ways.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};

use crate::fault::Refusal;

/// Refuses what hyper lets pass although another server on the way could take it for another request.
pub(crate) fn check(head: &Parts, has_body: bool) -> Result<(), Refusal> {
    let refuse = |why| Err(Refusal::Ambiguous(why));
    // Any other coding would have to be undone, and two could be undone in two ways.
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|only| !only.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
    {
        return refuse("the only transfer coding is `chunked`, given once");
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let valid = match (hosts.next(), hosts.next()) {
        (None, _) => head.version != Version::HTTP_11,
        (Some(host), None) => is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    };
    if !valid {
        return refuse("there must be one `host`, and a valid one");
    }
    // Some servers do not read such a body, and take it for the next request.
    if has_body && matches!(head.method, Method::GET | Method::HEAD) {
        return refuse("GET and HEAD have no body");
    }
    Ok(())
}

/// A host and perhaps a port, or nothing at all.
fn is_host(value: &[u8]) -> bool {
    value.is_empty() || (!value.contains(&b'@') && Authority::try_from(value).is_ok())
}

/// Meant for the next hop only, or set anew by us.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, CONNECTION | TE | TRAILER | TRANSFER_ENCODING | UPGRADE | CONTENT_LENGTH)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// The client's business with us, not with a model server.
fn stays_here(name: &HeaderName) -> bool {
    matches!(*name, HOST | EXPECT | ACCEPT_ENCODING | AUTHORIZATION | COOKIE | PROXY_AUTHORIZATION)
        || matches!(name.as_str(), "x-api-key" | "api-key" | "x-request-id")
}

/// Servers that hand headers on as variables take `_` for `-`.
fn ends_here(name: &HeaderName) -> bool {
    if !name.as_str().contains('_') {
        return is_hop_by_hop(name) || stays_here(name);
    }
    HeaderName::try_from(name.as_str().replace('_', "-")).is_ok_and(|dashed| ends_here(&dashed))
}

/// Headers that `connection` names are hop-by-hop as well.
fn named_by_connection(headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool {
    let named: Vec<&str> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close"))
        .collect();
    move |name| named.iter().any(|named| name.as_str().eq_ignore_ascii_case(named))
}

/// The headers of an attempt. Neither side's credentials reach the other: the client's end here, and the
/// endpoint gets its own. `ours` take the place of the client's, which can't keep them out either.
pub(crate) fn to_upstream(
    client: &HeaderMap,
    host: &HeaderValue,
    credentials: Option<&HeaderValue>,
    request_id: &HeaderValue,
    ours: &[(HeaderName, HeaderValue)],
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(client.len() + 4 + ours.len());
    let named = named_by_connection(client);
    headers.insert(HOST, host.clone());
    for (name, value) in client {
        if !ends_here(name) && !named(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in ours {
        headers.insert(name.clone(), value.clone());
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(crate::record::REQUEST_ID, request_id.clone());
    if let Some(credentials) = credentials {
        headers.insert(AUTHORIZATION, credentials.clone());
    }
    headers
}

/// Strips from an answer what is not for the client.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = {
        let named = named_by_connection(headers);
        headers.keys().filter(|name| is_hop_by_hop(name) || named(name)).cloned().collect()
    };
    for name in named {
        headers.remove(name);
    }
    for name in [SET_COOKIE, PROXY_AUTHENTICATE] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hop_by_hop_headers_stop_here() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("host", "gateway"),
            ("authorization", "Bearer client"),
            ("x-api-key", "client"),
            ("cookie", "a=b"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("accept-encoding", "gzip"),
            ("openai-organization", "org"),
            ("x-multi", "1"),
            ("x-multi", "2"),
            ("transfer_encoding", "chunked"),
            ("x_api_key", "client"),
            ("content_length", "0"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("x_own", "1"),
        ] {
            client.append(name, HeaderValue::from_static(value));
        }
        let id = HeaderValue::from_static("id");
        let host = HeaderValue::from_static("engine:8000");
        let sent = to_upstream(&client, &host, None, &id, &[]);
        let mut names: Vec<_> = sent.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "accept-encoding: identity",
                "host: engine:8000",
                "openai-organization: org",
                "x-multi: 1",
                "x-multi: 2",
                "x-request-id: id",
                "x_own: 1",
            ]
        );
        let key = HeaderValue::from_static("Bearer engine");
        assert_eq!(to_upstream(&client, &host, Some(&key), &id, &[])[AUTHORIZATION], key);
        // A version's own header comes in place of all of the client's, also where the client says it is hop-by-hop.
        let ours = [("x-multi", "3"), ("x-secret-hop", "4")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let sent = to_upstream(&client, &host, None, &id, &ours);
        let all: Vec<_> = sent.get_all("x-multi").iter().collect();
        assert_eq!((all, &sent["x-secret-hop"]), (vec![&ours[0].1], &ours[1].1));
    }
}
