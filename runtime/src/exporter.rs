//! The Prometheus endpoint: every metric of the process at `METRICS_LISTEN/metrics`.

use crate::http::{self, Limits, Timeouts};
use anyhow::Context as _;
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Histogram buckets, in seconds.
const BUCKETS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// For a few scrapers.
const MAX_CONNECTIONS: usize = 64;
/// How often what histograms have collected is added up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Serves `/metrics` for the life of the process.
///
/// # Errors
/// When the address is in use.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = std::net::TcpListener::bind(listen).with_context(|| {
        format!("METRICS_LISTEN {listen}; stop what listens there, or set METRICS_LISTEN to another address")
    })?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let metrics = PrometheusBuilder::new().set_buckets(&BUCKETS).context("histogram buckets")?.install_recorder()?;
    base::metrics::describe();
    tokio::spawn(keep_up(metrics.clone()));
    let limits = Limits {
        server: "metrics",
        connections: MAX_CONNECTIONS,
        connections_per_address: MAX_CONNECTIONS,
        trusted_proxies: Vec::new(),
        timeouts: Timeouts::default(),
    };
    tokio::spawn(http::serve(listener, limits, move |_| scrape(metrics.clone()), CancellationToken::new()));
    Ok(())
}

async fn keep_up(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        metrics.run_upkeep();
    }
}

async fn scrape(metrics: PrometheusHandle) -> Response<String> {
    // Writing thousands of series takes a while. A task that panicked has written none.
    let text = tokio::task::spawn_blocking(move || metrics.render()).await.unwrap_or_default();
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}
