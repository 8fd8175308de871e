//! The payments that a batch can change, in memory: takes the inputs of its blocks, and then writes what changed.
//!
//! It turns records into [`Input`]s and leaves the rules to [`step`]. Transfers that count for nothing never reach `step`: they are
//! written beside their payment. Whether a transfer is listed, below the minimum, and the symbol and decimals that it is kept under, are
//! decided here.

use crate::arrivals::{Arrivals, Owner};
use anyhow::anyhow;
use chain::{COIN_DECIMALS, Chain, Chains};
use deadpool_postgres::GenericClient;
use payments::deposit::DepositAddress;
use payments::events::state_for_records;
use payments::lifecycle::{Cause, Event, Head, Input, MAX_TOLD_SINGLY, Step, step};
use payments::store::{self, KnownTransfer, OrphanTransfer, PartRow, TransferOwner, TransferRow};
use payments::told::ToldEvents;
use payments::{Part, Payment, ReceivedTransfer, TransferLabel};
use runtime::Failure;
use std::collections::HashMap;
use std::sync::Arc;
use topics::{Address, Amount, B256, ChainId, Matches, PaymentId, Source, Transfer, TransferId};

/// A payment that the batch may change.
struct TouchedPayment {
    payment: Payment,
    /// It is a deposit that the batch created, so it has no row yet.
    new: bool,
    changed: bool,
    /// Its parts as their rows are.
    stored: Vec<Part>,
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
    /// The transfers of the batch's blocks that are known, those of the batch itself included.
    known: HashMap<TransferId, KnownTransfer>,
    /// Orphans of before the batch, in blocks in doubt that it replays.
    waiting: Vec<OrphanTransfer>,
    /// Transfers that are new, or on the chain again, or listed by now.
    rows: HashMap<TransferId, TransferRow>,
    /// Transfers to an address of which Postgres has no payment, and those in a token in doubt.
    orphans: HashMap<TransferId, OrphanTransfer>,
    /// Events that were told before the database was restored, by their payments.
    told: HashMap<PaymentId, ToldEvents>,
    /// In order, each with its payment right after the event.
    pub events: Vec<(Payment, Event)>,
}

/// [`step`], with what was told of the payment before the database went back.
pub(crate) fn step_told(told: &mut HashMap<PaymentId, ToldEvents>, payment: &Payment, input: &Input) -> Result<Step, Failure> {
    let step = match told.get_mut(&payment.id) {
        Some(told) => told.step(payment, input),
        None => step(payment, input),
    };
    step.map_err(|error| Failure::halt(error).context(format!("payment {}", payment.id)))
}

impl<'a> WorkingSet<'a> {
    pub fn new(
        chains: &'a Chains,
        payments: Vec<Payment>,
        deposit_addresses: Vec<DepositAddress>,
        known: HashMap<TransferId, KnownTransfer>,
        told: HashMap<PaymentId, ToldEvents>,
    ) -> Self {
        let mut working = Self {
            chains,
            takes_transfers: true,
            payments: Vec::with_capacity(payments.len()),
            by_address: HashMap::new(),
            by_id: HashMap::new(),
            deposit_addresses: deposit_addresses.into_iter().map(|address| (address.address, address)).collect(),
            known,
            waiting: Vec::new(),
            rows: HashMap::new(),
            orphans: HashMap::new(),
            told,
            events: Vec::new(),
        };
        for payment in payments {
            working.insert(payment, false);
        }
        working
    }

    /// A slice of payments to which the batch has no transfer: the transfers are credited in another slice.
    pub fn without_transfers(chains: &'a Chains, payments: Vec<Payment>, told: HashMap<PaymentId, ToldEvents>) -> Self {
        Self { takes_transfers: false, ..Self::new(chains, payments, Vec::new(), HashMap::new(), told) }
    }

    /// Adds orphans of before the batch, in blocks in doubt that it replays.
    #[must_use]
    pub fn with_waiting(self, waiting: Vec<OrphanTransfer>) -> Self {
        Self { waiting, ..self }
    }

    fn insert(&mut self, payment: Payment, new: bool) -> usize {
        let index = self.payments.len();
        match payment.deposit_address {
            None => self.by_address.insert(payment.address, index),
            Some(_) => self.by_id.insert(payment.id, index),
        };
        let stored = payment.parts.clone();
        self.payments.push(TouchedPayment { payment, new, changed: false, stored });
        index
    }

    fn apply(&mut self, index: usize, input: &Input) -> Result<(), Failure> {
        let Some(touched) = self.payments.get_mut(index) else {
            return Ok(());
        };
        let step = step_told(&mut self.told, &touched.payment, input)?;
        if step.next.sums.received.is_saturated() && !touched.payment.sums.received.is_saturated() {
            let (id, sum) = (step.next.id, step.next.sums.received);
            tracing::warn!(payment = %id, "more than 256 bits arrived, {sum}: it is shown as the largest amount");
        }
        touched.changed |= step.next != touched.payment;
        touched.payment = step.next;
        if !step.events.is_empty() {
            let state = state_for_records(&touched.payment);
            self.events.extend(step.events.into_iter().map(|event| (state.clone(), event)));
        }
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
        self.apply_where(&Input::Head(head), |payment| payment.parts.iter().any(|part| part.confirmed != part.credited))
    }

    /// Takes back what a removed block had brought. The head is the block at `below` now.
    pub fn remove(&mut self, cause: Cause, below: u64) -> Result<(), Failure> {
        for (_, known) in self.known.iter_mut().filter(|(id, _)| id.block == cause.block.hash) {
            known.on_chain = false;
        }
        self.orphans.retain(|_, orphan| orphan.block.hash != cause.block.hash);
        self.waiting.retain(|orphan| orphan.block.hash != cause.block.hash);
        self.apply_where(&Input::Removed { cause, below }, |payment| {
            payment.expired_by == Some(cause.block.number)
                || payment.parts.iter().any(|part| part.block.hash == cause.block.hash || !part.confirmed.is_zero())
        })
    }

    /// Takes back what blocks above this one had brought: the chain begins anew. `lost` has the numbers of those that are known.
    pub fn rewind(&mut self, cause: Cause, lost: &HashMap<B256, u64>) -> Result<(), Failure> {
        let number = cause.block.number;
        let is_lost = |hash| lost.get(&hash).is_some_and(|lost| *lost > number);
        for (_, known) in self.known.iter_mut().filter(|(id, _)| is_lost(id.block)) {
            known.on_chain = false;
        }
        self.orphans.retain(|_, orphan| orphan.block.number <= number);
        self.waiting.retain(|orphan| orphan.block.number <= number);
        self.apply_where(&Input::Rewound(cause), |payment| {
            payment.expired_by.is_some_and(|by| by > number)
                || payment.parts.iter().any(|part| part.block.number > number || !part.confirmed.is_zero())
        })
    }

    /// Checks that a replayed block has all that was applied of it while too few endpoints had given it. By now enough have:
    /// what it lacks is not on the chain, but for what contracts sent: traces that no second endpoint confirms are left out. One in
    /// parts has what was applied, or is refused by [`unapplied`](crate::unapplied).
    pub fn check_replayed(&self, cause: &Cause, record: &Matches) -> Result<(), Failure> {
        if record.parts > 1 {
            return Ok(());
        }
        let said: HashMap<TransferId, &Transfer> = record.transfers.iter().map(|transfer| (transfer.id, transfer)).collect();
        let known = self.known.values().filter(|known| known.on_chain && known.counts());
        let known = known.map(|known| (known.number, known.timestamp, &known.transfer));
        let orphans = self.orphans.values().chain(&self.waiting);
        let orphans = orphans.map(|orphan| (orphan.block.number, orphan.timestamp, &orphan.transfer));
        let is_said = |(number, timestamp, transfer): (u64, u64, &Transfer)| {
            let may_lack = transfer.id.source == Source::Trace;
            let has = said.get(&transfer.id).map_or(may_lack, |said| *said == transfer);
            (number, timestamp) == (cause.block.number, cause.timestamp) && has
        };
        let mut stand = known.chain(orphans).filter(|(.., transfer)| transfer.id.block == cause.block.hash);
        match stand.find(|applied| !is_said(*applied)).map(|(.., transfer)| transfer) {
            Some(Transfer { id, to, .. }) => Err(Failure::Halt(anyhow!(
                "the replayed block lacks what was applied of it when too few endpoints had given it, such as the transfer to \
                 {to} in transaction {}",
                id.transaction
            ))),
            None => Ok(()),
        }
    }

    /// Credits the transfers of a block that is on the chain, or of a part of it.
    ///
    /// A known transfer changes nothing: a replay of the chain's past went beyond the head, which now gets there, or the other way
    /// round. [`unapplied`](crate::unapplied) sees to it that no record is applied twice. Under a hash on the chain no other content
    /// counts than the first: only the removal of the block takes that back.
    pub fn credit(&mut self, cause: &Cause, part: u32, transfers: &[Transfer]) -> Result<(), Failure> {
        if !self.takes_transfers {
            return Ok(());
        }
        let mut arrivals = Arrivals::new(transfers, cause.timestamp);
        // A stranger can send a payment any number, and it may have a part in each of many blocks.
        let mut strange = HashMap::new();
        let (others, transfers): (Vec<_>, Vec<_>) = transfers.iter().partition(|transfer| {
            let known = self.known.get(&transfer.id).filter(|known| known.on_chain);
            known.is_some_and(|known| !known.is(cause, transfer))
                || *strange.entry(transfer.to).or_insert_with(|| self.has_strange_part(cause, transfer.to))
        });
        if let Some(other) = others.first() {
            tracing::error!(
                "{} transfers of block {} of chain {} are not what was applied of it before, such as transaction {}. What was applied \
                 stays: an endpoint of now or of then gives wrong content under the block's hash. If what was applied is wrong, \
                 `ctrip chain restart {}` takes it back as long as the block lies above the last final one; later nothing does",
                others.len(),
                cause.block,
                cause.chain,
                other.id.transaction,
                cause.chain,
            );
        }
        for transfer in transfers {
            self.arrive(cause, part, transfer, &mut arrivals)?;
        }
        for (owner, transfers) in arrivals.into_owners() {
            match owner {
                Owner::Payment(index) => self.credit_payment(index, &transfers)?,
                Owner::Deposit { id, at } => self.credit_deposit(id, at, transfers)?,
            }
        }
        Ok(())
    }

    /// Whether the payment at this address has had something of the same block under another time or number.
    fn has_strange_part(&self, cause: &Cause, to: Address) -> bool {
        let touched = self.by_address.get(&to).and_then(|index| self.payments.get(*index));
        let mut parts = touched.into_iter().flat_map(|touched| &touched.payment.parts);
        parts.any(|part| {
            part.chain == cause.chain
                && part.block.hash == cause.block.hash
                && (part.block.number, part.timestamp) != (cause.block.number, cause.timestamp)
        })
    }

    /// Decides about one transfer: writes it down, and adds it to `arrivals` if it counts.
    fn arrive(&mut self, cause: &Cause, part: u32, transfer: &Transfer, arrivals: &mut Arrivals) -> Result<(), Failure> {
        let payment = self.by_address.get(&transfer.to).copied();
        let known = self.known.get(&transfer.id).filter(|known| known.is(cause, transfer));
        let in_doubt = self.is_in_doubt(transfer, payment, known);
        let has_owner = self.has_owner(transfer.to);
        if in_doubt || !has_owner {
            // Its owner may be a payment that asks for the token, and then the token is in no doubt.
            self.keep_orphan(cause, part, transfer, in_doubt && has_owner);
            return Ok(());
        }
        let received = self.received(cause, transfer, payment, known);
        let (owner, row_owner) = match payment {
            Some(index) => {
                let id = self.payments.get(index).map(|touched| touched.payment.id.0).unwrap_or_default();
                (Owner::Payment(index), TransferOwner::Payment(id))
            }
            None if received.counts() => {
                let id = arrivals.deposit(transfer);
                (Owner::Deposit { id, at: transfer.to }, TransferOwner::Payment(id.0))
            }
            None => {
                let at = self.deposit_address(&transfer.id, transfer.to)?;
                (Owner::Deposit { id: PaymentId(at.id), at: transfer.to }, TransferOwner::DepositAddress(at.id))
            }
        };
        // Nothing changes what was decided, but for a token that is listed by now.
        if known.is_some_and(|known| known.on_chain && (known.listed || !received.listed)) {
            return Ok(());
        }
        let decided = KnownTransfer {
            transfer: transfer.clone(),
            number: cause.block.number,
            timestamp: cause.timestamp,
            listed: received.listed,
            below_minimum: received.below_minimum,
            on_chain: true,
        };
        self.known.insert(transfer.id, decided);
        let received = Arc::new(received);
        if received.counts() {
            arrivals.add(owner, received.clone());
        }
        self.rows.insert(transfer.id, TransferRow { owner: row_owner, transfer: received });
        Ok(())
    }

    /// Of one asset a few transfers are inputs of their own, and many are one.
    fn credit_payment(&mut self, index: usize, transfers: &[Arc<ReceivedTransfer>]) -> Result<(), Failure> {
        let mut by_token: HashMap<Option<Address>, Vec<Arc<ReceivedTransfer>>> = HashMap::new();
        for transfer in transfers {
            by_token.entry(transfer.token).or_default().push(transfer.clone());
        }
        for transfer in transfers {
            match by_token.get(&transfer.token) {
                Some(many) if many.len() > MAX_TOLD_SINGLY => {
                    let many = by_token.remove(&transfer.token).unwrap_or_default();
                    self.apply(index, &Input::Transfers(many))?;
                }
                Some(_) => self.apply(index, &Input::Transfers(vec![transfer.clone()]))?,
                // Its asset's many have been applied.
                None => {}
            }
        }
        Ok(())
    }

    /// Credits a deposit, which its transfers create unless it is there.
    fn credit_deposit(&mut self, id: PaymentId, at: Address, transfers: Vec<Arc<ReceivedTransfer>>) -> Result<(), Failure> {
        let Some(first) = transfers.first() else {
            return Ok(());
        };
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => {
                let address = self.deposit_address(&first.id, at)?;
                match address.deposit(id, self.chain(first.id.chain)?, &transfers) {
                    Some(deposit) => self.insert(deposit, true),
                    None => return Ok(()),
                }
            }
        };
        self.apply(index, &Input::Transfers(transfers))
    }

    fn deposit_address(&self, transfer: &TransferId, to: Address) -> Result<&DepositAddress, Failure> {
        self.deposit_addresses.get(&to).ok_or_else(|| {
            Failure::Halt(anyhow!(
                "transfer {transfer:?} is to {to}, which has an intent in Kafka and no payment in Postgres: does DATABASE_URL name the right database?"
            ))
        })
    }

    fn chain(&self, id: ChainId) -> Result<&'a Chain, Failure> {
        self.chains.by_id(id).ok_or_else(|| {
            Failure::Halt(anyhow!(
                "a deposit arrived on chain {id}, which the chains file does not have, so it has no confirmation policy"
            ))
        })
    }

    /// The transfer with what chains.yaml says of its chain and token, or what was decided about it before. `payment` is the index of
    /// the payment that it is to; it is to a static address otherwise.
    fn received(
        &self,
        cause: &Cause,
        transfer: &Transfer,
        payment: Option<usize>,
        known: Option<&KnownTransfer>,
    ) -> ReceivedTransfer {
        let chain = self.chains.by_id(cause.chain);
        let token = transfer.token.and_then(|address| chain.and_then(|chain| chain.token_by_address(address)));
        // Neither its decimals nor the minimum, which is made with them, are believed.
        let doubted = self.doubts(transfer);
        let payment = payment.and_then(|index| self.payments.get(index)).map(|touched| &touched.payment);
        let own = payment.filter(|payment| payment.asks_for(cause.chain, transfer.token));
        let own_token = own.and_then(|own| own.asset.token.as_ref());
        // The payment's own token counts, even if chains.yaml has dropped it since.
        let listed = transfer.token.is_none() || token.is_some() || own.is_some();
        let minimum = chain.filter(|_| !doubted).map_or(Amount::ZERO, |chain| chain.min_transfer_of(transfer.token));
        // An amount that pays the payment alone was asked for, before the minimum was raised.
        let below_minimum = listed && transfer.amount < minimum && own.is_none_or(|own| transfer.amount < own.needed());
        let (listed, below_minimum) = match known {
            Some(known) if known.listed => (true, known.below_minimum),
            _ => (listed, below_minimum),
        };
        ReceivedTransfer {
            id: transfer.id,
            block: cause.block,
            timestamp: cause.timestamp,
            transaction_index: transfer.transaction_index,
            token: transfer.token,
            from: transfer.from,
            amount: transfer.amount,
            credited: listed && !below_minimum && (own.is_some() || payment.is_none()),
            listed,
            below_minimum,
            confirmed: false,
            label: TransferLabel {
                chain: chain.map(|chain| chain.name.clone()),
                token: own_token.map(|token| &token.symbol).or(token.map(|token| &token.symbol)).cloned(),
                decimals: match transfer.token {
                    None => Some(COIN_DECIMALS),
                    Some(_) => own.map(|own| own.asset.decimals).or(token.filter(|_| !doubted).map(|token| token.decimals)),
                },
            },
        }
    }

    fn has_owner(&self, address: Address) -> bool {
        self.by_address.contains_key(&address) || self.deposit_addresses.contains_key(&address)
    }

    /// Whether the decimals and the minimum by which a transfer would count may be wrong. Those of a payment that asks for the token
    /// are its own.
    fn is_in_doubt(&self, transfer: &Transfer, payment: Option<usize>, known: Option<&KnownTransfer>) -> bool {
        let payment = payment.and_then(|index| self.payments.get(index));
        let asked = payment.is_some_and(|touched| touched.payment.asks_for(transfer.id.chain, transfer.token));
        self.doubts(transfer) && !asked && !known.is_some_and(|known| known.listed)
    }

    fn doubts(&self, transfer: &Transfer) -> bool {
        let chain = self.chains.by_id(transfer.id.chain);
        transfer.token.is_some_and(|token| chain.is_some_and(|chain| chain.doubts.contains_key(&token)))
    }

    /// Sets a transfer aside that lacks something: it stops nobody else, and is credited when that is there.
    fn keep_orphan(&mut self, cause: &Cause, part: u32, transfer: &Transfer, in_doubt: bool) {
        let (block, timestamp, transfer) = (cause.block, cause.timestamp, transfer.clone());
        let orphan = OrphanTransfer { block, timestamp, part, transfer, in_doubt };
        self.orphans.entry(orphan.transfer.id).or_insert(orphan);
    }

    /// Names the batch's orphans, of which a stranger can send many.
    fn report_orphans(&self) {
        base::metrics::ORPHAN_TRANSFERS.counter(&[]).increment(u64::try_from(self.orphans.len()).unwrap_or_default());
        let (in_doubt, ownerless): (Vec<_>, Vec<_>) = self.orphans.values().partition(|orphan| orphan.in_doubt);
        if let Some(first) = ownerless.first() {
            tracing::error!(
                "{} orphans: transfers to addresses that have an intent in Kafka and no payment in Postgres, such as {}. Each is credited \
                 when its payment is there again. Does DATABASE_URL name the right database?",
                ownerless.len(),
                describe(first),
            );
        }
        if let Some(first) = in_doubt.first() {
            tracing::warn!(
                "{} transfers wait, since it is in doubt that their tokens have the decimals of the chains file: such as {}",
                in_doubt.len(),
                describe(first),
            );
        }
    }

    /// The rows of transfers to write once those of removed blocks are marked: first those that are not on the chain any more, then
    /// those that are.
    pub fn take_rows(&mut self) -> (Vec<TransferRow>, Vec<TransferRow>) {
        let mut rows: Vec<TransferRow> = std::mem::take(&mut self.rows).into_values().collect();
        rows.sort_unstable_by_key(|row| row.transfer.place());
        rows.into_iter().partition(|row| self.known.get(&row.transfer.id).is_none_or(|known| !known.on_chain))
    }

    /// Writes all that changed but rows of transfers, and the events; returns their number.
    pub async fn write(self, db: &impl GenericClient) -> Result<usize, Failure> {
        let changed: Vec<&TouchedPayment> = self.payments.iter().filter(|touched| touched.changed).collect();
        let new: Vec<&Payment> = changed.iter().filter(|touched| touched.new).map(|touched| &touched.payment).collect();
        store::insert_deposits(db, &new).await?;
        let payments: Vec<&Payment> = changed.iter().map(|touched| &touched.payment).collect();
        store::save_payments(db, &payments).await?;
        let (mut saved, mut gone): (Vec<PartRow<'_>>, Vec<PartRow<'_>>) = (Vec::new(), Vec::new());
        for TouchedPayment { payment, stored, .. } in changed {
            saved.extend(payment.parts.iter().filter(|part| !stored.contains(part)).map(|part| (payment, *part)));
            let is_there = |part: &Part| payment.parts.iter().any(|p| (p.block, p.chain) == (part.block, part.chain));
            gone.extend(stored.iter().filter(|part| !is_there(part)).map(|part| (payment, *part)));
        }
        store::save_orphans(db, &self.orphans.values().collect::<Vec<_>>()).await?;
        self.report_orphans();
        store::delete_parts(db, &gone).await?;
        store::save_parts(db, &saved).await?;
        store::forget_told_events(db, self.told.iter()).await?;
        let events = self.events.iter().map(|(payment, event)| (payment, event));
        tokio::try_join!(store::record_events(db, events), store::put_confirmed(db, &payments))?;
        Ok(self.events.len())
    }
}

fn describe(OrphanTransfer { block, transfer, .. }: &OrphanTransfer) -> String {
    format!(
        "{} base units of {} to {} in block {} of chain {}, transaction {}",
        transfer.amount,
        transfer.token.map_or_else(|| "the coin".to_owned(), |token| token.to_string()),
        transfer.to,
        block.number,
        transfer.id.chain,
        transfer.id.transaction,
    )
}

#[cfg(test)]
#[path = "working_set_tests.rs"]
mod tests;
