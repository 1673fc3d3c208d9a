-- The control schema's tables as the consumer uses them.

-- name: slot_state
SELECT r.slot_name::text, r.plugin::text, r.active_pid, r.wal_status, r.restart_lsn, r.confirmed_flush_lsn,
       r.safe_wal_size, pg_catalog.pg_current_wal_lsn() - r.restart_lsn,
       pg_catalog.pg_current_wal_lsn() - r.confirmed_flush_lsn, r.database::text
FROM pg_catalog.pg_replication_slots AS r WHERE r.slot_name = %(slot)s

-- name: slot_row
SELECT epoch, publication_oid::bigint, system_identifier, timeline, ack_limit FROM {schema}.slots WHERE slot = %(slot)s

-- name: server
SELECT pg_catalog.current_setting('wal_level'),
       (SELECT pg_catalog.pg_encoding_to_char(d.encoding)::text FROM pg_catalog.pg_database AS d
        WHERE d.datname = pg_catalog.current_database()),
       pg_catalog.pg_is_in_recovery()

-- name: drop_slot
SELECT pg_catalog.pg_drop_replication_slot(%(slot)s)

-- name: take_over
-- A new epoch shuts the previous holder out: each of its writes checks the epoch of its pipeline's row.
WITH taken AS (
    INSERT INTO {schema}.slots AS s (slot, epoch, publication, publication_oid, system_identifier, timeline, instance)
    VALUES (%(slot)s, 1, %(publication)s, %(publication_oid)s, %(system)s, %(timeline)s, %(instance)s)
    ON CONFLICT (slot) DO UPDATE
    SET epoch = s.epoch + 1, publication = excluded.publication, publication_oid = excluded.publication_oid,
        system_identifier = excluded.system_identifier, timeline = excluded.timeline, instance = excluded.instance,
        updated_at = now()
    RETURNING epoch
)
SELECT epoch FROM taken

-- name: adopt
-- What the previous holder said about its pipelines is not true any more.
-- Positions beyond the end of the log are of another history: this database was restored from a dump.
UPDATE {schema}.progress AS g
SET epoch = %(epoch)s, state = 'waiting', reason = '',
    written_lsn = LEAST(g.written_lsn, pg_catalog.pg_current_wal_insert_lsn()),
    counted_lsn = CASE WHEN g.counted_lsn <= pg_catalog.pg_current_wal_insert_lsn() THEN g.counted_lsn ELSE '0/0' END
FROM {schema}.pipelines AS p WHERE p.id = g.pipeline_id AND p.slot = %(slot)s

-- name: reserve
UPDATE {schema}.slots SET ack_limit = %(limit)s, updated_at = now() WHERE slot = %(slot)s AND epoch = %(epoch)s
RETURNING epoch

-- name: reserve_any
UPDATE {schema}.slots SET ack_limit = %(limit)s WHERE slot = %(slot)s

-- name: release_leases
-- What a pipeline had leased of the durable queue when it last ended, here or elsewhere, is free again.
UPDATE {schema}.dirty AS d SET leased_until = NULL, lsn = LEAST(d.lsn, pg_catalog.pg_current_wal_insert_lsn())
WHERE d.pipeline_id = %(pipeline)s
  AND (d.leased_until IS NOT NULL OR d.lsn > pg_catalog.pg_current_wal_insert_lsn())

-- name: moved
UPDATE {schema}.pipelines SET storage = %(storage)s WHERE id = %(pipeline)s

-- name: publish_slot
UPDATE {schema}.slots SET state = %(state)s, reason = %(reason)s, updated_at = now()
WHERE slot = %(slot)s AND (state <> %(state)s OR reason <> %(reason)s)

-- name: need_reconcile
-- All pipelines of the slot, or one, are due for a scan from the start.
UPDATE {schema}.progress AS g
SET scan_reason = %(reason)s, scan_phase = 'rows', scan_cursor = NULL, scan_done = 0, scan_total = 0
FROM {schema}.pipelines AS p
WHERE p.id = g.pipeline_id AND p.slot = %(slot)s AND (%(pipeline)s::int IS NULL OR p.id = %(pipeline)s::int)

-- name: pipelines
SELECT p.id, p.name, p.source_schema::text, p.source_table::text, p.source_oid::bigint, p.key_columns, p.text_columns,
       p.target_schema::text, p.target_table::text, p.target_column::text, p.vector_type, p.model, p.dimension,
       p.fingerprint, p.shape, p.storage, p.mode, p.paused, p.attached,
       g.source_records, g.counted_lsn, g.count_snapshot::text, g.written_lsn, g.embeddings,
       g.scan_reason, g.scan_phase, g.scan_cursor, g.scan_done, g.scan_total, g.backfilled_at IS NOT NULL,
       (SELECT count(*) FROM {schema}.dead_letters AS d WHERE d.pipeline_id = p.id),
       pg_catalog.pg_current_wal_insert_lsn()::text,
       p.dimension IS NOT NULL
       AND pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', p.target_schema, p.target_table)) IS NULL,
       p.kind, p.value_type, p.revision,
       EXISTS (SELECT FROM {schema}.dirty AS d WHERE d.pipeline_id = p.id)
FROM {schema}.pipelines AS p JOIN {schema}.progress AS g ON g.pipeline_id = p.id
WHERE p.slot = %(slot)s
ORDER BY p.id

-- name: targets
SELECT target_schema::text, target_table::text FROM {schema}.pipelines

-- name: ancestors
-- What tables are partitions of, the topmost one last.
SELECT n.nspname::text, c.relname::text, an.nspname::text, ac.relname::text
FROM unnest(%(schemas)s::name[], %(tables)s::name[]) AS u (schema, name)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = u.schema
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = u.name
CROSS JOIN LATERAL pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS a (relid, depth)
JOIN pg_catalog.pg_class AS ac ON ac.oid = a.relid
JOIN pg_catalog.pg_namespace AS an ON an.oid = ac.relnamespace
WHERE ac.oid <> c.oid
ORDER BY a.depth

-- name: register
WITH p AS (
    INSERT INTO {schema}.pipelines AS p (name, slot, source_schema, source_table, target_schema, target_table,
                                         target_column, vector_type)
    VALUES (%(name)s, %(slot)s, %(source_schema)s, %(source_table)s, %(target_schema)s, %(target_table)s,
            %(target_column)s, %(vector_type)s)
    RETURNING id
)
INSERT INTO {schema}.progress (pipeline_id, scan_reason, scan_phase) SELECT id, 'first backfill', 'rows' FROM p
RETURNING pipeline_id

-- name: in_place
SELECT target_column::text FROM {schema}.pipelines
WHERE source_schema = %(schema)s AND source_table = %(table)s AND kind = 'default'

-- name: redefine
-- Whether a job's pipeline is to run is its job's to say, which may have been canceled this very moment.
UPDATE {schema}.pipelines
SET source_oid = %(oid)s, key_columns = %(key)s, text_columns = %(text)s, vector_type = %(vector_type)s,
    model = %(model)s, dimension = %(dimension)s, fingerprint = %(fingerprint)s, shape = %(shape)s,
    storage = %(storage)s, attached = attached OR kind = 'default'
WHERE id = %(pipeline)s

-- name: attach
UPDATE {schema}.pipelines SET attached = %(attached)s WHERE id = %(pipeline)s

-- name: set_epoch
UPDATE {schema}.progress AS g SET epoch = %(epoch)s
FROM {schema}.pipelines AS p JOIN {schema}.slots AS s ON s.slot = p.slot
WHERE p.id = %(pipeline)s AND g.pipeline_id = p.id AND s.epoch = %(epoch)s  -- nobody has taken over meanwhile

-- name: publish
-- What the pipeline says about itself; written only when it has changed, so that an idle consumer writes nothing.
UPDATE {schema}.progress
SET state = %(state)s, reason = %(reason)s, unprocessed = %(unprocessed)s, lag_seconds = %(lag)s, updated_at = now()
WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s

-- name: requests
SELECT r.id, r.pipeline_id FROM {schema}.requests AS r JOIN {schema}.pipelines AS p ON p.id = r.pipeline_id
WHERE p.slot = %(slot)s AND r.started_at IS NULL ORDER BY r.id

-- name: start_requests
UPDATE {schema}.requests SET started_at = now() WHERE id = ANY (%(ids)s)

-- name: finish_requests
UPDATE {schema}.requests SET finished_at = now()
WHERE pipeline_id = %(pipeline)s AND started_at IS NOT NULL AND finished_at IS NULL

-- name: restart_requests
-- A consumer that takes over takes up what its predecessor had begun.
UPDATE {schema}.requests AS r SET started_at = NULL
FROM {schema}.pipelines AS p
WHERE p.id = r.pipeline_id AND p.slot = %(slot)s AND r.finished_at IS NULL

-- name: indexes
-- The approximate indexes on a destination's vector column; an invalid one is the rest of a build that failed.
SELECT ic.relname::text, i.indisvalid
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND am.amname IN ('hnsw', 'ivfflat')

-- name: has_jobs
-- Whether anybody has ever asked for a job in this database's own tables of jobs.
SELECT EXISTS (SELECT FROM {schema}.embedding_generation_jobs) OR EXISTS (SELECT FROM {schema}.external_index_jobs)
       OR EXISTS (SELECT FROM {schema}.index_autotune_jobs)
