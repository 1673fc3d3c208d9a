"""The line between the consumer and the server breaks, dribbles, or goes silent."""

from __future__ import annotations

import random
import secrets
import time

import pytest

from cdc.status import SlotState
from cdc.testing.proxy import FaultProxy
from tests.sim.world import EngineThread, assert_in_step, settings_for


def through(proxy: FaultProxy, database) -> str:
    url: str = database.url
    return url.replace(f":{database.cluster.port}/", f":{proxy.port}/")


def until(what, timeout_s: float = 15.0) -> float:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < timeout_s, "it did not come to that"
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.slow
def test_resets_in_the_middle_of_messages_lose_nothing(database18, notes18):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with (
        FaultProxy("127.0.0.1", database18.cluster.port) as proxy,
        EngineThread(settings_for(through(proxy, database18))) as engine,
    ):
        engine.sync()
        for n in range(5):
            before = proxy.connections
            proxy.reset_after(rng.randrange(1, 60_000))
            for _ in range(12):
                notes18.execute(
                    "INSERT INTO notes SELECT i, %s::text, repeat('x', 400) FROM generate_series(%s::int, %s::int) i"
                    " ON CONFLICT (id) DO UPDATE SET title = excluded.title",
                    [n, rng.randrange(50), 200],
                )
            until(lambda before=before: proxy.connections > before)
        proxy.heal()
        engine.sync()
        assert_in_step(notes18, "notes", ["id"])


def test_a_line_that_passes_one_byte_at_a_time_is_read_right(database18, notes18):
    with (
        FaultProxy("127.0.0.1", database18.cluster.port) as proxy,
        EngineThread(settings_for(through(proxy, database18))) as engine,
    ):
        engine.sync()
        proxy.shape(slice_bytes=1)
        notes18.execute("UPDATE notes SET title = title || '!' WHERE id < 8; DELETE FROM notes WHERE id = 9")
        engine.sync(60)
        assert_in_step(notes18, "notes", ["id"])


@pytest.mark.slow
def test_a_server_that_falls_silent_is_noticed_within_30_seconds(database18, notes18):
    """Half open: nothing is refused, nothing is reset, nothing comes."""
    with (
        FaultProxy("127.0.0.1", database18.cluster.port) as proxy,
        EngineThread(settings_for(through(proxy, database18))) as engine,
    ):
        engine.sync()
        assert engine.engine is not None
        status = engine.engine.status
        proxy.stall()
        noticed = until(lambda: status().slot.state is not SlotState.STREAMING, 30)
        print(f"noticed after {noticed:.1f} s")
        proxy.heal()
        notes18.execute("UPDATE notes SET title = 'after the silence'")
        engine.sync(60)
        assert_in_step(notes18, "notes", ["id"])
