//! A payment is settled once what was confirmed of it has left, and as long as it stays confirmed.

use super::*;

fn swept(covered: u64) -> Input {
    let block = BlockRef { number: 77, hash: B256::with_last_byte(77) };
    let (transaction, fee) = (B256::with_last_byte(1), Some(Amount::from(21_000)));
    Input::Swept { covered: Amount::from(covered).into(), settlement: Settlement { transaction, block, timestamp: 770, fee } }
}

#[test]
fn a_payment_is_settled_once_by_what_covers_it_and_told_with_the_transaction() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[100]));
    driver.take(&swept(99));
    assert_eq!(driver.payment.status(), Status::Confirmed, "something of it is there still");
    let step = step(&driver.payment, &swept(100)).unwrap();
    let event = &step.events[0];
    assert_eq!(
        (event.kind, event.at, event.block.map(|(chain, block)| (chain, block.number))),
        (EventKind::Settled, 770, Some((CHAIN, 77)))
    );
    let record = payments::events::event_record(&step.next, event);
    let told = record.settlement.unwrap();
    assert_eq!((record.r#type.as_str(), record.status.as_str(), told.block_number), ("payment.settled", "settled", 77));
    assert_eq!((told.transaction_hash[31], told.fee.as_deref()), (1, Some([0x52, 0x08].as_slice())));
    driver.take(&swept(100));
    driver.take(&swept(100));
    use EventKind::{Confirmed, Detected, Settled};
    assert_eq!(driver.events, [Detected, Confirmed, Settled]);
}

/// Only what was confirmed can have left by right, whatever a whole balance had in it.
#[test]
fn what_is_not_confirmed_expired_or_cancelled_settles_nothing() {
    let mut detected = Driver::new(Policy::Confirmations(3));
    detected.add(&block(1, 10, &[100]));
    let mut expired = Driver::new(Policy::Confirmations(1));
    expired.add(&block(1, 10, &[40]));
    expired.add(&block(2, EXPIRES + 1, &[60]));
    let mut cancelled = Driver::new(Policy::Confirmations(1));
    cancelled.take(&Input::Cancel { at: 5 });
    cancelled.add(&block(1, 10, &[100]));
    let mut pending = Driver::new(Policy::Confirmations(1));
    pending.add(&block(1, 10, &[40]));
    for (mut driver, status) in
        [(detected, Status::Detected), (expired, Status::Expired), (cancelled, Status::Cancelled), (pending, Status::Pending)]
    {
        let (before, told) = (driver.payment.clone(), driver.events.len());
        driver.take(&swept(1_000));
        assert_eq!((driver.payment.status(), driver.events.len()), (status, told));
        assert_eq!(driver.payment, before);
    }
}

#[test]
fn what_comes_to_a_settled_payment_is_told_and_it_stays_settled() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[100]));
    driver.take(&swept(100));
    let more = block(2, 20, &[7]);
    driver.add(&more);
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Settled, Some(Exception::Overpaid)));
    driver.add(&block(3, EXPIRES + 1, &[5]));
    driver.take(&swept(112));
    assert_eq!(driver.payment.status(), Status::Settled);
    driver.remove(&block(3, EXPIRES + 1, &[5]));
    driver.remove(&more);
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Settled, None), "what settled it stands");
    assert_eq!(step(&driver.payment, &Input::Cancel { at: 1 }), Err(StepError::NotPending(Status::Settled)));
    use EventKind::{Confirmed, Detected, Overpaid, Reverted, Settled};
    assert_eq!(driver.events, [Detected, Confirmed, Settled, Overpaid, Overpaid, Reverted, Reverted]);
}

/// Else whoever sends a unit after each sweep keeps it from being settled.
#[test]
fn what_is_confirmed_on_top_has_not_to_leave_before() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[100]));
    driver.add(&block(2, 20, &[1]));
    driver.take(&swept(99));
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.take(&swept(100));
    assert_eq!(driver.payment.status(), Status::Settled);
}

/// No reorg reaches below a final block, but a chain that begins anew may.
#[test]
fn a_settled_payment_whose_credit_is_taken_back_is_settled_no_more_before_it_is_confirmed_again() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    let (paid, head) = (block(1, 10, &[100]), block(2, 20, &[]));
    driver.add(&paid);
    driver.add(&head);
    driver.take(&swept(100));
    driver.remove(&head);
    assert_eq!((driver.payment.status(), driver.payment.settlement), (Status::Detected, None));
    driver.take(&swept(100));
    assert_eq!(driver.payment.status(), Status::Detected);
    driver.add(&head);
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.take(&swept(100));
    assert_eq!(driver.payment.status(), Status::Settled);
    let below = Block { number: 0, hash: B256::ZERO, timestamp: 5, amounts: Vec::new() };
    driver.take(&Input::Rewound(below.cause()));
    assert_eq!((driver.payment.status(), driver.payment.settlement), (Status::Pending, None));
    use EventKind::{Confirmed, Detected, Reverted, Settled};
    assert_eq!(driver.events, [Detected, Confirmed, Settled, Reverted, Confirmed, Settled, Reverted]);
}

#[test]
fn late_money_that_was_accepted_is_settled_as_any_other() {
    let mut driver =
        Driver::of(Payment { terms: Terms { accept_late: true, ..Terms::default() }, ..payment(Policy::Confirmations(1)) });
    driver.add(&block(1, EXPIRES + 1, &[100]));
    driver.take(&swept(100));
    assert_eq!(driver.payment.status(), Status::Settled);
}
