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

-- name: rights_on_book
-- What the role may do with a book: (role, table, the columns among those named that it may not write, whether it may
-- read all); names are quoted as in SQL. No row: there is no such table.
SELECT pg_catalog.quote_ident(current_user), pg_catalog.format('%%I.%%I', n.nspname, c.relname),
       coalesce(array_agg(pg_catalog.quote_ident(a.attname) ORDER BY a.attnum)
                FILTER (WHERE a.attname = ANY (%(columns)s::name[])
                          AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE')), ARRAY[]::text[]),
       bool_and(pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'))
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
GROUP BY c.oid, n.nspname, c.relname

-- name: give_default
ALTER TABLE {book} ALTER COLUMN {column} SET DEFAULT {value}

-- name: stamp
-- Which tables the names mean now, with which columns, and who can see what: a table that was dropped and made anew has
-- another oid.
SELECT pg_catalog.pg_current_snapshot()::text,
       (SELECT coalesce(string_agg(
                   c.oid::text || ' ' || (SELECT coalesce(string_agg(a.attname || ' ' || a.atttypid, ' ' ORDER BY a.attnum), '')
                                          FROM pg_catalog.pg_attribute AS a
                                          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                   ',' ORDER BY n.nspname, c.relname), '')
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

-- name: remove_results
DELETE FROM {book} WHERE experiment_id = %(id)s

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
-- What the role may do with a job's table: (role, the one that logged in, whether row-level security hides rows from it,
-- whether it owns the table, may read the source, may write the destination; NULL: no such column).
SELECT current_user::text, session_user::text, pg_catalog.row_security_active(c.oid),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       (SELECT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attname = %(source)s AND NOT a.attisdropped),
       (SELECT pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE') FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attname = %(target)s AND NOT a.attisdropped)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s

-- name: session
-- The role that logged in: code that runs under another one can come back to it with RESET ROLE.
SELECT session_user::text

-- name: hands
-- Who could have code of theirs run by whoever writes a table, and may not act as this session's role anyway: owners of
-- the table, of what it is a partition of and of its partitions; who may make triggers on them, and who wrote those that
-- are there; and the schema's owner, who could put another table in its place.
WITH RECURSIVE named AS (
    SELECT c.oid, n.nspowner
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s
), above AS (
    SELECT oid FROM named
    UNION SELECT i.inhparent FROM above JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = above.oid
), below AS (
    SELECT oid FROM named
    UNION SELECT i.inhrelid FROM below JOIN pg_catalog.pg_inherits AS i ON i.inhparent = below.oid
), relatives AS (
    SELECT c.oid, c.relowner, c.relacl
    FROM pg_catalog.pg_class AS c WHERE c.oid IN (SELECT oid FROM above UNION SELECT oid FROM below)
), hands (role, what) AS (
    SELECT r.relowner, 'owns' FROM relatives AS r
    UNION ALL
    SELECT a.grantee, 'may make triggers on'
    FROM relatives AS r CROSS JOIN LATERAL pg_catalog.aclexplode(r.relacl) AS a WHERE a.privilege_type = 'TRIGGER'
    UNION ALL
    SELECT p.proowner, 'owns a trigger''s function of'
    FROM relatives AS r
    JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = r.oid
    JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    UNION ALL
    SELECT CASE WHEN pg_catalog.pg_get_userbyid(n.nspowner) = 'pg_database_owner' THEN d.datdba ELSE n.nspowner END,
           'owns the schema of'
    FROM named AS n JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
)
SELECT CASE WHEN h.role = 0 THEN 'PUBLIC' ELSE '"' || pg_catalog.pg_get_userbyid(h.role) || '"' END, h.what
FROM hands AS h
WHERE h.role = 0 OR NOT pg_catalog.pg_has_role(h.role, session_user, %(act)s)
ORDER BY pg_catalog.array_position(ARRAY['owns', 'owns a trigger''s function of', 'may make triggers on'], h.what)
LIMIT 1
