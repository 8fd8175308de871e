//! What tells a wallet about a deposit address: where it belongs, and how to pay to it (`payment_uri`, EIP-681).

use crate::amount::Amount;
use crate::ids::ChainId;
use alloy::primitives::Address;

/// A request to pay an address, as [EIP-681](https://eips.ethereum.org/EIPS/eip-681) writes it. `token` is the contract; `None` is the
/// chain's coin.
pub fn payment_uri(chain: ChainId, token: Option<Address>, address: Address, amount: Amount) -> String {
    match token {
        None => format!("ethereum:{address}@{chain}?value={amount}"),
        Some(token) => format!("ethereum:{token}@{chain}/transfer?address={address}&uint256={amount}"),
    }
}

/// Where an address stands below its account's xpub, in BIP-32's notation.
pub fn derivation_path(address_index: u32) -> String {
    format!("0/{address_index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payment_uris_follow_eip_681() {
        let address = "0x9858effd232b4033e47d90003d41ec34ecaeda94".parse().unwrap();
        let amount = Amount::from(1_500_000_000_000_000_000);
        let uri = "ethereum:0x9858EfFD232B4033E47d90003D41EC34EcaEda94@31337?value=1500000000000000000";
        assert_eq!(payment_uri(ChainId(31337), None, address, amount), uri);
        let token = "0xdac17f958d2ee523a2206206994597c13d831ec7".parse().unwrap();
        let uri = "ethereum:0xdAC17F958D2ee523a2206206994597C13D831ec7@31337/transfer\
             ?address=0x9858EfFD232B4033E47d90003D41EC34EcaEda94&uint256=1500000";
        assert_eq!(payment_uri(ChainId(31337), Some(token), address, Amount::from(1_500_000)), uri);
    }
}
