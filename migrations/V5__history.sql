-- What happened to payments and why, and metadata as it was written.

-- jsonb refuses U+0000, writes 1e308 out in 309 digits and sorts names; json keeps the text that the merchant sent.
ALTER TABLE payments ALTER COLUMN metadata TYPE json USING metadata::text::json;
ALTER TABLE merchants ALTER COLUMN metadata TYPE json USING metadata::text::json;
ALTER TABLE deposit_addresses ALTER COLUMN metadata TYPE json USING metadata::text::json;
