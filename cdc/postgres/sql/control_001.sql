-- The control schema, version 1. {schema} is the control schema's name; WALVEC_SCHEMA sets it.

-- name: create
-- One row per migration that has been applied.
CREATE TABLE {schema}.schema_version (
    version    int PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row per replication slot: who consumes it, and under which epoch. A write of an older epoch is refused (fencing).
CREATE TABLE {schema}.slots (
    slot              name PRIMARY KEY,
    epoch             bigint NOT NULL DEFAULT 0,
    publication       name NOT NULL,
    publication_oid   oid,
    system_identifier text,
    timeline          int,
    ack_limit         pg_lsn,          -- no consumer of ours acknowledged beyond this: a slot beyond it was moved by others
    state             text NOT NULL DEFAULT 'connecting',
    reason            text NOT NULL DEFAULT '',
    instance          text,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- One row per pipeline: what is read, and where the vectors go.
CREATE TABLE {schema}.pipelines (
    id             int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL UNIQUE,
    slot           name NOT NULL,
    source_schema  name NOT NULL,
    source_table   name NOT NULL,
    source_oid     oid,
    key_columns    text[] NOT NULL DEFAULT '{{}}',
    text_columns   text[] NOT NULL DEFAULT '{{}}',
    target_schema  name NOT NULL,
    target_table   name NOT NULL,      -- the embeddings table, or for in-place pipelines the table of hashes
    target_column  name,               -- in-place pipelines: the source table's own vector column
    vector_type    text NOT NULL DEFAULT 'vector',
    model          text NOT NULL DEFAULT '',
    dimension      int,
    fingerprint    bytea,
    shape          text,               -- digests of the source's definition and storage when it was last looked at:
    storage        text,               -- where they differ, rows may have changed with no event
    mode           text NOT NULL DEFAULT 'Background' CHECK (mode IN ('Live', 'Background', 'Disabled')),
    paused         boolean NOT NULL DEFAULT false,
    attached       boolean NOT NULL DEFAULT true,   -- false: its table left the publication
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- The moving part of each pipeline, apart so that the definition above stays cold. Counts are exact at `counted_lsn`.
CREATE TABLE {schema}.progress (
    pipeline_id    int PRIMARY KEY REFERENCES {schema}.pipelines ON DELETE CASCADE,
    epoch          bigint NOT NULL DEFAULT 0,
    state          text NOT NULL DEFAULT 'waiting',
    reason         text NOT NULL DEFAULT '',
    embeddings     bigint NOT NULL DEFAULT 0,
    written_lsn    pg_lsn NOT NULL DEFAULT '0/0',   -- the newest commit that has been written back
    source_records bigint NOT NULL DEFAULT 0,
    counted_lsn    pg_lsn NOT NULL DEFAULT '0/0',
    count_snapshot pg_snapshot,                     -- commits that are visible in it are in source_records already
    unprocessed    bigint NOT NULL DEFAULT 0,
    lag_seconds    double precision NOT NULL DEFAULT 0,
    scan_reason    text,                            -- why a reconcile is due or under way; NULL: none
    scan_phase     text,                            -- 'rows' or 'orphans'
    scan_cursor    text[],                          -- the last key that is done
    scan_done      bigint NOT NULL DEFAULT 0,
    scan_total     bigint NOT NULL DEFAULT 0,
    backfilled_at  timestamptz,                     -- when the first reconcile was complete
    updated_at     timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- The durable queue: keys that are dirty, one row each. Logged, and never in the publication.
CREATE TABLE {schema}.dirty (
    pipeline_id  int NOT NULL REFERENCES {schema}.pipelines ON DELETE CASCADE,
    key          text NOT NULL,                     -- the key's cells in the server's text form, as a JSON array
    lsn          pg_lsn NOT NULL,                   -- the newest commit it stands for
    queued_at    timestamptz NOT NULL DEFAULT now(),
    leased_until timestamptz,
    PRIMARY KEY (pipeline_id, key)
);

-- Rows that could not be embedded, with the reason.
CREATE TABLE {schema}.dead_letters (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id int NOT NULL REFERENCES {schema}.pipelines ON DELETE CASCADE,
    key         jsonb NOT NULL,                     -- an object: column name to value, in the server's text form
    cells       text NOT NULL,                      -- the same as in the queue's `key`
    step        text NOT NULL,
    category    text NOT NULL,
    message     text NOT NULL,
    attempts    int NOT NULL,
    first_seen  timestamptz NOT NULL DEFAULT now(),
    last_seen   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (pipeline_id, cells)
);

-- What people asked for by command: the consumer takes it up and says how it ended.
CREATE TABLE {schema}.requests (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id  int NOT NULL REFERENCES {schema}.pipelines ON DELETE CASCADE,
    kind         text NOT NULL CHECK (kind IN ('reconcile')),
    requested_at timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);

-- An array of these carries plain real[] vectors in binary, one per row, where pgvector is missing.
CREATE DOMAIN {schema}.real_vector AS real[];

CREATE VIEW {schema}.pipeline_errors AS
SELECT d.id, p.name AS pipeline, d.key, d.step, d.category, d.message, d.attempts, d.first_seen, d.last_seen
FROM {schema}.dead_letters d JOIN {schema}.pipelines p ON p.id = d.pipeline_id;

CREATE VIEW {schema}.pipeline_metrics AS
SELECT p.name AS pipeline, p.mode, 'table'::text AS source_type, p.model,
       CASE WHEN NOT p.attached THEN 'detached' WHEN p.paused THEN 'paused' ELSE g.state END AS status, g.reason,
       CASE WHEN p.mode = 'Disabled' THEN 0 ELSE g.unprocessed END AS unprocessed_rows,
       NULL::bigint AS scans_completed, g.source_records, g.embeddings, g.lag_seconds,
       (SELECT count(*) FROM {schema}.dead_letters d WHERE d.pipeline_id = p.id) AS errors,
       g.scan_done, g.scan_total, g.scan_reason, g.backfilled_at, g.updated_at, p.slot
FROM {schema}.pipelines p JOIN {schema}.progress g ON g.pipeline_id = p.id;

CREATE VIEW {schema}.knowledge_base_stats AS
SELECT pipeline AS "knowledge base", mode AS "auto processing", unprocessed_rows AS "table: unprocessed rows",
       scans_completed AS "volume: scans completed", source_records AS "count(source records)",
       embeddings AS "count(embeddings)"
FROM {schema}.pipeline_metrics
ORDER BY pipeline;

CREATE VIEW {schema}.kbstat AS SELECT * FROM {schema}.knowledge_base_stats;

-- True when everything committed at or before `target` is embedded or dead-lettered, and no scan is due.
CREATE FUNCTION {schema}.is_caught_up(target pg_lsn) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT EXISTS (SELECT FROM {schema}.slots s JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot
                   WHERE r.confirmed_flush_lsn >= target)
       AND NOT EXISTS (SELECT FROM {schema}.slots s JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot
                       WHERE r.confirmed_flush_lsn < target)
       AND NOT EXISTS (SELECT FROM {schema}.progress g JOIN {schema}.pipelines p ON p.id = g.pipeline_id
                       WHERE p.attached AND g.scan_reason <> 'asked for')
       AND NOT EXISTS (SELECT FROM {schema}.dirty d JOIN {schema}.pipelines p ON p.id = d.pipeline_id
                       WHERE d.lsn <= target AND p.attached)
$$;

-- The SQL face of `walvec sync`: call it after COMMIT; true once that commit's rows are embedded.
-- VOLATILE in a loop: each statement of a READ COMMITTED function takes a new snapshot.
CREATE FUNCTION {schema}.wait(timeout interval DEFAULT '30 s') RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    -- A commit with synchronous_commit = off need not be flushed yet; the insert position covers it.
    target   pg_catalog.pg_lsn := CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off'
                                       THEN pg_catalog.pg_current_wal_insert_lsn()
                                       ELSE pg_catalog.pg_current_wal_flush_lsn() END;
    deadline timestamptz := pg_catalog.clock_timestamp() + timeout;
    pause    double precision := 0.0005;
BEGIN
    LOOP
        IF {schema}.is_caught_up(target) THEN
            RETURN true;
        END IF;
        IF pg_catalog.clock_timestamp() >= deadline THEN
            RETURN false;
        END IF;
        PERFORM pg_catalog.pg_sleep(pause);
        pause := LEAST(pause * 1.5, 0.05);
    END LOOP;
END
$$;

REVOKE ALL ON {schema}.dead_letters FROM PUBLIC;
INSERT INTO {schema}.schema_version (version) VALUES (1);
