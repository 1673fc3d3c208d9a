-- Waiting until all that was committed before a call is embedded. {schema} is the control schema.

-- name: mark
-- A message of our own in the WAL: every commit before this call stands before its position. The commit flushes it,
-- and it gives an idle consumer something to acknowledge.
SELECT pg_logical_emit_message(true, 'walvec', 'sync')::text, clock_timestamp()

-- name: settled
-- Whether the slot is acknowledged up to a position, and nothing that is older waits in the durable queue. Pipelines in
-- error are not waited for: they are reported.
SELECT EXISTS (SELECT FROM pg_replication_slots r
               WHERE r.slot_name = %(slot)s AND r.confirmed_flush_lsn >= %(target)s::pg_lsn)
   AND NOT EXISTS (SELECT FROM {schema}.dirty d
                   JOIN {schema}.pipelines p ON p.id = d.pipeline_id
                   JOIN {schema}.progress g ON g.pipeline_id = p.id
                   WHERE d.lsn <= %(target)s::pg_lsn AND p.slot = %(slot)s AND p.attached AND g.state <> 'error')

-- name: waits
-- What is still to be waited for: (pipeline or table, why, whether it is an error that nobody should wait for).
-- Destinations are no sources.
SELECT coalesce(p.name, w.s || '.' || w.t),
       CASE WHEN p.id IS NULL THEN 'it has no pipeline yet'
            WHEN g.state = 'error' THEN g.reason
            WHEN g.scan_reason IS NOT NULL OR g.backfilled_at IS NULL THEN 'its backfill is under way'
            ELSE 'a requested run is under way' END,
       coalesce(g.state = 'error', false)
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w(s, t)
LEFT JOIN {schema}.pipelines p
       ON p.source_schema = w.s AND p.source_table = w.t AND p.attached AND p.slot = %(slot)s
LEFT JOIN {schema}.progress g ON g.pipeline_id = p.id
WHERE (p.id IS NULL AND to_regclass(format('%%I.%%I', w.s, w.t)) IS NOT NULL
       AND NOT EXISTS (SELECT FROM {schema}.pipelines d WHERE d.target_schema = w.s AND d.target_table = w.t))
   OR g.state = 'error' OR g.scan_reason IS NOT NULL OR (p.id IS NOT NULL AND g.backfilled_at IS NULL)
   OR EXISTS (SELECT FROM {schema}.requests q
              WHERE q.pipeline_id = p.id AND q.requested_at <= %(since)s AND q.finished_at IS NULL)

-- name: slot_held
SELECT active FROM pg_replication_slots WHERE slot_name = %s

-- name: pending
-- Whether a pipeline still shows rows to do.
SELECT EXISTS (SELECT FROM {schema}.progress g JOIN {schema}.pipelines p ON p.id = g.pipeline_id
               WHERE p.slot = %(slot)s AND p.attached AND NOT p.paused AND g.unprocessed > 0 AND g.state <> 'error')
