//! Static addresses, and deposits: the payments that transfers to a static address create.
//!
//! A deposit's id follows from its transfers, block and content included, so a replay finds the deposit that it created before, and
//! a block that comes again with other content under the same hash creates another one.

use crate::payment::{Asset, NEVER, Payment, Sums, Terms, Token};
use crate::total::Total;
use crate::transfer::ReceivedTransfer;
use chain::Chain;
use std::collections::HashMap;
use std::sync::Arc;
use topics::{Address, PaymentId, Transfer, TransferId};
use uuid::{Uuid, uuid};

/// The UUIDv5 namespace of deposits' ids. A random number that nothing else uses; another one would change every id.
const DEPOSIT_NAMESPACE: Uuid = uuid!("6f4d7b1e-52f0-4b0e-9d0a-4c1f6e7a9b35");

/// Transfers of one block, one sender and one asset that are a deposit each. Those beyond are one.
pub const MAX_DEPOSITS_OF_SENDER: usize = 100;

/// A static address: given out to a customer once, for any amount on any chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepositAddress {
    pub id: Uuid,
    pub merchant: Uuid,
    /// The merchant's own reference, such as the customer's number. Each has one address.
    pub external_id: Option<String>,
    /// The merchant's JSON object, as it was written. Deposits share it.
    pub metadata: Option<Arc<str>>,
    pub address: Address,
    /// Fingerprint of the account that the address is derived from.
    pub xpub: String,
    /// i of m/44'/60'/0'/0/i.
    pub address_index: u32,
    /// Unix seconds.
    pub created_at: u64,
    /// The id of the API key that asked.
    pub asked_by: Option<String>,
}

/// The id of the deposit that these transfers of one block create, the same in every replay. The same money in another block is
/// another transfer, so it is another deposit. `timestamp` is the block's.
pub fn deposit_id<'a>(transfers: impl IntoIterator<Item = &'a Transfer>, timestamp: u64) -> PaymentId {
    PaymentId(transfers.into_iter().fold(DEPOSIT_NAMESPACE, |id, transfer| {
        let Transfer { id: TransferId { chain, block, transaction, source, index }, token, from, to, amount, .. } = transfer;
        let (source, token) = (source.as_str(), token.map_or_else(String::new, |token| format!("{token:x}")));
        let name = format!("{chain}/{block}/{transaction}/{source}/{index}/{token}/{from:x}/{to:x}/{amount}/{timestamp}");
        Uuid::new_v5(&id, name.as_bytes())
    }))
}

/// Whose transfers of a block are counted together: the sender, the static address and the asset.
pub type Sender = (Address, Address, Option<Address>);

/// The sender of a transfer.
pub fn sender(transfer: &Transfer) -> Sender {
    (transfer.from, transfer.to, transfer.token)
}

/// The deposits of senders whose transfers are too many for a deposit each, of those beyond [`MAX_DEPOSITS_OF_SENDER`]. All the
/// transfers of a block, or of one part of it, are asked about together.
pub fn deposits_of_many<'a>(transfers: impl IntoIterator<Item = &'a Transfer>, timestamp: u64) -> HashMap<Sender, PaymentId> {
    let mut of_sender: HashMap<Sender, Vec<&Transfer>> = HashMap::new();
    for transfer in transfers {
        of_sender.entry(sender(transfer)).or_default().push(transfer);
    }
    let many = of_sender.into_iter().filter(|(_, transfers)| transfers.len() > MAX_DEPOSITS_OF_SENDER);
    many.map(|(sender, transfers)| (sender, deposit_id(transfers, timestamp))).collect()
}

impl DepositAddress {
    /// The deposit of this id that `transfers` create, as it is before [`step`](crate::lifecycle::step) credits them. They are of one
    /// block and one asset. `None` if `chain`, on which they arrived, does not list the token.
    pub fn deposit(&self, id: PaymentId, chain: &Chain, transfers: &[Arc<ReceivedTransfer>]) -> Option<Payment> {
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
            id,
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
            settlement: None,
            sums: Sums::default(),
            parts: Vec::new(),
            transfers: Vec::new(),
            // Its first event is `deposit.detected`.
            sequence: 0,
            updated_at: first.timestamp,
        })
    }
}
