//! `/api/v1/payments`.

use crate::app::App;
use crate::auth::Caller;
use crate::batch::{self, Made, Request};
use crate::extract::{Body, Id, no_payment};
use crate::openapi::schemas::{self, CreatePayment};
use crate::order::Order;
use crate::problem::Problem;
use crate::replay;
use crate::reply::PaymentReply;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use confirmer::lifecycle::{self, Input};
use confirmer::store;
use deadpool_postgres::GenericClient;
use runtime::{Failure, db};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{mpsc::error::TrySendError, oneshot};
use topics::ChainId;

/// Longer than Kafka has for an acknowledgement, for the time in the queue.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// `POST /api/v1/payments`
#[utoipa::path(
    post, path = "/api/v1/payments", operation_id = "createPayment", tag = "payments", summary = "Make a payment",
    description = "Answers when Kafka has acknowledged the address, and not before: whatever is paid to it is seen.",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body get the same answer again, for 24 \
        hours; the same key with another body is refused.", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = CreatePayment,
    responses(
        (status = 201, description = "The payment; its address is its own.", body = PaymentReply, headers(
            ("Idempotent-Replayed" = Option<bool>, description = "`true` if an earlier request with this key made it.")),
            links(
                ("payment" = (operation_id = "getPayment", parameters(("id" = "$response.body#/id")))),
                ("cancel" = (operation_id = "cancelPayment", parameters(("id" = "$response.body#/id")))),
                ("events" = (operation_id = "listEvents", parameters(("id" = "$response.body#/id")))),
            )),
        (status = 409, description = "The Idempotency-Key was used for another request, or its request is still being answered.", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub async fn create(State(app): State<App>, caller: Caller, headers: HeaderMap, Body(body): Body) -> Result<Response, Problem> {
    let order = Order::read(&body, &app.catalog, caller.settings().terms)?;
    let key = replay::key(&headers, order.fingerprint)?;
    // Ends with the answer.
    let _flight = key.as_ref().map(|key| app.flights.begin(caller.merchant, &key.text)).transpose()?;
    app.heads.open(app.catalog.by_id(order.chain).map_err(|_| Problem::internal())?, batch::now()?)?;
    let account = app.accounts.get(&app.pool, caller.settings().xpub.as_deref()).await?;
    let (answer, answered) = oneshot::channel();
    queue(&app, vec![Request { merchant: caller.merchant, asked_by: caller.id, account, order, key, answer }])?;
    let Made { payment, replayed } = made(answered).await?;
    let mut response = (StatusCode::CREATED, Json(PaymentReply::first(&payment))).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Hands requests to the batcher, all or none.
///
/// # Errors
/// A 503 when too many wait there already.
pub fn queue(app: &App, requests: Vec<Request>) -> Result<(), Problem> {
    let places = app.requests.try_reserve_many(requests.len()).map_err(|error| match error {
        TrySendError::Full(()) => Problem::unavailable(1, "Too many payments are being made; try again"),
        TrySendError::Closed(()) => Problem::unavailable(5, "The server is stopping; try again"),
    })?;
    for (place, request) in places.zip(requests) {
        place.send(request);
    }
    Ok(())
}

/// Waits for the batcher's answer.
///
/// # Errors
/// The batcher's, or a 503 when there is none in time.
pub async fn made(answered: oneshot::Receiver<Result<Made, Problem>>) -> Result<Made, Problem> {
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answered).await.map_err(|_| {
        Problem::unavailable(5, "The payment was not made in time. Try again: with the same Idempotency-Key it is made once")
    })?;
    // Without an answer the batcher panicked, and said so.
    answer.map_err(|_| Problem::internal())?
}

/// `GET /api/v1/payments/{id}`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}", operation_id = "getPayment", tag = "payments", summary = "The payment now",
    params(("id" = schemas::PaymentId, Path)),
    responses((status = 200, description = "The payment.", body = PaymentReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Json<PaymentReply>, Problem> {
    let db = app.db().await?;
    // Both at once: the connection takes the next question before it has answered the last.
    let ids = [id.0];
    let (found, hidden) = tokio::join!(store::load(&db, &ids), app.intents.ensure(&db, id.0));
    let payment = found?.into_iter().find(|p| p.merchant == caller.merchant);
    let payment = payment.ok_or_else(|| no_payment(id))?;
    hidden?;
    // After the transfers, so that the head is not below theirs. What nobody has paid yet has nothing to be confirmed.
    let head = if payment.transfers.is_empty() { None } else { heads(&db, &[payment.chain]).await?.remove(&payment.chain) };
    Ok(Json(PaymentReply::new(&payment, head)))
}

/// `POST /api/v1/payments/{id}/cancel`
#[utoipa::path(
    post, path = "/api/v1/payments/{id}/cancel", operation_id = "cancelPayment", tag = "payments",
    summary = "Call a pending payment off", params(("id" = schemas::PaymentId, Path)),
    responses(
        (status = 200, description = "The payment, cancelled.", body = PaymentReply),
        (status = 409, description = "It is not pending.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn cancel(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Json<PaymentReply>, Problem> {
    let mut db = app.db().await?;
    let transaction = db.transaction().await.map_err(db::failure)?;
    // Whose it is before the lock, so that nobody holds up another merchant's payment.
    let statement =
        transaction.prepare_cached("SELECT FROM payments WHERE id = $1 AND merchant_id = $2").await.map_err(db::failure)?;
    transaction.query_opt(&statement, &[&id.0, &caller.merchant]).await.map_err(db::failure)?.ok_or_else(|| no_payment(id))?;
    app.intents.ensure(&transaction, id.0).await?;
    let payment = store::lock(&transaction, &[id.0]).await?.pop().ok_or_else(|| no_payment(id))?;
    let step = lifecycle::step(&payment, &Input::Cancel { at: batch::now()? })
        .map_err(|illegal| Problem::new(StatusCode::CONFLICT, "not-pending", "The payment can't be cancelled", illegal))?;
    store::save(&transaction, &[&step.next]).await?;
    let key = caller.id.to_string();
    store::announce_asked(&transaction, step.events.iter().map(|event| (&step.next, event, Some(key.as_str())))).await?;
    transaction.commit().await.map_err(db::failure)?;
    let head = heads(&db, &[step.next.chain]).await?.remove(&step.next.chain);
    Ok(Json(PaymentReply::new(&step.next, head)))
}

/// Numbers of the canonical heads as far as the confirmer has come.
pub async fn heads(db: &impl GenericClient, chains: &[ChainId]) -> Result<HashMap<ChainId, u64>, Failure> {
    let statement =
        db.prepare_cached("SELECT chain_id, number FROM chain_heads WHERE chain_id = ANY($1)").await.map_err(db::failure)?;
    let ids = chains.iter().map(|chain| i64::try_from(chain.0)).collect::<Result<Vec<_>, _>>().map_err(Failure::halt)?;
    let rows = db.query(&statement, &[&ids]).await.map_err(db::failure)?;
    let head = |row: &tokio_postgres::Row| {
        let (chain, number) = (u64::try_from(row.get::<_, i64>(0)), u64::try_from(row.get::<_, i64>(1)));
        Ok((ChainId(chain.map_err(Failure::halt)?), number.map_err(Failure::halt)?))
    };
    rows.iter().map(head).collect()
}
