//! What `collect` measures on this machine, and under which names.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use storage::MetricRecord;
use sysinfo::{Components, Disks, MINIMUM_CPU_UPDATE_INTERVAL, Networks, System};

/// The measured machine.
pub(crate) struct Host {
    system: System,
    // What the machine does not have is absent from its samples.
    disks: Option<Disks>,
    networks: Option<Networks>,
    components: Option<Components>,
    before: HashMap<String, (Instant, u64)>,
}

/// What was measured at one time.
pub(crate) struct Reading {
    server: String,
    timestamp: DateTime<Utc>,
    /// All samples.
    pub(crate) records: Vec<MetricRecord>,
    /// The load of all cores together, from 0 to 100.
    pub(crate) cpu_percent: f64,
    /// Memory in use.
    pub(crate) memory_used_bytes: u64,
    /// Memory in use, from 0 to 100.
    pub(crate) memory_percent: f64,
}

impl Reading {
    fn push(&mut self, metric: impl Into<String>, value: f64) {
        self.records.push(MetricRecord::new(self.server.clone(), self.timestamp, metric, value));
    }

    fn push_bytes(&mut self, metric: impl Into<String>, bytes: u64) {
        self.push(metric, bytes as f64);
    }
}

/// Returns the name of this machine.
pub(crate) fn name() -> Result<String> {
    System::host_name().context("this machine does not tell its name; say --server")
}

impl Host {
    /// Takes the first readings, which usage and rates are counted from: a moment of its own.
    pub(crate) fn new() -> Result<Self> {
        let mut host = Self {
            system: System::new().context("this machine cannot be measured")?,
            disks: Disks::new_with_refreshed_list().ok(),
            networks: Networks::new_with_refreshed_list().ok(),
            components: Components::new_with_refreshed_list().ok(),
            before: HashMap::new(),
        };
        host.system.refresh_cpu_usage();
        std::thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
        host.read("", Utc::now());
        Ok(host)
    }

    /// Measures everything now, as samples of `server` at `timestamp`.
    pub(crate) fn read(&mut self, server: &str, timestamp: DateTime<Utc>) -> Reading {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        let memory_used_bytes = self.system.used_memory();
        let mut reading = Reading {
            server: server.to_owned(),
            timestamp,
            records: Vec::with_capacity(64),
            cpu_percent: to_hundredths(self.system.global_cpu_usage()),
            memory_used_bytes,
            memory_percent: percent(memory_used_bytes, self.system.total_memory()),
        };
        self.read_system(&mut reading);
        self.read_disks(&mut reading);
        self.read_networks(&mut reading);
        self.read_temperatures(&mut reading);
        reading
    }

    fn read_system(&self, reading: &mut Reading) {
        reading.push("cpu_usage_percent", reading.cpu_percent);
        for (core, cpu) in self.system.cpus().iter().enumerate() {
            reading.push(format!("cpu_core_{core}_usage_percent"), to_hundredths(cpu.usage()));
        }
        if let Ok(load) = System::load_average() {
            reading.push("load_average_1m", load.one);
            reading.push("load_average_5m", load.five);
            reading.push("load_average_15m", load.fifteen);
        }
        reading.push_bytes("memory_total_bytes", self.system.total_memory());
        reading.push_bytes("memory_used_bytes", self.system.used_memory());
        reading.push_bytes("memory_available_bytes", self.system.available_memory());
        reading.push("memory_used_percent", reading.memory_percent);
        let (swap_used, swap_total) = (self.system.used_swap(), self.system.total_swap());
        if swap_total > 0 {
            reading.push_bytes("swap_total_bytes", swap_total);
            reading.push_bytes("swap_used_bytes", swap_used);
            reading.push("swap_used_percent", percent(swap_used, swap_total));
        }
        if let Ok(seconds) = System::uptime() {
            reading.push("uptime_seconds", seconds as f64);
        }
    }

    fn read_disks(&mut self, reading: &mut Reading) {
        let Some(disks) = &mut self.disks else { return };
        disks.refresh(true);
        // A device that is mounted at several places counts once, at the shortest of them.
        let mut mounted: Vec<_> = disks.iter().filter(|disk| disk.total_space() > 0).collect();
        mounted.sort_by_key(|disk| (disk.mount_point().as_os_str().len(), disk.mount_point()));
        let mut devices = Vec::new();
        let mut names = Vec::new();
        for disk in mounted {
            let is_device = disk.name().to_string_lossy().starts_with("/dev/");
            if is_device && devices.contains(&disk.name()) {
                continue;
            }
            devices.push(disk.name());
            let name = format!("disk_{}", mount_name(disk.mount_point(), &mut names));
            let (total, available) = (disk.total_space(), disk.available_space());
            let usage = disk.usage();
            reading.push_bytes(format!("{name}_total_bytes"), total);
            reading.push_bytes(format!("{name}_available_bytes"), available);
            let used = percent(total.saturating_sub(available), total);
            reading.push(format!("{name}_used_percent"), used);
            let read = format!("{name}_read_bytes");
            push_counter(&mut self.before, reading, &read, usage.total_read_bytes);
            let written = format!("{name}_written_bytes");
            push_counter(&mut self.before, reading, &written, usage.total_written_bytes);
        }
    }

    fn read_networks(&mut self, reading: &mut Reading) {
        let Some(networks) = &mut self.networks else {
            return;
        };
        networks.refresh(true);
        for (interface, data) in networks.iter() {
            let interface = interface.to_string_lossy();
            let received = format!("network_{interface}_received_bytes");
            push_counter(&mut self.before, reading, &received, data.total_received());
            let transmitted = format!("network_{interface}_transmitted_bytes");
            push_counter(&mut self.before, reading, &transmitted, data.total_transmitted());
        }
    }

    fn read_temperatures(&mut self, reading: &mut Reading) {
        let Some(components) = &mut self.components else {
            return;
        };
        components.refresh(true);
        for component in components.iter() {
            let celsius = component.temperature().filter(|celsius| celsius.is_finite());
            if let Some(celsius) = celsius {
                let name = format!("temperature_{}_celsius", sanitised(component.label()));
                reading.push(name, to_hundredths(celsius));
            }
        }
    }
}

/// Pushes a count since boot and, from the second time on, its rate.
fn push_counter(
    before: &mut HashMap<String, (Instant, u64)>,
    reading: &mut Reading,
    name: &str,
    total: u64,
) {
    let now = Instant::now();
    reading.push_bytes(format!("{name}_total"), total);
    let earlier = before.insert(name.to_owned(), (now, total));
    // A count that shrank began anew: no rate is known.
    if let Some((then, earlier)) = earlier.filter(|(_, earlier)| *earlier <= total) {
        let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
        let rate = (total - earlier) as f64 / seconds;
        reading.push(format!("{name}_per_second"), (rate * 10.0).round() / 10.0);
    }
}

/// Returns what stands for a mount point in a name; no two are the same.
fn mount_name(mount_point: &Path, taken: &mut Vec<String>) -> String {
    let mut name = sanitised(mount_point.to_string_lossy().trim_start_matches('/'));
    if name.is_empty() {
        name = "root".into();
    }
    let plain = name.clone();
    let mut number = 2;
    while taken.contains(&name) {
        name = format!("{plain}_{number}");
        number += 1;
    }
    taken.push(name.clone());
    name
}

fn sanitised(text: &str) -> String {
    let mut name = String::new();
    for character in text.chars() {
        if character.is_alphanumeric() {
            name.extend(character.to_lowercase());
        } else if !name.ends_with('_') {
            name.push('_');
        }
    }
    name.trim_matches('_').to_owned()
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 1e4).round() / 100.0 }
}

/// Turns a measured `f32` into the number it stands for, without the digits that widening adds.
fn to_hundredths(measured: f32) -> f64 {
    (f64::from(measured) * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_measured() {
        let mut host = Host::new().unwrap();
        let reading = host.read("here", Utc::now());
        let names: Vec<_> = reading.records.iter().map(|r| r.metric_type.as_str()).collect();
        for name in ["cpu_usage_percent", "cpu_core_0_usage_percent", "memory_used_bytes"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        assert!(reading.records.iter().all(|record| record.validate().is_ok()));
        assert!((0.0..=100.0).contains(&reading.cpu_percent));
        assert!(reading.memory_used_bytes > 0);
    }

    #[test]
    fn mount_points_become_names() {
        let mut taken = Vec::new();
        let mut name = |path| mount_name(Path::new(path), &mut taken);
        assert_eq!(name("/"), "root");
        assert_eq!(name("/var/lib"), "var_lib");
        assert_eq!(name("/var_lib/"), "var_lib_2");
    }

    #[test]
    fn rates_wait_for_a_second_count_and_skip_a_reset() {
        let mut before = HashMap::new();
        let mut count = |total| {
            let mut reading = Reading {
                server: "s".into(),
                timestamp: Utc::now(),
                records: Vec::new(),
                cpu_percent: 0.0,
                memory_used_bytes: 0,
                memory_percent: 0.0,
            };
            push_counter(&mut before, &mut reading, "x_bytes", total);
            reading.records.len()
        };
        assert_eq!([count(5), count(9), count(3), count(3)], [1, 2, 1, 2]);
    }
}
