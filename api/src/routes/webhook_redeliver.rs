//! `POST /api/v1/webhooks/{id}/redeliver`: sends deliveries again, by event, by time or all that failed.

use super::webhook_deliveries::parse_delivery_id;
use super::webhooks::{WebhookPath, no_webhook, webhook_disabled};
use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Body;
use crate::http::fields::Fields;
use crate::http::pagination::bad_cursor;
use crate::http::problem::Problem;
use crate::http::share;
use crate::openapi::schemas;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base::json::check_storable_text;
use base::timestamp;
use serde::Serialize;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use webhooks::deliveries::{self, RedeliverCursor, RedeliverFilter};
use webhooks::endpoints;

/// The fields of a redeliver request. A test holds them against the OpenAPI schema.
pub const FIELDS: [&str; 5] = ["event_id", "from", "before", "failed", "cursor"];
/// Redeliveries of many events that one process runs at the same time, over all merchants: each may be large.
const MAX_CONCURRENT: usize = 2;
static REDELIVERIES: Semaphore = Semaphore::const_new(MAX_CONCURRENT);
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The deliveries that are due again.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookRedelivery)]
pub struct RedeliveryReply {
    /// Their number, at most about 100,000.
    deliveries: usize,
    /// If there may be more: the `cursor` for the same request to continue with.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// `POST /api/v1/webhooks/{id}/redeliver`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/redeliver", operation_id = "redeliverWebhook", tag = "webhooks",
    summary = "Redeliver one event, the events of a period, or all that failed for good or so far",
    description = "Each is sent under the same `webhook-id`. Deliveries in flight are left alone; other pending deliveries of the \
        same payments are sent as well. One request makes a limited number due: if there may be more, repeat it with its \
        `next_cursor`.",
    params(("id" = schemas::WebhookId, Path)),
    request_body = schemas::RedeliverWebhook,
    responses(
        (status = 202, description = "The deliveries are due.", body = RedeliveryReply),
        (status = 409, description = "The webhook is disabled.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn redeliver(
    State(app): State<App>,
    caller: Caller,
    WebhookPath(id): WebhookPath,
    Body(body): Body,
) -> Result<(StatusCode, Json<RedeliveryReply>), Problem> {
    let (filter, after) = read_request(&body)?;
    endpoints::get(&*app.db().await?, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
    let _turn = match filter {
        RedeliverFilter::Event(_) => None,
        RedeliverFilter::CreatedBetween { .. } | RedeliverFilter::Failed => {
            let turn = share::redelivery()?;
            let permit = tokio::time::timeout(QUEUE_TIMEOUT, REDELIVERIES.acquire()).await;
            Some((permit.map_err(|_| Problem::unavailable(5, "Other redeliveries are running; retry"))?, turn))
        }
    };
    // Once it has one of the merchant's connections, it goes on to its end, whether or not the client waits for it.
    let _connection = share::one_connection().await?;
    let redelivered = deliveries::redeliver(&app.pool, caller.merchant, id, &filter, after).await?;
    let (deliveries, last) = redelivered.ok_or_else(webhook_disabled)?;
    Ok((StatusCode::ACCEPTED, Json(RedeliveryReply { deliveries, next_cursor: last.map(encode_cursor) })))
}

/// The deliveries to send again, and the place to continue after.
///
/// # Errors
/// When the body does not name them.
pub fn read_request(body: &[u8]) -> Result<(RedeliverFilter, RedeliverCursor), Problem> {
    let mut fields = Fields::read(body)?;
    let after = fields.text("cursor").and_then(|text| fields.check("cursor", decode_cursor(&text)));
    let event = fields.text("event_id").and_then(|id| fields.check("event_id", check_storable_text(&id).map(|()| id)));
    let mut time = |name: &str| fields.text(name).and_then(|text| fields.check(name, timestamp::parse(&text)));
    let (from, before) = (time("from"), time("before"));
    let failed = fields.flag("failed");
    fields.finish(&FIELDS)?;
    let filter = match (event, from, before, failed) {
        (Some(event), None, None, None) => Ok(RedeliverFilter::Event(event)),
        (None, Some(from), Some(before), None) => Ok(RedeliverFilter::CreatedBetween { from, before }),
        (None, None, None, Some(true)) => Ok(RedeliverFilter::Failed),
        _ => Err(Problem::field("event_id", "expected event_id alone, or from and before, or failed as true")),
    };
    Ok((filter?, after.unwrap_or(RedeliverCursor::START)))
}

/// Microseconds, the precision of Postgres, and the delivery's id.
fn encode_cursor(place: RedeliverCursor) -> String {
    format!("{}_{}", place.created_at.unix_timestamp_nanos() / 1000, place.id)
}

fn decode_cursor(text: &str) -> Result<RedeliverCursor, String> {
    let decode = || {
        let (micros, id) = text.split_once('_')?;
        let micros = i128::from(parse_delivery_id(micros).ok()?);
        let made = OffsetDateTime::from_unix_timestamp_nanos(micros * 1000).ok()?;
        Some(RedeliverCursor { created_at: made, id: parse_delivery_id(id).ok()? })
    };
    decode().ok_or_else(|| bad_cursor(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redeliver_request_has_one_filter_and_no_other() {
        assert_eq!(
            read_request(br#"{"event_id":"evt_1"}"#).unwrap(),
            (RedeliverFilter::Event("evt_1".into()), RedeliverCursor::START)
        );
        let (failed, place) = read_request(br#"{"failed":true,"from":null,"cursor":"1795637861123456_7"}"#).unwrap();
        assert_eq!((failed, place.id, encode_cursor(place).as_str()), (RedeliverFilter::Failed, 7, "1795637861123456_7"));
        let range = read_request(br#"{"from":"2026-11-25T12:00:00Z","before":"2026-11-25T13:00:00+01:00"}"#).unwrap();
        let (RedeliverFilter::CreatedBetween { from, before }, _) = range else { panic!("{range:?}") };
        assert_eq!(from, before);
        for bad in [
            "{}",
            r#"{"failed":false}"#,
            r#"{"from":"2026-11-25T12:00:00Z"}"#,
            r#"{"from":"today","before":"2026-11-25T12:00:00Z"}"#,
            r#"{"event_id":"e","failed":true}"#,
            r#"{"all":true}"#,
            r#"{"failed":true,"cursor":"-1_7"}"#,
            r#"{"failed":true,"cursor":"7"}"#,
            r#"{"failed":true,"cursor":7}"#,
            "[]",
        ] {
            assert!(read_request(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
