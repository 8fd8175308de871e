//! Static addresses, and deposits: the payments that transfers to a static address create.
//!
//! A deposit's id follows from its first transfer, block included, so a replay finds the deposit that it created before.

use crate::payment::{Asset, NEVER, Payment, Sums, Terms, Token};
use crate::total::Total;
use crate::transfer::ReceivedTransfer;
use chain::Chain;
use std::sync::Arc;
use topics::{Address, PaymentId, TransferId};
use uuid::{Uuid, uuid};

/// The UUIDv5 namespace of deposits' ids. A random number that nothing else uses; another one would change every id.
const DEPOSIT_NAMESPACE: Uuid = uuid!("6f4d7b1e-52f0-4b0e-9d0a-4c1f6e7a9b35");

/// Transfers of one block, one sender and one asset that are a deposit each. Those beyond are one.
pub const MAX_DEPOSITS_OF_SENDER: u64 = 100;

/// A static address: given out to a customer once, for any amount on any chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepositAddress {
    pub id: Uuid,
    pub merchant: Uuid,
    /// The merchant's own reference, such as the customer's number. Each has one address.
    pub external_id: Option<String>,
    /// The merchant's JSON object, as it was written.
    pub metadata: Option<String>,
    pub address: Address,
    /// Fingerprint of the account that the address is derived from.
    pub xpub: String,
    /// i of m/44'/60'/0'/0/i.
    pub address_index: u32,
    /// Unix seconds.
    pub created_at: u64,
}

/// The id of the deposit that a transfer creates, the same in every replay. The same money in another block is another transfer,
/// so it is another deposit.
pub fn deposit_id(transfer: &TransferId) -> PaymentId {
    let TransferId { chain, block, transaction, source, index } = transfer;
    let name = format!("{chain}/{block}/{transaction}/{}/{index}", source.as_str());
    PaymentId(Uuid::new_v5(&DEPOSIT_NAMESPACE, name.as_bytes()))
}

impl DepositAddress {
    /// The deposit that `transfers` create, as it is before [`step`](crate::lifecycle::step) credits them. They are of one block and
    /// one asset. `None` if `chain`, on which they arrived, does not list the token.
    pub fn deposit(&self, chain: &Chain, transfers: &[Arc<ReceivedTransfer>]) -> Option<Payment> {
        let first = transfers.first()?;
        let asset = match first.token {
            None => Asset { token: None, decimals: chain::COIN_DECIMALS },
            Some(address) => {
                let token = chain.token_by_address(address)?;
                Asset { token: Some(Token { symbol: token.symbol.clone(), address }), decimals: token.decimals }
            }
        };
        let amount = transfers.iter().fold(Total::ZERO, |sum, transfer| sum.plus(transfer.amount)).saturated();
        Some(Payment {
            id: deposit_id(&first.id),
            merchant: self.merchant,
            external_id: self.external_id.clone(),
            metadata: self.metadata.clone(),
            chain: chain.id,
            chain_name: chain.name.clone(),
            asset,
            address: self.address,
            xpub: self.xpub.clone(),
            address_index: self.address_index,
            amount,
            terms: Terms::default(),
            policy: chain.policy_for(first.token, amount).into(),
            created_at: first.timestamp,
            expires_at: NEVER,
            deposit_address: Some(self.id),
            cancelled: false,
            expired_by: None,
            sums: Sums::default(),
            parts: Vec::new(),
            transfers: Vec::new(),
            // Its first event is `deposit.detected`.
            sequence: 0,
            updated_at: first.timestamp,
        })
    }
}
