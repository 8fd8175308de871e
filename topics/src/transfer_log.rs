//! The constants of logs that report transfers, and which contracts report a chain's coin as if it were a token.

use crate::ids::ChainId;
use alloy::primitives::{Address, B256, address, b256};

/// `keccak256("Transfer(address,address,uint256)")`: ERC-20's event, ERC-721's with one topic more, and EIP-7708's.
pub const TRANSFER_TOPIC: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// The address that emits EIP-7708's logs of coin transfers. No contract can have it.
pub const COIN_LOG_ADDRESS: Address = address!("fffffffffffffffffffffffffffffffffffffffe");
/// Where zkSync and its sisters take fees, and pay back what was too much: money that the payer had before.
pub const ZKSYNC_BOOTLOADER: Address = address!("0000000000000000000000000000000000008001");

/// A contract that is its chain's coin: its `Transfer` logs report the coin, and no token.
#[derive(Debug, PartialEq, Eq)]
pub struct CoinContract {
    /// The emitter of the logs.
    pub address: Address,
    /// The chains, by id. Empty: every chain, since nobody can deploy a contract there.
    pub chains: &'static [u64],
    /// What its logs tell.
    pub tells: CoinLogs,
    /// Completes "…, which is …" in the error of a chains file that lists it as a token.
    pub what: &'static str,
}

/// What a coin contract's logs tell beside the transactions' values and the call frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoinLogs {
    /// Every movement of the coin. In a block that has one of them, values and frames are the same money, or none.
    Every,
    /// What a call of the contract moved, by a precompile. Its value is 0, so neither a value nor a frame shows it.
    OwnMoves,
    /// What a call of the contract passed on. A frame from the contract to the payee shows the same money.
    PassedOn,
}

/// Every contract that is a chain's coin.
pub const COIN_CONTRACTS: [CoinContract; 5] = [
    CoinContract { address: COIN_LOG_ADDRESS, chains: &[], tells: CoinLogs::Every, what: "where EIP-7708 logs coin transfers" },
    CoinContract {
        address: address!("000000000000000000000000000000000000800A"),
        chains: &[],
        tells: CoinLogs::Every,
        what: "zkSync's mirror of its coin",
    },
    // Celo and Celo Sepolia.
    CoinContract {
        address: address!("471EcE3750Da237f93B8E339c536989b8978a438"),
        chains: &[42_220, 11_142_220],
        tells: CoinLogs::OwnMoves,
        what: "Celo's mirror of its coin",
    },
    // Moonbeam, Moonriver, Moonbase Alpha.
    CoinContract {
        address: address!("0000000000000000000000000000000000000802"),
        chains: &[1284, 1285, 1287],
        tells: CoinLogs::OwnMoves,
        what: "Moonbeam's mirror of its coin",
    },
    // Polygon and Amoy.
    CoinContract {
        address: address!("0000000000000000000000000000000000001010"),
        chains: &[137, 80_002],
        tells: CoinLogs::PassedOn,
        what: "Polygon's mirror of its coin",
    },
];

impl CoinContract {
    /// Whether it is this chain's coin.
    pub fn is_on(&self, chain: ChainId) -> bool {
        self.chains.is_empty() || self.chains.contains(&chain.0)
    }
}

/// Whether a log of this contract shows that its block reports every movement of the coin as a log.
pub fn tells_every_movement(emitter: Address) -> bool {
    COIN_CONTRACTS.iter().any(|contract| contract.tells == CoinLogs::Every && contract.address == emitter)
}
