-- Whether this database has been compared with the topics once, to their ends. Before that, addresses of another installation there
-- mean that this one is new to them, and it is refused.
ALTER TABLE installation ADD COLUMN compared boolean NOT NULL DEFAULT false;
UPDATE installation SET compared = EXISTS (SELECT FROM known_offsets);
