use super::*;
use proptest::prelude::*;

const GWEI: u128 = 1_000_000_000;
const TERMS: Terms = Terms { gas_limit: 21_000, max_fee: 20 * GWEI, l1_fee: U256::ZERO, minimum: None };

fn holding(arrived: u128, spent: u128) -> Holding {
    Holding {
        address: Address::repeat_byte(1),
        merchant: Uuid::nil(),
        arrived: U256::from(arrived),
        seen: U256::from(arrived),
        spent: U256::from(spent),
        is_under_way: false,
        is_set_aside: false,
    }
}

fn verdict(holding: &Holding) -> Verdict {
    holding.verdict(&TERMS, &Holds::default())
}

#[test]
fn a_sweep_leaves_what_its_gas_may_cost_and_is_worth_five_times_as_much() {
    let reserve = 21_000 * 20 * GWEI;
    assert_eq!(verdict(&holding(5 * reserve, 0)), Verdict::Sweep(U256::from(4 * reserve)));
    assert_eq!(verdict(&holding(5 * reserve - 1, 0)), Verdict::TooDear);
    assert_eq!(verdict(&holding(5 * reserve / 4, 0)), Verdict::TooDear, "worth it if gas stays as cheap as it is");
    assert_eq!(verdict(&holding(5 * reserve / 4 - 1, 0)), Verdict::TooLittle);
    assert_eq!(verdict(&holding(9 * reserve, 4 * reserve)), Verdict::Sweep(U256::from(4 * reserve)));
    assert_eq!(verdict(&holding(9 * reserve, 4 * reserve + 1)), Verdict::TooDear);
    assert_eq!(verdict(&holding(reserve, u128::MAX)), Verdict::TooLittle, "more was spent than is known to have arrived");
    let asked = |minimum: u128| Terms { minimum: Some(U256::from(minimum)), ..TERMS };
    let small = holding(4 * reserve, 0);
    assert_eq!(small.verdict(&asked(4 * reserve), &Holds::default()), Verdict::Sweep(U256::from(3 * reserve)));
    assert_eq!(small.verdict(&asked(4 * reserve + 1), &Holds::default()), Verdict::TooLittle, "it asks for that at any price");
    assert_eq!(asked(0).least(), U256::from(4 * reserve), "three quarters of it get to the treasury");
    let rollup = Terms { l1_fee: U256::from(7), ..TERMS };
    assert_eq!(rollup.reserve(), U256::from(reserve + 7));
}

#[test]
fn a_sweep_leaves_for_its_gas_a_few_times_of_what_that_costs_now_and_never_more_than_it_may() {
    assert_eq!(max_fee(Some(GWEI), 20 * GWEI), 4 * GWEI);
    assert_eq!(max_fee(Some(6 * GWEI), 20 * GWEI), 20 * GWEI);
    assert_eq!(max_fee(None, 20 * GWEI), 20 * GWEI, "no node tells");
    assert_eq!(max_fee(Some(0), 20 * GWEI), 1);
}

#[test]
fn what_waits_for_depth_for_another_transaction_or_for_a_person_is_told_apart() {
    let much = 21_000 * 200 * GWEI;
    let unripe = Holding { seen: U256::from(much), ..holding(0, 0) };
    assert_eq!(verdict(&unripe), Verdict::Unripe);
    let ripe_enough = Holding { seen: U256::from(2 * much), ..holding(much, 0) };
    assert!(matches!(verdict(&ripe_enough), Verdict::Sweep(_)), "what is deep enough waits for nothing");
    assert_eq!(verdict(&Holding { is_under_way: true, ..holding(much, 0) }), Verdict::UnderWay);
    assert_eq!(verdict(&Holding { is_set_aside: true, ..holding(much, 0) }), Verdict::SetAside);
    let open = Holding { is_under_way: true, ..holding(much, much) };
    assert!(!open.is_taken_back());
    assert!(Holding { seen: U256::from(much - 1), ..open.clone() }.is_taken_back());
    let unripe_again = Holding { arrived: U256::ZERO, ..open };
    assert!(!unripe_again.is_taken_back(), "it came again in another block");
}

#[test]
fn a_hold_covers_all_that_it_names_and_nothing_else() {
    let any = Hold { chain: None, address: None, token: None, merchant: None };
    let (one, two) = (Address::repeat_byte(1), Address::repeat_byte(2));
    let (shop, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let covers = |hold: Hold, address, merchant| Holds::new(&[hold], ChainId(5), None).cover(address, merchant);
    assert!(covers(any, one, shop));
    assert!(covers(Hold { chain: Some(ChainId(5)), ..any }, one, shop));
    assert!(!covers(Hold { chain: Some(ChainId(6)), ..any }, one, shop));
    assert!(covers(Hold { token: Some(None), ..any }, one, shop));
    assert!(!covers(Hold { token: Some(Some(one)), ..any }, one, shop), "a token's");
    let address = Hold { address: Some(one), ..any };
    assert!(covers(address, one, shop) && !covers(address, two, shop));
    let merchant = Hold { merchant: Some(shop), ..any };
    assert!(covers(merchant, two, shop) && !covers(merchant, two, other));
    let both = Hold { address: Some(one), merchant: Some(shop), ..any };
    assert!(covers(both, one, shop) && !covers(both, one, other) && !covers(both, two, shop));
    assert!(!Holds::new(&[], ChainId(5), None).cover(one, shop));
}

/// What can happen to an address.
#[derive(Clone, Debug)]
enum Event {
    /// Money that is deep enough, and money that is not yet.
    Arrives(u64, bool),
    Ripens,
    /// The newest that arrived leaves the chain.
    Reorg,
    Plan,
    /// The sweep is mined and succeeds or is reverted, and its gas costs so many percent of what it may.
    Mined(bool, u8),
    Dropped,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1_u64..100_000, any::<bool>()).prop_map(|(amount, is_ripe)| Event::Arrives(amount, is_ripe)),
        1 => Just(Event::Ripens),
        1 => Just(Event::Reorg),
        3 => Just(Event::Plan),
        3 => (any::<bool>(), 1_u8..=100).prop_map(|(succeeds, percent)| Event::Mined(succeeds, percent)),
        1 => Just(Event::Dropped),
    ];
    prop::collection::vec(event, 1..60)
}

proptest! {
    /// The ledger as the statements have it, beside the address as the chain has it.
    #[test]
    fn no_sweep_asks_for_more_than_has_arrived_or_for_what_has_left(
        events in events(), gas_limit in 1_u64..50, max_fee in 1_u128..50, l1_fee in 0_u64..20,
        minimum in prop::option::of(0_u64..10_000),
    ) {
        let terms =
            Terms { gas_limit, max_fee, l1_fee: U256::from(l1_fee), minimum: minimum.map(U256::from) };
        let reserve = terms.reserve();
        let mut credits: Vec<(U256, bool)> = Vec::new();
        let (mut over, mut open, mut left) = (U256::ZERO, None::<U256>, U256::ZERO);
        let mut reorged = false;
        for event in events {
            let seen: U256 = credits.iter().map(|(amount, _)| *amount).sum();
            let arrived: U256 = credits.iter().filter(|(_, ripe)| *ripe).map(|(amount, _)| *amount).sum();
            let spent = over + open.map_or(U256::ZERO, |amount| amount + reserve);
            let holding =
                Holding { arrived, seen, spent, is_under_way: open.is_some(), ..holding(0, 0) };
            let balance = seen.checked_sub(over);
            match event {
                Event::Arrives(amount, ripe) => credits.push((U256::from(amount), ripe)),
                Event::Ripens => credits.iter_mut().for_each(|(_, ripe)| *ripe = true),
                Event::Reorg => {
                    reorged |= credits.pop().is_some();
                }
                Event::Plan => match holding.verdict(&terms, &Holds::default()) {
                    Verdict::Sweep(amount) => {
                        prop_assert!(open.is_none());
                        prop_assert!(!amount.is_zero() && amount + reserve <= arrived - over);
                        prop_assert!(amount + reserve >= terms.least());
                        prop_assert!(reserve * U256::from(4) <= arrived - over, "more than a quarter stays as dust");
                        open = Some(amount);
                    }
                    verdict => prop_assert!(open.is_none() || verdict == Verdict::UnderWay),
                },
                Event::Mined(succeeds, percent) => {
                    let Some(amount) = open else { continue };
                    let fee = reserve * U256::from(percent) / U256::from(100);
                    let cost = if succeeds { amount + fee } else { fee };
                    // The chain takes none that costs more than is there, and a node none that might.
                    if balance.is_some_and(|balance| balance >= amount + reserve) {
                        open = None;
                        over += cost;
                        left += if succeeds { amount } else { U256::ZERO };
                    } else {
                        prop_assert!(reorged && holding.is_taken_back(), "{holding:?} {amount} {reserve}");
                        open = None;
                    }
                }
                Event::Dropped => open = None,
            }
            if !reorged {
                prop_assert!(left <= seen.max(credits.iter().map(|(amount, _)| *amount).sum()));
                prop_assert!(open.is_none() || !holding.is_taken_back());
            }
        }
    }
}
