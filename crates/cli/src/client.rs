//! The smallest HTTP client that the commands need.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends one request on a connection of its own.
pub(crate) async fn send(
    addr: SocketAddr,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Status and body of a GET.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, Bytes)> {
    let request = Request::get(path).header("host", addr.to_string()).body(Full::new(Bytes::new()))?;
    answer(addr, request).await
}

/// Status and body of a POST.
pub(crate) async fn post(
    addr: SocketAddr,
    path: &str,
    body: &serde_json::Value,
) -> anyhow::Result<(u16, Bytes)> {
    let request =
        Request::post(path).header("host", addr.to_string()).header("content-type", "application/json");
    answer(addr, request.body(Full::new(Bytes::from(body.to_string())))?).await
}

async fn answer(addr: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<(u16, Bytes)> {
    let answered = async {
        let response = send(addr, request).await?;
        let status = response.status().as_u16();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::time::timeout(TIMEOUT, answered).await.context("no answer within 2 s")?
}
