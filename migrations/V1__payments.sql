-- Payments, the transfers that pay them, and where each reader and writer of Kafka stands.
--
-- Amounts are base units, up to 2^256 - 1: numeric(78, 0). Addresses and hashes are raw bytes. Chain time is bigint, Unix
-- seconds, as headers have it; wall-clock time is timestamptz.

CREATE TABLE merchants (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A key is 32 random bytes, so a plain SHA-256 of it can't be guessed back; the key itself is stored nowhere.
CREATE TABLE api_keys (
    hash        bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    merchant_id uuid NOT NULL REFERENCES merchants,
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);

-- The account keys that addresses are derived from. Each has a sequence of its own, named by its fingerprint; a sequence
-- never goes back, not even when the transaction that took a number does, so no address is given out twice.
CREATE TABLE xpubs (
    fingerprint    text PRIMARY KEY,
    xpub           text NOT NULL UNIQUE,
    index_sequence text NOT NULL UNIQUE,
    created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE payments (
    id                     uuid PRIMARY KEY,
    merchant_id            uuid NOT NULL REFERENCES merchants,
    external_id            text,
    metadata               jsonb,
    chain_id               bigint NOT NULL,
    chain                  text NOT NULL,
    -- The asset: all three are null for the chain's coin.
    token                  text,
    token_address          bytea CHECK (octet_length(token_address) = 20),
    decimals               smallint NOT NULL,
    address                bytea NOT NULL UNIQUE CHECK (octet_length(address) = 20),
    xpub                   text NOT NULL REFERENCES xpubs,
    address_index          bigint NOT NULL,
    amount                 numeric(78, 0) NOT NULL CHECK (amount > 0),
    amount_received        numeric(78, 0) NOT NULL DEFAULT 0,
    status                 text NOT NULL CHECK (status IN ('pending', 'detected', 'confirmed', 'settled', 'expired', 'cancelled')),
    exception              text CHECK (exception IN ('underpaid', 'overpaid', 'late')),
    -- The policy when the payment was made: a number of blocks, or a tag.
    confirmations_required integer NOT NULL CHECK (confirmations_required >= 0),
    finality               text CHECK (finality IN ('safe', 'finalized')),
    -- Of the last event; events of a payment count from 1.
    sequence               bigint NOT NULL,
    cancelled              boolean NOT NULL DEFAULT false,
    -- Number of the block whose timestamp expired it, so that a reorganisation of that block takes the expiry back.
    expired_by             bigint,
    created_at             bigint NOT NULL,
    expires_at             bigint NOT NULL,
    updated_at             bigint NOT NULL,
    UNIQUE (xpub, address_index)
);

-- What a new head asks for, and what the removal of one does.
CREATE INDEX payments_expiring ON payments (chain_id, expires_at) WHERE status = 'pending';
CREATE INDEX payments_expired ON payments (chain_id, expired_by) WHERE expired_by IS NOT NULL;
CREATE INDEX payments_of_merchant ON payments (merchant_id, id);

-- Every transfer to an issued address that was ever seen on the canonical chain, of whatever asset. One that a
-- reorganisation took away stays, marked, so that support can explain it; in a new block it is a new row.
CREATE TABLE transfers (
    chain_id          bigint NOT NULL,
    block_hash        bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    transaction_hash  bytea NOT NULL CHECK (octet_length(transaction_hash) = 32),
    source            text NOT NULL CHECK (source IN ('transaction', 'log', 'trace')),
    index             bigint NOT NULL,
    payment_id        uuid NOT NULL REFERENCES payments,
    block_number      bigint NOT NULL,
    block_timestamp   bigint NOT NULL,
    transaction_index bigint NOT NULL,
    token_address     bytea CHECK (octet_length(token_address) = 20),
    sender            bytea NOT NULL CHECK (octet_length(sender) = 20),
    amount            numeric(78, 0) NOT NULL,
    -- Of the payment's own asset and chain, so that it counts into amount_received.
    credited          boolean NOT NULL,
    -- Of the coin or of a token that chains.yaml lists; others are kept and announced to nobody.
    listed            boolean NOT NULL,
    -- The head number that confirms it under its payment's policy; under a tag, the number the tag has to reach. Null if it
    -- is not credited, and nothing waits for it.
    due               bigint,
    finality          text CHECK (finality IN ('safe', 'finalized')),
    confirmed         boolean NOT NULL DEFAULT false,
    removed           boolean NOT NULL DEFAULT false,
    PRIMARY KEY (chain_id, block_hash, transaction_hash, source, index)
);
CREATE INDEX transfers_of_payment ON transfers (payment_id);
-- A new head asks for those that are due; a removed one for those that its number had confirmed.
CREATE INDEX transfers_due ON transfers (chain_id, finality, due) WHERE due IS NOT NULL AND NOT confirmed AND NOT removed;
CREATE INDEX transfers_confirmed ON transfers (chain_id, due) WHERE confirmed AND NOT removed AND finality IS NULL;

-- The canonical head as far as the confirmer has come. It is also the check that chain.matches is a stack: a block is
-- put on this one, or this one is taken off.
CREATE TABLE chain_heads (
    chain_id         bigint PRIMARY KEY,
    sequence         bigint NOT NULL,
    -- The first block ever put on. When it is taken off, nothing is left, and what comes may stand on any parent.
    first_number     bigint NOT NULL,
    number           bigint NOT NULL,
    -- Null when nothing is left.
    hash             bytea,
    block_timestamp  bigint NOT NULL,
    safe_number      bigint,
    finalized_number bigint,
    updated_at       timestamptz NOT NULL DEFAULT now()
);

-- Where a stage stands in a topic, written in the transaction of what it did. A writer that finds another number here
-- than it left is a zombie, and its transaction fails.
CREATE TABLE stage_offsets (
    stage       text NOT NULL,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stage, topic, partition)
);

-- Events on their way to Kafka, written in the transaction that made them. The relay claims rows in batches, publishes a
-- batch in one Kafka transaction together with its number, then deletes it. Events and states are whole Kafka values but
-- for the frame.
CREATE TABLE outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch      bigint,
    payment_id uuid NOT NULL,
    event      bytea NOT NULL,
    state      bytea NOT NULL
);
CREATE INDEX outbox_claimed ON outbox (batch) WHERE batch IS NOT NULL;

-- Intents that Kafka has not acknowledged yet. The API deletes a row when it has; the repair task publishes what stays.
CREATE TABLE unacknowledged_intents (
    payment_id uuid PRIMARY KEY REFERENCES payments,
    intent     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX unacknowledged_intents_by_age ON unacknowledged_intents (created_at);

-- Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): the same key gives the same payment.
CREATE TABLE idempotency_keys (
    merchant_id  uuid NOT NULL REFERENCES merchants,
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL,
    payment_id   uuid NOT NULL REFERENCES payments,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, key)
);
