//! `GET /api/v1/payments`: pages of a merchant's payments, newest first, with filters.

use crate::app::App;
use crate::auth::Caller;
use crate::chains::catalog::Catalog;
use crate::http::extract::Parameters;
use crate::http::pagination::{PageQuery, PageSize, decode_cursor, encode_cursor};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::{Snapshot, Unread};
use crate::routes::payment_reply::{self, PaymentReply};
use axum::extract::State;
use axum::response::Response;
use base::json::check_storable_text;
use base::text::excerpt;
use base::timestamp;
use payments::store::{self, PaymentFilter, Place};
use serde::Serialize;
use topics::{Address, B256};
use utoipa::ToSchema;
use uuid::Uuid;

const PARAMETERS: &str =
    "limit, cursor, status, exception, chain, token, external_id, address, transaction_hash, created_from, created_before";

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PaymentPage)]
pub struct Page {
    data: Vec<PaymentReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// `GET /api/v1/payments`, newest first. Payments whose address must not be shown yet are left out: no client knows of them.
#[utoipa::path(
    get, path = "/api/v1/payments", operation_id = "listPayments", tag = "payments", summary = "List your payments, newest first",
    params(schemas::ListPayments),
    responses((status = 200, description = "A page.", body = Page)),
)]
pub async fn list(State(app): State<App>, caller: Caller, Parameters(parameters): Parameters) -> Result<Response, Problem> {
    let (mut filter, catalog) = (PaymentFilter::default(), app.catalog());
    let page = PageQuery::read(parameters, PageSize::STANDARD, PARAMETERS, decode_cursor, |name, value| {
        set_filter(&mut filter, &catalog, name, value)
    })?;
    filter.below = page.cursor;
    let page = app.reads.read_page(&page, |db| load(&app, caller.merchant, &filter, &page, db)).await?;
    let bytes = payment_reply::size(&page.data);
    app.heavy_work.write(page, bytes).await
}

async fn load(
    app: &App,
    merchant: Uuid,
    filter: &PaymentFilter,
    page: &PageQuery<Place>,
    db: Snapshot,
) -> Result<Page, Unread> {
    if let Some(external_id) = filter.external_id_beside_others()
        && store::is_common_external_id(&*db, merchant, external_id).await?
    {
        let message = "more than 1,000 payments have it, and then it can be combined with status and times, not with exception, chain or token";
        return Err(Problem::field("external_id", message).into());
    }
    let mut places = store::list_payments(&*db, merchant, filter, page.rows_to_load()).await?;
    db.expect(&places)?;
    // A hidden payment counts as well: the next page begins below it.
    let next_cursor = page.cut(&mut places, |last| encode_cursor(*last));
    let mut ids: Vec<Uuid> = places.iter().map(|place| place.id.0).collect();
    let hidden = db.hidden(&ids).await?;
    ids.retain(|id| !hidden.contains(id));
    Ok(Page { data: payment_reply::load(&app.catalog(), &db, &ids).await?, next_cursor })
}

fn set_filter(filter: &mut PaymentFilter, catalog: &Catalog, name: &str, value: String) -> Result<bool, String> {
    match name {
        "status" => filter.status = Some(value.parse().map_err(|unknown: payments::UnknownName| unknown.to_string())?),
        "exception" => filter.exception = Some(value.parse().map_err(|unknown: payments::UnknownName| unknown.to_string())?),
        "chain" => filter.chain = Some(catalog.by_name(&value)?.id),
        "token" => filter.token = Some(catalog.symbol(&value)?),
        "external_id" => {
            check_storable_text(&value)?;
            filter.external_id = Some(value);
        }
        "address" => filter.address = Some(parse_address(&value)?),
        "transaction_hash" => filter.transaction = Some(parse_hash(&value)?),
        "created_from" => filter.created_from = Some(parse_seconds(&value)?),
        "created_before" => filter.created_before = Some(parse_seconds(&value)?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse_address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| format!("expected an address, 0x and 40 hex digits, got {:?}", excerpt(text)))
}

fn parse_hash(text: &str) -> Result<B256, String> {
    text.parse().map_err(|_| format!("expected a transaction's hash, 0x and 64 hex digits, got {:?}", excerpt(text)))
}

/// RFC 3339 as Unix seconds. Creation times are whole seconds, so a time within a second means the next one.
fn parse_seconds(text: &str) -> Result<i64, String> {
    let time = timestamp::parse(text)?;
    Ok(time.unix_timestamp().saturating_add(i64::from(time.nanosecond() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_within_a_second_excludes_payments_created_in_that_second() {
        assert_eq!(parse_seconds("1970-01-01T00:00:01Z"), Ok(1));
        assert_eq!(parse_seconds("1970-01-01T00:00:01.5Z"), Ok(2));
        assert_eq!(parse_seconds("1970-01-01T01:00:01+01:00"), Ok(1));
        for wrong in ["", "1", "yesterday", "1970-01-01", "1970-01-01T00:00:01"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
