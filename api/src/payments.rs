//! `/api/v1/payments`.

use crate::app::App;
use crate::auth::Caller;
use crate::batch::{self, Made, Request};
use crate::cursor;
use crate::extract::{Body, Id, Parameters, no_payment};
use crate::fields::shown;
use crate::openapi::schemas::{self, CreatePayment};
use crate::order::Order;
use crate::problem::{FieldError, Problem};
use crate::replay;
use crate::reply::PaymentReply;
use crate::started::Started;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use confirmer::lifecycle::{self, Input};
use confirmer::{Status, store};
use deadpool_postgres::GenericClient;
use runtime::{Failure, db};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::{mpsc::error::TrySendError, oneshot};
use topics::{ChainId, PaymentId};
use utoipa::ToSchema;
use uuid::Uuid;

/// Longer than Kafka has for an acknowledgement, for the time in the queue.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const DEFAULT_LIMIT: i64 = 50;
const LARGEST_LIMIT: i64 = 200;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PaymentPage)]
pub struct Page {
    data: Vec<PaymentReply>,
    /// The `cursor` of the next page; null on the last.
    next_cursor: Option<String>,
}

/// `POST /api/v1/payments`
#[utoipa::path(
    post, path = "/api/v1/payments", operation_id = "createPayment", tag = "payments", summary = "Make a payment",
    description = "Answers when Kafka has acknowledged the address, and not before: whatever is paid to it is seen.",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body get the same payment again; the \
        same key with another body is refused.", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = CreatePayment,
    responses((status = 201, description = "The payment; its address is its own.", body = PaymentReply, headers(
        ("Idempotent-Replayed" = Option<bool>, description = "`true` if an earlier request with this key made it.")))),
)]
pub async fn create(State(app): State<App>, caller: Caller, headers: HeaderMap, Body(body): Body) -> Result<Response, Problem> {
    let order = Order::read(&body, &app.catalog)?;
    let key = replay::key(&headers, order.fingerprint)?;
    Started::ensure(&app, order.chain).await?;
    let account = app.accounts.get(&app.pool, caller.settings().xpub.as_deref()).await?;
    let (answer, answered) = oneshot::channel();
    let queued = app.requests.try_send(Request { merchant: caller.merchant, account, order, key, answer });
    queued.map_err(|error| match error {
        TrySendError::Full(_) => Problem::unavailable(1, "Too many payments are being made; try again"),
        TrySendError::Closed(_) => Problem::unavailable(5, "The server is stopping; try again"),
    })?;
    let answer = tokio::time::timeout(ANSWERED_WITHIN, answered).await.map_err(|_| {
        Problem::unavailable(5, "The payment was not made in time. Try again: with the same Idempotency-Key it is made once")
    })?;
    // Without an answer the batcher panicked, and said so.
    let Made { payment, replayed } = answer.map_err(|_| Problem::internal())??;
    // A new payment has nothing to be confirmed.
    let head = if replayed { heads(&app.db().await?, &[payment.chain]).await?.remove(&payment.chain) } else { None };
    let mut response = (StatusCode::CREATED, Json(PaymentReply::new(&payment, head))).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// `GET /api/v1/payments/{id}`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}", operation_id = "getPayment", tag = "payments", summary = "The payment now",
    params(("id" = schemas::PaymentId, Path)),
    responses((status = 200, description = "The payment.", body = PaymentReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, Id(id): Id) -> Result<Json<PaymentReply>, Problem> {
    let db = app.db().await?;
    let payment = store::load(&db, &[id.0]).await?.into_iter().find(|p| p.merchant == caller.merchant);
    let payment = payment.ok_or_else(|| no_payment(id))?;
    app.intents.ensure(&db, id.0).await?;
    let head = heads(&db, &[payment.chain]).await?.remove(&payment.chain);
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
    store::announce(&transaction, step.events.iter().map(|event| (&step.next, event))).await?;
    transaction.commit().await.map_err(db::failure)?;
    let head = heads(&db, &[step.next.chain]).await?.remove(&step.next.chain);
    Ok(Json(PaymentReply::new(&step.next, head)))
}

/// What a list is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    limit: Option<i64>,
    cursor: Option<PaymentId>,
    status: Option<Status>,
    chain: Option<ChainId>,
    external_id: Option<String>,
}

/// `GET /api/v1/payments`, newest first. A payment whose address must not be shown yet is left out: nobody was told of it.
#[utoipa::path(
    get, path = "/api/v1/payments", operation_id = "listPayments", tag = "payments", summary = "Your payments, newest first",
    params(schemas::ListPayments),
    responses((status = 200, description = "A page.", body = Page)),
)]
pub async fn list(State(app): State<App>, caller: Caller, Parameters(parameters): Parameters) -> Result<Json<Page>, Problem> {
    let filter = Filter::read(&app, parameters)?;
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
    let db = app.db().await?;
    let (ids, more) = page(&db, caller.merchant, &filter, limit).await?;
    // The cursor goes on below a hidden payment as well.
    let next_cursor = ids.last().filter(|_| more).map(|last| cursor::encode(PaymentId(*last)));
    let hidden = app.intents.hidden(&db, &ids).await?;
    let mut payments = store::load(&db, &ids).await?;
    payments.retain(|payment| !hidden.contains(&payment.id.0));
    payments.reverse();
    let mut chains: Vec<ChainId> = payments.iter().map(|p| p.chain).collect();
    chains.dedup();
    let heads = heads(&db, &chains).await?;
    Ok(Json(Page { data: payments.iter().map(|p| PaymentReply::new(p, heads.get(&p.chain).copied())).collect(), next_cursor }))
}

/// Ids of at most `limit` payments below the cursor, and whether there are more.
async fn page(db: &impl GenericClient, merchant: Uuid, filter: &Filter, limit: i64) -> Result<(Vec<Uuid>, bool), Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id FROM payments
             WHERE merchant_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR status = $3)
                 AND ($4::bigint IS NULL OR chain_id = $4) AND ($5::text IS NULL OR external_id = $5)
             ORDER BY id DESC LIMIT $6",
        )
        .await
        .map_err(db::failure)?;
    let chain = filter.chain.map(|chain| i64::try_from(chain.0)).transpose().map_err(Failure::halt)?;
    let rows = db
        .query(
            &statement,
            &[
                &merchant,
                &filter.cursor.map(|id| id.0),
                &filter.status.map(Status::as_str),
                &chain,
                &filter.external_id,
                &(limit + 1),
            ],
        )
        .await
        .map_err(db::failure)?;
    let mut ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let more = i64::try_from(ids.len()).is_ok_and(|found| found > limit);
    if more {
        ids.pop();
    }
    Ok((ids, more))
}

impl Filter {
    fn read(app: &App, parameters: Vec<(String, String)>) -> Result<Self, Problem> {
        let mut filter = Self::default();
        let mut errors = Vec::new();
        for (name, value) in parameters {
            if let Err(message) = filter.set(app, &name, value) {
                errors.push(FieldError::new(name, message));
            }
        }
        if errors.is_empty() { Ok(filter) } else { Err(Problem::invalid(errors)) }
    }

    fn set(&mut self, app: &App, name: &str, value: String) -> Result<(), String> {
        match name {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LARGEST_LIMIT).contains(limit));
                self.limit = Some(limit.ok_or_else(|| format!("expected 1 to {LARGEST_LIMIT}, got {:?}", shown(&value)))?);
            }
            "cursor" => {
                let place = cursor::decode(&value);
                self.cursor =
                    Some(place.ok_or_else(|| format!("expected a next_cursor of this list, got {:?}", shown(&value)))?);
            }
            "status" => self.status = Some(value.parse().map_err(|unknown: confirmer::Unknown| unknown.to_string())?),
            "chain" => self.chain = Some(app.catalog.by_name(&value)?.id),
            "external_id" => {
                crate::fields::storable_text(&value)?;
                self.external_id = Some(value);
            }
            _ => return Err("unknown parameter; there are limit, cursor, status, chain, external_id".to_owned()),
        }
        Ok(())
    }
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
