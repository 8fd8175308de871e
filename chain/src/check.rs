//! `ctrip check`: trying a chain's endpoints and websockets before money depends on them.

use crate::config::Chain;
use crate::fetch::{BlockId, FetchOptions, FetchedBlock, fetch_block, fetch_head};
use crate::heads::{HeadsError, subscribe_once};
use crate::proof::PartProof;
use crate::rpc::{Probe, Rpc};
use topics::tells_every_movement;

/// The outcome of trying one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointCheck {
    /// The capabilities of the endpoint.
    pub probe: Probe,
    /// How much of a recent block its answers prove, or why it is not usable.
    pub verdict: Result<String, String>,
    /// The block logs every movement of the coin. One in which none moved does not tell.
    pub logs_coin: bool,
}

/// The outcome of trying one websocket.
#[derive(Debug)]
pub struct WebsocketCheck {
    /// Host and port.
    pub endpoint: String,
    /// The height of its head, if it accepts a subscription to new heads.
    pub verdict: Result<u64, HeadsError>,
}

/// Subscribes to new heads at each websocket of a chain.
pub async fn check_websockets(chain: &Chain) -> Vec<WebsocketCheck> {
    let hearings = chain
        .ws_urls
        .iter()
        .map(|url| async { WebsocketCheck { endpoint: url.host().to_owned(), verdict: subscribe_once(url, chain.id).await } });
    futures::future::join_all(hearings).await
}

/// Probes each endpoint of a chain, and proves a recent block with its answers alone.
pub async fn check_endpoints(chain: &Chain) -> Vec<EndpointCheck> {
    let trials = chain.rpc_urls.iter().map(|url| async {
        let rpc = Rpc::new(&chain.name, std::slice::from_ref(url), Some(chain.id));
        let probe = rpc.probe().await.into_iter().next().unwrap_or_default();
        let fetched = match &probe.error {
            Some(error) => Err(error.clone()),
            None => prove_head_block(&rpc, FetchOptions::of(chain)).await,
        };
        let tells = |fetched: &FetchedBlock| fetched.logs.iter().any(|placed| tells_every_movement(placed.log.address));
        let logs_coin = fetched.as_ref().is_ok_and(tells);
        EndpointCheck { probe, verdict: fetched.map(|fetched| describe(&fetched)), logs_coin }
    });
    futures::future::join_all(trials).await
}

async fn prove_head_block(rpc: &Rpc, options: FetchOptions) -> Result<FetchedBlock, String> {
    let head = fetch_head(rpc, None).await.map_err(|e| base::error_chain(&e))?.ok_or("it has no block yet")?;
    match fetch_block(rpc, options, BlockId::Hash(head.hash)).await.map_err(|e| base::error_chain(&e))? {
        Some(fetched) => Ok(fetched),
        // A reorg may remove its head a moment later; then it is no worse than other endpoints.
        None => Err(format!("its head, block {}, is gone or has no receipts yet", head.number)),
    }
}

fn describe(fetched: &FetchedBlock) -> String {
    let FetchedBlock { block, proof, .. } = fetched;
    // The count of transactions shows how much there was to prove.
    let block = match block.transactions.len() {
        1 => format!("block {}, of 1 transaction,", block.number),
        count => format!("block {}, of {count} transactions,", block.number),
    };
    let gaps: Vec<&str> = proof.gaps().collect();
    match (&proof.receipts, gaps.as_slice()) {
        (_, []) => format!("{block} is proven by roots"),
        (PartProof::Root, gaps) => format!("{block} has receipts that are proven by root; not proven: {}", gaps.join("; ")),
        (PartProof::Bloom(_), gaps) => format!("{block} has logs that are proven by bloom; not by root: {}", gaps.join("; ")),
        (PartProof::Unproven(_), gaps) => format!("{block} is trusted without proof: {}", gaps.join("; ")),
    }
}
