-- A table of autotune's trials, for the command line: Lantern's columns, and walvec's beside them.

-- name: make
CREATE TABLE IF NOT EXISTS {table} (
    id            serial PRIMARY KEY,
    experiment_id int NOT NULL,
    ef            int NOT NULL,
    efc           int NOT NULL,
    m             int NOT NULL,
    recall        double precision NOT NULL,
    latency       double precision NOT NULL,
    build_time    double precision,
    latency_p99   double precision,
    size_bytes    bigint,
    backend       text,
    rows          bigint,
    dimension     int,
    metric        text,
    k             int,
    model         text,
    queries       int,
    query_kind    text,
    best          boolean NOT NULL DEFAULT false,
    summary       text,
    created_at    timestamp NOT NULL DEFAULT now()
)

-- name: insert
-- Of a trial what the table has columns for.
INSERT INTO {table} ({columns}) SELECT {columns} FROM pg_catalog.jsonb_populate_record(NULL::{table}, %(row)s::jsonb)

-- name: earlier
-- Winners for a model, newest first.
SELECT pg_catalog.to_jsonb(t) FROM {table} AS t
WHERE pg_catalog.to_jsonb(t) ->> 'model' = %(model)s AND (pg_catalog.to_jsonb(t) ->> 'best')::boolean
ORDER BY (pg_catalog.to_jsonb(t) ->> 'id')::bigint DESC LIMIT 50
