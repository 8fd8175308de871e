//! Figures, and what several benches measure alike.

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One line of the table.
#[derive(Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub aim: String,
}

impl Figure {
    pub fn new(name: &'static str, value: f64, unit: &'static str, aim: impl Into<String>) -> Self {
        eprintln!("  {name} = {} {unit}", written(value));
        Self { name, value, unit, aim: aim.into() }
    }
}

/// Ratios need more decimals than rates.
pub fn written(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// Memory of a process now (`VmRSS`) or at its peak (`VmHWM`), in MB of 10^6 bytes.
pub fn memory_mb(process: u32, which: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':')).context("no such memory")?;
    let kib: f64 = value.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// The value below which a `share` of the samples lies.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = ((samples.len() as f64 - 1.0) * share).round() as usize;
    samples.get(place).copied().unwrap_or(f64::NAN)
}
