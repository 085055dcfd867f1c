//! How much of the machine is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Pause between looks.
const LOOK: Duration = Duration::from_secs(5);
/// What the latest look adds to the mean of processor use, which so forgets a peak in about half a minute.
const SHARE_OF_LATEST: f64 = 1.0 / 6.0;

/// Shares of the whole, 0–1, in the bits of an f64.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    memory: AtomicU64,
    cpu: AtomicU64,
}

impl Machine {
    /// Of the machine's memory, or of the container's limit.
    pub(crate) fn memory(&self) -> f64 {
        f64::from_bits(self.memory.load(Relaxed))
    }

    /// Of all processors, over the last half minute or so.
    pub(crate) fn cpu(&self) -> f64 {
        f64::from_bits(self.cpu.load(Relaxed))
    }
}

/// Looks at the machine for as long as the task lives.
pub(crate) async fn watch(machine: Arc<Machine>) {
    let kind = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing().with_cpu_usage())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(kind);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first look has nothing to compare processor use with.
    looks.tick().await;
    loop {
        machine.memory.store(memory(&system).to_bits(), Relaxed);
        looks.tick().await;
        system.refresh_specifics(kind);
        let busy = f64::from(system.global_cpu_usage()) / 100.0;
        let mean = machine.cpu() + (busy - machine.cpu()) * SHARE_OF_LATEST;
        machine.cpu.store(mean.to_bits(), Relaxed);
    }
}

fn memory(system: &System) -> f64 {
    let (total, free) = match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 => (limits.total_memory, limits.free_memory),
        _ => (system.total_memory(), system.available_memory()),
    };
    if total == 0 { 0.0 } else { 1.0 - free as f64 / total as f64 }
}
