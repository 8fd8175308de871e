//! The queue in front of the batcher: what a handler puts in, and the created payment that it waits for.

use crate::batches::Queued;
use crate::create::idempotency::IdempotencyKey;
use crate::create::order::Order;
use crate::http::problem::Problem;
use crate::http::share;
use merchants::KeyId;
use merchants::accounts::Account;
use payments::Payment;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use uuid::Uuid;

/// Beyond it clients get a 503 rather than a longer wait.
pub const MAX_QUEUED_REQUESTS: usize = 8192;
/// From the queue to the acknowledged intent: longer than `intents::ACKNOWLEDGEMENT_TIMEOUT`, for the time in the queue.
const CREATE_TIMEOUT: Duration = Duration::from_secs(8);

/// A payment to be created.
pub struct CreateRequest {
    /// The id of its merchant.
    pub merchant: Uuid,
    /// The account that its address is derived from.
    pub account: Account,
    pub order: Order,
    /// The API key of the request.
    pub api_key: KeyId,
    pub idempotency_key: Option<IdempotencyKey>,
    /// A request whose receiver is gone before its batch begins creates no payment.
    pub reply: oneshot::Sender<Result<CreatedPayment, Problem>>,
    /// In the queue, of the merchant's; `None` before and after.
    pub place: Option<OwnedSemaphorePermit>,
}

impl Queued for CreateRequest {
    fn leave_queue(&mut self) -> bool {
        self.place = None;
        !self.reply.is_closed()
    }
}

/// A payment whose intent Kafka has acknowledged.
#[derive(Debug)]
pub struct CreatedPayment {
    pub payment: Payment,
    /// An earlier request with the same idempotency key created it.
    pub repeated: bool,
}

impl CreatedPayment {
    /// Of these, how many payments were made just now.
    pub fn count_new<'a>(outcomes: impl IntoIterator<Item = &'a Result<Self, Problem>>) -> usize {
        outcomes.into_iter().flatten().filter(|created| !created.repeated).count()
    }
}

/// The outcome of a [`CreateRequest`] in the queue.
pub type PendingPayment = oneshot::Receiver<Result<CreatedPayment, Problem>>;

/// Queues requests, all or none, once the merchant has places for them.
///
/// # Errors
/// A 503 when the queue is full.
pub async fn enqueue(queue: &mpsc::Sender<CreateRequest>, requests: Vec<CreateRequest>) -> Result<(), Problem> {
    let mut places = share::in_queue(u32::try_from(requests.len()).unwrap_or(u32::MAX)).await?;
    let permits = queue.try_reserve_many(requests.len()).map_err(|error| match error {
        TrySendError::Full(()) => Problem::unavailable(1, "The queue of payments to create is full; retry"),
        TrySendError::Closed(()) => Problem::unavailable(5, "The server is stopping; retry"),
    })?;
    for (permit, request) in permits.zip(requests) {
        let place = places.as_mut().and_then(|places| places.split(1));
        permit.send(CreateRequest { place, ..request });
    }
    Ok(())
}

/// Waits until a queued payment is created.
///
/// # Errors
/// The batcher's, or a 503 after [`CREATE_TIMEOUT`].
pub async fn created(pending: PendingPayment) -> Result<CreatedPayment, Problem> {
    let outcome = tokio::time::timeout(CREATE_TIMEOUT, pending).await.map_err(|_| {
        Problem::unavailable(5, "Creating the payment timed out. Retry: with the same Idempotency-Key it is created once")
    })?;
    // The sender is dropped without an outcome only when a batch panics, which the batcher logs.
    outcome.map_err(|_| Problem::internal())?
}
