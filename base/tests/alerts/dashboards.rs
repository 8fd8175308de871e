//! What the dashboards show. `make dashboards` writes deploy/grafana of it.
//!
//! `$chain` is the chains that were chosen, `$__rate_interval` what Grafana makes of the scrape interval.

use crate::grafana::{Dashboard, Row, panel};

pub fn all() -> Vec<Dashboard> {
    vec![pipeline(), chains(), payments(), webhooks(), sweeps()]
}

fn pipeline() -> Dashboard {
    let age = panel(
        "Age of events",
        "s",
        "How old the newest block is whose payments have moved: all of the way from the chain to Postgres.",
        r#"time() - max by (chain) (chain_applied_timestamp_seconds{job="ctrip"})"#,
        "{{chain}}",
    );
    let lag = panel(
        "Lag",
        "short",
        "Records between a stage's position and the end of its input.",
        r#"sum by (stage) (stage_lag_records{job="ctrip"})"#,
        "{{stage}}",
    );
    let record_age = panel(
        "Age of records",
        "s",
        "How old the last record of a batch was when it was committed.",
        r#"max by (stage) (stage_lag_seconds{job="ctrip"})"#,
        "{{stage}}",
    );
    let records = panel(
        "Records",
        "ops",
        "What each stage has processed and committed.",
        r#"sum by (stage) (rate(stage_records_total{job="ctrip"}[$__rate_interval]))"#,
        "{{stage}}",
    );
    let latency = panel(
        "Batches, p99",
        "s",
        "From a batch's first record to its commit.",
        r#"histogram_quantile(0.99, sum by (stage, le) (rate(stage_latency_seconds_bucket{job="ctrip"}[$__rate_interval])))"#,
        "{{stage}}",
    );
    let transactions = panel(
        "Kafka transactions",
        "ops",
        "Committed and aborted. An abort is done anew.",
        r#"sum by (producer, outcome) (rate(kafka_transactions_total{job="ctrip"}[$__rate_interval]))"#,
        "{{producer}} {{outcome}}",
    );
    let outbox = panel(
        "Outbox",
        "short",
        "Events in Postgres that are not in Kafka yet.",
        r#"max(outbox_depth_records{job="ctrip"})"#,
        "waiting",
    );
    let published = panel(
        "Events",
        "ops",
        "Written to Postgres, and published from there to Kafka.",
        r#"sum(rate(payment_events_total{job="ctrip"}[$__rate_interval]))"#,
        "written",
    )
    .and(r#"sum(rate(outbox_published_total{job="ctrip"}[$__rate_interval]))"#, "published");
    let processes =
        panel("Processes", "short", "1 where a process serves its metrics.", r#"up{job="ctrip"}"#, "{{role}} {{instance}}");
    let aside = panel(
        "Set aside",
        "short",
        "What one fault keeps from being processed, while all else goes on.",
        r#"sum by (kind) (set_aside_items{job="ctrip"})"#,
        "{{kind}}",
    );
    let restarts = panel(
        "Restarts of stages",
        "short",
        "After a failure that passes, a panic or fencing, within an hour.",
        r#"sum by (stage) (increase(stage_restarts_total{job="ctrip"}[1h]))"#,
        "{{stage}}",
    );
    let lost = panel(
        "Mended and kept back",
        "short",
        "Within an hour: records in quarantine, orphans, intents published again, what Postgres took from the topics.",
        r#"sum(increase(quarantined_records_total{job="ctrip"}[1h]))"#,
        "in quarantine",
    )
    .and(r#"sum(increase(orphan_transfers_total{job="ctrip"}[1h]))"#, "orphans")
    .and(r#"sum(increase(intents_repaired_total{job="ctrip"}[1h]))"#, "intents again")
    .and(r#"sum(increase(restored_from_topics_total{job="ctrip"}[1h]))"#, "restored");
    let pool = panel(
        "Connections to Postgres",
        "short",
        "Open, idle, and callers that wait for one.",
        r#"sum by (role, state) (database_pool_connections{job="ctrip"})"#,
        "{{role}} {{state}}",
    );
    Dashboard {
        uid: "ctrip-pipeline",
        title: "cTrip: pipeline",
        chains_of: None,
        rows: vec![
            Row { title: "From the chain to Postgres", panels: vec![age, lag, record_age, records, latency, transactions] },
            Row { title: "From Postgres to Kafka", panels: vec![outbox, published, pool] },
            Row { title: "Whether all runs", panels: vec![processes, aside, restarts, lost] },
        ],
    }
}

fn chains() -> Dashboard {
    let age = panel(
        "Age of the head",
        "s",
        "Of the last block that was published, by its timestamp.",
        r#"max by (chain) (chain_head_age_seconds{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let lag = panel(
        "Blocks behind the node",
        "short",
        "Between the node's head and the last block published.",
        r#"max by (chain) (chain_head_lag_blocks{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let witnessed = panel(
        "Blocks without witnesses",
        "short",
        "Between the last block published and the highest one that enough endpoints have given: payments in them wait.",
        r#"chain_head_block{job="ctrip", chain=~"$chain"} - chain_witnessed_block{job="ctrip", chain=~"$chain"}"#,
        "{{chain}}",
    );
    let halted = panel(
        "Halted",
        "short",
        "1 while a chain is halted and needs a person.",
        r#"max by (chain) (chain_halted{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let blocks = panel(
        "Blocks",
        "ops",
        "Added, removed by a reorg, or replayed by a backfill.",
        r#"sum by (chain, kind) (rate(chain_blocks_total{job="ctrip", chain=~"$chain"}[$__rate_interval]))"#,
        "{{chain}} {{kind}}",
    );
    let logs = panel(
        "Logs",
        "ops",
        "Published.",
        r#"sum by (chain) (rate(chain_logs_total{job="ctrip", chain=~"$chain"}[$__rate_interval]))"#,
        "{{chain}}",
    );
    let reorgs = panel(
        "Reorgs",
        "short",
        "Within an hour.",
        r#"sum by (chain) (increase(chain_reorgs_total{job="ctrip", chain=~"$chain"}[1h]))"#,
        "{{chain}}",
    );
    let doubts = panel(
        "Blocks in doubt",
        "short",
        "Within an hour: with a part that no root proves, no second endpoint has agreed to, or nobody could trace.",
        r#"sum by (chain) (increase(chain_unchecked_blocks_total{job="ctrip", chain=~"$chain"}[1h]))"#,
        "{{chain}} not proved",
    )
    .and(r#"sum by (chain) (increase(chain_unagreed_blocks_total{job="ctrip", chain=~"$chain"}[1h]))"#, "{{chain}} not agreed")
    .and(r#"sum by (chain) (increase(chain_untraced_blocks_total{job="ctrip", chain=~"$chain"}[1h]))"#, "{{chain}} not traced");
    let state = panel(
        "Endpoints",
        "short",
        "The circuit breaker: 0 closed, 1 half open, 2 open.",
        r#"max by (chain, endpoint) (rpc_endpoint_state{job="ctrip", chain=~"$chain"})"#,
        "{{chain}} {{endpoint}}",
    );
    let requests = panel(
        "Requests",
        "ops",
        "By outcome: ok, error, late, or limited by the provider.",
        r#"sum by (chain, endpoint, outcome) (rate(rpc_requests_total{job="ctrip", chain=~"$chain"}[$__rate_interval]))"#,
        "{{chain}} {{endpoint}} {{outcome}}",
    );
    let latency = panel(
        "Answers, p99",
        "s",
        "Response time of a node.",
        r#"histogram_quantile(0.99,
  sum by (chain, endpoint, le) (rate(rpc_latency_seconds_bucket{job="ctrip", chain=~"$chain"}[$__rate_interval])))"#,
        "{{chain}} {{endpoint}}",
    );
    let behind = panel(
        "Endpoints behind the best",
        "short",
        "Blocks by which an endpoint's head is below the highest one of its chain.",
        r#"max by (chain) (rpc_endpoint_head_block{job="ctrip", chain=~"$chain"})
  - on (chain) group_right max by (chain, endpoint) (rpc_endpoint_head_block{job="ctrip", chain=~"$chain"})"#,
        "{{chain}} {{endpoint}}",
    );
    let lies = panel(
        "Contradictions",
        "short",
        "Within an hour: answers that failed their proof, and blocks of which an endpoint had another.",
        r#"sum by (chain, endpoint) (increase(chain_unproven_answers_total{job="ctrip", chain=~"$chain"}[1h]))"#,
        "{{chain}} {{endpoint}} not proved",
    )
    .and(
        r#"sum by (chain, endpoint) (increase(rpc_contradictions_total{job="ctrip", chain=~"$chain"}[1h]))"#,
        "{{chain}} {{endpoint}} of another branch",
    );
    let websockets = panel(
        "Websockets",
        "short",
        "1 while one is subscribed to new heads.",
        r#"min by (chain, endpoint) (ws_endpoint_connected{job="ctrip", chain=~"$chain"})"#,
        "{{chain}} {{endpoint}}",
    )
    .and(
        r#"sum by (chain, endpoint) (rate(ws_heads_total{job="ctrip", chain=~"$chain"}[$__rate_interval]))"#,
        "{{chain}} {{endpoint}} heads/s",
    );
    Dashboard {
        uid: "ctrip-chains",
        title: "cTrip: chains",
        chains_of: Some("chain_head_block"),
        rows: vec![
            Row { title: "Heads", panels: vec![age, lag, witnessed, halted] },
            Row { title: "Blocks", panels: vec![blocks, logs, reorgs, doubts] },
            Row { title: "Endpoints", panels: vec![state, requests, latency, behind, lies, websockets] },
        ],
    }
}

fn payments() -> Dashboard {
    let events = panel(
        "Events",
        "ops",
        "What happened to payments, by type.",
        r#"sum by (type) (rate(payment_events_total{job="ctrip"}[$__rate_interval]))"#,
        "{{type}}",
    );
    let transfers = panel(
        "Transfers to issued addresses",
        "ops",
        "As the detector finds them: in a transaction, a log or a trace.",
        r#"sum by (source) (rate(matched_transfers_total{job="ctrip"}[$__rate_interval]))"#,
        "{{source}}",
    );
    let addresses = panel(
        "Watched addresses",
        "short",
        "All that were ever given out.",
        r#"max(watched_addresses{job="ctrip"})"#,
        "addresses",
    );
    let logs = panel(
        "Logs examined",
        "ops",
        "By the detector.",
        r#"sum(rate(matched_logs_total{job="ctrip"}[$__rate_interval]))"#,
        "logs",
    );
    let replays = panel(
        "Replayed blocks that could not be matched",
        "short",
        "Within an hour. The log has the backfill to run again.",
        r#"sum(increase(unmatched_replays_total{job="ctrip"}[1h]))"#,
        "blocks",
    );
    let requests = panel(
        "Requests",
        "reqps",
        "By route and status.",
        r#"sum by (route, status) (rate(http_requests_total{job="ctrip"}[$__rate_interval]))"#,
        "{{route}} {{status}}",
    );
    let errors = panel(
        "Errors",
        "percentunit",
        "Share of the API's answers that are 5xx, and that are 429.",
        r#"sum(rate(http_requests_total{job="ctrip", route=~"/api/v1/.*", status=~"5.."}[$__rate_interval]))
  / sum(rate(http_requests_total{job="ctrip", route=~"/api/v1/.*"}[$__rate_interval]))"#,
        "5xx",
    )
    .and(
        r#"sum(rate(http_requests_total{job="ctrip", route=~"/api/v1/.*", status="429"}[$__rate_interval]))
  / sum(rate(http_requests_total{job="ctrip", route=~"/api/v1/.*"}[$__rate_interval]))"#,
        "429",
    );
    let latency = panel(
        "Answers, p99",
        "s",
        "By route. Streams of events last for as long as somebody listens.",
        r#"histogram_quantile(0.99,
  sum by (route, le) (rate(http_request_duration_seconds_bucket{job="ctrip"}[$__rate_interval])))"#,
        "{{route}}",
    );
    let connections = panel(
        "Connections of clients",
        "short",
        "To the API, and to the metrics.",
        r#"sum by (server) (http_connections{job="ctrip"})"#,
        "{{server}}",
    )
    .and(
        r#"sum by (server, cause) (increase(http_connections_closed_total{job="ctrip"}[1h]))"#,
        "{{server}} closed: {{cause}}",
    );
    let intents = panel(
        "Kafka's acknowledgements",
        "short",
        "Within an hour: intents that were published again, and producers that were opened again.",
        r#"sum(increase(intents_repaired_total{job="ctrip"}[1h]))"#,
        "intents",
    )
    .and(r#"sum(increase(kafka_publishers_reopened_total{job="ctrip"}[1h]))"#, "producers");
    let replica = panel(
        "Replica",
        "s",
        "By how much the replica for reads lags.",
        r#"max by (instance) (database_replica_lag_seconds{job="ctrip"})"#,
        "{{instance}}",
    );
    let aged = panel(
        "Housekeeping",
        "ops",
        "Expired rows that were removed.",
        r#"sum by (table) (rate(aged_rows_removed_total{job="ctrip"}[$__rate_interval]))"#,
        "{{table}}",
    );
    let reloads = panel(
        "chains.yaml read again",
        "short",
        "Within an hour: taken, or refused since it has a mistake.",
        r#"sum by (outcome) (increase(chains_file_reloads_total{job="ctrip"}[1h]))"#,
        "{{outcome}}",
    );
    Dashboard {
        uid: "ctrip-payments",
        title: "cTrip: payments",
        chains_of: None,
        rows: vec![
            Row { title: "Payments", panels: vec![events, transfers, addresses, logs, replays] },
            Row { title: "API", panels: vec![requests, errors, latency, connections, intents] },
            Row { title: "Beside it", panels: vec![replica, aged, reloads] },
        ],
    }
}

fn webhooks() -> Dashboard {
    let delay = panel(
        "Delay",
        "s",
        "From when a webhook was due to its delivery; beyond ten seconds it is not measured.",
        r#"histogram_quantile(0.5, sum by (le) (rate(webhook_delay_seconds_bucket{job="ctrip"}[$__rate_interval])))"#,
        "p50",
    )
    .and(r#"histogram_quantile(0.99, sum by (le) (rate(webhook_delay_seconds_bucket{job="ctrip"}[$__rate_interval])))"#, "p99");
    let late = panel(
        "More than ten seconds late",
        "percentunit",
        "Share of what was delivered.",
        r#"1 - sum(rate(webhook_delay_seconds_bucket{job="ctrip", le="10"}[$__rate_interval]))
  / sum(rate(webhook_delay_seconds_count{job="ctrip"}[$__rate_interval]))"#,
        "late",
    );
    let attempts = panel(
        "Attempts",
        "ops",
        "Delivered, to be tried again, failed for good, or gone (410).",
        r#"sum by (outcome) (rate(webhook_attempts_total{job="ctrip"}[$__rate_interval]))"#,
        "{{outcome}}",
    );
    let took = panel(
        "Attempts, p99",
        "s",
        "Until the answer or the failure.",
        r#"histogram_quantile(0.99, sum by (le) (rate(webhook_attempt_seconds_bucket{job="ctrip"}[$__rate_interval])))"#,
        "p99",
    );
    let in_flight = panel(
        "In flight",
        "short",
        "By the health of the endpoint: well, slow or failing.",
        r#"sum by (endpoints) (webhooks_in_flight{job="ctrip"})"#,
        "{{endpoints}}",
    );
    let lag = panel(
        "Events not read yet",
        "short",
        "Of payment.events, by the stage that makes deliveries of them.",
        r#"sum(stage_lag_records{job="ctrip", stage="webhooks"})"#,
        "events",
    );
    let disabled = panel(
        "Endpoints disabled",
        "short",
        "Within a day: they answered 410, or have failed for days.",
        r#"sum(increase(webhook_endpoints_disabled_total{job="ctrip"}[1d]))"#,
        "endpoints",
    );
    Dashboard {
        uid: "ctrip-webhooks",
        title: "cTrip: webhooks",
        chains_of: None,
        rows: vec![
            Row { title: "Delivery", panels: vec![delay, late, attempts] },
            Row { title: "Endpoints", panels: vec![took, in_flight, lag, disabled] },
        ],
    }
}

fn sweeps() -> Dashboard {
    let oldest = panel(
        "Oldest sweep that is not over",
        "s",
        "0 where there is none.",
        r#"max by (chain) (sweep_oldest_seconds{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let aside = panel(
        "Set aside",
        "short",
        "Sweeps that came to nothing and wait for a person.",
        r#"max by (chain) (sweeps_set_aside{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let gas_price = panel(
        "Gas price",
        "short",
        "In wei, base fee and tip, when a sweep was to be planned last.",
        r#"max by (chain) (gas_price_wei{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let gas = panel(
        "Gas of the last final sweep",
        "short",
        "In units of gas.",
        r#"max by (chain) (sweep_gas_used{job="ctrip", chain=~"$chain"})"#,
        "{{chain}}",
    );
    let settled = panel(
        "Settled",
        "ops",
        "Payments and deposits whose money has left their addresses.",
        r#"sum by (type) (rate(payment_events_total{job="ctrip", type=~".+[.]settled"}[$__rate_interval]))"#,
        "{{type}}",
    );
    Dashboard {
        uid: "ctrip-sweeps",
        title: "cTrip: sweeps",
        chains_of: Some("sweep_oldest_seconds"),
        rows: vec![Row { title: "Money out", panels: vec![oldest, aside, gas_price, gas, settled] }],
    }
}
