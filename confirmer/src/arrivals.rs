//! The transfers of one block, put together by the payment or deposit that they are for.

use payments::ReceivedTransfer;
use payments::deposit::{MAX_DEPOSITS_OF_SENDER, Sender, deposit_id, deposits_of_many, sender};
use std::collections::HashMap;
use std::sync::Arc;
use topics::{Address, PaymentId, Transfer};

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
pub struct Arrivals {
    owners: Vec<(Owner, Vec<Arc<ReceivedTransfer>>)>,
    places: HashMap<Owner, usize>,
    /// The block's, Unix seconds.
    timestamp: u64,
    /// How many transfers to static addresses each sender has sent so far.
    sent: HashMap<Sender, usize>,
    /// The deposits of those beyond [`MAX_DEPOSITS_OF_SENDER`].
    rest: HashMap<Sender, PaymentId>,
}

impl Arrivals {
    /// For these transfers of a block, or of one part of it, which come one by one.
    pub fn new(transfers: &[Transfer], timestamp: u64) -> Self {
        let rest = deposits_of_many(transfers, timestamp);
        Self { owners: Vec::new(), places: HashMap::new(), timestamp, sent: HashMap::new(), rest }
    }

    /// The deposit that a transfer to a static address is for. Every transfer that counts is asked about, also one that is known and
    /// brings nothing, so that a replay counts as the first time did.
    pub fn deposit(&mut self, transfer: &Transfer) -> PaymentId {
        let sender = sender(transfer);
        let sent = self.sent.entry(sender).or_default();
        *sent += 1;
        match self.rest.get(&sender) {
            Some(rest) if *sent > MAX_DEPOSITS_OF_SENDER => *rest,
            _ => deposit_id([transfer], self.timestamp),
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
