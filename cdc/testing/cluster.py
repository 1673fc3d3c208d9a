"""A PostgreSQL server of our own: made, started, killed and removed by tests and the demo.

    with Cluster.create("18") as cluster:
        cluster.start()
        psycopg.connect(cluster.dsn())

It listens on 127.0.0.1 alone, on TCP alone, and asks for a password that nobody else has. A guard process stops the
server, and removes what was temporary, when this process ends in whatever way, ``kill -9`` included.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

from psycopg.conninfo import make_conninfo

from cdc.testing.binaries import Account, ClusterError, find_binaries, server_account
from cdc.testing.database import Database
from cdc.testing.ports import TRIES, free_ports

USER: Final = "postgres"
PORTS: Final = range(20_000, 32_000)  # below the ephemeral range, so that a stopped server's port stays free
_STOP_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
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

    def __init__(self, major: str, binaries: Path, account: Account, data_dir: Path, temporary: Path | None) -> None:
        self.major = major
        self.data_dir = data_dir
        self.port = _free_port()
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self._binaries = binaries
        self._account = account
        self._temporary = temporary
        self._password = secrets.token_urlsafe(16)
        self._server: subprocess.Popen[bytes] | None = None
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
        cluster = cls(version, binaries, account, data_dir or Path(f"{temporary}/data"), temporary)
        try:
            if temporary:
                cluster._give(temporary)
            cluster._initdb(fsync)
            cluster.configure({**_SETTINGS, **({} if fsync else _NO_FSYNC), **(settings or {})})
            cluster._guard = cluster._start_guard()
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
        return None if self._server is None or self._server.poll() is not None else self._server.pid

    def start(self, timeout: float = 60) -> Self:
        """Start the server and wait until it takes connections; after :meth:`kill`, also through its recovery.

        Raises:
            ClusterError: it did not start within ``timeout`` seconds; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        while self.pid is None or self._state() != "ready":
            if self.pid is None:
                seen = self.log_path.stat().st_size
                self._server = self._spawn()
            time.sleep(0.005)
            # Children of a killed postmaster hold its shared memory until they notice, some milliseconds later.
            orphans = self.pid is None and b"shared memory block" in self.log_path.read_bytes()[seen:]
            if (self.pid is None and not orphans) or time.monotonic() > deadline:
                raise ClusterError(f"PostgreSQL {self.major} in {self.data_dir} did not start. {self.log_tail()}")
        return self

    def stop(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Stop the server, as ``pg_ctl stop`` does; nothing where it is not running.

        Raises:
            ClusterError: it was still running after ``timeout`` seconds.
        """
        if self._server is None:
            return
        self._server.send_signal(_STOP_SIGNALS[mode])
        try:
            self._server.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"PostgreSQL {self.major} did not stop within {timeout:g} s. {self.log_tail()}"
            ) from None

    def restart(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Stop and start, on the same port."""
        self.stop(mode, timeout)
        self.start(timeout)

    def kill(self) -> None:
        """SIGKILL the postmaster, as a crash would; :meth:`start` recovers. Returns when the process is gone."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def destroy(self) -> None:
        """Stop the server and remove its data, if that was temporary."""
        self.stop("immediate" if self._temporary else "fast")
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
        return "Its log ends:\n" + "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def create_database(self, name: str, template: str = "template1") -> Database:
        """Make a database; any name is fine, it is quoted."""
        return Database.create(self, name, template)

    # --- programs -----------------------------------------------------------------------------------------------

    def _initdb(self, fsync: bool) -> None:
        self.data_dir.mkdir(mode=0o700)
        self._give(self.data_dir)
        self.log_path.touch(mode=0o600)
        # initdb reads the password from a file; the read end of a pipe is one that leaves no trace on disk.
        reader, writer = os.pipe()
        os.write(writer, self._password.encode() + b"\n")
        os.close(writer)
        if self._account.is_other:
            os.fchown(reader, self._account.uid, self._account.gid)
        command = [str(self.bin("initdb")), "-D", str(self.data_dir), "-U", USER, "-A", "scram-sha-256"]
        command += [f"--pwfile=/dev/fd/{reader}", "-E", "UTF8", "--locale=C.UTF-8", *([] if fsync else ["--no-sync"])]
        try:
            subprocess.run(command, check=True, capture_output=True, pass_fds=(reader,), **self._environment())
        except subprocess.CalledProcessError as error:
            why = (error.stderr or error.stdout).decode(errors="replace").strip()
            raise ClusterError(f"initdb could not make {self.data_dir}: {why}") from None
        finally:
            os.close(reader)

    def _give(self, path: Path) -> None:
        """Make the server's account the owner of ``path``."""
        if self._account.is_other:
            os.chown(path, self._account.uid, self._account.gid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A child of ours, not pg_ctl's daemon: when it dies we learn of it at once, and no zombie blocks a restart.
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [self.bin("postgres"), "-D", self.data_dir, "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal is for us
                **self._environment(),
            )

    def _state(self) -> str:
        """What the running postmaster says of itself in the last line of its lock file: ``starting``, ``ready``."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        return lines[7].strip() if len(lines) > 7 and lines[0] == str(self.pid) else ""

    def _environment(self) -> dict[str, Any]:
        # The working directory may be closed to the server's account, and LANG may name a locale that is not here.
        variables = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        return {"cwd": "/", "env": variables, **self._account.popen_arguments()}

    def _start_guard(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "walvec-guard", self.bin("pg_ctl"), self.data_dir, str(self._temporary or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us, and the guard's work comes after it
            **self._environment(),
        )


def _free_port() -> int:
    for port in free_ports(1, PORTS):
        return port
    raise ClusterError(f"No free TCP port among {TRIES} tried between {PORTS.start} and {PORTS.stop}.")
