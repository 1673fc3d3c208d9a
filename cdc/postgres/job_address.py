"""Where a job's database is: what ``db_connection`` says, with its secrets resolved, and as people may read it."""

from __future__ import annotations

import configparser
import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import pq

from cdc.errors import ConfigError
from cdc.postgres.connect import URL_SHAPE, parse_dsn, secrets_in

MOST_BYTES = 64 << 10
"""A file that holds a connection string is no longer than this."""

_OWN = ("WALVEC_", "PG")
"""Variables that a row may not name: a job must not fetch what the daemon itself was given."""


@dataclass(frozen=True, slots=True)
class Address:
    """``url`` is for libpq and never shown; ``place`` is ``host:port/database``; ``secrets`` must not be shown."""

    url: str = field(repr=False)
    place: str
    secrets: tuple[str, ...] = field(repr=False, default=())


def resolve(connection: str, environ: Mapping[str, str], hosts: Sequence[str]) -> Address:
    """Return the address that ``connection`` stands for. Reads a file where it names one, and nothing else.

    Args:
        connection: A libpq URL or key=value string (``service=name`` too), ``env:NAME`` or ``file:/path``.
        environ: The environment.
        hosts: The hosts that jobs may name; empty: any.

    Raises:
        ConfigError: It cannot be read, or the host is not among ``hosts``. The text itself is never repeated.
    """
    url = _dereferenced(connection.strip(), environ)
    parts = _parts(url)
    service = _service(parts.get("service", ""), environ)
    host = parts.get("host") or parts.get("hostaddr") or service.get("host") or _usual("host") or "localhost"
    if hosts and not ("service" in parts and "host" not in parts and "hostaddr" not in parts):
        both = f"{parts.get('host', '')},{parts.get('hostaddr', '')}"
        named = [name for name in both.split(",") if name]
        refused = [name for name in (named or [host]) if name.lower() not in {allowed.lower() for allowed in hosts}]
        if refused:
            raise ConfigError(
                f"The job's database is on {refused[0]}, which is not among the hosts that jobs may use.",
                "Let WALVEC_JOB_HOSTS name it, or correct db_connection.",
            )
    user = parts.get("user") or service.get("user") or _usual("user") or _account()
    database = parts.get("dbname") or service.get("dbname") or _usual("dbname") or user
    port = parts.get("port") or service.get("port") or _usual("port") or "5432"
    return Address(url, f"{host}:{port}/{database}", tuple(secrets_in(parts, host, user, database)))


def _dereferenced(text: str, environ: Mapping[str, str]) -> str:
    kind, _, name = text.partition(":")
    if kind == "env":
        if name.upper().startswith(_OWN):
            raise ConfigError(f"db_connection names the variable {name}, which is the daemon's own.", "Use another.")
        if not environ.get(name):
            raise ConfigError(f"db_connection names the variable {name}, which the daemon's environment does not set.")
        return environ[name].strip()
    if kind == "file":
        return _read(Path(re.sub(r"^//(?=/)", "", name)))
    return text


def _read(path: Path) -> str:
    try:
        if not path.is_absolute() or not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"db_connection names the file {path}, which is no file of a connection string.")
        return path.read_text("utf-8").strip()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"db_connection names the file {path}, which cannot be read: {reason}.") from None


def _parts(url: str) -> dict[str, str]:
    if not url:
        raise ConfigError("The job's db_connection is empty.", f"Write {URL_SHAPE}.")
    try:
        return {name: str(value) for name, value in parse_dsn(url).items()}
    except ConfigError as exc:
        raise ConfigError(
            exc.message.replace("The database URL", "The job's db_connection"),
            exc.remedy,
        ) from None


def _service(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what libpq's service file says of ``name``, as far as it is needed to show where that is."""
    if not name:
        return {}
    for path in (
        environ.get("PGSERVICEFILE", ""),
        "~/.pg_service.conf",
        f"{environ.get('PGSYSCONFDIR', '')}/pg_service.conf",
    ):
        file = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            file.read(Path(path).expanduser() if path else [], "utf-8")
        except (OSError, ValueError, configparser.Error):
            continue
        if file.has_section(name):
            return dict(file[name])
    return {"host": f"service {name}"}


def _usual(name: str) -> str:
    """Return libpq's own default: the ``PG*`` environment, else what it was built with."""
    for option in pq.Conninfo.get_defaults():
        if option.keyword.decode() == name and option.val:
            return option.val.decode()
    return ""


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
