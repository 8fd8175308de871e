//! `/api/v1/addresses`: static deposit addresses. One a customer; whatever arrives there is a deposit, on any chain, of any
//! amount, in the coin or in a listed token.
//!
//! As with payments, an address is shown only when Kafka has acknowledged its intent, and the same request later gets the same
//! address: here the customer's reference is the idempotency key. There are few of these beside payments, so each is made in
//! a transaction of its own.

use crate::account;
use crate::app::App;
use crate::auth::Caller;
use crate::batch;
use crate::cursor::{self, Place};
use crate::extract::{Body, Parameters};
use crate::fields::{Fields, shown, storable_text};
use crate::openapi::schemas;
use crate::order;
use crate::page::{self, cut};
use crate::payments::heads;
use crate::problem::Problem;
use crate::reply::{PaymentReply, rfc3339};
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use confirmer::{DepositAddress, Payment, events, store};
use deadpool_postgres::{GenericClient, Transaction};
use runtime::{Failure, db};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use tokio_postgres::Row;
use topics::{ChainId, PaymentId};
use utoipa::ToSchema;
use uuid::Uuid;

/// What a request for an address may have, as `openapi` documents it.
pub const FIELDS: [&str; 2] = ["external_id", "metadata"];
const COLUMNS: &str = "id, external_id, metadata::text, address, created_at";

/// A static deposit address.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DepositAddress)]
struct AddressReply {
    #[schema(value_type = schemas::PaymentId)]
    id: String,
    /// The customer.
    #[schema(required = true)]
    external_id: Option<String>,
    #[schema(value_type = schemas::Address)]
    address: String,
    /// As it was given.
    #[schema(required = true, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
    #[serde(skip)]
    place: Place,
}

/// A page of addresses.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DepositAddressPage)]
pub struct AddressPage {
    data: Vec<AddressReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// A page of deposits: payments that a transfer has made.
#[derive(Debug, Serialize, ToSchema)]
pub struct DepositPage {
    data: Vec<PaymentReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

impl AddressReply {
    fn read(row: &Row) -> Result<Self, Failure> {
        let (id, created_at): (Uuid, i64) = (row.get(0), row.get(4));
        Ok(Self {
            id: id.to_string(),
            external_id: row.get(1),
            metadata: row.get::<_, Option<String>>(2).and_then(|text| RawValue::from_string(text).ok()),
            address: topics::address("address", row.get(3)).map_err(Failure::halt)?.to_string(),
            created_at: rfc3339(u64::try_from(created_at).unwrap_or_default()),
            place: Place { created_at, id: PaymentId(id) },
        })
    }
}

/// The `{id}` of a path.
pub struct AddressId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for AddressId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // What is no UUID names no address.
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(no_address("with this id"));
        };
        text.parse().map(Self).map_err(|_| no_address(shown(&text)))
    }
}

fn no_address(id: impl Display) -> Problem {
    Problem::not_found(format_args!("There is no address {id}"))
}

/// `POST /api/v1/addresses`
#[utoipa::path(
    post, path = "/api/v1/addresses", operation_id = "createAddress", tag = "addresses",
    summary = "A customer's deposit address",
    description = "One address for each `external_id`: the same one gets the same address again, with the metadata of the first \
        time. Answers when Kafka has acknowledged the address, and not before.",
    request_body = schemas::CreateAddress,
    responses(
        (status = 200, description = "The customer has had it already.", body = AddressReply),
        (status = 201, description = "A new address.", body = AddressReply, links(
            ("address" = (operation_id = "getAddress", parameters(("id" = "$response.body#/id")))),
            ("deposits" = (operation_id = "listDeposits", parameters(("id" = "$response.body#/id")))),
        )),
    ),
)]
pub async fn create(State(app): State<App>, caller: Caller, Body(body): Body) -> Result<Response, Problem> {
    let mut fields = Fields::read(&body)?;
    if !fields.has("external_id") {
        fields.refuse("external_id", "missing; expected your reference of the customer");
    }
    let (external_id, metadata) = (order::external_id(&mut fields), order::metadata(&mut fields));
    fields.finish(&FIELDS)?;
    let external_id = external_id.ok_or_else(Problem::internal)?;
    let account = app.accounts.get(&app.pool, caller.settings().xpub.as_deref()).await?;

    let mut db = app.db().await?;
    let transaction = db.transaction().await.map_err(db::failure)?;
    let known = known(&transaction, caller.merchant, &external_id).await?;
    if let Some(reply) = known {
        transaction.commit().await.map_err(db::failure)?;
        app.intents.ensure(&db, reply.place.id.0).await?;
        return Ok((StatusCode::OK, Json(reply)).into_response());
    }
    let fingerprint = account.fingerprint().to_owned();
    let mut taken = account::take(&transaction, vec![(account, 1)]).await?;
    let (address_index, address) = taken.get_mut(&fingerprint).and_then(VecDeque::pop_front).ok_or_else(Problem::internal)?;
    let made = DepositAddress {
        id: PaymentId::generate().0,
        merchant: caller.merchant,
        external_id: Some(external_id),
        metadata,
        address,
        xpub: fingerprint,
        address_index,
        created_at: batch::now()?,
    };
    store::insert_addresses(&transaction, std::slice::from_ref(&made)).await?;
    let reply = find(&transaction, caller.merchant, made.id).await?.ok_or_else(Problem::internal)?;
    transaction.commit().await.map_err(db::failure)?;
    // Kafka may take its time; others need the connection.
    drop(db);
    if app.intents.publish(&[events::address_intent_record(&made)]).await != [true] {
        return Err(Problem::unavailable(5, "Kafka did not acknowledge the address. Try again: you get the same one"));
    }
    app.intents.acknowledged(vec![made.id]);
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

/// The customer's address. Two requests for one customer take turns, until the transaction ends.
async fn known(db: &Transaction<'_>, merchant: Uuid, external_id: &str) -> Result<Option<AddressReply>, Failure> {
    let turn = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    db.execute(turn, &[&format!("{merchant}/{external_id}")]).await.map_err(db::failure)?;
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND external_id = $2");
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let row = db.query_opt(&statement, &[&merchant, &external_id]).await.map_err(db::failure)?;
    row.as_ref().map(AddressReply::read).transpose()
}

async fn find(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<AddressReply>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND id = $2");
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let row = db.query_opt(&statement, &[&merchant, &id]).await.map_err(db::failure)?;
    row.as_ref().map(AddressReply::read).transpose()
}

/// The address of a path, if it is the caller's and may be shown.
async fn shown_address(app: &App, db: &impl GenericClient, caller: &Caller, id: Uuid) -> Result<AddressReply, Problem> {
    let address = find(db, caller.merchant, id).await?.ok_or_else(|| no_address(id))?;
    app.intents.ensure(db, id).await?;
    Ok(address)
}

/// `GET /api/v1/addresses/{id}`
#[utoipa::path(
    get, path = "/api/v1/addresses/{id}", operation_id = "getAddress", tag = "addresses", summary = "A deposit address",
    params(("id" = schemas::PaymentId, Path)),
    responses((status = 200, description = "The address.", body = AddressReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, AddressId(id): AddressId) -> Result<Response, Problem> {
    let db = app.db().await?;
    Ok(Json(shown_address(&app, &db, &caller, id).await?).into_response())
}

/// `GET /api/v1/addresses`, newest first. One that must not be shown yet is left out: nobody was told of it.
#[utoipa::path(
    get, path = "/api/v1/addresses", operation_id = "listAddresses", tag = "addresses",
    summary = "Your deposit addresses, newest first",
    params(schemas::ListAddresses),
    responses((status = 200, description = "A page.", body = AddressPage)),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<Json<AddressPage>, Problem> {
    let Asked { limit, cursor, external_id } = Asked::read(parameters, true)?;
    let db = app.db().await?;
    let (created_at, id) = before(cursor);
    let rows = if let Some(external_id) = external_id {
        let sql = format!(
            "SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND external_id = $2 AND (created_at, id) < ($3, $4)"
        );
        let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
        db.query(&statement, &[&caller.merchant, &external_id, &created_at, &id]).await.map_err(db::failure)?
    } else {
        let sql = format!(
            "SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT $4"
        );
        let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
        db.query(&statement, &[&caller.merchant, &created_at, &id, &(limit + 1)]).await.map_err(db::failure)?
    };
    let mut data = rows.iter().map(AddressReply::read).collect::<Result<Vec<_>, _>>()?;
    let next_cursor = cut(&mut data, limit).then(|| data.last().map(|last| cursor::encode(last.place))).flatten();
    let ids: Vec<Uuid> = data.iter().map(|address| address.place.id.0).collect();
    let hidden = app.intents.hidden(&db, &ids).await?;
    data.retain(|address| !hidden.contains(&address.place.id.0));
    Ok(Json(AddressPage { data, next_cursor }))
}

/// `GET /api/v1/addresses/{id}/deposits`, newest first.
#[utoipa::path(
    get, path = "/api/v1/addresses/{id}/deposits", operation_id = "listDeposits", tag = "addresses",
    summary = "What arrived at a deposit address, newest first",
    description = "A deposit is a payment that a transfer has made: its amount is the transfer's, and it never expires. One that a \
        reorganisation took back is `pending`; the same money in another block is another deposit. Its history is at \
        `/api/v1/payments/{id}/events`.",
    params(("id" = schemas::PaymentId, Path), schemas::ListDeposits),
    responses((status = 200, description = "A page.", body = DepositPage)),
)]
pub async fn deposits(
    State(app): State<App>,
    caller: Caller,
    AddressId(id): AddressId,
    Parameters(parameters): Parameters,
) -> Result<Json<DepositPage>, Problem> {
    let Asked { limit, cursor, external_id: _ } = Asked::read(parameters, false)?;
    let db = app.db().await?;
    let address = shown_address(&app, &db, &caller, id).await?;
    let (created_at, id) = before(cursor);
    let statement = db
        .prepare_cached(
            "SELECT id, created_at FROM payments WHERE deposit_address = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT $4",
        )
        .await
        .map_err(db::failure)?;
    let rows = db.query(&statement, &[&address.place.id.0, &created_at, &id, &(limit + 1)]).await.map_err(db::failure)?;
    let mut places: Vec<Place> = rows.iter().map(|row| Place { id: PaymentId(row.get(0)), created_at: row.get(1) }).collect();
    let next_cursor = cut(&mut places, limit).then(|| places.last().map(|last| cursor::encode(*last))).flatten();
    let ids: Vec<Uuid> = places.iter().map(|place| place.id.0).collect();
    let mut found: HashMap<Uuid, Payment> = store::load(&db, &ids).await?.into_iter().map(|p| (p.id.0, p)).collect();
    let deposits: Vec<Payment> = ids.iter().filter_map(|id| found.remove(id)).collect();
    let mut chains: Vec<ChainId> = deposits.iter().map(|deposit| deposit.chain).collect();
    chains.sort_unstable();
    chains.dedup();
    let heads = heads(&db, &chains).await?;
    let data = deposits.iter().map(|deposit| PaymentReply::new(deposit, heads.get(&deposit.chain).copied())).collect();
    Ok(Json(DepositPage { data, next_cursor }))
}

/// What a list is asked for.
struct Asked {
    limit: i64,
    cursor: Option<Place>,
    external_id: Option<String>,
}

impl Asked {
    fn read(parameters: Vec<(String, String)>, by_reference: bool) -> Result<Self, Problem> {
        let mut asked = Self { limit: page::DEFAULT, cursor: None, external_id: None };
        page::read(parameters, |name, value| asked.set(name, value, by_reference))?;
        Ok(asked)
    }

    fn set(&mut self, name: &str, value: String, by_reference: bool) -> Result<(), String> {
        match name {
            "limit" => self.limit = page::limit(&value, page::LARGEST)?,
            "cursor" => self.cursor = Some(page::place(&value)?),
            "external_id" if by_reference => {
                storable_text(&value)?;
                self.external_id = Some(value);
            }
            _ if by_reference => return page::unknown("limit, cursor, external_id"),
            _ => return page::unknown("limit, cursor"),
        }
        Ok(())
    }
}

/// What a page's rows are below: everything is below the first page.
fn before(cursor: Option<Place>) -> (i64, Uuid) {
    cursor.map_or((i64::MAX, Uuid::max()), |place| (place.created_at, place.id.0))
}
