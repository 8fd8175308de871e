-- A list of payments has no deposits, of which there may be many more: its indexes leave them out as well.

DROP INDEX payments_of_merchant;
DROP INDEX payments_by_status;
DROP INDEX payments_by_chain;
DROP INDEX payments_by_token;
CREATE INDEX payments_of_merchant ON payments (merchant_id, created_at, id) WHERE deposit_address IS NULL;
CREATE INDEX payments_by_status ON payments (merchant_id, status, created_at, id) WHERE deposit_address IS NULL;
CREATE INDEX payments_by_chain ON payments (merchant_id, chain_id, created_at, id) WHERE deposit_address IS NULL;
CREATE INDEX payments_by_token ON payments (merchant_id, token, created_at, id)
    WHERE deposit_address IS NULL AND token IS NOT NULL;
