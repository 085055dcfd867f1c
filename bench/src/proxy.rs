//! The bare proxy: a hyper server and a hyper-util client with a connection pool, nothing else.
//!
//! It is the floor for a proxy built on these libraries; it must not learn anything.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use hyper::Uri;
use hyper::body::Incoming;
use hyper::http::uri::{Authority, Scheme};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::upstream::listen;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    // The accept loop runs on a worker: the main thread would be one more.
    let (address, upstream) = (args.listen, args.upstream);
    runtime.block_on(runtime.spawn(async move { serve(address, upstream).await }))?
}

async fn serve(address: SocketAddr, upstream: SocketAddr) -> Result<()> {
    let listener = listen(address)?;
    let authority: Authority = upstream.to_string().parse()?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    loop {
        let (stream, _) = listener.accept().await.context("can't accept")?;
        stream.set_nodelay(true)?;
        let (client, authority) = (client.clone(), authority.clone());
        tokio::spawn(async move {
            let forward = service_fn(|mut request: hyper::Request<Incoming>| {
                let mut parts = std::mem::take(request.uri_mut()).into_parts();
                parts.scheme = Some(Scheme::HTTP);
                parts.authority = Some(authority.clone());
                *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
                client.request(request)
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), forward)
                .await;
        });
    }
}
