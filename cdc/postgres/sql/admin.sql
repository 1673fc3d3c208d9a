-- What the commands read and change. {schema} is the control schema; the search_path is empty.

-- name: pipelines
SELECT name FROM {schema}.pipelines ORDER BY name

-- name: known_tables
-- Tables that a pipeline reads or writes.
SELECT source_schema || '.' || source_table AS table FROM {schema}.pipelines
UNION SELECT target_schema || '.' || target_table FROM {schema}.pipelines

-- name: pipeline_metrics
-- The kbstat table and what stands beside it: the pipelines of one slot, then those of jobs, whose slots are their own.
SELECT m.pipeline, m.mode, m.source_type, m.model, m.status, m.reason, m.unprocessed_rows, m.scans_completed,
       m.source_records, m.embeddings, m.lag_seconds, m.errors, m.scan_done, m.scan_total, m.slot,
       EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = m.slot AND r.active) AS is_read
FROM {schema}.pipeline_metrics m WHERE m.slot = %(slot)s OR m.kind <> 'default'
ORDER BY m.slot <> %(slot)s, m.pipeline

-- name: slot
-- One slot as the server and the control schema see it. Parameters: the publication, the slot.
SELECT to_jsonb(r) AS slot, s.state, s.reason,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), r.confirmed_flush_lsn) END::bigint AS lag_bytes,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), r.restart_lsn) END::bigint AS retained_bytes,
       EXISTS (SELECT FROM pg_publication WHERE pubname = %s) AS published
FROM (SELECT %s::name AS name) AS wanted
LEFT JOIN pg_replication_slots r ON r.slot_name = wanted.name
LEFT JOIN {schema}.slots s ON s.slot = wanted.name

-- name: set_paused
UPDATE {schema}.pipelines SET paused = %s WHERE name = %s AND paused IS DISTINCT FROM %s

-- name: wake
-- Tells the consumer, through the WAL, that the control schema changed.
SELECT pg_logical_emit_message(true, 'walvec', 'wake')

-- name: errors
SELECT id, pipeline, key, step, category, message, attempts, first_seen, last_seen
FROM {schema}.pipeline_errors WHERE %s::text IS NULL OR pipeline = %s
ORDER BY last_seen, id

-- name: requeue
-- Dead letters go back to the durable queue, as of now. A key that is queued already keeps its newer position.
WITH gone AS (
    DELETE FROM {schema}.dead_letters
    WHERE pipeline_id IN (SELECT id FROM {schema}.pipelines WHERE %s::text IS NULL OR name = %s)
    RETURNING pipeline_id, cells
), queued AS (
    INSERT INTO {schema}.dirty AS d (pipeline_id, key, lsn)
    SELECT pipeline_id, cells, pg_current_wal_insert_lsn() FROM gone
    ON CONFLICT (pipeline_id, key) DO UPDATE
    SET lsn = greatest(d.lsn, excluded.lsn), queued_at = excluded.queued_at, leased_until = NULL
    RETURNING 1
)
SELECT count(*) FROM queued

-- name: clear
DELETE FROM {schema}.dead_letters
WHERE pipeline_id IN (SELECT id FROM {schema}.pipelines WHERE %s::text IS NULL OR name = %s)

-- name: drop_plan
-- What is there to drop. Parameters: slot, publication, schema.
SELECT (SELECT jsonb_build_object('active_pid', r.active_pid, 'database', r.database, 'here', r.database = current_database(),
                                  'bytes', pg_wal_lsn_diff(pg_current_wal_lsn(), r.restart_lsn)::bigint)
        FROM pg_replication_slots r WHERE r.slot_name = %s) AS slot,
       (SELECT jsonb_build_object('owner', pg_get_userbyid(p.pubowner),
                                  'mine', pg_has_role(p.pubowner, 'USAGE'))
        FROM pg_publication p WHERE p.pubname = %s) AS publication,
       (SELECT jsonb_build_object('owner', pg_get_userbyid(n.nspowner), 'mine', pg_has_role(n.nspowner, 'USAGE'))
        FROM pg_namespace n WHERE n.nspname = %s) AS schema

-- name: drop_jobs
-- What jobs use in this database beside it: slots, and publications.
SELECT 'slot' AS what, r.slot_name::text AS name, pg_wal_lsn_diff(pg_current_wal_lsn(), r.restart_lsn)::bigint AS bytes,
       r.active_pid, true AS mine
FROM pg_replication_slots r
WHERE r.database = current_database() AND NOT r.temporary AND r.slot_name ~ '^walvec_(jobs|index)_'
UNION ALL
SELECT 'publication', p.pubname::text, 0, NULL, pg_has_role(p.pubowner, 'USAGE')
FROM pg_publication p WHERE p.pubname ~ '^walvec_(jobs(_|$)|index_|books$)'
ORDER BY 1 DESC, 2

-- name: ask_reconcile
INSERT INTO {schema}.requests (pipeline_id, kind) SELECT id, 'reconcile' FROM {schema}.pipelines WHERE name = ANY (%s)
RETURNING id

-- name: requests
SELECT p.name, g.scan_done, g.scan_total, r.finished_at IS NOT NULL AS finished, g.scan_reason IS NULL AS settled
FROM {schema}.requests AS r
JOIN {schema}.pipelines AS p ON p.id = r.pipeline_id
JOIN {schema}.progress AS g ON g.pipeline_id = p.id
WHERE r.id = ANY (%s)

-- name: consumers
-- Whether somebody holds the slot of each of these pipelines.
SELECT bool_and(r.active_pid IS NOT NULL) AS active
FROM {schema}.pipelines AS p LEFT JOIN pg_catalog.pg_replication_slots AS r ON r.slot_name = p.slot
WHERE p.name = ANY (%s)

-- name: idle_jobs
-- Those of these pipelines that a job asked for and nobody runs.
SELECT p.name FROM {schema}.pipelines AS p LEFT JOIN pg_catalog.pg_replication_slots AS r ON r.slot_name = p.slot
WHERE p.name = ANY (%s) AND p.kind <> 'default' AND r.active_pid IS NULL
ORDER BY p.name
