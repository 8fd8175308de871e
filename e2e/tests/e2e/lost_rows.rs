//! What the store does for a database that lost rows, on a database of its own: payments come back, and events that were told are
//! not told again.

use crate::books::{self, Books, CHAINS, X, X_LISTED, block_hash, chains, payments, static_addresses};
use anyhow::{Context as _, Result, ensure};
use confirmer::fold::{self, Batch};
use deadpool_postgres::Client;
use e2e::{Stack, XPUB, eventually};
use merchants::accounts::Account;
use payments::intents::{IdempotencyClaim, Issued, Origin};
use payments::{DepositAddress, Payment, store};
use prost::Message as _;
use runtime::db::{self, lock};
use runtime::{Failure, Span};
use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use topics::{Address, Amount, B256, Matches, PaymentId, Source, Transfer, TransferId, wire};
use uuid::Uuid;
use wallet::AccountXpub;

/// One that is lost, at an index and an address of its own.
fn lost(number: u8) -> Payment {
    Payment {
        id: PaymentId(Uuid::from_u128(3_000 + u128::from(number))),
        address: Address::with_last_byte(100 + number),
        address_index: 1_000 + u32::from(number),
        ..payments().remove(0)
    }
}

fn issued(payment: Payment) -> (Issued, Origin) {
    (Issued::Payment(Box::new(payment)), Origin::default())
}

/// Whichever rule of the database it breaks: it is named, and keeps none of the others out.
#[tokio::test]
async fn an_intent_that_contradicts_the_database_keeps_no_other_from_being_restored() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let taken = static_addresses().remove(0);
    let of_static_address = Payment { address: taken.address, address_index: taken.address_index, ..lost(1) };
    let malformed = Payment { metadata: Some("{".into()), ..lost(2) };
    let worthless = Payment { amount: Amount::ZERO, ..lost(3) };
    let of_another = Payment { address: payments()[0].address, ..lost(4) };
    let of_payment = DepositAddress {
        id: Uuid::from_u128(4_000),
        external_id: None,
        address: payments()[0].address,
        address_index: payments()[0].address_index,
        ..taken
    };
    let bad = [&of_static_address, &malformed, &worthless, &of_another].map(|payment| payment.id.0);
    let bad: BTreeSet<Uuid> = bad.into_iter().chain([of_payment.id]).collect();
    let good: Vec<Payment> = (10..30).map(lost).collect();
    let mut all = vec![(Issued::Address(of_payment), Origin::default()), issued(of_static_address)];
    all.extend(good.iter().cloned().map(issued));
    all.extend([malformed, worthless, of_another].map(issued));

    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    let restored = store::restore_issued(&transaction, &all).await?;
    transaction.commit().await?;
    let refused: BTreeSet<Uuid> = restored.refused.iter().map(|(issued, _)| issued.id()).collect();
    ensure!(restored.payments == good.len() && restored.addresses == 0, "{restored:?}");
    ensure!(refused == bad, "{:?}", restored.refused);
    let there = books.all().await?;
    ensure!(good.iter().all(|payment| there.contains_key(&payment.id)) && there.len() == payments().len() + good.len());
    Ok(())
}

/// A key can be used again after a day, and a retry gets the payment of its last use.
#[tokio::test]
async fn a_key_comes_back_with_its_newest_payment() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let merchant = payments()[0].merchant;
    let with_key = |number: u8, key: &str, created_at: u64| {
        let claim = IdempotencyClaim { key: key.to_owned(), request_hash: vec![number] };
        let payment = Payment { created_at, ..lost(number) };
        (Issued::Payment(Box::new(payment)), Origin { idempotency: Some(claim), ..Origin::default() })
    };
    let mut client = books.pool.get().await?;
    let there = "INSERT INTO idempotency_keys (merchant_id, key, request_hash, payment_id, created_at)
                 VALUES ($1, 'old', '', $2, to_timestamp(10)), ($1, 'new', '', $2, to_timestamp(30))";
    client.execute(there, &[&merchant, &payments()[0].id.0]).await?;
    let transaction = client.transaction().await?;
    let all = [with_key(1, "twice", 10), with_key(2, "twice", 20), with_key(3, "old", 20), with_key(4, "new", 20)];
    store::restore_issued(&transaction, &all).await?;
    transaction.commit().await?;
    for (key, payment) in [("twice", lost(2).id), ("old", lost(3).id), ("new", payments()[0].id)] {
        let sql = "SELECT payment_id FROM idempotency_keys WHERE merchant_id = $1 AND key = $2";
        let row = client.query_one(sql, &[&merchant, &key]).await?;
        ensure!(row.get::<_, Uuid>(0) == payment.0, "{key}: {row:?}");
    }
    Ok(())
}

fn block(number: u64, transfers: Vec<Transfer>) -> Matches {
    books::block(CHAINS[0], number, transfers)
}

fn transfer(number: u64, to: Address, amount: Amount) -> Transfer {
    let block = block_hash(number);
    Transfer {
        id: TransferId { chain: CHAINS[0], block, transaction: B256::repeat_byte(9), source: Source::Log, index: 0 },
        token: Some(X),
        from: Address::ZERO,
        to,
        amount,
        transaction_index: 0,
    }
}

/// Waits until somebody waits for an advisory lock of this database.
pub async fn until_one_waits(db: &impl deadpool_postgres::GenericClient) -> Result<()> {
    let sql = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
    eventually("somebody to wait", async || Ok(db.query_opt(sql, &[]).await?.map(drop))).await
}

/// Holds the lock of a comparison until `work` waits for it, and then lets it go on.
async fn while_comparing<T>(books: &Books, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut client = books.pool.get().await?;
    let comparison = client.transaction().await?;
    comparison.execute("SELECT pg_advisory_xact_lock($1)", &[&lock::CATCH_UP]).await?;
    tokio::pin!(work);
    tokio::select! {
        _ = &mut work => anyhow::bail!("it did not wait"),
        waits = until_one_waits(&comparison) => waits?,
    }
    comparison.commit().await?;
    work.await
}

/// An event that is made while the topic's events are compared would be told although it was told before.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_folded_or_cancelled_while_told_events_are_compared() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let chains = chains(X_LISTED).await?;
    let paid = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment")?;
    let open = payments().into_iter().find(|p| p.id != paid.id).context("another payment")?;
    let records = vec![block(1, vec![transfer(1, paid.address, paid.amount)])];
    let batch = Batch { span: Span { next: 1, ..Span::default() }, records };
    let fold = async { fold::apply_in_slices(&books.pool, &chains, &batch, usize::MAX).await.map_err(Into::into) };
    ensure!(while_comparing(&books, fold).await? > 0, "nothing was folded");
    ensure!(while_comparing(&books, books.cancel(open.id)).await?, "nothing was cancelled");
    Ok(())
}

/// It holds the lock that folds share. A comparison that waited for it would hold up all folds after it.
#[tokio::test]
async fn a_process_that_is_paused_amid_a_fold_holds_up_no_other() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let (mut paused, mut other) = (books.pool.get().await?, books.pool.get().await?);
    let ends = paused.query_one("SHOW idle_in_transaction_session_timeout", &[]).await?;
    ensure!(ends.get::<_, &str>(0) == "30s", "the server does not end its transaction");
    let fold = paused.transaction().await?;
    lock::hold_off_comparison(&fold).await?;

    let comparison = other.transaction().await?;
    let given_up = tokio::time::timeout(Duration::from_secs(30), lock::begin_comparison(&comparison)).await?;
    ensure!(matches!(given_up, Err(Failure::Retry(_))), "{given_up:?}");
    comparison.rollback().await?;
    let next = other.transaction().await?;
    lock::hold_off_comparison(&next).await?;
    next.rollback().await?;
    fold.rollback().await?;
    let comparison = other.transaction().await?;
    lock::begin_comparison(&comparison).await?;
    let timeout = comparison.query_one("SHOW lock_timeout", &[]).await?;
    ensure!(timeout.get::<_, &str>(0) == "0", "what the comparison writes may wait");
    Ok(())
}

/// A payment with three events that are not told yet, and what becomes of them beside one that was told.
struct Told {
    books: Books,
    payment: PaymentId,
    /// Created, detected, confirmed.
    made: [wire::PaymentEvent; 3],
}

impl Told {
    async fn start() -> Result<Self> {
        let mut books = Books::open(&Stack::attach()?, usize::MAX).await?;
        let paid = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.asset.token.is_some()).context("a payment")?;
        let block = block(1, vec![transfer(1, paid.address, paid.amount)]);
        books.apply(&chains(X_LISTED).await?, &[block]).await?;
        let made = Self::events(&books, paid.id).await?;
        let made = made.try_into().map_err(|made| anyhow::anyhow!("{made:?}"))?;
        Ok(Self { books, payment: paid.id, made })
    }

    async fn events(books: &Books, payment: PaymentId) -> Result<Vec<wire::PaymentEvent>> {
        let all = books.events().await?;
        Ok(all.into_iter().filter(|event| event.payment_id == payment.to_string()).collect())
    }

    fn renumbered(&self, event: &wire::PaymentEvent, sequence: u64) -> wire::PaymentEvent {
        let id = format!("evt_{}_{sequence}", self.payment.0.simple());
        wire::PaymentEvent { id, sequence, ..event.clone() }
    }

    /// Compares with what was told. Returns how many were lost.
    async fn compare(&self, told: &[&wire::PaymentEvent]) -> Result<u64> {
        let mut client = self.books.pool.get().await?;
        let transaction = client.transaction().await?;
        let told: Vec<_> = told.iter().map(|told| (self.payment.0, (*told).clone())).collect();
        let lost = store::keep_told_events(&transaction, &told).await?;
        transaction.commit().await?;
        Ok(lost)
    }

    /// The outbox has these events, and the history numbers without a gap up to the payment's.
    async fn expect(&self, left: &[wire::PaymentEvent], last: u64) -> Result<()> {
        let found = Self::events(&self.books, self.payment).await?;
        ensure!(found == left, "{found:?}");
        let sequences = "SELECT array_agg(sequence ORDER BY sequence) FROM payment_events WHERE payment_id = $1";
        let history: Vec<i64> = self.books.pool.get().await?.query_one(sequences, &[&self.payment.0]).await?.get(0);
        ensure!(history.iter().copied().eq(1..=i64::try_from(last)?), "{history:?}");
        let now = self.books.payment(self.payment).await?;
        ensure!(now.sequence == last, "{now:?}");
        Ok(())
    }
}

/// An old primary told something else under a number that was given here too: neither is lost, and no number has two contents.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_number_was_told_with_another_content_gets_a_new_number() -> Result<()> {
    let lab = Told::start().await?;
    let [created, detected, confirmed] = &lab.made;
    let told = wire::PaymentEvent {
        r#type: "payment.cancelled".to_owned(),
        occurred_at: 7,
        block: None,
        transfer: None,
        ..detected.clone()
    };
    let lost = lab.compare(&[created, &told]).await?;
    ensure!(lost == 1, "{lost}");
    lab.expect(&[lab.renumbered(detected, 3), lab.renumbered(confirmed, 4)], 4).await
}

/// It takes the number under which it was told, and leaves its own to the event that had that one.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_told_under_the_number_of_another_is_not_told_again() -> Result<()> {
    let lab = Told::start().await?;
    let [created, detected, confirmed] = &lab.made;
    let lost = lab.compare(&[created, &lab.renumbered(confirmed, 2)]).await?;
    ensure!(lost == 0, "{lost}");
    lab.expect(&[lab.renumbered(detected, 3)], 3).await
}

/// Two primaries told an event each, and both came in one read: the first is the one that was told.
#[tokio::test]
async fn two_events_that_were_told_under_one_number_stop_nobody() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let paid = &payments()[0];
    let told = |kind: &str| wire::PaymentEvent {
        payment_id: paid.id.to_string(),
        sequence: 2,
        r#type: kind.to_owned(),
        ..Default::default()
    };
    let mut client = books.pool.get().await?;
    let transaction = client.transaction().await?;
    let events = ["payment.detected", "payment.underpaid"].map(|kind| (paid.id.0, told(kind)));
    let kept = store::keep_told_events(&transaction, &events).await?;
    transaction.commit().await?;
    ensure!(kept == 1, "{kept}");
    for table in ["told_events", "payment_events"] {
        let sql = format!("SELECT record FROM {table} WHERE payment_id = $1 AND sequence = 2");
        let record = client.query_one(&sql, &[&paid.id.0]).await?;
        let kept = wire::PaymentEvent::decode(record.get::<_, &[u8]>(0))?;
        ensure!(kept.r#type == "payment.detected", "{table}: {kept:?}");
    }
    Ok(())
}

/// An older backup that is swapped in while roles run lacks what the migrations since have made.
#[tokio::test]
async fn a_database_before_its_migrations_is_waited_for() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let client = books.pool.get().await?;
    for sql in ["SELECT FROM not_there", "SELECT not_there FROM payments", "SELECT not_there()"] {
        let failure = Failure::from(client.query(sql, &[]).await.err().context("an error")?);
        let waits = matches!(&failure, Failure::Retry(cause) if format!("{cause:#}").contains("ctrip migrate"));
        ensure!(waits, "{sql}: {failure:?}");
    }
    Ok(())
}

/// Such as an old primary, whose commits wait for a standby that is gone.
#[tokio::test]
async fn a_server_that_does_not_answer_holds_up_nobody_for_ever() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let sleep = async |client: &mut Client| Ok(client.execute("SELECT pg_sleep(60)", &[]).await?);
    let client = books.pool.get().await?;
    let open = books.pool.status().size;
    let late = db::in_time(client, Duration::from_millis(50), sleep).await;
    ensure!(matches!(late, Err(Failure::Retry(_))), "{late:?}");
    ensure!(books.pool.status().size + 1 == open, "the connection is used again");
    Ok(())
}

/// An error of Postgres was taken for the account of another, and no address was given out.
#[tokio::test]
async fn an_account_that_postgres_does_not_register_is_no_others() -> Result<()> {
    let books = Books::open(&Stack::attach()?, usize::MAX).await?;
    let mut client = books.pool.get().await?;
    client.execute("UPDATE xpubs SET xpub = NULL", &[]).await?;
    let account = Account::register(AccountXpub::parse(XPUB)?, &books.pool).await?;
    let fails = "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
                     'BEGIN RAISE EXCEPTION ''out of order'' USING ERRCODE = ''XX000''; END';
                 CREATE TRIGGER fails BEFORE INSERT ON xpubs FOR EACH ROW EXECUTE FUNCTION fails()";
    client.batch_execute(fails).await?;
    let failed = account.register_again(&mut client).await;
    ensure!(matches!(&failed, Err(Failure::Retry(cause)) if format!("{cause:#}").contains("out of order")), "{failed:?}");
    client.batch_execute("DROP TRIGGER fails ON xpubs").await?;
    account.register_again(&mut client).await?;
    Ok(())
}

/// The old primary went on for longer than this one: no new number is one of its later events'.
#[tokio::test(flavor = "multi_thread")]
async fn no_event_gets_the_number_of_one_that_was_told_and_lost() -> Result<()> {
    let lab = Told::start().await?;
    let [created, detected, confirmed] = &lab.made;
    let other = |number| wire::PaymentEvent { occurred_at: number, ..lab.renumbered(detected, number) };
    let lost = lab.compare(&[created, &other(2), &other(3), &other(4)]).await?;
    ensure!(lost == 3, "{lost}");
    lab.expect(&[lab.renumbered(detected, 5), lab.renumbered(confirmed, 6)], 6).await
}

/// A fail-over was taken back: these were claimed here, and the other database has told one of its own under the number of a claim. The
/// comparison leaves claims as they are, since the relay may have them in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_never_told_leaves_its_number_to_the_event_that_was() -> Result<()> {
    let lab = Told::start().await?;
    let [created, detected, confirmed] = &lab.made;
    let mut client = lab.books.pool.get().await?;
    client.execute("UPDATE outbox SET batch = 7 WHERE payment_id = $1", &[&lab.payment.0]).await?;
    let told = [created.clone(), wire::PaymentEvent { occurred_at: 7, ..detected.clone() }];
    ensure!(lab.compare(&told.iter().collect::<Vec<_>>()).await? == 1);
    let claimed = store::claims(&client).await?;
    ensure!(!claimed.is_empty() && claimed.iter().all(|claim| *claim == (lab.payment.0, 7)), "{claimed:?}");
    let own = HashSet::from([lab.payment.0]);
    let released = store::release_claims(&mut client, &own, 8, &told.map(|told| (lab.payment.0, told))).await?;
    ensure!(released == 2, "{released}");
    lab.expect(&[lab.renumbered(detected, 3), lab.renumbered(confirmed, 4)], 4).await
}

/// A transfer that was told does not count any more, or its block left the chain while it was an orphan.
#[tokio::test(flavor = "multi_thread")]
async fn told_events_that_are_never_made_again_keep_a_payment_from_being_cancelled_for_a_while() -> Result<()> {
    let mut lab = Told::start().await?;
    let open = payments().into_iter().find(|p| p.chain == CHAINS[0] && p.id != lab.payment).context("another payment")?;
    let of_open = |number: u64, kind: &str| wire::PaymentEvent {
        r#type: kind.to_owned(),
        payment_id: open.id.to_string(),
        ..lab.renumbered(&lab.made[1], number)
    };
    let told = [of_open(2, "payment.underpaid"), of_open(3, "payment.reverted")];
    lab.payment = open.id;
    ensure!(lab.compare(&told.each_ref()).await? == 2);

    let (chains, mut client) = (chains(X_LISTED).await?, lab.books.pool.get().await?);
    let now: i64 = client.query_one("SELECT extract(epoch FROM now())::bigint", &[]).await?.get(0);
    let now = u64::try_from(now)?;
    let mut behind = Vec::new();
    // A block of before, one of which nobody knows, and one of after.
    for (number, timestamp) in [(2, now - 10), (3, now + 60), (4, now + 1_000)] {
        // Nothing expires the payment: its time is over for long.
        let block = Matches { timestamp, ..block(number, Vec::new()) };
        client.execute("UPDATE payments SET expires_at = 9000000000000", &[]).await?;
        lab.books.apply(&chains, &[block]).await?;
        behind.push(store::is_behind_told_events(&client, open.id).await?);
    }
    ensure!(behind == [true, true, false], "{behind:?}");
    let orphan = "INSERT INTO orphan_transfers (chain_id, block_hash, transaction_hash, source, index, address, block_number,
                      block_timestamp, transaction_index, sender, amount)
                  SELECT 1, $1, $1, 'log', 0, $2, 1, 1, 0, $2, 1";
    let (hash, address) = (block_hash(1), open.address);
    let transaction = client.transaction().await?;
    transaction.execute(orphan, &[&hash.as_slice(), &address.as_slice()]).await?;
    ensure!(store::is_behind_told_events(&transaction, open.id).await?, "its transfer waits");
    transaction.rollback().await?;

    ensure!(lab.books.cancel(open.id).await?);
    let cancelled = Told::events(&lab.books, open.id).await?.pop().context("an event")?;
    ensure!((cancelled.r#type.as_str(), cancelled.sequence) == ("payment.cancelled", 4), "{cancelled:?}");
    Ok(())
}
