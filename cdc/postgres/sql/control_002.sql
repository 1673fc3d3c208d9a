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

INSERT INTO {schema}.schema_version (version) VALUES (2);
