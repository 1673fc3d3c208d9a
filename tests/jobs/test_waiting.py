"""Jobs that wait for a server or a model: their row, /status, /healthz and the log say for what."""

import json
import socket
import urllib.request

from inference.testing_api import FakeApi
from tests.jobs.conftest import eventually
from tests.jobs.test_models_daemon import served


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(daemon, path):
    daemon.wait_for("http_listening")
    address = next(e["address"] for e in daemon.events if e["event"] == "http_listening")
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        return json.load(answer)


def test_what_a_job_waits_for_is_told_everywhere_and_in_a_jobs_words(jobs, tmp_path):
    jobs.texts("articles", 2)
    api = FakeApi(dimension=8)
    (tmp_path / "services").write_text("[other]\nhost=h\n")
    model_port, port = closed_port(), closed_port()
    with jobs.daemon(WALVEC_HTTP="127.0.0.1:0", PGSERVICEFILE=str(tmp_path / "services")) as daemon:
        service = jobs.add(db_connection="service=nosuch", dst_column="w")
        away = jobs.add(db_connection=f"postgresql://u:hunter2@127.0.0.1:{port}/db", dst_column="x")
        base_url = f"http://127.0.0.1:{model_port}"
        model = jobs.add(runtime="openai", embedding_model="m", runtime_params=json.dumps({"base_url": base_url}))
        # a service that libpq does not know is a wrong row, and no server that is away
        reason = jobs.until(service, "init_failed_at")["init_failure_reason"]
        assert "nosuch" in reason and "db_connection" in reason and "WALVEC" not in reason
        line = eventually(lambda: next((e for e in daemon.events if e["event"] == "job_waits"), None))
        assert "db_connection" in line["message"] and "WALVEC" not in line["message"]
        shown = eventually(lambda: reasons(daemon) if len(reasons(daemon)) == 2 else None, why=daemon.log[-3000:])
        assert "refused" in shown["x"] and "db_connection" in shown["x"]
        assert str(model_port) in shown["v"] and "WALVEC" not in shown["v"]
        checks = [c["message"] for c in ask(daemon, "/healthz")["checks"] if c["status"] == "warn"]
        assert any("2 jobs wait" in message for message in checks), checks
        # in the row once it has lasted
        for id in (away, model):
            row = jobs.until(id, "init_failure_reason", 50)
            assert (row["init_failed_at"], row["init_started_at"]) == (None, None)
            assert "WALVEC" not in row["init_failure_reason"]
        # and no more once it begins
        with served(api):
            jobs.set(model, runtime_params=json.dumps({"base_url": api.url}))
            row = jobs.until(model, "init_finished_at")
            assert row["init_failure_reason"] is None
            eventually(lambda: "v" not in reasons(daemon))
        assert "hunter2" not in daemon.log + json.dumps(ask(daemon, "/status"))


def reasons(daemon):
    """Return what waiting pipelines say, by the column that they write."""
    found = [p for p in ask(daemon, "/status") if p["status"] == "waiting" and "reason" in p]
    return {p["knowledge_base"].rpartition(".")[2]: p["reason"] for p in found}
