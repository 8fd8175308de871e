//! The queries behind the API's lists: pages of payments and deposits, newest first, by keyset and not by offset. They return
//! places, and [`load_payments`](super::load_payments) then loads the payments by id.

use crate::status::{Exception, Status};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::fmt::Write as _;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use topics::{Address, B256, ChainId, PaymentId};
use uuid::Uuid;

/// The place of a row in its list, which is ordered by creation time and then by id: the key of keyset pagination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Unix seconds.
    pub created_at: i64,
    /// Orders the rows of one second.
    pub id: PaymentId,
}

impl Place {
    /// The top of a list: every row is below it.
    pub const FIRST: Self = Self { created_at: i64::MAX, id: PaymentId(Uuid::max()) };

    fn read(row: &Row) -> Self {
        Self { id: PaymentId(row.get(0)), created_at: row.get(1) }
    }
}

/// The conditions on a list of payments; `None` is no condition.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PaymentFilter {
    /// The page begins below this place.
    pub below: Option<Place>,
    pub status: Option<Status>,
    pub exception: Option<Exception>,
    pub chain: Option<ChainId>,
    /// The symbol, as chains.yaml writes it.
    pub token: Option<String>,
    pub external_id: Option<String>,
    pub address: Option<Address>,
    /// Of a transaction on the canonical chain with a transfer to the payment, also one that is not credited.
    pub transaction: Option<B256>,
    /// Unix seconds, inclusive.
    pub created_from: Option<i64>,
    /// Unix seconds, exclusive.
    pub created_before: Option<i64>,
}

type Value = Box<dyn ToSql + Sync + Send>;

/// At most `limit` of a merchant's payments, without deposits.
///
/// # Errors
/// When the database fails.
pub async fn list_payments(
    db: &impl GenericClient,
    merchant: Uuid,
    filter: &PaymentFilter,
    limit: i64,
) -> Result<Vec<Place>, Failure> {
    let (sql, values) = filter.query(merchant, limit)?;
    let statement = db.prepare_cached(&sql).await?;
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
    Ok(db.query(&statement, &values).await?.iter().map(Place::read).collect())
}

/// At most `limit` deposits at a static address.
///
/// # Errors
/// When the database fails.
pub async fn list_deposits(
    db: &impl GenericClient,
    deposit_address: Uuid,
    below: Place,
    limit: i64,
) -> Result<Vec<Place>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id, created_at FROM payments WHERE deposit_address = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT $4",
        )
        .await?;
    let rows = db.query(&statement, &[&deposit_address, &below.created_at, &below.id.0, &limit]).await?;
    Ok(rows.iter().map(Place::read).collect())
}

impl PaymentFilter {
    /// The statement has only the conditions that are set: no index serves one like `$1 IS NULL OR status = $1` once Postgres
    /// keeps a generic plan. There are few combinations, and each is prepared once per connection.
    fn query(&self, merchant: Uuid, limit: i64) -> Result<(String, Vec<Value>), Failure> {
        let mut sql = "SELECT id, created_at FROM payments WHERE merchant_id = $1 AND deposit_address IS NULL".to_owned();
        let mut values: Vec<Value> = vec![Box::new(merchant)];
        let mut and = |condition: &str, value: Value| {
            values.push(value);
            // Writing into a string does not fail.
            let _ = write!(sql, " AND {condition}${}", values.len());
        };
        if let Some(status) = self.status {
            and("status = ", Box::new(status.as_str()));
        }
        if let Some(exception) = self.exception {
            and("exception = ", Box::new(exception.as_str()));
        }
        if let Some(chain) = self.chain {
            and("chain_id = ", Box::new(i64::try_from(chain.0).map_err(Failure::halt)?));
        }
        if let Some(token) = &self.token {
            and("token = ", Box::new(token.clone()));
        }
        if let Some(external_id) = &self.external_id {
            and("external_id = ", Box::new(external_id.clone()));
        }
        if let Some(address) = self.address {
            and("address = ", Box::new(address.to_vec()));
        }
        if let Some(from) = self.created_from {
            and("created_at >= ", Box::new(from));
        }
        if let Some(before) = self.created_before {
            and("created_at < ", Box::new(before));
        }
        if let Some(transaction) = self.transaction {
            and(
                "id IN (SELECT payment_id FROM transfers WHERE NOT removed AND transaction_hash = ",
                Box::new(transaction.to_vec()),
            );
            sql.push(')');
        }
        if let Some(place) = self.below {
            values.push(Box::new(place.created_at));
            values.push(Box::new(place.id.0));
            let _ = write!(sql, " AND (created_at, id) < (${}, ${})", values.len() - 1, values.len());
        }
        values.push(Box::new(limit));
        let _ = write!(sql, " ORDER BY created_at DESC, id DESC LIMIT ${}", values.len());
        Ok((sql, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_conditions_asked_for_and_no_others() {
        let (sql, values) = PaymentFilter::default().query(Uuid::nil(), 51).unwrap();
        assert_eq!(
            sql,
            "SELECT id, created_at FROM payments WHERE merchant_id = $1 AND deposit_address IS NULL ORDER BY created_at DESC, id DESC LIMIT $2"
        );
        assert_eq!(values.len(), 2);
        let all = PaymentFilter {
            below: Some(Place { created_at: 7, id: PaymentId(Uuid::nil()) }),
            status: Some(Status::Pending),
            exception: Some(Exception::Late),
            chain: Some(ChainId(1)),
            token: Some("USDC".into()),
            external_id: Some("x".into()),
            address: Some(Address::ZERO),
            transaction: Some(B256::ZERO),
            created_from: Some(1),
            created_before: Some(2),
        };
        let (sql, values) = all.query(Uuid::nil(), 1).unwrap();
        for column in ["status", "exception", "chain_id", "token", "external_id", "address", "transaction_hash"] {
            assert_eq!(sql.matches(&format!(" {column} = $")).count(), 1, "{sql}");
        }
        assert!(
            sql.contains("AND transaction_hash = $10) AND (created_at, id) < ($11, $12)") && sql.ends_with("LIMIT $13"),
            "{sql}"
        );
        assert_eq!(values.len(), 13);
    }
}
