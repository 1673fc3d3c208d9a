-- What the preflight looks at: catalogues and statistics, read-only, on a connection with an empty search_path.
-- Whole rows travel as JSON, so that columns that only newer servers have are simply absent on older ones.

-- name: server
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_text,
       pg_is_in_recovery() AS in_recovery, current_database() AS database, clock_timestamp() AS clock,
       pg_encoding_to_char(d.encoding) AS encoding,
       coalesce((SELECT s.ssl FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()), false) AS tls,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')::int AS walsenders,
       EXISTS (SELECT FROM pg_stat_activity a JOIN pg_replication_slots r ON r.active_pid = a.pid
               WHERE r.slot_type = 'physical') AS standbys,
       has_database_privilege(current_database(), 'CREATE') AS may_create_schema
FROM pg_database d WHERE d.datname = current_database()

-- name: settings
SELECT name, setting FROM pg_settings

-- name: role
SELECT current_user::text AS name, r.rolsuper AS superuser, r.rolreplication AS replication, r.rolbypassrls AS bypass,
       EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'cloudsqlreplica')
               AND pg_has_role(r.oid, m.oid, 'MEMBER')) AS managed_replication
FROM pg_roles r WHERE r.rolname = current_user

-- name: publication
SELECT to_jsonb(p) AS publication FROM pg_publication p WHERE p.pubname = %(publication)s

-- name: leaves
-- Published partitions that stand for themselves because the publication does not publish by root.
SELECT t.schemaname || '.' || t.tablename AS table
FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %(publication)s AND c.relispartition

-- name: own_tables
-- Published tables that are walvec's own: the control schema, and tables that look like destinations.
SELECT t.schemaname || '.' || t.tablename AS table
FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = %(publication)s
  AND (t.schemaname = %(schema)s
       OR (SELECT count(*) FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attname IN ('chunk', 'embedding', 'source_hash', 'source_lsn')) = 4)

-- name: access
-- Rights on, and traits of, published tables. `oids`: the tables.
SELECT c.oid::bigint AS oid, row_security_active(c.oid) OR (c.relforcerowsecurity AND NOT r.rolbypassrls AND NOT r.rolsuper)
           AS filtered,
       has_schema_privilege(n.oid, 'USAGE') AS usage, has_schema_privilege(n.oid, 'CREATE') AS create,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY a.attnum) AS unreadable,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
             ORDER BY a.attnum) AS generated
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_roles r
WHERE c.oid = ANY (%(oids)s::oid[]) AND r.rolname = current_user

-- name: destinations
-- Existing destinations. `schemas`, `tables`: their names; embedding type, dimension (type modifier), rights, index.
SELECT n.nspname::text AS schema, c.relname::text AS table, t.typname::text AS type, a.atttypmod AS dimension,
       has_table_privilege(c.oid, 'SELECT, INSERT') AND has_table_privilege(c.oid, 'UPDATE')
           AND has_table_privilege(c.oid, 'DELETE') AS writable,
       EXISTS (SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am m ON m.oid = ic.relam
               WHERE i.indrelid = c.oid AND m.amname = 'hnsw' AND i.indisvalid) AS indexed
FROM unnest(%(schemas)s::text[], %(tables)s::text[]) AS w (s, t)
JOIN pg_namespace n ON n.nspname = w.s
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'embedding' AND NOT a.attisdropped
LEFT JOIN pg_type t ON t.oid = a.atttypid

-- name: slot
SELECT to_jsonb(s) AS slot, current_database() AS here,
       (SELECT a.application_name FROM pg_stat_activity a WHERE a.pid = s.active_pid) AS holder,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) END::bigint AS retained
FROM pg_replication_slots s WHERE s.slot_name = %(slot)s

-- name: transactions
-- Old transactions that hold back the slot or VACUUM. `long_s`: the age in seconds, here and below.
SELECT pid, state, EXTRACT(epoch FROM clock_timestamp() - xact_start)::int AS seconds
FROM pg_stat_activity
WHERE xact_start < clock_timestamp() - make_interval(secs => %(long_s)s) AND pid <> pg_backend_pid()
  AND backend_type = 'client backend' AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)
ORDER BY xact_start

-- name: prepared
SELECT gid, EXTRACT(epoch FROM clock_timestamp() - prepared)::int AS seconds
FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - make_interval(secs => %(long_s)s) AND database = current_database()
ORDER BY prepared

-- name: vector
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS available,
       (SELECT superuser AND NOT trusted FROM pg_available_extension_versions v
        WHERE v.name = 'vector' AND v.version = (SELECT default_version FROM pg_available_extensions
                                                 WHERE name = 'vector')) AS needs_superuser

-- name: pipelines
SELECT p.name, g.state, g.reason, p.target_schema AS schema, p.target_table AS table, p.dimension, p.vector_type,
       g.backfilled_at IS NOT NULL AS backfilled,
       (SELECT count(*) FROM {schema}.dead_letters d WHERE d.pipeline_id = p.id)::int AS dead
FROM {schema}.pipelines p JOIN {schema}.progress g ON g.pipeline_id = p.id
WHERE p.attached ORDER BY p.name
