//! Rows of `unacknowledged_intents`: intents that Kafka has not acknowledged yet. Each is inserted in the transaction of its payment
//! or static address, and deleted once Kafka has it.

use crate::intents::ACKNOWLEDGEMENT_TIMEOUT;
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

/// The unacknowledged intents of these payments and static addresses.
///
/// # Errors
/// When the database fails, or a row holds no valid intent.
pub async fn unacknowledged_intents(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<(Uuid, PaymentIntent)>, Failure> {
    let statement =
        db.prepare_cached("SELECT payment_id, intent FROM unacknowledged_intents WHERE payment_id = ANY($1)").await?;
    db.query(&statement, &[&ids]).await?.iter().map(read_intent).collect()
}

/// At most `limit` intents older than [`ACKNOWLEDGEMENT_TIMEOUT`] with ids above `after`, by growing id, locked until the transaction ends:
/// the request that wrote one has given up on Kafka, or its process has died. Those that another instance has locked are skipped.
///
/// # Errors
/// When the database fails, or a row holds no valid intent.
pub async fn lock_overdue_intents(
    db: &impl GenericClient,
    after: Uuid,
    limit: i64,
) -> Result<Vec<(Uuid, PaymentIntent)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT payment_id, intent FROM unacknowledged_intents
             WHERE created_at < now() - make_interval(secs => $2::double precision) AND payment_id > $3
             ORDER BY payment_id LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .await?;
    db.query(&statement, &[&limit, &ACKNOWLEDGEMENT_TIMEOUT.as_secs_f64(), &after]).await?.iter().map(read_intent).collect()
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

fn read_intent(row: &Row) -> Result<(Uuid, PaymentIntent), Failure> {
    let intent = PaymentIntent::decode(row.get::<_, &[u8]>(1))
        .map_err(|e| Failure::halt(e).context("reading unacknowledged_intents"))?;
    Ok((row.get(0), intent))
}
