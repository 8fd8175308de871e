//! The one list of metric names, in base units, from which `docs/metrics.md` is made (`ctrip metrics`).

use anyhow::Context as _;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata};
use std::fmt::Write as _;
use std::net::SocketAddr;

/// A metric: its name, what it means and its labels.
#[derive(Debug)]
pub struct Metric {
    /// Prometheus name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// What a metric's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

macro_rules! metrics_list {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every metric.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics_list! {
    STAGE_RECORDS = Counter "stage_records_total" ["stage"] "Records that a stage has taken in and committed.";
    STAGE_LATENCY = Histogram "stage_latency_seconds" ["stage"] "From a batch's first record in hand to its commit.";
    STAGE_RESTARTS = Counter "stage_restarts_total" ["stage"] "Times a stage was started again after a failure that passes.";
    STAGE_LAG_RECORDS = Gauge "stage_lag_records" ["stage"] "Records between a stage's position and the end of its input.";
    STAGE_LAG_SECONDS = Gauge "stage_lag_seconds" ["stage"] "Age of the last record that a stage committed, when it did.";
    TRANSACTIONS = Counter "kafka_transactions_total" ["producer", "outcome"] "Kafka transactions, committed and aborted.";
    QUARANTINED = Counter "quarantined_records_total" ["stage"] "Records that a stage could not read and put aside.";
    CHAIN_HEAD_BLOCK = Gauge "chain_head_block" ["chain"] "Number of the last block that ingest published.";
    CHAIN_HEAD_AGE = Gauge "chain_head_age_seconds" ["chain"] "Time since the timestamp of the last block that ingest published.";
    CHAIN_HEAD_LAG = Gauge "chain_head_lag_blocks" ["chain"] "Blocks between the node's head and the last one published.";
    CHAIN_BLOCKS = Counter "chain_blocks_total" ["chain", "kind"] "Block records published: added, removed or replayed.";
    CHAIN_LOGS = Counter "chain_logs_total" ["chain"] "Logs published.";
    CHAIN_REORGS = Counter "chain_reorgs_total" ["chain"] "Reorganisations written down; removed blocks are in chain_blocks_total.";
    CHAIN_UNPROVEN = Counter "chain_unproven_answers_total" ["chain", "endpoint"] "Answers of nodes that failed their proof and were not published.";
    CHAIN_UNCHECKED = Counter "chain_unchecked_blocks_total" ["chain"] "Blocks published with a part that no root proves, as verify allows.";
    CHAIN_HALTED = Gauge "chain_halted" ["chain"] "1 if the chain stopped and needs a person.";
    RPC_REQUESTS = Counter "rpc_requests_total" ["chain", "endpoint", "outcome"] "Requests to nodes: ok, error, or limited by the provider.";
    RPC_LATENCY = Histogram "rpc_latency_seconds" ["chain", "endpoint"] "How long a node took to answer.";
    RPC_STATE = Gauge "rpc_endpoint_state" ["chain", "endpoint"] "The node's circuit: 0 closed, 1 half open, 2 open.";
    RPC_HEAD = Gauge "rpc_endpoint_head_block" ["chain", "endpoint"] "Number of the newest block that the node told.";
    WS_CONNECTED = Gauge "ws_endpoint_connected" ["chain", "endpoint"] "1 while a websocket is subscribed to new heads.";
    WS_HEADS = Counter "ws_heads_total" ["chain", "endpoint"] "New heads that a websocket told.";
    WATCHED_ADDRESSES = Gauge "watched_addresses" [] "Addresses in the detector's set.";
    MATCHED_LOGS = Counter "matched_logs_total" [] "Logs that the detector looked at.";
    MATCHED_TRANSFERS = Counter "matched_transfers_total" ["source"] "Transfers to issued addresses.";
    PAYMENT_EVENTS = Counter "payment_events_total" ["type"] "Payment events made.";
    OUTBOX_DEPTH = Gauge "outbox_depth_records" [] "Events in Postgres that are not in Kafka yet.";
    OUTBOX_PUBLISHED = Counter "outbox_published_total" [] "Events brought from Postgres to Kafka.";
    INTENTS_REPAIRED = Counter "intents_repaired_total" [] "Intents that Kafka had not acknowledged and that were published again.";
    POOL_CONNECTIONS = Gauge "database_pool_connections" ["role", "state"] "Connections to Postgres: open, idle, and requests waiting.";
    ROWS_AGED = Counter "aged_rows_removed_total" ["table"] "Rows that housekeeping removed for their age.";
    WEBHOOK_ATTEMPTS = Counter "webhook_attempts_total" ["outcome"] "Attempts at webhooks: delivered, to be made again, failed for good, or gone (410).";
    WEBHOOK_LATENCY = Histogram "webhook_attempt_seconds" [] "How long an endpoint took to answer, or not to.";
    WEBHOOK_DELAY = Histogram "webhook_delay_seconds" [] "From when a webhook was due to its arrival.";
    WEBHOOKS_IN_FLIGHT = Gauge "webhooks_in_flight" ["endpoints"] "Attempts at webhooks that are on their way, to endpoints that are well, slow or failing.";
    WEBHOOKS_DISABLED = Counter "webhook_endpoints_disabled_total" [] "Endpoints disabled because they are gone or failed for days.";
    HTTP_REQUESTS = Counter "http_requests_total" ["route", "status"] "Requests that the API answered.";
    HTTP_LATENCY = Histogram "http_request_duration_seconds" ["route"] "How long the API took to answer.";
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Metric {
    fn key(&self, labels: &[(&'static str, &str)]) -> Key {
        debug_assert!(labels.iter().map(|(name, _)| *name).eq(self.labels.iter().copied()), "{}: labels {labels:?}", self.name);
        let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        Key::from_parts(self.name, labels)
    }

    /// The counter with these labels.
    pub fn counter(&self, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert_eq!(self.kind, Kind::Counter);
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(labels), &METADATA))
    }

    /// The gauge with these labels.
    pub fn gauge(&self, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert_eq!(self.kind, Kind::Gauge);
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(labels), &METADATA))
    }

    /// The histogram with these labels.
    pub fn histogram(&self, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert_eq!(self.kind, Kind::Histogram);
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(labels), &METADATA))
    }
}

/// Serves `/metrics` for the life of the process.
///
/// # Errors
/// When the address is taken.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let buckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
    metrics_exporter_prometheus::PrometheusBuilder::new()
        .with_http_listener(listen)
        .set_buckets(&buckets)
        .context("histogram buckets")?
        .install()
        .with_context(|| format!("METRICS_LISTEN {listen}"))?;
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    Ok(())
}

/// The reference as Markdown.
pub fn reference() -> String {
    let mut text = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in ALL {
        let kind = format!("{kind:?}").to_lowercase();
        // Writing into a string does not fail.
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    text
}

/// Records how old a stage's last record is by now; `written_ms` is its Kafka timestamp.
pub fn stage_lag(stage: &'static str, written_ms: i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let written = std::time::Duration::from_millis(u64::try_from(written_ms).unwrap_or_default());
    STAGE_LAG_SECONDS.gauge(&[("stage", stage)]).set(now.saturating_sub(written).as_secs_f64());
}
