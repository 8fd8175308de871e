//! `POST /api/v1/payments/batch`: many orders in one request, each answered for itself.
//!
//! An order has its own idempotency key, or one derived from the request's. The request's key is kept apart as well, with a
//! fingerprint of all orders, so that the same key with other orders is refused before anything is made.

use crate::app::App;
use crate::auth::Caller;
use crate::batch::{self, Request};
use crate::extract::Body;
use crate::fields::Fields;
use crate::openapi::schemas::CreatePayments;
use crate::order::Order;
use crate::payments;
use crate::problem::Problem;
use crate::replay::{self, Key};
use crate::reply::PaymentReply;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use futures::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// Orders a request.
const MOST: usize = 1000;

/// The answers, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedPayments)]
pub struct Answers {
    data: Vec<Answer>,
}

/// The answer to one order: what it would have got in a request of its own.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedPayment)]
struct Answer {
    /// The HTTP status: 201, or the problem's.
    #[schema(minimum = 201, maximum = 599)]
    status: u16,
    /// An earlier request with this key made it, and this is what that one got.
    replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<PaymentReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self { status: problem.status().as_u16(), replayed: false, payment: None, problem: Some(problem) }
    }
}

/// An order that was taken, on its way.
type Sent = oneshot::Receiver<Result<batch::Made, Problem>>;

/// `POST /api/v1/payments/batch`
#[utoipa::path(
    post, path = "/api/v1/payments/batch", operation_id = "createPayments", tag = "payments",
    summary = "Make up to 1,000 payments",
    description = "Each order is answered for itself, in the order of the request, with the status that it would have got alone. \
        An order may have an `idempotency_key` of its own; a key of the whole request counts for those that have none.",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and orders get the same payments again; the \
        same key with other orders is refused.", min_length = 1, max_length = 255, pattern = "^[ -~]+$")),
    request_body = CreatePayments,
    responses(
        (status = 200, description = "An answer for each order.", body = Answers),
        (status = 409, description = "The Idempotency-Key was used for other orders, or its request is still being answered.", body = Problem,
            content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<Answers>, Problem> {
    let items = items(&body)?;
    // The request itself is counted already.
    caller.spend(u32::try_from(items.len()).unwrap_or(u32::MAX).saturating_sub(1))?;
    let terms = caller.settings().terms;
    let orders: Vec<_> = items.iter().map(|item| Order::read_item(item.get().as_bytes(), &app.catalog, terms)).collect();
    let whole = replay::key(&headers, fingerprint(&items, &orders))?;
    // Ends when all are answered.
    let _flight = match &whole {
        Some(key) => {
            let flight = app.flights.begin(caller.merchant, &key.text)?;
            replay::claim_whole(&app.pool, caller.merchant, key).await?;
            Some(flight)
        }
        None => None,
    };
    let account = app.accounts.get(&app.pool, caller.settings().xpub.as_deref()).await?;
    let now = batch::now()?;
    let mut flights = Vec::new();
    let mut requests = Vec::with_capacity(orders.len());
    let mut answers: Vec<Result<Sent, Problem>> = Vec::with_capacity(orders.len());
    for (place, order) in orders.into_iter().enumerate() {
        let accepted = order.and_then(|(order, own)| {
            app.heads.open(app.catalog.by_id(order.chain).map_err(|_| Problem::internal())?, now)?;
            let key = match (own, &whole) {
                (Some(text), _) => {
                    flights.push(app.flights.begin(caller.merchant, &text)?);
                    Some(Key { text, fingerprint: order.fingerprint })
                }
                (None, Some(whole)) => Some(derived(whole, place, order.fingerprint)),
                (None, None) => None,
            };
            Ok((order, key))
        });
        answers.push(accepted.map(|(order, key)| {
            let (answer, answered) = oneshot::channel();
            requests.push(Request {
                merchant: caller.merchant,
                asked_by: caller.id,
                account: account.clone(),
                order,
                key,
                answer,
            });
            answered
        }));
    }
    payments::queue(&app, requests)?;
    let answered = answers.into_iter().map(|sent| async {
        match payments::made(sent?).await {
            Ok(made) => Ok(Answer {
                status: StatusCode::CREATED.as_u16(),
                replayed: made.replayed,
                payment: Some(PaymentReply::first(&made.payment)),
                problem: None,
            }),
            Err(problem) => Err(problem),
        }
    });
    let data = join_all(answered).await.into_iter().map(|answer| answer.unwrap_or_else(Answer::from)).collect();
    Ok(Json(Answers { data }))
}

fn items(body: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    let mut fields = Fields::read(body)?;
    let items = match fields.raw("payments").map(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get())) {
        Some(Ok(items)) if (1..=MOST).contains(&items.len()) => Some(items),
        Some(Ok(items)) => {
            fields.refuse("payments", format_args!("expected 1 to {MOST} orders, got {}", items.len()));
            None
        }
        Some(Err(_)) | None => {
            fields.refuse("payments", format_args!("expected a list of 1 to {MOST} orders"));
            None
        }
    };
    fields.finish(&["payments"])?;
    items.ok_or_else(Problem::internal)
}

/// Of all orders in their order; an order that is none is the same if it is written the same.
fn fingerprint(items: &[&RawValue], orders: &[Result<(Order, Option<String>), Problem>]) -> [u8; 32] {
    let mut all = Sha256::new();
    for (item, order) in items.iter().zip(orders) {
        let one: [u8; 32] = match order {
            Ok((order, _)) => order.fingerprint,
            Err(_) => Sha256::digest(item.get()).into(),
        };
        all.update(one);
    }
    all.finalize().into()
}

/// A key that no client can send: a header and a field have no control characters.
fn derived(whole: &Key, place: usize, fingerprint: [u8; 32]) -> Key {
    Key { text: format!("\u{1}{}:{place}", hex::encode(Sha256::digest(&whole.text))), fingerprint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_list_of_orders_is_refused() {
        for wrong in [r#"{}"#, r#"{"payments":[]}"#, r#"{"payments":{}}"#, r#"{"payments":null}"#, r#"{"payments":[1],"x":1}"#]
        {
            assert!(items(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let many = |count: usize| format!(r#"{{"payments":[{}]}}"#, vec!["1"; count].join(","));
        assert_eq!(items(many(MOST).as_bytes()).unwrap().len(), MOST);
        assert!(items(many(MOST + 1).as_bytes()).is_err());
    }

    #[test]
    fn other_orders_have_another_fingerprint_and_places_have_keys_of_their_own() {
        let read = |text: &str| -> [u8; 32] {
            let body = format!(r#"{{"payments":{text}}}"#);
            let items = items(body.as_bytes()).unwrap();
            let catalog = crate::catalog::tests::catalog();
            let orders: Vec<_> = items
                .iter()
                .map(|item| Order::read_item(item.get().as_bytes(), &catalog, crate::merchant::DefaultTerms::default()))
                .collect();
            fingerprint(&items, &orders)
        };
        let (one, two) = (r#"{"chain":"anvil","amount":1}"#, r#"{"chain":"anvil","amount":2}"#);
        assert_eq!(read(&format!("[{one},{two}]")), read(&format!(r#"[{{"amount":"1","chain_id":31337}},{two}]"#)));
        assert_ne!(read(&format!("[{one},{two}]")), read(&format!("[{two},{one}]")));
        assert_ne!(read(&format!("[{one}]")), read(&format!("[{one},{two}]")));
        assert_ne!(read(&format!("[{one},3]")), read(&format!("[{one},4]")));
        let whole = Key { text: "k".repeat(255), fingerprint: [0; 32] };
        let keys = [derived(&whole, 0, [0; 32]).text, derived(&whole, 1, [0; 32]).text];
        assert!(keys[0] != keys[1] && keys.iter().all(|key| key.len() <= 255));
    }
}
