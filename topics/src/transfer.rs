//! How money shows in logs.

use alloy::primitives::{Address, B256, address, b256};

/// `keccak256("Transfer(address,address,uint256)")`: ERC-20's event, ERC-721's with one topic more, and EIP-7708's.
pub const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// Where EIP-7708 reports transfers of the chain's coin from. No contract can be there.
pub const SYSTEM: Address = address!("fffffffffffffffffffffffffffffffffffffffe");
