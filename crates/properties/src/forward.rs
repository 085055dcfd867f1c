use backstop_gateway::fuzzing::request_head;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

const LENGTH: &str = "7";
/// Names that a model server must not get from a client, nor take for such a name.
const KEPT_BACK: [&str; 13] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "api-key",
];

/// Whatever head a client sends, the model server gets one request with one length, no coding, and none of the
/// client's credentials.
pub fn forward(bytes: &[u8]) {
    let mut slots = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut slots);
    if !matches!(parsed.parse(bytes), Ok(httparse::Status::Complete(_))) {
        return;
    }
    let method = parsed.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
    let uri = parsed.path.and_then(|path| path.parse::<Uri>().ok());
    let (Some(method), Some(uri)) = (method, uri) else { return };
    let mut client = HeaderMap::new();
    for header in parsed.headers {
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(header.name.as_bytes()), HeaderValue::from_bytes(header.value))
        else {
            return;
        };
        client.append(name, value);
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    is_one_request(&request_head(&method, target, &client, 7), &method, target);
}

fn is_one_request(head: &[u8], method: &Method, target: &str) {
    let lines = head.strip_suffix(b"\r\n\r\n").expect("a whole head");
    // No line can hide in another: neither CR nor LF is anywhere but at the ends.
    let mut lines = lines.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    assert_eq!(first, format!("{method} {target} HTTP/1.1").as_bytes());
    assert_eq!(first.iter().filter(|byte| **byte == b' ').count(), 2);
    let (mut hosts, mut lengths, mut keys) = (0, 0, 0);
    for line in lines {
        assert!(!line.iter().any(|byte| matches!(byte, b'\r' | 0)), "{line:?}");
        let colon = line.iter().position(|byte| *byte == b':').expect("a header");
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // Servers that hand headers on as variables take `_` for `-`.
        let name = std::str::from_utf8(name).expect("ASCII").to_ascii_lowercase().replace('_', "-");
        assert!(!name.is_empty() && !KEPT_BACK.contains(&name.as_str()), "{name}");
        let ours = match name.as_str() {
            "host" => (&mut hosts, "engine:8000"),
            "content-length" => (&mut lengths, LENGTH),
            "authorization" => (&mut keys, "Bearer engine"),
            _ => continue,
        };
        assert_eq!(value, ours.1.as_bytes(), "{name}");
        *ours.0 += 1;
    }
    assert_eq!((hosts, lengths, keys), (1, 1, 1));
}
