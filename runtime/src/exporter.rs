//! The Prometheus endpoint: every metric of the process at `METRICS_LISTEN/metrics`.

use anyhow::Context as _;
use std::net::SocketAddr;

/// Histogram buckets, in seconds.
const BUCKETS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Serves `/metrics` for the life of the process.
///
/// # Errors
/// When the address is in use.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .with_http_listener(listen)
        .set_buckets(&BUCKETS)
        .context("histogram buckets")?
        .install()
        .with_context(|| format!("METRICS_LISTEN {listen}"))?;
    base::metrics::describe();
    Ok(())
}
