//! [`Fetcher`]: files by HTTP, read like files.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::table::{Scheme, Target};
use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::notify::Client;

/// Until the head of an answer has come, each time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence within a body.
const IDLE: Duration = Duration::from_secs(60);
/// From one server to the next.
const MOST_REDIRECTS: usize = 5;
/// Pieces of a body that wait to be written; the server has to wait then.
const MAX_PIECES: usize = 16;

/// Fetches by HTTP. Its calls block, and are for threads that may.
pub(crate) struct Fetcher {
    client: Arc<Client>,
    runtime: Handle,
}

/// An answer.
pub(super) struct Fetched {
    pub(super) body: Body,
    pub(super) length: Option<u64>,
}

/// The body of an answer, as it comes.
pub(super) struct Body {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Fetcher {
    /// To be called where there is a runtime.
    pub(crate) fn new() -> Self {
        Self { client: Arc::new(Client::new()), runtime: Handle::current() }
    }

    /// Begins to fetch `url`, whose `${NAME}` are filled in. What is said of it never is.
    pub(super) fn fetch(&self, url: &str) -> Result<Fetched, String> {
        let failed = |reason: String| format!("`{url}`: {reason}");
        let (mut target, mut path) = backstop_config::fetch_url(url)?;
        for _ in 0..=MOST_REDIRECTS {
            let client = Arc::clone(&self.client);
            let (to, asked) = (target.clone(), path.clone());
            // On the runtime's threads, so that what serves this connection goes on when the call has returned.
            let asking =
                self.runtime.spawn(async move { timeout(HEAD_TIMEOUT, ask(&client, &to, &asked)).await });
            let answer = self.runtime.block_on(asking).map_err(|_| failed("it can't be asked".to_owned()))?;
            let within = HEAD_TIMEOUT.as_secs();
            let answer = answer.map_err(|_| failed(format!("no answer within {within} s")))?;
            let answer = answer.map_err(failed)?;
            let status = answer.status();
            if status.is_redirection() {
                let to = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let to = to.ok_or_else(|| failed(format!("{status}, and not where to")))?;
                (target, path) = redirected(&target, to).map_err(failed)?;
                continue;
            }
            if status != 200 {
                return Err(failed(format!("the server answered {status}")));
            }
            let length =
                answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
            return Ok(Fetched { body: self.read(answer.into_body()), length });
        }
        Err(failed(format!("more than {MOST_REDIRECTS} redirections")))
    }

    fn read(&self, mut body: Incoming) -> Body {
        let (sender, pieces) = mpsc::channel(MAX_PIECES);
        // Ends when nobody reads any more.
        drop(self.runtime.spawn(async move {
            loop {
                let piece = match timeout(IDLE, body.frame()).await {
                    // The end, which is not the same as that nothing more comes.
                    Ok(None) => Ok(Bytes::new()),
                    Ok(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => Ok(data),
                        _ => continue,
                    },
                    Ok(Some(Err(error))) => Err(io::Error::other(format!("it was cut short: {error}"))),
                    Err(_) => Err(io::Error::other(format!("nothing came for {} s", IDLE.as_secs()))),
                };
                let is_last = piece.as_ref().map_or(true, Bytes::is_empty);
                if sender.send(piece).await.is_err() || is_last {
                    return;
                }
            }
        }));
        Body { pieces, piece: Bytes::new() }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let piece = self.pieces.blocking_recv();
            self.piece = piece.unwrap_or_else(|| Err(io::Error::other("it was cut short")))?;
        }
        let read = buffer.len().min(self.piece.len());
        self.piece.split_to(read).copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

async fn ask(client: &Client, target: &Target, path: &str) -> Result<hyper::Response<Incoming>, String> {
    let default_port = if target.scheme == Scheme::Http { 80 } else { 443 };
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let host = if target.port == default_port { host } else { format!("{host}:{}", target.port) };
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("backstop/", env!("CARGO_PKG_VERSION")))
        // What is hashed are the file's own bytes.
        .header(ACCEPT_ENCODING, "identity")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = client.connect(target).await?;
    let failed = |error: hyper::Error| format!("no answer: {error}");
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the body.
    drop(tokio::spawn(connection));
    sender.send_request(request).await.map_err(failed)
}

/// Where a redirection leads, which may be told without the server.
fn redirected(from: &Target, to: &str) -> Result<(Target, String), String> {
    if to.starts_with('/') && !to.starts_with("//") {
        return Ok((from.clone(), to.to_owned()));
    }
    // What the server says is not for our environment to fill in.
    let (target, path) = backstop_config::fetch_url(&to.replace("${", "%24%7B"))
        .map_err(|_| "it leads to something that is not an HTTP URL".to_owned())?;
    if from.scheme == Scheme::Https && target.scheme == Scheme::Http {
        return Err("it leads away from HTTPS".to_owned());
    }
    Ok((target, path))
}
