"""What the demo plays on: a server of its own, a database, a consumer, and ways to look at them.

All of it lies in one temporary folder and goes away with the process, however that ends: the guard of
:class:`~cdc.testing.cluster.Cluster` removes server and folder, one of our own stops the consumer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import psycopg

from cdc import config
from cdc.config import Settings
from cdc.demo.screen import Screen
from cdc.errors import WalvecError
from cdc.postgres.sync import Sync
from cdc.testing.cluster import Cluster
from cdc.testing.consumer import environment

PIPELINE = "public.docstrings"
USUAL_PORT = 9464
STOP_S = 3.0
"""Seconds that the consumer has to finish before it is killed; nothing of it is kept anyway."""

# Ends the consumer when this process is gone and can no longer do it: the pipe is closed by nobody but the kernel then.
_GUARD = 'read -r _ || kill -9 "$1"'


class Disappointed(WalvecError):
    """Something that the demo claims was not so."""


class Stage:
    """Server, database and, once :meth:`consume` was called, a consumer. A context manager, made by :meth:`open`."""

    def __init__(self, cluster: Cluster, runtime: str, http: str) -> None:
        self.cluster = cluster
        self.folder = cluster.data_dir.parent
        self.url = cluster.create_database("demo").url
        mine = {"WALVEC_RUNTIME": runtime, "WALVEC_HTTP": http, "WALVEC_INDEX": "hnsw"}
        self._environment = environment(self.url, mine)
        self.settings: Settings = config.load(self._environment)
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.address = ""
        self._log = self.folder / "walvec.log"
        self._consumer: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, screen: Screen, runtime: str, http: str | None = None) -> Iterator[Self]:
        """Start the server and make the database; stop and remove everything at the end.

        Args:
            screen: Told about the server.
            runtime: Of the model.
            http: Where the consumer answers; by default walvec's usual port, or any where that is taken.

        Raises:
            ClusterError: there is no PostgreSQL 18 here, or it does not start; the sentence says why.
        """
        screen.step("A PostgreSQL of its own")
        began = time.monotonic()
        # fsync as in production: the times that are shown include it.
        with Cluster.create("18", fsync=True) as cluster:
            stage = cls(cluster.start(), runtime, http or _address())
            try:
                screen.say(
                    f"{stage._versions()} on 127.0.0.1:{cluster.port}, ready in {time.monotonic() - began:.1f} s"
                )
                yield stage
            finally:
                stage._close()

    def _versions(self) -> str:
        row = self.connection.execute(
            "SELECT current_setting('server_version'), default_version"
            " FROM (VALUES (1)) AS one LEFT JOIN pg_available_extensions ON name = 'vector'"
        ).fetchone()
        assert row is not None
        return f"PostgreSQL {row[0]} with pgvector {row[1]}" if row[1] else f"PostgreSQL {row[0]} without pgvector"

    # -- the consumer -----------------------------------------------------------------------------------------------

    def consume(self) -> None:
        """Start ``walvec run``; return once it answers.

        Raises:
            Disappointed: it ended instead.
        """
        with self._log.open("ab") as log:
            self._consumer = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "run"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the consumer itself
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "walvec-guard", str(self._consumer.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        while not self.address:
            time.sleep(0.05)
            self.check()
            for line in self._log.read_text("utf-8", "replace").splitlines():
                if '"http_listening"' in line:
                    self.address = json.loads(line)["address"]

    def check(self) -> None:
        """See whether the consumer and the server still run.

        Raises:
            Disappointed: one of them ended; with its last words.
        """
        if self.cluster.pid is None:
            raise Disappointed(f"PostgreSQL ended by itself. {self.cluster.log_tail(5)}")
        if self._consumer is not None and (status := self._consumer.poll()) is not None:
            words = self._log.read_text("utf-8", "replace").strip().splitlines()[-5:]
            raise Disappointed("\n".join([f"`walvec run` ended with exit status {status}. Its log ends:", *words]))

    def _close(self) -> None:
        self.connection.close()
        if self._consumer is not None and self._consumer.poll() is None:
            self._consumer.terminate()
            try:
                self._consumer.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._consumer.kill()
                self._consumer.wait()
        if self._guard is not None:
            self._guard.communicate(b"\n")

    # -- looking ----------------------------------------------------------------------------------------------------

    def value(self, query: str, parameters: tuple[object, ...] = ()) -> Any:
        """Return the first value of the first row; None where there is no row."""
        row = self.connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def sync(self, timeout_s: float = 60.0) -> None:
        """Wait until all that was committed is embedded, as ``walvec sync`` does.

        Raises:
            Disappointed: it was not, within ``timeout_s`` seconds.
        """
        if not Sync(self.settings, lambda _: None).wait(timeout_s):
            self.check()
            raise Disappointed(f"The embeddings were not in sync after {timeout_s:g} s.")

    def counter(self, name: str) -> int:
        """Return the counter ``name`` of the pipeline, from ``/metrics``."""
        found = re.search(rf'^{name}{{pipeline="{PIPELINE}"}} (\S+)$', self._ask("GET", "/metrics"), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def search(self, query: str, k: int) -> list[dict[str, Any]]:
        """Return the ``k`` rows nearest to ``query``, nearest first, each with module, name, summary and distance."""
        body = json.dumps({"pipeline": PIPELINE, "query": query, "k": k})
        found: list[dict[str, Any]] = []
        for result in json.loads(self._ask("POST", "/v1/search", body))["results"]:
            row = self.connection.execute(
                "SELECT module, name, summary FROM docstrings WHERE id = %s", (result["key"]["id"],)
            ).fetchone()
            if row is not None:
                found.append(dict(zip(("module", "name", "summary"), row, strict=True)) | result)
        return found

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        headers: Mapping[str, str] = {"Accept": "application/json, text/plain", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        except OSError as exc:
            self.check()
            raise Disappointed(f"http://{self.address}{path} does not answer: {exc}.") from exc
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise Disappointed(f"http://{self.address}{path} answered {response.status}: {text}")
        return text

    def write_private(self, name: str, content: str) -> Path:
        """Write a file that only this user can read, in the folder that goes away; return where it is."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(content)
        return path


def _address() -> str:
    """Return walvec's usual address where its port is free, and otherwise one that stands for any port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", USUAL_PORT))
        except OSError:
            return "127.0.0.1:0"
    return f"127.0.0.1:{USUAL_PORT}"
