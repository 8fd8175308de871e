//! Coin that a block gives without any transfer: nobody's payment, but part of what explains a balance.

use crate::block::Block;
use alloy::primitives::{Address, B256, U256};

/// OP's deposits from L1.
const DEPOSIT: u64 = 0x7e;
/// EIP-4895 counts in it.
const GWEI: u64 = 1_000_000_000;

/// Why there is more coin than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditSource {
    /// From the beacon chain, EIP-4895.
    Withdrawal,
    /// Minted on an L2 for coin locked on L1.
    Deposit,
}

/// Coin that came without a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Who got it.
    pub to: Address,
    /// Base units.
    pub value: U256,
    /// Why.
    pub source: CreditSource,
    /// A withdrawal's own; of a deposit its transaction's position in the block.
    pub index: u64,
    /// Of a deposit.
    pub transaction_hash: Option<B256>,
}

impl Block {
    /// What the block gives without a transfer. A deposit's mint stays even if the rest of its transaction is undone; its
    /// value is a transfer like any other's. (Arbitrum's deposits mint just what their value then moves.)
    pub fn credits(&self) -> Vec<Credit> {
        let withdrawals = self.withdrawals.iter().flatten().map(|withdrawal| Credit {
            to: withdrawal.address,
            value: U256::from(withdrawal.amount) * U256::from(GWEI),
            source: CreditSource::Withdrawal,
            index: withdrawal.index,
            transaction_hash: None,
        });
        let deposits = (0..).zip(&self.transactions).filter(|(_, transaction)| transaction.kind == DEPOSIT);
        let minted = deposits.filter_map(|(index, transaction)| {
            let value = transaction.mint.filter(|mint| !mint.is_zero())?;
            let transaction_hash = Some(transaction.hash);
            Some(Credit { to: transaction.from, value, source: CreditSource::Deposit, index, transaction_hash })
        });
        withdrawals.chain(minted).filter(|credit| !credit.value.is_zero()).collect()
    }
}
