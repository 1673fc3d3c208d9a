"""The command line itself: flags, exit statuses, refusals, and what is loaded for a mere --help."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

import cdc
from cdc import cli, config
from cdc.errors import Fenced, PipelineFault, UnknownPipeline

COMMANDS = {
    "run", "init", "doctor", "status", "sync", "verify", "reconcile", "errors", "pause", "resume", "search", "drop",
    "demo", "config", "version", "bench", "model", "start-daemon",
    "create-embeddings", "show-models", "show-runtimes", "measure-model-speed", "autotune-index", "create-index",
    "pq-table", "start-server", "start-indexing-server",
}  # fmt: skip
NOT_PROVIDED = {"pq-table", "start-server", "start-indexing-server"}
SECRET = "hunter2"


@pytest.fixture
def walvec(monkeypatch, capsys):
    """Run a command in this process; return its exit status, standard output and standard error."""
    for setting in config.table():
        monkeypatch.delenv(setting.env, raising=False)

    def run(*args, **environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["walvec", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return ended.value.code, out, err

    return run


@pytest.fixture
def app(monkeypatch):
    """A stand-in for the module that runs the consumer."""
    fake = SimpleNamespace()
    for name in ("app", "consumer_process"):
        monkeypatch.setattr(cdc, name, fake, raising=False)
    return fake


def test_every_command_of_the_contract_is_there(walvec):
    code, out, _ = walvec("--help")
    assert code == 0
    assert set(get_command(cli.app).commands) == COMMANDS  # type: ignore[attr-defined]
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS - {"bench"} - NOT_PROVIDED))
def test_every_command_explains_itself(walvec, command):
    code, out, err = walvec(command, "--help")
    assert code == 0 and "Usage" in out and err == ""


def test_every_setting_is_a_flag_of_the_commands_that_use_settings(walvec):
    for command in ("run", "init", "doctor", "status", "sync", "verify", "reconcile", "search"):
        options = {option for param in get_command(cli.app).commands[command].params for option in param.opts}  # type: ignore[attr-defined]
        missing = [setting.flag for setting in config.table() if setting.flag not in options]
        assert missing == [], command


def test_help_and_version_load_nothing_heavy():
    heavy = [
        "numpy",
        "onnxruntime",
        "psycopg",
        "structlog",
        "starlette",
        "uvicorn",
        "tritonclient",
        "prometheus_client",
    ]
    code = (
        "import sys; from cdc import cli; sys.argv = ['walvec', 'version']\n"
        "try: cli.main()\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    root = Path(cdc.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.splitlines() == [f"walvec {cdc.__version__}", "[]"]


def test_version_as_json(walvec):
    code, out, _ = walvec("version", "--json")
    assert code == 0 and json.loads(out)["walvec"] == cdc.__version__


def test_config_show_prints_value_and_origin_and_no_secret(walvec, tmp_path):
    token = tmp_path / "token"
    token.write_text(SECRET)
    code, out, _ = walvec(
        "config", "show", "--json", "--slot", "mine",
        WALVEC_DATABASE_URL=f"postgresql://u:{SECRET}@db.corp/d", WALVEC_HTTP_TOKEN_FILE=str(token),
    )  # fmt: skip
    shown = {row["name"]: (row["value"], row["origin"]) for row in json.loads(out)}
    assert code == 0
    assert shown["WALVEC_SLOT"] == ("mine", "flag")
    assert shown["WALVEC_HTTP_TOKEN"] == ("***", "file")
    assert shown["WALVEC_INDEX"] == ("hnsw", "default")
    assert "db.corp" in shown["WALVEC_DATABASE_URL"][0] and shown["WALVEC_DATABASE_URL"][1] == "environment"
    code, out, _ = walvec("config", "show", "--redact")
    assert code == 0 and "db.corp" not in out


@pytest.mark.parametrize(
    ("args", "environ", "says"),
    [
        (["status"], {"WALVEC_SLOTT": "x"}, "Did you mean WALVEC_SLOT?"),
        (["status"], {"WALVEC_BATCH_ROWS": "many"}, "It takes a whole number"),
        (["status", "--batch-rows", "0"], {}, "--batch-rows: '0' is not allowed"),
        (["sync"], {"WALVEC_DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/d"}, "refused"),
        (["verify"], {"WALVEC_DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/d"}, "refused"),
        (["status"], {"WALVEC_DATABASE_URL": SECRET}, "is not allowed"),
        (["run"], {"WALVEC_RUNTIME": "triton"}, "WALVEC_TRITON_URL"),
    ],
)
def test_a_refusal_is_one_line_and_status_2(walvec, args, environ, says):
    code, out, err = walvec(*args, **environ)
    assert (code, out) == (2, "")
    assert err.startswith("walvec: ") and says in err and err.count("\n") == 1


def test_an_unknown_flag_or_command_is_status_2(walvec):
    for args in (["nope"], ["status", "--nope"], ["pause"], ["search", "p"], ["sync", "--timeout", "-1"]):
        code, _, err = walvec(*args)
        assert code == 2 and err, args


def test_run_hands_over_settings_and_exit_status(walvec, app):
    seen: list[config.Settings] = []

    def run(settings, serve):
        assert serve is None
        seen.append(settings)
        return 3

    app.run = run
    code, _, _ = walvec("run", "--slot", "mine", "--http", "off", WALVEC_MODEL="hash-8", WALVEC_RUNTIME="hash")
    assert code == 3
    assert (seen[0].slot, seen[0].model, seen[0].runtime) == ("mine", "hash-8", "hash")


@pytest.mark.parametrize(("error", "status"), [(Fenced("Taken over."), 3), (PipelineFault("Broken."), 2)])
def test_errors_of_the_consumer_keep_their_status(walvec, app, error, status):
    def run(_settings, _serve):
        raise error

    app.run = run
    code, _, err = walvec("run")
    assert (code, err) == (status, f"walvec: {error}\n")


def test_a_database_error_that_nobody_classified_is_a_refusal_too(walvec, app):
    from psycopg.errors import InvalidPassword

    def run(_settings, _serve):
        raise InvalidPassword(f"no {SECRET}")

    app.run = run
    code, _, err = walvec("run")
    assert code == 2 and err.count("\n") == 1


def test_search_prints_key_distance_and_text(walvec, app):
    found = [{"key": {"id": 1}, "distance": 0.25, "content": "read a\nzip " + "x" * 200}]
    app.search = lambda settings, pipeline, text, k, vector: found if (pipeline, text, k) == ("p", "zip", 3) else []
    code, out, _ = walvec("search", "p", "zip", "-k", "3")
    assert code == 0 and "0.2500" in out and "id=1" in out and "read a zip" in out
    code, out, _ = walvec("search", "p", "zip", "-k", "3", "--json")
    assert code == 0 and json.loads(out) == found


def test_search_asks_the_running_daemon_for_what_the_database_does_not_have(walvec, app, monkeypatch):
    asked = []

    def search(settings, pipeline, text, k, vector):
        raise UnknownPipeline("There is none.")

    def ask(settings, pipeline, text, vector, k, ef):
        asked.append((pipeline, text, vector, k, ef))
        return [{"key": {"id": 7}, "distance": 0.5, "content": None}]

    app.search = search
    monkeypatch.setattr("cdc.cli.asking.ask_search", ask)
    code, out, _ = walvec("search", "public.t.v", "--vector", "[1, 2.5]", "-k", "3")
    assert code == 0 and "id=7" in out
    code, out, _ = walvec("search", "public.t.v", "zip", "--ef", "90")
    assert code == 0
    assert asked == [("public.t.v", None, [1.0, 2.5], 3, None), ("public.t.v", "zip", None, 10, 90)]
    for wrong in (["--vector", "1, 2"], ["--vector", "[]"], ["zip", "--vector", "[1]"], []):
        code, _, err = walvec("search", "public.t.v", *wrong)
        assert code == 2 and "--vector" in err


def test_search_says_where_nobody_answers(walvec, app):
    def search(settings, pipeline, text, k, vector):
        raise UnknownPipeline("There is none.")

    app.search = search
    code, _, err = walvec("search", "p", "zip", "--http", "127.0.0.1:1")
    assert code == 2 and "There is none. No walvec answers at 127.0.0.1:1." in err


def test_reconcile_prints_what_it_did(walvec, app):
    def reconcile(settings, pipeline, *, dry_run, progress):
        progress("p", 5, 10)
        assert (pipeline, dry_run) == ("p", True)
        return [{"pipeline": "p", "rows": 10, "embedded": 3}]

    app.reconcile = reconcile
    code, out, _ = walvec("reconcile", "p", "--dry-run")
    assert code == 0 and "embedded" in out and "10" in out


# --- against a server ---------------------------------------------------------------------------------------------


@pytest.fixture
def there(settings):
    return {"WALVEC_DATABASE_URL": settings.database_url, "WALVEC_SLOT": settings.slot}


def test_from_init_to_drop(walvec, db, there):
    db.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
    code, out, err = walvec("init", **there)
    assert code == 2 and "walvec init --table" in err
    code, out, _ = walvec("status")
    assert code == 2
    code, out, _ = walvec("init", "--table", "articles")
    assert code == 0 and out.count("Made") >= 3
    code, out, _ = walvec("status", "--json")
    assert code == 0 and json.loads(out) == []
    code, out, _ = walvec("status")
    assert code == 0 and "auto processing" in out and "stopped" in out
    code, out, _ = walvec("verify", "--json")
    assert code == 0 and json.loads(out) == []
    code, out, err = walvec("sync", "--timeout", "0.2")
    assert code == 4 and "Not in sync after 0.2 s." in err
    code, out, _ = walvec("doctor", "--json")
    assert code == 1 and {"code", "status", "what", "why", "fix"} == set(json.loads(out)[0])
    code, out, err = walvec("drop")
    assert code == 2 and "frees" in out and "--yes" in err
    code, out, _ = walvec("drop", "--slot", "--yes")
    assert code == 0 and "schema" not in out
    code, out, _ = walvec("drop", "--yes")
    assert code == 0
    code, out, _ = walvec("drop", "--yes")
    assert code == 0 and "nothing to drop" in out


def test_verify_answers_with_its_status(walvec, app, pipeline, articles, there):
    articles.execute("INSERT INTO articles VALUES (1, 'a')")
    code, out, _ = walvec("verify", "--json", **there)
    assert code == 1
    assert json.loads(out) == [
        {"pipeline": pipeline, "rows": 1, "missing": 1, "stale": 0, "orphaned": 0, "duplicate": 0}
    ]
    code, out, err = walvec("verify", "nope")
    assert code == 2 and "Pipelines: public.articles." in err
    articles.execute("DELETE FROM articles")
    app.deep_verify = lambda settings, sample: 1
    code, out, _ = walvec("verify", "--deep", "5", "--json")
    assert code == 1 and json.loads(out)[0]["different"] == 1


def test_pause_resume_and_errors(walvec, pipeline, articles, there):
    assert walvec("pause", pipeline, **there)[:2] == (0, f"{pipeline} is paused.\n")
    assert walvec("pause", pipeline)[:2] == (0, f"{pipeline} was paused already.\n")
    assert walvec("resume", pipeline)[:2] == (0, f"{pipeline} goes on.\n")
    assert walvec("errors", "list")[:2] == (0, "No row is dead-lettered.\n")
    bury = (
        "INSERT INTO walvec.dead_letters (pipeline_id, key, cells, step, category, message, attempts)"
        " SELECT id, '{\"id\": 7}', '[\"7\"]', 'embed', 'refused', 'too long', 3 FROM walvec.pipelines"
    )
    articles.execute(bury)
    code, out, _ = walvec("errors", "list")
    assert code == 0 and "id=7" in out and "too long" in out
    code, out, _ = walvec("errors", "list", "--json")
    assert set(json.loads(out)[0]) == {
        "id", "pipeline", "key", "step", "category", "message", "attempts", "first_seen", "last_seen",
    }  # fmt: skip
    assert walvec("errors", "retry", pipeline)[:2] == (0, "Requeued: 1.\n")
    articles.execute(bury)
    assert walvec("errors", "clear")[:2] == (0, "Cleared: 1.\n")


def test_status_names_tables_that_no_pipeline_can_follow(walvec, pipeline, articles, there):
    articles.execute("CREATE TABLE keyless (body text); ALTER PUBLICATION walvec ADD TABLE keyless")
    code, out, _ = walvec("status", **there)
    assert code == 0 and "public.keyless has no primary key" in out


def test_watch_shows_the_status_again_until_interrupted(walvec, pipeline, there, monkeypatch):
    pauses = iter([None, None])

    def sleep(seconds):
        if next(pauses, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("cdc.cli.pipelines.time", SimpleNamespace(sleep=sleep))
    code, out, _ = walvec("status", "--watch", "--json", **there)
    assert code == 130
    assert [json.loads(line)[0]["knowledge_base"] for line in out.splitlines()] == [pipeline] * 3


def test_the_printed_sql_goes_to_standard_output_alone(walvec):
    code, out, err = walvec("init", "--print-sql", "--table", "a", WALVEC_DATABASE_URL="postgresql://bob@127.0.0.1:1/d")
    assert (code, err) == (0, "")
    assert 'CREATE SCHEMA "walvec" AUTHORIZATION "bob";' in out


def test_every_command_and_flag_is_documented():
    page = (Path(cdc.__file__).parents[1] / "docs" / "cli.md").read_text("utf-8")
    settings = {setting.flag for setting in config.table()} | {f"{s.flag}-file" for s in config.table()}
    todo = [("walvec", get_command(cli.app))]
    while todo:
        name, command = todo.pop()
        todo += [(f"{name} {sub}", found) for sub, found in getattr(command, "commands", {}).items()]
        if not getattr(command, "commands", {}):
            assert f"`{name}" in page, name
        for param in command.params:
            for option in param.opts:
                if option.startswith("--") and option not in settings and "completion" not in option:
                    assert option in page, (name, option)
