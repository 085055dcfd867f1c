//! A client that shows how an answer ended.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How the transport ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As HTTP framing says it should.
    Complete,
    /// Closed in the middle.
    Fin,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Conn {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(addr).await.unwrap(), buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads more; the way of closing if there is no more.
    async fn fill(&mut self) -> Result<(), End> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(End::Fin),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) => panic!("{error}"),
        }
    }

    async fn until(&mut self, needle: &[u8]) -> Result<Vec<u8>, End> {
        loop {
            if let Some(at) = self.buffer.windows(needle.len()).position(|it| it == needle) {
                let rest = self.buffer.split_off(at + needle.len());
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            self.fill().await?;
        }
    }

    pub(crate) async fn head(&mut self) -> Result<(u16, String), End> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).unwrap().to_lowercase();
        Ok((head[9..12].parse().unwrap(), head))
    }

    /// One chunk of a chunked body; empty at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Vec<u8>, End> {
        let size = String::from_utf8(self.until(b"\r\n").await?).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        while self.buffer.len() < size + 2 {
            self.fill().await?;
        }
        let rest = self.buffer.split_off(size + 2);
        let mut chunk = std::mem::replace(&mut self.buffer, rest);
        chunk.truncate(size);
        Ok(chunk)
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        let (status, head) = match self.head().await {
            Ok(head) => head,
            Err(end) => return Reply { status: 0, head: String::new(), body: Vec::new(), end },
        };
        let mut body = Vec::new();
        let end = if head.contains("transfer-encoding: chunked") {
            loop {
                match self.chunk().await {
                    Ok(chunk) if chunk.is_empty() => break End::Complete,
                    Ok(chunk) => body.extend(chunk),
                    Err(end) => break end,
                }
            }
        } else {
            let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
            let length: usize = length.parse().unwrap();
            let end = loop {
                if self.buffer.len() >= length {
                    break End::Complete;
                }
                if let Err(end) = self.fill().await {
                    break end;
                }
            };
            let rest = self.buffer.split_off(length.min(self.buffer.len()));
            body = std::mem::replace(&mut self.buffer, rest);
            end
        };
        Reply { status, head, body, end }
    }
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The payloads of all whole events.
    pub(crate) fn events(&self) -> Vec<String> {
        events(&self.text())
    }

    /// All content of choice 0 that arrived in whole events.
    pub(crate) fn content(&self) -> String {
        let json = self.events().into_iter().filter_map(|event| serde_json::from_str::<Value>(&event).ok());
        json.filter(|it| it["choices"][0]["index"] == 0)
            .map(|it| {
                let choice = &it["choices"][0];
                choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("").to_owned()
            })
            .collect()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.events().last().is_some_and(|event| event == "[DONE]")
    }

    pub(crate) fn has_finish(&self) -> bool {
        self.text().contains("\"finish_reason\":\"")
    }
}

pub(crate) fn events(text: &str) -> Vec<String> {
    let mut blocks: Vec<_> = text.split("\n\n").collect();
    blocks.pop();
    let data = |block: &str| block.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
    blocks.into_iter().filter_map(data).collect()
}

pub(crate) async fn call(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let mut conn = Conn::open(addr).await;
    conn.send(method, path, headers, body).await;
    conn.reply().await
}

pub(crate) async fn post(addr: SocketAddr, path: &str, body: &Value) -> Reply {
    call(addr, "POST", path, "", &body.to_string()).await
}

/// A chat about "hi" with an `x-sim-fault` header.
pub(crate) async fn faulty_chat(addr: SocketAddr, fault: &str, stream: bool) -> Reply {
    call(addr, "POST", "/v1/chat/completions", &format!("x-sim-fault: {fault}\r\n"), &hi(stream)).await
}

pub(crate) fn hi(stream: bool) -> String {
    serde_json::json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
        .to_string()
}

impl Conn {
    /// Reads chunks until the connection ends.
    pub(crate) async fn reply_end(&mut self) -> End {
        loop {
            match self.chunk().await {
                Ok(chunk) if chunk.is_empty() => return End::Complete,
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.fill().await {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }
}
