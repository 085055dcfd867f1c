//! What Backstop takes: memory, descriptors and threads, each second.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::api::Admin;
use crate::load::Gauge;

const EVERY: Duration = Duration::from_secs(1);

/// One look.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    pub(crate) open_streams: u64,
    pub(crate) requests: u64,
    /// Streams carried on elsewhere so far, by Backstop's account.
    pub(crate) resumes: u64,
    /// Attempts that Backstop has blamed each replica for; `None` if it does not know the replica now.
    pub(crate) failures: Vec<Option<u64>>,
}

/// Looks until it is dropped.
pub(crate) struct Watch {
    samples: Rc<RefCell<Vec<Sample>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// To be called on a `LocalSet`.
    pub(crate) fn start(id: u32, admin: Admin, urls: Vec<String>, gauge: Gauge, started: Instant) -> Self {
        let samples = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&samples);
        let task = tokio::task::spawn_local(async move {
            let mut looks = tokio::time::interval(EVERY);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                // What cannot be read is missed by the judge, who has its own way to see whether Backstop runs.
                let (Some(process), Ok(metrics)) = (read(id), admin.metrics().await) else { continue };
                let counts = gauge.counts();
                kept.borrow_mut().push(Sample {
                    at: started.elapsed().as_secs_f64(),
                    memory_kib: process.memory_kib,
                    descriptors: process.descriptors,
                    threads: process.threads,
                    open_streams: gauge.open_streams(),
                    requests: counts.requests,
                    resumes: metrics.resumes,
                    failures: urls.iter().map(|url| metrics.failures.get(url).copied()).collect(),
                });
            }
        });
        Self { samples, task }
    }

    pub(crate) fn last(&self) -> Option<Sample> {
        self.samples.borrow().last().cloned()
    }

    pub(crate) fn stop(self) -> Vec<Sample> {
        self.task.abort();
        self.samples.take()
    }
}

#[derive(Debug)]
struct Usage {
    memory_kib: u64,
    descriptors: u64,
    threads: u64,
}

fn read(id: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64;
    Some(Usage { memory_kib: field("VmRSS:")?, descriptors, threads: field("Threads:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_is_read() {
        let before = read(std::process::id()).unwrap();
        assert!(before.memory_kib > 0 && before.threads > 0, "{before:?}");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = read(std::process::id()).unwrap();
        assert!(after.descriptors >= 50, "{after:?} with {} files open", files.len());
        assert!(read(u32::MAX).is_none());
    }
}
