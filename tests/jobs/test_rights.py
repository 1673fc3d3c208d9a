"""Jobs of one database share one engine, and so its role: whose code it would run is asked before anything is done."""

import secrets

import psycopg
import pytest

from cdc.errors import ConfigError
from cdc.jobs import EmbeddingSpec, Job, JobId, JobKind
from cdc.postgres.job_rights import Asker, check_hands, check_rights
from cdc.rows import Table
from tests.jobs.conftest import eventually

TAKE_OVER = """
CREATE FUNCTION m.f() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        ALTER ROLE {name} SUPERUSER;
    END IF;
    RETURN new;
END $$;
"""
TRIGGER = "CREATE TRIGGER x BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION m.f()"


class Mallory:
    """A role that may log in, has a schema, and no rights beside it."""

    def __init__(self, jobs):
        self.jobs, self.name = jobs, f"mallory_{secrets.token_hex(4)}"
        jobs.db.execute(f"CREATE ROLE {self.name} LOGIN PASSWORD 'mallory-secret'")
        jobs.db.execute(f"CREATE SCHEMA m AUTHORIZATION {self.name}")
        self.dsn = psycopg.conninfo.make_conninfo(jobs.database.dsn(), user=self.name, password="mallory-secret")
        self.db = psycopg.connect(self.dsn, autocommit=True)
        self.db.execute(TAKE_OVER.format(name=self.name))

    def is_superuser(self):
        return self.jobs.db.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [self.name]).fetchone()[0]

    def add(self, table, schema="public", **columns):
        return self.jobs.add(table, db_connection=self.dsn, schema=schema, **columns)

    def leave(self):
        self.db.close()
        self.jobs.db.execute(f"DROP OWNED BY {self.name} CASCADE; DROP ROLE {self.name}")


@pytest.fixture
def mallory(jobs):
    jobs.texts("boss", 1)
    role = Mallory(jobs)
    yield role
    role.leave()


def own(mallory, column=", v real[]"):
    mallory.db.execute(f"CREATE TABLE m.own (id int PRIMARY KEY, body text{column})")
    mallory.db.execute("INSERT INTO m.own VALUES (1, 'a')")
    mallory.db.execute(TRIGGER.format(table="m.own"))


@pytest.mark.parametrize("column", [", v real[]", ""])
def test_nobody_gets_the_engines_role_through_a_table_of_theirs(jobs, mallory, column):
    own(mallory, column)
    with jobs.daemon() as daemon:
        jobs.until(jobs.add("boss"), "init_finished_at")
        id = mallory.add("own", "m")
        eventually(lambda: jobs.row(id)["init_finished_at"] or jobs.row(id)["init_failed_at"], why=daemon.log)
        row = jobs.row(id)
        assert not mallory.is_superuser()
        assert row["init_started_at"] is None and row["init_finished_at"] is None
        reason = row["init_failure_reason"]
        assert f'"{mallory.name}"' in reason and f'"{jobs.db.info.user}"' in reason and "m.own" in reason
        assert "db_connection" in reason and "mallory-secret" not in daemon.log
        assert (
            jobs.db.execute("SELECT to_regclass('walvec.pipelines'), count(*) FROM walvec.pipelines").fetchone()[1] == 1
        )
        assert daemon.stop() == 0


def test_a_refused_edit_ends_what_ran_before(jobs, mallory):
    """A job that one role may run is not run on for another role whose table it is."""
    own(mallory)
    mallory.db.execute("DROP TRIGGER x ON m.own")
    with jobs.daemon() as daemon:
        jobs.until(jobs.add("boss"), "init_finished_at")
        id = jobs.add("own", schema="m")  # with the engine's own role: whoever wrote that, trusts the table
        jobs.until(id, "init_finished_at")
        jobs.set(id, db_connection=mallory.dsn)
        jobs.until(id, "init_failed_at")
        daemon.wait_for("pipeline_failed")
        mallory.db.execute(TRIGGER.format(table="m.own"))
        mallory.db.execute("INSERT INTO m.own VALUES (2, 'b')")
        other = jobs.add("boss", dst_column="w")
        jobs.until(other, "init_finished_at")
        assert mallory.db.execute("SELECT v FROM m.own WHERE id = 2").fetchone() == (None,)
        assert not mallory.is_superuser()
        assert daemon.stop() == 0


def test_a_role_of_its_own_may_write_what_trusted_hands_own(jobs, mallory):
    jobs.texts("articles", 2)
    jobs.db.execute(f"ALTER TABLE articles ADD v real[]; GRANT SELECT, UPDATE (v) ON articles TO {mallory.name}")
    with jobs.daemon() as daemon:
        jobs.until(jobs.add("boss"), "init_finished_at")
        jobs.until(mallory.add("articles"), "init_finished_at")
        assert jobs.missing() == 0
        assert daemon.stop() == 0


def test_an_engine_that_is_made_anew_as_another_role_runs_nothing_that_was_not_asked_of_it(jobs, mallory):
    """Mallory's job ran as mallory; then the engine went, and the next one is the superuser's."""
    own(mallory)
    jobs.db.execute(
        f"ALTER ROLE {mallory.name} REPLICATION; GRANT CREATE ON DATABASE {jobs.database.name} TO {mallory.name}"
    )
    with jobs.daemon() as daemon:
        daemon.wait_for("job_feed_streaming")
        for what in ("SCHEMA walvec", "ALL TABLES IN SCHEMA walvec", "ALL SEQUENCES IN SCHEMA walvec"):
            jobs.db.execute(f"GRANT ALL ON {what} TO {mallory.name}")
        id = mallory.add("own", "m")
        jobs.until(id, "init_finished_at")
        jobs.db.execute(f"ALTER ROLE {mallory.name} NOREPLICATION NOLOGIN")
        jobs.db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [mallory.name])
        mallory.db.close()
        daemon.wait_for("job_engine_failed")
        jobs.db.execute("INSERT INTO m.own VALUES (2, 'b')")
        jobs.until(jobs.add("boss"), "init_finished_at")
        eventually(lambda: jobs.missing("boss") == 0)
        assert jobs.db.execute("SELECT v FROM m.own WHERE id = 2").fetchone() == (None,)
        assert not mallory.is_superuser()
        assert daemon.stop() == 0


def job_on(schema, table):
    id, spec = JobId("here", Table("public", "jobs"), 1), EmbeddingSpec("body", "v", "hash-8", "hash")
    return Job(id, JobKind.EMBEDDING, "", "here", Table(schema, table), spec)


def refusal(jobs, mallory, schema, table):
    """What is said to a job of mallory's that a superuser would run; empty: nothing."""
    job = job_on(schema, table)
    jobs.db.execute(f"GRANT SELECT, UPDATE ON {schema}.{table} TO {mallory.name}")
    try:
        check_hands(jobs.db, job, check_rights(mallory.db, job))
    except ConfigError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("", ""),
        ("GRANT TRIGGER ON public.docs TO {mallory}", '"{mallory}" may make triggers on public.docs'),
        ("GRANT TRIGGER ON public.docs TO PUBLIC", "PUBLIC may make triggers on public.docs"),
        (TRIGGER.format(table="public.docs"), '"{mallory}" owns a trigger\'s function of public.docs'),
        ("ALTER TABLE public.docs ENABLE ROW LEVEL SECURITY", "row-level security"),
        ("ALTER TABLE public.docs SET SCHEMA m", '"{mallory}" owns the schema of m.docs'),
        ("ALTER TABLE public.docs OWNER TO {mallory}", '"{mallory}" owns public.docs'),
        ("ALTER TABLE public.docs OWNER TO {mallory}; ALTER ROLE {mallory} SUPERUSER", ""),
        ("ALTER TABLE public.docs OWNER TO {mallory}; GRANT postgres TO {mallory}", ""),
    ],
)
def test_whose_code_would_run(jobs, mallory, made, said):
    jobs.db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, v real[])")
    jobs.db.execute(made.format(mallory=mallory.name).encode())
    found = refusal(jobs, mallory, "m" if "SET SCHEMA" in made else "public", "docs")
    assert (said.format(mallory=mallory.name) in found) if said else not found


@pytest.mark.parametrize("hers", ["whole", "part"])
def test_whose_code_would_run_for_partitions_and_what_they_are_of(jobs, mallory, hers):
    jobs.db.execute("CREATE TABLE whole (id int PRIMARY KEY, body text, v real[]) PARTITION BY RANGE (id)")
    jobs.db.execute("CREATE TABLE part PARTITION OF whole FOR VALUES FROM (1) TO (9)")
    jobs.db.execute(f"ALTER TABLE {hers} OWNER TO {mallory.name}")
    for table in ("whole", "part"):
        assert f'"{mallory.name}" owns' in refusal(jobs, mallory, "public", table)


def test_roles_are_those_that_logged_in(jobs, mallory):
    """Code that runs under SET ROLE comes back to the role that logged in, as it likes."""
    jobs.db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, v real[])")
    jobs.db.execute(f"ALTER TABLE docs OWNER TO {mallory.name}")
    job = job_on("public", "docs")
    with jobs.database.connect(options=f"-c role={mallory.name}") as lowered:
        with pytest.raises(ConfigError, match="could have code run"):
            check_hands(lowered, job, check_rights(mallory.db, job))
        check_hands(jobs.db, job, check_rights(lowered, job))
    check_hands(mallory.db, job, Asker(mallory.name, filtered=False))


def test_on_an_old_server_membership_is_what_counts(database15):
    with database15.connect() as db:
        name = f"member_{secrets.token_hex(4)}"
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, v real[])")
        db.execute(f"CREATE ROLE {name}; ALTER TABLE docs OWNER TO {name}")
        job = job_on("public", "docs")
        with pytest.raises(ConfigError, match="could have code run"):
            check_hands(db, job, Asker(name, filtered=False))
        db.execute(f"GRANT postgres TO {name}")
        check_hands(db, job, Asker(name, filtered=False))
        db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
