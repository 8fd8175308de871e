//! One attempt to send one message: the type that the queue and the sender share. The queue claims a delivery, the sender adds
//! the outcome, the retry schedule adds the verdict, and the queue settles all three.

use crate::signature::Secret;
use bytes::Bytes;
use std::time::Duration;
use uuid::Uuid;

/// From the DNS lookup to the response's status.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// From there to the kept part of the body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// No attempt holds its connection for longer.
pub const ATTEMPT_TIMEOUT: Duration = RESPONSE_TIMEOUT.saturating_add(BODY_TIMEOUT);

/// A delivery under lease, with all that sending it takes.
#[derive(Debug, Clone)]
pub struct ClaimedDelivery {
    pub delivery_id: i64,
    pub endpoint_id: Uuid,
    /// Whose endpoint it is.
    pub merchant: Uuid,
    /// From 1, over all redeliveries.
    pub attempt_number: i32,
    /// Failures since the delivery was last asked for: its place in the retry schedule.
    pub failures: i32,
    /// The header `webhook-id`.
    pub event_id: String,
    /// The endpoint's URL at the claim. It may have changed by the time the attempt is settled.
    pub url: String,
    /// All that are valid, newest first.
    pub secrets: Vec<Secret>,
    pub body: Bytes,
    /// Why it can't be sent at all, for people. That is a failure like others, and stops no other.
    pub unsendable: Option<&'static str>,
    /// Unix seconds from which it could have been sent, to measure the delay.
    pub due_at: f64,
}

/// The result of an attempt, before it is judged.
#[derive(Debug, Clone, Default)]
pub struct SendOutcome {
    pub head: ResponseHead,
    /// The first kilobyte of the response body, for people.
    pub reply: String,
    /// Why there was no response, for people.
    pub error: Option<String>,
    /// Until the response's status, or until the attempt failed.
    pub latency: Duration,
    /// Until the connection was free again, the body included.
    pub connection_held: Duration,
}

/// The part of a response that decides; empty if there was no response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// HTTP status.
    pub status: Option<u16>,
    /// From `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// What an attempt means for its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// Retry after this delay.
    Retry(Duration),
    /// The schedule is used up: no retry, unless the merchant redelivers.
    Failed,
    /// The endpoint answered 410 and is disabled.
    Gone,
}

/// An attempt that has ended and is ready to be settled.
#[derive(Debug, Clone)]
pub struct FinishedAttempt {
    pub delivery: ClaimedDelivery,
    pub outcome: SendOutcome,
    pub verdict: Verdict,
}
