//! `/api/v1/payments`: create a payment, get it, cancel it. Lists are in `payments_list`, batches in `payments_batch`.

use crate::app::App;
use crate::auth::Caller;
use crate::chains::catalog::Catalog;
use crate::clock;
use crate::create::idempotency::{self, Fingerprint};
use crate::create::order::Order;
use crate::create::queue::{self, CreateRequest, CreatedPayment};
use crate::http::extract::{Body, path_id};
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::read::{Snapshot, Unread};
use crate::read_queue;
use crate::routes::payment_reply::{self, PaymentReply};
use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use payments::lifecycle::Input;
use payments::{Payment, Status, store};
use std::fmt::Display;
use tokio::sync::oneshot;
use topics::PaymentId;
use uuid::Uuid;

/// On the response to a request whose idempotency key had its payment already.
const REPEATED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The `{id}` of a payment's path.
pub struct PaymentPath(pub PaymentId);

impl<S: Send + Sync> FromRequestParts<S> for PaymentPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_id(parts, state, |id| no_payment(id)).await.map(Self)
    }
}

/// A 404: the payment does not exist, or belongs to another merchant.
pub fn no_payment(id: impl Display) -> Problem {
    Problem::not_found(format_args!("There is no payment {id}"))
}

/// `POST /api/v1/payments`
#[utoipa::path(
    post, path = "/api/v1/payments", operation_id = "createPayment", tag = "payments", summary = "Create a payment",
    description = "Responds only after Kafka has acknowledged the address, so that every transfer to it is seen.",
    params(("Idempotency-Key" = Option<String>, Header, description = "A retry with the same key and body gets the same response \
        for 24 hours; the same key with another body is refused.", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = schemas::CreatePayment,
    responses(
        (status = 201, description = "The payment, with an address of its own.", body = PaymentReply, headers(
            ("Idempotent-Replayed" = Option<bool>, description = "`true` if an earlier request with this key created it.")),
            links(
                ("payment" = (operation_id = "getPayment", parameters(("id" = "$response.body#/id")))),
                ("cancel" = (operation_id = "cancelPayment", parameters(("id" = "$response.body#/id")))),
                ("events" = (operation_id = "listEvents", parameters(("id" = "$response.body#/id")))),
            )),
        (status = 409, description = "The Idempotency-Key was used for another request, or its request is still in flight.", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub async fn create(State(app): State<App>, caller: Caller, headers: HeaderMap, Body(body): Body) -> Result<Response, Problem> {
    let catalog = app.catalog();
    let order = Order::read(&body, &catalog, caller.settings().terms);
    let fingerprint = Fingerprint::new(order.as_ref().ok().map(|order| order.fingerprint), &body);
    let idempotency_key = idempotency::read_header(&headers, fingerprint)?;
    // Held until the response.
    let _in_flight = idempotency_key.as_ref().map(|key| app.in_flight_keys.begin(caller.merchant, &key.text)).transpose()?;
    let accept = async {
        let order = order?;
        app.check_available(&catalog, &order, clock::now()?)?;
        Ok((order, app.account_of(caller.settings()).await?))
    };
    let (order, account) = match (accept.await, &idempotency_key) {
        (Ok(accepted), _) => accepted,
        (Err(problem), None) => return Err(problem),
        (Err(problem), Some(key)) => {
            let earlier = idempotency::find_earlier(&app.pool, &app.intents, caller.merchant, &[key]).await?.pop().flatten();
            return Ok(created(&earlier.unwrap_or(Err(problem))?, true));
        }
    };
    let (reply, pending) = oneshot::channel();
    let request =
        CreateRequest { merchant: caller.merchant, api_key: caller.id, account, order, idempotency_key, reply, place: None };
    let making = async {
        queue::enqueue(&app.create_requests, vec![request]).await?;
        queue::created(pending).await
    };
    let made = |outcome: &_| CreatedPayment::count_new([outcome]);
    let CreatedPayment { payment, repeated } = caller.counting_deliveries(1, making, made).await?;
    Ok(created(&payment, repeated))
}

fn created(payment: &Payment, repeated: bool) -> Response {
    let mut response = (StatusCode::CREATED, Json(PaymentReply::first(payment))).into_response();
    if repeated {
        response.headers_mut().insert(REPEATED, HeaderValue::from_static("true"));
    }
    response
}

/// `GET /api/v1/payments/{id}`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}", operation_id = "getPayment", tag = "payments", summary = "Get a payment",
    params(("id" = schemas::PaymentId, Path)),
    responses((status = 200, description = "The payment.", body = PaymentReply)),
)]
pub async fn get(State(app): State<App>, caller: Caller, PaymentPath(id): PaymentPath) -> Result<Response, Problem> {
    if let Some(reply) = read_queue::read(&app.read_requests, caller.merchant, id).await {
        return Ok(([(header::CONTENT_TYPE, "application/json")], reply).into_response());
    }
    let catalog = &app.catalog();
    Ok(app.reads.read(|db| show(catalog, db, caller.merchant, id)).await?.into_response())
}

/// The merchant's payment.
async fn show(catalog: &Catalog, db: Snapshot, merchant: Uuid, id: PaymentId) -> Result<Json<PaymentReply>, Unread> {
    // Pipelined: the connection sends the second query before the first has its rows.
    let ids = [id.0];
    let (found, acknowledged) = tokio::join!(store::load_payments(&*db, &ids), db.ensure_acknowledged(id.0));
    let found: Vec<_> = found?.into_iter().filter(|payment| payment.merchant == merchant).collect();
    if found.is_empty() {
        return Err(no_payment(id).into());
    }
    acknowledged?;
    let shown = payment_reply::complete(catalog, &db, &found).await?.pop();
    shown.map(Json).ok_or_else(|| no_payment(id).into())
}

/// `POST /api/v1/payments/{id}/cancel`
#[utoipa::path(
    post, path = "/api/v1/payments/{id}/cancel", operation_id = "cancelPayment", tag = "payments",
    summary = "Cancel a pending payment", params(("id" = schemas::PaymentId, Path)),
    responses(
        (status = 200, description = "The payment, cancelled; also if it was before.", body = PaymentReply),
        (status = 409, description = "The payment is neither pending nor cancelled.", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    PaymentPath(id): PaymentPath,
) -> Result<Json<PaymentReply>, Problem> {
    let db = app.db().await?;
    // Checked before the lock, so that no caller holds up another merchant's payment.
    if !store::belongs_to_merchant(&*db, caller.merchant, id).await? {
        return Err(no_payment(id));
    }
    let mut db = app.intents.ensure_acknowledged(&app.pool, db, id.0).await?;
    let transaction = db.transaction().await?;
    let payment = store::lock_payments(&transaction, &[id.0]).await?.pop().ok_or_else(|| no_payment(id))?;
    if store::is_behind_told_events(&transaction, id).await? {
        return Err(Problem::unavailable(1, "The database was restored, and this payment is not up to date yet; retry"));
    }
    // A client that did not get the answer asks again.
    if payment.status() != Status::Cancelled {
        // Told events that are never made again keep their numbers, and a cancellation among them is not told again.
        let mut told = store::told_events(&transaction, &[id.0]).await?;
        let step =
            told.entry(id).or_default().step(&payment, &Input::Cancel { at: clock::now()? }).map_err(|illegal| {
                Problem::new(StatusCode::CONFLICT, "not-pending", "The payment can't be cancelled", illegal)
            })?;
        store::save_payments(&transaction, &[&step.next]).await?;
        let key = caller.id.to_string();
        let events = step.events.iter().map(|event| (&step.next, event, Some(key.as_str())));
        store::record_requested_events(&transaction, events).await?;
        store::forget_told_events(&transaction, told.iter()).await?;
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    drop(db);
    let catalog = &app.catalog();
    app.reads.read_newest(|db| show(catalog, db, caller.merchant, id)).await
}
