//! Retention: what housekeeping removes of webhooks, at most `$1` rows per statement. Rows that another instance is removing are
//! skipped, so every statement is safe to run twice, and at the same time elsewhere.

/// Deliveries are kept for 90 days, with their attempts; pending ones stay.
pub const REMOVE_OLD_DELIVERIES: &str = "DELETE FROM webhook_deliveries WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE state <> 'pending' AND created_at < now() - interval '90 days'
    ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)";

/// Deliveries of deleted endpoints, in any state.
pub const REMOVE_DELIVERIES_OF_DELETED: &str = "DELETE FROM webhook_deliveries WHERE id IN (
    SELECT d.id FROM webhook_endpoints e CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d WHERE d.endpoint_id = e.id
        ORDER BY d.endpoint_id, d.state, d.id LIMIT $1 FOR UPDATE SKIP LOCKED) d
    WHERE NOT e.enabled AND e.deleted_at IS NOT NULL LIMIT $1)";

/// Messages that nothing refers to any more, as old as deliveries become. A replay that brings one again makes it young, and is
/// noticed though it comes between the look and the lock.
pub const REMOVE_OLD_MESSAGES: &str = "DELETE FROM webhook_messages WHERE (event_id, merchant_id) IN (
    SELECT m.event_id, m.merchant_id FROM webhook_messages m WHERE m.created_at < now() - interval '90 days'
        AND (SELECT d.id FROM webhook_deliveries d WHERE d.event_id = m.event_id ORDER BY d.event_id, d.endpoint_id LIMIT 1) IS NULL
        AND (SELECT b.id FROM webhook_backlog b WHERE b.event_id = m.event_id AND b.merchant_id = m.merchant_id) IS NULL
    ORDER BY m.created_at LIMIT $1 FOR UPDATE OF m SKIP LOCKED)";

/// Deleted endpoints without deliveries. After an hour: a transaction that saw the endpoint before it was deleted may still add one.
pub const REMOVE_DELETED_ENDPOINTS: &str = "DELETE FROM webhook_endpoints WHERE id IN (
    SELECT e.id FROM webhook_endpoints e WHERE NOT e.enabled AND e.deleted_at < now() - interval '1 hour'
        AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = e.id)
    LIMIT $1 FOR UPDATE SKIP LOCKED)";
