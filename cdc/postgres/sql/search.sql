-- Nearest rows, for `walvec search` and POST /v1/search. {rows} is the source with its text.

-- name: pipeline
SELECT p.source_schema::text, p.source_table::text, p.text_columns, p.target_schema::text, p.target_table::text,
       p.target_column::text, p.vector_type, p.dimension, p.model, s.publication::text, p.fingerprint
FROM {schema}.pipelines AS p JOIN {schema}.slots AS s ON s.slot = p.slot
WHERE p.name = %(pipeline)s

-- name: names
SELECT name FROM {schema}.pipelines ORDER BY name

-- name: nearest
SELECT {n_keys}, n.distance, r.walvec_text
FROM (
    SELECT {e_keys}, {distance} AS distance
    FROM {holder} AS e
    WHERE e.{column} IS NOT NULL {condition}
    ORDER BY {distance} LIMIT %(k)s
) AS n
LEFT JOIN LATERAL (SELECT r.walvec_text FROM {rows} AS r WHERE {r_is_n} OFFSET 0) AS r ON true
ORDER BY n.distance

-- name: pgvector_distance
e.{column} OPERATOR({operators}.<=>) %(vector)s::{type}

-- name: plain_distance
-- Cosine distance without pgvector, exact, in double precision: products of small float4 numbers can underflow.
(SELECT 1 - sum(t.x::float8 * t.y::float8) / NULLIF(sqrt(sum(t.x::float8 ^ 2)) * sqrt(sum(t.y::float8 ^ 2)), 0)
 FROM unnest(e.{column}, %(vector)s::real[]) AS t (x, y))
