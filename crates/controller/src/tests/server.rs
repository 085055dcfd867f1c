//! The server on connections in memory, in a time that runs only when nothing else does.

use axum::serve::Listener;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use tokio::sync::mpsc;

use super::*;

struct Memory(mpsc::Receiver<DuplexStream>);

impl Listener for Memory {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A client's end of a new connection that holds up to `room` bytes.
async fn connect(world: &World, room: usize) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(room);
    let (sender, receiver) = mpsc::channel(1);
    sender.send(theirs).await.unwrap();
    let control = world.start().unwrap();
    tokio::spawn(async move {
        let _open = sender;
        crate::serve(Memory(receiver), control, Arc::default(), std::future::pending()).await;
    });
    ours
}

const GET: &[u8] = b"GET /api/v1/config HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn whoever_says_half_of_something_is_dropped() {
    let world = World::new(FILE);
    for said in [&b""[..], b"GET /api", &GET[..GET.len() - 2]] {
        let mut client = connect(&world, 64 * 1024).await;
        client.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_answers_are_finished_and_followers_cut() {
    let world = World::new(FILE);
    let (sender, receiver) = mpsc::channel(3);
    let mut clients = Vec::new();
    for said in [&b""[..], GET, b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        sender.send(theirs).await.unwrap();
        ours.write_all(said).await.unwrap();
        clients.push(ours);
    }
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let control = world.start().unwrap();
    let serving =
        tokio::spawn(crate::serve(Memory(receiver), control, Arc::default(), async { drop(ended.await) }));
    let mut answers = [Vec::new(), Vec::new(), Vec::new()];
    for (client, answer) in clients.iter_mut().zip(&mut answers).skip(1) {
        client.read_buf(answer).await.unwrap();
    }
    drop(end);
    serving.await.unwrap();
    for (client, answer) in clients.iter_mut().zip(&mut answers) {
        client.read_to_end(answer).await.unwrap();
    }
    assert!(answers[0].is_empty());
    assert!(answers[1].starts_with(b"HTTP/1.1 200") && answers[1].ends_with(b"}"));
    assert!(answers[2].starts_with(b"HTTP/1.1 200") && !answers[2].ends_with(b"0\r\n\r\n"));
    assert!(sender.is_closed(), "nobody is let in");
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_read_is_dropped() {
    let world = World::new(FILE);
    let mut client = connect(&world, 64).await;
    client.write_all(GET).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), 64, "what was in between, and no more");
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_for_more() {
    let world = World::new(FILE);
    let mut client = connect(&world, 64 * 1024).await;
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        let mut answer = vec![0; 17];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\n");
        // The rest comes at once, and the next request before long.
        while tokio::time::timeout(std::time::Duration::from_secs(1), client.read_buf(&mut answer))
            .await
            .is_ok()
        {}
    }
}
