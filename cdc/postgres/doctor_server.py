"""Checks of the server and of our role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cdc.errors import ConfigError
from cdc.postgres import control
from cdc.postgres.doctor_facts import Check, Checks, Facts, Problem, fail, warn

_checks = Checks()
CHECKS: Final[list[Check]] = _checks.all

OLDEST_MAJOR: Final = 14
SAFE_MINORS: Final = {14: 24, 15: 19, 16: 15, 17: 11, 18: 6}
"""The releases of August 2026: before them a role with REPLICATION could load any library as an output plugin."""
SKEW_S: Final = 2.0


@_checks.add(
    "WV002",
    "The connection is encrypted, or stays on this machine.",
    why="The replication stream carries every watched row, and the password opens all of them.",
    fix="Add sslmode=verify-full and sslrootcert to WALVEC_DATABASE_URL.",
)
def _tls(facts: Facts) -> Iterator[Problem]:
    info = facts.conn.info
    address = info.hostaddr
    local = info.host.startswith("/") or address.startswith("127.") or address == "::1"
    if not facts.server["tls"] and not local:
        yield warn(f"The connection to {info.host} is not encrypted.")


@_checks.add(
    "WV003",
    "The server's version is supported and has the security fixes that matter here.",
    why="Older releases lack what walvec needs, or let a role with REPLICATION load any library.",
    fix="Upgrade PostgreSQL to the newest minor release of its major version.",
)
def _version(facts: Facts) -> Iterator[Problem]:
    major, minor = divmod(facts.server["version"], 10_000)
    if major < OLDEST_MAJOR:
        yield fail(f"PostgreSQL {facts.server['version_text']} is older than {OLDEST_MAJOR}.")
    elif minor < SAFE_MINORS.get(major, 0):
        yield warn(f"PostgreSQL {facts.server['version_text']} is older than {major}.{SAFE_MINORS[major]}.")


@_checks.add(
    "WV004",
    "wal_level is logical.",
    why="Only then does the WAL hold what logical decoding needs.",
    fix="ALTER SYSTEM SET wal_level = 'logical'; then restart the server. Managed services: "
    "rds.logical_replication = 1, cloudsql.logical_decoding = on, or azure.replication_support = logical.",
)
def _wal_level(facts: Facts) -> Iterator[Problem]:
    level = facts.parameters["wal_level"]
    if level != "logical":
        yield fail(f"wal_level is {level}.")


@_checks.add(
    "WV005",
    "A replication slot is free, or ours is there.",
    why="walvec needs one slot.",
    fix="ALTER SYSTEM SET max_replication_slots = …; then restart, or drop a slot that nobody uses.",
)
def _free_slots(facts: Facts) -> Iterator[Problem]:
    limit = facts.number("max_replication_slots") or 0
    if facts.slot is None and facts.server["slots"] >= limit:
        yield fail(f"All {limit} replication slots are taken.")


@_checks.add(
    "WV006",
    "A WAL sender is free, or ours is running.",
    why="walvec's stream is one WAL sender.",
    fix="ALTER SYSTEM SET max_wal_senders = …; then restart.",
)
def _free_walsenders(facts: Facts) -> Iterator[Problem]:
    limit = facts.number("max_wal_senders") or 0
    running = facts.slot is not None and facts.slot["active"]
    if not running and facts.server["walsenders"] >= limit:
        yield fail(f"All {limit} WAL senders are in use.")


@_checks.add(
    "WV007",
    "The server allows the output plugin pgoutput.",
    why="It is the plugin that walvec reads; it comes with PostgreSQL, and newer servers have a list of allowed ones.",
    fix="ALTER SYSTEM SET output_plugin_libraries = 'pgoutput, test_decoding'; then reload.",
)
def _plugins(facts: Facts) -> Iterator[Problem]:
    allowed = facts.parameters.get("output_plugin_libraries")
    if allowed is not None and "pgoutput" not in {name.strip().strip('"') for name in allowed.split(",")}:
        yield fail(f"output_plugin_libraries is '{allowed}'.")


@_checks.add(
    "WV008",
    "The server is a primary.",
    why="Embeddings are written to the same server that is read.",
    fix="Name the primary in WALVEC_DATABASE_URL, or all hosts of the cluster, separated by commas.",
)
def _primary(facts: Facts) -> Iterator[Problem]:
    if facts.server["in_recovery"]:
        yield fail("The server is a standby.")


@_checks.add(
    "WV009",
    "The database's encoding is UTF8.",
    why="In SQL_ASCII the server stores bytes of any encoding, and rows that are not UTF-8 cannot be embedded.",
    fix="Move the data to a database created with ENCODING 'UTF8'.",
)
def _encoding(facts: Facts) -> Iterator[Problem]:
    if facts.server["encoding"] == "SQL_ASCII":
        yield warn("The database's encoding is SQL_ASCII.")


@_checks.add(
    "WV010",
    "The role may replicate.",
    why="Reading a replication slot takes the REPLICATION attribute.",
    fix="ALTER ROLE … REPLICATION; on Amazon RDS: GRANT rds_replication TO …;",
)
def _replication(facts: Facts) -> Iterator[Problem]:
    role = facts.role
    if not (role["superuser"] or role["replication"] or role["managed_replication"]):
        yield fail(f'The role "{role["name"]}" lacks REPLICATION.')


@_checks.add(
    "WV011",
    "The control schema is there, or can be made.",
    why="Pipelines, progress, the durable queue and dead letters live in it.",
    fix="`walvec init`, or a DBA runs what `walvec init --print-sql` prints.",
)
def _control(facts: Facts) -> Iterator[Problem]:
    name = facts.settings.schema
    try:
        if facts.schema_version:
            control.require(facts.conn, name)
        elif not facts.server["may_create_schema"]:
            yield fail(f'The role may not make the schema "{name}" in this database.')
    except ConfigError as exc:
        yield fail(exc.message, exc.remedy)


@_checks.add(
    "WV012",
    "The server's clock agrees with ours.",
    why="Lag in seconds compares commit times of the server with this machine's clock; nothing else does.",
    fix="Run NTP on both machines.",
)
def _clock(facts: Facts) -> Iterator[Problem]:
    skew = facts.server["skew_s"]
    if abs(skew) > SKEW_S:
        yield warn(f"The server's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} ours.")


@_checks.add(
    "WV013",
    "No transaction has been open for long.",
    why="A slot is made only when older writers have ended, changes arrive only at COMMIT, and VACUUM waits too.",
    fix="End the session with SELECT pg_terminate_backend(pid); or set idle_in_transaction_session_timeout.",
)
def _transactions(facts: Facts) -> Iterator[Problem]:
    for row in facts.rows("transactions"):
        yield warn(f"pid {row['pid']} has had a transaction open for {row['seconds']} s ({row['state']}).")


@_checks.add(
    "WV014",
    "No prepared transaction waits.",
    why="It holds back slot creation, the slot's WAL and VACUUM until it is resolved, across restarts too.",
    fix="COMMIT PREPARED '…'; or ROLLBACK PREPARED '…';",
)
def _prepared(facts: Facts) -> Iterator[Problem]:
    for row in facts.rows("prepared"):
        yield warn(f"The prepared transaction {row['gid']} has waited for {row['seconds']} s.")


@_checks.add(
    "WV015",
    "logical_decoding_work_mem is at least 64 MB.",
    why="Transactions larger than this are written to the server's disk before they are decoded.",
    fix="ALTER SYSTEM SET logical_decoding_work_mem = '256MB'; then reload.",
)
def _work_mem(facts: Facts) -> Iterator[Problem]:
    kilobytes = facts.number("logical_decoding_work_mem") or 0
    if kilobytes < 65_536:
        yield warn(f"logical_decoding_work_mem is {kilobytes} kB.")


@_checks.add(
    "WV016",
    "wal_sender_timeout notices a dead consumer, and leaves a slow one alone.",
    why="With 0 a half-open connection holds the slot until TCP gives up; below 10 s a pause looks like a death.",
    fix="ALTER SYSTEM SET wal_sender_timeout = '60s'; then reload.",
)
def _sender_timeout(facts: Facts) -> Iterator[Problem]:
    milliseconds = facts.number("wal_sender_timeout") or 0
    if milliseconds < 10_000:
        yield warn(f"wal_sender_timeout is {milliseconds} ms.")
