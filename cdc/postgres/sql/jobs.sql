-- Books: tables of jobs in a control database. {book} is one of them.

-- name: columns
-- A book's columns: name, the base type under any domain, whether an INSERT must give it a value. No row: there is no
-- such table.
SELECT a.attname::text,
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS needed
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p', 'v', 'f') AND a.attnum > 0
  AND NOT a.attisdropped

-- name: give_default
ALTER TABLE {book} ALTER COLUMN {column} SET DEFAULT {value}

-- name: stamp
-- Which tables the names mean now, and who can see what: a table that was dropped and made anew has another oid.
SELECT pg_catalog.pg_current_snapshot()::text,
       (SELECT coalesce(string_agg(c.oid::text, ',' ORDER BY n.nspname, c.relname), '')
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest(%(schemas)s::name[], %(tables)s::name[])))

-- name: rows
SELECT pg_catalog.to_jsonb(b) FROM {book} AS b ORDER BY b.id

-- name: targets
-- The registry of target databases.
SELECT b.db_uri::text FROM {book} AS b WHERE b.db_uri IS NOT NULL

-- name: write
-- One row of a book; {changes} names columns that the book has.
UPDATE {book} SET {changes} WHERE id = %(id)s {only}

-- name: add
INSERT INTO {book} ({columns}) VALUES ({values})

-- name: experiments
-- The winners of earlier experiments with one model, the newest first.
SELECT pg_catalog.to_jsonb(r) FROM {book} AS r
WHERE pg_catalog.to_jsonb(r) ->> 'model' = %(model)s AND (pg_catalog.to_jsonb(r) ->> 'best')::boolean
ORDER BY r.id DESC LIMIT 50

-- name: usage_functions
-- Which of Lantern's functions for usage a schema has.
SELECT p.proname::text FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s AND p.proname IN ('increment_embedding_usage_and_tokens', 'increment_embedding_failures')

-- name: call_usage
SELECT {schema}.increment_embedding_usage_and_tokens(%(job)s::int, %(rows)s::int, %(tokens)s::bigint)

-- name: call_failures
SELECT {schema}.increment_embedding_failures(%(job)s::int, %(rows)s::int)

-- name: claim
-- The lock of one job, held by the session for as long as the job runs.
SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(%(name)s, 0))

-- name: unclaim
SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended(%(name)s, 0))

-- name: identity
-- Which database this is, whatever it is called from here: the server's identifier and the database's oid; and which
-- privileges of replication the role has.
SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), d.oid::bigint, d.datname::text
FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()

-- name: publication_members
-- The tables of a publication; no row where there is no publication, one with NULLs where it is empty.
SELECT n.nspname::text, c.relname::text, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate
FROM pg_catalog.pg_publication AS p
LEFT JOIN pg_catalog.pg_publication_rel AS r ON r.prpubid = p.oid
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = r.prrelid
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.pubname = %(publication)s

-- name: identified
-- Whether a table's rows can be told apart in the WAL: published without, its UPDATEs would fail.
SELECT CASE c.relreplident
           WHEN 'd' THEN EXISTS (SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
           WHEN 'i' THEN EXISTS (SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisreplident)
           ELSE c.relreplident = 'f'
       END
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: wal_level
SELECT pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery(),
       r.rolreplication OR r.rolsuper
FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user

-- name: rights
-- What the role may do with a job's table: (role, whether it owns the table, may read the source, may write the
-- destination; NULL: no such column).
SELECT current_user::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       (SELECT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attname = %(source)s AND NOT a.attisdropped),
       (SELECT pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE') FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attname = %(target)s AND NOT a.attisdropped)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
