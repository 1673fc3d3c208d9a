-- A table that is embedded once, with no slot, no publication and no control schema. {rows} is the source with its text
-- and hash (expressions.rows), {target} the table whose {column} is written: the source itself, or another one that is
-- keyed alike. Only what a user's filter needs runs under a search_path.

-- name: columns
-- A table's columns: name, the type as SQL writes it, the type's name under any domain, whether NULL is refused, and the
-- place in the primary key (NULL: none).
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
       (WITH RECURSIVE base (oid) AS (
            SELECT a.atttypid
            UNION ALL
            SELECT t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype = 'd')
        SELECT t.typname::text FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.oid WHERE t.typtype <> 'd'),
       a.attnotnull,
       (SELECT pg_catalog.array_position(i.indkey::int2[], a.attnum) FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = c.oid AND i.indisprimary)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p')
ORDER BY a.attnum

-- name: unique
-- Whether the table has an index by which rows are told apart by exactly these columns, given in alphabetical order.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s
      AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
      AND %(names)s::text[] = (
          SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE "C")
          FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
          JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
          WHERE k.ord <= i.indnkeyatts))

-- name: try_filter
EXPLAIN SELECT FROM {source} WHERE ({filter}
)

-- name: count
SELECT count(*) FROM {plain_rows} AS r

-- name: count_beside
SELECT count(*) FROM (SELECT * FROM {source} {where}) AS r {open}

-- name: page
-- A keyset page of rows with text that have no value yet. Texts past the byte budget are left for the next page
-- (`deferred`), so that a few giant values cannot fill memory.
SELECT {x_keys}, x.walvec_hash, CASE WHEN NOT x.deferred THEN x.walvec_text END, x.deferred
FROM (
    SELECT {r_keys}, r.walvec_hash, r.walvec_text,
           COALESCE(sum(octet_length(r.walvec_text))
               OVER (ORDER BY {r_keys} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) > %(bytes)s AS deferred
    FROM (SELECT {r_keys}, r.walvec_text, r.walvec_hash FROM {rows} AS r
          WHERE r.walvec_text IS NOT NULL {open} {after} ORDER BY {r_keys} LIMIT %(limit)s) AS r
) AS x
ORDER BY {x_keys}

-- name: again
-- The same for rows that are named, whatever the size of their texts.
SELECT {r_keys}, r.walvec_hash, r.walvec_text, false
FROM unnest({arrays}) AS u ({keys})
CROSS JOIN LATERAL (SELECT r.* FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
WHERE r.walvec_text IS NOT NULL {open}
ORDER BY {r_keys}

-- name: write
-- A value is written only where the row still has the very text that it was made of. Rows are found by place, as in
-- target.sql: one that another transaction moves meanwhile is not found, and is read again.
UPDATE {target} AS o SET {column} = {value}
FROM unnest({arrays}, %(hashes)s::bytea[]{values}) WITH ORDINALITY AS u ({keys}, walvec_hash{named}, walvec_ord)
CROSS JOIN LATERAL (SELECT r.walvec_hash AS now FROM {rows} AS r WHERE {r_is_u} OFFSET 0) AS r
CROSS JOIN LATERAL (SELECT o.tableoid AS part, o.ctid AS place FROM {target} AS o WHERE {o_is_u} OFFSET 0) AS q
WHERE o.tableoid = q.part AND o.ctid = q.place AND r.now = u.walvec_hash AND {still_open}
RETURNING u.walvec_ord

-- name: make_failures
CREATE TABLE IF NOT EXISTS {failures} (
    id         serial PRIMARY KEY,
    job_id     int NOT NULL,
    row_id     text NOT NULL,
    value      text NOT NULL,
    created_at timestamp NOT NULL DEFAULT now()
)

-- name: refuse
INSERT INTO {failures} (job_id, row_id, value)
SELECT %(job)s, u.row_id::{type}, u.value FROM unnest(%(rows)s::text[], %(texts)s::text[]) AS u (row_id, value)
