//! A DNS server on a loopback port, over UDP and TCP, that says what a test wants.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// The most that goes into an answer over UDP, in bytes.
const MAX_UDP: usize = 1232;

/// What is said of a name.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    /// Of both families; asked for one of which there is none, the answer is empty.
    Addresses {
        ttl: u32,
        addresses: Vec<IpAddr>,
    },
    /// Is another name, and what follows.
    Alias {
        ttl: u32,
        name: &'static str,
        says: Box<Say>,
    },
    /// Is another name; whoever wants to know more has to ask.
    AliasOnly {
        ttl: u32,
        name: &'static str,
    },
    /// An error code: 2 = SERVFAIL, 3 = NXDOMAIN, 5 = REFUSED.
    Code(u8),
    Garbage,
    Nothing,
    /// The first for IPv4, the second for IPv6.
    Each(Box<[Say; 2]>),
}

#[derive(Clone)]
pub(crate) struct Dns {
    pub(crate) addr: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Say>>>,
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
}

pub(crate) fn addresses(ttl: u32, text: &str) -> Say {
    Say::Addresses { ttl, addresses: text.split_whitespace().map(|it| it.parse().unwrap()).collect() }
}

impl Dns {
    /// Knows no name yet.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let dns = Self {
            addr: udp.local_addr().unwrap(),
            zone: Arc::default(),
            udp: Arc::default(),
            tcp: Arc::default(),
        };
        tokio::spawn({
            let dns = dns.clone();
            async move {
                let mut question = [0; 2048];
                while let Ok((length, peer)) = udp.recv_from(&mut question).await {
                    dns.udp.fetch_add(1, SeqCst);
                    if let Some(mut answer) = dns.answer(&question[..length]) {
                        if answer.len() > MAX_UDP {
                            // Truncated: header and question only.
                            answer[2] |= 2;
                            answer[6..8].fill(0);
                            answer.truncate(question_end(&question));
                        }
                        let _ = udp.send_to(&answer, peer).await;
                    }
                }
            }
        });
        tokio::spawn({
            let dns = dns.clone();
            async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    let dns = dns.clone();
                    tokio::spawn(async move {
                        while let Ok(length) = stream.read_u16().await {
                            let mut question = vec![0; length.into()];
                            stream.read_exact(&mut question).await.unwrap();
                            dns.tcp.fetch_add(1, SeqCst);
                            if let Some(answer) = dns.answer(&question) {
                                stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                                stream.write_all(&answer).await.unwrap();
                            }
                        }
                    });
                }
            }
        });
        dns
    }

    pub(crate) fn set(&self, name: &str, say: Say) {
        self.zone.lock().unwrap().insert(name.to_owned(), say);
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> usize {
        self.udp.load(SeqCst) + self.tcp.load(SeqCst)
    }

    pub(crate) fn asked_by_tcp(&self) -> usize {
        self.tcp.load(SeqCst)
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let end = question_end(question);
        let v6 = question[end - 4..end - 2] == [0, 28];
        let name = name_of(&question[12..end - 4]);
        let say = self.zone.lock().unwrap().get(&name).cloned().unwrap_or(Say::Code(3));
        // A response to a recursive question.
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        answer.extend(&question[12..end]);
        let mut owner = question[12..end - 4].to_vec();
        let mut count: u16 = 0;
        let mut say = if let Say::Each(both) = say { both[usize::from(v6)].clone() } else { say };
        loop {
            match say {
                Say::Addresses { ttl, addresses } => {
                    for address in addresses.iter().filter(|it| it.is_ipv6() == v6) {
                        let data = match address {
                            IpAddr::V4(it) => it.octets().to_vec(),
                            IpAddr::V6(it) => it.octets().to_vec(),
                        };
                        record(&mut answer, &owner, if v6 { 28 } else { 1 }, ttl, &data);
                        count += 1;
                    }
                    break;
                }
                Say::Alias { ttl, name, says } => {
                    let target = encoded(name);
                    record(&mut answer, &owner, 5, ttl, &target);
                    (count, owner, say) = (count + 1, target, *says);
                }
                Say::AliasOnly { ttl, name } => {
                    record(&mut answer, &owner, 5, ttl, &encoded(name));
                    count += 1;
                    break;
                }
                Say::Code(code) => {
                    answer[3] |= code;
                    break;
                }
                Say::Garbage => return Some([&question[..2], b"\xff\xff\xff no DNS at all"].concat()),
                Say::Nothing => return None,
                Say::Each(_) => unreachable!("has been chosen from"),
            }
        }
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        Some(answer)
    }
}

/// Where the first question ends.
fn question_end(message: &[u8]) -> usize {
    let mut at = 12;
    while message[at] != 0 {
        at += usize::from(message[at]) + 1;
    }
    at + 5
}

fn name_of(mut labels: &[u8]) -> String {
    let mut name = Vec::new();
    while labels[0] != 0 {
        let length = usize::from(labels[0]);
        name.push(String::from_utf8(labels[1..=length].to_ascii_lowercase()).unwrap());
        labels = &labels[length + 1..];
    }
    name.join(".")
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len().try_into().unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn record(message: &mut Vec<u8>, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) {
    message.extend(owner);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend(ttl.to_be_bytes());
    message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    message.extend(data);
}
