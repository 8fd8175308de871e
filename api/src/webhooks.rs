//! `/api/v1/webhooks`: a merchant's endpoints for events. What was sent to them is in [`deliveries`].

pub mod deliveries;

use crate::app::App;
use crate::auth::Caller;
use crate::extract::Body;
use crate::fields::{Fields, shown, storable_text};
use crate::openapi::schemas;
use crate::problem::Problem;
use crate::reply;
use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Serialize;
use std::fmt::Display;
use utoipa::ToSchema;
use uuid::Uuid;
use webhooks::Guard;
use webhooks::body::{KINDS, TYPES};
use webhooks::endpoints::{self, Changes, Endpoint};
use webhooks::signature::Secret;

/// What a request for an endpoint may have, as `openapi` documents it.
pub const FIELDS: [&str; 3] = ["url", "events", "description"];
/// What a change of one may have.
pub const UPDATE_FIELDS: [&str; 4] = ["url", "events", "description", "enabled"];
const LONGEST_DESCRIPTION: usize = 255;
const MOST_EVENTS: usize = 50;

/// An endpoint for events.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub struct WebhookReply {
    #[schema(value_type = schemas::WebhookId)]
    id: String,
    url: String,
    #[schema(required = true)]
    description: Option<String>,
    /// The types of events that it gets, `payment.*` being all of a kind; empty is all there are.
    events: Vec<String>,
    enabled: bool,
    /// `gone` (it answered 410), `failing` (for five days), or `asked` (you disabled it).
    #[schema(required = true)]
    disabled_reason: Option<String>,
    #[schema(required = true, value_type = Option<schemas::Time>)]
    disabled_at: Option<String>,
    /// Of the first failure since the last success; null while it is healthy.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    failing_since: Option<String>,
    /// Until then nothing is sent: it asked for that with `Retry-After`, or rests since it fails.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    paused_until: Option<String>,
    #[schema(value_type = schemas::Time)]
    secret_since: String,
    /// Until then the secret before signs as well.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    old_secret_until: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
}

/// An endpoint, with the secret that verifies what it gets. It is shown this once.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookWithSecret)]
pub struct SecretReply {
    #[serde(flatten)]
    webhook: WebhookReply,
    /// As Standard Webhooks libraries take it.
    #[schema(pattern = "^whsec_[A-Za-z0-9+/]+=*$")]
    secret: String,
}

/// All of yours.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookList)]
pub struct ListReply {
    data: Vec<WebhookReply>,
}

/// A ping that is on its way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookPing)]
pub struct PingReply {
    /// The `webhook-id` that it has; look it up under `deliveries`.
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
            disabled_at: endpoint.disabled_at.map(reply::time),
            failing_since: endpoint.failing_since.map(reply::time),
            paused_until: endpoint.paused_until.map(reply::time),
            secret_since: reply::time(endpoint.secret_since),
            old_secret_until: endpoint.old_secret_until.map(reply::time),
            created_at: reply::time(endpoint.created_at),
        }
    }
}

impl SecretReply {
    fn new((endpoint, secret): (Endpoint, Secret)) -> Self {
        Self { webhook: WebhookReply::new(endpoint), secret: secret.reveal() }
    }
}

/// The `{id}` of a path.
pub struct WebhookId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for WebhookId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // What is no UUID names no endpoint.
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(no_webhook("with this id"));
        };
        text.parse().map(Self).map_err(|_| no_webhook(shown(&text)))
    }
}

fn no_webhook(id: impl Display) -> Problem {
    Problem::not_found(format_args!("There is no webhook {id}"))
}

/// `POST /api/v1/webhooks`
#[utoipa::path(
    post, path = "/api/v1/webhooks", operation_id = "createWebhook", tag = "webhooks",
    summary = "Get events sent to a URL of yours",
    description = "Events from now on are sent to it as [Standard Webhooks](https://www.standardwebhooks.com): signed, at least once, \
        in order per payment while it is healthy. Answer with a 2xx within 15 seconds; `webhook-id` is the event's id and tells a \
        repetition. It has to be reachable from the public Internet. The secret is shown this once.",
    request_body = schemas::CreateWebhook,
    responses(
        (status = 201, description = "The endpoint and its secret.", body = SecretReply, links(
            ("webhook" = (operation_id = "getWebhook", parameters(("id" = "$response.body#/id")))),
            ("deliveries" = (operation_id = "listWebhookDeliveries", parameters(("id" = "$response.body#/id")))),
        )),
        (status = 409, description = "You have as many as a merchant may.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(body): Body,
) -> Result<(StatusCode, Json<SecretReply>), Problem> {
    let mut fields = Fields::read(&body)?;
    if !fields.has("url") {
        fields.refuse("url", "missing; expected the URL that events are sent to");
    }
    let new = changes(&mut fields, &app.guard);
    fields.finish(&FIELDS)?;
    let url = new.url.clone().ok_or_else(Problem::internal)?;
    let made = endpoints::create(&mut app.db().await?, caller.merchant, &url, new).await?;
    let made = made.ok_or_else(|| {
        let detail = format!("There are {} webhooks already; delete one", endpoints::MOST);
        Problem::new(StatusCode::CONFLICT, "too-many-webhooks", "Too many webhooks", detail)
    })?;
    Ok((StatusCode::CREATED, Json(SecretReply::new(made))))
}

fn changes(fields: &mut Fields<'_>, guard: &Guard) -> Changes {
    let url = fields.text("url").and_then(|url| {
        let checked = storable_text(&url).and_then(|()| guard.check_url(&url).map_err(|refused| refused.to_string()));
        fields.check("url", checked.map(|_| url))
    });
    let events = fields.raw("events").and_then(|raw| {
        let events = serde_json::from_str::<Vec<String>>(raw.get());
        let events = events.map_err(|_| format!("expected a list of event types, got {}", shown(raw.get())));
        fields.check("events", events.and_then(known))
    });
    let description = fields.text("description").and_then(|text| {
        let length = text.chars().count();
        let checked = match length {
            0..=LONGEST_DESCRIPTION => storable_text(&text).map(|()| text),
            _ => Err(format!("expected at most {LONGEST_DESCRIPTION} characters, got {length}")),
        };
        fields.check("description", checked)
    });
    Changes { url, description, events, enabled: None }
}

fn known(events: Vec<String>) -> Result<Vec<String>, String> {
    if events.len() > MOST_EVENTS {
        return Err(format!("expected at most {MOST_EVENTS} event types, got {}", events.len()));
    }
    match events.iter().find(|event| !KINDS.iter().chain(&TYPES).any(|known| known == event)) {
        Some(event) => Err(format!("expected {}, {}; got {:?}", KINDS.join(", "), TYPES.join(", "), shown(event))),
        None => Ok(events),
    }
}

/// `GET /api/v1/webhooks`, the oldest first. There are few, so there are no pages.
#[utoipa::path(
    get, path = "/api/v1/webhooks", operation_id = "listWebhooks", tag = "webhooks", summary = "Your webhooks, oldest first",
    responses((status = 200, description = "All of them.", body = ListReply)),
)]
pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<ListReply>, Problem> {
    let found = endpoints::list(&app.db().await?, caller.merchant).await?;
    Ok(Json(ListReply { data: found.into_iter().map(WebhookReply::new).collect() }))
}

/// `GET /api/v1/webhooks/{id}`
#[utoipa::path(
    get, path = "/api/v1/webhooks/{id}", operation_id = "getWebhook", tag = "webhooks", summary = "A webhook, and how it is",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 200, description = "The endpoint.", body = WebhookReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, WebhookId(id): WebhookId) -> Result<Json<WebhookReply>, Problem> {
    let found = endpoints::get(&app.db().await?, caller.merchant, id).await?;
    Ok(Json(WebhookReply::new(found.ok_or_else(|| no_webhook(id))?)))
}

/// `PATCH /api/v1/webhooks/{id}`
#[utoipa::path(
    patch, path = "/api/v1/webhooks/{id}", operation_id = "updateWebhook", tag = "webhooks",
    summary = "Change, disable or enable a webhook",
    description = "What is left out stays. To disable it ends what is pending; events from then on are kept as failed. Once it is \
        enabled again, `redeliver` sends them.",
    params(("id" = schemas::WebhookId, Path)),
    request_body = schemas::UpdateWebhook,
    responses((status = 200, description = "The endpoint as it is now.", body = WebhookReply)),
)]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
    Body(body): Body,
) -> Result<Json<WebhookReply>, Problem> {
    let mut fields = Fields::read(&body)?;
    let changes = Changes { enabled: fields.flag("enabled"), ..changes(&mut fields, &app.guard) };
    fields.finish(&UPDATE_FIELDS)?;
    let changed = endpoints::update(&app.db().await?, caller.merchant, id, changes).await?;
    Ok(Json(WebhookReply::new(changed.ok_or_else(|| no_webhook(id))?)))
}

/// `POST /api/v1/webhooks/{id}/rotate`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/rotate", operation_id = "rotateWebhookSecret", tag = "webhooks",
    summary = "A new secret",
    description = "For 24 hours messages are signed with the new secret and the one before, so that you can change over without \
        missing any. Rotated again meanwhile, the oldest signs no more. The secret is shown this once.",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 200, description = "The endpoint and its new secret.", body = SecretReply)),
)]
pub async fn rotate(State(app): State<App>, caller: Caller, WebhookId(id): WebhookId) -> Result<Json<SecretReply>, Problem> {
    let rotated = endpoints::rotate(&app.db().await?, caller.merchant, id).await?;
    Ok(Json(SecretReply::new(rotated.ok_or_else(|| no_webhook(id))?)))
}

/// `DELETE /api/v1/webhooks/{id}`
#[utoipa::path(
    delete, path = "/api/v1/webhooks/{id}", operation_id = "deleteWebhook", tag = "webhooks",
    summary = "Remove a webhook, with its deliveries",
    params(("id" = schemas::WebhookId, Path)),
    responses((status = 204, description = "It is gone.")),
)]
pub async fn delete(State(app): State<App>, caller: Caller, WebhookId(id): WebhookId) -> Result<StatusCode, Problem> {
    if endpoints::delete(&app.db().await?, caller.merchant, id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_webhook(id))
    }
}

fn disabled() -> Problem {
    let detail = "Enable the webhook first; then what failed meanwhile can be sent again";
    Problem::new(StatusCode::CONFLICT, "webhook-disabled", "The webhook is disabled", detail)
}

/// `POST /api/v1/webhooks/{id}/ping`
#[utoipa::path(
    post, path = "/api/v1/webhooks/{id}/ping", operation_id = "pingWebhook", tag = "webhooks",
    summary = "Send a webhook.ping, to try an endpoint",
    params(("id" = schemas::WebhookId, Path)),
    responses(
        (status = 202, description = "It is on its way.", body = PingReply),
        (status = 409, description = "The webhook is disabled.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn ping(
    State(app): State<App>,
    caller: Caller,
    WebhookId(id): WebhookId,
) -> Result<(StatusCode, Json<PingReply>), Problem> {
    let db = app.db().await?;
    endpoints::get(&db, caller.merchant, id).await?.ok_or_else(|| no_webhook(id))?;
    let event_id = endpoints::ping(&db, caller.merchant, id).await?.ok_or_else(disabled)?;
    Ok((StatusCode::ACCEPTED, Json(PingReply { event_id })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_types_or_kinds() {
        let check = |event: &str| known(vec![event.to_owned()]);
        for good in ["payment.confirmed", "payment.unexpected_transfer", "payment.*", "deposit.*", "webhook.disabled"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "*", "payment", "payment.confirmd", "refund.*", "Payment.confirmed", "payment. confirmed"] {
            assert!(check(bad).unwrap_err().contains("payment.confirmed, "), "{bad}");
        }
        assert!(known(vec!["payment.*".to_owned(); MOST_EVENTS + 1]).is_err());
    }

    #[test]
    fn what_the_confirmer_tells_can_be_asked_for() {
        use confirmer::lifecycle::EventKind::*;
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
            assert!(TYPES.contains(&kind.as_str()), "{}", kind.as_str());
        }
    }
}
