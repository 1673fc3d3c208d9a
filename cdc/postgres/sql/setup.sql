-- Making what must exist before anything streams. All of it runs on connections with an empty search_path.

-- name: slot
-- A slot's kind: plugin, database, the database we are in, whether it is temporary.
SELECT plugin, database, current_database(), temporary FROM pg_replication_slots WHERE slot_name = %s

-- name: table
-- relkind, relpersistence, and whether rows can be told apart in the WAL. Parameters: schema, table.
SELECT c.relkind::text, c.relpersistence::text,
       CASE c.relreplident
           WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
           WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)
           ELSE c.relreplident = 'f'
       END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s

-- name: slot_blockers
-- Whom the creation of a slot waits for: (name, seconds), oldest first. Parameter: the waiting session.
SELECT 'pid ' || pid, EXTRACT(epoch FROM clock_timestamp() - xact_start)::float8 AS age
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> %s
UNION ALL
SELECT 'the prepared transaction ' || gid, EXTRACT(epoch FROM clock_timestamp() - prepared)::float8
FROM pg_prepared_xacts
ORDER BY age DESC

-- name: vector
-- pgvector's installed and available versions, each NULL where it is not.
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')

-- name: register_slot
INSERT INTO {schema}.slots (slot, publication, publication_oid, state)
VALUES (%s, %s, (SELECT oid FROM pg_publication WHERE pubname = %s), 'stopped')
ON CONFLICT (slot) DO UPDATE SET publication = excluded.publication, publication_oid = excluded.publication_oid
WHERE (slots.publication, slots.publication_oid) IS DISTINCT FROM (excluded.publication, excluded.publication_oid)

-- name: print_sql
-- walvec: what `walvec init` makes, for a DBA to read and to run with psql, statement by statement (not with -1:
-- a slot cannot be made in a transaction that has written). Needs wal_level = logical.

-- 1. The role that walvec connects as. REPLICATION lets it read every change of this database, whatever its other
--    rights: admit it in pg_hba.conf to this database alone, with TLS, and never to the database "replication".
-- CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';
--    On managed services: GRANT rds_replication TO {role};

-- 2. The publication: what is watched. A column list chooses what is embedded: FOR TABLE articles (id, title, body).
--    It must be older than the slot.
{publication}

-- 3. walvec reads these tables, and makes the tables of embeddings beside them.
{todo}GRANT USAGE, CREATE ON SCHEMA {schemas} TO {role};
{todo}GRANT SELECT ON {tables} TO {role};

-- 4. pgvector, where the server has it. Without it embeddings are stored as real[].
DO $walvec$ BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'vector') THEN
        CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
    END IF;
END $walvec$;

-- 5. The slot. It waits for running transactions to end, and keeps WAL from now on until walvec reads it.
DO $walvec$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot}) THEN
        IF pg_catalog.current_setting('server_version_num')::int >= 170000 THEN
            EXECUTE pg_catalog.format('SELECT pg_catalog.pg_create_logical_replication_slot(%L, %L, failover => true)',
                                      {slot}, 'pgoutput');
        ELSE
            PERFORM pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput');
        END IF;
    END IF;
END $walvec$;

-- 6. The control schema, owned by the role. Leave this out where it exists.
CREATE SCHEMA {schema} AUTHORIZATION {role};
SET ROLE {role};

{migrations}

INSERT INTO {schema}.slots (slot, publication, publication_oid, state)
SELECT {slot}, {publication_name}, oid, 'stopped' FROM pg_catalog.pg_publication WHERE pubname = {publication_name};

RESET ROLE;
