//! The one list of metric names, in base units, from which `docs/metrics.md` is made (`ctrip metrics`).

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata};
use std::fmt::Write as _;

/// A metric as it is documented and exported.
#[derive(Debug)]
pub struct Metric {
    /// Prometheus name, in base units.
    pub name: &'static str,
    pub kind: Kind,
    /// Names of its labels, in the order in which callers give their values.
    pub labels: &'static [&'static str],
    /// Its meaning in one sentence.
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
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
    STAGE_RECORDS = Counter "stage_records_total" ["stage"] "Records that a stage has processed and committed.";
    STAGE_LATENCY = Histogram "stage_latency_seconds" ["stage"] "Time from a batch's first record to its commit.";
    STAGE_RESTARTS = Counter "stage_restarts_total" ["stage"] "Restarts of a stage after a failure that passes, a panic or fencing.";
    STAGE_LAG_RECORDS = Gauge "stage_lag_records" ["stage"] "Records between a stage's position and the end of its input.";
    STAGE_LAG_SECONDS = Gauge "stage_lag_seconds" ["stage"] "Age of the last record of a batch at its commit.";
    TRANSACTIONS = Counter "kafka_transactions_total" ["producer", "outcome"] "Kafka transactions, committed and aborted.";
    QUARANTINED = Counter "quarantined_records_total" ["stage"] "Unreadable records that a stage sent to quarantine.";
    CHAIN_HEAD_BLOCK = Gauge "chain_head_block" ["chain"] "Number of the last block that ingest published.";
    CHAIN_HEAD_AGE = Gauge "chain_head_age_seconds" ["chain"] "Age of the last block that ingest published, by its timestamp.";
    CHAIN_HEAD_LAG = Gauge "chain_head_lag_blocks" ["chain"] "Blocks between the node's head and the last one published.";
    CHAIN_BLOCKS = Counter "chain_blocks_total" ["chain", "kind"] "Block records published: added, removed or replayed.";
    CHAIN_WITNESSED = Gauge "chain_witnessed_block" ["chain"] "Number of the highest block that enough endpoints have given; payments are confirmed up to it.";
    CHAIN_APPLIED = Gauge "chain_applied_timestamp_seconds" ["chain"] "Timestamp of the newest block whose payments have moved: what it is behind now is the age of events.";
    CHAIN_LOGS = Counter "chain_logs_total" ["chain"] "Logs published.";
    CHAIN_REORGS = Counter "chain_reorgs_total" ["chain"] "Reorgs published; chain_blocks_total counts the removed blocks.";
    CHAIN_UNPROVEN = Counter "chain_unproven_answers_total" ["chain", "endpoint"] "Answers of nodes that failed their proof, and so were not published.";
    CHAIN_UNCHECKED = Counter "chain_unchecked_blocks_total" ["chain"] "Blocks published with a part that no root proves, as verify allows.";
    CHAIN_UNAGREED = Counter "chain_unagreed_blocks_total" ["chain"] "Blocks with a part that no root proves and no second endpoint has agreed to.";
    CHAIN_UNTRACED = Counter "chain_untraced_blocks_total" ["chain"] "Blocks of a chain with traces that could not be traced whole; a backfill brings what is missing.";
    CHAIN_HALTED = Gauge "chain_halted" ["chain"] "1 while the chain is halted and needs an operator.";
    RPC_REQUESTS = Counter "rpc_requests_total" ["chain", "endpoint", "outcome"] "Requests to nodes: ok, error, late, or limited by the provider.";
    RPC_LATENCY = Histogram "rpc_latency_seconds" ["chain", "endpoint"] "Response time of a node.";
    RPC_STATE = Gauge "rpc_endpoint_state" ["chain", "endpoint"] "Circuit breaker of a node: 0 closed, 1 half open, 2 open.";
    RPC_HEAD = Gauge "rpc_endpoint_head_block" ["chain", "endpoint"] "Number of the newest block that the node reported.";
    RPC_CONTRADICTIONS = Counter "rpc_contradictions_total" ["chain", "endpoint"] "Blocks for which a node had another in two looks running, while others had ours or came to have it.";
    WS_CONNECTED = Gauge "ws_endpoint_connected" ["chain", "endpoint"] "1 while a websocket is subscribed to new heads.";
    WS_HEADS = Counter "ws_heads_total" ["chain", "endpoint"] "New heads that a websocket announced.";
    WATCHED_ADDRESSES = Gauge "watched_addresses" [] "Addresses in the detector's set.";
    MATCHED_LOGS = Counter "matched_logs_total" [] "Logs that the detector has examined.";
    MATCHED_TRANSFERS = Counter "matched_transfers_total" ["source"] "Transfers to issued addresses.";
    UNMATCHED_REPLAYS = Counter "unmatched_replays_total" [] "Replayed blocks that could not be matched, such as those whose logs were deleted: the log has the backfill.";
    ORPHAN_TRANSFERS = Counter "orphan_transfers_total" [] "Transfers to an address that has an intent and no payment, or in a token whose decimals are in doubt, kept until that is mended.";
    PAYMENT_EVENTS = Counter "payment_events_total" ["type"] "Payment events written.";
    OUTBOX_DEPTH = Gauge "outbox_depth_records" [] "Events in Postgres that are not in Kafka yet.";
    OUTBOX_PUBLISHED = Counter "outbox_published_total" [] "Events published from Postgres to Kafka.";
    PUBLISHER_REOPENED = Counter "kafka_publishers_reopened_total" [] "Producers that the API opened after a fatal error of the one before.";
    SET_ASIDE = Gauge "set_aside_items" ["kind"] "What one fault keeps from being processed, by kind, while all else goes on: the log and `ctrip set-aside` name each.";
    INTENTS_REPAIRED = Counter "intents_repaired_total" [] "Intents published again, since Kafka had not acknowledged them.";
    RESTORED = Counter "restored_from_topics_total" ["what"] "What Postgres had lost and took from the topics: payments, addresses, keys and events.";
    CHAINS_FILE_READ = Counter "chains_file_reloads_total" ["outcome"] "Times that SIGHUP had the chains file read again: taken, or refused since it has a mistake.";
    POOL_CONNECTIONS = Gauge "database_pool_connections" ["role", "state"] "Connections to Postgres: open, idle, and callers waiting for one.";
    REPLICA_LAG = Gauge "database_replica_lag_seconds" [] "By how much the replica of DATABASE_READ_URL lags, as this process has seen it last; infinite before it was up to date.";
    ROWS_AGED = Counter "aged_rows_removed_total" ["table"] "Expired rows that housekeeping removed.";
    WEBHOOK_ATTEMPTS = Counter "webhook_attempts_total" ["outcome"] "Delivery attempts: delivered, to be retried, failed for good, or gone (410).";
    WEBHOOK_LATENCY = Histogram "webhook_attempt_seconds" [] "Duration of a delivery attempt, until the answer or the failure.";
    WEBHOOK_DELAY = Histogram "webhook_delay_seconds" [] "Time from when a webhook was due to its delivery.";
    WEBHOOKS_IN_FLIGHT = Gauge "webhooks_in_flight" ["endpoints"] "Delivery attempts in flight, by the health of the endpoint: well, slow or failing.";
    WEBHOOKS_DISABLED = Counter "webhook_endpoints_disabled_total" [] "Endpoints disabled because they are gone (410) or have failed for days.";
    GAS_PRICE = Gauge "gas_price_wei" ["chain"] "What a unit of gas costs, base fee and tip, as of the last time that a sweep was to be planned.";
    SWEEP_OLDEST = Gauge "sweep_oldest_seconds" ["chain"] "Age of the oldest sweep that is not over; 0 where there is none.";
    SWEEP_GAS = Gauge "sweep_gas_used" ["chain"] "Gas that the last final sweep took.";
    SWEEPS_SET_ASIDE = Gauge "sweeps_set_aside" ["chain"] "Sweeps that came to nothing and wait for a person: `ctrip sweep status` names them.";
    HTTP_REQUESTS = Counter "http_requests_total" ["route", "status"] "Requests that the API answered.";
    HTTP_CONNECTIONS = Gauge "http_connections" ["server"] "Connections that clients have open to the API, or to the metrics.";
    HTTP_CLOSED = Counter "http_connections_closed_total" ["server", "cause"] "Connections that the server closed: no-request, idle or stalled for too long, evicted by a newer one, or refused at a limit.";
    HTTP_LATENCY = Histogram "http_request_duration_seconds" ["route"] "Response time of the API.";
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Metric {
    fn key(&self, labels: &[(&'static str, &str)]) -> Key {
        debug_assert!(labels.iter().map(|(name, _)| *name).eq(self.labels.iter().copied()), "{}: labels {labels:?}", self.name);
        let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        Key::from_parts(self.name, labels)
    }

    /// The counter with these labels and values.
    pub fn counter(&self, labels: &[(&'static str, &str)]) -> Counter {
        debug_assert_eq!(self.kind, Kind::Counter);
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(labels), &METADATA))
    }

    /// The gauge with these labels and values.
    pub fn gauge(&self, labels: &[(&'static str, &str)]) -> Gauge {
        debug_assert_eq!(self.kind, Kind::Gauge);
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(labels), &METADATA))
    }

    /// The histogram with these labels and values.
    pub fn histogram(&self, labels: &[(&'static str, &str)]) -> Histogram {
        debug_assert_eq!(self.kind, Kind::Histogram);
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(labels), &METADATA))
    }
}

/// Registers each metric's help text with the recorder.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// The reference as a Markdown table.
pub fn reference() -> String {
    let mut text = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in ALL {
        let kind = format!("{kind:?}").to_lowercase();
        // Writing into a string does not fail.
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "));
    }
    text
}

/// Sets [`STAGE_LAG_SECONDS`]; `written_ms` is the Kafka timestamp of the last record.
pub fn stage_lag(stage: &'static str, written_ms: i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let written = std::time::Duration::from_millis(u64::try_from(written_ms).unwrap_or_default());
    STAGE_LAG_SECONDS.gauge(&[("stage", stage)]).set(now.saturating_sub(written).as_secs_f64());
}
