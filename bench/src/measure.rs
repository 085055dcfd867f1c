//! What the kernel says about a process tree and the machine, and medians over rounds.

use std::collections::BTreeMap;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// CPU time and memory of a process and all its descendants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// User plus system time so far, in seconds; the resolution is a clock tick, 10 ms as a rule.
    pub(crate) cpu_seconds: f64,
    pub(crate) rss_kib: u64,
    pub(crate) peak_rss_kib: u64,
}

pub(crate) fn usage(root: u32) -> Result<Usage> {
    let root = stat(root)?;
    let mut usage = Usage { cpu_seconds: 0.0, rss_kib: 0, peak_rss_kib: 0 };
    for process in descendants(root.pid).into_iter().chain([root]) {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        usage.cpu_seconds += process.cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        usage.rss_kib += kib_field(&status, "VmRSS:").context("process has ended")?;
        usage.peak_rss_kib += kib_field(&status, "VmHWM:").context("process has ended")?;
    }
    Ok(usage)
}

/// The fields used here of `/proc/PID/stat`, see proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) cpu_ticks: u64,
    /// Ticks since boot: with the id it names a process for ever.
    pub(crate) started: u64,
}

pub(crate) fn stat(pid: u32) -> Result<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).context("process has ended")?;
    parse_stat(&line).with_context(|| format!("unexpected format of process statistics: `{line}`"))
}

fn parse_stat(line: &str) -> Option<Stat> {
    // The name is in parentheses and may itself hold parentheses and spaces.
    let (pid, rest) = line.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        pid: pid.parse().ok()?,
        parent: u32::try_from(number(1)?).ok()?,
        cpu_ticks: number(11)? + number(12)?,
        started: number(19)?,
    })
}

/// Children of `root`, their children, and so on; empty if there are none.
pub(crate) fn descendants(root: u32) -> Vec<Stat> {
    let mut by_parent: BTreeMap<u32, Vec<Stat>> = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Ok(stat) = stat(pid) {
            by_parent.entry(stat.parent).or_default().push(stat);
        }
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        let children = by_parent.remove(&parent).unwrap_or_default();
        queue.extend(children.iter().map(|child| child.pid));
        found.extend(children);
    }
    found
}

fn kib_field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// Median and range over rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper };
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
    }

    /// Spread of `value / base` over the rounds that both have: noise shared in a round cancels out.
    pub(crate) fn of_ratios(values: &[(u32, f64)], bases: &[(u32, f64)]) -> Option<Self> {
        let bases: BTreeMap<u32, f64> = bases.iter().copied().filter(|(_, base)| *base > 0.0).collect();
        Self::of(values.iter().filter_map(|(round, value)| Some(value / bases.get(round)?)))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// One-minute load average before the run: well above 0 means that others used the machine.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn read() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let loadavg = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            cpu: cpu.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: kib_field(&fs::read_to_string("/proc/meminfo")?, "MemTotal:").unwrap_or(0) / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load_before: loadavg.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        })
    }
}

/// The time now, as `2026-11-22T06:30:04Z`.
pub(crate) fn utc_now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Days to a date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn utc(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_parentheses_in_the_name() {
        let line = "4711 (a (b) c) S 12 4711 1 0 -1 4194560 900 0 0 0 130 70 5 6 20 0 3 0 987654 1 2 3";
        let expected = Stat { pid: 4711, parent: 12, cpu_ticks: 200, started: 987_654 };
        assert_eq!(parse_stat(line), Some(expected));
    }

    #[test]
    fn stat_cut_short() {
        assert_eq!(parse_stat("4711 (name) S 12 4711"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn own_usage_is_read() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_kib > 0 && usage.peak_rss_kib >= usage.rss_kib, "{usage:?}");
    }

    #[test]
    fn medians() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_pair_rounds_not_positions() {
        let values = [(0, 2.0), (2, 9.0)];
        let bases = [(0, 1.0), (1, 5.0), (2, 3.0)];
        assert_eq!(Spread::of_ratios(&values, &bases), Some(Spread { median: 2.5, min: 2.0, max: 3.0 }));
        assert_eq!(Spread::of_ratios(&values, &[(0, 0.0)]), None);
    }

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_329_004), "2026-11-22T06:30:04Z");
    }
}
