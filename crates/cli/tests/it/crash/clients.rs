//! Clients of a service whose process may end at any moment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{CLIENTS, chat, route, routes_of};
use crate::backstop::Backstop;

/// Clients that ask until they are dropped. Where there is no answer they wait for the next process.
pub(super) struct Clients {
    process: Arc<Mutex<Process>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Process {
    number: u64,
    addr: SocketAddr,
    directory: PathBuf,
    /// By the number of the process: connections without an answer.
    broken: BTreeMap<u64, u64>,
    /// Answers that should have been others.
    wrong: Vec<String>,
}

impl Clients {
    pub(super) fn of(backstop: &Backstop) -> Self {
        let process = Process {
            number: 0,
            addr: backstop.addr,
            directory: backstop.path(""),
            broken: BTreeMap::new(),
            wrong: Vec::new(),
        };
        let process = Arc::new(Mutex::new(process));
        let client = |index| tokio::spawn(be_a_client(Arc::clone(&process), index + 1 == CLIENTS));
        let tasks = (0..CLIENTS).map(client).collect();
        Self { process, tasks }
    }

    pub(super) fn turn_to(&self, backstop: &Backstop) {
        let mut process = self.process.lock().unwrap();
        process.number += 1;
        process.addr = backstop.addr;
    }

    /// Only the end of a process has cost answers.
    pub(super) fn none_lost(&self, point: &str, backstop: &Backstop) {
        let process = self.process.lock().unwrap();
        assert!(process.wrong.is_empty(), "point {point}: {:#?}\n{}", process.wrong, backstop.text());
        assert_eq!(process.broken.get(&process.number), None, "point {point}: without a crash");
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn be_a_client(process: Arc<Mutex<Process>>, ruled: bool) {
    loop {
        let (number, addr, directory) = {
            let process = process.lock().unwrap();
            (process.number, process.addr, process.directory.clone())
        };
        let vetoed = route(&routes_of(&directory)).vetoed;
        let reply = chat(addr, ruled, if vetoed { "x-after-veto: yes\r\n" } else { "" }).await;
        if let Some(reply) = reply {
            let version = reply.header("x-backstop-version");
            if reply.status != 200 || (vetoed && version != Some("v1")) {
                process.lock().unwrap().wrong.push(format!(
                    "process {number}, vetoed: {vetoed}, {} {}",
                    reply.status,
                    reply.text()
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        *process.lock().unwrap().broken.entry(number).or_default() += 1;
        while process.lock().unwrap().number == number {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
