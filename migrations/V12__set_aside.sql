-- What a fault keeps from being processed, while all else of its partition goes on.

-- A chain whose records wait resumes at its own offset: `stage_offsets` has moved on with its neighbours'.
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
    PRIMARY KEY (stage, topic, partition, item)
);

-- A gap in a chain's records that past blocks close, which a backfill replays: the last block of those whose parents lead on from
-- the head. Null where none does.
ALTER TABLE chain_heads
    ADD COLUMN bridge_number bigint,
    ADD COLUMN bridge_hash   bytea;
