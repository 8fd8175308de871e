//! Naming the block to fetch: by height, hash or tag.

use crate::rpc::Call;
use alloy::primitives::B256;
use serde_json::{Value, json};

/// The block to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockId {
    /// The block at this height on the node's current chain.
    Number(u64),
    /// The block with this hash.
    Hash(B256),
}

impl BlockId {
    pub(super) fn as_json(self) -> Value {
        match self {
            Self::Number(number) => json!(format!("{number:#x}")),
            Self::Hash(hash) => json!(hash),
        }
    }
}

/// A block tag of the chain's finality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockTag {
    /// A reorg of this block is unlikely.
    Safe,
    /// A reorg of this block would break the chain's consensus rules.
    Finalized,
}

impl BlockTag {
    /// The tag in JSON-RPC.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Finalized => "finalized",
        }
    }
}

/// The call for a block. `whole` asks for full transactions instead of their hashes.
pub(super) fn block_call(id: BlockId, whole: bool) -> Call {
    let method = match id {
        BlockId::Number(_) => "eth_getBlockByNumber",
        BlockId::Hash(_) => "eth_getBlockByHash",
    };
    (method, json!([id.as_json(), whole]))
}
