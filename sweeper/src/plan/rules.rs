//! What is swept of an address, and what stays. Pure.
//!
//! - What may leave is what has arrived, less all that its own transactions have spent. So nothing leaves twice, and nothing
//!   that has not arrived. One transaction of an address is under way at a time.
//! - A sweep of coin pays for itself: it leaves behind what its gas may cost at most, and is raised up to there and no further,
//!   so it never costs more than the address has. That is a few times of what gas costs when it is planned, and `max_fee` at
//!   most. What its gas did not cost stays as dust, and is a part of what the next sweep of that address moves.

use crate::engine::fees::BASE_FEE_HEADROOM;
use alloy::primitives::{Address, U256};
use std::collections::HashSet;
use topics::ChainId;
use uuid::Uuid;

/// A sweep is worth its gas if that can't take more than one part of so many.
const WORTH: u64 = 5;
/// The least that `sweep_minimum` may ask for, as a multiple of what the gas may cost. What stays as dust is at most one part
/// of so many, and there is enough to cancel it.
const LEAST: u64 = 4;
/// A sweep may cost so many times of what gas costs when it is planned: the first attempt offers twice the base fee, and the
/// base fee may double again before it is mined. One that waits while gas is dearer still is planned anew.
const HEADROOM: u128 = 4;
/// After so many sweeps of a chain that came to nothing, one after the other, no more are planned: the treasury may refuse them
/// all.
pub const MAX_VAIN: usize = 3;

/// What an address has of a chain's coin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub address: Address,
    pub merchant: Uuid,
    /// All that ever arrived and may leave.
    pub arrived: U256,
    /// All that ever arrived and is on the chain, deep enough or not.
    pub seen: U256,
    /// What its own transactions have spent, and what those that are not over may spend.
    pub spent: U256,
    /// One of its transactions is not over.
    pub is_under_way: bool,
    /// Its last sweep has failed, and nobody has looked.
    pub is_set_aside: bool,
}

/// What a sweep of the coin costs, and what it has to be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub gas_limit: u64,
    /// The most for a unit of gas, in wei.
    pub max_fee: u128,
    /// The most beside its gas, in wei.
    pub l1_fee: U256,
    /// `sweep_minimum`.
    pub minimum: Option<U256>,
}

/// What is to be done with a holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So much goes to the treasury.
    Sweep(U256),
    /// Not deep enough: it may be worth a sweep later.
    Unripe,
    /// It is not worth its gas.
    TooLittle,
    /// It would be worth its gas if that cost as little as it does at the moment, and not a few times of it.
    TooDear,
    /// A transaction of the address is not over.
    UnderWay,
    Held,
    /// Until a person says so.
    SetAside,
    /// The chain has less there than it takes to send what has arrived and not left. A holding does not tell: the chain is asked.
    Missing,
}

/// What nobody wants to be swept. `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub chain: Option<ChainId>,
    pub address: Option<Address>,
    /// `Some(None)` is the coin.
    pub token: Option<Option<Address>>,
    pub merchant: Option<Uuid>,
}

/// The holds that concern an asset of a chain.
#[derive(Debug, Default)]
pub struct Holds {
    /// Of the whole asset.
    all: bool,
    addresses: HashSet<Address>,
    merchants: HashSet<Uuid>,
    both: HashSet<(Address, Uuid)>,
}

impl Holds {
    pub fn new(holds: &[Hold], chain: ChainId, token: Option<Address>) -> Self {
        let mut found = Self::default();
        let concerns =
            |hold: &&Hold| hold.chain.is_none_or(|held| held == chain) && hold.token.is_none_or(|held| held == token);
        for hold in holds.iter().filter(concerns) {
            match (hold.address, hold.merchant) {
                (None, None) => found.all = true,
                (Some(address), None) => drop(found.addresses.insert(address)),
                (None, Some(merchant)) => drop(found.merchants.insert(merchant)),
                (Some(address), Some(merchant)) => drop(found.both.insert((address, merchant))),
            }
        }
        found
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        !self.all && self.addresses.is_empty() && self.merchants.is_empty() && self.both.is_empty()
    }

    pub fn cover(&self, address: Address, merchant: Uuid) -> bool {
        self.all
            || self.addresses.contains(&address)
            || self.merchants.contains(&merchant)
            || self.both.contains(&(address, merchant))
    }
}

/// The most for a unit of gas of a sweep that is planned now, in wei, where gas costs `price`.
pub fn max_fee(price: Option<u128>, most: u128) -> u128 {
    price.map_or(most, |price| price.saturating_mul(HEADROOM).clamp(1, most.max(1)))
}

impl Terms {
    /// What a sweep costs at most at this price of a unit of gas.
    pub fn cost(&self, price: u128) -> U256 {
        U256::from(self.gas_limit).saturating_mul(U256::from(price)).saturating_add(self.l1_fee)
    }

    /// What a sweep leaves at its address, for its gas.
    pub fn reserve(&self) -> U256 {
        self.cost(self.max_fee)
    }

    /// What a sweep takes to be sent beside what it moves, where gas costs `price`: what its first attempt offers. The rest of
    /// the reserve is there for gas that becomes dearer, and pays for what the ledger does not know of, such as a few gwei for L1.
    pub fn first_offer(&self, price: u128) -> U256 {
        self.cost(price.saturating_mul(BASE_FEE_HEADROOM).min(self.max_fee))
    }

    /// The least that an address has to have.
    pub fn least(&self) -> U256 {
        self.least_at(self.max_fee)
    }

    /// The least that an address has to have once gas has become as much cheaper as it may become dearer. What has less is not
    /// looked at before something comes to it.
    pub fn least_ever(&self) -> U256 {
        self.least_at((self.max_fee / HEADROOM).max(1))
    }

    fn least_at(&self, max_fee: u128) -> U256 {
        let times = |times: u64| self.cost(max_fee).saturating_mul(U256::from(times));
        self.minimum.unwrap_or_else(|| times(WORTH)).max(times(LEAST))
    }
}

impl Holding {
    /// What may leave.
    pub fn available(&self) -> U256 {
        self.arrived.saturating_sub(self.spent)
    }

    pub fn verdict(&self, terms: &Terms, holds: &Holds) -> Verdict {
        let (available, least) = (self.available(), terms.least());
        let (is_worth, whole) = (available >= least, self.seen.saturating_sub(self.spent));
        if self.is_under_way {
            Verdict::UnderWay
        } else if !is_worth && whole >= least {
            Verdict::Unripe
        } else if !is_worth && whole >= terms.least_ever() {
            Verdict::TooDear
        } else if !is_worth {
            Verdict::TooLittle
        } else if self.is_set_aside {
            Verdict::SetAside
        } else if holds.cover(self.address, self.merchant) {
            Verdict::Held
        } else {
            // More than nothing: it has several times of what its gas may cost.
            let amount = available.saturating_sub(terms.reserve());
            if amount.is_zero() { Verdict::TooLittle } else { Verdict::Sweep(amount) }
        }
    }

    /// Whether a reorg has taken back what its transaction that is not over was to move.
    pub fn is_taken_back(&self) -> bool {
        self.is_under_way && self.seen < self.spent
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
