//! A client of HTTP/2, over whatever it is given.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::client::{CHAT, End, Reply, hi, soon};

/// More than one stream's window, so that one which is not read never holds up the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Not a multiple of what the gateway sends at once.
pub(crate) const STREAM_WINDOW: u32 = 60 * 1024;

#[derive(Clone)]
pub(crate) struct H2 {
    sender: SendRequest<Full<Bytes>>,
}

impl H2 {
    /// With prior knowledge.
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap()).await
    }

    pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let handshake = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = soon("handshake", handshake).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("http://gateway{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        soon("an answer", self.sender.clone().send_request(request)).await
    }

    /// Sends a request and waits for the whole answer.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        match self.send(method, path, headers, body).await {
            Ok(response) => reply(response).await,
            Err(_) => Reply { status: 0, headers: Vec::new(), body: Vec::new(), end: End::Reset },
        }
    }

    pub(crate) async fn chat(&self, stream: bool) -> Reply {
        self.call("POST", CHAT, &[], hi(stream)).await
    }

    /// A stream of which the head has come.
    pub(crate) async fn begin(&self) -> Response<Incoming> {
        let response = self.send("POST", CHAT, &[], hi(true)).await.unwrap();
        assert_eq!(response.status(), 200);
        response
    }
}

/// The next piece of a body.
pub(crate) async fn piece(response: &mut Response<Incoming>) -> Bytes {
    let frame = soon("a piece", response.body_mut().frame()).await.unwrap().unwrap();
    frame.into_data().unwrap_or_default()
}

/// What is left of an answer.
pub(crate) async fn reply(mut response: Response<Incoming>) -> Reply {
    let text = |value: &hyper::header::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let mut reply =
        Reply { status: response.status().as_u16(), headers, body: Vec::new(), end: End::Complete };
    loop {
        match soon("more of the body", response.body_mut().frame()).await {
            Some(Ok(frame)) => reply.body.extend(frame.into_data().unwrap_or_default()),
            Some(Err(_)) => reply.end = End::Reset,
            // A stream that is reset without a reason looks as if it had ended.
            None if !hyper::body::Body::is_end_stream(response.body()) => reply.end = End::Reset,
            None => {}
        }
        if reply.end == End::Reset || hyper::body::Body::is_end_stream(response.body()) {
            return reply;
        }
    }
}

/// Remembers what has been read.
#[derive(Default, Clone)]
pub(crate) struct Tape(Arc<Mutex<Vec<u8>>>);

/// Kinds of frames (RFC 9113, section 6), and the flag of a stream's last one.
pub(crate) const DATA: u8 = 0;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;

impl Tape {
    /// Kind and flags of each frame so far.
    pub(crate) fn frames(&self) -> Vec<(u8, u8)> {
        let read = self.0.lock().unwrap();
        let mut rest = &read[..];
        let mut frames = Vec::new();
        while let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            frames.push((*kind, *flags));
            rest = payload.get(length..).unwrap_or_default();
        }
        frames
    }

    /// Streams that had ended, with data, when the client was told to go; `None` if it has not been.
    pub(crate) fn ended_before_goaway(&self) -> Option<usize> {
        let frames = self.frames();
        let at = frames.iter().position(|(kind, _)| *kind == GOAWAY)?;
        Some(frames[..at].iter().filter(|(kind, flags)| *kind == DATA && flags & END_STREAM != 0).count())
    }
}

/// A connection whose bytes are remembered.
pub(crate) struct Taped<S>(pub(crate) S, pub(crate) Tape);

impl<S: AsyncRead + Unpin> AsyncRead for Taped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, buffer);
        self.1.0.lock().unwrap().extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taped<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
