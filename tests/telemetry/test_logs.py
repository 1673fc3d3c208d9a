import io
import json
import logging
import threading

import pytest
import structlog

from cdc.errors import ConfigError
from cdc.telemetry.logs import RepeatLimit, configure


@pytest.fixture(autouse=True)
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_unless_on_a_terminal():
    piped, terminal = io.StringIO(), Terminal()
    configure(stream=piped)
    structlog.get_logger().info("slot_streaming", slot="walvec")
    configure(stream=terminal)
    structlog.get_logger().info("slot_streaming", slot="walvec")
    event = json.loads(piped.getvalue())
    assert (event["event"], event["level"], event["slot"]) == ("slot_streaming", "info", "walvec")
    assert event["timestamp"].endswith("Z")
    assert "slot_streaming" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_stderr_is_the_default(capsys):
    configure(format="json")
    structlog.get_logger().info("slot_streaming")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "slot_streaming" in captured.err


def test_level():
    stream = io.StringIO()
    configure("warning", "json", stream=stream)
    structlog.get_logger().info("slot_streaming")
    assert stream.getvalue() == ""
    configure("debug", "json", stream=stream)
    structlog.get_logger().debug("slot_streaming")
    assert json.loads(stream.getvalue())["level"] == "debug"


@pytest.mark.parametrize(("level", "format", "named"), [("loud", "json", "LEVEL"), ("info", "xml", "FORMAT")])
def test_wrong_settings_are_refused(level, format, named):
    with pytest.raises(ConfigError, match=f"WALVEC_LOG_{named}.*Use"):
        configure(level, format)


def test_secrets_never_come_out():
    where, server_message = "postgresql://ann:open-sesame@db", "x\nDETAIL:  Failing row contains (diary)"
    for format in ("json", "console"):
        stream = io.StringIO()
        configure("info", format, stream=stream, secrets=["hunter2hunter2"], repeat_after_s=0)
        log = structlog.get_logger().bind(dsn="host=db password=hunter2hunter2")
        log.info("slot_streaming", where=where, nested=[{"password": "open-sesame"}])
        log.info("slot_streaming", fault=ValueError("password=open-sesame"), note="hunter2hunter2")
        try:
            raise RuntimeError(where) from ValueError(server_message)  # names only: a traceback quotes this line
        except RuntimeError:
            log.exception("pipeline_failed")
            logging.getLogger("psycopg").error("cannot reach %s", where, exc_info=True)
        text = stream.getvalue()
        assert text.count("RuntimeError: ") == 2
        for secret in ("open-sesame", "hunter2", "diary"):
            assert secret not in text


def test_local_variables_are_not_printed():
    stream = Terminal()
    configure("info", "auto", stream=stream)
    row_text = "dear " + "diary"
    try:
        raise RuntimeError(f"{len(row_text)}")
    except RuntimeError:
        structlog.get_logger().exception("pipeline_failed")
    assert "dear diary" not in stream.getvalue()


def test_a_terminal_gets_no_control_characters():
    stream = io.StringIO()
    configure("info", "console", stream=stream)
    structlog.get_logger().warning("pipeline_failed", pipeline="x\x1b[2Jy", reason="a\nforged")
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_libraries_go_the_same_way():
    logging.getLogger().handlers[:] = []  # pytest's own would raise at the malformed call
    stream = io.StringIO()
    configure("info", "json", stream=stream, repeat_after_s=0)
    logging.getLogger("uvicorn.error").warning("port %d", 80)
    logging.getLogger("uvicorn.error").info("chatter")
    logging.getLogger("psycopg").error("%d %d", 1)  # arguments that do not fit
    event, malformed = map(json.loads, stream.getvalue().splitlines())
    assert (malformed["logger"], malformed["message"]) == ("psycopg", "%d %d")
    assert event["event"] == "library_log"
    assert (event["logger"], event["message"], event["level"]) == ("uvicorn.error", "port 80", "warning")


def test_configuring_twice_writes_once():
    configure("info", "json", stream=io.StringIO())
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    logging.getLogger("x").warning("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_repeats_are_counted_and_told():
    now = [0.0]
    limit = RepeatLimit(5.0, clock=lambda: now[0])

    def passed(**event):
        try:
            return limit(None, "warning", event)
        except structlog.DropEvent:
            return None

    assert passed(event="model_unavailable", pipeline="a") == {"event": "model_unavailable", "pipeline": "a"}
    assert all(passed(event="model_unavailable", pipeline="a") is None for _ in range(3))
    assert passed(event="model_unavailable", pipeline="b")
    assert passed(event="model_recovered", pipeline="a")
    now[0] = 5.0
    again = passed(event="model_unavailable", pipeline="a")
    assert again is not None
    assert again["suppressed"] == 3
    now[0] = 10.0
    once_more = passed(event="model_unavailable", pipeline="a")
    assert once_more is not None
    assert "suppressed" not in once_more


def test_the_limiter_forgets_what_is_long_ago():
    limit = RepeatLimit(5.0, clock=lambda: 0.0, remembered=10)
    for i in range(1000):
        limit(None, "info", {"event": "table_added", "pipeline": str(i)})
    assert len(limit._seen) == 10


def test_a_closed_stream_stops_nothing():
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    stream.close()
    structlog.get_logger().info("slot_streaming")


def test_lines_of_many_threads_stay_whole():
    stream = io.StringIO()
    configure("info", "json", stream=stream, repeat_after_s=0)

    def work(n):
        for i in range(200):
            structlog.get_logger().info("slot_streaming", thread=n, i=i, filler="x" * 200)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {(e["thread"], e["i"]) for e in events} == {(n, i) for n in range(6) for i in range(200)}
