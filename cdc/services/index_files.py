"""An index on disk: the graph, the keys, and a signed manifest that says what they are.

hnswlib believes whatever it loads, so nothing is loaded that this folder's owner did not write: the manifest is signed
with a key that lies in the folder and nowhere else, it names the SHA-256 of each file and where the index comes from,
and folder and files must belong to the user who runs walvec and be writable by nobody else. What does not check is
refused in a sentence, and built anew.

Files are written beside the old ones, made durable, and take their place by the manifest's rename: a crash at any
moment leaves one whole state.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cdc.errors import ConfigError, Unavailable, WalvecError
from cdc.services.index_journal import sync_folder

FORMAT: Final = 2
_KEY: Final = "key"
_MANIFEST: Final = "manifest.json"


def unwritable(folder: Path, exc: OSError, kind: type[WalvecError] = Unavailable) -> WalvecError:
    """Return the failure of a file of an index, in a sentence that names the file and what is wrong."""
    return kind(
        f"The index's files cannot be kept: {exc.filename or folder}: {exc.strerror or exc}.",
        "Make room on the disk, or set WALVEC_INDEX_DIR to another folder.",
    )


@contextlib.contextmanager
def writing(folder: Path, kind: type[WalvecError] = Unavailable) -> Iterator[None]:
    """Raise ``kind`` where what is done within raises OSError."""
    try:
        yield
    except OSError as exc:
        raise unwritable(folder, exc, kind) from exc


class IndexRefused(WalvecError):
    """The saved index is not used; the message says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a saved index is.

    ``identity`` names the job, the database and all that the index is made with; ``publication`` and ``storage`` where
    its changes came from. ``lsn``: all commits below it are in; ``commit`` and ``changes``: of the transaction that
    commits there so many changes are in, too (:class:`cdc.services.index_journal.Place`). ``segment``: the journal's
    first that is not in the base. ``misfits``: rows that were left out because of their vector's width.
    """

    identity: str
    publication: str
    storage: str
    system: str
    timeline: int
    lsn: int
    segment: int
    rows: int
    dimension: int | None
    files: Mapping[str, str]  # by file name, its SHA-256
    commit: int = 0
    changes: int = 0
    misfits: int = 0
    format: int = FORMAT


class IndexFolder:
    """The files of one job.

    Args:
        root: Where indexes are kept; made, for its user alone, where it is missing.
        name: Of the job, unique in ``root``.

    Raises:
        ConfigError: the folder cannot be made or is not ours alone.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / name
        self._root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(root)
            self.path.mkdir(mode=0o700, exist_ok=True)
            _check_owner(self.path)
            self._secret = self._read_key()
        except OSError as exc:
            raise ConfigError(
                f"The index folder {root} cannot be used: {exc.strerror}.", "Set WALVEC_INDEX_DIR to another folder."
            ) from None

    def owner(self, identity: str) -> bytes:
        """Return 32 bytes that only this folder's owner can make of ``identity``."""
        return hmac.digest(self._secret, identity.encode(), "sha256")

    # -- reading ----------------------------------------------------------------------------------------------------

    def read(self, identity: str) -> Manifest | None:
        """Return the manifest of what is saved, its files checked; None where nothing is.

        Raises:
            IndexRefused: what is there was not written here, for this job, or has changed since.
        """
        path = self.path / _MANIFEST
        if not path.exists():
            return None
        manifest = self._manifest(path)
        if manifest.identity != identity:
            raise IndexRefused("The saved index is of another job, table, column, key or parameters.")
        for name, digest in manifest.files.items():
            file = self.path / name
            if "/" in name or not file.is_file() or _sha256(file) != digest:
                raise IndexRefused("A file of the saved index is missing or was changed.")
        return manifest

    def _manifest(self, path: Path) -> Manifest:
        try:
            _check_owner(path)
            envelope = json.loads(path.read_text("utf-8"))
            body, signature = str(envelope["manifest"]), str(envelope["signature"])
            fields = json.loads(body)
        except ConfigError as exc:
            raise IndexRefused(exc.message) from None
        except (ValueError, KeyError, TypeError, OSError):
            raise IndexRefused("The manifest of the saved index cannot be read.") from None
        if not hmac.compare_digest(signature, self.owner(body).hex()):
            raise IndexRefused(
                "The saved index was not written here: its manifest is not signed with this folder's key."
            )
        if fields.get("format") != FORMAT:
            raise IndexRefused("The saved index was written by another version of walvec.")
        return Manifest(**fields)

    def graph(self, manifest: Manifest) -> Path:
        """Return the file of the graph."""
        return self.path / f"graph-{manifest.segment:08d}"

    def keys(self, manifest: Manifest) -> dict[str, NDArray[Any]]:
        """Return the arrays of the keys.

        Raises:
            IndexRefused: they cannot be read.
        """
        try:
            with np.load(self.path / f"keys-{manifest.segment:08d}.npz", allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError) as exc:
            raise IndexRefused(f"The keys of the saved index cannot be read ({type(exc).__name__}).") from None

    # -- writing ----------------------------------------------------------------------------------------------------

    def new_graph(self, segment: int) -> Path:
        """Return where to write the graph that goes with the journal from ``segment`` on."""
        return self.path / f"graph-{segment:08d}"

    def write(self, manifest: Manifest, keys: Mapping[str, NDArray[Any]], graph: Path | None) -> Manifest:
        """Make keys, graph and manifest durable, then remove what they replace; return the manifest with its digests.

        Args:
            manifest: What is saved; its ``files`` are filled in here.
            keys: Arrays that hold no Python object.
            graph: A file of :meth:`new_graph`, written; None for an index without a vector.

        Raises:
            OSError: the disk is full, or worse: the old state stands, and nothing of this one is left.
        """
        try:
            return self._write(manifest, keys, graph)
        except OSError:
            self.abandon(manifest.segment)
            raise

    def abandon(self, segment: int) -> None:
        """Remove what was written of a state, unless it has taken the old one's place already."""
        with contextlib.suppress(OSError, IndexRefused):
            path = self.path / _MANIFEST
            if path.exists() and self._manifest(path).segment == segment:
                return
            for name in (f"graph-{segment:08d}", f"keys-{segment:08d}.npz", _MANIFEST + ".new"):
                (self.path / name).unlink(missing_ok=True)

    def _write(self, manifest: Manifest, keys: Mapping[str, NDArray[Any]], graph: Path | None) -> Manifest:
        name = f"keys-{manifest.segment:08d}.npz"
        with (self.path / name).open("wb") as file:
            np.savez(file, **keys)  # type: ignore[arg-type]
        paths = [self.path / name, *([graph] if graph is not None else [])]
        digests = {}
        for path in paths:
            path.chmod(0o600)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            digests[path.name] = _sha256(path)
        fields = asdict(manifest) | {"files": digests}
        body = json.dumps(fields)
        envelope = json.dumps({"manifest": body, "signature": self.owner(body).hex()})
        _write_durably(self.path / _MANIFEST, envelope)
        for path in self.path.iterdir():
            if path.name.startswith(("graph-", "keys-")) and path.name not in digests:
                path.unlink(missing_ok=True)
        return Manifest(**fields)

    def clear(self) -> None:
        """Remove everything of this job; the manifest first, so that nothing half removed is trusted."""
        (self.path / _MANIFEST).unlink(missing_ok=True)
        for path in self.path.iterdir():
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read_key(self) -> bytes:
        path = self._root / _KEY
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            _check_owner(path)
            key = path.read_bytes()
            if len(key) == 32:
                return key
            path.unlink()  # a crash cut it short: what it signed is refused, and built anew
            return self._read_key()
        with os.fdopen(file, "wb") as out:
            key = secrets.token_bytes(32)
            out.write(key)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(self._root)
        return key


def _check_owner(path: Path) -> None:
    """Raise ConfigError unless ``path`` is ours and nobody else may write there."""
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"{path} belongs to another user, or others may write there: an index from there cannot be trusted.",
            f"chmod go-w {path}; or set WALVEC_INDEX_DIR to another folder.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(0o600)
    beside.rename(path)
    sync_folder(path.parent)
