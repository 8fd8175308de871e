//! Coin that comes without a transfer, so that a balance can be explained: withdrawals of the beacon chain and what L2s mint
//! for deposits on L1. It is no payment.
//!
//! Left out on purpose: Arbitrum's deposits (0x64), since all that they credit is the value of a transaction that says so
//! itself; and fees and block rewards, which go to a block's producer and not to those who wait for payments.

use crate::block::{Block, Withdrawal};
use crate::proof::{Part, Unproven};
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::{Address, B256, U256};
use topics::ChainId;

/// Wei in a Gwei, the unit of the beacon chain.
const GWEI: u64 = 1_000_000_000;
/// OP's deposits, each an L1 transaction's doing.
const DEPOSIT: u64 = 0x7e;
/// Gnosis and Chiado pay their withdrawals in a token, by a contract.
const WITHDRAW_A_TOKEN: [ChainId; 2] = [ChainId(100), ChainId(10_200)];

/// Coin that came to somebody without a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Who got it.
    pub to: Address,
    /// Base units, never zero.
    pub value: U256,
    /// Where it came from.
    pub source: CreditSource,
    /// A withdrawal's own number; of a deposit its transaction's position in the block.
    pub index: u64,
    /// Of a deposit.
    pub transaction_hash: Option<B256>,
}

/// Where coin without a transfer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditSource {
    /// Of the beacon chain, EIP-4895.
    Withdrawal,
    /// Minted on an L2 for coin locked on L1.
    Deposit,
    /// Of a block's producer. None is read yet.
    Reward,
}

impl Block {
    /// What the block credits without a transfer, as far as its chain tells it.
    pub fn credits(&self, chain: ChainId) -> Vec<Credit> {
        let withdrawals = self.withdrawals.iter().flatten().filter(|_| !WITHDRAW_A_TOKEN.contains(&chain));
        let withdrawn = withdrawals.filter_map(|withdrawal| {
            let value = U256::from(withdrawal.amount?).checked_mul(U256::from(GWEI))?;
            let (to, index) = (withdrawal.address?, withdrawal.index?);
            Some(Credit { to, value, source: CreditSource::Withdrawal, index, transaction_hash: None })
        });
        // Minted before the transaction runs, to its sender, and kept whatever becomes of it. Its value moves afterwards.
        let deposits = (0..).zip(&self.transactions).filter(|(_, transaction)| transaction.kind == DEPOSIT);
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

/// Checks the withdrawals against the header's root, which is proven or is not.
pub(crate) fn prove_withdrawals(block: &Block, header: &Part) -> Result<Part, Unproven> {
    let gap = |why: &str| Ok(Part::Unproven(why.to_owned()));
    // Since Isthmus this root of OP's is of something else, and there are no withdrawals of this kind.
    if block.transactions.iter().any(|transaction| transaction.kind == DEPOSIT)
        && block.withdrawals.as_ref().is_none_or(Vec::is_empty)
    {
        return Ok(Part::Root);
    }
    let none = ordered_trie_root_encoded::<Vec<u8>>(&[]);
    match (&block.withdrawals, block.withdrawals_root) {
        (None, None) => Ok(Part::Root),
        (None, Some(root)) if root == none => Ok(Part::Root),
        (None, Some(_)) => gap("withdrawals that the node leaves out"),
        (Some(list), None) if list.is_empty() => Ok(Part::Root),
        (Some(_), None) => gap("withdrawals without a root"),
        (Some(list), Some(root)) => {
            let Some(encoded) = list.iter().map(Withdrawal::encoded).collect::<Option<Vec<_>>>() else {
                return gap("withdrawals with fields missing");
            };
            match ordered_trie_root_encoded(&encoded) {
                got if got == root => Ok(Part::Root),
                // A chain whose header is its own may have another use for the root.
                _ if list.is_empty() && *header != Part::Root => gap("withdrawals under a root of the chain's own"),
                got => Err(Unproven::new(block.number, "the withdrawals", root, got)),
            }
        }
    }
}
