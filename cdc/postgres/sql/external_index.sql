-- An index of a vector column that is kept outside the database: what it is of, its publication and slot, and the
-- in-database index that may stand beside it. All of it runs on connections with an empty search_path. make_slot and
-- make_slot_14 are commands of the replication protocol, in the words of PostgreSQL 15 and newer, and of 14.

-- name: column
-- The table and its vector column: the table's OID, kind, persistence and replica identity; the column's type OID, its
-- type modifier, the type's name under any domain, and whether it is generated; about how many rows there are (-1: nobody
-- has counted); a digest of where rows are stored, which changes when they may have changed with no event.
SELECT c.oid::bigint, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       a.atttypid::bigint, a.atttypmod,
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       a.attgenerated <> '',
       CASE WHEN c.relkind <> 'p' THEN c.reltuples::bigint
            ELSE (SELECT CASE WHEN min(l.reltuples) < 0 THEN -1 ELSE COALESCE(sum(l.reltuples)::bigint, 0) END
                  FROM pg_catalog.pg_partition_tree(c.oid) AS p JOIN pg_catalog.pg_class AS l ON l.oid = p.relid
                  WHERE p.isleaf) END,
       (SELECT pg_catalog.md5(string_agg(t.relid || ':' || pg_catalog.pg_relation_filenode(t.relid), ',' ORDER BY t.relid))
        FROM (SELECT relid::oid FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf
              UNION SELECT c.oid WHERE c.relkind <> 'p') AS t (relid))
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = c.oid AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: key
-- The columns that tell rows apart in the WAL: those of the replica identity's index, else of the primary key. Name,
-- type as SQL writes it, and the type's name under any domain.
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd')
FROM pg_catalog.pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
WHERE i.indrelid = %(oid)s::oid AND i.indisvalid AND k.ord <= i.indnkeyatts
  AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
ORDER BY k.ord

-- name: identity
SELECT relreplident::text FROM pg_catalog.pg_class WHERE oid = %s

-- name: publication
-- What makes the publication the one that was made: its own OID and that of its one table in it. NULL where it is gone.
SELECT p.oid::bigint, (SELECT pg_catalog.min(r.oid)::bigint FROM pg_catalog.pg_publication_rel AS r
                       WHERE r.prpubid = p.oid AND r.prrelid = %(oid)s::oid)
FROM pg_catalog.pg_publication AS p WHERE p.pubname = %(publication)s

-- name: make_publication
CREATE PUBLICATION {publication} FOR TABLE {table}{columns} WITH (publish_via_partition_root = true)

-- name: drop_publication
DROP PUBLICATION IF EXISTS {publication}

-- name: slot
SELECT s.database, s.plugin, s.active_pid, s.wal_status = 'lost' OR s.restart_lsn IS NULL, s.confirmed_flush_lsn::text
FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name = %(slot)s

-- name: drop_slot
SELECT pg_catalog.pg_drop_replication_slot(slot_name)
FROM pg_catalog.pg_replication_slots
WHERE slot_name = %(slot)s AND active_pid IS NULL AND database = pg_catalog.current_database()

-- name: make_slot
CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export')

-- name: make_slot_14
CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT

-- name: count
SELECT count(*) FROM {table} WHERE {column} IS NOT NULL

-- name: opclass
-- The operator class of pgvector's hnsw by name, and the schema it lives in.
SELECT n.nspname::text
FROM pg_catalog.pg_opclass AS o
JOIN pg_catalog.pg_am AS m ON m.oid = o.opcmethod AND m.amname = 'hnsw'
JOIN pg_catalog.pg_namespace AS n ON n.oid = o.opcnamespace
WHERE o.opcname = %(opclass)s

-- name: index_state
-- An index by name in the table's schema: whether it is valid, and its definition. Another relation of that name counts.
SELECT COALESCE(i.indisvalid, true), i.indrelid::bigint, pg_catalog.pg_get_indexdef(i.indexrelid)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
WHERE n.nspname = %(schema)s AND c.relname = %(index)s

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index}

-- name: make_index
CREATE INDEX CONCURRENTLY {index} ON {table} USING hnsw ({column} {opclass}) WITH (m = {m}, ef_construction = {efc})

-- name: note_index
COMMENT ON INDEX {index} IS {note}

-- name: index_progress
-- How far the build of an index by a session is, in per cent.
SELECT CASE WHEN p.phase LIKE 'building index%%' OR p.tuples_total > 0
            THEN (100 * p.tuples_done / GREATEST(p.tuples_total, 1))::int ELSE 0 END
FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.pid = %(pid)s
