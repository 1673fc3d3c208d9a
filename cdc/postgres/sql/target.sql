-- Destinations: the embeddings table of a pipeline, and the table of hashes of an in-place one. {target} is that table,
-- {rows} the source with its text and hash (expressions.rows), {keys} the key columns. Arrays of keys arrive as array
-- literals in the server's own text form, vectors and hashes as binary arrays.
--
-- Plans are made once and kept (cdc.postgres.pool), perhaps while the tables are empty: so what is looked up by key is a
-- lateral sub-select with OFFSET 0, which leaves the planner one way, through the index, whatever it believes of sizes.
-- UPDATE and DELETE cannot be joined so: they find their rows by place (table and ctid), which such a sub-select gives.
-- A row that another transaction moves meanwhile is not found: the caller notices by the count, and reads again.

-- name: create_embeddings
CREATE TABLE IF NOT EXISTS {target} (
    {key_definitions},
    chunk int NOT NULL DEFAULT 0,
    embedding {vector_type},
    source_hash bytea,
    source_lsn pg_lsn,
    model text,
    embedded_at timestamptz,
    PRIMARY KEY ({keys}, chunk)
)

-- name: create_hashes
-- In-place pipelines keep hash and version here, the vector in the source's own column.
CREATE TABLE IF NOT EXISTS {target} (
    {key_definitions},
    chunk int NOT NULL DEFAULT 0,
    source_hash bytea,
    source_lsn pg_lsn,
    model text,
    embedded_at timestamptz,
    PRIMARY KEY ({keys}, chunk)
)

-- name: write_versioned
-- Rows whose text came with the WAL: the commit's position decides, so a replay or a late finisher never goes backwards.
-- A position beyond the end of the log is of another history, from before a dump and restore, and decides nothing.
-- One statement is one transaction: fence, vectors, removals, queue, dead letters, counts and checkpoint.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM {schema}.progress WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s FOR NO KEY UPDATE
), written AS (
    INSERT INTO {target} AS e ({keys}, chunk, embedding, source_hash, source_lsn, model, embedded_at)
    SELECT {distinct} {u_keys}, 0, u.walvec_vector, u.walvec_hash, u.walvec_lsn, %(model)s, clock_timestamp()
    FROM fence, unnest({up_arrays}, {vectors}, %(hashes)s::bytea[], %(lsns)s::pg_lsn[])
         AS u ({keys}, walvec_vector, walvec_hash, walvec_lsn)
    {newest}
    ON CONFLICT ({keys}, chunk) DO UPDATE
    SET embedding = excluded.embedding, source_hash = excluded.source_hash, source_lsn = excluded.source_lsn,
        model = excluded.model, embedded_at = excluded.embedded_at
    WHERE e.source_lsn IS NULL OR e.source_lsn <= excluded.source_lsn
       OR e.source_lsn > pg_catalog.pg_current_wal_insert_lsn()
    RETURNING (e.xmax = 0) AS fresh
), removed AS (
    DELETE FROM {target} AS e
    USING fence, unnest({gone_arrays}, %(gone_lsns)s::pg_lsn[]) AS u ({keys}, walvec_lsn)
    CROSS JOIN LATERAL (SELECT e.tableoid AS part, e.ctid AS place FROM {target} AS e WHERE {e_is_u} OFFSET 0) AS q
    WHERE e.tableoid = q.part AND e.ctid = q.place AND (e.source_lsn IS NULL OR e.source_lsn <= u.walvec_lsn
                        OR e.source_lsn > pg_catalog.pg_current_wal_insert_lsn())
    RETURNING 1
), {bookkeeping}

-- name: write_guarded
-- Rows whose text was read from the table: written only where the source still has the very text that was embedded.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM {schema}.progress WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s FOR NO KEY UPDATE
), written AS (
    INSERT INTO {target} AS e ({keys}, chunk, embedding, source_hash, source_lsn, model, embedded_at)
    SELECT {distinct} {u_keys}, 0, u.walvec_vector, u.walvec_hash, u.walvec_lsn, %(model)s, clock_timestamp()
    FROM fence, unnest({up_arrays}, {vectors}, %(hashes)s::bytea[], %(lsns)s::pg_lsn[])
         AS u ({keys}, walvec_vector, walvec_hash, walvec_lsn)
    CROSS JOIN LATERAL (SELECT r.walvec_hash AS now FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
    WHERE r.now = u.walvec_hash
    {newest}
    ON CONFLICT ({keys}, chunk) DO UPDATE
    SET embedding = excluded.embedding, source_hash = excluded.source_hash, source_lsn = excluded.source_lsn,
        model = excluded.model, embedded_at = excluded.embedded_at
    WHERE e.source_lsn IS NULL OR e.source_lsn <= excluded.source_lsn
       OR e.source_lsn > pg_catalog.pg_current_wal_insert_lsn()
    RETURNING (e.xmax = 0) AS fresh
), removed AS (
    DELETE FROM {target} AS e
    USING fence, unnest({gone_arrays}) AS u ({keys})
    CROSS JOIN LATERAL (SELECT e.tableoid AS part, e.ctid AS place FROM {target} AS e WHERE {e_is_u} OFFSET 0) AS q
    WHERE e.tableoid = q.part AND e.ctid = q.place
      AND (%(force)s OR NOT EXISTS (SELECT FROM (SELECT r.walvec_hash FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
                                    WHERE r.walvec_hash IS NOT NULL))
    RETURNING 1
), {bookkeeping}

-- name: write_in_place
-- The vector or answer goes into the source row itself, where its text is still the one that it was made of. The
-- message is the transaction's first change, so that the stream can tell this pipeline's updates from all others.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM {schema}.progress WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s FOR NO KEY UPDATE
), mark AS MATERIALIZED (
    SELECT pg_catalog.pg_logical_emit_message(true, 'walvec', 'own ' || %(pipeline)s) FROM fence
), stored AS (
    UPDATE {source} AS s SET {column} = u.walvec_vector{cast}
    FROM mark, unnest({up_arrays}, {vectors}, %(hashes)s::bytea[], %(lsns)s::pg_lsn[])
         AS u ({keys}, walvec_vector, walvec_hash, walvec_lsn)
    CROSS JOIN LATERAL (SELECT r.walvec_hash AS now FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
    CROSS JOIN LATERAL (SELECT s.tableoid AS part, s.ctid AS place FROM {source} AS s WHERE {s_is_u} OFFSET 0) AS q
    WHERE s.tableoid = q.part AND s.ctid = q.place AND r.now = u.walvec_hash
    RETURNING {u_keys}, u.walvec_hash, u.walvec_lsn
), written AS (
    INSERT INTO {target} AS e ({keys}, chunk, source_hash, source_lsn, model, embedded_at)
    SELECT {stored_keys}, 0, stored.walvec_hash, stored.walvec_lsn, %(model)s, clock_timestamp() FROM stored
    ON CONFLICT ({keys}, chunk) DO UPDATE
    SET source_hash = excluded.source_hash, source_lsn = excluded.source_lsn,
        model = excluded.model, embedded_at = excluded.embedded_at
    RETURNING (e.xmax = 0) AS fresh
), blanked AS (
    UPDATE {source} AS s SET {column} = NULL
    FROM mark, unnest({gone_arrays}) AS u ({keys})
    CROSS JOIN LATERAL (SELECT r.walvec_hash AS now FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
    CROSS JOIN LATERAL (SELECT s.tableoid AS part, s.ctid AS place FROM {source} AS s WHERE {s_is_u} OFFSET 0) AS q
    WHERE s.tableoid = q.part AND s.ctid = q.place AND (%(force)s OR r.now IS NULL) AND s.{column} IS NOT NULL
    RETURNING 1
), removed AS (
    DELETE FROM {target} AS e
    USING fence, unnest({gone_arrays}) AS u ({keys})
    CROSS JOIN LATERAL (SELECT e.tableoid AS part, e.ctid AS place FROM {target} AS e WHERE {e_is_u} OFFSET 0) AS q
    WHERE e.tableoid = q.part AND e.ctid = q.place
      AND (%(force)s OR NOT EXISTS (SELECT FROM (SELECT r.walvec_hash FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
                                    WHERE r.walvec_hash IS NOT NULL))
    RETURNING 1
), {bookkeeping}

-- name: bookkeeping
-- The tail of every write: what was durably queued or dead-lettered and is done now, and the counts.
dequeued AS (
    DELETE FROM {schema}.dirty AS d
    USING fence, unnest(%(done_keys)s::text[], %(done_lsns)s::pg_lsn[]) AS u (key, lsn)
    CROSS JOIN LATERAL (SELECT q.ctid AS place FROM {schema}.dirty AS q
                        WHERE q.pipeline_id = %(pipeline)s AND q.key = u.key OFFSET 0) AS q
    WHERE d.ctid = q.place AND d.lsn <= u.lsn
    RETURNING 1
), mended AS (
    DELETE FROM {schema}.dead_letters AS d
    USING fence
    WHERE d.pipeline_id = %(pipeline)s AND d.cells = ANY (%(mended)s::text[])
    RETURNING 1
), buried AS (
    INSERT INTO {schema}.dead_letters AS d (pipeline_id, key, cells, step, category, message, attempts, source_hash)
    SELECT %(pipeline)s, u.key, u.cells, u.step, u.category, u.message, u.attempts, u.hash
    FROM fence, unnest(%(dead_keys)s::jsonb[], %(dead_cells)s::text[], %(dead_steps)s::text[],
                       %(dead_categories)s::text[], %(dead_messages)s::text[], %(dead_attempts)s::int[],
                       %(dead_hashes)s::bytea[])
         AS u (key, cells, step, category, message, attempts, hash)
    ON CONFLICT (pipeline_id, cells) DO UPDATE
    SET step = excluded.step, category = excluded.category, message = excluded.message,
        attempts = d.attempts + excluded.attempts, last_seen = now(), source_hash = excluded.source_hash
    RETURNING 1
), counted AS (
    UPDATE {schema}.progress
    SET embeddings = embeddings + (SELECT count(*) FILTER (WHERE fresh) FROM written) - (SELECT count(*) FROM removed),
        written_lsn = GREATEST(written_lsn, %(written_lsn)s::pg_lsn),
        source_records = %(records)s, counted_lsn = %(counted_lsn)s::pg_lsn,
        count_snapshot = %(count_snapshot)s::pg_snapshot, updated_at = now()
    WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s AND EXISTS (SELECT FROM fence)
    RETURNING embeddings
)
SELECT (SELECT embeddings FROM counted), (SELECT count(*) FROM written), (SELECT count(*) FROM removed),
       (SELECT count(*) FROM dequeued)

-- name: refused
-- Which of these keys do not hold the hash that was to be written: a newer version stands there, or the row changed.
SELECT u.walvec_ord - 1
FROM unnest({up_arrays}, %(hashes)s::bytea[]) WITH ORDINALITY
     AS u ({keys}, walvec_hash, walvec_ord)
LEFT JOIN LATERAL (SELECT e.source_hash FROM {target} AS e WHERE {e_is_u} AND e.chunk = 0 OFFSET 0) AS e ON true
WHERE e.source_hash IS DISTINCT FROM u.walvec_hash

-- name: surviving
-- Which of the keys that were to go are still there.
SELECT u.walvec_ord - 1
FROM unnest({gone_arrays}) WITH ORDINALITY AS u ({keys}, walvec_ord)
CROSS JOIN LATERAL (SELECT FROM {target} AS e WHERE {e_is_u} AND e.chunk = 0 OFFSET 0) AS e

-- name: unchanged
-- Which of these keys hold an embedding of this very text already.
SELECT u.walvec_ord - 1
FROM unnest({up_arrays}, %(hashes)s::bytea[]) WITH ORDINALITY
     AS u ({keys}, walvec_hash, walvec_ord)
CROSS JOIN LATERAL (SELECT e.source_hash FROM {target} AS e WHERE {e_is_u} AND e.chunk = 0 OFFSET 0) AS e
WHERE e.source_hash = u.walvec_hash

-- name: set_aside
-- Which of these keys were set aside for this very text.
SELECT u.ord - 1
FROM unnest(%(cells)s::text[], %(hashes)s::bytea[]) WITH ORDINALITY AS u (cells, hash, ord)
CROSS JOIN LATERAL (SELECT d.source_hash FROM {schema}.dead_letters AS d
                    WHERE d.pipeline_id = %(pipeline)s AND d.cells = u.cells OFFSET 0) AS d
WHERE d.source_hash = u.hash

-- name: read_keys
-- The rows as they are now: hash, whether the embedding agrees, and the text where it does not. Texts past the byte
-- budget are left for later (`deferred`), so that a few giant values cannot fill memory.
SELECT x.found, x.walvec_hash, x.has, x.same, CASE WHEN NOT x.deferred THEN x.walvec_text END, x.deferred,
       pg_catalog.pg_current_wal_insert_lsn()
FROM (
    SELECT u.walvec_ord, r.found IS NOT NULL AS found, r.walvec_hash, e.chunk IS NOT NULL AS has,
           e.source_hash IS NOT DISTINCT FROM r.walvec_hash AS same,
           CASE WHEN e.source_hash IS DISTINCT FROM r.walvec_hash THEN r.walvec_text END AS walvec_text,
           COALESCE(sum(octet_length(CASE WHEN e.source_hash IS DISTINCT FROM r.walvec_hash THEN r.walvec_text END))
               OVER (ORDER BY u.walvec_ord ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) > %(bytes)s AS deferred
    FROM unnest({gone_arrays}) WITH ORDINALITY AS u ({keys}, walvec_ord)
    LEFT JOIN LATERAL (SELECT true AS found, r.* FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r ON true
    LEFT JOIN LATERAL (SELECT e.chunk, e.source_hash FROM {target} AS e
                       WHERE {e_is_u} AND e.chunk = 0 OFFSET 0) AS e ON true
) AS x
ORDER BY x.walvec_ord

-- name: scan_page
-- One keyset page of the source: the rows whose hash differs from what is stored, and the last row in any case.
SELECT {x_keys}, x.walvec_hash, x.differs, CASE WHEN x.differs AND NOT x.deferred THEN x.walvec_text END, x.deferred,
       x.walvec_total, pg_catalog.pg_current_wal_insert_lsn()
FROM (
    SELECT {p_keys}, p.walvec_hash, p.walvec_text, d.differs,
           COALESCE(sum(octet_length(CASE WHEN d.differs THEN p.walvec_text END))
               OVER (ORDER BY p.walvec_ord ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) > %(bytes)s AS deferred,
           p.walvec_ord, count(*) OVER () AS walvec_total
    FROM (SELECT {r_keys}, r.walvec_text, r.walvec_hash, row_number() OVER (ORDER BY {r_keys}) AS walvec_ord
          FROM (SELECT * FROM {rows} AS r {after} ORDER BY {r_keys} LIMIT %(limit)s) AS r) AS p
    LEFT JOIN LATERAL (SELECT e.chunk, e.source_hash FROM {target} AS e
                       WHERE {e_is_p} AND e.chunk = 0 OFFSET 0) AS e ON true
    CROSS JOIN LATERAL (SELECT e.source_hash IS DISTINCT FROM p.walvec_hash
                               OR (e.chunk IS NOT NULL AND p.walvec_hash IS NULL) AS differs) AS d
) AS x
WHERE x.differs OR x.walvec_ord = x.walvec_total
ORDER BY x.walvec_ord

-- name: orphan_page
-- One keyset page of the destination: keys with no source row, or none with a text; and the last row in any case.
SELECT {x_keys}, x.orphaned, x.walvec_total, pg_catalog.pg_current_wal_insert_lsn()
FROM (
    SELECT {p_keys}, p.walvec_ord, count(*) OVER () AS walvec_total,
           NOT EXISTS (SELECT FROM (SELECT r.walvec_hash FROM {rows} AS r WHERE {r_is_p} OFFSET 0) AS r
                       WHERE r.walvec_hash IS NOT NULL) AS orphaned
    FROM (SELECT {e_keys}, row_number() OVER (ORDER BY {e_keys}) AS walvec_ord
          FROM (SELECT DISTINCT {e_keys} FROM {target} AS e {after} ORDER BY {e_keys} LIMIT %(limit)s) AS e) AS p
) AS x
WHERE x.orphaned OR x.walvec_ord = x.walvec_total
ORDER BY x.walvec_ord

-- name: truncate
-- The source was emptied by the commit at this position: what is older goes.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM {schema}.progress WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s FOR NO KEY UPDATE
), removed AS (
    DELETE FROM {target} AS e USING fence
    WHERE e.source_lsn IS NULL OR e.source_lsn <= %(lsn)s::pg_lsn OR e.source_lsn > pg_catalog.pg_current_wal_insert_lsn()
    RETURNING 1
), dequeued AS (
    DELETE FROM {schema}.dirty AS d USING fence WHERE d.pipeline_id = %(pipeline)s AND d.lsn <= %(lsn)s::pg_lsn
    RETURNING 1
), mended AS (
    DELETE FROM {schema}.dead_letters AS d USING fence WHERE d.pipeline_id = %(pipeline)s
    RETURNING 1
), counted AS (
    UPDATE {schema}.progress
    SET embeddings = embeddings - (SELECT count(*) FROM removed),
        written_lsn = GREATEST(written_lsn, %(lsn)s::pg_lsn), updated_at = now()
    WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s AND EXISTS (SELECT FROM fence)
    RETURNING embeddings
)
SELECT (SELECT embeddings FROM counted), (SELECT count(*) FROM removed), (SELECT count(*) FROM dequeued)

-- name: enqueue
-- Keys go to the durable queue; the newest version of each stays. `xmax = 0` tells new rows from overtaken ones.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM {schema}.progress WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s FOR NO KEY UPDATE
), queued AS (
    INSERT INTO {schema}.dirty AS d (pipeline_id, key, lsn)
    SELECT %(pipeline)s, u.key, u.lsn FROM fence, unnest(%(keys)s::text[], %(lsns)s::pg_lsn[]) AS u (key, lsn)
    ON CONFLICT (pipeline_id, key) DO UPDATE SET lsn = GREATEST(d.lsn, excluded.lsn), leased_until = NULL
    RETURNING (d.xmax = 0) AS fresh
), counted AS (
    UPDATE {schema}.progress
    SET source_records = %(records)s, counted_lsn = %(counted_lsn)s::pg_lsn,
        count_snapshot = %(count_snapshot)s::pg_snapshot, written_lsn = GREATEST(written_lsn, %(written_lsn)s::pg_lsn)
    WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s AND EXISTS (SELECT FROM fence)
    RETURNING embeddings
)
SELECT (SELECT embeddings FROM counted), (SELECT count(*) FILTER (WHERE fresh) FROM queued)

-- name: dequeue
-- Lease keys in their own order, which an index has: other workers skip what is leased or locked, and an abandoned
-- lease runs out by itself.
UPDATE {schema}.dirty AS d SET leased_until = now() + interval '60 s'
FROM (SELECT q.ctid AS place FROM {schema}.dirty AS q
      WHERE q.pipeline_id = %(pipeline)s AND (q.leased_until IS NULL OR q.leased_until < now())
      ORDER BY q.key LIMIT %(limit)s FOR UPDATE SKIP LOCKED) AS q
WHERE d.ctid = q.place
RETURNING d.key, d.lsn

-- name: queued
SELECT (SELECT count(*) FROM {schema}.dirty WHERE pipeline_id = %(pipeline)s),
       (SELECT count(*) FROM {schema}.dead_letters WHERE pipeline_id = %(pipeline)s)

-- name: save_count
UPDATE {schema}.progress
SET source_records = %(records)s, counted_lsn = %(counted_lsn)s::pg_lsn,
    count_snapshot = %(count_snapshot)s::pg_snapshot, updated_at = now()
WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s
RETURNING embeddings

-- name: miscounted
-- By how many rows the count of embeddings is off. Every write keeps both together, so one snapshot suffices: no lock
-- keeps the writers out meanwhile, and the difference holds whatever they add.
SELECT (SELECT count(*) FROM {target}) - g.embeddings
FROM {schema}.progress AS g WHERE g.pipeline_id = %(pipeline)s

-- name: correct_count
UPDATE {schema}.progress SET embeddings = embeddings + %(difference)s, updated_at = now()
WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s
RETURNING embeddings

-- name: save_scan
UPDATE {schema}.progress
SET scan_reason = %(reason)s, scan_phase = %(phase)s, scan_cursor = %(cursor)s, scan_done = %(done)s,
    scan_total = %(total)s, updated_at = now(),
    backfilled_at = CASE WHEN %(reason)s::text IS NULL THEN COALESCE(backfilled_at, now()) ELSE backfilled_at END
WHERE pipeline_id = %(pipeline)s AND epoch = %(epoch)s
RETURNING embeddings

-- name: count_source
SELECT count(*), pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_wal_insert_lsn() FROM {plain_rows} AS r
