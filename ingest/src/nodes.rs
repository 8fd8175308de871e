//! Connecting to a chain's nodes, which must belong to the chain of `chains.yaml`.

use anyhow::Context as _;
use chain::{Chain, Rpc};
use std::sync::Arc;

/// The pool of the chain's nodes, after checking their chain ids.
///
/// # Errors
/// If a node belongs to another chain.
pub async fn connect(chain: Chain) -> anyhow::Result<(Arc<Chain>, Arc<Rpc>)> {
    let rpc = Rpc::of(&chain);
    rpc.refuse_wrong_chain().await.with_context(|| format!("chain {}", chain.name))?;
    Ok((Arc::new(chain), Arc::new(rpc)))
}
