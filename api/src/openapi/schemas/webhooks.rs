//! Webhooks: requests to create, change and redeliver, and the query of the list of deliveries.

use crate::openapi::schemas::texts::DeliveryState;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoParams, ToSchema};
use webhooks::event_types::{EVENT_TYPES, EVENT_WILDCARDS};

/// The query of a list of deliveries.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::webhook_deliveries` reads the parameters one by one")]
pub struct ListDeliveries {
    /// The page's size; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page.
    #[param(pattern = "^[0-9]{1,18}$")]
    cursor: Option<String>,
    /// In this state.
    #[param(inline)]
    state: Option<DeliveryState>,
}

/// The body of a request to create a webhook.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`routes::webhooks` reads the body field by field")]
#[schema(example = json!({ "url": "https://shop.example/events", "events": ["payment.confirmed", "payment.expired"] }))]
pub struct CreateWebhook {
    /// The URL to send events to: https, on the public Internet, without user and password.
    #[schema(
        max_length = 2048,
        pattern = r"^https://([a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\.)+[a-z]{2,24}(:[1-9][0-9]{0,3})?(/[!-~]*)?$"
    )]
    url: String,
    /// The event types to send; `payment.*` is all of a kind. All there are if left out or empty.
    #[schema(schema_with = event_types)]
    events: Option<Vec<String>>,
    /// A note of yours.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    description: Option<String>,
}

/// The body of a request to change a webhook. Fields that are left out stay as they are.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`routes::webhooks` reads the body field by field")]
#[schema(example = json!({ "enabled": true }))]
pub struct UpdateWebhook {
    /// The URL to send events to.
    #[schema(
        max_length = 2048,
        pattern = r"^https://([a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\.)+[a-z]{2,24}(:[1-9][0-9]{0,3})?(/[!-~]*)?$"
    )]
    url: Option<String>,
    /// The event types to send; an empty list is all there are.
    #[schema(schema_with = event_types)]
    events: Option<Vec<String>>,
    /// A note of yours; an empty one removes it.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    description: Option<String>,
    /// Whether events are sent to it.
    enabled: Option<bool>,
}

/// The deliveries to send again: one of `event_id`, `from` with `before`, and `failed`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "`routes::webhook_redeliver` reads the body field by field")]
#[schema(example = json!({ "failed": true }))]
pub struct RedeliverWebhook {
    /// The delivery of this event.
    #[schema(pattern = r"^[^\u0000]*$")]
    event_id: Option<String>,
    /// The deliveries created at this time (RFC 3339) or later.
    #[schema(format = "date-time")]
    from: Option<String>,
    /// The deliveries created before this time (RFC 3339).
    #[schema(format = "date-time")]
    before: Option<String>,
    /// All deliveries that failed, for good or so far.
    failed: Option<bool>,
    /// The `next_cursor` of the previous response: continues after its deliveries.
    #[schema(pattern = r"^[0-9]{1,17}_[0-9]{1,18}$")]
    cursor: Option<String>,
}

fn event_types() -> Schema {
    let kind = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(EVENT_WILDCARDS.into_iter().chain(EVENT_TYPES)));
    let types = ArrayBuilder::new()
        .items(kind)
        .max_items(Some(50))
        .description(Some("Event types; `payment.*` is all of a kind, an empty list all there are."));
    OneOfBuilder::new().item(types).item(ObjectBuilder::new().schema_type(Type::Null)).into()
}
