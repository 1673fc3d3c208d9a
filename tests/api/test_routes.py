import dataclasses
import datetime
import json
import uuid

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus, SlotState, SlotStatus
from tests.api.conftest import FAULTS, ROW, STATUS

# The public keys, spelled out on purpose: scripts of users read them.
KEYS = [
    *("knowledge_base", "auto_processing", "source_type", "unprocessed_rows", "scans_completed", "source_records"),
    *("embeddings", "status", "lag_seconds", "lag_bytes", "errors"),
]


def with_slot(state, **fields):
    return dataclasses.replace(STATUS, slot=SlotStatus("walvec", state, **fields))


def with_checks(*checks):
    return dataclasses.replace(STATUS, checks=checks)


def test_metrics_are_openmetrics_also_for_curl(client):
    reply = client.get("/metrics", headers={"Accept": "*/*"})
    assert reply.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(reply.text)}
    assert families["walvec_embeddings"].samples[0].value == 97
    plain = client.get("/metrics", headers={"Accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_status_is_the_list_of_status_json(client):
    articles, files = client.get("/status").json()
    assert list(articles) == KEYS
    assert articles == {
        "knowledge_base": "public.articles",
        "auto_processing": "Background",
        "source_type": "table",
        "unprocessed_rows": 3,
        "scans_completed": None,
        "source_records": 100,
        "embeddings": 97,
        "status": "ready",
        "lag_seconds": 0.25,
        "lag_bytes": 4096,
        "errors": 1,
    }
    assert (files["unprocessed_rows"], files["scans_completed"]) == (None, 2)


def test_disabled_has_nothing_unprocessed():
    status = EngineStatus(SlotStatus("s"), (PipelineStatus("p", mode="Disabled", unprocessed_rows=5),))
    assert status.to_json()[0]["unprocessed_rows"] == 0


@pytest.mark.parametrize(("age_s", "code"), [(0.0, 200), (29.9, 200), (30.1, 503), (9999.0, 503)])
def test_livez_is_the_age_of_the_last_turn(client, engine, age_s, code):
    engine.heartbeat_age = age_s
    engine.current = with_slot(SlotState.LOST)  # nothing external counts
    assert client.get("/livez").status_code == code


@pytest.mark.parametrize("state", list(SlotState))
def test_readyz_by_slot(client, engine, state):
    engine.current = with_slot(state, reason="because")
    reply = client.get("/readyz")
    if state in (SlotState.STREAMING, SlotState.STANDBY):
        assert reply.status_code == 200
    else:
        assert reply.status_code == 503
        assert f"{state.value}: because" in reply.json()["error"]


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (HealthCheck("database", "error", "connection refused"), 503),
        (HealthCheck("database", "warn", "slow"), 200),
        (HealthCheck("model", "error", "away"), 200),  # rows wait in the queue: nothing for a load balancer to mend
    ],
)
def test_readyz_by_check(client, engine, check, code):
    engine.current = with_checks(check)
    reply = client.get("/readyz")
    assert reply.status_code == code
    if code == 503:
        assert "connection refused" in reply.json()["error"]


def test_healthz_lists_each_check(client, engine):
    body = client.get("/healthz").json()
    assert body["status"] == "ok"
    assert {c["name"] for c in body["checks"]} == {"loop", "slot", "database", "model"}
    engine.current = dataclasses.replace(
        with_checks(HealthCheck("model", "warn", "slow")),
        pipelines=(PipelineStatus("p", state=PipelineState.ERROR, reason="no primary key"),),
    )
    reply = client.get("/healthz")
    assert (reply.status_code, reply.json()["status"]) == (200, "warn")
    assert {"name": "pipeline p", "status": "warn", "message": "no primary key"} in reply.json()["checks"]
    engine.heartbeat_age = 31.0
    reply = client.get("/healthz")
    assert (reply.status_code, reply.json()["status"]) == (503, "error")
    engine.heartbeat_age = 0.0
    engine.current = with_slot(SlotState.PUBLICATION_MISSING)
    assert client.get("/healthz").status_code == 503


def test_search_passes_the_question_and_returns_rows(client, engine):
    reply = client.post("/v1/search", json={"pipeline": "public.articles", "query": "zip"})
    assert reply.json() == {"results": [ROW]}
    client.post("/v1/search", json={"pipeline": "p", "vector": [1, 2.5], "k": 3, "filter": {"lang": "en"}, "ef": 80})
    assert engine.asked == [
        {"pipeline": "public.articles", "query": "zip", "vector": None, "k": 10, "filter": None, "ef": None},
        {"pipeline": "p", "query": None, "vector": [1.0, 2.5], "k": 3, "filter": {"lang": "en"}, "ef": 80},
    ]


def test_keys_of_every_type_become_json(client, engine):
    key = {"id": uuid.UUID(int=1), "day": datetime.date(2026, 1, 2), "f": float("nan"), "odd": "\ud800"}
    engine.results = [{"key": key, "distance": float("inf"), "content": None}]
    found = client.post("/v1/search", json={"pipeline": "p", "query": "q"}).json()["results"][0]
    assert found["key"] == {"id": str(uuid.UUID(int=1)), "day": "2026-01-02", "f": None, "odd": "?"}
    assert found["distance"] is None


GOOD = {"pipeline": "p", "query": "q"}
BAD_SEARCHES = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"[]", "object"),
    (json.dumps({"query": "q"}).encode(), '"pipeline"'),
    (json.dumps({"pipeline": 5, "query": "q"}).encode(), '"pipeline"'),
    (json.dumps({"pipeline": "p"}).encode(), 'either "query"'),
    (json.dumps({**GOOD, "vector": [1]}).encode(), 'either "query"'),
    (json.dumps({**GOOD, "query": "  "}).encode(), '"query"'),
    (json.dumps({**GOOD, "query": None}).encode(), '"query"'),
    (json.dumps({**GOOD, "query": "\ud800"}).encode(), "surrogate"),
    (json.dumps({"pipeline": "p", "vector": []}).encode(), '"vector"'),
    (json.dumps({"pipeline": "p", "vector": ["1"]}).encode(), "finite"),
    (json.dumps({"pipeline": "p", "vector": [True]}).encode(), "finite"),
    (b'{"pipeline": "p", "vector": [NaN]}', "finite"),
    (b'{"pipeline": "p", "vector": [1' + b"0" * 400 + b"]}", "finite"),
    (json.dumps({**GOOD, "k": 0}).encode(), '"k"'),
    (json.dumps({**GOOD, "k": 1001}).encode(), '"k"'),
    (json.dumps({**GOOD, "k": True}).encode(), '"k"'),
    (json.dumps({**GOOD, "k": "5"}).encode(), '"k"'),
    (json.dumps({**GOOD, "filter": []}).encode(), '"filter"'),
    (json.dumps({**GOOD, "ef": 0}).encode(), '"ef"'),
    (json.dumps({**GOOD, "ef": 20_000}).encode(), '"ef"'),
    (json.dumps({**GOOD, "ef": 1.5}).encode(), '"ef"'),
    (json.dumps({**GOOD, "limit": 5}).encode(), "not known"),
]


@pytest.mark.parametrize(("body", "names"), BAD_SEARCHES)
def test_bad_searches_are_told_why(client, engine, body, names):
    reply = client.post("/v1/search", content=body)
    assert reply.status_code == 400
    assert names in reply.json()["error"]
    assert not engine.asked


@pytest.mark.parametrize(("fault", "code", "sentence"), FAULTS)
def test_faults_become_codes_and_sentences(client, engine, fault, code, sentence):
    engine.fault = fault
    reply = client.post("/v1/search", json=GOOD)
    assert (reply.status_code, reply.json()) == (code, {"error": sentence})


def test_sync(client, engine):
    assert client.post("/v1/sync").json() == {"synced": True}
    assert client.post("/v1/sync", json={"timeout_s": 0.5}).json() == {"synced": True}
    assert engine.asked == [{"timeout_s": 30.0}, {"timeout_s": 0.5}]
    engine.synced = False
    reply = client.post("/v1/sync", json={"timeout_s": 0})
    assert reply.status_code == 504
    assert "within 0 s" in reply.json()["error"]


@pytest.mark.parametrize("value", [-1, 1e9, "5", True, None])
def test_bad_sync_timeouts(client, value):
    reply = client.post("/v1/sync", json={"timeout_s": value})
    assert reply.status_code == 400
    assert '"timeout_s"' in reply.json()["error"]


def test_a_large_body_is_refused(client, engine):
    for body in (b"x" * (1 << 20 | 1), (b"x" * 65536 for _ in range(17))):  # with a length, and in chunks
        reply = client.post("/v1/search", content=body)
        assert reply.status_code == 413
        assert "1048576 bytes" in reply.json()["error"]
    assert not engine.asked


def test_unknown_paths_and_methods_answer_in_json(client):
    assert client.get("/nothing").status_code == 404
    reply = client.get("/v1/search")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json() == {"error": "This path does not take this method."}


def test_the_page_may_run_only_its_own_script(client):
    reply = client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in reply.text.replace("http://www.w3.org/2000/svg", "")  # nothing from outside


def test_series_is_what_the_page_draws(client, engine):
    body = client.get("/series").json()
    assert body["pipelines"][0]["knowledge_base"] == "public.articles"
    assert body["slot"]["state"] == "streaming"
    assert len({len(column) for column in body["points"].values()}) == 1
