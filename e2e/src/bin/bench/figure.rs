//! Figures, and what several benches measure alike.

pub use e2e::memory_mb;
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

/// The value below which a `share` of the samples lies.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = ((samples.len() as f64 - 1.0) * share).round() as usize;
    samples.get(place).copied().unwrap_or(f64::NAN)
}
