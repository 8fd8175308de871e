//! From a create request to a payment whose address may be shown.
//!
//! [`order`] reads the request, [`queue`] hands it to the [`batcher`], which writes payments in batches, and [`intents`] brings
//! their addresses to Kafka. [`idempotency`] gives a retried request its first response again. [`address`] creates static deposit
//! addresses, one at a time.

pub mod address;
pub mod batcher;
pub mod idempotency;
pub mod intents;
pub mod order;
pub mod queue;
