//! Logs: one line per event on standard error. `RUST_LOG` filters, `LOG_FORMAT=json` is for machines.

use anyhow::Context as _;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Installs the process's logger.
///
/// # Errors
/// When `RUST_LOG` does not parse, or a logger is installed already.
pub fn init() -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => filter(&text).context("RUST_LOG")?,
        _ => EnvFilter::new("info,rdkafka=warn,librdkafka=warn,refinery_core=warn,tokio_postgres=warn"),
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

/// At levels debug and trace alloy's spans and tungstenite's requests show whole URLs, with the keys in them, and tokio-postgres all
/// that is written, such as the secrets of webhooks.
fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    // What comes last counts.
    EnvFilter::try_new(format!("{text},alloy_transport_http=info,tungstenite=info,tokio_postgres=info"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_level_shows_the_parameters_of_statements_or_the_urls_of_nodes() {
        for text in ["debug", "trace", "tokio_postgres=trace,info", "tokio_postgres=debug,alloy_transport_http=debug,debug"] {
            let written = Written::default();
            let writer = written.clone();
            let subscriber =
                tracing_subscriber::fmt().with_env_filter(filter(text).unwrap()).with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || {
                tracing::debug!(target: "tokio_postgres::query", "whsec_");
                tracing::debug!(target: "alloy_transport_http", "https://node/key");
                tracing::trace!(target: "tungstenite::handshake::client", "GET /node/key");
                tracing::info!("the rest");
            });
            let shown = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert!(shown.contains("the rest") && !shown.contains("whsec_") && !shown.contains("node"), "{text}: {shown}");
        }
        assert!(filter("a=b=c").is_err());
    }
}
