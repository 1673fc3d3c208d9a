-- What the publication publishes, read from the catalogue. {attnames} and {rowfilter} differ by server version.

-- name: publication
SELECT p.oid::bigint, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot
FROM pg_catalog.pg_publication AS p
WHERE p.pubname = %(publication)s

-- name: tables
-- One row per published table; partitions that are published one by one are gathered under their topmost published
-- ancestor, since that is the table that people mean.
WITH publication AS (
    SELECT p.oid, p.puballtables, p.pubname FROM pg_catalog.pg_publication AS p WHERE p.pubname = %(publication)s
), leaves AS (
    SELECT c.oid, {attnames} AS attnames, {rowfilter} AS rowfilter, p.oid AS publication, p.puballtables
    FROM publication AS p
    JOIN pg_catalog.pg_publication_tables AS t ON t.pubname = p.pubname
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schemaname
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.tablename
), rooted AS (
    SELECT l.*, COALESCE((
        SELECT a.relid
        FROM pg_catalog.pg_partition_ancestors(l.oid) WITH ORDINALITY AS a (relid, depth)
        JOIN pg_catalog.pg_class AS ac ON ac.oid = a.relid
        WHERE l.puballtables
           OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel AS r
                      WHERE r.prpubid = l.publication AND r.prrelid = a.relid)
           {by_schema}
        ORDER BY a.depth DESC LIMIT 1), l.oid) AS root
    FROM leaves AS l
), grouped AS (
    SELECT root, min(attnames) AS attnames, min(rowfilter) AS rowfilter, array_agg(oid ORDER BY oid) AS members
    FROM rooted GROUP BY root
)
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relreplident::text,
       g.attnames, g.rowfilter,
       (SELECT array_agg(mn.nspname::text ORDER BY m.oid) FROM pg_catalog.pg_class AS m
        JOIN pg_catalog.pg_namespace AS mn ON mn.oid = m.relnamespace WHERE m.oid = ANY (g.members)),
       (SELECT array_agg(m.relname::text ORDER BY m.oid) FROM pg_catalog.pg_class AS m WHERE m.oid = ANY (g.members)),
       columns.names, columns.types, columns.base_types, columns.numbers,
       (SELECT array_agg(a.attname::text ORDER BY k.ord)
        FROM pg_catalog.pg_index AS i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisvalid AND k.ord <= i.indnkeyatts
          AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END),
       -- Whatever changes rows without an event changes this: rewrites, partitions that come and go, and a table that
       -- left the publication and came back between two looks.
       COALESCE((SELECT string_agg(r.oid::text, ',' ORDER BY r.oid) || '/'
                 FROM pg_catalog.pg_publication_rel AS r JOIN publication AS p ON p.oid = r.prpubid
                 WHERE r.prrelid = c.oid OR r.prrelid = ANY (g.members)), '') ||
       (SELECT pg_catalog.md5(string_agg(t.relid::oid || ':' || pg_catalog.pg_relation_filenode(t.relid), ',' ORDER BY t.relid::oid))
        FROM (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf
              UNION SELECT c.oid::regclass WHERE c.relkind <> 'p') AS t)
FROM grouped AS g
JOIN pg_catalog.pg_class AS c ON c.oid = g.root
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names,
           array_agg(a.attnum::int ORDER BY a.attnum) AS numbers,
           array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS types,
           array_agg((WITH RECURSIVE base (oid) AS (
                          SELECT a.atttypid
                          UNION ALL
                          SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid
                          WHERE t.typtype = 'd')
                      SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid
                      WHERE t.typtype <> 'd') ORDER BY a.attnum) AS base_types
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) AS columns
WHERE n.nspname <> %(control)s
ORDER BY n.nspname, c.relname

-- name: writers
-- Transactions that have written one of these tables and are still open: what they wrote before the publication named
-- the table may never reach the stream.
SELECT l.virtualtransaction
FROM pg_catalog.pg_locks AS l
WHERE l.locktype = 'relation' AND l.relation = ANY (%(oids)s::oid[])
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AND l.granted
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()

-- name: tree
-- A table and its partitions.
SELECT relid::oid::bigint FROM pg_catalog.pg_partition_tree(%(oid)s::oid::regclass)
UNION SELECT %(oid)s::bigint

-- name: target
-- An existing destination: its columns with their types, the type modifier of pgvector's types (the dimension), and
-- whether they are part of the primary key.
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), t.typname::text, a.atttypmod,
       EXISTS (SELECT FROM pg_catalog.pg_index AS i
               WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY (i.indkey::int2[]))
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
ORDER BY a.attnum

-- name: column
-- A column that a pipeline writes: its type, the bare type, the type modifier (pgvector: the dimension), whether it is
-- NOT NULL, generated, and the role's to update; the table's owner; the role. No type where there is no such column.
SELECT COALESCE(pg_catalog.format_type(a.atttypid, a.atttypmod), ''), COALESCE(t.typname::text, ''),
       COALESCE(a.atttypmod, -1), COALESCE(a.attnotnull, false), COALESCE(a.attgenerated <> '', false),
       COALESCE(pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE'), false),
       pg_catalog.pg_get_userbyid(c.relowner)::text, current_user::text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = c.oid AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: type_named
-- The type that a text names, as SQL writes it; NULL where there is none.
SELECT pg_catalog.format_type(pg_catalog.to_regtype(%(type)s)::oid, NULL)

-- name: vector_extension
SELECT n.nspname::text, t.oid::bigint, e.extversion
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
JOIN pg_catalog.pg_type AS t ON t.typnamespace = n.oid AND t.typname = %(type)s
WHERE e.extname = 'vector'

-- name: domain
SELECT t.oid::bigint FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE n.nspname = %(control)s AND t.typname = 'real_vector'
