//! What was sent to a merchant's endpoints, what came of it, and sending it again.

use super::{WebhookId, disabled, no_webhook};
use crate::app::App;
use crate::auth::Caller;
use crate::extract::{Body, Parameters};
use crate::fields::{Fields, shown, storable_text};
use crate::openapi::schemas;
use crate::page;
use crate::problem::Problem;
use crate::reply;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use webhooks::endpoints::{self, Attempt, Delivery, Place, Which};

/// What a request to send again may have, as `openapi` documents it.
pub const FIELDS: [&str; 5] = ["event_id", "from", "before", "failed", "cursor"];
static REDELIVERIES: Semaphore = Semaphore::const_new(2);
const TURN_WITHIN: Duration = Duration::from_secs(5);
const STATES: [&str; 3] = ["pending", "delivered", "failed"];

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDeliveryPage)]
pub struct Page {
    data: Vec<DeliveryReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// An event on its way to an endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
struct DeliveryReply {
    /// `webhook-id`.
    #[schema(value_type = schemas::EventId)]
    event_id: String,
    #[schema(example = "payment.confirmed")]
    r#type: String,
    /// Null for what is of no payment.
    #[schema(required = true, value_type = Option<schemas::PaymentId>)]
    payment_id: Option<String>,
    #[schema(value_type = schemas::DeliveryState)]
    state: String,
    /// While it is pending; during an attempt, when that would be given up for lost.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    next_attempt: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
    #[schema(required = true, value_type = Option<schemas::Time>)]
    delivered_at: Option<String>,
    /// What is sent.
    #[schema(value_type = Object)]
    body: Option<Box<RawValue>>,
    /// The last ten, in order.
    attempts: Vec<AttemptReply>,
}

/// An attempt at a delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookAttempt)]
struct AttemptReply {
    /// From 1; one that a restart cut off is left out.
    number: i32,
    #[schema(value_type = schemas::Time)]
    at: String,
    duration_ms: i32,
    /// The HTTP status; null if there was no answer.
    #[schema(required = true)]
    status: Option<i32>,
    /// Why there was no answer.
    #[schema(required = true)]
    error: Option<String>,
    /// The first kilobyte of the answer's body.
    reply: String,
}

/// What is sent again.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookRedelivery)]
pub struct RedeliveryReply {
    /// How many, at most about 100,000.
    deliveries: usize,
    /// If there may be more: the `cursor` of the same request for those.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

impl DeliveryReply {
    fn new(delivery: Delivery) -> Self {
        Self {
            event_id: delivery.event_id,
            r#type: delivery.kind,
            payment_id: delivery.payment_id.map(|id| id.to_string()),
            state: delivery.state,
            next_attempt: delivery.next_attempt.map(reply::time),
            created_at: reply::time(delivery.created_at),
            delivered_at: delivery.delivered_at.map(reply::time),
            body: RawValue::from_string(delivery.body).ok(),
            attempts: delivery.attempts.into_iter().map(AttemptReply::new).collect(),
        }
    }
}

impl AttemptReply {
    fn new(attempt: Attempt) -> Self {
        Self {
            number: attempt.number,
            at: reply::time(attempt.at),
            duration_ms: attempt.took_ms,
            status: attempt.status,
            error: attempt.error,
            reply: attempt.reply,
        }
    }
}

/// `GET /api/v1/webhooks/{id}/deliveries`, newest first.
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}/deliveries", operation_id = "listWebhookDeliveries", tag = "webhooks",
    summary = "What was sent to a webhook, newest first, and what it answered",
    params(("id" = schemas::WebhookId, Path), schemas::ListDeliveries),
    responses((status = 200, description = "A page.", body = Page)),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    Parameters(parameters): Parameters,
) -> Result<Json<Page>, Problem> {
    let Asked { limit, before, state } = Asked::read(parameters)?;
    let db = app.db().await?;
    endpoints::get(&db, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
    let mut found = endpoints::deliveries(&db, id, state.as_deref(), before, limit + 1).await?;
    let more = page::cut(&mut found, limit);
    let next_cursor = found.last().filter(|_| more).map(|last| last.id.to_string());
    Ok(Json(Page { data: found.into_iter().map(DeliveryReply::new).collect(), next_cursor }))
}

struct Asked {
    limit: i64,
    before: i64,
    state: Option<String>,
}

impl Asked {
    fn read(parameters: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut asked = Self { limit: page::DEFAULT, before: i64::MAX, state: None };
        page::read(parameters, |name, value| asked.set(name, value))?;
        Ok(asked)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "limit" => self.limit = page::limit(&value, page::LARGEST)?,
            "cursor" => self.before = place(&value)?,
            "state" if STATES.contains(&value.as_str()) => self.state = Some(value),
            "state" => return Err(format!("expected one of {}, got {:?}", STATES.join(", "), shown(&value))),
            _ => return page::unknown("limit, cursor, state"),
        }
        Ok(())
    }
}

/// `POST /api/v1/webhooks/{id}/redeliver`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/redeliver", operation_id = "redeliverWebhook", tag = "webhooks",
    summary = "Send again: one event, those of a time, or all that failed, for good or so far",
    description = "Under the same `webhook-id`. What is on its way at the moment is left alone; what else waits of the same payment is \
        sent as well. There may be more than one request makes due: then ask again with its `next_cursor`.",
    params(("id" = schemas::WebhookId, Path)),
    request_body = schemas::RedeliverWebhook,
    responses(
        (status = 202, description = "They are on their way.", body = RedeliveryReply),
        (status = 409, description = "The webhook is disabled.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn redeliver(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    Body(body): Body,
) -> Result<(StatusCode, Json<RedeliveryReply>), Problem> {
    let (which, after) = which(&body)?;
    endpoints::get(&app.db().await?, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
    // A few at a time, whoever asks: they may be large.
    let _turn = match which {
        Which::Event(_) => None,
        Which::Made { .. } | Which::Failed => {
            let turn = tokio::time::timeout(TURN_WITHIN, REDELIVERIES.acquire()).await;
            Some(turn.map_err(|_| Problem::unavailable(5, "Other redeliveries are under way"))?)
        }
    };
    let (deliveries, last) = endpoints::redeliver(&app.pool, caller.merchant, id, &which, after).await?.ok_or_else(disabled)?;
    Ok((StatusCode::ACCEPTED, Json(RedeliveryReply { deliveries, next_cursor: last.map(cursor) })))
}

/// What is asked for, and the delivery to go on after.
fn which(body: &[u8]) -> Result<(Which, Place), Problem> {
    let mut fields = Fields::read(body)?;
    let after = fields.text("cursor").and_then(|text| fields.check("cursor", after(&text)));
    let one = fields.text("event_id").and_then(|id| fields.check("event_id", storable_text(&id).map(|()| id)));
    let mut time = |name: &str| fields.text(name).and_then(|text| fields.check(name, time(&text)));
    let (from, before) = (time("from"), time("before"));
    let failed = fields.flag("failed");
    fields.finish(&FIELDS)?;
    let which = match (one, from, before, failed) {
        (Some(event), None, None, None) => Ok(Which::Event(event)),
        (None, Some(from), Some(before), None) => Ok(Which::Made { from, before }),
        (None, None, None, Some(true)) => Ok(Which::Failed),
        _ => Err(Problem::field("event_id", "expected event_id alone, or from and before, or failed as true")),
    };
    Ok((which?, after.unwrap_or(Place::FIRST)))
}

/// Microseconds, which is what Postgres has, and the id.
fn cursor(place: Place) -> String {
    format!("{}_{}", place.made.unix_timestamp_nanos() / 1000, place.id)
}

fn after(text: &str) -> Result<Place, String> {
    let read = || {
        let (micros, id) = text.split_once('_')?;
        let made = OffsetDateTime::from_unix_timestamp_nanos(i128::from(place(micros).ok()?) * 1000).ok()?;
        Some(Place { made, id: place(id).ok()? })
    };
    read().ok_or_else(|| page::no_cursor(text))
}

/// A place in a list of deliveries.
fn place(text: &str) -> Result<i64, String> {
    let digits = !text.is_empty() && text.len() <= 18 && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| page::no_cursor(text))
}

/// RFC 3339, as Postgres can compare it.
fn time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| format!("expected a time like 2026-11-25T12:00:00Z, got {:?}", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_send_again_names_one_way_and_no_other() {
        assert_eq!(which(br#"{"event_id":"evt_1"}"#).unwrap(), (Which::Event("evt_1".into()), Place::FIRST));
        let (failed, place) = which(br#"{"failed":true,"from":null,"cursor":"1795637861123456_7"}"#).unwrap();
        assert_eq!((failed, place.id, cursor(place).as_str()), (Which::Failed, 7, "1795637861123456_7"));
        let range = which(br#"{"from":"2026-11-25T12:00:00Z","before":"2026-11-25T13:00:00+01:00"}"#).unwrap();
        let (Which::Made { from, before }, _) = range else { panic!("{range:?}") };
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
            assert!(which(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
