-- An index of a vector column that is kept outside the database: what it is of, its publication and slot, and the
-- in-database index that may stand beside it. All of it runs on connections with an empty search_path. make_slot and
-- make_slot_14 are commands of the replication protocol, in the words of PostgreSQL 15 and newer, and of 14.

-- name: column
-- The table and its vector column: the table's OID, kind, persistence and replica identity; the column's type OID, its
-- type modifier, the type's name under any domain, and how it is generated ('': not, 's': stored, 'v': virtual); about how
-- many rows there are (-1: nobody has counted); where rows are stored, and for an ordinary table, behind a slash, the
-- versions of its key's and vector's definitions: what changes rows with no event changes both; the expression of a
-- generated column.
SELECT c.oid::bigint, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       a.atttypid::bigint, a.atttypmod,
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       a.attgenerated::text,
       CASE WHEN c.relkind <> 'p' THEN c.reltuples::bigint
            ELSE (SELECT CASE WHEN min(l.reltuples) < 0 THEN -1 ELSE COALESCE(sum(l.reltuples)::bigint, 0) END
                  FROM pg_catalog.pg_partition_tree(c.oid) AS p JOIN pg_catalog.pg_class AS l ON l.oid = p.relid
                  WHERE p.isleaf) END,
       (SELECT pg_catalog.md5(string_agg(t.relid || ':' || pg_catalog.pg_relation_filenode(t.relid), ',' ORDER BY t.relid))
        FROM (SELECT relid::oid FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf
              UNION SELECT c.oid WHERE c.relkind <> 'p') AS t (relid))
       || CASE WHEN c.relkind = 'p' THEN ''
               ELSE '/' || (SELECT pg_catalog.md5(string_agg(k.attnum || ':' || k.xmin, ',' ORDER BY k.attnum))
                            FROM pg_catalog.pg_attribute AS k
                            WHERE k.attrelid = c.oid
                              AND (k.attnum = a.attnum
                                   OR EXISTS (SELECT FROM pg_catalog.pg_index AS i
                                              WHERE i.indrelid = c.oid AND k.attnum = ANY (i.indkey)
                                                AND (i.indisprimary OR i.indisreplident)))) END,
       (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid)
        FROM pg_catalog.pg_attrdef AS d
        WHERE d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated <> '')
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = c.oid AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: key
-- The columns that tell rows apart in the WAL: those of the replica identity's index, else of the primary key. Name,
-- type as SQL writes it, the type's name under any domain, and whether its uniqueness is checked at once (a key that
-- is deferrable is no replica identity), and whether it is generated.
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       i.indimmediate, a.attgenerated <> ''
FROM pg_catalog.pg_index AS i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
WHERE i.indrelid = %(oid)s::oid AND i.indisvalid AND k.ord <= i.indnkeyatts
  AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
ORDER BY k.ord

-- name: unidentified
-- One of the table and its partitions whose own UPDATEs and DELETEs PostgreSQL would refuse if they were published, and
-- whether that is for virtual generated columns, which no whole old row (FULL) can have.
SELECT n.nspname::text, c.relname::text, c.relreplident = 'f'
FROM (SELECT relid::oid FROM pg_catalog.pg_partition_tree(%(oid)s::oid) UNION SELECT %(oid)s::oid) AS t (oid)
JOIN pg_catalog.pg_class AS c ON c.oid = t.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
  AND CASE c.relreplident
           WHEN 'f' THEN EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = 'v')
           WHEN 'n' THEN true
           ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_index AS i
                            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                              AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END) END
ORDER BY c.oid LIMIT 1

-- name: publication
-- What makes the publication the one that was made: its own OID, that of its one table in it, the version of its
-- settings, and all tables that it publishes. NULL where its table is not in it.
SELECT p.oid || '/' || (SELECT pg_catalog.min(r.oid) FROM pg_catalog.pg_publication_rel AS r
                        WHERE r.prpubid = p.oid AND r.prrelid = %(oid)s::oid)
       || '/' || p.xmin
       || '/' || (SELECT pg_catalog.md5(COALESCE(string_agg(pg_catalog.format('%%I.%%I', t.schemaname, t.tablename), ','
                                                            ORDER BY t.schemaname, t.tablename), ''))
                  FROM pg_catalog.pg_publication_tables AS t WHERE t.pubname = p.pubname)
FROM pg_catalog.pg_publication AS p WHERE p.pubname = %(publication)s

-- name: make_publication
-- With all columns: a column list that does not cover the replica identity, because that was changed, has PostgreSQL
-- refuse every UPDATE and DELETE. For the same reason inheriting tables, which may have no key, are not in it.
CREATE PUBLICATION {publication} FOR TABLE ONLY {table} WITH (publish_via_partition_root = true{generated})

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
SELECT count(*) FROM {only}{table} WHERE {column} IS NOT NULL

-- name: opclass
-- The operator class of pgvector's hnsw by name, and the schema it lives in.
SELECT n.nspname::text, o.oid::bigint
FROM pg_catalog.pg_opclass AS o
JOIN pg_catalog.pg_am AS m ON m.oid = o.opcmethod AND m.amname = 'hnsw'
JOIN pg_catalog.pg_namespace AS n ON n.oid = o.opcnamespace
WHERE o.opcname = %(opclass)s

-- name: index_state
-- What has a name in the table's schema: whether it is a valid index, and of which table; its method, its definition; its
-- one column and operator class, NULL where it has a condition or is of more; its parameters, and its comment.
SELECT COALESCE(i.indisvalid, false), i.indrelid::bigint, m.amname::text, pg_catalog.pg_get_indexdef(i.indexrelid),
       a.attname::text, i.indclass[0]::bigint, COALESCE(c.reloptions, '{{}}'), pg_catalog.obj_description(c.oid, 'pg_class')
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
LEFT JOIN pg_catalog.pg_am AS m ON m.oid = c.relam
LEFT JOIN pg_catalog.pg_attribute AS a
       ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnum > 0 AND i.indnatts = 1 AND i.indpred IS NULL
WHERE n.nspname = %(schema)s AND c.relname = %(index)s

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index}

-- name: make_index
CREATE INDEX CONCURRENTLY {index} ON {table} USING hnsw ({column} {opclass}) WITH (m = {m}, ef_construction = {efc})

-- name: rename_index
ALTER INDEX {index} RENAME TO {to}

-- name: note_index
COMMENT ON INDEX {index} IS {note}

-- name: index_progress
-- How far the build of an index by a session is, in per cent.
SELECT CASE WHEN p.phase LIKE 'building index%%' OR p.tuples_total > 0
            THEN (100 * p.tuples_done / GREATEST(p.tuples_total, 1))::int ELSE 0 END
FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.pid = %(pid)s
