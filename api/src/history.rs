//! `GET /api/v1/payments/{id}/events`: what happened to a payment and why, as a list or as a live stream of server-sent events.

use crate::app::App;
use crate::auth::Caller;
use crate::extract::{Id, Parameters, no_payment};
use crate::feed::Follower;
use crate::openapi::schemas;
use crate::page;
use crate::problem::Problem;
use crate::reply::rfc3339;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use confirmer::history::{self, Told};
use futures::stream;
use runtime::{Failure, db};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use topics::wire::payment_event::{Block, Transfer};
use topics::{Amount, PaymentId};
use utoipa::ToSchema;

const LAST_EVENT_ID: &str = "last-event-id";
const DEFAULT_LIMIT: i64 = 100;
const LARGEST_LIMIT: i64 = 1000;
/// Events a query of a stream.
const AT_ONCE: i64 = 100;
/// Proxies often close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events in order.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventPage)]
pub struct Page {
    data: Vec<EventReply>,
    /// The `cursor` of the next page; null on the last.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Something that happened to a payment, with the payment's state right after it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
struct EventReply {
    /// The same in `payment.events` and in webhooks.
    #[schema(value_type = schemas::EventId)]
    id: String,
    /// `payment.created`, `payment.detected` and so on; more may come.
    #[schema(example = "payment.detected")]
    r#type: String,
    /// Counts a payment's events from 1, without gaps.
    sequence: u64,
    #[schema(value_type = schemas::PaymentId)]
    payment_id: String,
    /// The causing block's timestamp, or the time of the request that was the cause.
    #[schema(value_type = schemas::Time)]
    occurred_at: String,
    cause: Cause,
    #[schema(value_type = schemas::Status)]
    status: String,
    #[schema(required = true, value_type = Option<schemas::Exception>)]
    exception: Option<String>,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    #[schema(value_type = schemas::Amount)]
    amount_received: String,
}

/// Why it happened: a request, or a block and, if it is about one, a transfer in a block.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventCause)]
struct Cause {
    /// `request`, `block` or `transfer`.
    kind: CauseKind,
    /// The id of the key whose request it was; null also where it was not written down.
    #[schema(required = true)]
    api_key: Option<String>,
    #[schema(required = true)]
    block: Option<BlockReply>,
    #[schema(required = true)]
    transfer: Option<TransferReply>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum CauseKind {
    Request,
    Block,
    Transfer,
}

/// A block.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventBlock)]
struct BlockReply {
    chain_id: u64,
    number: u64,
    #[schema(value_type = schemas::Hash)]
    hash: String,
}

/// A transfer to the payment's address, as it was right after the event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventTransfer)]
struct TransferReply {
    chain_id: u64,
    /// What this service calls the chain; null if it does not know it.
    #[schema(required = true)]
    chain: Option<String>,
    block_number: u64,
    #[schema(value_type = schemas::Hash)]
    block_hash: String,
    #[schema(value_type = schemas::Hash)]
    transaction_hash: String,
    #[schema(value_type = schemas::Source)]
    source: String,
    index: u32,
    #[schema(value_type = schemas::Time)]
    timestamp: String,
    /// The symbol, if the token is a listed one.
    #[schema(required = true)]
    token: Option<String>,
    #[schema(required = true, value_type = Option<schemas::Address>)]
    token_contract_address: Option<String>,
    #[schema(value_type = schemas::Address)]
    from: String,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    credited: bool,
    confirmed: bool,
}

impl EventReply {
    fn new(Told { event, asked_by }: Told) -> Result<Self, Failure> {
        let kind = match (&event.block, &event.transfer) {
            (_, Some(_)) => CauseKind::Transfer,
            (Some(_), None) => CauseKind::Block,
            (None, None) => CauseKind::Request,
        };
        let block = event.block.map(BlockReply::new).transpose()?;
        let transfer = event.transfer.map(TransferReply::new).transpose()?;
        Ok(Self {
            id: event.id,
            r#type: event.r#type,
            sequence: event.sequence,
            payment_id: event.payment_id,
            occurred_at: rfc3339(event.occurred_at),
            cause: Cause { kind, api_key: asked_by, block, transfer },
            status: event.status,
            exception: named(event.exception),
            amount: amount(&event.amount)?,
            amount_received: amount(&event.amount_received)?,
        })
    }

    fn sse(&self) -> Result<sse::Event, axum::Error> {
        sse::Event::default().id(&self.id).event(&self.r#type).json_data(self)
    }
}

impl BlockReply {
    fn new(block: Block) -> Result<Self, Failure> {
        let hash = topics::hash("hash", &block.hash).map_err(Failure::halt)?;
        Ok(Self { chain_id: block.chain_id, number: block.number, hash: hash.to_string() })
    }
}

impl TransferReply {
    fn new(transfer: Transfer) -> Result<Self, Failure> {
        let hash = |name, bytes: &[u8]| topics::hash(name, bytes).map(|hash| hash.to_string()).map_err(Failure::halt);
        let address = |name, bytes: &[u8]| topics::address(name, bytes).map(|a| a.to_string()).map_err(Failure::halt);
        let token = Some(&transfer.token_address).filter(|token| !token.is_empty());
        Ok(Self {
            chain_id: transfer.chain_id,
            chain: named(transfer.chain),
            block_number: transfer.block_number,
            block_hash: hash("block_hash", &transfer.block_hash)?,
            transaction_hash: hash("transaction_hash", &transfer.transaction_hash)?,
            source: transfer.source,
            index: transfer.index,
            timestamp: rfc3339(transfer.timestamp),
            token: named(transfer.token),
            token_contract_address: token.map(|token| address("token_address", token)).transpose()?,
            from: address("from", &transfer.from)?,
            amount: amount(&transfer.amount)?,
            credited: transfer.credited,
            confirmed: transfer.confirmed,
        })
    }
}

/// Protobuf has no other way to say that there is none.
fn named(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn amount(bytes: &[u8]) -> Result<String, Failure> {
    Ok(Amount::from_wire(bytes).map_err(Failure::halt)?.to_string())
}

/// `GET /api/v1/payments/{id}/events`
#[utoipa::path(
    get, path = "/api/v1/payments/{id}/events", operation_id = "listEvents", tag = "payments",
    summary = "What happened to a payment, and why",
    description = "With `Accept: text/event-stream` a live stream (server-sent events): first what happened already, after \
        `Last-Event-ID` if that is sent, then each event as it happens. `id` is the event's id, `event` its type, `data` the same \
        JSON as in the list. A stream may end at any time; whoever sends the last `id` misses nothing and gets nothing twice.",
    params(
        ("id" = schemas::PaymentId, Path),
        schemas::ListEvents,
        ("Last-Event-ID" = Option<String>, Header, description = "For the stream. What is no event of this payment is as none."),
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
    Id(id): Id,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (mut limit, mut cursor) = (DEFAULT_LIMIT, None);
    page::read(parameters, |name, value| {
        match name {
            "limit" => limit = page::limit(&value, LARGEST_LIMIT)?,
            "cursor" => cursor = number(id, &value),
            _ => return page::unknown("limit, cursor"),
        }
        Ok(())
    })?;
    // Before the first look, so that no event falls between the two.
    let follower = wants_stream(&headers).then(|| app.feed.follow(id.0)).transpose()?;
    let db = app.db().await?;
    let statement =
        db.prepare_cached(
            // A deposit was created when its block says, which tells nothing about when it was written down.
            "SELECT CASE WHEN deposit_address IS NULL THEN created_at ELSE 0 END FROM payments WHERE id = $1 AND merchant_id = $2",
        ).await.map_err(db::failure)?;
    let row = db.query_opt(&statement, &[&id.0, &caller.merchant]).await.map_err(db::failure)?.ok_or_else(|| no_payment(id))?;
    // Events tell the payment's address.
    app.intents.ensure(&db, id.0).await?;
    let created_at: i64 = row.get(0);
    if let Some(follower) = follower {
        let last = headers.get(LAST_EVENT_ID).and_then(|text| text.to_str().ok()).and_then(|text| number(id, text));
        let after = last.or(cursor).unwrap_or(0);
        return Ok(stream(Following { app: app.clone(), follower, id, created_at, after, ready: VecDeque::new() }));
    }
    let mut told = history::events(&db, id, created_at, cursor.unwrap_or(0), limit + 1).await?;
    let more = page::cut(&mut told, limit);
    let data = told.into_iter().map(EventReply::new).collect::<Result<Vec<_>, _>>()?;
    let next_cursor = data.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Json(Page { data, next_cursor }).into_response())
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("text/event-stream")
    })
}

/// The sequence number in the id of an event of this payment.
fn number(payment: PaymentId, event: &str) -> Option<u64> {
    let (id, sequence) = event.strip_prefix("evt_")?.split_once('_')?;
    (id == payment.0.simple().to_string()).then(|| sequence.parse().ok()).flatten()
}

/// A stream and where it stands.
struct Following {
    app: App,
    follower: Follower,
    id: PaymentId,
    created_at: i64,
    after: u64,
    ready: VecDeque<EventReply>,
}

impl Following {
    /// The next event; `None` at the stop.
    async fn next(&mut self) -> Result<Option<EventReply>, Failure> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.sequence;
                return Ok(Some(event));
            }
            let told = {
                // The connection goes back before this waits.
                let db = self.app.pool.get().await.map_err(db::unavailable)?;
                history::events(&db, self.id, self.created_at, self.after, AT_ONCE).await?
            };
            self.ready = told.into_iter().map(EventReply::new).collect::<Result<_, _>>()?;
            if self.ready.is_empty() && !self.follower.woken().await {
                return Ok(None);
            }
        }
    }
}

fn stream(following: Following) -> Response {
    let events = stream::unfold(following, |mut following| async move {
        match following.next().await {
            Ok(next) => next.map(|event| (event.sse(), following)),
            Err(failure) => {
                // The client comes again with the last id.
                tracing::warn!("a stream of events ends: {failure}");
                None
            }
        }
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would wait for its buffer to fill.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_payment_is_no_place_in_this_one() {
        let id = PaymentId::generate();
        let own = format!("evt_{}_7", id.0.simple());
        assert_eq!(number(id, &own), Some(7));
        for other in ["", "7", "evt_", &format!("evt_{}_7", PaymentId::generate().0.simple()), &format!("{own}x"), &own[..36]] {
            assert_eq!(number(id, other), None, "{other}");
        }
    }

    #[test]
    fn a_stream_is_for_who_accepts_one() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_stream(&headers)
        };
        assert!(wants("text/event-stream") && wants("application/json, Text/Event-Stream;q=0.9"));
        assert!(!wants("*/*") && !wants("application/json") && !wants_stream(&HeaderMap::new()));
    }
}
