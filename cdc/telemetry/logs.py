"""Structured logs: one event per line, stable names, no secrets, no floods.

Logs go to stderr, so that what a command prints can be piped. They are JSON unless stderr is a terminal. Names of
events are those of :mod:`cdc.telemetry.events`; a module gets its logger with ``structlog.get_logger()``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TextIO

import structlog

from cdc.errors import ConfigError
from cdc.telemetry.redact import Redactor

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
REPEAT_AFTER_S = 5.0
"""An event of one pipeline is written at most this often; how many were held back is in ``suppressed``."""

_Event = MutableMapping[str, Any]
_FIRST = ("timestamp", "level", "event")
_CHATTY = ("uvicorn", "psycopg", "asyncio", "httpx", "httpcore", "tritonclient", "grpc", "stamina")


def configure(
    level: str = "info",
    format: str = "auto",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    repeat_after_s: float = REPEAT_AFTER_S,
) -> None:
    """Set up logging for the whole process; may be called again, and the last call holds.

    Args:
        level: debug, info, warning, error or critical.
        format: json, console, or auto: console where ``stream`` is a terminal.
        secrets: Values that must never be shown, in whatever shape they turn up.
        stream: Where lines go; stderr by default.
        repeat_after_s: Seconds between two lines of the same event, pipeline and level; 0 writes all.

    Raises:
        ConfigError: ``level`` or ``format`` is not one of these.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"WALVEC_LOG_LEVEL is {level!r}.", f"Use one of {', '.join(LEVELS)}.")
    if format not in ("auto", "json", "console"):
        raise ConfigError(f"WALVEC_LOG_FORMAT is {format!r}.", "Use auto, json or console.")
    out = stream if stream is not None else sys.stderr
    on_console = format == "console" or (format == "auto" and out.isatty())
    threshold = LEVELS[level.lower()]
    lines = _Lines(out)
    global _redactor
    _redactor = Redactor(secrets)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            RepeatLimit(repeat_after_s),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Redaction(_redactor, printable=on_console),
            _console(out) if on_console else structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,  # module-level loggers must follow a second call
    )
    _bridge(threshold)


_redactor = Redactor()


def hide(secrets: Iterable[str]) -> None:
    """Never show these values, too, from now on: secrets that are learnt of while the process runs."""
    _redactor.hide(secrets)


def clean(text: str) -> str:
    """Return ``text`` as a log line may show it: for sentences that are written elsewhere."""
    return _redactor.text(text)


class RepeatLimit:
    """Structlog processor: holds back an event that was written moments ago, and counts what it held back.

    What makes two events the same: name, level, pipeline, table, job and database; for lines of libraries also logger
    and message.

    Args:
        interval_s: Seconds between two lines of the same event.
        clock: Seconds from a clock that never goes back.
        remembered: Events kept in mind; the longest unseen is forgotten first.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic, remembered: int = 1024) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._remembered = remembered
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()

    def __call__(self, _logger: object, _method: str, event: _Event) -> _Event:
        """Pass ``event`` on, with ``suppressed`` where some were held back, or drop it."""
        if self._interval_s <= 0:
            return event
        parts = ("event", "level", "pipeline", "table", "job", "database", "logger", "message")
        key = tuple(str(event.get(part, "")) for part in parts)
        now = self._clock()
        with self._lock:
            written_at, held_back = self._seen.get(key, (-self._interval_s, 0))
            if key in self._seen and now - written_at < self._interval_s:
                self._seen[key] = (written_at, held_back + 1)
                raise structlog.DropEvent
            self._seen[key] = (now, 0)
            self._seen.move_to_end(key)
            while len(self._seen) > self._remembered:
                self._seen.popitem(last=False)
        if held_back:
            event["suppressed"] = held_back
        return event


class _Redaction:
    """Structlog processor: the last before rendering, so that nothing is added behind its back."""

    def __init__(self, redactor: Redactor, printable: bool) -> None:
        self._redactor = redactor
        self._printable = printable

    def __call__(self, _logger: object, _method: str, event: _Event) -> _Event:
        names = [*(n for n in _FIRST if n in event), *(n for n in event if n not in _FIRST)]
        clean = {name: self._redactor.field(name, event[name]) for name in names}
        if self._printable:  # a terminal obeys control characters; JSON escapes them anyway
            return {
                name: _escaped(value) if isinstance(value, str) and name != "exception" else value
                for name, value in clean.items()
            }
        return clean


class _Lines:
    """Writes whole lines from any thread. A log that cannot be written (closed pipe, full disk) stops nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = err = msg


class _Bridge(logging.Handler):
    """Takes what libraries log through the standard library into the same stream, as events ``library_log``."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit; logging's own complaint would print them as they are
            message = str(record.msg)
        log = structlog.get_logger()
        log.log(record.levelno, "library_log", logger=record.name, message=message, exc_info=record.exc_info or None)


def _bridge(threshold: int) -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge())
    root.setLevel(threshold)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def _console(stream: TextIO) -> structlog.typing.Processor:
    # Plain tracebacks: the decorated ones print local variables, and those hold rows.
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
    )


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
