//! Somebody is told of a failover, whatever happens to the process that is to tell it.

use std::net::SocketAddr;

use backstop_engine_sim::Fault;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::backstop::{Backstop, config, sim};
use crate::client::until;

/// The next thing that is told at `address`.
async fn told(address: SocketAddr) -> Value {
    let listener = TcpListener::bind(address).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = String::new();
    let body = loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the whole of it comes: {read}");
        read += std::str::from_utf8(&bytes[..count]).unwrap();
        let body = read.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body));
        if let Some(Ok(body)) = body {
            break body;
        }
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    body
}

#[tokio::test]
async fn a_failover_is_told_after_kill() {
    let sims = [sim(0, 3).await, sim(0, 3).await];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let notify = format!("notify: [{{ webhook: \"http://{address}/s3cr3t\" }}]\n");
    let mut backstop = Backstop::serve(&(notify + &config(&[&sims[0], &sims[1]])), &[]).await;
    backstop.ready().await;
    sims[1].set_fault(Fault::Health { status: 503 });
    until("somebody is to be told", || backstop.logged("can't be told now")).await;
    assert!(!backstop.text().contains("s3cr3t"), "{}", backstop.text());
    backstop.kill_and_restart().await;
    let told = told(address).await;
    assert_eq!((&told["topic"], &told["state"]), (&"failover".into(), &"unhealthy".into()));
    assert_eq!(told["labels"]["endpoint"], sims[1].url().as_str());
}
