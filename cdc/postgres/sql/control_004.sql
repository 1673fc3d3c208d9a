-- The control schema, version 4: `walvec run` hears of a job as soon as it commits, through the stream that it reads
-- anyway. {schema} is the control schema's name.

-- name: create
CREATE FUNCTION {schema}.tell_of_jobs() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM pg_catalog.pg_logical_emit_message(true, 'walvec', 'jobs');
    RETURN NULL;
END
$$;

-- These are walvec's own tables; no table of a user's ever gets a trigger.
CREATE TRIGGER tell_of_jobs AFTER INSERT ON {schema}.embedding_generation_jobs
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.tell_of_jobs();
CREATE TRIGGER tell_of_jobs AFTER INSERT ON {schema}.external_index_jobs
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.tell_of_jobs();
CREATE TRIGGER tell_of_jobs AFTER INSERT ON {schema}.index_autotune_jobs
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.tell_of_jobs();

INSERT INTO {schema}.schema_version (version) VALUES (4);
