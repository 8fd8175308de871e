//! Coin that arrives without a transfer: withdrawals of the beacon chain and coin that L2s mint for deposits on L1. It
//! explains balances and is no payment.
//!
//! Left out on purpose: Arbitrum's deposits (0x64), which credit no more than the value of their own transaction; fees and
//! block rewards, which go to a block's producer.

use crate::block::{Block, OP_DEPOSIT};
use alloy::primitives::{Address, B256, U256};
use topics::ChainId;

/// The beacon chain counts in Gwei.
const WEI_PER_GWEI: u64 = 1_000_000_000;
/// Gnosis and Chiado pay withdrawals in a token, through a contract.
const TOKEN_WITHDRAWAL_CHAINS: [ChainId; 2] = [ChainId(100), ChainId(10_200)];

/// Coin credited to an address without a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The credited address.
    pub to: Address,
    /// Base units, never zero.
    pub value: U256,
    /// Its origin.
    pub source: CreditSource,
    /// The withdrawal's index, or the position of the deposit's transaction in the block.
    pub index: u64,
    /// `Some` for a deposit.
    pub transaction_hash: Option<B256>,
}

/// Origin of a [`Credit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditSource {
    /// From the beacon chain, EIP-4895.
    Withdrawal,
    /// Minted on an L2 for coin locked on L1.
    Deposit,
    /// To a block's producer. Not read yet.
    Reward,
}

impl Block {
    /// The block's credits, as far as its chain reports them.
    pub fn credits(&self, chain: ChainId) -> Vec<Credit> {
        let withdrawals = self.withdrawals.iter().flatten().filter(|_| !TOKEN_WITHDRAWAL_CHAINS.contains(&chain));
        let withdrawn = withdrawals.filter_map(|withdrawal| {
            let value = U256::from(withdrawal.amount?).checked_mul(U256::from(WEI_PER_GWEI))?;
            let (to, index) = (withdrawal.address?, withdrawal.index?);
            Some(Credit { to, value, source: CreditSource::Withdrawal, index, transaction_hash: None })
        });
        // Minted to the sender before the transaction runs, and kept if it fails. The transaction's value moves afterwards.
        let deposits = (0..).zip(&self.transactions).filter(|(_, transaction)| transaction.kind == OP_DEPOSIT);
        let minted = deposits.filter_map(|(index, transaction)| {
            Some(Credit {
                to: transaction.from,
                value: transaction.mint?,
                source: CreditSource::Deposit,
                index,
                transaction_hash: Some(transaction.hash),
            })
        });
        withdrawn.chain(minted).filter(|credit| !credit.value.is_zero()).collect()
    }
}
