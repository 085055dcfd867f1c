//! What a request will take, as far as can be told before it is answered.

use memchr::memmem;

use crate::Api;
use crate::Usage;
use crate::peek::Peek;

/// Bytes of a request body that make a token. English has about four; the JSON around it makes up for tighter scripts.
const BYTES_PER_TOKEN: u64 = 4;
/// The length of an answer that has no limit of its own.
const USUAL_ANSWER: u64 = 512;
/// How a file within the body begins: its length says nothing about tokens.
const FILE: &[u8] = b"\"data:";

/// Tokens of a request with this body. `asked` is what the body says, if that could be read.
pub fn usage(api: Api, body: &[u8], asked: Option<&Peek<'_>>) -> Usage {
    let output = match (api, asked) {
        (Api::Chat | Api::Completions | Api::Responses, Some(asked)) => {
            asked.max_tokens.unwrap_or(USUAL_ANSWER).saturating_mul(u64::from(asked.choices))
        }
        _ => 0,
    };
    let bytes = body.len() - files(body);
    Usage { input: (bytes as u64).div_ceil(BYTES_PER_TOKEN), output }
}

/// Bytes of files within a body. A file is a string that begins with `data:`; base64 has no quotes to escape.
fn files(body: &[u8]) -> usize {
    let mut bytes = 0;
    let mut at = 0;
    while let Some(found) = body.get(at..).and_then(|rest| memmem::find(rest, FILE)) {
        let start = at + found + FILE.len();
        let length = body.get(start..).and_then(|rest| memchr::memchr(b'"', rest)).unwrap_or(0);
        bytes += length;
        at = start + length + 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peek::peek;

    #[track_caller]
    fn check(api: Api, fields: &str, input: u64, output: u64) {
        let body = format!(r#"{{"model":"m"{fields}}}"#);
        let asked = peek(body.as_bytes()).expect("valid");
        assert_eq!(usage(api, body.as_bytes(), Some(&asked)), Usage { input, output }, "{fields}");
    }

    #[test]
    fn by_the_body_and_what_it_asks_for() {
        check(Api::Chat, "", 4, 512);
        check(Api::Chat, r#","max_tokens":10"#, 8, 10);
        check(Api::Completions, r#","max_tokens":10,"n":3"#, 9, 30);
        check(Api::Responses, r#","max_output_tokens":9"#, 9, 9);
        check(Api::Chat, r#","max_tokens":-5"#, 8, 512);
        check(Api::Chat, r#","max_tokens":1e300,"n":4000000000"#, 12, u64::MAX);
        check(Api::Embeddings, r#","max_tokens":10"#, 8, 0);
        assert_eq!(usage(Api::Other, &[b'x'; 4001], None), Usage { input: 1001, output: 0 });
        assert_eq!(usage(Api::Other, b"", None), Usage::default());
    }

    #[test]
    fn files_are_left_out() {
        let image = "A".repeat(1_000_000);
        check(Api::Chat, &format!(r#","x":"data:image/png;base64,{image}","y":"data:{image}""#), 10, 512);
        for broken in [&b"\"data:"[..], b"{\"data:AAAA", b"\"data:\"data:\""] {
            assert!(files(broken) <= broken.len());
        }
    }
}
