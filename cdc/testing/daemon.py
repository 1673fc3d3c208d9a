"""A real daemon in a process of its own: `walvec start-daemon`, started, watched, killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from cdc.testing.consumer import Consumer


class Daemon(Consumer):
    """``walvec start-daemon`` as a child process.

    Args:
        url: The control database, given as ``--uri``; empty: ``arguments`` say which.
        arguments: Further words of the command line.
        environment: Further variables. The runtime of jobs is what their rows say, whatever WALVEC_RUNTIME is.
    """

    def __init__(self, url: str, *arguments: str, **environment: str) -> None:
        self._indexes = tempfile.mkdtemp(prefix="walvec-indexes-")
        super().__init__(url, **{"WALVEC_INDEX_DIR": self._indexes, **environment})
        self.arguments = (*(("--uri", url) if url else ()), *arguments)

    def start(self) -> Self:
        """Start the process; it is not waited for."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "start-daemon", *self.arguments],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, trace)
        shutil.rmtree(self._indexes, ignore_errors=True)
