-- A payment is loaded by what blocks have brought it and not by its transfers, of which anyone can send any number.

-- Sums of its credited transfers on the canonical chain. Exact: what exceeds 256 bits can still be taken back by a reorg;
-- amount_received is then the largest amount.
ALTER TABLE payments
    ADD COLUMN received          numeric NOT NULL DEFAULT 0,
    ADD COLUMN in_time           numeric NOT NULL DEFAULT 0,
    ADD COLUMN confirmed         numeric NOT NULL DEFAULT 0,
    ADD COLUMN confirmed_in_time numeric NOT NULL DEFAULT 0;

-- What one block of the canonical chain has brought one payment. A reorg deletes the row.
CREATE TABLE payment_parts (
    payment_id      uuid NOT NULL REFERENCES payments,
    chain_id        bigint NOT NULL,
    block_hash      bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    block_number    bigint NOT NULL,
    block_timestamp bigint NOT NULL,
    -- Of any listed asset.
    transfers       bigint NOT NULL,
    -- Sum of those that are credited.
    credited        numeric NOT NULL,
    -- The head number that confirms it under its payment's policy; under a tag, the number the tag has to reach. Null if
    -- nothing is credited, and nothing waits for it.
    due             bigint,
    finality        text CHECK (finality IN ('safe', 'finalized')),
    -- How much of that sum is deep enough: all or nothing, unless a replay has added to a block that is confirmed.
    confirmed       numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (chain_id, block_hash, payment_id)
);

-- Less than min_transfer when it was seen: kept beside its payment or static address. The decision stays, whatever chains.yaml
-- says when the block is replayed.
ALTER TABLE transfers
    ADD COLUMN below_minimum boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT transfers_have_an_owner,
    ADD CONSTRAINT transfers_have_an_owner
        CHECK (payment_id IS NOT NULL OR (deposit_address IS NOT NULL AND (NOT listed OR below_minimum)));

INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due, finality,
        confirmed)
    SELECT payment_id, chain_id, block_hash, min(block_number), min(block_timestamp), count(*),
        coalesce(sum(amount) FILTER (WHERE credited), 0), min(due), min(finality),
        coalesce(sum(amount) FILTER (WHERE credited AND confirmed), 0)
    FROM transfers WHERE payment_id IS NOT NULL AND listed AND NOT removed
    GROUP BY payment_id, chain_id, block_hash;

UPDATE payments SET received = t.received, in_time = t.in_time, confirmed = t.confirmed, confirmed_in_time = t.confirmed_in_time
    FROM (
        SELECT part.payment_id, sum(part.credited) AS received,
            coalesce(sum(part.credited) FILTER (WHERE part.block_timestamp <= p.expires_at), 0) AS in_time,
            sum(part.confirmed) AS confirmed,
            coalesce(sum(part.confirmed) FILTER (WHERE part.block_timestamp <= p.expires_at), 0) AS confirmed_in_time
        FROM payment_parts part JOIN payments p ON p.id = part.payment_id GROUP BY part.payment_id
    ) AS t
    WHERE id = t.payment_id;

CREATE INDEX payment_parts_of_payment ON payment_parts (payment_id, block_number);
-- A new head asks for those that are due; a removed one for those that its number had confirmed.
CREATE INDEX payment_parts_due ON payment_parts (chain_id, finality, due) WHERE due IS NOT NULL AND confirmed <> credited;
CREATE INDEX payment_parts_confirmed ON payment_parts (chain_id, due) WHERE confirmed > 0 AND finality IS NULL;

-- The part of its block says when a transfer is confirmed.
DROP INDEX transfers_due;
DROP INDEX transfers_confirmed;
ALTER TABLE transfers DROP COLUMN due, DROP COLUMN finality, DROP COLUMN confirmed;

-- The transfers of a payment in the chain's order: the last of those that count, whatever flood there is of others, and pages of all.
DROP INDEX transfers_of_payment;
DROP INDEX transfers_of_payment_unlisted;
DROP INDEX transfers_of_deposit_address;
CREATE INDEX transfers_of_payment
    ON transfers (payment_id, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE listed AND NOT below_minimum AND NOT removed;
CREATE INDEX transfers_beside_payment
    ON transfers (payment_id, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE NOT (listed AND NOT below_minimum) AND NOT removed;
CREATE INDEX transfers_of_deposit_address
    ON transfers (deposit_address, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE payment_id IS NULL AND NOT removed;
