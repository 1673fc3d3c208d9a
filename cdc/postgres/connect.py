"""How walvec connects to PostgreSQL, and what a failure of PostgreSQL means.

Every session runs under the same pinned output settings, so that a cell's text is the same bytes whether it came by SQL
or through the write-ahead log, and under ``row_security = off``, so that row-level security is an error and never an
empty backfill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from cdc.errors import (
    ConfigError,
    PipelineFault,
    PublicationMissing,
    SlotInUse,
    SlotLost,
    Unavailable,
    WalvecError,
)

REPLICATION = "replication"
"""The role of the connection that streams: its ``application_name`` is the slot's name, exactly."""

PINNED = {
    "row_security": "off",
    "search_path": "",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    # Guards and write-backs rely on a fresh snapshot per statement.
    "default_transaction_isolation": "read committed",
    # walvec may itself be a synchronous standby: it must never wait for its own acknowledgement.
    "synchronous_commit": "local",
    # Limits that a role carries for its application's sake do not fit scans and pooled sessions.
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""Settings of every session, whatever the role or the database says."""

DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 10,  # seconds; with the next two, a half-open peer is noticed within 20 s
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # milliseconds, for data that is sent and never acknowledged
}
"""Connection parameters that a user's own URL may override."""

URL_SHAPE = "postgresql://host:port/database, with user:password and an @ before the host"
"""How a URL is written, in words: written as a URL it would itself be hidden, as one with a password in it."""

_BAD_URL = f"The database URL is not one that libpq reads: {URL_SHAPE}."


class ConnectionSettings(Protocol):
    """What is needed of the settings."""

    @property
    def database_url(self) -> str:
        """The URL or key=value string; empty: libpq's ``PG*`` environment."""

    @property
    def slot(self) -> str:
        """The replication slot's name."""


def connection_params(settings: ConnectionSettings, role: str) -> dict[str, Any]:
    """Return the keyword arguments for ``psycopg.connect`` or ``AsyncConnection.connect``.

    Args:
        settings: Where to connect.
        role: What the session is for, a short word shown in ``pg_stat_activity`` as ``<slot>/<role>``.
            ``REPLICATION`` makes a replication connection whose ``application_name`` is the slot's name.

    Raises:
        ConfigError: The URL cannot be read.
    """
    given = parse_dsn(settings.database_url)
    ambient = _ambient()
    options = " ".join(filter(None, [given.get("options") or ambient.get("options"), _pinned_options()]))
    params: dict[str, Any] = {**DEFAULTS, **given, "options": options, "client_encoding": "UTF8"}
    hosts = str(given.get("host") or ambient.get("host") or "")
    if "," in hosts and not (given.get("target_session_attrs") or _asked(ambient, "target_session_attrs", "any")):
        params["target_session_attrs"] = "read-write"  # several hosts: the primary, wherever it is now
    params["application_name"] = settings.slot if role == REPLICATION else f"{settings.slot}/{role}"[:63]
    if role == REPLICATION:
        params["replication"] = "database"
    else:
        params.pop("replication", None)
    return params


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Return the parts of a libpq URL or key=value string.

    Raises:
        ConfigError: It cannot be read. The text itself is never repeated: it may hold a password.
    """
    authority = re.match(r"postgres(?:ql)?://([^/?]*)", dsn)
    if authority and authority[1].count("@") > 1:
        raise ConfigError("The database URL has more than one @ before its path: write @ in a password as %40.")
    try:
        return {name: value for name, value in conninfo_to_dict(dsn).items() if value not in (None, "")}
    except psycopg.Error:
        raise ConfigError(_BAD_URL) from None


def redact_dsn(dsn: str) -> str:
    """Return ``dsn`` as key=value pairs with every secret in it replaced by ``***``."""
    if not dsn:
        return ""
    try:
        parts = parse_dsn(dsn)
    except ConfigError:
        return "***"
    hidden = {name: "***" for name in parts if name in _SECRET_PARTS}
    return make_conninfo("", **{**parts, **hidden})


_SECRET_PARTS = frozenset({"password", "sslpassword", "passfile", "oauth_client_secret", "scram_client_key"})


def secrets_in(parts: Mapping[str, Any], *shown: str) -> list[str]:
    """Return which values of a URL no log line may show, wherever they stand.

    A password that is the same as the user, the database or the host, which every message names, tells nothing there:
    it is hidden where it stands as a password.

    Args:
        parts: What :func:`parse_dsn` returned.
        shown: Further values that messages name.
    """
    public = {*shown, *(str(parts.get(name, "")) for name in ("user", "dbname", "host", "hostaddr", "service"))}
    found = [str(parts[name]) for name in ("password", "sslpassword") if parts.get(name)]
    return [secret for secret in found if secret not in public]


def connect_sync(settings: ConnectionSettings, role: str, *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
    """Open an ordinary session; autocommit unless told otherwise.

    Raises:
        ConfigError: Wrong password, no such database, not let in, or TLS refused.
        Unavailable: The server is down, starting, full or out of reach.
    """
    params = connection_params(settings, role)
    try:
        return psycopg.connect(autocommit=autocommit, **params)
    except psycopg.Error as exc:
        raise classify(exc) from exc


def classify(exc: BaseException) -> WalvecError:
    """Return what a failure means, by what can be done next.

    The result holds the server's own primary message where that cannot hold data; never its DETAIL, which quotes rows.
    """
    if isinstance(exc, WalvecError):
        return exc
    if not isinstance(exc, psycopg.Error):
        return WalvecError(f"{type(exc).__name__} while talking to PostgreSQL.")
    if exc.sqlstate is None:
        return _classify_connection(_one_line(str(exc)))
    return _classify_state(exc.sqlstate, _one_line(exc.diag.message_primary or ""))


def _ambient() -> dict[str, str]:
    """Return libpq's defaults: the ``PG*`` environment and the service file it names."""
    return {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None and option.val != b""
    }


def _asked(ambient: dict[str, str], name: str, default: str) -> bool:
    return ambient.get(name, default) != default


def _pinned_options() -> str:
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in PINNED.items())


def _one_line(text: str) -> str:
    """Return ``text`` as one line ending in a full stop, without psycopg's and libpq's stage words."""
    line = re.sub(r"\s+", " ", text).strip()
    line = re.sub(r"^connection (failed|is bad): |\s*Is the server running .*\?$", "", line).removesuffix(".")
    return f"{line[:1].upper()}{line[1:]}." if line else "The server gave no reason."


_AT_CONNECT: tuple[tuple[str, str], ...] = (
    (r"password authentication failed|no password supplied", "Correct the password in WALVEC_DATABASE_URL."),
    (r"no pg_hba\.conf entry|pg_hba\.conf rejects", "Add a line for this role, database and address to pg_hba.conf."),
    (r"role \".*\" (does not exist|is not permitted to log in)", "Create the role with LOGIN, or correct the user."),
    (r"authentication failed", "Correct the user or the authentication method in pg_hba.conf."),
    (r"database \".*\" does not exist", "Correct the database in WALVEC_DATABASE_URL."),
    (r"permission denied for database", "GRANT CONNECT ON DATABASE … TO the role."),
    (r"must be superuser or replication role|permission denied to start WAL sender", "ALTER ROLE … REPLICATION."),
    (r"does not support SSL|SSL error|certificate|sslmode|root\.crt", "Correct sslmode and sslrootcert."),
    (
        r"definition of service .* not found|service file .* not found",
        "Add the service to pg_service.conf (PGSERVICEFILE), or correct WALVEC_DATABASE_URL.",
    ),
    (r"unsupported startup parameter", "Connect to PostgreSQL directly, not through a pooler."),
)
"""What libpq says when connecting, where no SQLSTATE is given: a pattern, and what mends it."""


def _classify_connection(line: str) -> WalvecError:
    if re.match(r"invalid (port|connection option|integer value)", line, re.IGNORECASE):
        return ConfigError(_BAD_URL)  # libpq quotes the piece, which of a badly escaped URL may be a password's
    for pattern, remedy in _AT_CONNECT:
        if re.search(pattern, line, re.IGNORECASE):
            return ConfigError(line, remedy)
    return Unavailable(line, "Start the server or correct WALVEC_DATABASE_URL.")


_STATES: tuple[tuple[str, type[WalvecError], str], ...] = (
    ("28", ConfigError, "Correct the user, the password or pg_hba.conf."),
    ("3D000", ConfigError, "Correct the database in WALVEC_DATABASE_URL."),
    ("42501", ConfigError, "`walvec init --print-sql` prints the grants that are needed."),
    ("53400", ConfigError, "Raise max_replication_slots or max_wal_senders, or drop a slot that nobody uses."),
    ("25006", Unavailable, "Writes go to the primary: name it in WALVEC_DATABASE_URL, or all hosts of the cluster."),
    ("55006", SlotInUse, ""),
    ("08", Unavailable, ""),
    ("53", Unavailable, ""),
    ("57", Unavailable, ""),
    ("58", Unavailable, ""),
    ("40", Unavailable, ""),
    ("55P03", Unavailable, ""),
    ("42", PipelineFault, ""),
)
"""SQLSTATE or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html), what it is, what mends it."""


def _classify_state(state: str, line: str) -> WalvecError:
    low = line.lower()
    if state == "55000" and "wal_level" in low:
        return ConfigError(line, "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL.")
    if state == "42501" and "row-level security" in low:
        return ConfigError(line, "ALTER ROLE … BYPASSRLS; a backfill must see every row, as the stream does.")
    if state == "42501" and "replication" in low:
        return ConfigError(line, "ALTER ROLE … REPLICATION; `walvec init --print-sql` prints all that is needed.")
    if state in ("55000", "42704") and "replication slot" in low:
        return SlotLost(line)
    if state == "42704" and "publication" in low:
        return PublicationMissing(line, "CREATE PUBLICATION … FOR TABLE …;")
    if state[:2] in ("22", "23"):  # the message may quote a value of the row
        return PipelineFault(f"PostgreSQL refused a value (SQLSTATE {state}).")
    for prefix, kind, remedy in _STATES:
        if state.startswith(prefix):
            return kind(line, remedy)
    return WalvecError(f"{line} (SQLSTATE {state})")
