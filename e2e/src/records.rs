//! The records of a lab's topics, as a read_committed consumer sees them. Each record is fetched once and kept, so that a
//! test that polls fetches only new ones.

use crate::lab::Lab;
use anyhow::{Context as _, Result};
use std::sync::PoisonError;
use topics::{Message, frame, wire};

/// Every record of a topic, as a read_committed consumer sees them now, in order per partition. Waits until transactions that
/// are open now are over.
///
/// # Errors
/// When the topic cannot be read to its end.
pub async fn records<M: Message + Send + 'static>(lab: &Lab) -> Result<Vec<M>> {
    records_from(lab, 0).await
}

/// Every event of `payment.events`; see [`records`].
///
/// # Errors
/// When the topic cannot be read to its end.
pub async fn events(lab: &Lab) -> Result<Vec<wire::PaymentEvent>> {
    records(lab).await
}

/// [`records`] without the first `known`.
pub(crate) async fn records_from<M: Message + Send + 'static>(lab: &Lab, known: usize) -> Result<Vec<M>> {
    let reader = lab.reader.clone();
    tokio::task::spawn_blocking(move || {
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let payloads = reader.read(M::TOPIC)?.iter().skip(known);
        payloads.map(|payload| frame::decode(payload)).collect::<Result<_, _>>().with_context(|| M::TOPIC.to_string())
    })
    .await?
}
