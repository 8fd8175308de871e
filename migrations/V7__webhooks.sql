-- Merchants' endpoints, what is on its way to them, and what came of it.

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
    -- Of the first failure since the last success; null while it is healthy.
    failing_since    timestamptz,
    -- It has asked for so much peace with Retry-After.
    paused_until     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    CHECK (enabled = (disabled_at IS NULL) AND enabled = (disabled_reason IS NULL)),
    CHECK ((old_secret IS NULL) = (old_secret_until IS NULL))
);
CREATE INDEX webhook_endpoints_of_merchant ON webhook_endpoints (merchant_id, created_at, id);

-- One event for one endpoint, kept for 90 days. A replay of the topic finds it here and adds nothing.
CREATE TABLE webhook_deliveries (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id  uuid NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
    event_id     text NOT NULL,
    type         text NOT NULL,
    -- Null for what is of no payment: a ping, an endpoint that was disabled.
    payment_id   uuid,
    sequence     bigint NOT NULL DEFAULT 0,
    -- As it is signed and sent, byte for byte.
    body         text NOT NULL,
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
    UNIQUE (endpoint_id, event_id)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt, id) WHERE state = 'pending';
-- Whether an earlier event of the payment is still on its way.
CREATE INDEX webhook_deliveries_in_order ON webhook_deliveries (endpoint_id, payment_id, sequence) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_claimed ON webhook_deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
-- GET /api/v1/webhooks/{id}/deliveries, newest first, and redelivery of those that failed.
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint_id, id);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (endpoint_id, id) WHERE state = 'failed';
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
    PRIMARY KEY (delivery_id, number)
);
