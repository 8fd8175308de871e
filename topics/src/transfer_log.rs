//! The constants of logs that report transfers.

use alloy::primitives::{Address, B256, address, b256};

/// `keccak256("Transfer(address,address,uint256)")`: ERC-20's event, ERC-721's with one topic more, and EIP-7708's.
pub const TRANSFER_TOPIC: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// The address that emits EIP-7708's logs of coin transfers. No contract can have it.
pub const COIN_LOG_ADDRESS: Address = address!("fffffffffffffffffffffffffffffffffffffffe");
