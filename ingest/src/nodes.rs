//! Connecting a command to a chain's nodes, one of which must belong to the chain of `chains.yaml`.

use anyhow::Context as _;
use chain::{Chain, Rpc};
use std::sync::Arc;

/// The pool of the chain's nodes. Those of another chain are never used.
///
/// # Errors
/// If all belong to another chain.
pub async fn connect(chain: Chain) -> anyhow::Result<(Arc<Chain>, Arc<Rpc>)> {
    let rpc = Rpc::of(&chain);
    rpc.refuse_wrong_chain().await.with_context(|| format!("chain {}", chain.name))?;
    Ok((Arc::new(chain), Arc::new(rpc)))
}
