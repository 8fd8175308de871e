//! `/api/v1/webhooks`: a merchant's endpoints for events. Their deliveries are in `webhook_deliveries`, sending again is in
//! `webhook_redeliver`.

use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::{Body, path_id};
use crate::http::fields::Fields;
use crate::http::problem::Problem;
use crate::openapi::schemas;
use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use base::json::check_storable_text;
use base::text::excerpt;
use base::timestamp;
use serde::Serialize;
use std::fmt::Display;
use utoipa::ToSchema;
use uuid::Uuid;
use webhooks::Guard;
use webhooks::endpoints::{self, Endpoint, EndpointChanges, Refusal};
use webhooks::event_types::{EVENT_TYPES, EVENT_WILDCARDS};
use webhooks::signature::Secret;

/// The fields of a request to create a webhook. A test holds them against the OpenAPI schema.
pub const FIELDS: [&str; 3] = ["url", "events", "description"];
/// The fields of a request to change one.
pub const UPDATE_FIELDS: [&str; 4] = ["url", "events", "description", "enabled"];
/// Characters.
const MAX_DESCRIPTION_LENGTH: usize = 255;
/// Event types that an endpoint may list.
const MAX_EVENTS: usize = 50;

/// An endpoint for events.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookReply {
    #[schema(value_type = schemas::WebhookId)]
    id: String,
    url: String,
    #[schema(required = true)]
    description: Option<String>,
    /// The event types that it gets; `payment.*` is all of a kind, an empty list all there are.
    events: Vec<String>,
    enabled: bool,
    /// `gone` (it responded with 410), `failing` (for five days), or `asked` (you disabled it).
    #[schema(required = true)]
    disabled_reason: Option<String>,
    #[schema(required = true, value_type = Option<schemas::Time>)]
    disabled_at: Option<String>,
    /// When the first attempt since the last success failed; null while it is healthy.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    failing_since: Option<String>,
    /// Nothing is sent until then: the endpoint sent `Retry-After`, or it is in back-off because it fails.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    paused_until: Option<String>,
    #[schema(value_type = schemas::Time)]
    secret_since: String,
    /// Until then messages are signed with the previous secret as well.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    old_secret_until: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
}

/// An endpoint with the secret that verifies its messages. The secret is shown only this once.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookWithSecret)]
pub struct SecretReply {
    #[serde(flatten)]
    webhook: WebhookReply,
    /// In the form that Standard Webhooks libraries take.
    #[schema(pattern = "^whsec_[A-Za-z0-9+/]+=*$")]
    secret: String,
}

/// All your webhooks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookList)]
pub struct ListReply {
    data: Vec<WebhookReply>,
}

/// A ping to be sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookPing)]
pub struct PingReply {
    /// Its `webhook-id`, to be found under `deliveries`.
    #[schema(value_type = schemas::EventId)]
    event_id: String,
}

impl WebhookReply {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            id: endpoint.id.to_string(),
            url: endpoint.url,
            description: endpoint.description,
            events: endpoint.events,
            enabled: endpoint.enabled,
            disabled_reason: endpoint.disabled_reason,
            disabled_at: endpoint.disabled_at.map(timestamp::truncated),
            failing_since: endpoint.failing_since.map(timestamp::truncated),
            paused_until: endpoint.paused_until.map(timestamp::truncated),
            secret_since: timestamp::truncated(endpoint.secret_since),
            old_secret_until: endpoint.old_secret_until.map(timestamp::truncated),
            created_at: timestamp::truncated(endpoint.created_at),
        }
    }
}

impl SecretReply {
    fn new((endpoint, secret): (Endpoint, Secret)) -> Self {
        Self { webhook: WebhookReply::new(endpoint), secret: secret.reveal() }
    }
}

/// The `{id}` of a webhook's path.
pub struct WebhookPath(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for WebhookPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_id(parts, state, |id| no_webhook(id)).await.map(Self)
    }
}

/// A 404: the webhook does not exist, or belongs to another merchant.
pub fn no_webhook(id: impl Display) -> Problem {
    Problem::not_found(format_args!("There is no webhook {id}"))
}

/// `POST /api/v1/webhooks`
#[utoipa::path(
    post, path = "/api/v1/webhooks", operation_id = "createWebhook", tag = "webhooks",
    summary = "Create a webhook: events are sent to a URL of yours",
    description = "Events from now on are sent to it as [Standard Webhooks](https://www.standardwebhooks.com): signed, at least once, \
        in order per payment while it is healthy. Respond with a 2xx within 15 seconds; deduplicate by `webhook-id`, which is the \
        event's id. The URL must be reachable on the public Internet. The secret is shown only this once.",
    request_body = schemas::CreateWebhook,
    responses(
        (status = 201, description = "The endpoint and its secret.", body = SecretReply, links(
            ("webhook" = (operation_id = "getWebhook", parameters(("id" = "$response.body#/id")))),
            ("deliveries" = (operation_id = "listWebhookDeliveries", parameters(("id" = "$response.body#/id")))),
        )),
        (status = 409, description = "You have a webhook with this URL, or the maximum number of them.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(body): Body,
) -> Result<(StatusCode, Json<SecretReply>), Problem> {
    let mut fields = Fields::read(&body)?;
    if !fields.has("url") {
        fields.refuse("url", "missing; expected the URL to send events to");
    }
    let new = read_changes(&mut fields, &app.guard);
    fields.finish(&FIELDS)?;
    let url = new.url.clone().ok_or_else(Problem::internal)?;
    let created = endpoints::create(&mut *app.db().await?, caller.merchant, &url, new, &caller.id.to_string()).await?;
    let created = created.map_err(|refusal| refused(refusal, "of this request"))?;
    log_change(&caller, created.0.id, "created");
    Ok((StatusCode::CREATED, Json(SecretReply::new(created))))
}

/// A 409, or a 404 for the webhook `id`.
fn refused(refusal: Refusal, id: impl Display) -> Problem {
    match refusal {
        Refusal::TooMany => {
            let (most, in_an_hour) = (endpoints::MAX_ENDPOINTS_PER_MERCHANT, endpoints::MAX_ENDPOINTS_IN_AN_HOUR);
            let detail = format!(
                "You have {most} webhooks, the maximum, or have had {in_an_hour} within an hour; delete one first, or wait"
            );
            Problem::new(StatusCode::CONFLICT, "too-many-webhooks", "Too many webhooks", detail)
        }
        // Each event would reach the URL twice.
        Refusal::SameUrl(twin) => {
            let detail = format!("Your webhook {twin} has this URL; change its events with PATCH, or delete it first");
            Problem::new(StatusCode::CONFLICT, "webhook-exists", "There is a webhook with this URL", detail)
        }
        Refusal::Absent => no_webhook(id),
    }
}

/// Tells the operator which key did it.
fn log_change(caller: &Caller, webhook: Uuid, change: &str) {
    tracing::info!(merchant = %caller.merchant, api_key = %caller.id, %webhook, "webhook {change}");
}

/// What a body sets of a webhook.
pub fn read_changes(fields: &mut Fields<'_>, guard: &Guard) -> EndpointChanges {
    let url = fields.text("url").and_then(|url| {
        let checked = check_storable_text(&url).and_then(|()| guard.check_url(&url).map_err(|refused| refused.to_string()));
        fields.check("url", checked.map(|_| url))
    });
    let events = fields.raw("events").and_then(|raw| {
        let events = serde_json::from_str::<Vec<String>>(raw.get());
        let events = events.map_err(|_| format!("expected a list of event types, got {}", excerpt(raw.get())));
        fields.check("events", events.and_then(check_event_types))
    });
    let description = fields.text("description").and_then(|text| {
        let length = text.chars().count();
        let checked = match length {
            0..=MAX_DESCRIPTION_LENGTH => check_storable_text(&text).map(|()| text),
            _ => Err(format!("expected at most {MAX_DESCRIPTION_LENGTH} characters, got {length}")),
        };
        fields.check("description", checked)
    });
    EndpointChanges { url, description, events, enabled: None }
}

fn check_event_types(events: Vec<String>) -> Result<Vec<String>, String> {
    if events.len() > MAX_EVENTS {
        return Err(format!("expected at most {MAX_EVENTS} event types, got {}", events.len()));
    }
    match events.iter().find(|event| !EVENT_WILDCARDS.iter().chain(&EVENT_TYPES).any(|known| known == event)) {
        Some(event) => {
            Err(format!("expected {}, {}; got {:?}", EVENT_WILDCARDS.join(", "), EVENT_TYPES.join(", "), excerpt(event)))
        }
        None => Ok(events),
    }
}

/// `GET /api/v1/webhooks`, oldest first. A merchant has few, so there are no pages.
#[utoipa::path(
    get, path = "/api/v1/webhooks", operation_id = "listWebhooks", tag = "webhooks", summary = "List your webhooks, oldest first",
    responses((status = 200, description = "All of them.", body = ListReply)),
)]
pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<ListReply>, Problem> {
    let found = endpoints::list(&*app.db().await?, caller.merchant).await?;
    Ok(Json(ListReply { data: found.into_iter().map(WebhookReply::new).collect() }))
}

/// `GET /api/v1/webhooks/{id}`
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}", operation_id = "getWebhook", tag = "webhooks", summary = "Get a webhook and its health",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 200, description = "The endpoint.", body = WebhookReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, WebhookPath(id): WebhookPath) -> Result<Json<WebhookReply>, Problem> {
    let found = endpoints::get(&*app.db().await?, caller.merchant, id).await?;
    Ok(Json(WebhookReply::new(found.ok_or_else(|| no_webhook(id))?)))
}

/// `PATCH /api/v1/webhooks/{id}`
#[utoipa::path(
    patch, path = "/api/v1/webhooks/{id}", operation_id = "updateWebhook", tag = "webhooks",
    summary = "Change, disable or enable a webhook",
    description = "Fields that are left out stay as they are. Disabling ends its pending deliveries, and events from then on are kept \
        as failed. After enabling it, `redeliver` sends them.",
    params(("id" = schemas::WebhookId, Path)),
    request_body = schemas::UpdateWebhook,
    responses(
        (status = 200, description = "The changed endpoint.", body = WebhookReply),
        (status = 409, description = "Another webhook of yours has this URL.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    WebhookPath(id): WebhookPath,
    Body(body): Body,
) -> Result<Json<WebhookReply>, Problem> {
    let mut fields = Fields::read(&body)?;
    let changes = EndpointChanges { enabled: fields.flag("enabled"), ..read_changes(&mut fields, &app.guard) };
    fields.finish(&UPDATE_FIELDS)?;
    let changed = endpoints::update(&mut *app.db().await?, caller.merchant, id, changes, &caller.id.to_string()).await?;
    let changed = changed.map_err(|refusal| refused(refusal, id))?;
    log_change(&caller, id, "changed");
    Ok(Json(WebhookReply::new(changed)))
}

/// `POST /api/v1/webhooks/{id}/rotate`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/rotate", operation_id = "rotateWebhookSecret", tag = "webhooks",
    summary = "Rotate a webhook's secret",
    description = "For 24 hours messages are signed with both the new and the previous secret, so that you can change over without \
        missing any. Rotating again in that time retires the older of the two. The secret is shown only this once.",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 200, description = "The endpoint and its new secret.", body = SecretReply)),
)]
pub async fn rotate(
    State(app): State<App>,
    caller: Caller,
    WebhookPath(id): WebhookPath,
) -> Result<Json<SecretReply>, Problem> {
    let rotated = endpoints::rotate(&*app.db().await?, caller.merchant, id, &caller.id.to_string()).await?;
    let rotated = rotated.ok_or_else(|| no_webhook(id))?;
    log_change(&caller, id, "given a new secret");
    Ok(Json(SecretReply::new(rotated)))
}

/// `DELETE /api/v1/webhooks/{id}`
#[utoipa::path(
    delete, path = "/api/v1/webhooks/{id}", operation_id = "deleteWebhook", tag = "webhooks",
    summary = "Delete a webhook and its deliveries",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 204, description = "The webhook is deleted.")),
)]
pub async fn delete(State(app): State<App>, caller: Caller, WebhookPath(id): WebhookPath) -> Result<StatusCode, Problem> {
    if endpoints::delete(&*app.db().await?, caller.merchant, id, &caller.id.to_string()).await? {
        log_change(&caller, id, "deleted");
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_webhook(id))
    }
}

/// A 409.
pub fn webhook_disabled() -> Problem {
    let detail = "Enable the webhook first; then redeliver the events that failed in the meantime";
    Problem::new(StatusCode::CONFLICT, "webhook-disabled", "The webhook is disabled", detail)
}

/// `POST /api/v1/webhooks/{id}/ping`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/ping", operation_id = "pingWebhook", tag = "webhooks",
    summary = "Send a webhook.ping to test an endpoint",
    params(("id" = schemas::WebhookId, Path)),
    responses(
        (status = 202, description = "The ping is due.", body = PingReply),
        (status = 409, description = "The webhook is disabled.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn ping(
    State(app): State<App>,
    caller: Caller,
    WebhookPath(id): WebhookPath,
) -> Result<(StatusCode, Json<PingReply>), Problem> {
    let db = app.db().await?;
    endpoints::get(&*db, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
    let event_id = endpoints::ping(&*db, caller.merchant, id).await?.ok_or_else(webhook_disabled)?;
    Ok((StatusCode::ACCEPTED, Json(PingReply { event_id })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_filters_by_event_types_or_kinds() {
        let check = |event: &str| check_event_types(vec![event.to_owned()]);
        for good in ["payment.confirmed", "payment.unexpected_transfer", "payment.*", "deposit.*", "webhook.disabled"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "*", "payment", "payment.confirmd", "refund.*", "Payment.confirmed", "payment. confirmed"] {
            assert!(check(bad).unwrap_err().contains("payment.confirmed, "), "{bad}");
        }
        assert!(check_event_types(vec!["payment.*".to_owned(); MAX_EVENTS + 1]).is_err());
    }

    #[test]
    fn every_event_of_a_payment_can_be_subscribed_to() {
        use payments::lifecycle::EventKind::*;
        let kinds = [
            Created,
            Detected,
            Confirmed,
            Settled,
            Expired,
            Cancelled,
            Underpaid,
            Overpaid,
            Late,
            Reverted,
            UnexpectedTransfer,
        ];
        for kind in kinds {
            assert!(EVENT_TYPES.contains(&kind.as_str()), "{}", kind.as_str());
        }
    }
}
