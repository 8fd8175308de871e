-- Which server process, database and tables caught up with the topics last under this row. A database that was restored has the
-- value of its backup, and so differs from what it is now: then others may still wait for Kafka with what they wrote to the database
-- before. Null until the first start.
ALTER TABLE installation ADD COLUMN lineage text;

-- Each event of payment.events is looked up here.
CREATE INDEX outbox_events ON outbox (payment_id, sequence);
