//! The queue of reads by id: what a handler puts in, and the reply that it waits for. Those that arrive together are read
//! together.

use crate::batches::Queued;
use crate::http::share;
use axum::body::Bytes;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use topics::PaymentId;
use uuid::Uuid;

/// Beyond it a payment is read alone.
pub const MAX_READ_REQUESTS: usize = 8192;
/// For a place in the queue and the batch's end. Another's payment may take longer, and then this one is read alone.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// A payment to be read.
pub struct ReadRequest {
    /// Who asks. Another merchant's payment is none.
    pub merchant: Uuid,
    pub id: PaymentId,
    /// As JSON. Dropped where it has to be read alone.
    pub reply: oneshot::Sender<Bytes>,
    /// In the queue, of the merchant's; `None` before and after.
    place: Option<OwnedSemaphorePermit>,
}

impl Queued for ReadRequest {
    fn leave_queue(&mut self) -> bool {
        self.place = None;
        !self.reply.is_closed()
    }
}

/// The merchant's payment as JSON, read together with others. `None` where it has to be read alone: it is not found, its intent has
/// to be published again, it has many transfers, or its batch failed or took too long, for whichever payment.
pub async fn read(queue: &mpsc::Sender<ReadRequest>, merchant: Uuid, id: PaymentId) -> Option<Bytes> {
    let together = async {
        let place = share::in_read_queue().await.ok()?;
        let (reply, read) = oneshot::channel();
        queue.try_send(ReadRequest { merchant, id, reply, place }).ok()?;
        read.await.ok()
    };
    tokio::time::timeout(PATIENCE, together).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_batch_that_fails_or_takes_long_leaves_each_of_its_payments_to_be_read_alone() {
        let [merchant, id] = [1, 2].map(Uuid::from_u128);
        let (queue, mut requests) = mpsc::channel::<ReadRequest>(3);
        let ask = || read(&queue, merchant, PaymentId(id));
        let mut answer = async |with: Option<&'static [u8]>| {
            let request = requests.recv().await.unwrap();
            if let Some(json) = with {
                request.reply.send(Bytes::from_static(json)).unwrap();
            }
        };
        assert_eq!(tokio::join!(ask(), answer(Some(b"{}"))).0.as_deref(), Some(&b"{}"[..]));
        let began = Instant::now();
        assert_eq!(tokio::join!(ask(), answer(None)).0, None, "it failed");
        assert!(began.elapsed() < PATIENCE, "nothing is to be waited for");
        let late = tokio::time::timeout(PATIENCE * 50, async { (ask().await, ask().await) });
        assert_eq!(late.await.expect("nobody waits for a batch for long"), (None, None));
        for _ in 0..2 {
            assert!(!requests.recv().await.unwrap().leave_queue(), "nobody waits for it any more");
        }
        drop(requests);
        assert_eq!(ask().await, None, "the queue is closed");
    }
}
