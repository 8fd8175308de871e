//! `/api/v1/addresses`: static deposit addresses, one per customer. Every transfer to one is a deposit, on any chain, of any
//! amount, in the coin or in a listed token; [`address_deposits`](super::address_deposits) lists them.

use crate::app::App;
use crate::auth::Caller;
use crate::create::address::{self, AddressRequest};
use crate::create::order;
use crate::http::extract::{Body, Parameters, path_id};
use crate::http::fields::Fields;
use crate::http::pagination::{PageQuery, PageSize, decode_cursor, encode_cursor};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::{Snapshot, Unread};
use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use base::json::check_storable_text;
use base::timestamp::rfc3339;
use payments::store::Place;
use payments::{DepositAddress, store};
use runtime::db::bigint;
use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt::Display;
use topics::{PaymentId, derivation_path};
use utoipa::ToSchema;
use uuid::Uuid;

/// The fields of a request for an address. A test holds them against the OpenAPI schema.
pub const FIELDS: [&str; 2] = ["external_id", "metadata"];

/// A static deposit address.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DepositAddress)]
pub struct AddressReply {
    #[schema(value_type = schemas::PaymentId)]
    id: String,
    /// Your reference of the customer.
    #[schema(required = true)]
    external_id: Option<String>,
    #[schema(value_type = schemas::Address)]
    address: String,
    /// i of `derivation_path`.
    address_index: u32,
    /// Of the address, below the account's xpub (BIP-32).
    derivation_path: String,
    /// As it was written in the request.
    #[schema(required = true, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
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

impl From<DepositAddress> for AddressReply {
    fn from(address: DepositAddress) -> Self {
        Self {
            id: address.id.to_string(),
            external_id: address.external_id,
            address: address.address.to_string(),
            address_index: address.address_index,
            derivation_path: derivation_path(address.address_index),
            metadata: address.metadata.and_then(|text| RawValue::from_string(text.to_string()).ok()),
            created_at: rfc3339(address.created_at),
        }
    }
}

/// The `{id}` of an address's path.
pub struct AddressPath(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for AddressPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_id(parts, state, |id| no_address(id)).await.map(Self)
    }
}

fn no_address(id: impl Display) -> Problem {
    Problem::not_found(format_args!("There is no address {id}"))
}

/// `POST /api/v1/addresses`
#[utoipa::path(
    post, path = "/api/v1/addresses", operation_id = "createAddress", tag = "addresses",
    summary = "Create a customer's deposit address",
    description = "There is one address per `external_id`: the same one gets the same address again, with the metadata of the first \
        request. Responds only after Kafka has acknowledged the address.",
    request_body = schemas::CreateAddress,
    responses(
        (status = 200, description = "The address that the customer has already.", body = AddressReply),
        (status = 201, description = "A new address.", body = AddressReply, links(
            ("address" = (operation_id = "getAddress", parameters(("id" = "$response.body#/id")))),
            ("deposits" = (operation_id = "listDeposits", parameters(("id" = "$response.body#/id")))),
        )),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(body): Body,
) -> Result<(StatusCode, Json<AddressReply>), Problem> {
    let mut fields = Fields::read(&body)?;
    if !fields.has("external_id") {
        fields.refuse("external_id", "missing; expected your reference of the customer");
    }
    let (external_id, metadata) = (order::external_id(&mut fields), order::metadata(&mut fields));
    fields.finish(&FIELDS)?;
    let external_id = external_id.ok_or_else(Problem::internal)?;
    let account = app.account_of(caller.settings()).await;
    let (asked_by, installation) = (caller.id.to_string(), app.installation);
    let request = AddressRequest { merchant: caller.merchant, account, external_id, metadata, asked_by, installation };
    let (address, is_new) = address::create(&app.pool, &app.intents, request).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(address.into())))
}

/// The address of a path, if it is the caller's and Kafka has acknowledged it.
///
/// # Errors
/// A 404 when it is not the caller's, a 503 when its intent is not acknowledged.
pub async fn find(db: &Snapshot, caller: &Caller, id: Uuid) -> Result<DepositAddress, Unread> {
    let address = store::find_address(&**db, caller.merchant, id).await?.ok_or_else(|| no_address(id))?;
    db.ensure_acknowledged(id).await?;
    Ok(address)
}

/// `GET /api/v1/addresses/{id}`
#[utoipa::path(
    get, path = "/api/v1/addresses/{id}", operation_id = "getAddress", tag = "addresses", summary = "Get a deposit address",
    params(("id" = schemas::PaymentId, Path)),
    responses((status = 200, description = "The address.", body = AddressReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, AddressPath(id): AddressPath) -> Result<Json<AddressReply>, Problem> {
    let caller = &caller;
    let found = app.reads.read(|db: Snapshot| async move { find(&db, caller, id).await }).await?;
    Ok(Json(found.into()))
}

/// `GET /api/v1/addresses`, newest first. Addresses that must not be shown yet are left out: no client knows of them.
#[utoipa::path(
    get, path = "/api/v1/addresses", operation_id = "listAddresses", tag = "addresses",
    summary = "List your deposit addresses, newest first",
    params(schemas::ListAddresses),
    responses((status = 200, description = "A page.", body = AddressPage)),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<Json<AddressPage>, Problem> {
    let mut external_id = None;
    let names = "limit, cursor, external_id";
    let page = PageQuery::read(parameters, PageSize::STANDARD, names, decode_cursor, |name, value| {
        if name != "external_id" {
            return Ok(false);
        }
        check_storable_text(&value)?;
        external_id = Some(value);
        Ok(true)
    })?;
    let (page, external_id) = (&page, external_id.as_deref());
    let load = |db: Snapshot| async move {
        let below = page.cursor.unwrap_or(Place::FIRST);
        let rows = page.rows_to_load();
        let mut found = store::list_addresses(&*db, caller.merchant, external_id, below, rows).await?;
        db.expect(&found)?;
        let next_cursor =
            page.cut(&mut found, |last| encode_cursor(Place { created_at: bigint(last.created_at), id: PaymentId(last.id) }));
        let ids: Vec<Uuid> = found.iter().map(|address| address.id).collect();
        let hidden = db.hidden(&ids).await?;
        found.retain(|address| !hidden.contains(&address.id));
        Ok(Json(AddressPage { data: found.into_iter().map(AddressReply::from).collect(), next_cursor }))
    };
    app.reads.read_page(page, load).await
}
