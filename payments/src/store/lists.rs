//! The queries behind the API's lists: pages of payments and deposits, newest first, by keyset and not by offset. They return
//! places, and [`load_payments`](super::load_payments) then loads the payments by id.
//!
//! A page reads about as many index entries as it has rows, whatever the filter and however many payments a merchant has: an index
//! begins with all columns of the filter and ends with the order. So that one index serves a filter with a status and without one, a
//! list without it is put together from a page of each status.

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Payments of a merchant that may share an external id for it to be combined with what its index does not have.
const MAX_FILTERED_BY_EXTERNAL_ID: i64 = 1_000;
const ORDER: &str = "ORDER BY created_at DESC, id DESC LIMIT $2";

/// Whether too many of a merchant's payments have this external id for a list of them to be filtered by chain, token or exception as well.
///
/// # Errors
/// When the database fails.
pub async fn is_common_external_id(db: &impl GenericClient, merchant: Uuid, external_id: &str) -> Result<bool, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT count(*) FROM (SELECT FROM payments WHERE merchant_id = $1 AND external_id = $2 AND deposit_address IS NULL
                 LIMIT $3) AS found",
        )
        .await?;
    let count: i64 = db.query_one(&statement, &[&merchant, &external_id, &(MAX_FILTERED_BY_EXTERNAL_ID + 1)]).await?.get(0);
    Ok(count > MAX_FILTERED_BY_EXTERNAL_ID)
}

impl PaymentFilter {
    /// The external id, if no index has it and all other columns: then [`is_common_external_id`] tells whether the list may be read all the
    /// same.
    pub fn external_id_beside_others(&self) -> Option<&str> {
        let has_others = self.chain.is_some() || self.token.is_some() || self.exception.is_some();
        self.external_id.as_deref().filter(|_| has_others && !self.finds_few())
    }

    /// An address is of one payment, and a transaction has paid those that it paid.
    const fn finds_few(&self) -> bool {
        self.address.is_some() || self.transaction.is_some()
    }

    /// The statement has only the conditions that are set: no index serves one like `$1 IS NULL OR status = $1` once Postgres
    /// keeps a generic plan. There are few combinations, and each is prepared once per connection.
    fn query(&self, merchant: Uuid, limit: i64) -> Result<(String, Vec<Value>), Failure> {
        let mut conditions = "merchant_id = $1 AND deposit_address IS NULL".to_owned();
        let mut values: Vec<Value> = vec![Box::new(merchant), Box::new(limit)];
        let mut and = |condition: &str, value: Value| {
            values.push(value);
            // Writing into a string does not fail.
            let _ = write!(conditions, " AND {condition}${}", values.len());
        };
        // As an expression a column has no index: that of the address or of the external id is the better one, whatever Postgres makes of
        // its statistics.
        let (beside_address, beside) =
            (self.address.is_some(), self.address.is_some() || self.external_id_beside_others().is_some());
        if let Some(status) = self.status {
            and(if beside_address { "status || '' = " } else { "status = " }, Box::new(status.as_str()));
        }
        if let Some(chain) = self.chain {
            let column = if beside { "chain_id + 0 = " } else { "chain_id = " };
            and(column, Box::new(i64::try_from(chain.0).map_err(Failure::halt)?));
        }
        if let Some(exception) = self.exception {
            and(if beside { "exception || '' = " } else { "exception = " }, Box::new(exception.as_str()));
        }
        if let Some(token) = &self.token {
            and(if beside { "token || '' = " } else { "token = " }, Box::new(token.clone()));
        }
        if let Some(external_id) = &self.external_id {
            and(if beside_address { "external_id || '' = " } else { "external_id = " }, Box::new(external_id.clone()));
        }
        if let Some(address) = self.address {
            and("address = ", Box::new(address.to_vec()));
        }
        if let Some(from) = self.created_from {
            and("created_at >= ", Box::new(from));
        }
        if let Some(Place { created_at, id }) = self.top() {
            values.push(Box::new(created_at));
            values.push(Box::new(id.0));
            let _ = write!(conditions, " AND (created_at, id) < (${}, ${})", values.len() - 1, values.len());
        }
        let mut table = "payments".to_owned();
        if let Some(transaction) = self.transaction {
            values.push(Box::new(transaction.to_vec()));
            // From the transaction to its payments, one by one, and never the other way round.
            table = format!(
                "(SELECT p.* FROM (SELECT DISTINCT payment_id FROM transfers WHERE transaction_hash = ${last}::bytea
                     AND substring(transaction_hash FROM 1 FOR 7) = substring(${last}::bytea FROM 1 FOR 7) AND NOT removed) AS t
                 CROSS JOIN LATERAL (SELECT * FROM payments WHERE id = t.payment_id OFFSET 0) AS p) AS paid",
                last = values.len()
            );
        }
        let page = |status: &str| format!("SELECT id, created_at FROM {table} WHERE {conditions}{status} {ORDER}");
        if self.status.is_some() || self.finds_few() {
            return Ok((page(""), values));
        }
        let pages = Status::ALL.map(|status| format!("({})", page(&format!(" AND status = '{}'", status.as_str()))));
        Ok((format!("SELECT id, created_at FROM ({}) AS p {ORDER}", pages.join(" UNION ALL ")), values))
    }

    /// The place that all rows are below. Of two such conditions Postgres would begin at the cursor's, also where it is the higher one.
    fn top(&self) -> Option<Place> {
        let before = self.created_before.map(|created_at| Place { created_at, id: PaymentId(Uuid::nil()) });
        [self.below, before].into_iter().flatten().min_by_key(|place| (place.created_at, place.id.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_conditions_asked_for_and_no_others() {
        let (sql, values) =
            PaymentFilter { status: Some(Status::Pending), ..PaymentFilter::default() }.query(Uuid::nil(), 51).unwrap();
        assert_eq!(
            sql,
            "SELECT id, created_at FROM payments WHERE merchant_id = $1 AND deposit_address IS NULL AND status = $3 \
             ORDER BY created_at DESC, id DESC LIMIT $2"
        );
        assert_eq!(values.len(), 3);
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
            let conditions = [" = ", " || '' = ", " + 0 = "].map(|is| sql.matches(&format!(" {column}{is}$")).count());
            assert_eq!(conditions.iter().sum::<usize>(), 1, "{column}: {sql}");
        }
        assert!(sql.contains("(created_at, id) < ($10, $11)"), "{sql}");
        assert_eq!(values.len(), 12);
        let (sql, _) = PaymentFilter::default().query(Uuid::nil(), 1).unwrap();
        assert!(Status::ALL.iter().all(|status| sql.matches(&format!("status = '{}'", status.as_str())).count() == 1), "{sql}");
    }

    #[test]
    fn a_list_begins_at_the_lower_of_a_cursor_and_a_time() {
        let place = |created_at, id| Place { created_at, id: PaymentId(Uuid::from_u128(id)) };
        let top = |below, created_before| PaymentFilter { below, created_before, ..PaymentFilter::default() }.top();
        assert_eq!(top(None, None), None);
        assert_eq!(top(Some(place(7, 1)), None), Some(place(7, 1)));
        assert_eq!(top(None, Some(7)), Some(place(7, 0)), "none of that second");
        assert_eq!(top(Some(place(7, 1)), Some(8)), Some(place(7, 1)));
        assert_eq!(top(Some(place(8, 1)), Some(8)), Some(place(8, 0)));
    }
}
