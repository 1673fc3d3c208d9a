-- The control schema, version 2: a pipeline has a kind. Jobs are pipelines too, each with a model of its own.

-- name: create
ALTER TABLE {schema}.pipelines
    ADD COLUMN kind       text NOT NULL DEFAULT 'default',  -- default, embedding_generation, completion …
    ADD COLUMN job        text,                             -- the id of the job that asked for it, for people
    ADD COLUMN runtime    text,                             -- what its model runs on; nothing secret stands here
    ADD COLUMN value_type text,                             -- completions: the type that answers are cast to
    ADD COLUMN revision   int NOT NULL DEFAULT 0;           -- rises when its definition changes or it is attached

CREATE OR REPLACE VIEW {schema}.pipeline_metrics AS
SELECT p.name AS pipeline, p.mode, 'table'::text AS source_type, p.model,
       CASE WHEN NOT p.attached THEN 'detached' WHEN p.paused THEN 'paused' ELSE g.state END AS status, g.reason,
       CASE WHEN p.mode = 'Disabled' THEN 0 ELSE g.unprocessed END AS unprocessed_rows,
       NULL::bigint AS scans_completed, g.source_records, g.embeddings, g.lag_seconds,
       (SELECT count(*) FROM {schema}.dead_letters d WHERE d.pipeline_id = p.id) AS errors,
       g.scan_done, g.scan_total, g.scan_reason, g.backfilled_at, g.updated_at, p.slot, p.kind, p.job
FROM {schema}.pipelines p JOIN {schema}.progress g ON g.pipeline_id = p.id;

-- True when everything committed at or before `target` is embedded or dead-lettered, and no scan is due. A job that has
-- failed keeps nobody waiting: it is reported where the job was asked for.
CREATE OR REPLACE FUNCTION {schema}.is_caught_up(target pg_lsn) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT EXISTS (SELECT FROM {schema}.slots s JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot
                   WHERE r.confirmed_flush_lsn >= target)
       AND NOT EXISTS (SELECT FROM {schema}.slots s JOIN pg_catalog.pg_replication_slots r ON r.slot_name = s.slot
                       WHERE r.confirmed_flush_lsn < target)
       AND NOT EXISTS (SELECT FROM {schema}.progress g JOIN {schema}.pipelines p ON p.id = g.pipeline_id
                       WHERE p.attached AND g.scan_reason <> 'asked for'
                         AND (p.kind = 'default' OR g.state <> 'error'))
       AND NOT EXISTS (SELECT FROM {schema}.dirty d JOIN {schema}.pipelines p ON p.id = d.pipeline_id
                       JOIN {schema}.progress g ON g.pipeline_id = p.id
                       WHERE d.lsn <= target AND p.attached AND (p.kind = 'default' OR g.state <> 'error'))
$$;

INSERT INTO {schema}.schema_version (version) VALUES (2);
