"""One daemon over Lantern's tables for a whole module: tests make tables and jobs of their own, and cancel them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from cdc.testing.cluster import Cluster
from cdc.testing.daemon import Daemon
from inference.testing_api import FakeApi
from tests.acceptance.scene import World, served


class Running(World):
    """A world with its daemon."""

    daemon_now: Daemon

    @property
    def log(self) -> str:
        """What the daemon has logged."""
        return self.daemon_now.log


@pytest.fixture(scope="module")
def shared(pg18: Cluster) -> Iterator[Running]:
    """A control database and a target on PostgreSQL 18, a daemon, and one job that keeps the target's engine alive."""
    control = pg18.create_database(f"control_{secrets.token_hex(4)}")
    target = pg18.create_database(f"target_{secrets.token_hex(4)}")
    world = Running(control, target)
    world.db.execute("CREATE EXTENSION vector")
    try:
        with world.daemon() as daemon:
            world.daemon_now = daemon
            daemon.wait_for("job_feed_streaming")
            keeper = world.job(world.texts(1))
            world.done(keeper)
            world._made.clear()
            yield world
            assert daemon.stop() == 0, daemon.log[-4000:]
            assert "An unexpected fault" not in daemon.log
            assert "Traceback" not in daemon.log
    finally:
        world.close()
        control.drop()
        target.drop()


@pytest.fixture
def world(shared: Running, request: pytest.FixtureRequest) -> Iterator[Running]:
    """The shared world; the test's jobs are canceled when it ends, and its log is shown if it fails."""
    before = len(shared.log)
    yield shared
    shared.cancel_all()
    report: Any = getattr(request.node, "report_of_call", None)
    if report is not None and report.failed:
        print(shared.log[before:][-6000:])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let fixtures know how their test went."""
    report = yield
    if report.when == "call":
        item.report_of_call = report  # type: ignore[attr-defined]
    return report


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """A web API with 8 dimensions whose vectors are those of the runtime ``hash``."""
    with served(FakeApi(dimension=8)) as api:
        yield api
