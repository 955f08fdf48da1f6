//! What the kernel knows of processes.

use std::fs;
use std::time::Duration;

/// Processor time.
pub type Cpu = Duration;

/// The clock in which Linux counts processor time.
const TICK: Duration = Duration::from_millis(10);

struct Stat {
    parent: u32,
    own: u64,
    with_children: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything; what follows it does not.
    let rest = text.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let own = ticks(11)? + ticks(12)?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, own, with_children: own + ticks(13)? + ticks(14)? })
}

/// The processor time of a process.
pub fn of(pid: u32) -> Option<Cpu> {
    Some(TICK * u32::try_from(stat(pid)?.own).ok()?)
}

/// The processor time of a process and its children, those that have ended included.
pub fn tree(pid: u32) -> Option<Cpu> {
    let mut ticks = stat(pid)?.with_children;
    for entry in fs::read_dir("/proc").ok()? {
        let child = entry.ok()?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(child) = child.and_then(stat).filter(|stat| stat.parent == pid) {
            ticks += child.own;
        }
    }
    Some(TICK * u32::try_from(ticks).ok()?)
}

/// The most memory that a process has had, in MiB.
pub fn peak_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "VmHWM:")
}

/// The memory of a process, in MiB, without the files that are mapped into it, its program first of all.
pub fn anon_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "RssAnon:")
}

fn status_mib(pid: u32, name: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// The share of a machine's processor and its name.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: f64 = kib.and_then(|kib| kib.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0.0);
    format!("{cores} cores ({}), {:.0} GiB", model.trim_start_matches([' ', '\t', ':']), kib / 1024.0 / 1024.0)
}
