//! Static addresses, and the deposits that transfers to them make.

use crate::payment::{Asset, NEVER, Paid, Payment, Terms, Token};
use chain::Chain;
use topics::{Address, PaymentId, TransferId};
use uuid::{Uuid, uuid};

/// UUIDv5's name space of deposits: a number of ours that nothing else uses.
const DEPOSITS: Uuid = uuid!("6f4d7b1e-52f0-4b0e-9d0a-4c1f6e7a9b35");

/// An address for a customer and not for an amount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepositAddress {
    /// Identity.
    pub id: Uuid,
    /// Whose it is.
    pub merchant: Uuid,
    /// The merchant's own reference, the customer's number maybe. One address each.
    pub external_id: Option<String>,
    /// The merchant's JSON, as text.
    pub metadata: Option<String>,
    /// Where to pay, on any chain.
    pub address: Address,
    /// Which account key the address is from.
    pub xpub: String,
    /// i of /0/i.
    pub address_index: u32,
    /// Unix seconds.
    pub created_at: u64,
}

/// The id of the deposit that a transfer makes: the same in every replay. The same money in another block is another
/// transfer, and so another deposit.
pub fn deposit_id(transfer: &TransferId) -> PaymentId {
    let TransferId { chain, block, transaction, source, index } = transfer;
    let name = format!("{chain}/{block}/{transaction}/{}/{index}", source.as_str());
    PaymentId(Uuid::new_v5(&DEPOSITS, name.as_bytes()))
}

impl DepositAddress {
    /// The deposit that `paid` makes, as it is before [`step`](crate::lifecycle::step) is given the transfer. `None` if
    /// `chain`, on which it arrived, does not list the token.
    pub fn deposit(&self, chain: &Chain, paid: &Paid) -> Option<Payment> {
        let asset = match paid.token {
            None => Asset { token: None, decimals: chain::COIN_DECIMALS },
            Some(address) => {
                let token = chain.token_by_address(address)?;
                Asset { token: Some(Token { symbol: token.symbol.clone(), address }), decimals: token.decimals }
            }
        };
        Some(Payment {
            id: deposit_id(&paid.id),
            merchant: self.merchant,
            external_id: self.external_id.clone(),
            metadata: self.metadata.clone(),
            chain: chain.id,
            chain_name: chain.name.clone(),
            asset,
            address: self.address,
            xpub: self.xpub.clone(),
            address_index: self.address_index,
            amount: paid.amount,
            terms: Terms::default(),
            policy: chain.policy_for(paid.token, paid.amount).into(),
            created_at: paid.timestamp,
            expires_at: NEVER,
            deposit_address: Some(self.id),
            cancelled: false,
            expired_by: None,
            transfers: Vec::new(),
            // Its first event is its detection.
            sequence: 0,
            updated_at: paid.timestamp,
        })
    }
}
