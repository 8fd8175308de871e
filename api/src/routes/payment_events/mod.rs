//! `GET /api/v1/payments/{id}/events`: what happened to a payment and why, as a list or as a live stream ([`stream`]).

mod event_reply;
mod stream;

use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Parameters;
use crate::http::pagination::{PageQuery, PageSize, no_filter};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::{Snapshot, Unread};
use crate::routes::payments::{PaymentPath, no_payment};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use event_reply::EventReply;
use payments::{history, store};
use serde::Serialize;
use stream::{EventStream, last_event_id, wants_stream};
use topics::PaymentId;
use utoipa::ToSchema;

const PAGE_SIZE: PageSize = PageSize { default: 100, max: 1000 };

/// Events in order.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventPage)]
pub struct Page {
    data: Vec<EventReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// `GET /api/v1/payments/{id}/events`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}/events", operation_id = "listEvents", tag = "payments",
    summary = "What happened to a payment, and why",
    description = "With `Accept: text/event-stream` a live stream of server-sent events: first the events so far, after \
        `Last-Event-ID` if that is sent, then each event as it happens. `id` is the event's id, `event` its type, `data` the same \
        JSON as in the list. A stream may end at any time, and ends when its key is revoked. A client that reconnects with the last `id` misses no event and gets \
        none twice.",
    params(
        ("id" = schemas::PaymentId, Path),
        schemas::ListEvents,
        ("Last-Event-ID" = Option<String>, Header, description = "For the stream. A value that is no event of this payment counts as none."),
    ),
    responses((status = 200, description = "Events in order.", content(
        (Page = "application/json"),
        (String = "text/event-stream", example = json!("event: payment.created\nid: evt_0198c5a27b1e7c3a9d1f3b2a1c0d9e8f_1\n\
            data: {\"id\":\"evt_0198c5a27b1e7c3a9d1f3b2a1c0d9e8f_1\",…}\n\n")),
    ))),
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    PaymentPath(id): PaymentPath,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cursor = |text: &str| Ok(event_reply::sequence_in_id(id, text));
    let page = PageQuery::read(parameters, PAGE_SIZE, "limit, cursor", cursor, no_filter)?;
    let after = page.cursor.flatten();
    // Before the first query, so that no event falls between the two.
    let subscription =
        wants_stream(&headers).then(|| app.event_feed.subscribe(caller.merchant, caller.id, id.0)).transpose()?;
    if let Some(subscription) = subscription {
        let owner = &caller;
        let created_at = app.reads.read_newest(|db: Snapshot| async move { find(&db, owner, id).await }).await?;
        let after = last_event_id(&headers, id).or(after).unwrap_or(0);
        return Ok(EventStream::new(app, caller.id, subscription, id, created_at, after).into_response());
    }
    let (caller, page) = (&caller, &page);
    let load = |db: Snapshot| async move {
        let created_at = find(&db, caller, id).await?;
        let mut events = history::list_events(&*db, id, created_at, after.unwrap_or(0), page.rows_to_load()).await?;
        let next_cursor = page.cut(&mut events, |last| last.event.id.clone());
        let data = events.into_iter().map(|e| EventReply::new(e.event, e.asked_by)).collect::<Result<Vec<_>, _>>()?;
        Ok(Json(Page { data, next_cursor }).into_response())
    };
    app.reads.read_page(page, load).await
}

/// When the caller's payment was created, if its address may be shown, which its events have.
async fn find(db: &Snapshot, caller: &Caller, id: PaymentId) -> Result<i64, Unread> {
    let created_at = store::payment_created_at(&**db, caller.merchant, id).await?.ok_or_else(|| no_payment(id))?;
    db.ensure_acknowledged(id.0).await?;
    Ok(created_at)
}
