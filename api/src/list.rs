//! `GET /api/v1/payments`: pages of a merchant's payments, newest first, by what they have in common.

use crate::app::App;
use crate::auth::Caller;
use crate::cursor::{self, Place};
use crate::extract::Parameters;
use crate::fields::{shown, storable_text};
use crate::openapi::schemas;
use crate::page;
use crate::payments::heads;
use crate::problem::Problem;
use crate::reply::PaymentReply;
use axum::Json;
use axum::extract::State;
use confirmer::{Payment, Status, store};
use deadpool_postgres::GenericClient;
use runtime::{Failure, db};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::types::ToSql;
use topics::{Address, ChainId, PaymentId};
use utoipa::ToSchema;
use uuid::Uuid;

const NAMES: &str = "limit, cursor, status, chain, token, external_id, address, created_from, created_before";

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PaymentPage)]
pub struct Page {
    data: Vec<PaymentReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// What a list is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    limit: Option<i64>,
    cursor: Option<Place>,
    status: Option<Status>,
    chain: Option<ChainId>,
    /// A symbol as chains.yaml writes it, or in any case.
    token: Option<String>,
    external_id: Option<String>,
    address: Option<Address>,
    /// Unix seconds.
    created_from: Option<i64>,
    /// Unix seconds, themselves left out.
    created_before: Option<i64>,
}

/// `GET /api/v1/payments`, newest first. A payment whose address must not be shown yet is left out: nobody was told of it.
#[utoipa::path(
    get, path = "/api/v1/payments", operation_id = "listPayments", tag = "payments", summary = "Your payments, newest first",
    params(schemas::ListPayments),
    responses((status = 200, description = "A page.", body = Page)),
)]
pub async fn list(State(app): State<App>, caller: Caller, Parameters(parameters): Parameters) -> Result<Json<Page>, Problem> {
    let filter = Filter::read(&app, parameters)?;
    let limit = filter.limit.unwrap_or(page::DEFAULT);
    let db = app.db().await?;
    let (places, more) = places(&db, caller.merchant, &filter, limit).await?;
    // The cursor goes on below a hidden payment as well.
    let next_cursor = places.last().filter(|_| more).map(|last| cursor::encode(*last));
    let ids: Vec<Uuid> = places.iter().map(|place| place.id.0).collect();
    let hidden = app.intents.hidden(&db, &ids).await?;
    let mut found: HashMap<Uuid, Payment> = store::load(&db, &ids).await?.into_iter().map(|p| (p.id.0, p)).collect();
    found.retain(|id, _| !hidden.contains(id));
    let payments: Vec<Payment> = ids.iter().filter_map(|id| found.remove(id)).collect();
    let mut chains: Vec<ChainId> = payments.iter().map(|p| p.chain).collect();
    chains.sort_unstable();
    chains.dedup();
    let heads = heads(&db, &chains).await?;
    Ok(Json(Page { data: payments.iter().map(|p| PaymentReply::new(p, heads.get(&p.chain).copied())).collect(), next_cursor }))
}

/// Places of at most `limit` payments below the cursor, and whether there are more.
async fn places(db: &impl GenericClient, merchant: Uuid, filter: &Filter, limit: i64) -> Result<(Vec<Place>, bool), Failure> {
    let (sql, values) = filter.query(merchant, limit + 1)?;
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
    let rows = db.query(&statement, &values).await.map_err(db::failure)?;
    let mut places: Vec<Place> = rows.iter().map(|row| Place { id: PaymentId(row.get(0)), created_at: row.get(1) }).collect();
    let more = page::cut(&mut places, limit);
    Ok((places, more))
}

type Value = Box<dyn ToSql + Sync + Send>;

impl Filter {
    /// Only the conditions that are asked for: one like `$1 IS NULL OR status = $1` is served by no index once Postgres keeps
    /// a plan for any value. There are few combinations, and each is prepared once a connection.
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
        if let Some(place) = self.cursor {
            values.push(Box::new(place.created_at));
            values.push(Box::new(place.id.0));
            let _ = write!(sql, " AND (created_at, id) < (${}, ${})", values.len() - 1, values.len());
        }
        values.push(Box::new(limit));
        let _ = write!(sql, " ORDER BY created_at DESC, id DESC LIMIT ${}", values.len());
        Ok((sql, values))
    }

    fn read(app: &App, parameters: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        page::read(parameters, |name, value| filter.set(app, name, value))?;
        Ok(filter)
    }

    fn set(&mut self, app: &App, name: &str, value: String) -> Result<(), String> {
        match name {
            "limit" => self.limit = Some(page::limit(&value, page::LARGEST)?),
            "cursor" => self.cursor = Some(page::place(&value)?),
            "status" => self.status = Some(value.parse().map_err(|unknown: confirmer::Unknown| unknown.to_string())?),
            "chain" => self.chain = Some(app.catalog.by_name(&value)?.id),
            "token" => self.token = Some(app.catalog.symbol(&value)?),
            "external_id" => {
                storable_text(&value)?;
                self.external_id = Some(value);
            }
            "address" => self.address = Some(address(&value)?),
            "created_from" => self.created_from = Some(seconds(&value)?),
            "created_before" => self.created_before = Some(seconds(&value)?),
            _ => return page::unknown(NAMES),
        }
        Ok(())
    }
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| format!("expected an address, 0x and 40 hex digits, got {:?}", shown(text)))
}

/// RFC 3339 as Unix seconds. Creation times are whole ones, so those within a second begin with the next.
fn seconds(text: &str) -> Result<i64, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| format!("expected a time like 2026-11-25T12:00:00Z, got {:?}", shown(text)))?;
    Ok(time.unix_timestamp().saturating_add(i64::from(time.nanosecond() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_conditions_asked_for_and_no_others() {
        let (sql, values) = Filter::default().query(Uuid::nil(), 51).unwrap();
        assert_eq!(
            sql,
            "SELECT id, created_at FROM payments WHERE merchant_id = $1 AND deposit_address IS NULL ORDER BY created_at DESC, id DESC LIMIT $2"
        );
        assert_eq!(values.len(), 2);
        let all = Filter {
            limit: None,
            cursor: Some(Place { created_at: 7, id: PaymentId(Uuid::nil()) }),
            status: Some(Status::Pending),
            chain: Some(ChainId(1)),
            token: Some("USDC".into()),
            external_id: Some("x".into()),
            address: Some(Address::ZERO),
            created_from: Some(1),
            created_before: Some(2),
        };
        let (sql, values) = all.query(Uuid::nil(), 1).unwrap();
        for column in ["status", "chain_id", "token", "external_id", "address"] {
            assert_eq!(sql.matches(&format!(" {column} = $")).count(), 1, "{sql}");
        }
        assert!(sql.contains("(created_at, id) < ($9, $10)") && sql.ends_with("LIMIT $11"), "{sql}");
        assert_eq!(values.len(), 11);
    }

    #[test]
    fn a_time_within_a_second_leaves_out_what_was_created_before_it() {
        assert_eq!(seconds("1970-01-01T00:00:01Z"), Ok(1));
        assert_eq!(seconds("1970-01-01T00:00:01.5Z"), Ok(2));
        assert_eq!(seconds("1970-01-01T01:00:01+01:00"), Ok(1));
        for wrong in ["", "1", "yesterday", "1970-01-01", "1970-01-01T00:00:01"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
