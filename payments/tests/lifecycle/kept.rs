//! What is kept of transfers, how they are marked, and under which names a payment's events are told.

use super::*;

#[test]
fn an_event_of_a_payment_and_one_of_a_deposit_have_names_of_their_own() {
    let payment = payment(Policy::Confirmations(1));
    let deposit = deposit(&block(1, 10, &[50]).transfers().collect::<Vec<_>>()).unwrap();
    let names = [
        (EventKind::Created, "payment.created", "payment.created"),
        (EventKind::Detected, "payment.detected", "deposit.detected"),
        (EventKind::Confirmed, "payment.confirmed", "deposit.confirmed"),
        (EventKind::Settled, "payment.settled", "deposit.settled"),
        (EventKind::Expired, "payment.expired", "payment.expired"),
        (EventKind::Cancelled, "payment.cancelled", "payment.cancelled"),
        (EventKind::Underpaid, "payment.underpaid", "payment.underpaid"),
        (EventKind::Overpaid, "payment.overpaid", "payment.overpaid"),
        (EventKind::Late, "payment.late", "payment.late"),
        (EventKind::Reverted, "payment.reverted", "deposit.reverted"),
        (EventKind::UnexpectedTransfer, "payment.unexpected_transfer", "payment.unexpected_transfer"),
    ];
    for (kind, of_payment, of_deposit) in names {
        assert_eq!((kind.as_str(), kind.name(&payment), kind.name(&deposit)), (of_payment, of_payment, of_deposit));
    }
}

#[test]
fn a_payment_to_which_nothing_has_come_is_no_exception() {
    assert_eq!(payment(Policy::Confirmations(1)).exception(), None);
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, EXPIRES + 1, &[]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Expired, None));
}

/// Whoever makes the input knows neither: an orphan that is credited later may have been marked before.
#[test]
fn a_transfer_is_credited_and_confirmed_by_the_rules_alone_whatever_its_input_says() {
    let marked = |transfer| ReceivedTransfer { credited: true, confirmed: true, ..transfer };
    let mut driver = Driver::new(Policy::Confirmations(2));
    let [paid, other] = block(1, 10, &[100, 7]).transfers().collect::<Vec<_>>().try_into().unwrap();
    for transfer in [paid, ReceivedTransfer { token: None, ..other }] {
        driver.take(&Input::Transfer(marked(transfer)));
    }
    let marks = |driver: &Driver| driver.payment.transfers.iter().map(|t| (t.credited, t.confirmed)).collect::<Vec<_>>();
    assert_eq!((marks(&driver), driver.payment.status()), (vec![(true, false), (false, false)], Status::Detected));
    driver.add(&block(2, 20, &[]));
    assert_eq!((marks(&driver), driver.payment.status()), (vec![(true, true), (false, false)], Status::Confirmed));
}

#[test]
fn a_transfer_is_confirmed_with_its_own_block_and_no_longer_than_that() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    let marks = |driver: &Driver| driver.payment.transfers.iter().map(|t| t.confirmed).collect::<Vec<_>>();
    driver.add(&block(1, 10, &[30]));
    let head = block(2, 20, &[70]);
    driver.add(&head);
    assert_eq!(marks(&driver), [true, false]);
    driver.remove(&head);
    assert_eq!(marks(&driver), [false]);
}

#[test]
fn a_flood_of_single_transfers_drops_the_first_of_its_own_block_and_no_others() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[1, 1]));
    driver.add(&block(2, 20, &vec![1; 101]));
    let kept: Vec<(u64, u32)> = driver.payment.transfers.iter().map(|t| (t.block.number, t.id.index)).collect();
    let expected: Vec<(u64, u32)> = [(1, 0), (1, 1)].into_iter().chain((1..=100).map(|index| (2, index))).collect();
    assert_eq!(kept, expected);
    assert_eq!(driver.payment.received(), Amount::from(103), "all of them count");
}

#[test]
fn a_reorg_counts_the_transfers_that_came_one_by_one() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let paid = block(1, 10, &[10, 20, 30]);
    paid.transfers().for_each(|transfer| driver.take(&Input::Transfer(transfer)));
    let reverted = step(&driver.payment, &paid.removed()).unwrap().events.pop().unwrap();
    let told = reverted.summary.unwrap();
    let ends = [told.first, told.last].map(|end| end.map(|transfer| transfer.id.index));
    assert_eq!((told.count, told.sum, ends), (3, Amount::from(60).into(), [Some(0), Some(2)]));
    assert_eq!(reverted.transfer, None);
}

#[test]
fn a_chain_that_begins_anew_keeps_the_block_up_to_which_it_stands_and_nothing_above() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let blocks = [3, 4, 5].map(|number| block(number, 10 * number, &[30]));
    blocks.iter().for_each(|block| driver.add(block));
    driver.take(&Input::Rewound(blocks[0].cause()));
    assert_eq!((driver.payment.received(), driver.payment.parts.len()), (Amount::from(30), 1));
    assert_eq!(driver.events.iter().filter(|kind| **kind == EventKind::Reverted).count(), 1, "told once");
    driver.take(&Input::Rewound(block(2, 20, &[]).cause()));
    assert_eq!(driver.payment.received(), Amount::ZERO);
}
