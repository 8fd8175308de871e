//! What has left an address covers what arrived there first, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use payments::swept::{ArrivedDeposit, CoveredFrom, DepositPlace, DepositStage, SettledUpTo, Step, Swept, Walk, covering};
use payments::{Settlement, Total};
use proptest::prelude::*;
use std::collections::BTreeMap;
use topics::{Amount, B256, BlockRef};
use uuid::Uuid;

fn swept(total: u64, block: u64) -> Swept {
    let settlement = Settlement {
        transaction: B256::with_last_byte(u8::try_from(total).unwrap()),
        block: BlockRef { number: block, hash: B256::with_last_byte(u8::try_from(block).unwrap()) },
        timestamp: block * 10,
        fee: Some(Amount::from(21_000)),
    };
    Swept { total: Amount::from(total), settlement }
}

fn total(units: u64) -> Total {
    Amount::from(units).into()
}

#[test]
fn what_has_arrived_is_covered_by_the_first_transaction_that_reaches_it_and_by_none_of_an_earlier_block() {
    let sweeps = [swept(10, 5), swept(30, 7), swept(60, 9)];
    let by = |arrived, block| covering(&sweeps, total(arrived), block).map(|settlement| settlement.block.number);
    assert_eq!([by(10, 5), by(11, 5), by(30, 7), by(60, 1), by(61, 1)], [Some(5), Some(7), Some(7), Some(9), None]);
    // More has left by then than is known to have arrived: that was not this money.
    assert_eq!([by(10, 6), by(10, 9), by(10, 10)], [Some(7), Some(9), None]);
    assert_eq!(covering(&[], Total::ZERO, 0), None);
}

/// A walk that has read all of these, whatever may cover what it meets.
fn walk_from(sweeps: &[Swept], settled: SettledUpTo, received: u64) -> Walk {
    let mut walk = Walk::new(settled, total(received));
    walk.read(sweeps.to_vec());
    walk
}

/// A walk that reads a few at a time, as the store does.
struct PagedWalk<'a> {
    walk: Walk,
    sweeps: &'a [Swept],
    page: usize,
}

impl<'a> PagedWalk<'a> {
    /// `sweeps` are ordered by total and block.
    fn new(sweeps: &'a [Swept], page: usize, settled: SettledUpTo, received: u64) -> Self {
        let mut paged = Self { walk: Walk::new(settled, total(received)), sweeps, page };
        paged.read(paged.walk.covered_from());
        paged
    }

    fn read(&mut self, from: CoveredFrom) {
        let may_cover = |swept: &&Swept| Total::from(swept.total) >= from.total && swept.settlement.block.number >= from.block;
        self.walk.read(self.sweeps.iter().filter(may_cover).take(self.page).copied().collect());
    }

    fn step(&mut self, deposit: &ArrivedDeposit) -> Step {
        match self.walk.step(deposit) {
            Step::End(from) => {
                self.read(from);
                self.walk.step(deposit)
            }
            step => step,
        }
    }
}

/// A deposit at this time, in the block of the same number.
fn deposit(at: u64, received: u64, stage: DepositStage) -> ArrivedDeposit {
    let place = DepositPlace { timestamp: at, block: at, id: Uuid::from_u128(at.into()) };
    ArrivedDeposit { place, received: total(received), beside: Total::ZERO, stage }
}

#[test]
fn deposits_are_covered_in_order_and_the_next_walk_begins_behind_those_that_are_settled() {
    use DepositStage::{Confirmation, Nothing, Settlement as Settles};
    let sweeps = [swept(25, 50), swept(40, 60)];
    let mut walk = walk_from(&sweeps, SettledUpTo::default(), 0);
    let step = |walk: &mut Walk, deposit| match walk.step(&deposit) {
        Step::Settle(by) => Some(by.block.number),
        Step::Pass => Some(0),
        Step::End(_) => None,
    };
    assert_eq!(step(&mut walk, deposit(1, 10, Settles)), Some(50));
    assert_eq!(step(&mut walk, deposit(2, 0, Nothing)), Some(0), "a reorg has taken it back");
    // What makes no deposit left with them.
    assert_eq!(step(&mut walk, ArrivedDeposit { beside: total(7), ..deposit(3, 9, Settles) }), Some(60));
    assert_eq!(walk.settled.arrived, total(26));
    assert_eq!(step(&mut walk, deposit(4, 4, Confirmation)), Some(0));
    assert_eq!(step(&mut walk, deposit(5, 10, Settles)), Some(60));
    assert_eq!(step(&mut walk, deposit(6, 1, Settles)), None);
    let at = walk.settled;
    assert_eq!((at.place.unwrap().timestamp, at.block, at.arrived), (3, 3, total(26)), "one waits for its confirmation");
    // It is confirmed by now, and the one behind it is settled.
    // The one behind it has received 10, and the two before it 19.
    let mut again = walk_from(&sweeps, at, 29);
    assert_eq!(step(&mut again, deposit(4, 4, Settles)), Some(60));
    assert_eq!(step(&mut again, deposit(5, 10, Nothing)), Some(0));
    assert_eq!((again.settled.block, again.settled.arrived, again.settled.received), (5, total(40), total(33)));
}

/// A backfill brings a deposit of before. What has left by then was another's.
#[test]
fn what_is_found_before_a_settled_deposit_is_not_covered_by_what_that_one_has_left_with() {
    use DepositStage::{Nothing, Settlement as Settles};
    let look = |sweeps: &[Swept], stage| {
        let mut walk = walk_from(sweeps, SettledUpTo::default(), 100);
        [deposit(5, 50, stage), deposit(10, 100, Nothing), deposit(12, 30, Settles)].map(|deposit| walk.step(&deposit))
    };
    let (first, second, third) = (swept(100, 20), swept(150, 30), swept(180, 40));
    let end = Step::End(CoveredFrom { total: total(150), block: 5 });
    assert_eq!([look(&[first], Settles)[0], look(&[first, swept(149, 30)], Settles)[0]], [end, end]);
    assert_eq!(look(&[first, second], Settles)[..2], [Step::Settle(second.settlement), Step::Pass]);
    // One that is not confirmed has arrived all the same.
    let both = [Step::Pass, Step::Pass, Step::Settle(third.settlement)];
    assert_eq!(look(&[first, second, third], DepositStage::Confirmation), both);
}

#[test]
fn behind_the_highest_block_of_a_transaction_nothing_is_looked_at() {
    let sweeps = [swept(100, 20)];
    let mut walk = walk_from(&sweeps, SettledUpTo::default(), 0);
    assert!(matches!(walk.step(&deposit(20, 1, DepositStage::Settlement)), Step::Settle(_)));
    let end = Step::End(CoveredFrom { total: total(2), block: 21 });
    assert_eq!(walk.step(&deposit(21, 1, DepositStage::Settlement)), end);
    assert_eq!(walk.settled.block, 20);
}

/// An address with deposits, and transactions that take from it: in any order of telling, and told twice.
#[derive(Clone, Debug)]
struct Life {
    /// Amount, what came beside it before, and whether it is confirmed in time or after all sweeps.
    deposits: Vec<(u64, u64, bool)>,
    /// How much each takes, and in which block.
    sweeps: Vec<(u64, u64)>,
    /// The order in which sweeps are told, with repetitions; and where else the walk looks.
    told: Vec<usize>,
}

fn lives() -> impl Strategy<Value = Life> {
    let deposits =
        prop::collection::vec((1..9_u64, prop_oneof![2 => Just(0_u64), 1 => 1..4_u64], prop::bool::weighted(0.8)), 0..12);
    let sweeps = prop::collection::vec((1..20_u64, 1..14_u64), 0..6);
    (deposits, sweeps, prop::collection::vec(0..6_usize, 0..12)).prop_map(|(deposits, sweeps, told)| Life {
        deposits,
        sweeps,
        told,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Deposits are found in any order, and each that is found has all looked through anew.
    #[test]
    fn what_is_settled_never_is_more_than_what_has_left_whatever_is_found_late(
        amounts in prop::collection::vec(1..9_u64, 1..8),
        moves in prop::collection::vec((prop::bool::ANY, 0..8_usize, 1..12_u64), 1..16),
        page in 1..4_usize,
    ) {
        let mut state = vec![None; amounts.len()];
        let (mut settled, mut rows, mut is_there) = (SettledUpTo::default(), Vec::<Swept>::new(), vec![false; amounts.len()]);
        let left: u64 = amounts.iter().sum();
        let all = (0..amounts.len()).map(|index| (true, index, 0)).chain([(false, 0, left)]);
        for (is_found, index, amount) in moves.into_iter().chain(all) {
            let before = rows.last().map_or(0, |row| u64::try_from(row.total.units()).unwrap());
            if is_found {
                let Some(there) = is_there.get_mut(index).filter(|there| !**there) else { continue };
                *there = true;
                settled = SettledUpTo::default();
            } else if before + amount < 256 {
                rows.push(swept(before + amount, 50));
            }
            let sum = |state: &[Option<Settlement>]| -> u64 {
                amounts.iter().zip(state).filter(|(_, state)| state.is_some()).map(|(amount, _)| amount).sum()
            };
            let mut walk = PagedWalk::new(&rows, page, settled, sum(&state));
            for index in (0..amounts.len()).filter(|index| is_there[*index]) {
                let stage = state[index].map_or(DepositStage::Settlement, |_| DepositStage::Nothing);
                let deposit = deposit(u64::try_from(index).unwrap() + 1, amounts[index], stage);
                if settled.place.is_some_and(|place| place >= deposit.place) {
                    continue;
                }
                match walk.step(&deposit) {
                    Step::Settle(by) => state[index] = Some(by),
                    Step::Pass => {}
                    Step::End(_) => break,
                }
            }
            settled = walk.walk.settled;
            let told = rows.last().map_or(Total::ZERO, |row| row.total.into());
            prop_assert!(total(sum(&state)) <= told, "{} settled by {}", sum(&state), told);
        }
        prop_assert!(state.iter().all(Option::is_some), "in the end all has left");
    }

    #[test]
    fn what_is_settled_is_what_the_totals_cover_however_they_are_told(life in lives(), page in 1..4_usize) {
        let Life { deposits, mut sweeps, told } = life;
        // Later transactions are in later blocks, and nothing more leaves than there ever is.
        let mut blocks: Vec<u64> = sweeps.iter().map(|(_, block)| *block).collect();
        blocks.sort_unstable();
        let mut sum = 0;
        for ((amount, block), sorted) in sweeps.iter_mut().zip(blocks) {
            sum += *amount;
            (*amount, *block) = (sum, sorted);
        }
        let all: Vec<Swept> = sweeps.iter().map(|(total, block)| swept(*total, *block)).collect();

        let (mut known, mut state) = (BTreeMap::new(), vec![None; deposits.len()]);
        let mut settled = SettledUpTo::default();
        let order = told.iter().copied().filter(|index| *index < all.len()).chain(0..all.len()).map(Some).chain([None]);
        for next in order {
            // At the end all are confirmed.
            let are_late_confirmed = next.is_none();
            if let Some(index) = next {
                known.insert(all[index].total, all[index]);
            }
            let rows: Vec<Swept> = known.values().copied().collect();
            let sum = deposits.iter().zip(&state).filter(|(_, state)| state.is_some()).map(|((amount, ..), _)| amount).sum();
            let mut walk = PagedWalk::new(&rows, page, settled, sum);
            for (index, (amount, beside, in_time)) in deposits.iter().enumerate() {
                let stage = match state[index] {
                    Some(_) => DepositStage::Nothing,
                    None if *in_time || are_late_confirmed => DepositStage::Settlement,
                    None => DepositStage::Confirmation,
                };
                let at = u64::try_from(index).unwrap() + 1;
                let arrived = ArrivedDeposit { beside: total(*beside), ..deposit(at, *amount, stage) };
                if settled.place.is_some_and(|place| place >= arrived.place) {
                    continue;
                }
                match walk.step(&arrived) {
                    Step::Settle(by) => state[index] = Some(by),
                    Step::Pass => {}
                    Step::End(_) => break,
                }
            }
            settled = walk.walk.settled;
        }

        let mut arrived = 0;
        for (index, (amount, beside, _)) in deposits.iter().enumerate() {
            arrived += amount + beside;
            let block = u64::try_from(index).unwrap() + 1;
            let is_covered = all.iter().any(|row| row.total >= Amount::from(arrived) && row.settlement.block.number >= block);
            prop_assert_eq!(state[index].is_some(), is_covered, "deposit {}", index);
            if let Some(by) = state[index] {
                prop_assert!(by.block.number >= block && all.iter().any(|row| row.settlement == by && row.total >= Amount::from(arrived)));
            }
        }
    }
}
