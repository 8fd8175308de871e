//! Probing an endpoint's capabilities, for the log at start and for `ctrip check`.

use super::endpoint::Endpoint;
use super::error::RpcError;
use super::pool::Rpc;
use crate::block::Head;
use alloy::primitives::{B256, U64};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use topics::ChainId;

/// The capabilities of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Host and port.
    pub endpoint: String,
    /// `web3_clientVersion`.
    pub client: Option<String>,
    pub chain_id: Option<ChainId>,
    /// Height of its head.
    pub head: Option<u64>,
    /// Duration of one small request, in whole milliseconds.
    pub latency_ms: Option<u128>,
    /// Whether it has `eth_getBlockReceipts`.
    pub block_receipts: bool,
    /// Whether it accepts batches.
    pub batches: bool,
    /// Height of its `safe` block.
    pub safe: Option<u64>,
    /// Height of its `finalized` block.
    pub finalized: Option<u64>,
    /// `debug_traceBlockByHash` or `trace_block`.
    pub tracer: Option<&'static str>,
    /// Why it is not usable.
    pub error: Option<String>,
}

impl Rpc {
    /// Probes every endpoint.
    pub async fn probe(&self) -> Vec<Probe> {
        futures::future::join_all(self.endpoints.iter().map(|endpoint| endpoint.probe())).await
    }
}

impl Endpoint {
    async fn probe(self: &Arc<Self>) -> Probe {
        let mut probe = Probe { endpoint: self.host().to_owned(), ..Probe::default() };
        let started = Instant::now();
        match self.chain_id().await {
            Ok(id) => probe.chain_id = Some(id),
            Err(error) => {
                probe.error = Some(base::error_chain(&error));
                return probe;
            }
        }
        probe.latency_ms = Some(started.elapsed().as_millis());
        if let Err(error) = self.check_chain_id().await {
            probe.error = Some(error.to_string());
            return probe;
        }
        probe.batches = self.takes_batches();
        let (client, head, receipts, safe, finalized, tracer) = tokio::join!(
            self.request::<String>("web3_clientVersion", json!([])),
            self.request::<U64>("eth_blockNumber", json!([])),
            self.has("eth_getBlockReceipts", json!(["latest"])),
            self.tagged("safe"),
            self.tagged("finalized"),
            self.find_tracer(),
        );
        probe.client = client.ok();
        match head {
            Ok(head) => {
                self.record_head(head.to());
                probe.head = Some(head.to());
            }
            Err(error) => probe.error = Some(error.to_string()),
        }
        probe.block_receipts = receipts;
        (probe.safe, probe.finalized, probe.tracer) = (safe, finalized, tracer);
        probe
    }

    async fn tagged(&self, tag: &str) -> Option<u64> {
        let head: Result<Option<Head>, RpcError> = self.request("eth_getBlockByNumber", json!([tag, false])).await;
        head.ok()?.map(|head| head.number)
    }

    /// Whether the node has the method: then it answers, or refuses for another reason.
    async fn has(&self, method: &'static str, params: Value) -> bool {
        match self.raw(method, params).await {
            Ok(_) => true,
            Err(error) => matches!(error, RpcError::Refused { .. }) && !error.is_unsupported(),
        }
    }

    async fn find_tracer(&self) -> Option<&'static str> {
        let nothing = json!([B256::ZERO, { "tracer": "callTracer" }]);
        if self.has("debug_traceBlockByHash", nothing).await {
            return Some("debug_traceBlockByHash");
        }
        self.has("trace_block", json!(["0x1"])).await.then_some("trace_block")
    }
}

impl Probe {
    /// Blocks behind `newest`, the newest head of all endpoints.
    pub fn lag(&self, newest: Option<u64>) -> Option<u64> {
        self.head.zip(newest).map(|(head, newest)| newest.saturating_sub(head))
    }

    /// The headings of [`cells`](Self::cells).
    pub fn columns() -> Vec<String> {
        ["endpoint", "chain", "head", "lag", "ms", "receipts", "batches", "safe", "finalized", "traces", "client"]
            .map(str::to_owned)
            .to_vec()
    }

    /// The probe as a table row. `newest` is the newest head of all endpoints.
    pub fn cells(&self, newest: Option<u64>) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let lag = self.lag(newest).map(|lag| lag.to_string());
        // An endpoint that did not answer has not shown that it lacks anything.
        let known = |text: &str| if self.head.is_some() { text } else { "-" }.to_owned();
        vec![
            self.endpoint.clone(),
            or_dash(self.chain_id.map(|id| id.to_string())),
            or_dash(self.head.map(|head| head.to_string())),
            or_dash(lag),
            or_dash(self.latency_ms.map(|ms| ms.to_string())),
            known(if self.block_receipts { "by block" } else { "by transaction" }),
            known(if self.batches { "yes" } else { "no" }),
            or_dash(self.safe.map(|number| number.to_string())),
            or_dash(self.finalized.map(|number| number.to_string())),
            or_dash(self.tracer.map(str::to_owned)),
            or_dash(self.client.clone()),
        ]
    }
}
