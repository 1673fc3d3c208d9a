"""Secrets that a job names rather than holds: ``env:NAME`` and ``file:path``.

A job's row is written by whoever may write the table, and what it names is sent where the same row says. So the
daemon's own settings and its database passwords cannot be named: only what was put there for jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cdc.errors import ConfigError

MOST_BYTES = 8192
OWN = ("WALVEC_", "PG")


def resolve(value: str, environ: Mapping[str, str], folder: Path | None, name: str) -> str:
    """Return the secret that ``value`` names, or ``value`` itself where it is no name.

    Args:
        value: ``env:NAME``, ``file:path``, or the secret.
        environ: the daemon's environment.
        folder: below which files may be named; None: none may.
        name: of the parameter, for messages.

    Raises:
        ConfigError: it names something that is not there, or that jobs may not name.
    """
    if value.startswith("env:"):
        return _from_environment(value.removeprefix("env:"), environ, name)
    if value.startswith("file:"):
        return _from_file(value.removeprefix("file:"), folder, name)
    return value


def _from_environment(variable: str, environ: Mapping[str, str], name: str) -> str:
    if variable.upper().startswith(OWN):
        raise ConfigError(
            f"{name} names the variable {variable[:80]}, which is the daemon's own.",
            "Put the job's secret into a variable whose name begins neither with WALVEC_ nor with PG.",
        )
    found = environ.get(variable, "")
    if not found:
        raise ConfigError(f"{name} names the variable {variable[:80]}, which is not set for the daemon.")
    return found


def _from_file(path: str, folder: Path | None, name: str) -> str:
    if folder is None:
        raise ConfigError(
            f"{name} names a file, and the daemon reads none for jobs.",
            "Set WALVEC_JOB_SECRETS to the folder that holds such files.",
        )
    root = folder.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise ConfigError(f"{name} names a file outside of {folder}.", "WALVEC_JOB_SECRETS is where such files stand.")
    try:
        with file.open("rb") as content:
            found = content.read(MOST_BYTES + 1)
        text = found.decode("utf-8").strip()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{name} names {path[:200]}, which cannot be read: {reason}.") from None
    if not text or len(found) > MOST_BYTES:
        raise ConfigError(f"{name} names {path[:200]}, which holds no secret.", f"It has 1 to {MOST_BYTES} bytes.")
    return text
