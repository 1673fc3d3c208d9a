-- The control schema, version 3: tables of jobs, with Lantern's columns. {schema} is the control schema's name.
-- Columns that only one generation of Lantern's daemon had may be left out of an INSERT. Nothing is granted to PUBLIC:
-- db_connection and runtime_params may hold secrets.

-- name: create
-- Text in one column, a vector (or a completion) in another. db_connection empty: the table is in this database.
CREATE TABLE {schema}.embedding_generation_jobs (
    id                  serial PRIMARY KEY,
    database_id         text,
    db_connection       text,
    "schema"            text NOT NULL DEFAULT 'public',
    "table"             text NOT NULL,
    pk                  text NOT NULL DEFAULT 'id',
    label               text,
    job_type            text NOT NULL DEFAULT 'embedding_generation',
    column_type         text NOT NULL DEFAULT 'REAL[]',
    runtime             text NOT NULL DEFAULT 'ort',
    runtime_params      jsonb,
    batch_size          int,
    src_column          text NOT NULL,
    dst_column          text NOT NULL,
    embedding_model     text NOT NULL,
    created_at          timestamp NOT NULL DEFAULT now(),
    updated_at          timestamp NOT NULL DEFAULT now(),
    canceled_at         timestamp,
    init_started_at     timestamp,
    init_finished_at    timestamp,
    init_failed_at      timestamp,
    init_failure_reason text,
    init_progress       int2 DEFAULT 0,
    failed_requests     bigint NOT NULL DEFAULT 0,
    failed_rows         bigint NOT NULL DEFAULT 0
);

-- An HNSW index built and kept outside the database; "index" names an in-database index to build too.
CREATE TABLE {schema}.external_index_jobs (
    id             serial PRIMARY KEY,
    database_id    text,
    db_connection  text,
    "schema"       text NOT NULL DEFAULT 'public',
    "table"        text NOT NULL,
    "column"       text NOT NULL,
    label          text,
    "index"        text,
    operator       text NOT NULL DEFAULT 'dist_l2sq_ops',
    efc            int NOT NULL DEFAULT 128,
    ef             int NOT NULL DEFAULT 64,
    m              int NOT NULL DEFAULT 16,
    created_at     timestamp NOT NULL DEFAULT now(),
    updated_at     timestamp NOT NULL DEFAULT now(),
    canceled_at    timestamp,
    started_at     timestamp,
    finished_at    timestamp,
    failed_at      timestamp,
    failure_reason text,
    progress       int2 DEFAULT 0
);

-- A search for the cheapest HNSW parameters that reach a recall. target_recall is a percentage, n a number of rows.
CREATE TABLE {schema}.index_autotune_jobs (
    id              serial PRIMARY KEY,
    database_id     text,
    db_connection   text,
    "schema"        text NOT NULL DEFAULT 'public',
    "table"         text NOT NULL,
    "column"        text NOT NULL,
    label           text,
    metric_kind     text,
    operator        text,
    target_recall   double precision NOT NULL,
    embedding_model text,
    k               int NOT NULL DEFAULT 10,
    n               int,
    create_index    boolean NOT NULL DEFAULT false,
    query_table     text,
    query_column    text,
    created_at      timestamp NOT NULL DEFAULT now(),
    updated_at      timestamp NOT NULL DEFAULT now(),
    canceled_at     timestamp,
    started_at      timestamp,
    finished_at     timestamp,
    failed_at       timestamp,
    failure_reason  text,
    progress        int2 DEFAULT 0
);

-- Every trial of an autotune job (experiment_id is the job's id): recall in per cent, latency in milliseconds (median),
-- build_time in seconds. n, query_table and query_column of a job say which rows and which queries are used.
CREATE TABLE {schema}.autotune_results (
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
    backend       text,                            -- where it was tried: hnswlib or pgvector
    rows          bigint,
    dimension     int,
    metric        text,
    k             int,
    model         text,
    queries       int,
    query_kind    text,                            -- held out, or logged
    best          boolean NOT NULL DEFAULT false,  -- the winner, with why in summary
    summary       text,
    created_at    timestamp NOT NULL DEFAULT now()
);
CREATE INDEX autotune_results_experiment_idx ON {schema}.autotune_results (experiment_id);

-- What jobs used: rows embedded and their tokens, about once a second, and rows of requests that failed.
CREATE TABLE {schema}.embedding_usage_info (
    id         serial PRIMARY KEY,
    job_id     int NOT NULL,
    rows       int NOT NULL,
    tokens     int NOT NULL DEFAULT 0,
    failed     boolean NOT NULL DEFAULT false,
    created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX embedding_usage_date_idx ON {schema}.embedding_usage_info (created_at);

-- Answers of a model that the job's column type does not take.
CREATE TABLE {schema}.embedding_failure_info (
    id         serial PRIMARY KEY,
    job_id     int NOT NULL,
    row_id     text NOT NULL,
    value      text NOT NULL,
    created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX embedding_failure_job_idx ON {schema}.embedding_failure_info (job_id, row_id);

INSERT INTO {schema}.schema_version (version) VALUES (3);
