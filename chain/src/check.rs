//! Trying a chain's endpoints before money depends on them.

use crate::config::Chain;
use crate::fetch::{BlockId, FetchedBlock, Reading, fetch_block, fetch_head};
use crate::heads::{self, HeadsError};
use crate::proof::Part;
use crate::rpc::{Probe, Rpc};

/// What came of trying one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What it can do.
    pub probe: Probe,
    /// What of a recent block its answers prove, or why they are of no use.
    pub verdict: Result<String, String>,
}

/// What came of trying one websocket.
#[derive(Debug)]
pub struct Hearing {
    /// Host and port.
    pub endpoint: String,
    /// The number of its newest block, if it takes a subscription to new heads.
    pub verdict: Result<u64, HeadsError>,
}

/// Subscribes to new heads at each websocket of a chain.
pub async fn check_websockets(chain: &Chain) -> Vec<Hearing> {
    let hearings = chain
        .ws_urls
        .iter()
        .map(|url| async { Hearing { endpoint: url.host().to_owned(), verdict: heads::subscribe_once(url, chain.id).await } });
    futures::future::join_all(hearings).await
}

/// Asks each endpoint of a chain what it can do, and has it prove a recent block by itself.
pub async fn check(chain: &Chain) -> Vec<Trial> {
    let trials = chain.rpc_urls.iter().map(|url| async {
        let rpc = Rpc::new(&chain.name, std::slice::from_ref(url), Some(chain.id));
        let probe = rpc.probe().await.into_iter().next().unwrap_or_default();
        let verdict = match &probe.error {
            Some(error) => Err(error.clone()),
            None => prove_one(&rpc, chain.reading()).await,
        };
        Trial { probe, verdict }
    });
    futures::future::join_all(trials).await
}

async fn prove_one(rpc: &Rpc, reading: Reading) -> Result<String, String> {
    let told = |error: &dyn std::error::Error| runtime::chain_of(error);
    let head = fetch_head(rpc, None).await.map_err(|e| told(&e))?.ok_or("it has no block yet")?;
    match fetch_block(rpc, reading, BlockId::Hash(head.hash)).await.map_err(|e| told(&e))? {
        Some(fetched) => Ok(said(&fetched)),
        // Its head may be gone a moment later; then it is no worse than others.
        None => Err(format!("its head {} is gone, or has no receipts yet", head.number)),
    }
}

fn said(fetched: &FetchedBlock) -> String {
    let FetchedBlock { block, proof, .. } = fetched;
    // Of a block with nothing in it little is to be proven.
    let block = match block.transactions.len() {
        1 => format!("block {}, of 1 transaction,", block.number),
        count => format!("block {}, of {count} transactions,", block.number),
    };
    let gaps: Vec<&str> = proof.gaps().collect();
    match (&proof.receipts, gaps.as_slice()) {
        (_, []) => format!("{block} is proven by roots"),
        (Part::Root, gaps) => format!("{block} has receipts that are proven by root; not proven: {}", gaps.join("; ")),
        (Part::Bloom(_), gaps) => format!("{block} has logs that are proven by bloom; not by root: {}", gaps.join("; ")),
        (Part::Unproven(_), gaps) => format!("{block} is believed: {}", gaps.join("; ")),
    }
}
