-- Merchants with settings of their own, keys with scopes and an end, and what lists and housekeeping ask for.

ALTER TABLE merchants
    -- The account that this merchant's addresses are derived from; null is cTrip's own.
    ADD COLUMN xpub                    text REFERENCES xpubs,
    -- What its payments are made with unless a request says otherwise: hundredths of a percent of the amount.
    ADD COLUMN underpaid_tolerance_bps integer NOT NULL DEFAULT 0 CHECK (underpaid_tolerance_bps BETWEEN 0 AND 10000),
    ADD COLUMN overpaid_tolerance_bps  integer NOT NULL DEFAULT 0 CHECK (overpaid_tolerance_bps BETWEEN 0 AND 10000),
    ADD COLUMN accept_late             boolean NOT NULL DEFAULT false,
    ADD COLUMN metadata                jsonb;

-- A key is looked up by its id, the first 8 bytes of its hash, and the whole hash is compared in constant time.
ALTER TABLE api_keys
    ADD COLUMN id           text GENERATED ALWAYS AS (encode(substring(hash FROM 1 FOR 8), 'hex')) STORED UNIQUE,
    -- write includes read.
    ADD COLUMN scope        text NOT NULL DEFAULT 'write' CHECK (scope IN ('read', 'write')),
    -- Requests a second; null is the API's default.
    ADD COLUMN rate_limit   integer CHECK (rate_limit > 0),
    -- A key that was replaced works until then.
    ADD COLUMN expires_at   timestamptz,
    -- Written now and then, not by each request.
    ADD COLUMN last_used_at timestamptz;
CREATE INDEX api_keys_of_merchant ON api_keys (merchant_id);

-- GET /api/v1/payments, newest first. By creation and not by id: not every id tells its time. A list filtered by something
-- rare among a merchant's many payments is served by an index of its own; an address is unique anyway.
DROP INDEX payments_of_merchant;
DROP INDEX payments_by_external_id;
CREATE INDEX payments_of_merchant ON payments (merchant_id, created_at, id);
CREATE INDEX payments_by_status ON payments (merchant_id, status, created_at, id);
CREATE INDEX payments_by_chain ON payments (merchant_id, chain_id, created_at, id);
CREATE INDEX payments_by_token ON payments (merchant_id, token, created_at, id) WHERE token IS NOT NULL;
CREATE INDEX payments_by_external_id ON payments (merchant_id, external_id, created_at, id) WHERE external_id IS NOT NULL;

-- A key of a batch as a whole names no payment; its payments have keys of their own, derived from it.
ALTER TABLE idempotency_keys ALTER COLUMN payment_id DROP NOT NULL;
-- Housekeeping takes the oldest.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
