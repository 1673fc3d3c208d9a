-- The pipelines that jobs ask for: their rows, and the publication that carries their tables. The search_path is empty.

-- name: columns
-- A table's columns: name, the base type under any domain, the type as SQL writes it, whether it is part of the key that
-- the WAL carries.
SELECT a.attname::text,
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       format_type(a.atttypid, a.atttypmod),
       EXISTS (SELECT FROM pg_index AS i
               WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])
                 AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
ORDER BY a.attnum

-- name: member
-- Whether the publication names a table; the columns that it lists for it, NULL without a list; and whether the table's
-- changes carry whole rows, which a list does not go with. Before PostgreSQL 15 there are no lists.
SELECT m.attributes IS NOT NULL,
       (SELECT array_agg(a.attname::text) FROM pg_attribute AS a
        WHERE a.attrelid = c.oid AND jsonb_typeof(m.attributes -> 'prattrs') = 'array'
          AND m.attributes -> 'prattrs' @> to_jsonb(a.attnum)),
       c.relreplident = 'f'
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (SELECT to_jsonb(r) AS attributes
                   FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
                   WHERE r.prrelid = c.oid AND p.pubname = %(publication)s) AS m ON true
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: publication
SELECT FROM pg_publication WHERE pubname = %(publication)s

-- name: row
SELECT slot::text, kind, job, source_schema::text, source_table::text, text_columns, target_column::text,
       COALESCE(runtime, ''), COALESCE(value_type, ''), attached
FROM {schema}.pipelines WHERE name = %(name)s FOR UPDATE

-- name: writer
-- Who else writes this column.
SELECT name FROM {schema}.pipelines
WHERE source_schema = %(source_schema)s AND source_table = %(source_table)s AND target_column = %(target_column)s
  AND name <> %(name)s AND attached

-- name: needs
-- The columns that the attached pipelines of a table read.
SELECT DISTINCT c.name FROM {schema}.pipelines AS p CROSS JOIN LATERAL unnest(p.text_columns) AS c (name)
WHERE p.slot = %(slot)s AND p.source_schema = %(schema)s AND p.source_table = %(table)s AND p.attached

-- name: register
WITH p AS (
    INSERT INTO {schema}.pipelines (name, slot, kind, job, runtime, value_type, source_schema, source_table,
                                    text_columns, target_schema, target_table, target_column, vector_type)
    VALUES (%(name)s, %(slot)s, %(kind)s, %(job)s, %(runtime)s, %(value_type)s, %(source_schema)s, %(source_table)s,
            %(text_columns)s, %(target_schema)s, %(target_table)s, %(target_column)s, %(vector_type)s)
    RETURNING id
)
INSERT INTO {schema}.progress (pipeline_id, scan_reason, scan_phase) SELECT id, 'first backfill', 'rows' FROM p
RETURNING pipeline_id

-- name: change
-- A definition that changed, or came back: the pipeline is made anew, and its source compared by hash.
WITH p AS (
    UPDATE {schema}.pipelines
    SET slot = %(slot)s, kind = %(kind)s, job = %(job)s, runtime = %(runtime)s, value_type = %(value_type)s,
        text_columns = %(text_columns)s, attached = true, revision = revision + 1
    WHERE name = %(name)s
    RETURNING id
)
UPDATE {schema}.progress AS g
SET scan_reason = %(reason)s, scan_phase = 'rows', scan_cursor = NULL, scan_done = 0, scan_total = 0
FROM p WHERE g.pipeline_id = p.id
RETURNING g.pipeline_id

-- name: label
-- What people read of it, which changes nothing of what it does.
UPDATE {schema}.pipelines SET job = %(job)s, runtime = %(runtime)s WHERE name = %(name)s

-- name: detach
UPDATE {schema}.pipelines SET attached = false, revision = revision + 1
WHERE name = %(name)s AND slot = %(slot)s AND kind <> 'default' AND attached
RETURNING source_schema::text, source_table::text

-- name: remove
DELETE FROM {schema}.pipelines WHERE name = %(name)s AND slot = %(slot)s AND kind <> 'default'
RETURNING target_schema::text, target_table::text

-- name: attached
SELECT FROM {schema}.pipelines
WHERE slot = %(slot)s AND source_schema = %(schema)s AND source_table = %(table)s AND attached

-- name: list
SELECT name, COALESCE(job, ''), attached FROM {schema}.pipelines
WHERE slot = %(slot)s AND kind <> 'default' ORDER BY name

-- name: drop_slot
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(slot)s

-- name: forget_slot
-- The slot is gone on purpose. Whatever comes back is compared by hash.
WITH gone AS (DELETE FROM {schema}.slots WHERE slot = %(slot)s)
UPDATE {schema}.progress AS g
SET scan_reason = 'the slot was dropped', scan_phase = 'rows', scan_cursor = NULL, scan_done = 0, scan_total = 0
FROM {schema}.pipelines AS p WHERE p.id = g.pipeline_id AND p.slot = %(slot)s
