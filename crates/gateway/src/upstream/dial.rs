//! A connection to whichever address of a server accepts first, as RFC 8305 does it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

/// How long an address may take before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);

type Attempt = Pin<Box<dyn Future<Output = io::Result<(TcpStream, IpAddr)>> + Send>>;

/// Tries the next of `addresses` when one fails or is slow, and goes on with those begun. Has no deadline of its own.
pub(super) async fn dial(addresses: Vec<IpAddr>, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    if let [address] = *addresses {
        return connect(address, port).await;
    }
    let mut running: Vec<Attempt> = Vec::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "there is no address to connect to");
    for address in addresses {
        running.push(Box::pin(connect(address, port)));
        match tokio::time::timeout(STAGGER, first(&mut running)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => failed = error,
            Err(_) => {}
        }
    }
    while !running.is_empty() {
        match first(&mut running).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The first to end, which is taken out.
async fn first(running: &mut Vec<Attempt>) -> io::Result<(TcpStream, IpAddr)> {
    let (ended, result) = poll_fn(|cx| {
        let mut polled = running.iter_mut().enumerate();
        let ended = polled.find_map(|(i, attempt)| match attempt.as_mut().poll(cx) {
            Poll::Ready(result) => Some((i, result)),
            Poll::Pending => None,
        });
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await;
    drop(running.swap_remove(ended));
    result
}

async fn connect(address: IpAddr, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let stream = TcpStream::connect(SocketAddr::new(address, port)).await?;
    stream.set_nodelay(true)?;
    Ok((stream, address))
}
