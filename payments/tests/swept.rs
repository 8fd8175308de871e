//! What has left an address covers what arrived there first, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use payments::swept::{ArrivedDeposit, DepositPlace, DepositStage, SettledUpTo, Step, Swept, Walk, covering};
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

/// A deposit at this time, in the block of the same number.
fn deposit(at: u64, received: u64, stage: DepositStage) -> ArrivedDeposit {
    let place = DepositPlace { timestamp: at, block: at, id: Uuid::from_u128(at.into()) };
    ArrivedDeposit { place, received: total(received), beside: Total::ZERO, stage }
}

#[test]
fn deposits_are_covered_in_order_and_the_next_walk_begins_behind_those_that_are_settled() {
    use DepositStage::{Confirmation, Nothing, Settlement as Settles};
    let sweeps = [swept(25, 50), swept(40, 60)];
    let mut walk = Walk::new(&sweeps, SettledUpTo::default());
    let step = |walk: &mut Walk<'_>, deposit| match walk.step(&deposit) {
        Step::Settle(by) => Some(by.block.number),
        Step::Pass => Some(0),
        Step::End => None,
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
    let mut again = Walk::new(&sweeps, at);
    assert_eq!(step(&mut again, deposit(4, 4, Settles)), Some(60));
    assert_eq!(step(&mut again, deposit(5, 10, Nothing)), Some(0));
    assert_eq!((again.settled.block, again.settled.arrived), (5, total(40)));
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

    #[test]
    fn what_is_settled_is_what_the_totals_cover_however_they_are_told(life in lives()) {
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
            let rows: Vec<Swept> = known.values().copied().filter(|row| Total::from(row.total) >= settled.arrived).collect();
            let mut walk = Walk::new(&rows, settled);
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
                    Step::End => break,
                }
            }
            settled = walk.settled;
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
