-- Source compared with destination, without touching either. {rows} is the source with its text and hash
-- (expressions.rows), {target} the embeddings table, or the table of hashes of an in-place pipeline.

-- name: definition
-- What a pipeline reads and writes; NULL in `there` where its destination is gone. Without a name, those of the main
-- job: jobs have consumers and models of their own. Parameters: pipeline, pipeline.
SELECT p.name, p.attached, p.source_schema, p.source_table, p.key_columns, p.text_columns, p.target_schema,
       p.target_table, p.target_column, p.model, p.dimension, p.fingerprint, s.publication,
       to_regclass(format('%%I.%%I', p.source_schema, p.source_table)) IS NOT NULL AS source_exists,
       to_regclass(format('%%I.%%I', p.target_schema, p.target_table)) IS NOT NULL AS target_exists
FROM {schema}.pipelines p JOIN {schema}.slots s ON s.slot = p.slot
WHERE p.name = %s OR (%s::text IS NULL AND p.attached AND p.kind = 'default')
ORDER BY p.name

-- name: compare
-- One statement, one snapshot: (rows, missing, stale, orphaned, duplicate).
WITH stored AS (
    SELECT {e_keys}, e.source_hash AS walvec_stored, {has_vector} AS walvec_vector, true AS walvec_there,
           row_number() OVER (PARTITION BY {e_keys} ORDER BY e.chunk) AS walvec_n
    FROM {target} AS e {source_join}
), compared AS (
    SELECT r.walvec_here, r.walvec_hash, e.walvec_there, e.walvec_stored, e.walvec_vector
    FROM (SELECT r.*, true AS walvec_here FROM {rows} AS r) AS r
    FULL JOIN (SELECT * FROM stored WHERE walvec_n = 1) AS e ON {r_is_e}
)
SELECT count(*) FILTER (WHERE walvec_here),
       count(*) FILTER (WHERE walvec_hash IS NOT NULL AND (walvec_there IS NULL OR NOT walvec_vector)),
       count(*) FILTER (WHERE walvec_hash IS NOT NULL AND walvec_vector AND walvec_stored IS DISTINCT FROM walvec_hash),
       count(*) FILTER (WHERE walvec_there AND walvec_hash IS NULL),
       (SELECT count(*) FROM stored WHERE walvec_n > 1)
FROM compared

-- name: sample
-- Random rows whose embedding is of their present text: (text, vector as real[]). Parameters: how many.
SELECT r.walvec_text, {vector}::real[]
FROM {rows} AS r JOIN {target} AS e ON {r_is_e} {source_join}
WHERE e.source_hash = r.walvec_hash AND {has_vector}
ORDER BY random() LIMIT %s
