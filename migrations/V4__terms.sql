-- What a merchant puts up with, and static deposit addresses.

-- In base units of the payment's asset: by how much less it is still paid in full, by how much more nothing is off.
ALTER TABLE payments
    ADD COLUMN underpaid_tolerance numeric(78, 0) NOT NULL DEFAULT 0 CHECK (underpaid_tolerance >= 0),
    ADD COLUMN overpaid_tolerance  numeric(78, 0) NOT NULL DEFAULT 0 CHECK (overpaid_tolerance >= 0),
    -- What arrives after expires_at counts all the same.
    ADD COLUMN accept_late boolean NOT NULL DEFAULT false;

-- An address for a customer and not for an amount: every transfer to it of the coin or of a listed token, on any chain, is
-- a deposit. Its index is from the same sequence as the payments', so no two share an address.
CREATE TABLE deposit_addresses (
    id            uuid PRIMARY KEY,
    merchant_id   uuid NOT NULL REFERENCES merchants,
    external_id   text,
    metadata      jsonb,
    address       bytea NOT NULL UNIQUE CHECK (octet_length(address) = 20),
    xpub          text NOT NULL REFERENCES xpubs,
    address_index bigint NOT NULL,
    created_at    bigint NOT NULL,
    UNIQUE (xpub, address_index),
    UNIQUE (merchant_id, external_id)
);

-- A deposit is a payment that its transfer makes: the transfer's amount, never expiring, its id a UUIDv5 of the transfer's
-- identity. Deposits of one address share it.
ALTER TABLE payments
    ADD COLUMN deposit_address uuid REFERENCES deposit_addresses,
    DROP CONSTRAINT payments_address_key,
    DROP CONSTRAINT payments_xpub_address_index_key;
CREATE UNIQUE INDEX payments_address ON payments (address) WHERE deposit_address IS NULL;
CREATE UNIQUE INDEX payments_address_index ON payments (xpub, address_index) WHERE deposit_address IS NULL;
CREATE INDEX payments_of_deposit_address ON payments (deposit_address, created_at, id) WHERE deposit_address IS NOT NULL;

ALTER TABLE transfers
    -- What chains.yaml called the chain and the token when the transfer was seen, for people who have to explain it. Null
    -- where it names none, and in rows from before these columns.
    ADD COLUMN chain    text,
    ADD COLUMN token    text,
    ADD COLUMN decimals smallint,
    -- An unlisted token at a static address makes no deposit: its transfer is kept with the address alone.
    ADD COLUMN deposit_address uuid REFERENCES deposit_addresses,
    ALTER COLUMN payment_id DROP NOT NULL,
    ADD CONSTRAINT transfers_have_an_owner CHECK (payment_id IS NOT NULL OR (deposit_address IS NOT NULL AND NOT listed));
CREATE INDEX transfers_of_deposit_address ON transfers (deposit_address) WHERE deposit_address IS NOT NULL;
-- Anyone can send a flood of an unlisted token: whoever loads a payment does not wade through it. What is credited is listed,
-- also if chains.yaml has dropped the token since.
UPDATE transfers SET listed = true WHERE credited;
DROP INDEX transfers_of_payment;
CREATE INDEX transfers_of_payment ON transfers (payment_id) WHERE listed;
CREATE INDEX transfers_of_payment_unlisted ON transfers (payment_id) WHERE NOT listed;

-- A static address has an intent too, under its own id.
ALTER TABLE unacknowledged_intents DROP CONSTRAINT unacknowledged_intents_payment_id_fkey;
