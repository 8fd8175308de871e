//! The transfers of one block, put together by the payment or deposit that they are for.

use payments::ReceivedTransfer;
use payments::deposit::{MAX_DEPOSITS_OF_SENDER, deposit_id};
use std::collections::HashMap;
use std::sync::Arc;
use topics::{Address, PaymentId};

/// What transfers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A payment of the working set, by its index there.
    Payment(usize),
    /// A deposit, which may not be there yet.
    Deposit {
        id: PaymentId,
        /// The static address.
        at: Address,
    },
}

/// Transfers by owner, in the order in which each owner has its first.
#[derive(Default)]
pub struct Arrivals {
    owners: Vec<(Owner, Vec<Arc<ReceivedTransfer>>)>,
    places: HashMap<Owner, usize>,
    senders: HashMap<(Address, Address, Option<Address>), Sender>,
}

/// What the block's transfers of one asset from one sender to one static address are for so far.
#[derive(Default)]
struct Sender {
    transfers: u64,
    /// The deposit of those beyond [`MAX_DEPOSITS_OF_SENDER`].
    rest: Option<PaymentId>,
}

impl Arrivals {
    /// The deposit at the static address `at` that `transfer` is for: that of its row if it is `known`. Every transfer that counts is
    /// asked about, also one that is known and brings nothing, so that a replay counts as the first time did.
    pub fn deposit(&mut self, transfer: &ReceivedTransfer, at: Address, known: Option<PaymentId>) -> PaymentId {
        let sender = self.senders.entry((at, transfer.from, transfer.token)).or_default();
        sender.transfers += 1;
        match known {
            Some(id) => id,
            None if sender.transfers <= MAX_DEPOSITS_OF_SENDER => deposit_id(&transfer.id),
            None => *sender.rest.get_or_insert_with(|| deposit_id(&transfer.id)),
        }
    }

    pub fn add(&mut self, owner: Owner, transfer: Arc<ReceivedTransfer>) {
        let place = *self.places.entry(owner).or_insert_with(|| {
            self.owners.push((owner, Vec::new()));
            self.owners.len() - 1
        });
        if let Some((_, transfers)) = self.owners.get_mut(place) {
            transfers.push(transfer);
        }
    }

    pub fn into_owners(self) -> impl Iterator<Item = (Owner, Vec<Arc<ReceivedTransfer>>)> {
        self.owners.into_iter()
    }
}
