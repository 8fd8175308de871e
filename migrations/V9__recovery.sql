-- What brings Postgres and the topics together again, after a backup was restored, a standby that lagged was promoted, or a
-- topic was lost. What is in Kafka can't be taken back by a restore: Postgres catches up with the topics.

-- Which installation this database belongs to: one row. Each intent names its installation, so that a second one on the same
-- topics is noticed. Absent until the first start.
CREATE TABLE installation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL,
    -- Another one that was seen to write to the same topics, and when last.
    other         uuid,
    other_seen_at timestamptz
);

-- Up to which offset this database knows all records of a topic. A restored database has the offsets of its backup, and so what it
-- lost is above them. The name is that with TOPIC_PREFIX.
CREATE TABLE known_offsets (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    -- The last record that was read, as it would be found again: a topic that was made anew has another one there.
    last_offset bigint,
    last_record bytea,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

-- Events that Kafka has and this database lost. The confirmer applies chain.matches again from the offset of the backup; an event
-- that it makes again gets the number that it had, and is not told twice.
CREATE TABLE told_events (
    payment_id uuid NOT NULL,
    sequence   bigint NOT NULL,
    -- The PaymentEvent, trimmed as in payment_events.
    record     bytea NOT NULL,
    PRIMARY KEY (payment_id, sequence)
);

-- Transfers to an address that has an intent in Kafka and no payment here. They are credited when the payment is here again.
CREATE TABLE orphan_transfers (
    chain_id          bigint NOT NULL,
    block_hash        bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    transaction_hash  bytea NOT NULL CHECK (octet_length(transaction_hash) = 32),
    source            text NOT NULL CHECK (source IN ('transaction', 'log', 'trace')),
    index             bigint NOT NULL,
    address           bytea NOT NULL CHECK (octet_length(address) = 20),
    block_number      bigint NOT NULL,
    block_timestamp   bigint NOT NULL,
    transaction_index bigint NOT NULL,
    token_address     bytea CHECK (octet_length(token_address) = 20),
    sender            bytea NOT NULL CHECK (octet_length(sender) = 20),
    amount            numeric(78, 0) NOT NULL,
    seen_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, block_hash, transaction_hash, source, index)
);

-- Which event an outbox row is, so that one that Kafka has already is found. Null in rows from before this column.
ALTER TABLE outbox ADD COLUMN sequence bigint;

-- Null for an account that is known from an intent alone: its key comes back when an operator gives it again, and meanwhile its
-- sequence is past all indices that were given out.
ALTER TABLE xpubs ALTER COLUMN xpub DROP NOT NULL;

-- An index is given out once, to a payment or to a static address. Each table has a unique index for its own rows; these triggers
-- hold new rows against the other table, once per statement.
CREATE FUNCTION refuse_index_of_static_address() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows n JOIN deposit_addresses d ON d.xpub = n.xpub AND d.address_index = n.address_index
               WHERE n.deposit_address IS NULL) THEN
        RAISE unique_violation USING MESSAGE = 'a static address has the address index of a new payment';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER payments_share_no_index AFTER INSERT ON payments REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_index_of_static_address();

CREATE FUNCTION refuse_index_of_payment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows n JOIN payments p ON p.xpub = n.xpub AND p.address_index = n.address_index
               WHERE p.deposit_address IS NULL) THEN
        RAISE unique_violation USING MESSAGE = 'a payment has the address index of a new static address';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER deposit_addresses_share_no_index AFTER INSERT ON deposit_addresses REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_index_of_payment();
