-- The control schema, version 5: a row that was set aside waits for another text, and is not tried again for every other
-- change. {schema} is the control schema's name.

-- name: create
ALTER TABLE {schema}.dead_letters
    ADD COLUMN source_hash bytea;                   -- of the text that could not be embedded, with the model's fingerprint

INSERT INTO {schema}.schema_version (version) VALUES (5);
