-- What the API asks of the tables beyond V1.

-- A key is taken before its payment is written, so that a request that finds it taken has used up no address.
ALTER TABLE idempotency_keys ALTER CONSTRAINT idempotency_keys_payment_id_fkey DEFERRABLE INITIALLY DEFERRED;

-- GET /api/v1/payments?external_id=; payments without one cost nothing here.
CREATE INDEX payments_by_external_id ON payments (merchant_id, external_id, id) WHERE external_id IS NOT NULL;
