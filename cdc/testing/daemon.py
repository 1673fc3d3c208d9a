"""A real daemon in a process of its own: `walvec start-daemon`, started, watched, killed."""

from __future__ import annotations

import subprocess
import sys
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
        super().__init__(url, **environment)
        self.arguments = (*(("--uri", url) if url else ()), *arguments)

    def start(self) -> Self:
        """Start the process; it is not waited for."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "start-daemon", *self.arguments],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        return self
