//! Payments as Postgres stores them, for comparison with the chain and the topics.

use crate::lab::Lab;
use anyhow::Result;
use std::collections::BTreeMap;

/// A payment as Postgres stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// `pending`, `detected` and so on.
    pub status: String,
    /// Requested, in base units.
    pub amount: String,
    /// Received, in base units.
    pub received: String,
    /// How many transfers stand on the canonical chain.
    pub transfers: i64,
    /// Sequence of the last event.
    pub sequence: i64,
}

/// All payments by id, as Postgres stores them.
///
/// # Errors
/// When the database does not answer.
pub async fn ledger(lab: &Lab) -> Result<BTreeMap<String, Row>> {
    let rows = lab
        .database()
        .await?
        .query(
            "SELECT id::text, status, amount::text, amount_received::text,
                 (SELECT count(*) FROM transfers WHERE payment_id = payments.id AND NOT removed), sequence
             FROM payments",
            &[],
        )
        .await?;
    let row = |row: &tokio_postgres::Row| Row {
        status: row.get(1),
        amount: row.get(2),
        received: row.get(3),
        transfers: row.get(4),
        sequence: row.get(5),
    };
    Ok(rows.iter().map(|r| (r.get(0), row(r))).collect())
}
