"""A real consumer in a process of its own: `walvec run`, started, watched, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def environment(url: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a walvec command: none of the caller's own settings, the ``hash`` runtime, no HTTP."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("WALVEC_", "PG"))}
    chosen = {"WALVEC_RUNTIME": "hash", "WALVEC_HTTP": "off", "WALVEC_INDEX": "off", "WALVEC_LOG_FORMAT": "json"}
    return {**mine, **chosen, "WALVEC_DATABASE_URL": url, **(settings or {})}


class Consumer:
    """``walvec run`` as a child process.

    Args:
        url: The database.
        settings: Further ``WALVEC_*`` variables.
    """

    def __init__(self, url: str, **settings: str) -> None:
        self.environment = environment(url, settings)
        self._log = Path(tempfile.mkstemp(prefix="walvec-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process; it is not waited for."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "run"], env=self.environment, stdout=log, stderr=log
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None, "start() comes first"
        return self._process

    @property
    def log(self) -> str:
        """All that the consumer has logged, every run of it."""
        return self._log.read_text("utf-8", "replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log's events."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def wait_for(self, what: str | Callable[[dict[str, Any]], bool], timeout_s: float = 15.0) -> dict[str, Any]:
        """Return the first event of this name (or for which the function is true), waiting for it.

        Raises:
            AssertionError: it did not come in time; the log is in the message.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self.events:
                if event.get("event") == what if isinstance(what, str) else what(event):
                    return event
            if self._process is not None and self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no event {what!r} within {timeout_s} s\n{self.log[-4000:]}")

    def stop(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL, and see the process gone."""
        self.process.kill()
        self.process.wait()

    def rss_bytes(self) -> int:
        """Return the most memory the process has ever held, in bytes (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def command(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run another walvec command against the same database."""
        return subprocess.run(
            [sys.executable, "-m", "cdc.cli", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def sync(self, timeout_s: float = 30.0) -> None:
        """Run ``walvec sync``.

        Raises:
            AssertionError: it did not end with 0; its words and the log are in the message.
        """
        done = self.command("sync", "--timeout", str(timeout_s), timeout_s=timeout_s + 30)
        assert done.returncode == 0, f"sync: {done.stderr}\n{self.log[-4000:]}"

    def verify(self) -> list[dict[str, Any]]:
        """Run ``walvec verify --json`` and return its rows, whatever it found."""
        done = self.command("verify", "--json")
        assert done.returncode in (0, 1), done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if exc is not None:
            print(self.log[-8000:], file=sys.stderr)
        self._log.unlink(missing_ok=True)
