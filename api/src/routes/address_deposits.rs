//! `GET /api/v1/addresses/{id}/deposits`: the payments that transfers to a static address have created, newest first.

use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Parameters;
use crate::http::pagination::{PageQuery, PageSize, decode_cursor, encode_cursor, no_filter};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::Snapshot;
use crate::routes::addresses::{self, AddressPath};
use crate::routes::payment_reply::{self, PaymentReply};
use axum::extract::State;
use axum::response::Response;
use payments::store::{self, Place};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// A page of deposits: payments that transfers have created.
#[derive(Debug, Serialize, ToSchema)]
pub struct DepositPage {
    data: Vec<PaymentReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// `GET /api/v1/addresses/{id}/deposits`, newest first.
#[utoipa::path(
    get, path = "/api/v1/addresses/{id}/deposits", operation_id = "listDeposits", tag = "addresses",
    summary = "List the deposits at an address, newest first",
    description = "A deposit is a payment that a transfer has created: its amount is the transfer's, and it never expires. A deposit \
        that a reorg took back is `pending`; the same money in another block is another deposit. Its history is at \
        `/api/v1/payments/{id}/events`.",
    params(("id" = schemas::PaymentId, Path), schemas::ListDeposits),
    responses((status = 200, description = "A page.", body = DepositPage)),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    AddressPath(id): AddressPath,
    Parameters(parameters): Parameters,
) -> Result<Response, Problem> {
    let page = PageQuery::read(parameters, PageSize::STANDARD, "limit, cursor", decode_cursor, no_filter)?;
    let (app, caller, page) = (&app, &caller, &page);
    let load = |db: Snapshot| async move {
        let address = addresses::find(&db, caller, id).await?;
        let below = page.cursor.unwrap_or(Place::FIRST);
        let mut places = store::list_deposits(&*db, address.id, below, page.rows_to_load()).await?;
        db.expect(&places)?;
        let next_cursor = page.cut(&mut places, |last| encode_cursor(*last));
        let ids: Vec<Uuid> = places.iter().map(|place| place.id.0).collect();
        Ok(DepositPage { data: payment_reply::load(&app.catalog(), &db, &ids).await?, next_cursor })
    };
    let page = app.reads.read_page(page, load).await?;
    let bytes = payment_reply::size(&page.data);
    app.heavy_work.write(page, bytes).await
}
