//! Logs: one line per event on standard error. `RUST_LOG` filters, `LOG_FORMAT=json` is for machines.

use anyhow::Context as _;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Installs the process's logger.
///
/// # Errors
/// When `RUST_LOG` does not parse, or a logger is installed already.
pub fn init() -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        // At level debug alloy's spans show whole URLs, with the keys in them.
        Ok(text) => EnvFilter::try_new(format!("alloy_transport_http=info,{text}")).context("RUST_LOG")?,
        Err(_) => EnvFilter::new("info,rdkafka=warn,librdkafka=warn,refinery_core=warn,tokio_postgres=warn"),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = if std::env::var("LOG_FORMAT").as_deref() == Ok("json") {
        builder.json().try_init()
    } else {
        builder.with_target(false).try_init()
    };
    installed.map_err(|cause| anyhow::anyhow!("the logger: {cause}"))
}
