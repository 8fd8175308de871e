//! What a lane has on its way: messages and the bytes of their bodies, in all and per merchant, and what more it may claim.

use crate::attempt::ClaimedDelivery;
use crate::lane::LaneLimits;
use crate::queue::MerchantLoad;
use base::counts::Counts;
use uuid::Uuid;

/// By merchant, so that endpoints that are deleted, and made anew, have no more of the lane.
pub struct InFlight {
    limits: LaneLimits,
    messages: usize,
    bytes: usize,
    messages_of: Counts<Uuid>,
    bytes_of: Counts<Uuid>,
}

/// What a lane has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub messages: usize,
    pub bytes: usize,
}

impl InFlight {
    pub fn of(limits: LaneLimits) -> Self {
        Self { limits, messages: 0, bytes: 0, messages_of: Counts::default(), bytes_of: Counts::default() }
    }

    pub fn begin(&mut self, delivery: &ClaimedDelivery) {
        self.messages += 1;
        self.bytes += delivery.body.len();
        self.messages_of.add(delivery.merchant, 1);
        self.bytes_of.add(delivery.merchant, delivery.body.len());
    }

    /// The attempt has ended. Its body is not used again, and goes: the rest of it may wait to be settled.
    pub fn end(&mut self, delivery: &mut ClaimedDelivery) {
        let bytes = std::mem::take(&mut delivery.body).len();
        self.messages -= 1;
        self.bytes -= bytes;
        self.messages_of.take_off(&delivery.merchant, 1);
        self.bytes_of.take_off(&delivery.merchant, bytes);
    }

    /// None at all where a body exceeds what was left.
    pub fn room(&self) -> Room {
        let bytes = self.limits.max_bytes.saturating_sub(self.bytes);
        let messages = if bytes > 0 { self.limits.max_in_flight - self.messages } else { 0 };
        Room { messages, bytes }
    }

    /// What each merchant has.
    pub fn loads(&self) -> Vec<MerchantLoad> {
        let load = |(merchant, messages): (&Uuid, usize)| MerchantLoad {
            merchant: *merchant,
            messages: i32::try_from(messages).unwrap_or(i32::MAX),
            bytes: i64::try_from(self.bytes_of.of(merchant)).unwrap_or(i64::MAX),
        };
        self.messages_of.iter().map(load).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Lane;

    fn delivery(merchant: u128, bytes: usize) -> ClaimedDelivery {
        ClaimedDelivery {
            delivery_id: 1,
            endpoint_id: Uuid::nil(),
            merchant: Uuid::from_u128(merchant),
            attempt_number: 1,
            failures: 0,
            event_id: "evt_1".to_owned(),
            url: String::new(),
            secrets: Vec::new(),
            body: vec![b'x'; bytes].into(),
            unsendable: None,
            due_at: 0.0,
        }
    }

    #[test]
    fn bodies_are_bounded_by_their_bytes_and_no_body_is_too_large() {
        let limits = Lane::Failing.limits();
        let all = Room { messages: limits.max_in_flight, bytes: limits.max_bytes };
        let mut lane = InFlight::of(limits);
        assert_eq!(lane.room(), all);
        let (mut small, mut large) = (delivery(1, 1000), delivery(2, limits.max_bytes));
        lane.begin(&small);
        assert_eq!(lane.room(), Room { messages: all.messages - 1, bytes: all.bytes - 1000 });
        assert_eq!(lane.loads(), [MerchantLoad { merchant: Uuid::from_u128(1), messages: 1, bytes: 1000 }]);
        lane.begin(&large);
        assert_eq!(lane.room(), Room { messages: 0, bytes: 0 });
        lane.end(&mut large);
        assert!(large.body.is_empty(), "it is kept until it is settled");
        lane.end(&mut small);
        assert_eq!((lane.room(), lane.loads()), (all, Vec::new()));
    }

    #[test]
    fn a_merchant_with_large_bodies_leaves_bytes_for_others() {
        let limits = Lane::Healthy.limits();
        assert_eq!(limits.bytes_per_merchant(limits.max_bytes), limits.max_bytes / 4);
        assert_eq!((limits.bytes_per_merchant(300), limits.bytes_per_merchant(1)), (100, 1));
    }
}
