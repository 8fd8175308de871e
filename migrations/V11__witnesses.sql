-- How far each chain is witnessed: the highest block that as many endpoints have given as the chain asks. Payments are confirmed
-- up to there and no further. Null until ingest tells it.

ALTER TABLE chain_heads ADD COLUMN witnessed_number bigint;

-- Since when the head has been above it without it moving. Null while the head is witnessed.
ALTER TABLE chain_heads ADD COLUMN unwitnessed_since timestamptz;
