//! `POST /api/v1/payments/batch`: many orders in one request, each with an answer of its own.
//!
//! An order has its own idempotency key, or one derived from the request's. The request's key is claimed as well, with a
//! fingerprint of all orders, so that the same key with other orders is refused before any payment is created.

use crate::app::App;
use crate::auth::Caller;
use crate::chains::catalog::Catalog;
use crate::clock;
use crate::create::idempotency::{self, Fingerprint, IdempotencyKey};
use crate::create::order::Order;
use crate::create::queue::{self, CreateRequest, CreatedPayment, PendingPayment};
use crate::http::body_budget::BodyShare;
use crate::http::extract::Body;
use crate::http::fields::Fields;
use crate::http::limits::MAX_BATCH_BODY_BYTES;
use crate::http::problem::Problem;
use crate::openapi::schemas;
use crate::routes::payment_reply::PaymentReply;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::future::join_all;
use merchants::DefaultTerms;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// Per request.
const MAX_ORDERS: usize = 1000;

/// The answers, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedPayments)]
pub struct BatchReply {
    data: Vec<OrderReply>,
}

/// The answer to one order: the response that it would have got in a request of its own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedPayment)]
struct OrderReply {
    /// The HTTP status: 201, or the problem's.
    #[schema(minimum = 201, maximum = 599)]
    status: u16,
    /// Whether an earlier request with this key created the payment; it is shown as in that response.
    #[serde(rename = "replayed")]
    repeated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<PaymentReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

impl OrderReply {
    fn new(outcome: Result<CreatedPayment, Problem>) -> Self {
        match outcome {
            Ok(CreatedPayment { payment, repeated }) => Self {
                status: StatusCode::CREATED.as_u16(),
                repeated,
                payment: Some(PaymentReply::first(&payment)),
                problem: None,
            },
            Err(problem) => Self { status: problem.status().as_u16(), repeated: false, payment: None, problem: Some(problem) },
        }
    }
}

/// The body of a batch, read whole, with the room that it takes until it is dropped.
pub struct BatchBody {
    bytes: Bytes,
    room: BodyShare,
}

impl FromRequest<App> for BatchBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let merchant = request.extensions().get::<Caller>().ok_or_else(Problem::internal)?.merchant;
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let room = app.body_budget.take(merchant, MAX_BATCH_BODY_BYTES.min(length.unwrap_or(MAX_BATCH_BODY_BYTES)))?;
        let Body(bytes) = Body::from_request(request, app).await?;
        Ok(Self { bytes, room })
    }
}

/// `POST /api/v1/payments/batch`
#[utoipa::path(
    post, path = "/api/v1/payments/batch", operation_id = "createPayments", tag = "payments",
    summary = "Create up to 1,000 payments",
    description = "Each order has its own answer, in the order of the request, with the status that it would have got alone. \
        An order may have an `idempotency_key` of its own; the key of the whole request applies to those that have none.",
    params(("Idempotency-Key" = Option<String>, Header, description = "A retry with the same key and orders gets the same payments \
        again; the same key with other orders is refused.", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = schemas::CreatePayments,
    responses(
        (status = 200, description = "An answer per order.", body = BatchReply),
        (status = 409, description = "The Idempotency-Key was used for other orders, or its request is still in flight.", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    BatchBody { bytes, room }: BatchBody,
) -> Result<Response, Problem> {
    let catalog = app.catalog();
    let read = {
        let (catalog, caller) = (catalog.clone(), caller.clone());
        move || {
            let items = read_items(&bytes)?;
            caller.spend_orders(items.len())?;
            let terms = caller.settings().terms;
            let orders: Vec<_> = items.iter().map(|item| ReadOrder::of(item, &catalog, terms)).collect();
            // It takes its room while it is read, also for a client that has left.
            Ok((Fingerprint::new(Some(meaning(&orders)), &bytes), orders, room))
        }
    };
    // Until all of it is answered; then the reply takes room of its own.
    let (fingerprint, orders, _room) = app.heavy_work.run(read).await?;
    let batch_key = idempotency::read_header(&headers, fingerprint)?;
    // Held until all orders are answered.
    let _in_flight = match &batch_key {
        Some(key) => {
            let in_flight = app.in_flight_keys.begin(caller.merchant, &key.text)?;
            idempotency::claim_batch_key(&app.pool, caller.merchant, key).await?;
            Some(in_flight)
        }
        None => None,
    };
    let account = app.account_of(caller.settings()).await;
    let now = clock::now()?;
    let mut in_flight = Vec::new();
    let mut requests = Vec::with_capacity(orders.len());
    let mut pending: Vec<Result<PendingPayment, Problem>> = Vec::with_capacity(orders.len());
    // They may have been accepted when they first came.
    let mut refused: Vec<(usize, IdempotencyKey)> = Vec::new();
    // A retry would find them in flight for ever.
    let mut keys_here: HashSet<String> = batch_key.iter().map(|key| key.text.clone()).collect();
    for (place, ReadOrder { order, own_key, fingerprint }) in orders.into_iter().enumerate() {
        let begin = |text: &str| app.in_flight_keys.begin(caller.merchant, text);
        let key = match (own_key, &batch_key) {
            (Some(text), _) if !keys_here.insert(text.clone()) => {
                pending.push(Err(idempotency::reused()));
                continue;
            }
            (Some(text), _) => match begin(&text) {
                Ok(begun) => {
                    in_flight.push(begun);
                    Some(IdempotencyKey { text, fingerprint })
                }
                Err(problem) => {
                    pending.push(Err(problem));
                    continue;
                }
            },
            (None, Some(batch_key)) => Some(derived_key(batch_key, place, fingerprint)),
            (None, None) => None,
        };
        let accepted = order.and_then(|order| {
            app.check_available(&catalog, &order, now)?;
            Ok((order, account.clone()?))
        });
        if let (Err(_), Some(key)) = (&accepted, &key) {
            refused.push((place, key.clone()));
        }
        pending.push(accepted.map(|(order, account)| {
            let (reply, pending) = oneshot::channel();
            requests.push(CreateRequest {
                merchant: caller.merchant,
                account,
                order,
                api_key: caller.id,
                idempotency_key: key,
                reply,
                place: None,
            });
            pending
        }));
    }
    let asked = requests.len();
    let making = async {
        queue::enqueue(&app.create_requests, requests).await?;
        Ok::<_, Problem>(join_all(pending.into_iter().map(|pending| async { queue::created(pending?).await })).await)
    };
    let made = |outcomes: &Result<Vec<_>, _>| CreatedPayment::count_new(outcomes.iter().flatten());
    let mut outcomes = caller.counting_deliveries(asked, making, made).await?;
    let keys: Vec<&IdempotencyKey> = refused.iter().map(|(_, key)| key).collect();
    let earlier = idempotency::find_earlier(&app.pool, &app.intents, caller.merchant, &keys).await?;
    for ((place, _), earlier) in refused.iter().zip(earlier) {
        if let (Some(outcome), Some(earlier)) = (outcomes.get_mut(*place), earlier) {
            *outcome = earlier.map(|payment| CreatedPayment { payment, repeated: true });
        }
    }
    let write = || Ok(Json(BatchReply { data: outcomes.into_iter().map(OrderReply::new).collect() }).into_response());
    app.heavy_work.run(write).await
}

/// The orders of a batch, each as it was written.
///
/// # Errors
/// When the body is no list of orders, or of too many.
pub fn read_items(body: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    let mut fields = Fields::read(body)?;
    let items = match fields.raw("payments").map(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get())) {
        Some(Ok(items)) if (1..=MAX_ORDERS).contains(&items.len()) => Some(items),
        Some(Ok(items)) => {
            fields.refuse("payments", format_args!("expected 1 to {MAX_ORDERS} orders, got {}", items.len()));
            None
        }
        Some(Err(_)) | None => {
            fields.refuse("payments", format_args!("expected a list of 1 to {MAX_ORDERS} orders"));
            None
        }
    };
    fields.finish(&["payments"])?;
    items.ok_or_else(Problem::internal)
}

/// An order of a batch, as it was read.
struct ReadOrder {
    order: Result<Order, Problem>,
    own_key: Option<String>,
    fingerprint: Fingerprint,
}

impl ReadOrder {
    fn of(item: &RawValue, catalog: &Catalog, terms: DefaultTerms) -> Self {
        let text = item.get().as_bytes();
        let (order, own_key) = Order::read_item(text, catalog, terms);
        let fingerprint = Fingerprint::new(order.as_ref().ok().map(|order| order.fingerprint), text);
        Self { order, own_key, fingerprint }
    }
}

/// Of all orders in their order.
fn meaning(orders: &[ReadOrder]) -> [u8; 32] {
    let mut all = Sha256::new();
    for order in orders {
        all.update(order.fingerprint.meaning());
    }
    all.finalize().into()
}

/// A key that no client can send: control characters are allowed neither in the header nor in the field.
fn derived_key(batch_key: &IdempotencyKey, place: usize, fingerprint: Fingerprint) -> IdempotencyKey {
    IdempotencyKey { text: format!("\u{1}{}:{place}", hex::encode(Sha256::digest(&batch_key.text))), fingerprint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_without_a_list_of_orders_is_refused() {
        for wrong in [r#"{}"#, r#"{"payments":[]}"#, r#"{"payments":{}}"#, r#"{"payments":null}"#, r#"{"payments":[1],"x":1}"#]
        {
            assert!(read_items(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let many = |count: usize| format!(r#"{{"payments":[{}]}}"#, vec!["1"; count].join(","));
        assert_eq!(read_items(many(MAX_ORDERS).as_bytes()).unwrap().len(), MAX_ORDERS);
        assert!(read_items(many(MAX_ORDERS + 1).as_bytes()).is_err());
    }

    #[test]
    fn other_orders_have_another_fingerprint_and_places_have_keys_of_their_own() {
        let read = |text: &str| -> [u8; 32] {
            let body = format!(r#"{{"payments":{text}}}"#);
            let items = read_items(body.as_bytes()).unwrap();
            let catalog = crate::chains::catalog::tests::catalog();
            meaning(&items.iter().map(|item| ReadOrder::of(item, &catalog, DefaultTerms::default())).collect::<Vec<_>>())
        };
        let (one, two) = (r#"{"chain":"anvil","amount":1}"#, r#"{"chain":"anvil","amount":2}"#);
        assert_eq!(read(&format!("[{one},{two}]")), read(&format!(r#"[{{"amount":"1","chain_id":31337}},{two}]"#)));
        assert_ne!(read(&format!("[{one},{two}]")), read(&format!("[{two},{one}]")));
        assert_ne!(read(&format!("[{one}]")), read(&format!("[{one},{two}]")));
        assert_ne!(read(&format!("[{one},3]")), read(&format!("[{one},4]")));
        let fingerprint = Fingerprint::new(None, b"");
        let whole = IdempotencyKey { text: "k".repeat(255), fingerprint };
        let keys = [derived_key(&whole, 0, fingerprint).text, derived_key(&whole, 1, fingerprint).text];
        assert!(keys[0] != keys[1] && keys.iter().all(|key| key.len() <= 255));
    }
}
