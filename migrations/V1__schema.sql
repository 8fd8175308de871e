-- The database of cTrip. Migrations after this one: expand, backfill, contract (CONTRIBUTING.md).
--
-- Amounts are base units, up to 2^256 - 1: numeric(78, 0). Addresses and hashes are raw bytes. Chain time is bigint, Unix
-- seconds, as headers have it; wall-clock time is timestamptz. Metadata is json and not jsonb, which refuses U+0000, writes 1e308 out
-- in 309 digits and sorts names: json keeps the text that the merchant sent.

-- Whether our programs can read these times, or nulls: 'infinity' and the year 10000 are no times to them.
CREATE FUNCTION are_times(VARIADIC times timestamptz[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN timestamptz '1970-01-01Z' <= ALL (times) AND timestamptz '9999-12-31Z' >= ALL (times);

-- Merchants and their keys -------------------------------------------------------------------------------------------------------

-- The account keys that addresses are derived from. Each has a sequence of its own, named by its fingerprint; a sequence
-- never goes back, not even when the transaction that took a number does, so no address is given out twice.
CREATE TABLE xpubs (
    fingerprint    text PRIMARY KEY,
    -- Null for an account that is known from an intent alone: its key comes back when an operator gives it again, and meanwhile its
    -- sequence is past all indices that were given out.
    xpub           text UNIQUE,
    index_sequence text NOT NULL UNIQUE,
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- Makes the sequence of an account, unless it is there, and returns its name. It belongs to the owner of the database, whoever asks, so
-- no role may make anything of its own. Callers take turns.
CREATE FUNCTION make_address_sequence(fingerprint text) RETURNS text LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := 'address_index_' || fingerprint;
BEGIN
    IF fingerprint !~ '^[0-9a-f]+$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is no fingerprint of an account; expected hex', fingerprint);
    END IF;
    -- It goes on past the last index that an account can have: an error would fail the requests of others beside it.
    EXECUTE format('CREATE SEQUENCE IF NOT EXISTS public.%I MINVALUE 0 START 0', name);
    RETURN name;
END
$$;
REVOKE EXECUTE ON FUNCTION make_address_sequence(text) FROM PUBLIC;

CREATE TABLE merchants (
    id                      uuid PRIMARY KEY,
    name                    text NOT NULL UNIQUE,
    -- The account that this merchant's addresses are derived from; null is cTrip's own.
    xpub                    text REFERENCES xpubs,
    -- When an operator said so last; null for one who never did.
    account_said_at         timestamptz,
    -- Terms of its payments unless a request says otherwise: hundredths of a percent of the amount.
    underpaid_tolerance_bps integer NOT NULL DEFAULT 0 CHECK (underpaid_tolerance_bps BETWEEN 0 AND 10000),
    overpaid_tolerance_bps  integer NOT NULL DEFAULT 0 CHECK (overpaid_tolerance_bps BETWEEN 0 AND 10000),
    accept_late             boolean NOT NULL DEFAULT false,
    metadata                json,
    created_at              timestamptz NOT NULL DEFAULT now()
);

-- The account of an address that a restored database had lost, where the merchant's row names another: a change of its settings may have
-- been lost with it. It gets no new addresses until an operator says again which account is right, which deletes the row; addresses of
-- before that make none anew.
CREATE TABLE restored_accounts (
    merchant_id uuid PRIMARY KEY REFERENCES merchants,
    account     text NOT NULL REFERENCES xpubs,
    -- The payment or static address that has the newest such address. Ids grow.
    issued      uuid NOT NULL
);

-- A key is 32 random bytes, so a plain SHA-256 of it can't be guessed back; the key itself is stored nowhere.
CREATE TABLE api_keys (
    hash         bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    -- A key is looked up by its id, the first 8 bytes of its hash, and the whole hash is compared in constant time.
    id           text GENERATED ALWAYS AS (encode(substring(hash FROM 1 FOR 8), 'hex')) STORED UNIQUE,
    merchant_id  uuid NOT NULL REFERENCES merchants,
    -- write includes read.
    scope        text NOT NULL DEFAULT 'write' CHECK (scope IN ('read', 'write')),
    -- Requests a second; null is the API's default.
    rate_limit   integer CHECK (rate_limit > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- A key that was replaced works until then.
    expires_at   timestamptz,
    revoked_at   timestamptz,
    -- Written now and then, not by each request.
    last_used_at timestamptz,
    CHECK (are_times(created_at, expires_at, revoked_at, last_used_at))
);
CREATE INDEX api_keys_of_merchant ON api_keys (merchant_id);

-- Payments and what pays them ----------------------------------------------------------------------------------------------------

-- An address for a customer and not for an amount: every transfer to it of the coin or of a listed token, on any chain, is
-- a deposit. Its index is from the same sequence as the payments', so no two share an address.
CREATE TABLE deposit_addresses (
    id            uuid PRIMARY KEY,
    merchant_id   uuid NOT NULL REFERENCES merchants,
    external_id   text,
    metadata      json,
    address       bytea NOT NULL UNIQUE CHECK (octet_length(address) = 20),
    xpub          text NOT NULL REFERENCES xpubs,
    address_index bigint NOT NULL,
    created_at    bigint NOT NULL,
    -- The id of the API key that asked.
    asked_by      text,
    UNIQUE (xpub, address_index),
    UNIQUE (merchant_id, external_id)
);
-- GET /api/v1/addresses, newest first.
CREATE INDEX deposit_addresses_of_merchant ON deposit_addresses (merchant_id, created_at, id);

CREATE TABLE payments (
    id                     uuid PRIMARY KEY,
    merchant_id            uuid NOT NULL REFERENCES merchants,
    external_id            text,
    metadata               json,
    chain_id               bigint NOT NULL,
    chain                  text NOT NULL,
    -- The asset: token and token_address are null for the chain's coin.
    token                  text,
    token_address          bytea CHECK (octet_length(token_address) = 20),
    decimals               smallint NOT NULL,
    address                bytea NOT NULL CHECK (octet_length(address) = 20),
    xpub                   text NOT NULL REFERENCES xpubs,
    address_index          bigint NOT NULL,
    -- A deposit is a payment that its transfer makes: the transfer's amount, never expiring, its id a UUIDv5 of the transfer's
    -- identity and content. Deposits of one static address share its address.
    deposit_address        uuid REFERENCES deposit_addresses,
    amount                 numeric(78, 0) NOT NULL CHECK (amount > 0),
    -- In base units of the payment's asset: by how much less it is still paid in full, by how much more nothing is off.
    underpaid_tolerance    numeric(78, 0) NOT NULL DEFAULT 0 CHECK (underpaid_tolerance >= 0),
    overpaid_tolerance     numeric(78, 0) NOT NULL DEFAULT 0 CHECK (overpaid_tolerance >= 0),
    -- What arrives after expires_at counts all the same.
    accept_late            boolean NOT NULL DEFAULT false,
    -- The policy when the payment was made: a number of blocks, or a tag.
    confirmations_required integer NOT NULL CHECK (confirmations_required >= 0),
    finality               text CHECK (finality IN ('safe', 'finalized')),
    status                 text NOT NULL CHECK (status IN ('pending', 'detected', 'confirmed', 'settled', 'expired', 'cancelled')),
    exception              text CHECK (exception IN ('underpaid', 'overpaid', 'late')),
    -- Of the last event; events of a payment count from 1.
    sequence               bigint NOT NULL,
    cancelled              boolean NOT NULL DEFAULT false,
    -- Number of the block whose timestamp expired it, so that a reorg of that block takes the expiry back.
    expired_by             bigint,
    -- The final transaction with which its confirmed money had left its address, its block, that block's time, and what the whole of it
    -- has cost in wei, null where nobody could tell.
    settled_by             bytea CHECK (octet_length(settled_by) = 32),
    settled_block          bytea CHECK (octet_length(settled_block) = 32),
    settled_number         bigint,
    settled_at             bigint,
    settled_fee            numeric(78, 0),
    -- Sums of its credited transfers on the canonical chain. Exact: what exceeds 256 bits can still be taken back by a reorg;
    -- amount_received is then the largest amount.
    received               numeric NOT NULL DEFAULT 0,
    in_time                numeric NOT NULL DEFAULT 0,
    confirmed              numeric NOT NULL DEFAULT 0,
    confirmed_in_time      numeric NOT NULL DEFAULT 0,
    amount_received        numeric(78, 0) NOT NULL DEFAULT 0,
    created_at             bigint NOT NULL,
    expires_at             bigint NOT NULL,
    updated_at             bigint NOT NULL,
    CHECK (num_nonnulls(settled_by, settled_block, settled_number, settled_at) IN (0, 4))
);
CREATE UNIQUE INDEX payments_address ON payments (address) WHERE deposit_address IS NULL;
CREATE UNIQUE INDEX payments_address_index ON payments (xpub, address_index) WHERE deposit_address IS NULL;
-- What a new head asks for, and what the removal of one does.
CREATE INDEX payments_expiring ON payments (chain_id, expires_at) WHERE status = 'pending';
CREATE INDEX payments_expired ON payments (chain_id, expired_by) WHERE expired_by IS NOT NULL;
-- GET /api/v1/payments, newest first. By creation and not by id: not every id tells its time. Each combination of filters has an index
-- that begins with its columns, since whatever is rare among a merchant's many payments would else be looked for among all. A list
-- without a status is put together from one of each status. An address is unique anyway. A list has no deposits, of which there may be
-- many more: its indexes leave them out as well.
CREATE INDEX payments_of_merchant ON payments (merchant_id, status, created_at, id) WHERE deposit_address IS NULL;
CREATE INDEX payments_by_chain ON payments (merchant_id, chain_id, status, created_at, id) WHERE deposit_address IS NULL;
CREATE INDEX payments_by_token ON payments (merchant_id, token, status, created_at, id)
    WHERE deposit_address IS NULL AND token IS NOT NULL;
CREATE INDEX payments_by_chain_and_token ON payments (merchant_id, chain_id, token, status, created_at, id)
    WHERE deposit_address IS NULL AND token IS NOT NULL;
CREATE INDEX payments_by_external_id ON payments (merchant_id, external_id, status, created_at, id)
    WHERE deposit_address IS NULL AND external_id IS NOT NULL;
-- Few payments have an exception, and no other pays for these.
CREATE INDEX payments_by_exception ON payments (merchant_id, exception, status, created_at, id)
    WHERE deposit_address IS NULL AND exception IS NOT NULL;
CREATE INDEX payments_by_exception_and_chain ON payments (merchant_id, exception, chain_id, status, created_at, id)
    WHERE deposit_address IS NULL AND exception IS NOT NULL;
CREATE INDEX payments_by_exception_and_token ON payments (merchant_id, exception, token, status, created_at, id)
    WHERE deposit_address IS NULL AND exception IS NOT NULL AND token IS NOT NULL;
CREATE INDEX payments_by_exception_chain_and_token ON payments (merchant_id, exception, chain_id, token, status, created_at, id)
    WHERE deposit_address IS NULL AND exception IS NOT NULL AND token IS NOT NULL;
-- GET /api/v1/addresses/{id}/deposits, newest first.
CREATE INDEX payments_of_deposit_address ON payments (deposit_address, created_at, id) WHERE deposit_address IS NOT NULL;
-- What a sweep of a static address covers: its deposits of one asset, in order.
CREATE INDEX payments_of_swept_coin ON payments (deposit_address, chain_id, created_at)
    WHERE deposit_address IS NOT NULL AND token_address IS NULL;
CREATE INDEX payments_of_swept_token ON payments (deposit_address, chain_id, token_address, created_at)
    WHERE deposit_address IS NOT NULL AND token_address IS NOT NULL;

-- An address is given out once, to a payment or to a static address, whichever account and index it was derived from: two accounts may
-- hold one key. Each table has a unique index for its own rows; these triggers hold new rows against the other table, once per statement.
CREATE FUNCTION refuse_address_of_static_address() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows n JOIN deposit_addresses d ON d.address = n.address WHERE n.deposit_address IS NULL) THEN
        RAISE unique_violation USING MESSAGE = 'a static address has the address of a new payment';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER payments_share_no_address AFTER INSERT ON payments REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_address_of_static_address();

CREATE FUNCTION refuse_address_of_payment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows n JOIN payments p ON p.address = n.address WHERE p.deposit_address IS NULL) THEN
        RAISE unique_violation USING MESSAGE = 'a payment has the address of a new static address';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER deposit_addresses_share_no_address AFTER INSERT ON deposit_addresses REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_address_of_payment();

-- Every transfer to an issued address that was ever seen on the canonical chain, of whatever asset. One that a reorg took away stays,
-- marked, so that support can explain it; in a new block it is a new row. Only where the same block comes again with other content
-- does that take the row; the history has what was told. The part of its block says whether it is confirmed.
CREATE TABLE transfers (
    chain_id          bigint NOT NULL,
    block_hash        bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    transaction_hash  bytea NOT NULL CHECK (octet_length(transaction_hash) = 32),
    source            text NOT NULL CHECK (source IN ('transaction', 'log', 'trace')),
    index             bigint NOT NULL,
    payment_id        uuid REFERENCES payments,
    -- An unlisted token at a static address makes no deposit: its transfer is kept with the address alone.
    deposit_address   uuid REFERENCES deposit_addresses,
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
    -- Less than min_transfer when it was seen: kept beside its payment or static address. The decision stays, whatever chains.yaml
    -- says when the block is replayed.
    below_minimum     boolean NOT NULL DEFAULT false,
    removed           boolean NOT NULL DEFAULT false,
    -- The sequence of the record of chain.matches that took its block off the chain last. Null while none has.
    removed_by        bigint,
    -- What chains.yaml called the chain and the token when the transfer was seen, for people who have to explain it. Null where it
    -- names none.
    chain             text,
    token             text,
    decimals          smallint,
    PRIMARY KEY (chain_id, block_hash, transaction_hash, source, index),
    CONSTRAINT transfers_have_an_owner
        CHECK (payment_id IS NOT NULL OR (deposit_address IS NOT NULL AND (NOT listed OR below_minimum)))
);
-- The transfers of a payment in the chain's order: the last of those that count, whatever flood there is of others, and pages of all.
CREATE INDEX transfers_of_payment
    ON transfers (payment_id, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE listed AND NOT below_minimum AND NOT removed;
CREATE INDEX transfers_beside_payment
    ON transfers (payment_id, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE NOT (listed AND NOT below_minimum) AND NOT removed;
-- GET /api/v1/payments?transaction_hash=. In no order, so it is kept small: seven bytes tell transactions apart, and with their
-- length they are one word. The statement compares the whole hash as well. Without those that a reorg took away Postgres would have
-- no statistics of the bytes, and would plan for a two-hundredth of all.
CREATE INDEX transfers_of_transaction ON transfers (substring(transaction_hash FROM 1 FOR 7));
CREATE INDEX transfers_of_deposit_address
    ON transfers (deposit_address, block_timestamp, chain_id, block_number, transaction_index, source, index)
    WHERE payment_id IS NULL AND NOT removed;

-- What one block of the canonical chain has brought one payment, which is loaded by these and not by its transfers, of which anyone
-- can send any number. A reorg deletes the row.
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
    -- Ids grow, but for deposits'; hashes are in no order.
    PRIMARY KEY (payment_id, chain_id, block_hash)
);
-- The block that a payment's confirmations count from. Of some rows only, so that it can't take the place of the key, which is larger:
-- to find one part by it is to read all that the payment has.
CREATE INDEX payment_parts_of_payment ON payment_parts (payment_id, block_number) WHERE credited > 0;
-- What a block has brought. Small, as transfers_of_transaction is.
CREATE INDEX payment_parts_of_block ON payment_parts (chain_id, substring(block_hash FROM 1 FOR 7));
-- A new head asks for those that are due; a removed one for those that its number had confirmed.
CREATE INDEX payment_parts_due ON payment_parts (chain_id, finality, due) WHERE due IS NOT NULL AND confirmed <> credited;
CREATE INDEX payment_parts_confirmed ON payment_parts (chain_id, due) WHERE confirmed > 0 AND finality IS NULL;

-- What final transactions have moved out of addresses, from sweep.events: each by the total that had left with it. token_address is
-- empty for the coin.
CREATE TABLE swept (
    chain_id         bigint NOT NULL,
    address          bytea NOT NULL CHECK (octet_length(address) = 20),
    token_address    bytea NOT NULL CHECK (octet_length(token_address) IN (0, 20)),
    total            numeric(78, 0) NOT NULL CHECK (total > 0),
    transaction_hash bytea NOT NULL CHECK (octet_length(transaction_hash) = 32),
    block_hash       bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    block_number     bigint NOT NULL,
    block_timestamp  bigint NOT NULL,
    -- Of the whole transaction, in wei.
    fee              numeric(78, 0),
    PRIMARY KEY (chain_id, address, token_address, total, transaction_hash)
);
CREATE INDEX swept_by_block ON swept (chain_id, address, token_address, block_number);

-- The addresses and assets of which payments may have become covered: by a transaction, or since they are confirmed. Each word of that
-- is a row of its own: who says it again waits for nobody, and no row is there already that is being taken out.
CREATE TABLE to_settle (
    chain_id      bigint NOT NULL,
    address       bytea NOT NULL,
    token_address bytea NOT NULL,
    -- Number of the block that has to be there and witnessed first.
    due           bigint NOT NULL,
    -- Who has waited longest comes first.
    place         bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (chain_id, place)
);
CREATE INDEX to_settle_due ON to_settle (chain_id, due, place);
CREATE INDEX to_settle_of_asset ON to_settle (chain_id, address, token_address, due);

-- Up to which deposit those of a static address in one asset are settled, and all that had arrived up to there, so that none is read
-- twice. A row goes where something changes at or below its block, and then all are counted again.
CREATE TABLE settled_up_to (
    deposit_address uuid NOT NULL REFERENCES deposit_addresses,
    chain_id        bigint NOT NULL,
    token_address   bytea NOT NULL,
    -- The last one's place: its block's timestamp and number, and its id.
    created_at      bigint NOT NULL,
    place_number    bigint NOT NULL,
    id              uuid NOT NULL,
    -- The highest up to there.
    block_number    bigint NOT NULL,
    arrived         numeric NOT NULL,
    -- What of that deposits have received.
    received        numeric NOT NULL,
    PRIMARY KEY (deposit_address, chain_id, token_address)
);
CREATE INDEX settled_up_to_block ON settled_up_to (chain_id, block_number);

-- What all settled deposits of a static address in one asset have received: it covers none that is found before them. Kept by a trigger,
-- whoever settles a deposit or takes that back.
CREATE TABLE settled_sums (
    deposit_address uuid NOT NULL REFERENCES deposit_addresses,
    chain_id        bigint NOT NULL,
    token_address   bytea NOT NULL,
    received        numeric NOT NULL,
    PRIMARY KEY (deposit_address, chain_id, token_address)
);
CREATE FUNCTION sum_settled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO settled_sums AS s (deposit_address, chain_id, token_address, received)
    VALUES (NEW.deposit_address, NEW.chain_id, coalesce(NEW.token_address, ''),
        CASE NEW.status WHEN 'settled' THEN NEW.received ELSE 0 END - CASE OLD.status WHEN 'settled' THEN OLD.received ELSE 0 END)
    ON CONFLICT (deposit_address, chain_id, token_address) DO UPDATE SET received = s.received + EXCLUDED.received;
    RETURN NULL;
END
$$;
CREATE TRIGGER payments_settled AFTER UPDATE OF status, received ON payments FOR EACH ROW
    WHEN (NEW.deposit_address IS NOT NULL AND (NEW.status = 'settled' OR OLD.status = 'settled')
        AND (NEW.status, NEW.received) IS DISTINCT FROM (OLD.status, OLD.received))
    EXECUTE FUNCTION sum_settled();

-- Transfers to an address that has an intent in Kafka and no payment here, or in a token whose decimals are in doubt. They are credited
-- when the payment is here again, and the token is right.
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
    -- The part of its block's matches that brought it: its transfers are told and become deposits part by part, whenever they are
    -- credited.
    part              bigint NOT NULL DEFAULT 0,
    -- It has an owner, and waits until chains.yaml lists its token with the decimals that the contract says.
    in_doubt          boolean NOT NULL DEFAULT false,
    seen_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, block_hash, transaction_hash, source, index)
);

-- Blocks that have left the chain with orphans, of which no row is left: a replayed one that is read again from before that is not
-- applied. One row a block, until the record that took it off is remembered no more: nothing tells then which came first.
CREATE TABLE left_blocks (
    chain_id   bigint NOT NULL,
    block_hash bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    -- The sequence of the record of chain.matches that took it off the chain last.
    removed_by bigint NOT NULL,
    -- That record's in applied_records, or a later one.
    place      bigint NOT NULL,
    PRIMARY KEY (chain_id, block_hash)
);
CREATE INDEX left_blocks_by_place ON left_blocks (chain_id, place);

-- Events and intents on their way to Kafka ---------------------------------------------------------------------------------------

-- Events on their way to Kafka, written in the transaction that made them. The relay claims rows in batches, publishes a
-- batch in one Kafka transaction together with its number, then deletes it. Events and states are whole Kafka values but
-- for the frame.
CREATE TABLE outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The batch that it is claimed for. Negative where it is kept back for a partition of payment.events that can't be read to
    -- its end: -1 for partition 0, and so on.
    batch      bigint,
    payment_id uuid NOT NULL,
    -- Which event of the payment it is, so that one that Kafka has already is found.
    sequence   bigint,
    event      bytea NOT NULL,
    state      bytea NOT NULL
);
CREATE INDEX outbox_claimed ON outbox (batch) WHERE batch IS NOT NULL;
-- Each event of payment.events is looked up here.
CREATE INDEX outbox_events ON outbox (payment_id, sequence);

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

-- Makes the partition of the month of that time, unless it is there. Callers take turns. They need no right but to call it: the table
-- is its owner's. No name in it is looked up where others may put one.
CREATE FUNCTION make_payment_events_partition(at timestamptz) RETURNS boolean LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first timestamptz := date_trunc('month', at, 'UTC');
    next  timestamptz := date_trunc('month', first + interval '32 days', 'UTC');
    name  text := 'payment_events_' || to_char(first AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF to_regclass('public.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.payment_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    LOCK TABLE public.payment_events_rest IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('WITH moved AS (DELETE FROM public.payment_events_rest WHERE recorded_at >= %L AND recorded_at < %L RETURNING *)
                    INSERT INTO public.%I SELECT * FROM moved', first, next, name);
    EXECUTE format('ALTER TABLE public.payment_events ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name, first, next);
    RETURN true;
END
$$;
REVOKE EXECUTE ON FUNCTION make_payment_events_partition(timestamptz) FROM PUBLIC;

-- Drops the months that were over before that time. Callers take turns.
CREATE FUNCTION drop_payment_events_before(cutoff timestamptz) RETURNS integer LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name    text;
    dropped integer := 0;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.payment_events'::regclass AND c.relname ~ '^payment_events_[0-9]{4}_[0-9]{2}$'
            AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= cutoff
    LOOP
        EXECUTE format('DROP TABLE public.%I', name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM public.payment_events_rest WHERE recorded_at < cutoff;
    RETURN dropped;
END
$$;
REVOKE EXECUTE ON FUNCTION drop_payment_events_before(timestamptz) FROM PUBLIC;

SELECT make_payment_events_partition(now() + months * interval '1 month') FROM generate_series(0, 2) AS months;

-- Intents that Kafka has not acknowledged yet. The API deletes a row when it has; the repair task publishes what stays. A static
-- address has an intent too, under its own id.
CREATE TABLE unacknowledged_intents (
    payment_id uuid PRIMARY KEY,
    intent     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX unacknowledged_intents_by_age ON unacknowledged_intents (created_at);

-- Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): the same key gives the same payment.
CREATE TABLE idempotency_keys (
    merchant_id  uuid NOT NULL REFERENCES merchants,
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL,
    -- A key is taken before its payment is written, so that a request that finds it taken has used up no address. A key of a batch as
    -- a whole names no payment; its payments have keys of their own, derived from it.
    payment_id   uuid REFERENCES payments DEFERRABLE INITIALLY DEFERRED,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, key)
);
-- Housekeeping takes the oldest.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Where readers and writers of Kafka stand ---------------------------------------------------------------------------------------

-- The canonical head as far as the confirmer has come. It is also the check that chain.matches is a stack: a block is
-- put on this one, or this one is taken off.
CREATE TABLE chain_heads (
    chain_id          bigint PRIMARY KEY,
    sequence          bigint NOT NULL,
    -- The first block ever put on. When it is taken off, nothing is left, and what comes may stand on any parent.
    first_number      bigint NOT NULL,
    number            bigint NOT NULL,
    -- Null when nothing is left, and where the chain begins anew by a command.
    hash              bytea,
    -- Whether nothing is left since a reorg has removed the first block: the branch that takes its place may begin lower.
    makes_way         boolean NOT NULL DEFAULT false,
    block_timestamp   bigint NOT NULL,
    safe_number       bigint,
    finalized_number  bigint,
    -- How far the chain is witnessed: the highest block that as many endpoints have given as the chain asks. Payments are confirmed
    -- up to there and no further. Null until ingest tells it.
    witnessed_number  bigint,
    -- Since when the head has been above it without it moving. Null while the head is witnessed.
    unwitnessed_since timestamptz,
    -- A gap in the chain's records that past blocks close, which a backfill replays: the last block of those whose parents lead on
    -- from the head. Null where none does.
    bridge_number     bigint,
    bridge_hash       bytea,
    -- A block with more matches than a record holds comes in parts. The block of which parts have been credited and not yet the last
    -- one, and the number of the last of them: a batch may end within a block, and the next part has to follow.
    open_hash         bytea,
    open_part         bigint,
    -- The sequence of the chain's last record that was read, whether it was applied or passed over for what it says, and
    -- whether it had been read before, as had others that come after it: the next one tells whether records are missing. Null
    -- where the stage has gone back since, to nobody knows where.
    read_sequence     bigint NOT NULL,
    reads_again       boolean,
    -- The sequences of the first record after the last gap, and of the last one that had not been read before: none is missing
    -- between them. Ingest goes on from one of them where Kafka has lost the end of its cursors and blocks.
    read_from         bigint NOT NULL,
    read_to           bigint NOT NULL,
    -- The last of the replayed blocks that lead, by their parents, from a witnessed block on and have the content that was
    -- applied: once it is the head, nothing above the witnessed block is in doubt. Null where none does.
    said_number       bigint,
    said_hash         bytea,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- The records of chain.matches that each chain's head comes of, the last ones, by which they are known when they are read again: where
-- Kafka has lost the end of a topic, some are, and others are written anew.
CREATE TABLE applied_records (
    chain_id bigint NOT NULL,
    -- Counts a chain's records up to the last of these.
    place    bigint NOT NULL,
    -- Number of the lowest block that they added; null for none.
    lowest   bigint,
    -- Three a record, in order: UUIDv5 of all that it says, of its block, and of what it says of that, whatever its sequence and tags are.
    records  uuid[] NOT NULL,
    -- One a record: its block's.
    numbers  bigint[] NOT NULL,
    PRIMARY KEY (chain_id, place)
);

-- Where a stage stands in a topic, by its name with TOPIC_PREFIX, written in the transaction of what it did. A writer that finds another
-- number here than it left is a zombie, and its transaction fails.
CREATE TABLE stage_offsets (
    stage       text NOT NULL,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint NOT NULL,
    -- The last record that was applied, as it would be found again: a topic that was cut and written again, or made anew, has another
    -- one there. Null before the first, and where the offset has gone back.
    last_offset bigint,
    last_record bytea,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stage, topic, partition)
);

-- What a fault keeps from being processed, while all else of its partition goes on: a chain whose records wait resumes at its own
-- offset, since `stage_offsets` has moved on with its neighbours'.
CREATE TABLE set_aside (
    stage       text NOT NULL,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    -- A chain's id, or the id of an event that has no message.
    item        text NOT NULL,
    -- The first record that is not processed, or an earlier one.
    next_offset bigint NOT NULL,
    cause       text NOT NULL,
    since       timestamptz NOT NULL DEFAULT now(),
    -- The topic first: chains are few, and looked for beside many lost payments.
    PRIMARY KEY (topic, stage, partition, item)
);

-- After a loss -------------------------------------------------------------------------------------------------------------------
-- A backup was restored, a standby that lagged was promoted, or a topic was lost. What is in Kafka can't be taken back by a restore:
-- Postgres catches up with the topics.

-- Which installation this database belongs to: one row. Each intent names its installation, so that a second one on the same
-- topics is noticed. Absent until the first start.
CREATE TABLE installation (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id            uuid NOT NULL,
    -- Another one that was seen to write to the same topics, and when last.
    other         uuid,
    other_seen_at timestamptz,
    -- Which server process, database and tables caught up with the topics last under this row. A database that was restored has the
    -- value of its backup, and so differs from what it is now: then others may still wait for Kafka with what they wrote to the
    -- database before. Null until the first start, `adopted` until one after `ctrip intents adopt`.
    lineage       text,
    -- The name, with TOPIC_PREFIX, of the payment.intents that this database was compared with last, to its end. Before that, addresses
    -- of another installation in a topic mean that this one is new to it, and it is refused.
    compared      text,
    -- Kafka's id of the cluster that has it: the same name in another cluster is another topic. Null where the brokers give none.
    compared_cluster text,
    -- cTrip's own account: the one of merchants without an xpub. Null until the first start; another one has to name it.
    own_account   text REFERENCES xpubs
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
    payment_id  uuid NOT NULL,
    sequence    bigint NOT NULL,
    -- The PaymentEvent, trimmed as in payment_events.
    record      bytea NOT NULL,
    -- It was made again, and others of its payment were not.
    made        boolean NOT NULL DEFAULT false,
    compared_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (payment_id, sequence)
);

-- What a process of the API writes again and again, to see by when its replica has it. One row a process, of which housekeeping removes
-- those of processes that are gone.
CREATE TABLE replica_beats (
    process    text PRIMARY KEY,
    beat       bigint NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);

-- Webhooks -----------------------------------------------------------------------------------------------------------------------

-- Merchants' endpoints. Whatever is done to one is a mark on it; what that means for its many deliveries is done after, a few at a
-- time.
CREATE TABLE webhook_endpoints (
    id               uuid PRIMARY KEY,
    merchant_id      uuid NOT NULL REFERENCES merchants,
    url              text NOT NULL,
    description      text,
    -- Event types, `payment.*` being all of a kind; none is all there are.
    events           text[] NOT NULL DEFAULT '{}',
    -- As `whsec_…`: to sign takes the secret itself. The one before signs as well until its time is over.
    secret           text NOT NULL,
    secret_since     timestamptz NOT NULL DEFAULT now(),
    old_secret       text,
    old_secret_until timestamptz,
    enabled          boolean NOT NULL DEFAULT true,
    -- gone (it answered 410), failing (five days long), or asked (the merchant did it).
    disabled_reason  text CHECK (disabled_reason IN ('gone', 'failing', 'asked')),
    disabled_at      timestamptz,
    -- Of the first failure since the last success, or since it was sent nothing for a day; null while it is healthy.
    failing_since    timestamptz,
    -- Of the last failure since the last success.
    last_failed_at   timestamptz,
    -- It has asked for so much peace with Retry-After.
    paused_until     timestamptz,
    -- It fails, and is left alone so long.
    resting_until    timestamptz,
    -- The merchant does not see it any more, and it is sent nothing. Its deliveries are removed, and then the row.
    deleted_at       timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- The id of the API key that asked for the last change.
    asked_by         text,
    CHECK (enabled = (disabled_at IS NULL) AND enabled = (disabled_reason IS NULL)),
    CHECK ((old_secret IS NULL) = (old_secret_until IS NULL)),
    CHECK (deleted_at IS NULL OR NOT enabled),
    CHECK (are_times(secret_since, old_secret_until, disabled_at, failing_since, last_failed_at, paused_until, resting_until,
        deleted_at, created_at))
);
CREATE INDEX webhook_endpoints_of_merchant ON webhook_endpoints (merchant_id, created_at, id);
-- What is pending for those has to end.
CREATE INDEX webhook_endpoints_disabled ON webhook_endpoints (id) WHERE NOT enabled;

-- What is sent of an event, once, however many endpoints it is for. Kept for 90 days, and for as long as a delivery or the
-- backlog refers to it.
CREATE TABLE webhook_messages (
    -- The header `webhook-id`.
    event_id    text NOT NULL,
    -- Nobody is told what was written under another merchant's id.
    merchant_id uuid NOT NULL,
    -- As it is signed and sent, byte for byte.
    body        text NOT NULL,
    -- Or when a replay of the topic brought it again.
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, merchant_id)
);
-- Housekeeping takes the oldest.
CREATE INDEX webhook_messages_by_age ON webhook_messages (created_at);

-- Events whose deliveries are still to be made, since their merchant had more than its share of a batch. Merchants take turns.
-- While one has any here, its next events join them, so that those of a payment stay in order.
CREATE TABLE webhook_backlog (
    merchant_id uuid NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    event_id    text NOT NULL,
    type        text NOT NULL,
    payment_id  uuid NOT NULL,
    sequence    bigint NOT NULL,
    -- When it was written to the topic, in milliseconds of Unix time.
    written_ms  bigint NOT NULL,
    PRIMARY KEY (merchant_id, id),
    UNIQUE (event_id, merchant_id)
);

-- One event for one endpoint, kept for 90 days. A replay of the topic finds it here and adds nothing.
CREATE TABLE webhook_deliveries (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- No foreign key: its check would wait for whoever keeps an endpoint's row locked, and with it the fan-out for all merchants.
    endpoint_id  uuid NOT NULL,
    -- Its message is there before. No foreign key either: each delivery would lock it.
    event_id     text NOT NULL,
    type         text NOT NULL,
    -- Null for what is of no payment: a ping, an endpoint that was disabled.
    payment_id   uuid,
    sequence     bigint NOT NULL DEFAULT 0,
    state        text NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    -- Attempts that were begun, over all redeliveries; one that a kill cut off has no row in webhook_attempts.
    attempts     integer NOT NULL DEFAULT 0,
    -- Attempts that failed since it was asked for: the place in the schedule.
    tries        integer NOT NULL DEFAULT 0,
    -- While an attempt is on its way, when to give it up for lost.
    next_attempt timestamptz NOT NULL DEFAULT now(),
    claimed_by   text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    -- The event first: housekeeping asks whether a message has any.
    UNIQUE (event_id, endpoint_id),
    -- One whose time nobody can read would stop the sending of all.
    CHECK (are_times(next_attempt, created_at, delivered_at))
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt, id) WHERE state = 'pending';
-- Whether an earlier event of the payment is still on its way.
CREATE INDEX webhook_deliveries_in_order ON webhook_deliveries (endpoint_id, payment_id, sequence) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_claimed ON webhook_deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
-- GET /api/v1/webhooks/{id}/deliveries, newest first, of one state, or put together from one list of each.
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint_id, state, id);
-- Redelivery of a time range, and of all that failed: for good, or so far.
CREATE INDEX webhook_deliveries_made ON webhook_deliveries (endpoint_id, created_at, id);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (endpoint_id, id)
    WHERE state = 'failed' OR state = 'pending' AND tries > 0;
-- Housekeeping takes the oldest.
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (created_at) WHERE state <> 'pending';

CREATE TABLE webhook_attempts (
    delivery_id bigint NOT NULL REFERENCES webhook_deliveries ON DELETE CASCADE,
    number      integer NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    took_ms     integer NOT NULL,
    -- Null if there was no answer; then the error says why.
    status      integer,
    error       text,
    -- The first kilobyte of the answer's body.
    reply       text NOT NULL DEFAULT '',
    PRIMARY KEY (delivery_id, number),
    CHECK (are_times(at))
);

-- Money out
-- ----------------------------------------------------------------------------------------------------------------------
-- Signed, stored, recorded in Kafka, then sent; what became of it is read from blocks (sweeper/src/engine/).

-- Who sends on a chain, in the order of its nonces. Its row is locked by whoever gives out a nonce, or changes one of its
-- transactions. It is there before the first: from then on outgoing_foreign has what strangers do with the key.
CREATE TABLE outgoing_lanes (
    chain_id   bigint NOT NULL,
    sender     bytea NOT NULL CHECK (octet_length(sender) = 20),
    -- What the chain counts up to a block that was read, which is the first nonce. Null: to be asked, at first, and when that
    -- block has left the chain or blocks are missing. The next nonce follows the highest in outgoing_nonces and
    -- outgoing_foreign: no counter stands beside that could drift.
    counted    bigint CHECK (counted >= 0),
    counted_in bytea CHECK (octet_length(counted_in) = 32),
    -- When it is looked at again, in Unix seconds: those that wait for longest come first.
    next_at    bigint NOT NULL DEFAULT 0,
    -- A record of sweep.events contradicts what is here: nothing is signed or sent until a person has looked, and set this to null.
    frozen     text,
    PRIMARY KEY (chain_id, sender),
    CHECK ((counted IS NULL) = (counted_in IS NULL))
);
CREATE INDEX outgoing_lanes_counted_in ON outgoing_lanes (counted_in);

-- Up to which block a chain is final, and chain.blocks was read; and the newest block that was read, null between one that was
-- removed and the next.
CREATE TABLE outgoing_chains (
    chain_id     bigint PRIMARY KEY,
    final_number bigint,
    head_hash    bytea CHECK (octet_length(head_hash) = 32),
    -- How many blocks were read, and how often one was removed or the chain began anew. What nodes count at a block holds as long
    -- as none was removed.
    blocks       bigint NOT NULL DEFAULT 0,
    removals     bigint NOT NULL DEFAULT 0,
    -- The last record of the chain that was read, and what records have said up to it: the finalized block, and the highest that is
    -- witnessed. Null: not known.
    sequence     bigint,
    finalized    bigint,
    witnessed    bigint,
    -- The numbers of its newest blocks, where it has called none final.
    recent       bigint[] NOT NULL DEFAULT '{}',
    -- A record of sweep.events that can't be read names the chain: as outgoing_lanes.frozen, for all of its lanes.
    frozen       text
);

-- When blocks were made in which one of ours is, in Unix seconds.
CREATE TABLE outgoing_blocks (
    hash bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    time bigint NOT NULL
);

-- Which database has all that sweep.events has, as the gate of the sweeper tells it from others (lineage): a restored one has the value
-- of its backup.
CREATE TABLE outgoing_restored (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    lineage   text NOT NULL,
    -- How many records sweep.events has had in all when a person said that what it has lost is here. Null once that was done.
    accepted  bigint
);

-- Where the partitions of sweep.events began when they were last compared, and where they ended when that was last noted, as it is
-- every 30 s: one that begins later or ends earlier has lost records, and nothing is sent until a person says that it may.
CREATE TABLE outgoing_compared (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    begins      bigint NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- The nonces that strangers with the same key have used in a block, whether they were given out or not. A final one is put into
-- its lane's count.
CREATE TABLE outgoing_foreign (
    chain_id     bigint NOT NULL,
    sender       bytea NOT NULL,
    nonce        bigint NOT NULL CHECK (nonce >= 0),
    block_hash   bytea NOT NULL CHECK (octet_length(block_hash) = 32),
    block_number bigint NOT NULL,
    PRIMARY KEY (chain_id, sender, nonce),
    FOREIGN KEY (chain_id, sender) REFERENCES outgoing_lanes
);
CREATE INDEX outgoing_foreign_of_block ON outgoing_foreign (chain_id, block_number);

CREATE TABLE outgoing (
    id              uuid PRIMARY KEY,
    -- The order in which they are signed.
    place           bigint GENERATED ALWAYS AS IDENTITY,
    -- gap: sends nothing to its sender, for a nonce that would hold up the lane.
    kind            text NOT NULL CHECK (kind IN ('sweep', 'funding', 'refund', 'payout', 'deploy', 'gap')),
    chain_id        bigint NOT NULL,
    sender          bytea NOT NULL CHECK (octet_length(sender) = 20),
    -- Null: it creates a contract.
    recipient       bytea CHECK (octet_length(recipient) = 20),
    value           numeric(78, 0) NOT NULL CHECK (value >= 0),
    data            bytea NOT NULL,
    gas_limit       bigint NOT NULL CHECK (gas_limit > 0),
    -- Signed delegations (EIP-7702) as an RLP list; null where it has none.
    authorizations  bytea,
    -- The same key gives the same transaction, whoever asks again.
    idempotency_key text NOT NULL UNIQUE,
    request_hash    bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    -- queued: not signed. signed: stored, not known to be sent. broadcast: sent to a node. mined: in a block. replaced:
    -- somebody else has used the nonce; it is queued again when that is final. lost: the nonce is used in a block that was
    -- not read. final, failed (reverted), dropped (not wanted any more): for ever.
    state           text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'signed', 'broadcast', 'lost', 'mined', 'replaced', 'final', 'failed', 'dropped')),
    -- That of the attempts which can still be mined.
    nonce           bigint,
    -- A transaction that does nothing is to take its nonce.
    dropping        boolean NOT NULL DEFAULT false,
    -- It is not to be signed: it is dropped soon.
    withheld        boolean NOT NULL DEFAULT false,
    -- The most that a unit of gas may cost of what pays, in wei, where its sender can't pay all that the settings allow.
    max_fee         numeric(39, 0) CHECK (max_fee > 0),
    -- A node asked for more than the last attempt offers.
    underpriced     boolean NOT NULL DEFAULT false,
    -- What was told last, so that it is told once.
    told            text,
    -- What blocks said that can't be with all else that is known: nothing that pays is signed or sent until a person has looked.
    frozen          text,
    -- When something was last tried in vain, in Unix seconds: to sign it, or to read a receipt.
    tried           bigint,
    -- When there is something to do with it again, in Unix seconds; null where a block has to come first.
    due_at          bigint DEFAULT 0,
    -- The attempt that is in a block, and its receipt; succeeded is null while nobody has told.
    mined_hash      bytea CHECK (octet_length(mined_hash) = 32),
    block_hash      bytea CHECK (octet_length(block_hash) = 32),
    block_number    bigint,
    succeeded       boolean,
    gas_used        bigint,
    gas_price       numeric(39, 0),
    -- Up to which block somebody else has used the nonce.
    replaced_in     bigint,
    -- What Kafka has as what became of it, and when that was last to be brought there in vain, in Unix seconds. It may be there before
    -- it is here: told by a database whose place this one has taken.
    announced       text CHECK (announced IN ('final', 'failed', 'dropped')),
    announce_tried  bigint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((state IN ('mined', 'final', 'failed')) <= (mined_hash IS NOT NULL)),
    CHECK ((mined_hash IS NULL) = (block_hash IS NULL) AND (mined_hash IS NULL) = (block_number IS NULL)),
    CHECK ((state IN ('final', 'failed')) <= (succeeded IS NOT NULL)),
    CHECK ((state IN ('signed', 'broadcast', 'lost', 'mined')) <= (nonce IS NOT NULL)),
    CHECK ((state = 'queued') <= (nonce IS NULL)),
    CHECK ((state = 'replaced') = (replaced_in IS NOT NULL)),
    FOREIGN KEY (chain_id, sender) REFERENCES outgoing_lanes
);
-- What the engine does next, and the lane's transactions that are under way. A queue may be long: what is looked at under the
-- lane's lock is not among it.
CREATE INDEX outgoing_due ON outgoing (chain_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX outgoing_due_of_lane ON outgoing (chain_id, sender, due_at) WHERE state <> 'queued' AND due_at IS NOT NULL;
CREATE INDEX outgoing_queue_of_lane ON outgoing (chain_id, sender, due_at, place) WHERE state = 'queued';
CREATE INDEX outgoing_of_lane ON outgoing (chain_id, sender, nonce)
    WHERE state IN ('signed', 'broadcast', 'lost', 'mined', 'replaced');
-- What a new final block asks for, what a removed one does, and blocks that are missing.
CREATE INDEX outgoing_mined ON outgoing (chain_id, block_number) WHERE state = 'mined';
CREATE INDEX outgoing_in_number ON outgoing (chain_id, block_number) WHERE block_number IS NOT NULL;
CREATE INDEX outgoing_replaced ON outgoing (chain_id, replaced_in) WHERE state = 'replaced';
CREATE INDEX outgoing_in_block ON outgoing (block_hash) WHERE block_hash IS NOT NULL;
-- What became of one and is not told yet.
CREATE INDEX outgoing_outcomes ON outgoing (chain_id, announce_tried, nonce)
    WHERE state IN ('final', 'failed', 'dropped') AND announced IS NULL;

-- Each nonce that was given out, for ever: to one transaction, in the transaction of Postgres that stored the first signed
-- bytes.
CREATE TABLE outgoing_nonces (
    chain_id bigint NOT NULL,
    sender   bytea NOT NULL,
    nonce    bigint NOT NULL CHECK (nonce >= 0),
    outgoing uuid NOT NULL REFERENCES outgoing,
    PRIMARY KEY (chain_id, sender, nonce),
    UNIQUE (chain_id, sender, nonce, outgoing),
    FOREIGN KEY (chain_id, sender) REFERENCES outgoing_lanes
);
ALTER TABLE outgoing
    ADD FOREIGN KEY (chain_id, sender, nonce, id) REFERENCES outgoing_nonces (chain_id, sender, nonce, outgoing);

-- The signed transactions. All with one nonce belong to one row of outgoing, so the chain takes one of them.
CREATE TABLE outgoing_attempts (
    hash         bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    place        bigint GENERATED ALWAYS AS IDENTITY,
    outgoing     uuid NOT NULL,
    chain_id     bigint NOT NULL,
    sender       bytea NOT NULL,
    nonce        bigint NOT NULL,
    raw          bytea NOT NULL,
    tip          numeric(39, 0) NOT NULL,
    cap          numeric(39, 0) NOT NULL,
    -- It does nothing but take the nonce.
    cancels      boolean NOT NULL,
    -- Kafka has its record. Nothing is sent before.
    acknowledged boolean NOT NULL DEFAULT false,
    -- How many blocks had been read when a node took it first.
    accepted     bigint,
    -- Unix seconds.
    first_sent   bigint,
    last_sent    bigint,
    created_at   timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (chain_id, sender, nonce, outgoing) REFERENCES outgoing_nonces (chain_id, sender, nonce, outgoing)
);
CREATE INDEX outgoing_attempts_of_outgoing ON outgoing_attempts (outgoing, place);
CREATE INDEX outgoing_attempts_in_order ON outgoing_attempts (place);

-- What is swept to the treasury (sweeper/src/plan/). What an address holds follows from transfers and outgoing, and is written down
-- nowhere: nothing can drift.

-- A sweep of one asset of one address.
CREATE TABLE sweeps (
    id            uuid PRIMARY KEY,
    chain_id      bigint NOT NULL,
    address       bytea NOT NULL CHECK (octet_length(address) = 20),
    -- Empty for the coin.
    token_address bytea NOT NULL CHECK (octet_length(token_address) IN (0, 20)),
    merchant_id   uuid NOT NULL REFERENCES merchants,
    -- What the treasury gets.
    amount        numeric(78, 0) NOT NULL CHECK (amount > 0),
    treasury      bytea NOT NULL CHECK (octet_length(treasury) = 20),
    -- coin: the address pays itself.
    way           text NOT NULL CHECK (way IN ('coin')),
    -- All that had ever arrived and might leave when it was planned.
    arrived       numeric(78, 0) NOT NULL,
    -- How much of what ever arrived it and the final ones before it account for, and what of that stays at the address. Null until
    -- somebody asks for what it has moved, and then never another.
    total         numeric(78, 0),
    remains       numeric(78, 0),
    -- open until its transaction is over, whatever became of that.
    state         text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'final', 'failed', 'dropped')),
    -- It is to be dropped and planned anew: a reorg took back what it was to move, gas costs more by now than it leaves for that,
    -- the treasury is another, a hold covers it, or a person says so (ctrip sweep drop).
    replan        boolean NOT NULL DEFAULT false,
    -- Its address could not pay for it when that was said, though nothing was taken back: once it is dropped, it is set aside.
    unpaid        boolean NOT NULL DEFAULT false,
    -- It has failed, or was dropped: nothing leaves its address until a person says so (ctrip sweep retry).
    set_aside     boolean NOT NULL DEFAULT false,
    -- What became of it was read from sweep.events by a database that went back. Whether a person has looked since is not
    -- known: it does not keep the chain from being planned.
    put_back      boolean NOT NULL DEFAULT false,
    outgoing      uuid NOT NULL UNIQUE REFERENCES outgoing,
    created_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    CHECK ((state = 'open') = (ended_at IS NULL)),
    CHECK (set_aside <= (state IN ('failed', 'dropped'))),
    CHECK ((total IS NOT NULL) <= (state = 'final')),
    CHECK ((total IS NULL) = (remains IS NULL))
);
CREATE UNIQUE INDEX sweeps_open ON sweeps (chain_id, address, token_address) WHERE state = 'open';
CREATE INDEX sweeps_of_address ON sweeps (chain_id, address, token_address) WHERE state = 'final';
-- The last ones that say something of their treasury: of what was dropped to be planned anew there may be any number.
CREATE INDEX sweeps_to_treasury ON sweeps (chain_id, treasury, ended_at, id)
    WHERE state <> 'open' AND NOT (state = 'dropped' AND replan);
CREATE INDEX sweeps_ended ON sweeps (chain_id, ended_at, id)
    WHERE state <> 'open' AND NOT (state = 'dropped' AND replan) AND NOT put_back;
CREATE INDEX sweeps_open_to ON sweeps (chain_id, treasury) WHERE state = 'open';
CREATE INDEX sweeps_replanned ON sweeps (chain_id) WHERE state = 'open' AND replan;
CREATE INDEX sweeps_set_aside ON sweeps (chain_id, address) WHERE set_aside;

-- A sweep is over with its transaction, in the same transaction of Postgres: what it held is free at once, and never before. What
-- else is at its address, or came meanwhile, is looked at again.
CREATE FUNCTION end_sweep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sweeps SET state = NEW.state, ended_at = now(),
        set_aside = NEW.state = 'failed' OR NEW.state = 'dropped' AND (NOT replan OR unpaid)
    WHERE outgoing = NEW.id AND state = 'open';
    INSERT INTO sweep_candidates (chain_id, address) VALUES (NEW.chain_id, NEW.sender)
    -- A planner that has seen it under way, and forgets it for that, finds it changed.
    ON CONFLICT (chain_id, address) DO UPDATE SET look_at = 0;
    RETURN NULL;
END
$$;
CREATE TRIGGER outgoing_ends_sweep AFTER UPDATE OF state ON outgoing FOR EACH ROW
    WHEN (NEW.kind = 'sweep' AND NEW.state IN ('final', 'failed', 'dropped') AND NEW.state <> OLD.state)
    EXECUTE FUNCTION end_sweep();

-- Up to which block it was looked what has arrived, and when all addresses are looked at again, in Unix seconds: a backfill brings
-- money in blocks below.
CREATE TABLE sweep_chains (
    chain_id    bigint PRIMARY KEY,
    read_number bigint NOT NULL DEFAULT -1,
    all_at      bigint NOT NULL DEFAULT 0,
    -- Why nothing was planned in the last turn.
    waits       text
);

-- Addresses that may have something to sweep, and when they are looked at, in Unix seconds.
CREATE TABLE sweep_candidates (
    chain_id bigint NOT NULL,
    address  bytea NOT NULL CHECK (octet_length(address) = 20),
    look_at  bigint NOT NULL DEFAULT 0,
    -- When it was looked at last, the chain had less there than its sweep would have taken.
    missing  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (chain_id, address)
);
CREATE INDEX sweep_candidates_missing ON sweep_candidates (chain_id) WHERE missing;
CREATE INDEX sweep_candidates_due ON sweep_candidates (chain_id, look_at);

-- What is not swept until somebody releases it: all that these columns name, where null is any.
CREATE TABLE sweep_holds (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id      bigint,
    address       bytea CHECK (octet_length(address) = 20),
    -- Empty for the coin.
    token_address bytea CHECK (octet_length(token_address) IN (0, 20)),
    merchant_id   uuid REFERENCES merchants,
    reason        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (chain_id, address, token_address, merchant_id)
);

-- What has arrived of the coin since a block: asked each second of a chain that is swept. Its tokens may bring a hundred times
-- as much.
CREATE INDEX transfers_of_number ON transfers (chain_id, block_number) WHERE listed AND token_address IS NULL AND NOT removed;
-- Dust beside a payment, or at a static address, without what is not listed there.
CREATE INDEX transfers_dust_of_payment ON transfers (payment_id) WHERE listed AND below_minimum AND NOT removed;
CREATE INDEX transfers_dust_of_address ON transfers (deposit_address, block_timestamp)
    WHERE payment_id IS NULL AND listed AND below_minimum AND NOT removed;
-- What a sweep would move may have been taken back, and what was planned in a cheap hour may wait for the next one.
CREATE INDEX outgoing_without_funds ON outgoing (chain_id) WHERE told = 'insufficient funds';
CREATE INDEX outgoing_too_dear ON outgoing (chain_id, max_fee) WHERE told = 'too dear' AND state = 'queued';
-- What waits for a person.
CREATE INDEX outgoing_frozen ON outgoing (chain_id) WHERE frozen IS NOT NULL;

-- Who did what ------------------------------------------------------------------------------------------------------------------

-- Changes to keys, merchants and webhooks: whatever a thief would have to change to be paid or told. Triggers write them, whoever makes
-- the change and by what means, and no role has a right to this table. Who asked for a payment or a static address is in
-- payment_events and deposit_addresses.
CREATE TABLE changes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    merchant_id uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('key', 'merchant', 'webhook')),
    -- Its id.
    item        text NOT NULL,
    change      text NOT NULL,
    -- The id of the API key that asked; null for a command, or a role of its own accord.
    asked_by    text,
    -- As whom the change was made.
    login       text NOT NULL DEFAULT session_user
);
CREATE INDEX changes_of_merchant ON changes (merchant_id, id);

CREATE FUNCTION record_key_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO public.changes (merchant_id, kind, item, change) VALUES (OLD.merchant_id, 'key', OLD.id, 'removed');
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        change := 'created, may ' || NEW.scope;
    ELSE
        change := concat_ws(', ', 'taken from ' || nullif(OLD.merchant_id, NEW.merchant_id), 'was ' || nullif(OLD.id, NEW.id),
            CASE WHEN NEW.revoked_at IS DISTINCT FROM OLD.revoked_at THEN CASE WHEN NEW.revoked_at IS NULL THEN 'restored' ELSE 'revoked' END END,
            'ends ' || CASE WHEN NEW.expires_at IS DISTINCT FROM OLD.expires_at THEN coalesce(NEW.expires_at::text, 'never') END,
            'may ' || nullif(NEW.scope, OLD.scope));
    END IF;
    IF change <> '' THEN
        INSERT INTO public.changes (merchant_id, kind, item, change) VALUES (NEW.merchant_id, 'key', NEW.id, change);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER api_keys_changes AFTER INSERT OR UPDATE OF hash, merchant_id, scope, expires_at, revoked_at OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION record_key_change();

CREATE FUNCTION record_merchant_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change text;
BEGIN
    IF TG_OP = 'INSERT' THEN
        change := 'created as ' || NEW.name || coalesce(', account ' || NEW.xpub, '');
    ELSE
        change := concat_ws(', ', 'named ' || nullif(NEW.name, OLD.name),
            CASE WHEN NEW.xpub IS DISTINCT FROM OLD.xpub
                THEN format('account %s instead of %s', coalesce(NEW.xpub, 'cTrip''s'), coalesce(OLD.xpub, 'cTrip''s')) END,
            'underpaid tolerance ' || nullif(NEW.underpaid_tolerance_bps, OLD.underpaid_tolerance_bps),
            'overpaid tolerance ' || nullif(NEW.overpaid_tolerance_bps, OLD.overpaid_tolerance_bps),
            CASE WHEN NEW.accept_late <> OLD.accept_late THEN 'accept late ' || NEW.accept_late END,
            CASE WHEN NEW.metadata::text IS DISTINCT FROM OLD.metadata::text THEN 'metadata' END);
    END IF;
    IF change <> '' THEN
        INSERT INTO public.changes (merchant_id, kind, item, change) VALUES (NEW.id, 'merchant', NEW.id::text, change);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER merchants_changes AFTER INSERT OR UPDATE ON merchants FOR EACH ROW EXECUTE FUNCTION record_merchant_change();

CREATE FUNCTION record_webhook_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change text;
    asker  text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.deleted_at IS NULL THEN
            INSERT INTO public.changes (merchant_id, kind, item, change)
            VALUES (OLD.merchant_id, 'webhook', OLD.id::text, 'removed');
        END IF;
        RETURN NULL;
    END IF;
    asker := NEW.asked_by;
    IF TG_OP = 'INSERT' THEN
        change := 'created for ' || NEW.url;
    ELSIF NEW.deleted_at IS NOT NULL THEN
        change := CASE WHEN OLD.deleted_at IS NULL THEN 'deleted' ELSE '' END;
    ELSE
        change := concat_ws(', ', 'taken from ' || nullif(OLD.merchant_id, NEW.merchant_id),
            CASE WHEN NEW.url <> OLD.url THEN format('%s instead of %s', NEW.url, OLD.url) END,
            CASE WHEN NEW.events <> OLD.events THEN format('events %s', NEW.events) END,
            CASE WHEN NEW.secret <> OLD.secret THEN 'new secret' END,
            CASE WHEN NEW.enabled AND NOT OLD.enabled THEN 'enabled' END,
            CASE WHEN OLD.enabled AND NOT NEW.enabled THEN 'disabled: ' || NEW.disabled_reason END);
        IF OLD.enabled AND NEW.disabled_reason <> 'asked' THEN
            asker := NULL;
        END IF;
    END IF;
    IF change <> '' THEN
        INSERT INTO public.changes (merchant_id, kind, item, change, asked_by)
        VALUES (NEW.merchant_id, 'webhook', NEW.id::text, change, asker);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER webhook_endpoints_changes AFTER INSERT OR UPDATE OF merchant_id, url, events, secret, enabled, deleted_at OR DELETE
    ON webhook_endpoints
    FOR EACH ROW EXECUTE FUNCTION record_webhook_change();
