//! Event types, which merchants filter by.

/// All event types that a filter may name.
pub const EVENT_TYPES: [&str; 17] = [
    "payment.created",
    "payment.detected",
    "payment.confirmed",
    "payment.settled",
    "payment.expired",
    "payment.cancelled",
    "payment.underpaid",
    "payment.overpaid",
    "payment.late",
    "payment.reverted",
    "payment.unexpected_transfer",
    "deposit.detected",
    "deposit.confirmed",
    "deposit.settled",
    "deposit.reverted",
    "webhook.disabled",
    "webhook.ping",
];
/// Filters for all types with a prefix.
pub const EVENT_WILDCARDS: [&str; 3] = ["payment.*", "deposit.*", "webhook.*"];
