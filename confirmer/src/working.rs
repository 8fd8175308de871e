//! The payments that a batch can touch, in memory: what its blocks make of them, and then into the database.

use crate::deposit::{DepositAddress, deposit_id};
use crate::lifecycle::{Cause, Event, Head, Input, step};
use crate::payment::{Label, Paid, Payment};
use crate::store::{self, Owner, TransferRow};
use anyhow::anyhow;
use chain::{COIN_DECIMALS, Chains};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::{HashMap, HashSet};
use topics::{Address, B256, ChainId, PaymentId, Transfer, TransferId};

/// A payment that the batch may touch.
struct Loaded {
    now: Payment,
    /// A deposit that the batch made.
    new: bool,
    changed: bool,
    removed: Vec<Paid>,
}

/// A transfer of an unlisted token: kept, and no part of its payment.
struct Unlisted {
    owner: Owner,
    paid: Paid,
    removed: bool,
}

/// The payments that the batch may touch, and their events so far.
pub struct Working<'a> {
    chains: &'a Chains,
    /// Whether it is the one that takes the transfers.
    credits: bool,
    payments: Vec<Loaded>,
    by_address: HashMap<Address, usize>,
    /// Of deposits, which share addresses.
    by_id: HashMap<PaymentId, usize>,
    deposit_addresses: HashMap<Address, DepositAddress>,
    unlisted: HashMap<TransferId, Unlisted>,
    /// Hashes of the blocks that were removed.
    removed: Vec<B256>,
    /// In order, each with its payment right after it.
    pub events: Vec<(Payment, Event)>,
}

impl<'a> Working<'a> {
    pub fn new(chains: &'a Chains, payments: Vec<Payment>, deposit_addresses: Vec<DepositAddress>) -> Self {
        let mut working = Self {
            chains,
            credits: true,
            payments: Vec::with_capacity(payments.len()),
            by_address: HashMap::new(),
            by_id: HashMap::new(),
            deposit_addresses: deposit_addresses.into_iter().map(|address| (address.address, address)).collect(),
            unlisted: HashMap::new(),
            removed: Vec::new(),
            events: Vec::new(),
        };
        for payment in payments {
            working.push(payment, false);
        }
        working
    }

    /// Payments to none of which a transfer of the batch is: the transfers are another slice's business.
    pub fn uncredited(chains: &'a Chains, payments: Vec<Payment>) -> Self {
        Self { credits: false, ..Self::new(chains, payments, Vec::new()) }
    }

    fn push(&mut self, payment: Payment, new: bool) -> usize {
        let place = self.payments.len();
        match payment.deposit_address {
            None => self.by_address.insert(payment.address, place),
            Some(_) => self.by_id.insert(payment.id, place),
        };
        self.payments.push(Loaded { now: payment, new, changed: false, removed: Vec::new() });
        place
    }

    fn take(&mut self, place: usize, input: &Input) -> Result<(), Failure> {
        let Some(loaded) = self.payments.get_mut(place) else {
            return Ok(());
        };
        let step = step(&loaded.now, input).map_err(|e| Failure::halt(e).context(format!("payment {}", loaded.now.id)))?;
        loaded.changed |= step.next != loaded.now;
        loaded.removed.extend(step.removed);
        loaded.now = step.next;
        self.events.extend(step.events.into_iter().map(|event| (loaded.now.clone(), event)));
        Ok(())
    }

    /// Gives an input to those for which it can mean something; to the others it would be a copy for nothing.
    fn take_where(&mut self, input: &Input, concerned: impl Fn(&Payment) -> bool) -> Result<(), Failure> {
        for place in 0..self.payments.len() {
            if self.payments.get(place).is_some_and(|loaded| concerned(&loaded.now)) {
                self.take(place, input)?;
            }
        }
        Ok(())
    }

    /// A block with this timestamp is put on its chain.
    pub fn expire(&mut self, cause: Cause) -> Result<(), Failure> {
        self.take_where(&Input::Expired(cause), |payment| payment.expires_at < cause.timestamp && payment.expired_by.is_none())
    }

    /// A chain has this head now.
    pub fn head(&mut self, head: Head) -> Result<(), Failure> {
        self.take_where(&Input::Head(head), |payment| payment.transfers.iter().any(|paid| paid.credited && !paid.confirmed))
    }

    /// A block is taken off its chain.
    pub fn remove(&mut self, cause: Cause) -> Result<(), Failure> {
        self.removed.push(cause.block.hash);
        for unlisted in self.unlisted.values_mut().filter(|unlisted| unlisted.paid.block.hash == cause.block.hash) {
            unlisted.removed = true;
        }
        self.take_where(&Input::Removed(cause), |_| true)
    }

    /// A transfer to one of our addresses, in a block that is on the chain.
    ///
    /// One that is known changes nothing: the chain's past was replayed beyond the head, and now the head gets there, or the
    /// other way round. That no record is read twice is the sequence's business.
    pub fn credit(&mut self, cause: &Cause, transfer: &Transfer) -> Result<(), Failure> {
        if !self.credits {
            return Ok(());
        }
        let paid = self.paid(cause, transfer);
        let place = match self.by_address.get(&transfer.to) {
            Some(place) => *place,
            None => match self.deposit(&paid, transfer.to)? {
                Some(place) => place,
                None => return Ok(()),
            },
        };
        let Some(loaded) = self.payments.get(place) else {
            return Ok(());
        };
        if loaded.now.transfers.iter().any(|known| known.id == paid.id) {
            return Ok(());
        }
        let own = loaded.now.asks_for(cause.chain, paid.token);
        if !own && !paid.listed {
            let owner = Owner::Payment(loaded.now.id.0);
            self.unlisted.insert(paid.id, Unlisted { owner, paid, removed: false });
            return Ok(());
        }
        // The payment's own token counts, also if chains.yaml has dropped it since.
        self.take(place, &Input::Transfer(Paid { listed: true, ..paid }))
    }

    /// The place of the deposit that a transfer to a static address makes, or has made; none if its token is not listed.
    fn deposit(&mut self, paid: &Paid, to: Address) -> Result<Option<usize>, Failure> {
        if let Some(place) = self.by_id.get(&deposit_id(&paid.id)) {
            return Ok(Some(*place));
        }
        let Some(address) = self.deposit_addresses.get(&to) else {
            return Err(Failure::Halt(anyhow!(
                "transfer {:?} is to {to}, whose intent is in Kafka and whose payment is not in Postgres: is this the right database?",
                paid.id,
            )));
        };
        let chain = self.chains.by_id(paid.id.chain).ok_or_else(|| {
            Failure::Halt(anyhow!("a deposit on chain {} has no policy: the chains file has no such chain", paid.id.chain))
        })?;
        match address.deposit(chain, paid) {
            Some(deposit) => Ok(Some(self.push(deposit, true))),
            None => {
                let owner = Owner::DepositAddress(address.id);
                self.unlisted.insert(paid.id, Unlisted { owner, paid: paid.clone(), removed: false });
                Ok(None)
            }
        }
    }

    /// What arrived, and what chains.yaml calls it.
    fn paid(&self, cause: &Cause, transfer: &Transfer) -> Paid {
        let chain = self.chains.by_id(cause.chain);
        let token = transfer.token.and_then(|address| chain.and_then(|chain| chain.token_by_address(address)));
        let decimals = match transfer.token {
            None => Some(COIN_DECIMALS),
            Some(_) => token.map(|token| token.decimals),
        };
        Paid {
            id: transfer.id,
            block: cause.block,
            timestamp: cause.timestamp,
            transaction_index: transfer.transaction_index,
            token: transfer.token,
            from: transfer.from,
            amount: transfer.amount,
            credited: false,
            listed: transfer.token.is_none() || token.is_some(),
            confirmed: false,
            label: Label {
                chain: chain.map(|chain| chain.name.clone()),
                token: token.map(|token| token.symbol.clone()),
                decimals,
            },
        }
    }

    /// Into the database, all that changed.
    pub async fn write(&self, db: &impl GenericClient, chain: ChainId) -> Result<(), Failure> {
        let changed: Vec<&Loaded> = self.payments.iter().filter(|loaded| loaded.changed).collect();
        let new: Vec<&Payment> = changed.iter().filter(|loaded| loaded.new).map(|loaded| &loaded.now).collect();
        store::insert_deposits(db, &new).await?;
        store::save(db, &changed.iter().map(|loaded| &loaded.now).collect::<Vec<_>>()).await?;
        if self.credits {
            store::remove_unlisted(db, chain, &self.removed).await?;
        }
        let mut rows: Vec<TransferRow<'_>> = Vec::new();
        for loaded in &changed {
            rows.extend(loaded.now.transfers.iter().map(|paid| TransferRow::of(&loaded.now, paid, false)));
            // A block can be removed, added and removed again within one batch: the last word counts, once.
            let mut said: HashSet<_> = loaded.now.transfers.iter().map(|paid| paid.id).collect();
            let removed = loaded.removed.iter().filter(|paid| said.insert(paid.id));
            rows.extend(removed.map(|paid| TransferRow::of(&loaded.now, paid, true)));
        }
        rows.extend(self.unlisted.values().map(|kept| TransferRow::unlisted(kept.owner, &kept.paid, kept.removed)));
        store::save_transfers(db, &rows).await?;
        store::announce(db, self.events.iter().map(|(payment, event)| (payment, event))).await
    }
}
