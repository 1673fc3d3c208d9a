-- Trials of HNSW parameters inside PostgreSQL. {table} is the table under test and {vector} its vectors as the index has
-- them; {operators} is pgvector's schema, {operator} the distance, {opclass} the index's operator class.

-- name: column
-- The column to tune for: the kind of relation, the column's type and its modifier (pgvector: the dimension, -1: none).
SELECT c.oid::bigint, c.relkind::text, t.typname::text, a.atttypmod
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = c.oid AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type AS d ON d.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type AS t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: pgvector
-- Where pgvector lives and its version; only one that has HNSW counts.
SELECT n.nspname::text, e.extversion
FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'vector' AND EXISTS (SELECT FROM pg_catalog.pg_am AS m WHERE m.amname = 'hnsw')

-- name: count
SELECT count(*) FROM {table} AS e WHERE e.{column} IS NOT NULL

-- name: widths
-- How many vectors there are of each width, the commonest first.
SELECT {width}, count(*) FROM {table} AS e {sample} WHERE e.{column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 DESC

-- name: vectors
-- All vectors or a random sample of rows (not of pages: rows of one page are often alike). The number stands for a key.
COPY (SELECT 0, e.{column} FROM {table} AS e {sample} WHERE e.{column} IS NOT NULL) TO STDOUT (FORMAT binary)

-- name: lock
-- One run per scratch table: the session holds this for as long as it runs, so that what nobody holds is a leftover.
SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('walvec autotune ' || %(name)s, 0))

-- name: unlock
SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended('walvec autotune ' || %(name)s, 0))

-- name: scratch_place
-- Whether the schema is walvec's and may be built in, and whether temporary tables may be made.
SELECT EXISTS (
           SELECT FROM pg_catalog.pg_namespace AS n
           JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'schema_version'
           WHERE n.nspname = %(schema)s AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
             AND pg_catalog.has_schema_privilege(n.oid, 'CREATE')),
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'),
       current_user::text, pg_catalog.current_database()::text

-- name: scratch_tables
-- Those that this role may drop.
SELECT c.relname::text
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind = 'r' AND c.relname ~ '^autotune_scratch_[0-9a-f]{{16}}$'
  AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
ORDER BY 1

-- name: create_scratch
CREATE {persistence} TABLE {scratch} (v {type} NOT NULL)

-- name: temporary_memory
-- Memory for a temporary table and its index, at least what the server gives anyway: they have no other cache.
SELECT pg_catalog.set_config('temp_buffers',
                             greatest(%(kilobytes)s::bigint, s.setting::bigint * 8)::text || 'kB', false)
FROM pg_catalog.pg_settings AS s WHERE s.name = 'temp_buffers'

-- name: fill
COPY {scratch} (v) FROM STDIN (FORMAT binary)

-- name: copy_rows
-- All vectors of the table, as its index has them, without a way through the client.
INSERT INTO {scratch} (v) SELECT {vector} FROM {table} AS e WHERE e.{column} IS NOT NULL

-- name: create_queries
CREATE TEMPORARY TABLE IF NOT EXISTS walvec_queries (n serial PRIMARY KEY, v {type} NOT NULL)

-- name: clear_queries
TRUNCATE pg_temp.walvec_queries RESTART IDENTITY

-- name: fill_queries
COPY pg_temp.walvec_queries (v) FROM STDIN (FORMAT binary)

-- name: build
CREATE INDEX {concurrently} {index} ON {table} USING hnsw ({indexed} {opclass})
WITH (m = {m}, ef_construction = {ef_construction})

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index}

-- name: rename_index
ALTER INDEX {index} RENAME TO {new_name}

-- name: comment
COMMENT ON INDEX {index} IS {text}

-- name: indexes
-- Vector indexes of the table: name, whether valid, definition of their first column, parameters, comment.
SELECT i.relname::text, x.indisvalid, pg_catalog.pg_get_indexdef(x.indexrelid, 1, true),
       coalesce(i.reloptions, '{{}}'), coalesce(pg_catalog.obj_description(i.oid, 'pg_class'), ''),
       (SELECT o.opcname::text FROM pg_catalog.pg_opclass AS o WHERE o.oid = x.indclass[0])
FROM pg_catalog.pg_index AS x
JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_am AS m ON m.oid = i.relam
WHERE x.indrelid = %(table)s::oid AND m.amname IN ('hnsw', 'ivfflat')
ORDER BY 1

-- name: all_own_indexes
-- Indexes of ours that the role may drop: table, name, whether finished (valid, and with the comment that comes last).
SELECT x.indrelid::bigint, i.relname::text,
       x.indisvalid AND pg_catalog.obj_description(i.oid, 'pg_class') IS NOT NULL
FROM pg_catalog.pg_index AS x
JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_am AS m ON m.oid = i.relam
WHERE i.relname ~ '^walvec_autotune_' AND m.amname = 'hnsw' AND pg_catalog.pg_has_role(i.relowner, 'USAGE')
ORDER BY 1, 2

-- name: own_indexes
-- The same of one table, with the schema in place of the table.
SELECT n.nspname::text, i.relname::text,
       x.indisvalid AND pg_catalog.obj_description(i.oid, 'pg_class') IS NOT NULL
FROM pg_catalog.pg_index AS x
JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = i.relnamespace
JOIN pg_catalog.pg_am AS m ON m.oid = i.relam
WHERE x.indrelid = %(table)s::oid AND i.relname ~ '^walvec_autotune_' AND m.amname = 'hnsw'
  AND pg_catalog.pg_has_role(i.relowner, 'USAGE')
ORDER BY 2

-- name: hold_table
-- Who builds, measures or drops our indexes of a table holds this; asked for and never waited for in the server.
SELECT pg_catalog.pg_try_advisory_lock(
    pg_catalog.hashtextextended('walvec autotune index ' || (%(table)s::bigint)::text, 0))

-- name: let_table_go
SELECT pg_catalog.pg_advisory_unlock(
    pg_catalog.hashtextextended('walvec autotune index ' || (%(table)s::bigint)::text, 0))

-- name: index_size
SELECT pg_catalog.pg_relation_size(%(index)s::regclass)

-- name: building
-- How far the build of an index has come, by the process that builds it.
SELECT p.tuples_done, p.tuples_total FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.pid = %(pid)s

-- name: plan
EXPLAIN (FORMAT JSON)
SELECT {vector} FROM {table} AS e
ORDER BY {vector} OPERATOR({operators}.{operator}) (SELECT q.v FROM pg_temp.walvec_queries AS q LIMIT 1) LIMIT 10

-- name: create_trial
-- Searches for every query in turn: the distances found, nearest first, and the milliseconds that the server took.
CREATE OR REPLACE FUNCTION pg_temp.walvec_trial(neighbours int)
RETURNS TABLE (query int, milliseconds float8, distances float8[]) LANGUAGE plpgsql AS $walvec$
DECLARE
    asked record;
    begun timestamptz;
BEGIN
    FOR asked IN SELECT q.n, q.v FROM pg_temp.walvec_queries AS q ORDER BY q.n LOOP
        begun := pg_catalog.clock_timestamp();
        distances := ARRAY(
            SELECT ({vector} OPERATOR({operators}.{operator}) asked.v)::float8 FROM {table} AS e
            ORDER BY {vector} OPERATOR({operators}.{operator}) asked.v LIMIT neighbours
        );
        milliseconds := extract(epoch FROM pg_catalog.clock_timestamp() - begun) * 1000;
        query := asked.n;
        RETURN NEXT;
    END LOOP;
END
$walvec$

-- name: trial
SELECT t.milliseconds, t.distances FROM pg_temp.walvec_trial(%(k)s) AS t ORDER BY t.query

-- name: setting
SELECT pg_catalog.set_config(%(name)s, %(value)s, false)

-- name: get_setting
SELECT pg_catalog.current_setting(%(name)s)

-- name: build_memory
-- Memory for building, in kB: what the graph needs, at least what the server gives anyway.
SELECT pg_catalog.set_config('maintenance_work_mem',
                             greatest(%(kilobytes)s::bigint, s.setting::bigint)::text || 'kB', false)
FROM pg_catalog.pg_settings AS s WHERE s.name = 'maintenance_work_mem'
