//! Rows of `unacknowledged_intents`: intents that Kafka has not acknowledged yet. Each is inserted in the transaction of its payment
//! or static address, and deleted once Kafka has it. One that can't be read keeps no other from being published.

use super::page::Page;
use crate::intents::ACKNOWLEDGEMENT_TIMEOUT;
use anyhow::anyhow;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::Failure;
use tokio_postgres::Row;
use topics::wire::PaymentIntent;
use uuid::Uuid;

/// Inserts intents by the ids of their payments or static addresses.
pub(super) async fn insert_intents(db: &impl GenericClient, new: &[(Uuid, PaymentIntent)]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached("INSERT INTO unacknowledged_intents (payment_id, intent) SELECT * FROM unnest($1::uuid[], $2::bytea[])")
        .await?;
    let ids: Vec<Uuid> = new.iter().map(|(id, _)| *id).collect();
    let intents: Vec<Vec<u8>> = new.iter().map(|(_, intent)| intent.encode_to_vec()).collect();
    db.execute(&statement, &[&ids, &intents]).await?;
    Ok(())
}

/// Intents that Kafka has not acknowledged. Those that can't be read nobody can publish.
pub type Unacknowledged = Page<(Uuid, PaymentIntent)>;

fn read_intent(id: Uuid, bytes: &[u8]) -> Result<(Uuid, PaymentIntent), Failure> {
    let intent = PaymentIntent::decode(bytes).map_err(Failure::halt)?;
    topics::address("address", &intent.address).map_err(Failure::halt)?;
    if !intent.payment_id.parse::<Uuid>().is_ok_and(|of| of == id) {
        return Err(Failure::Halt(anyhow!("it is of {:?}", base::text::excerpt(&intent.payment_id))));
    }
    Ok((id, intent))
}

/// The unacknowledged intents of these payments and static addresses.
///
/// # Errors
/// When the database fails.
pub async fn unacknowledged_intents(db: &impl GenericClient, ids: &[Uuid]) -> Result<Unacknowledged, Failure> {
    let statement =
        db.prepare_cached("SELECT payment_id, intent FROM unacknowledged_intents WHERE payment_id = ANY($1)").await?;
    let rows = db.query(&statement, &[&ids]).await?;
    Ok(page(&rows))
}

fn page(rows: &[Row]) -> Unacknowledged {
    Page::of(rows.iter().map(|row| (row.get(0), read_intent(row.get(0), row.get(1)))))
}

/// At most `limit` intents older than [`ACKNOWLEDGEMENT_TIMEOUT`] with ids above `after`, locked until the transaction ends:
/// the request that wrote one has given up on Kafka, or its process has died. Those that another instance has locked are
/// skipped. `last` is one if there may be more.
///
/// # Errors
/// When the database fails.
pub async fn lock_overdue_intents(db: &impl GenericClient, after: Uuid, limit: u16) -> Result<Unacknowledged, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT payment_id, intent FROM unacknowledged_intents
             WHERE created_at < now() - make_interval(secs => $2::double precision) AND payment_id > $3
             ORDER BY payment_id LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .await?;
    let rows = db.query(&statement, &[&i64::from(limit), &ACKNOWLEDGEMENT_TIMEOUT.as_secs_f64(), &after]).await?;
    let page = page(&rows);
    Ok(Page { last: page.last.filter(|_| rows.len() >= usize::from(limit)), ..page })
}

/// Deletes intents that Kafka has acknowledged.
///
/// # Errors
/// When the database fails.
pub async fn delete_intents(db: &impl GenericClient, ids: &[Uuid]) -> Result<(), Failure> {
    let statement = db.prepare_cached("DELETE FROM unacknowledged_intents WHERE payment_id = ANY($1)").await?;
    db.execute(&statement, &[&ids]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_holds_no_intent_is_told_apart_and_keeps_the_others() {
        let [good, other, third, fourth] = [1, 2, 3, 4].map(Uuid::from_u128);
        let intent = |id: Uuid, address: &[u8]| PaymentIntent {
            payment_id: id.to_string(),
            address: address.to_vec().into(),
            ..PaymentIntent::default()
        };
        let written = intent(good, &[7; 20]);
        let rows = [
            (good, written.encode_to_vec()),
            (other, vec![0xff; 9]),
            (third, Vec::new()),
            (fourth, intent(good, &[7; 20]).encode_to_vec()),
        ];
        let read = Page::of(rows.iter().map(|(id, bytes)| (*id, read_intent(*id, bytes))));
        assert_eq!(read.items, [(good, written)]);
        let unreadable: Vec<Uuid> = read.unreadable.iter().map(|(id, _)| *id).collect();
        assert_eq!(unreadable, [other, third, fourth], "{:?}", read.unreadable);
    }
}
