-- Whatever is done to an endpoint is a mark on it; what that means for its many deliveries is done after, a few at a time.

ALTER TABLE webhook_endpoints
    -- It fails, and is left alone so long; paused_until is what it asked for itself.
    ADD COLUMN resting_until timestamptz,
    -- The merchant does not see it any more, and it is sent nothing. Its deliveries are removed, and then the row.
    ADD COLUMN deleted_at    timestamptz,
    ADD CHECK (deleted_at IS NULL OR NOT enabled);
-- What is pending for those has to end.
CREATE INDEX webhook_endpoints_disabled ON webhook_endpoints (id) WHERE NOT enabled;
-- Redelivery of a time range.
CREATE INDEX webhook_deliveries_made ON webhook_deliveries (endpoint_id, created_at, id);
-- And of all that failed: for good, or so far.
DROP INDEX webhook_deliveries_failed;
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (endpoint_id, id)
    WHERE state = 'failed' OR state = 'pending' AND tries > 0;
