"""The preflight: every requirement on PostgreSQL, checked without changing anything.

``python -m cdc.postgres.doctor`` prints docs/doctor.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from cdc.errors import WalvecError
from cdc.postgres import doctor_server, doctor_slot, doctor_tables, doctor_targets
from cdc.postgres.connect import classify, connect_sync
from cdc.postgres.doctor_facts import Check, Facts, Finding
from cdc.postgres.setup import SetupSettings

REACHABLE = Check(
    "WV001",
    "The server can be reached and lets us in.",
    "Nothing works without a connection.",
    "Correct WALVEC_DATABASE_URL, start the server, or add a line to pg_hba.conf.",
    lambda _: iter(()),
)

_NOUNS = {"tables": "published table", "publication": "publication", "slot": "slot", "pipelines": "pipeline"}

CHECKS: tuple[Check, ...] = (
    REACHABLE,
    *doctor_server.CHECKS,
    *doctor_tables.CHECKS,
    *doctor_targets.CHECKS,
    *doctor_slot.CHECKS,
)


def examine(settings: SetupSettings) -> list[Finding]:
    """Return what every check found, at least one finding each; only the first where the server is out of reach."""
    try:
        conn = connect_sync(settings, "doctor")
    except WalvecError as exc:
        return [Finding(REACHABLE.code, "fail", exc.message, REACHABLE.why, exc.remedy or REACHABLE.fix)]
    with conn:
        facts = Facts(conn, settings)
        return [finding for check in CHECKS for finding in _findings(check, facts)]


def _findings(check: Check, facts: Facts) -> Iterator[Finding]:
    try:
        if check.needs and not getattr(facts, check.needs):
            yield Finding(check.code, "skip", f"Not checked, there is no {_NOUNS[check.needs]} yet.", check.why, "")
            return
        problems = list(check.look(facts))
    except (psycopg.Error, WalvecError) as exc:
        found = classify(exc)
        what = f"This could not be checked. {found.message}"
        yield Finding(check.code, "fail", what, check.why, found.remedy or check.fix)
        return
    for problem in problems:
        yield Finding(check.code, problem.status, problem.what, check.why, problem.fix or check.fix)
    if not problems:
        yield Finding(check.code, "ok", check.title, check.why, "")


def exit_code(findings: list[Finding]) -> int:
    """Return 0 when all is well, 1 for warnings, 2 for failures."""
    return max(({"ok": 0, "skip": 0, "warn": 1, "fail": 2}[finding.status] for finding in findings), default=0)


def markdown() -> str:
    """Return docs/doctor.md."""
    lines = [
        "# walvec doctor",
        "",
        "<!-- Made by `python -m cdc.postgres.doctor > docs/doctor.md`; do not edit by hand. -->",
        "",
        "`walvec doctor` checks, without changing anything, all that walvec needs of PostgreSQL. Each finding has a",
        "code, what was found, why it matters, and the SQL or setting that mends it; `--json` prints a list",
        "of objects `{code, status, what, why, fix}`, where `status` is `ok`, `warn`, `fail` or `skip`.",
        "Exit status: 0 all is well, 1 warnings, 2 failures.",
    ]
    for check in CHECKS:
        lines += ["", f"## {check.code}", "", f"**{check.title}** {check.why}", "", f"Remedy: {check.fix}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
