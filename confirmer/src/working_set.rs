//! The payments that a batch can change, in memory: takes the inputs of its blocks, and then writes what changed.
//!
//! It turns records into [`Input`]s and leaves the rules to [`step`]. Transfers of unlisted tokens never reach `step`: they are
//! written beside their payment.

use anyhow::anyhow;
use chain::{COIN_DECIMALS, Chains};
use deadpool_postgres::GenericClient;
use payments::deposit::{DepositAddress, deposit_id};
use payments::lifecycle::{Cause, Event, Head, Input, step};
use payments::store::{self, OrphanTransfer, TransferOwner, TransferRow};
use payments::told::ToldEvents;
use payments::{Payment, ReceivedTransfer, TransferLabel};
use runtime::Failure;
use std::collections::{HashMap, HashSet};
use topics::{Address, B256, ChainId, PaymentId, Transfer, TransferId};

/// A payment that the batch may change.
struct TouchedPayment {
    payment: Payment,
    /// It is a deposit that the batch created, so it has no row yet.
    new: bool,
    changed: bool,
    /// Its transfers that a reorg within the batch took off the chain.
    removed: Vec<ReceivedTransfer>,
}

/// A transfer of an unlisted token, written without being part of its payment.
struct UnlistedTransfer {
    owner: TransferOwner,
    transfer: ReceivedTransfer,
    removed: bool,
}

/// The payments that the batch may change, and their events so far.
pub struct WorkingSet<'a> {
    chains: &'a Chains,
    /// Whether the batch's transfers are credited here; they are in one slice alone.
    takes_transfers: bool,
    payments: Vec<TouchedPayment>,
    by_address: HashMap<Address, usize>,
    /// Deposits, since they share addresses.
    by_id: HashMap<PaymentId, usize>,
    deposit_addresses: HashMap<Address, DepositAddress>,
    unlisted: HashMap<TransferId, UnlistedTransfer>,
    /// Transfers to an address of which Postgres has no payment.
    orphans: HashMap<TransferId, OrphanTransfer>,
    /// Events that were told before the database was restored, by their payments.
    told: HashMap<PaymentId, ToldEvents>,
    /// Hashes of the blocks that the batch removes.
    removed_blocks: Vec<B256>,
    /// In order, each with its payment right after the event.
    pub events: Vec<(Payment, Event)>,
}

impl<'a> WorkingSet<'a> {
    pub fn new(
        chains: &'a Chains,
        payments: Vec<Payment>,
        deposit_addresses: Vec<DepositAddress>,
        told: HashMap<PaymentId, ToldEvents>,
    ) -> Self {
        let mut working = Self {
            chains,
            takes_transfers: true,
            payments: Vec::with_capacity(payments.len()),
            by_address: HashMap::new(),
            by_id: HashMap::new(),
            deposit_addresses: deposit_addresses.into_iter().map(|address| (address.address, address)).collect(),
            unlisted: HashMap::new(),
            orphans: HashMap::new(),
            told,
            removed_blocks: Vec::new(),
            events: Vec::new(),
        };
        for payment in payments {
            working.insert(payment, false);
        }
        working
    }

    /// A slice of payments to which the batch has no transfer: the transfers are credited in another slice.
    pub fn without_transfers(chains: &'a Chains, payments: Vec<Payment>, told: HashMap<PaymentId, ToldEvents>) -> Self {
        Self { takes_transfers: false, ..Self::new(chains, payments, Vec::new(), told) }
    }

    fn insert(&mut self, payment: Payment, new: bool) -> usize {
        let index = self.payments.len();
        match payment.deposit_address {
            None => self.by_address.insert(payment.address, index),
            Some(_) => self.by_id.insert(payment.id, index),
        };
        self.payments.push(TouchedPayment { payment, new, changed: false, removed: Vec::new() });
        index
    }

    fn apply(&mut self, index: usize, input: &Input) -> Result<(), Failure> {
        let Some(touched) = self.payments.get_mut(index) else {
            return Ok(());
        };
        let step = match self.told.get_mut(&touched.payment.id) {
            Some(told) => told.step(&touched.payment, input),
            None => step(&touched.payment, input),
        };
        let step = step.map_err(|e| Failure::halt(e).context(format!("payment {}", touched.payment.id)))?;
        touched.changed |= step.next != touched.payment;
        touched.removed.extend(step.removed);
        touched.payment = step.next;
        self.events.extend(step.events.into_iter().map(|event| (touched.payment.clone(), event)));
        Ok(())
    }

    /// Applies an input to the payments that it can change; for the others, `step` would copy the payment for nothing.
    fn apply_where(&mut self, input: &Input, concerned: impl Fn(&Payment) -> bool) -> Result<(), Failure> {
        for index in 0..self.payments.len() {
            if self.payments.get(index).is_some_and(|touched| concerned(&touched.payment)) {
                self.apply(index, input)?;
            }
        }
        Ok(())
    }

    /// Expires what is pending when a block with this timestamp is added.
    pub fn expire(&mut self, cause: Cause) -> Result<(), Failure> {
        self.apply_where(&Input::Expired(cause), |payment| payment.expires_at < cause.timestamp && payment.expired_by.is_none())
    }

    /// Confirms what is deep enough under this head.
    pub fn head(&mut self, head: Head) -> Result<(), Failure> {
        self.apply_where(&Input::Head(head), |payment| {
            payment.transfers.iter().any(|transfer| transfer.credited && !transfer.confirmed)
        })
    }

    /// Takes back what a removed block had brought.
    pub fn remove(&mut self, cause: Cause) -> Result<(), Failure> {
        self.removed_blocks.push(cause.block.hash);
        for unlisted in self.unlisted.values_mut().filter(|unlisted| unlisted.transfer.block.hash == cause.block.hash) {
            unlisted.removed = true;
        }
        self.orphans.retain(|_, orphan| orphan.block.hash != cause.block.hash);
        self.apply_where(&Input::Removed(cause), |_| true)
    }

    /// Credits a transfer to one of our addresses, in a block that is on the chain.
    ///
    /// A known transfer changes nothing: a replay of the chain's past went beyond the head, which now gets there, or the other way
    /// round. That no record is applied twice is what the sequence checks.
    pub fn credit(&mut self, cause: &Cause, transfer: &Transfer) -> Result<(), Failure> {
        if !self.takes_transfers {
            return Ok(());
        }
        let to = transfer.to;
        if !self.by_address.contains_key(&to) && !self.deposit_addresses.contains_key(&to) {
            self.keep_orphan(cause, transfer);
            return Ok(());
        }
        let transfer = self.received(cause, transfer);
        let index = match self.by_address.get(&to) {
            Some(index) => *index,
            None => match self.deposit(&transfer, to)? {
                Some(index) => index,
                None => return Ok(()),
            },
        };
        let Some(touched) = self.payments.get(index) else {
            return Ok(());
        };
        if touched.payment.transfers.iter().any(|known| known.id == transfer.id) {
            return Ok(());
        }
        let own = touched.payment.asks_for(cause.chain, transfer.token);
        if !own && !transfer.listed {
            let owner = TransferOwner::Payment(touched.payment.id.0);
            self.unlisted.insert(transfer.id, UnlistedTransfer { owner, transfer, removed: false });
            return Ok(());
        }
        // The payment's own token counts, even if chains.yaml has dropped it since.
        self.apply(index, &Input::Transfer(ReceivedTransfer { listed: true, ..transfer }))
    }

    /// The index of the deposit that a transfer to a static address creates, or has created; `None` if its token is not listed.
    fn deposit(&mut self, transfer: &ReceivedTransfer, to: Address) -> Result<Option<usize>, Failure> {
        if let Some(index) = self.by_id.get(&deposit_id(&transfer.id)) {
            return Ok(Some(*index));
        }
        let Some(address) = self.deposit_addresses.get(&to) else {
            return Ok(None);
        };
        let chain = self.chains.by_id(transfer.id.chain).ok_or_else(|| {
            Failure::Halt(anyhow!(
                "a deposit arrived on chain {}, which the chains file does not have, so it has no confirmation policy",
                transfer.id.chain
            ))
        })?;
        match address.deposit(chain, transfer) {
            Some(deposit) => Ok(Some(self.insert(deposit, true))),
            None => {
                let owner = TransferOwner::DepositAddress(address.id);
                self.unlisted.insert(transfer.id, UnlistedTransfer { owner, transfer: transfer.clone(), removed: false });
                Ok(None)
            }
        }
    }

    /// Sets a transfer aside whose payment Postgres does not have: it stops nobody else, and is credited when the payment is there.
    fn keep_orphan(&mut self, cause: &Cause, transfer: &Transfer) {
        let orphan = OrphanTransfer { block: cause.block, timestamp: cause.timestamp, transfer: transfer.clone() };
        self.orphans.insert(transfer.id, orphan);
    }

    /// Names the batch's orphans, of which a stranger can send many.
    fn report_orphans(&self) {
        let Some(OrphanTransfer { block, transfer, .. }) = self.orphans.values().next() else { return };
        base::metrics::ORPHAN_TRANSFERS.counter(&[]).increment(u64::try_from(self.orphans.len()).unwrap_or_default());
        tracing::error!(
            "{} orphans: transfers to addresses that have an intent in Kafka and no payment in Postgres, such as {} base units of {} to \
             {} in block {} of chain {}, transaction {}. Each is credited when its payment is there again. Does DATABASE_URL name the \
             right database?",
            self.orphans.len(),
            transfer.amount,
            transfer.token.map_or_else(|| "the coin".to_owned(), |token| token.to_string()),
            transfer.to,
            block.number,
            transfer.id.chain,
            transfer.id.transaction,
        );
    }

    /// The transfer with what chains.yaml calls its chain and token.
    fn received(&self, cause: &Cause, transfer: &Transfer) -> ReceivedTransfer {
        let chain = self.chains.by_id(cause.chain);
        let token = transfer.token.and_then(|address| chain.and_then(|chain| chain.token_by_address(address)));
        let decimals = match transfer.token {
            None => Some(COIN_DECIMALS),
            Some(_) => token.map(|token| token.decimals),
        };
        ReceivedTransfer {
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
            label: TransferLabel {
                chain: chain.map(|chain| chain.name.clone()),
                token: token.map(|token| token.symbol.clone()),
                decimals,
            },
        }
    }

    /// Writes all that changed, and the events.
    pub async fn write(&self, db: &impl GenericClient, chain: ChainId) -> Result<(), Failure> {
        let changed: Vec<&TouchedPayment> = self.payments.iter().filter(|touched| touched.changed).collect();
        let new: Vec<&Payment> = changed.iter().filter(|touched| touched.new).map(|touched| &touched.payment).collect();
        store::insert_deposits(db, &new).await?;
        store::save_payments(db, &changed.iter().map(|touched| &touched.payment).collect::<Vec<_>>()).await?;
        if self.takes_transfers {
            store::remove_unlisted(db, chain, &self.removed_blocks).await?;
            store::remove_orphans(db, chain, &self.removed_blocks).await?;
            store::save_orphans(db, &self.orphans.values().collect::<Vec<_>>()).await?;
            self.report_orphans();
        }
        let mut rows: Vec<TransferRow<'_>> = Vec::new();
        for touched in &changed {
            rows.extend(
                touched.payment.transfers.iter().map(|transfer| TransferRow::of_payment(&touched.payment, transfer, false)),
            );
            // A block can be removed, added and removed again within one batch: each transfer is written once, in its last state.
            let mut written: HashSet<_> = touched.payment.transfers.iter().map(|transfer| transfer.id).collect();
            let removed = touched.removed.iter().filter(|transfer| written.insert(transfer.id));
            rows.extend(removed.map(|transfer| TransferRow::of_payment(&touched.payment, transfer, true)));
        }
        rows.extend(self.unlisted.values().map(|row| TransferRow::unlisted(row.owner, &row.transfer, row.removed)));
        store::save_transfers(db, &rows).await?;
        for (id, _) in self.told.iter().filter(|(_, told)| told.is_contradicted()) {
            tracing::error!("payment {id} was cancelled before the database was restored, and its state does not allow it now");
        }
        store::forget_told_events(db, self.told.iter()).await?;
        store::record_events(db, self.events.iter().map(|(payment, event)| (payment, event))).await
    }
}
