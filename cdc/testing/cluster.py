"""A PostgreSQL server of our own: made, started, killed and removed by tests and the demo.

    with Cluster.create("18") as cluster:
        cluster.start()
        psycopg.connect(cluster.dsn())

It listens on 127.0.0.1 alone, on TCP alone, and asks for a password that nobody else has. A guard process stops the
server, and removes what was temporary, when this process ends in whatever way, ``kill -9`` included.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.testing.binaries import Account, ClusterError, find_binaries, server_account

USER: Final = "postgres"
PORTS: Final = range(20_000, 32_000)  # below the ephemeral range, so that a stopped server's port stays free
StopMode = Literal["smart", "fast", "immediate"]

_SETTINGS: Final[dict[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_replication_slots": "30",
    "max_wal_senders": "30",
    "max_prepared_transactions": "10",
    "log_line_prefix": "%m [%p] %q%a@%d ",
}
# For data nobody needs after a power cut. A killed server loses nothing by it: the kernel has the pages.
_NO_FSYNC: Final[dict[str, str]] = {"fsync": "off", "full_page_writes": "off"}
# When its standard input closes, because the owner is done or dead: stop the server, remove what was temporary.
_GUARD: Final = 'read -r _; "$1" stop -D "$2" -m immediate -t 20 >/dev/null 2>&1; [ -z "$3" ] || rm -rf -- "$3"'


class Cluster:
    """One PostgreSQL server and its data directory. Make it by :meth:`create`; a context manager that destroys it."""

    def __init__(self, major: str, binaries: Path, data_dir: Path, account: Account, port: int, password: str) -> None:
        self.major = major
        self.data_dir = data_dir
        self.port = port
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self._binaries = binaries
        self._account = account
        self._password = password
        self._guard: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(
        cls,
        version: str = "18",
        *,
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        fsync: bool = False,
    ) -> Cluster:
        """Make a new, stopped server.

        Args:
            version: The major version, ``"15"`` or ``"18"``.
            data_dir: Where its data lives and stays; by default a temporary folder that goes with the cluster. The
                folder must not exist yet, and where we are root the server's account must be able to reach it.
            settings: Lines of postgresql.conf that win over the defaults made for logical replication.
            fsync: Whether a power cut must lose nothing. A killed server loses nothing either way.

        Raises:
            ClusterError: no such PostgreSQL here, or initdb failed; with initdb's own words.
        """
        binaries, account = find_binaries(version), server_account()
        temporary = None if data_dir else Path(tempfile.mkdtemp(prefix=f"walvec-pg{version}-"))
        home = data_dir or _owned(temporary, account) / "data"
        cluster = cls(version, binaries, home, account, _free_port(), secrets.token_urlsafe(16))
        try:
            cluster._initdb(fsync)
            cluster.configure({**_SETTINGS, **({} if fsync else _NO_FSYNC), **(settings or {})})
            cluster._guard = cluster._start_guard(temporary)
        except BaseException:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cluster

    # --- addresses ----------------------------------------------------------------------------------------------

    def dsn(self, dbname: str = "postgres", **parameters: Any) -> str:
        """A libpq connection string as the superuser; ``parameters`` are added or win (``port``, ``user``, …)."""
        base = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": self._password, "dbname": dbname}
        return make_conninfo(**{**base, **parameters})

    def url(self, dbname: str = "postgres") -> str:
        """The same as a ``postgresql://`` URL."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def bin(self, name: str) -> Path:
        """A program of this PostgreSQL: ``pg_recvlogical``, ``pgbench``, ``psql``, …"""
        return self._binaries / name

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it is not running."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid

    def start(self, timeout: float = 60) -> Self:
        """Start the server and wait until it takes connections; after :meth:`kill`, also through its recovery.

        Raises:
            ClusterError: it did not start within ``timeout`` seconds; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = self.log_path.stat().st_size if self.log_path.exists() else 0
            if self._pg_ctl("start", "-w", "-t", f"{timeout:.0f}", "-l", str(self.log_path)):
                return self
            # Children of a killed postmaster hold its shared memory until they notice, some milliseconds later.
            orphans = "shared memory block" in self.log_path.read_text(errors="replace")[seen:]
            if not orphans or time.monotonic() > deadline:
                raise ClusterError(f"PostgreSQL {self.major} in {self.data_dir} did not start. {self.log_tail()}")
            time.sleep(0.05)

    def stop(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Stop the server, as ``pg_ctl stop`` does; nothing where it is not running.

        Raises:
            ClusterError: it was still running after ``timeout`` seconds.
        """
        if self.pid is not None and not self._pg_ctl("stop", "-w", "-m", mode, "-t", f"{max(timeout, 1):.0f}"):
            raise ClusterError(f"PostgreSQL {self.major} did not stop within {timeout:g} s. {self.log_tail()}")

    def restart(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Stop and start, on the same port."""
        self.stop(mode, timeout)
        self.start(timeout)

    def kill(self) -> None:
        """SIGKILL the postmaster, as a crash would; :meth:`start` recovers. Returns when the process is gone."""
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.002)

    def destroy(self) -> None:
        """Stop the server and remove its data, if that was temporary."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(timeout=60)
            self._guard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.destroy()

    # --- contents -----------------------------------------------------------------------------------------------

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append lines to postgresql.conf (later lines win); they take effect at the next start or reload."""
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        with (self.data_dir / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def log_tail(self, lines: int = 20) -> str:
        """The end of the server's log."""
        if not self.log_path.exists():
            return "It wrote no log."
        return "Its log ends:\n" + "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def create_database(self, name: str, template: str = "template1") -> Database:
        """Make a database; any name is fine, it is quoted."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))
        return Database(self, name)

    def drop_database(self, name: str) -> None:
        """Remove a database with whatever still uses it: its sessions, and its replication slots."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            deadline = time.monotonic() + 20
            while not _drop_slots(connection, name):
                if time.monotonic() > deadline:
                    raise ClusterError(f"A replication slot of database {name} is still in use.")
                time.sleep(0.01)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    # --- programs -----------------------------------------------------------------------------------------------

    def _initdb(self, fsync: bool) -> None:
        self.data_dir.mkdir(mode=0o700)
        _owned(self.data_dir, self._account)
        _owned(self._touch(self.log_path), self._account)
        # initdb reads the password from a file; the read end of a pipe is one that leaves no trace on disk.
        reader, writer = os.pipe()
        os.write(writer, self._password.encode() + b"\n")
        os.close(writer)
        if self._account.is_other:
            os.fchown(reader, self._account.uid, self._account.gid)
        command = [self.bin("initdb"), "-D", self.data_dir, "-U", USER, "-A", "scram-sha-256"]
        command += [f"--pwfile=/dev/fd/{reader}", "-E", "UTF8", "--locale=C.UTF-8", *([] if fsync else ["--no-sync"])]
        try:
            done = self._run(command, pass_fds=(reader,))
        finally:
            os.close(reader)
        if done.returncode != 0:
            raise ClusterError(f"initdb could not make {self.data_dir}: {done.stdout.decode(errors='replace').strip()}")

    def _pg_ctl(self, action: str, *arguments: str) -> bool:
        options = ["-o", f"-p {self.port}"] if action == "start" else []
        return self._run([self.bin("pg_ctl"), action, "-D", self.data_dir, *arguments, *options]).returncode == 0

    def _run(self, command: list[Any], **arguments: Any) -> subprocess.CompletedProcess[bytes]:
        # The working directory may be closed to the server's account, and LANG may name a locale that is not here.
        with tempfile.TemporaryFile() as output:  # not a pipe: the server inherits it and would hold it open
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                **self._account.popen_arguments(),
                **arguments,
            )
            output.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, output.read())

    def _start_guard(self, temporary: Path | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "walvec-guard", self.bin("pg_ctl"), self.data_dir, str(temporary or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C on the terminal is for us, and the guard's work comes after it
            **self._account.popen_arguments(),
        )

    @staticmethod
    def _touch(path: Path) -> Path:
        path.touch(mode=0o600)
        return path


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a cluster."""

    cluster: Cluster
    name: str

    @property
    def url(self) -> str:
        """``postgresql://`` URL, as the superuser."""
        return self.cluster.url(self.name)

    def dsn(self, **parameters: Any) -> str:
        """libpq connection string; ``parameters`` are added or win."""
        return self.cluster.dsn(self.name, **parameters)

    def connect(self, **parameters: Any) -> psycopg.Connection[Any]:
        """A new connection in autocommit mode; ``parameters`` are libpq's."""
        return psycopg.connect(self.dsn(**parameters), autocommit=True)


def _owned(path: Path | None, account: Account) -> Path:
    assert path is not None
    if account.is_other:
        os.chown(path, account.uid, account.gid)
    return path


def _free_port() -> int:
    """A TCP port that nobody listens on, chosen at random so that processes started together rarely collide."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError(f"No free TCP port among 200 tried between {PORTS.start} and {PORTS.stop}.")


def _drop_slots(connection: psycopg.Connection[Any], database: str) -> bool:
    """Try to drop every slot of ``database``; False while some consumer still holds one."""
    slots = connection.execute(
        "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", (database,)
    ).fetchall()
    for slot, holder in slots:
        if holder is not None:
            connection.execute("SELECT pg_terminate_backend(%s)", (holder,))
            continue
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            continue  # somebody was faster; the next look tells
    return not slots
