//! Which of a block's transfers count: none of 0, in coin or a token, and the same coin once, whichever of the block's sources tell
//! it. Pure.
//!
//! Which sources tell the same money follows from the block and its chain's id alone, and never from what a node was asked for:
//! a log is kept in place of the frame that shows its money, so a replay with traces finds the transfer that a run without
//! traces found, under the same identity.

use std::collections::HashMap;
use topics::wire::matches_record::Transfer;
use topics::{Address, COIN_CONTRACTS, ChainId, CoinContract, CoinLogs, ZKSYNC_BOOTLOADER};

/// What told a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A token's log.
    Token,
    /// A log of the contract that is the coin.
    Coin(&'static CoinContract),
    /// The transaction's own value.
    Value,
    /// A call frame.
    Frame,
}

impl Told {
    fn tells(self, logs: CoinLogs) -> Option<Address> {
        if let Self::Coin(contract) = self { Some(contract.address).filter(|_| contract.tells == logs) } else { None }
    }
}

/// The contracts that are the chain's coin.
pub fn coin_contracts(chain: u64) -> impl Iterator<Item = &'static CoinContract> {
    COIN_CONTRACTS.iter().filter(move |contract| contract.is_on(ChainId(chain)))
}

/// Whether the transfer moved money of the payer's to the payee. What a transaction's fee was too much comes back to its payer.
pub fn is_payment(told: Told, transfer: &Transfer) -> bool {
    let paid_back = told.tells(CoinLogs::Every).is_some() && transfer.from == ZKSYNC_BOOTLOADER.as_slice();
    !paid_back && transfer.from != transfer.to && transfer.amount.iter().any(|byte| *byte != 0)
}

/// A movement within its transaction: transaction, sender, recipient, amount.
type Movement = (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

fn movement(transfer: &Transfer, from: &[u8]) -> Movement {
    (transfer.transaction_hash.to_vec(), from.to_vec(), transfer.to.to_vec(), transfer.amount.to_vec())
}

/// Movements and how often each was told.
#[derive(Default)]
struct Movements(HashMap<Movement, usize>);

impl Movements {
    fn add(&mut self, movement: Movement) {
        *self.0.entry(movement).or_default() += 1;
    }

    /// Takes one off. Returns whether there was one.
    fn take(&mut self, movement: &Movement) -> bool {
        let left = self.0.get_mut(movement).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

/// Drops the transfers that show the money of another one.
pub fn count_once(found: &mut Vec<(Told, Transfer)>) {
    // Nearly every block: no log of a contract that passes on or moves the coin itself.
    let is_partial =
        |(told, _): &(Told, Transfer)| told.tells(CoinLogs::PassedOn).or_else(|| told.tells(CoinLogs::OwnMoves)).is_some();
    if !found.iter().any(is_partial) {
        return;
    }
    // Where a chain reports every movement, the contract's log is a second telling, by its payer or by the contract.
    let mut every = Movements::default();
    for (told, transfer) in found.iter() {
        if told.tells(CoinLogs::Every).is_some() {
            every.add(movement(transfer, &transfer.from));
        }
    }
    found.retain(|(told, transfer)| {
        let contract = told.tells(CoinLogs::PassedOn).or_else(|| told.tells(CoinLogs::OwnMoves));
        !contract.is_some_and(|contract| {
            every.take(&movement(transfer, contract.as_slice())) || every.take(&movement(transfer, &transfer.from))
        })
    });
    // The log names the payer, and the frame the contract that passed the money on.
    let mut passed_on = Movements::default();
    for (told, transfer) in found.iter() {
        if let Some(contract) = told.tells(CoinLogs::PassedOn) {
            passed_on.add(movement(transfer, contract.as_slice()));
        }
    }
    found.retain(|(told, transfer)| *told != Told::Frame || !passed_on.take(&movement(transfer, &transfer.from)));
}
