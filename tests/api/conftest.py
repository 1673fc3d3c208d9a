"""A server on a free port, in front of an engine that a test can steer."""

from __future__ import annotations

import threading

import httpx
import pytest

from cdc.api.server import HttpServer
from cdc.errors import ConfigError, PipelineFault, Unavailable, UnknownPipeline
from cdc.status import EngineStatus, HealthCheck, PipelineState, PipelineStatus, SlotState, SlotStatus
from cdc.telemetry.metrics import Metrics

STATUS = EngineStatus(
    slot=SlotStatus("walvec", SlotState.STREAMING, lag_bytes=4096, retained_bytes=1 << 24, safe_bytes=1 << 30),
    pipelines=(
        PipelineStatus(
            "public.articles",
            model="all-minilm-l6-v2",
            state=PipelineState.READY,
            unprocessed_rows=3,
            source_records=100,
            embeddings=97,
            lag_seconds=0.25,
            errors=1,
        ),
        PipelineStatus("files", source_type="volume", scans_completed=2, unprocessed_rows=1),
    ),
    checks=(HealthCheck("database", "ok"), HealthCheck("model", "ok")),
    inflight_requests=2,
)
ROW = {"key": {"id": 1}, "distance": 0.125, "content": "zip archives"}


class FakeEngine:
    """An EngineView whose answers are attributes, and whose blocking calls hang while ``stuck``."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.current = STATUS
        self.heartbeat_age = 0.1
        self.results: list[dict[str, object]] = [ROW]
        self.fault: Exception | None = None
        self.synced = True
        self.released.set()
        self.asked: list[dict[str, object]] = []

    def status(self) -> EngineStatus:
        return self.current

    def heartbeat_age_s(self) -> float:
        return self.heartbeat_age

    def search(self, pipeline, **question):
        self.asked.append({"pipeline": pipeline, **question})
        self.released.wait(60)
        if self.fault is not None:
            raise self.fault
        return self.results

    def sync(self, timeout_s):
        self.asked.append({"timeout_s": timeout_s})
        self.released.wait(60)
        return self.synced


FAULTS = [
    (UnknownPipeline("There is no pipeline 'x'."), 404, "There is no pipeline 'x'."),
    (ConfigError("The vector has 3 numbers.", "Send 384."), 400, "The vector has 3 numbers. Send 384."),
    (Unavailable("The model is away."), 503, "The model is away."),
    (PipelineFault("The destination is gone."), 503, "The destination is gone."),
    (KeyError("row text of somebody"), 500, "An unexpected fault; the log has its type."),
]


@pytest.fixture(scope="session")
def _engine():
    return FakeEngine()


@pytest.fixture
def engine(_engine):
    _engine.reset()
    yield _engine
    _engine.released.set()


@pytest.fixture(scope="session")
def _clients(_engine):
    """Return a function from a server's options to a client of that server, started once."""
    servers: dict[tuple, tuple[HttpServer, httpx.Client]] = {}

    def client(**options) -> httpx.Client:
        key = tuple(options.items())
        if key not in servers:
            metrics = Metrics()
            metrics.publish(STATUS)
            server = HttpServer("127.0.0.1:0", view=_engine, metrics=metrics, **options)
            servers[key] = server, httpx.Client(base_url=f"http://{server.start()}", timeout=10, trust_env=False)
        return servers[key][1]

    yield client
    for server, opened in servers.values():
        opened.close()
        server.stop()


@pytest.fixture
def serve(_clients, engine):
    return _clients


@pytest.fixture
def client(serve):
    return serve()
