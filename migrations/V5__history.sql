-- What happened to payments and why, and metadata as it was written.

-- jsonb refuses U+0000, writes 1e308 out in 309 digits and sorts names; json keeps the text that the merchant sent.
ALTER TABLE payments ALTER COLUMN metadata TYPE json USING metadata::text::json;
ALTER TABLE merchants ALTER COLUMN metadata TYPE json USING metadata::text::json;
ALTER TABLE deposit_addresses ALTER COLUMN metadata TYPE json USING metadata::text::json;

-- Every event of every payment with its cause, for as long as HISTORY_KEEP_DAYS says. The outbox forgets an event when Kafka
-- has it; this does not. Partitions are months, in UTC, so that what has aged is dropped and not deleted row by row.
CREATE TABLE payment_events (
    payment_id  uuid NOT NULL,
    sequence    bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    -- The id of the API key that asked; null where a block is the cause.
    asked_by    text,
    -- The PaymentEvent without what is the payment's own: its transfers so far, its metadata. An event's size does not depend
    -- on those before it.
    record      bytea NOT NULL,
    PRIMARY KEY (payment_id, sequence, recorded_at)
) PARTITION BY RANGE (recorded_at);
-- Takes what no month has been made for: no payment fails for want of a partition.
CREATE TABLE payment_events_rest PARTITION OF payment_events DEFAULT;

-- Makes the partition of the month of that time, unless it is there. Callers take turns.
CREATE FUNCTION make_payment_events_partition(at timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', at, 'UTC');
    next  timestamptz := date_trunc('month', first + interval '32 days', 'UTC');
    name  text := 'payment_events_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE payment_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    LOCK TABLE payment_events_rest IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('WITH moved AS (DELETE FROM payment_events_rest WHERE recorded_at >= %L AND recorded_at < %L RETURNING *)
                    INSERT INTO %I SELECT * FROM moved', first, next, name);
    EXECUTE format('ALTER TABLE payment_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first, next);
    RETURN true;
END
$$;

-- Drops the months that were over before that time. Callers take turns.
CREATE FUNCTION drop_payment_events_before(cutoff timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    name    text;
    dropped integer := 0;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'payment_events'::regclass AND c.relname ~ '^payment_events_[0-9]{4}_[0-9]{2}$'
            AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= cutoff
    LOOP
        EXECUTE format('DROP TABLE %I', name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM payment_events_rest WHERE recorded_at < cutoff;
    RETURN dropped;
END
$$;

SELECT make_payment_events_partition(now() + months * interval '1 month') FROM generate_series(0, 2) AS months;

-- GET /api/v1/addresses, newest first.
CREATE INDEX deposit_addresses_of_merchant ON deposit_addresses (merchant_id, created_at, id);
