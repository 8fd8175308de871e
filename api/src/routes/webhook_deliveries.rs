//! `GET /api/v1/webhooks/{id}/deliveries`: what was sent to an endpoint, and how each attempt ended.

use super::webhooks::{WebhookPath, no_webhook};
use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Parameters;
use crate::http::pagination::{PageQuery, PageSize, bad_cursor};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::Snapshot;
use axum::Json;
use axum::extract::State;
use base::text::excerpt;
use base::timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use webhooks::deliveries::{self, Attempt, Delivery, STATES};
use webhooks::endpoints;

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDeliveryPage)]
pub struct Page {
    data: Vec<DeliveryReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// The delivery of an event to an endpoint.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
struct DeliveryReply {
    /// The header `webhook-id` of its messages.
    #[schema(value_type = schemas::EventId)]
    event_id: String,
    #[schema(example = "payment.confirmed")]
    r#type: String,
    /// Null for events that are not about a payment.
    #[schema(required = true, value_type = Option<schemas::PaymentId>)]
    payment_id: Option<String>,
    #[schema(value_type = schemas::DeliveryState)]
    state: String,
    /// Null unless it is pending. During an attempt, when the lease ends and the attempt counts as lost.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    next_attempt: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
    #[schema(required = true, value_type = Option<schemas::Time>)]
    delivered_at: Option<String>,
    /// The message's JSON.
    #[schema(value_type = Object)]
    body: Option<Box<RawValue>>,
    /// The last ten, in order.
    attempts: Vec<AttemptReply>,
}

/// An attempt at a delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookAttempt)]
struct AttemptReply {
    /// From 1; an attempt that a restart cut off is left out.
    number: i32,
    #[schema(value_type = schemas::Time)]
    at: String,
    duration_ms: i32,
    /// The HTTP status; null if there was no response.
    #[schema(required = true)]
    status: Option<i32>,
    /// Why there was no response.
    #[schema(required = true)]
    error: Option<String>,
    /// The first kilobyte of the response's body.
    reply: String,
}

impl DeliveryReply {
    fn new(delivery: Delivery) -> Self {
        Self {
            event_id: delivery.event_id,
            r#type: delivery.event_type,
            payment_id: delivery.payment_id.map(|id| id.to_string()),
            state: delivery.state,
            next_attempt: delivery.next_attempt.map(timestamp::truncated),
            created_at: timestamp::truncated(delivery.created_at),
            delivered_at: delivery.delivered_at.map(timestamp::truncated),
            body: delivery.body.and_then(|body| RawValue::from_string(body).ok()),
            attempts: delivery.attempts.into_iter().map(AttemptReply::new).collect(),
        }
    }
}

impl AttemptReply {
    fn new(attempt: Attempt) -> Self {
        Self {
            number: attempt.number,
            at: timestamp::truncated(attempt.at),
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
    summary = "List the deliveries to a webhook with their attempts, newest first",
    params(("id" = schemas::WebhookId, Path), schemas::ListDeliveries),
    responses((status = 200, description = "A page.", body = Page)),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    WebhookPath(id): WebhookPath,
    Parameters(parameters): Parameters,
) -> Result<Json<Page>, Problem> {
    let mut state = None;
    let names = "limit, cursor, state";
    let page = PageQuery::read(parameters, PageSize::STANDARD, names, parse_delivery_id, |name, value| {
        match name {
            "state" if STATES.contains(&value.as_str()) => state = Some(value),
            "state" => return Err(format!("expected one of {}, got {:?}", STATES.join(", "), excerpt(&value))),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (page, state) = (&page, state.as_deref());
    let load = |db: Snapshot| async move {
        endpoints::get(&*db, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
        let before = page.cursor.unwrap_or(i64::MAX);
        let mut found = deliveries::list(&*db, id, state, before, page.rows_to_load()).await?;
        let next_cursor = page.cut(&mut found, |last| last.id.to_string());
        Ok(Json(Page { data: found.into_iter().map(DeliveryReply::new).collect(), next_cursor }))
    };
    app.reads.read_page(page, load).await
}

/// The cursor of this list: the id of a delivery.
///
/// # Errors
/// When the text is not 1 to 18 digits.
pub fn parse_delivery_id(text: &str) -> Result<i64, String> {
    let digits = !text.is_empty() && text.len() <= 18 && text.bytes().all(|digit| digit.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| bad_cursor(text))
}
