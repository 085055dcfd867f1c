//! Which headers pass, in either direction.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};

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
/// endpoint gets its own.
pub(crate) fn to_upstream(
    client: &HeaderMap,
    host: &HeaderValue,
    credentials: Option<&HeaderValue>,
    request_id: &HeaderValue,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(client.len() + 4);
    let named = named_by_connection(client);
    headers.insert(HOST, host.clone());
    for (name, value) in client {
        if !ends_here(name) && !named(name) {
            headers.append(name.clone(), value.clone());
        }
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
        let sent = to_upstream(&client, &host, None, &id);
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
        assert_eq!(to_upstream(&client, &host, Some(&key), &id)[AUTHORIZATION], key);
    }
}
