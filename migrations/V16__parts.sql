-- A block with more matches than a record holds comes in parts. The block of which parts have been credited and not yet the last one,
-- and the number of the last of them: a batch may end within a block, and the next part has to follow.
ALTER TABLE chain_heads ADD COLUMN open_hash bytea, ADD COLUMN open_part bigint;
-- The part that brought it: its transfers are told and become deposits part by part, whenever they are credited.
ALTER TABLE orphan_transfers ADD COLUMN part bigint NOT NULL DEFAULT 0;
