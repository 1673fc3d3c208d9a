"""The page for Lantern's users: its SQL clears away what Lantern leaves, and the tests that it names are there."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from cdc import cli
from cdc.cli import lantern

ROOT = Path(lantern.__file__).parents[2]
PAGE = (ROOT / "docs" / "lantern.md").read_text("utf-8")

LEFT = """
CREATE SCHEMA _lantern_extras_internal;
CREATE TABLE books (id int PRIMARY KEY, title text);
CREATE FUNCTION notify_insert_lantern_daemon_v2_7() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('lantern_client_notifications_v2_7', NEW.id || ':7'); RETURN NULL; END $$;
CREATE TRIGGER trigger_lantern_jobs_v2_insert_7 AFTER INSERT ON books
    FOR EACH ROW EXECUTE FUNCTION notify_insert_lantern_daemon_v2_7();
CREATE TRIGGER trigger_lantern_jobs_v2_update_7 AFTER UPDATE OF title ON books
    FOR EACH ROW EXECUTE FUNCTION notify_insert_lantern_daemon_v2_7();
CREATE TABLE _lantern_extras_internal.embedding_generation_jobs (id serial PRIMARY KEY, runtime_params jsonb);
CREATE FUNCTION _lantern_extras_internal.told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('lantern_cloud_embedding_jobs_v2', 'insert:' || NEW.id); RETURN NULL; END $$;
CREATE TRIGGER told AFTER INSERT ON _lantern_extras_internal.embedding_generation_jobs
    FOR EACH ROW EXECUTE FUNCTION _lantern_extras_internal.told();
CREATE UNLOGGED TABLE _lantern_extras_internal._lantern_emb_job_locks (job_id int, row_id text);
CREATE UNLOGGED TABLE _lantern_extras_internal.job_init_7 (id int);
GRANT SELECT ON ALL TABLES IN SCHEMA _lantern_extras_internal TO PUBLIC;
CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER mine BEFORE INSERT ON books FOR EACH ROW EXECUTE FUNCTION mine();
CREATE TABLE job_init_8 (id int);
"""

FLAGS = {
    "create-embeddings": """-m --model -u --uri -t --table -s --schema -c --column --pk --out-uri --out-table
        --out-column -b --batch-size --job-type --column-type --runtime --runtime-params --visual -f --filter -l --limit
        --stream --create-column --create-cast-fn --check-column-type --internal-schema --failed-rows-table --job-id
        -o --out-csv --data-path""",
    "autotune-index": """-u --uri -s --schema -t --table -c --column --recall --k --test-data-size --metric-kind --pk
        --create-index --job-id --export-db-uri --export-schema-name --export-table-name --job-schema-name
        --job-table-name --model-name --export""",
    "create-index": """-u --uri -s --schema -t --table -c --column -m --efc --ef -d --metric-kind -o --out -i --import
        --remote-database --index-name --pq""",
    "measure-model-speed": """-m --model -u --uri -i --initial-limit -b --batch-size --max-tokens --runtime
        --runtime-params""",
    "show-models": "-d --data-path --runtime --runtime-params --job-type",
}


def test_the_sql_of_the_page_removes_what_lantern_left_and_nothing_else(database):
    script = "\n".join(re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL))
    with database.connect() as db:
        db.execute(LEFT)
        subprocess.run(
            [str(database.cluster.bin("psql")), "-X", "-v", "ON_ERROR_STOP=1", database.dsn()],
            input=script, text=True, check=True, capture_output=True,
        )  # fmt: skip
        assert db.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").fetchall() == [("mine",)]
        names = db.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace NOT IN"
            " ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY 1"
        ).fetchall()
        assert names == [("books",), ("embedding_generation_jobs",), ("job_init_8",)]
        assert not db.execute(
            "SELECT FROM information_schema.role_table_grants WHERE grantee = 'PUBLIC'"
            " AND table_schema = '_lantern_extras_internal'"
        ).fetchall()


def test_the_tests_that_the_page_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    written = "".join(file.read_text("utf-8") for file in (ROOT / "tests" / "acceptance").glob("test_*.py"))
    assert {name[5:7] for name in named} >= {f"{row:02}" for row in range(1, 18)}
    assert not [name for name in sorted(named) if f"def {name}(" not in written]


@pytest.mark.parametrize("command", sorted(FLAGS))
def test_lanterns_flags_are_all_taken(command):
    taken = {option for param in get_command(cli.app).commands[command].params for option in param.opts}  # type: ignore[attr-defined]
    assert not set(FLAGS[command].split()) - taken
