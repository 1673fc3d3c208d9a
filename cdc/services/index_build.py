"""An index made of what a table holds, or opened as it was saved and brought up to date from its journal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from cdc.errors import Unavailable, WalvecError
from cdc.flow.keycodec import KeyCodec
from cdc.flow.keymap import restore
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job
from cdc.ports.indexes import Chunk, Indexed, Indexes, IndexSource, Observed, Origin
from cdc.services.index_files import IndexFolder, IndexRefused, Manifest
from cdc.services.index_follower import Checkpoint, IndexFollower
from cdc.services.index_journal import Journal, JournalDamaged
from cdc.services.keyed_index import KeyedIndex, Make

log = structlog.get_logger()

_CHUNKS_AHEAD: Final = 16


class Ended(Exception):
    """The work was ended on request."""


@dataclass(slots=True)
class Served:
    """An index that can be searched, and all that keeps it."""

    job: Job
    spec: IndexSpec
    indexed: Indexed
    form: VectorFormat
    index: KeyedIndex
    folder: IndexFolder
    journal: Journal
    manifest: Manifest
    storage: str
    is_closed: bool = False
    follower: IndexFollower = field(init=False)

    def follow(self, lsn: int, idle_s: float) -> None:
        """Begin to take changes in, those after ``lsn``."""
        self.follower = IndexFollower(
            self.indexed, self.spec.column, self.form, self.index, self.journal, lsn, self.save, idle_s
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the index as it is at ``checkpoint``; where that fails, the old base and the whole journal stand."""
        try:
            self.write(checkpoint)
        except OSError as exc:
            log.warning("external_index_unsaved", job=str(self.job.id), message=f"{exc.strerror or exc}.")

    def write(self, checkpoint: Checkpoint) -> None:
        """Write the index as it is at ``checkpoint``, and remove what that replaces.

        Raises:
            OSError: it could not be written.
        """
        index, keys = self.index.now
        graph = self.folder.new_graph(checkpoint.segment) if index is not None else None
        try:
            if index is not None and graph is not None:
                index.save(graph)
            manifest = replace(
                self.manifest,
                lsn=checkpoint.lsn,
                segment=checkpoint.segment,
                storage=self.storage,
                rows=self.index.count,
                dimension=self.index.dimension,
            )
            self.manifest = self.folder.write(manifest, keys.arrays(), graph)
        except OSError:
            if graph is not None:
                graph.unlink(missing_ok=True)
            raise
        self.journal.drop_before(checkpoint.segment)

    def close(self) -> None:
        """End its threads. Its files stay, and it can be searched."""
        if not self.is_closed:
            self.is_closed = True
            self.follower.close()


def identity(job: Job, spec: IndexSpec, indexed: Indexed) -> str:
    """Return a digest of all that an index is made of and with: another one, another index."""
    parts = [str(job.id), job.id.database, job.place, str(job.table), spec.column, spec.metric, spec.m]
    return hashlib.sha256(json.dumps([*parts, spec.ef_construction, indexed.identity]).encode()).hexdigest()


def folder_of(root: Path, job: Job) -> IndexFolder:
    """Return the folder of a job's files."""
    digest = hashlib.sha256(f"{job.id.database}\0{job.id.table}".encode()).hexdigest()[:12]
    return IndexFolder(root, f"job-{job.id.id}-{digest}")


def reopen(
    job: Job, spec: IndexSpec, observed: Observed, folder: IndexFolder, indexes: Indexes, idle_s: float
) -> Served | None:
    """Return the index as it was saved, with its journal's changes; None where nothing is saved.

    Raises:
        IndexRefused: what is saved is of no use; the message says why.
    """
    indexed, slot = observed.indexed, observed.slot
    manifest = folder.read(identity(job, spec, indexed))
    if manifest is None:
        return None
    if manifest.publication != observed.publication:
        raise IndexRefused("The publication of the index was changed or dropped, so changes may be missing.")
    if not slot.exists or slot.lost:
        raise IndexRefused("The replication slot of the index was dropped or invalidated, so changes are missing.")
    codec = KeyCodec(indexed.key)
    index = KeyedIndex(codec, _maker(indexes, spec), manifest.dimension)
    if manifest.dimension is not None and folder.graph(manifest).name in manifest.files:
        indexes.check_room(spec, manifest.dimension, manifest.rows)
        keys = restore(codec, folder.keys(manifest))
        index.adopt(indexes.load(spec, manifest.dimension, folder.graph(manifest), keys.live), keys)
    journal = Journal(folder.path, folder.owner(manifest.identity), codec)
    lsn = manifest.lsn
    try:
        for position, changes in journal.replay(manifest.segment):
            index.apply(changes)
            lsn = max(lsn, position)
    except JournalDamaged as exc:
        raise IndexRefused(exc.message) from None
    if slot.confirmed > lsn:
        raise IndexRefused("The replication slot stands beyond what is saved, so changes are missing.")
    journal.open(journal.segment + 1)
    form = VectorFormat(indexed.base_type, spec.metric)
    served = Served(job, spec, indexed, form, index, folder, journal, manifest, manifest.storage)
    served.follow(lsn, idle_s)
    log.info("external_index_opened", job=str(job.id), rows=index.count)
    return served


def build(
    job: Job,
    spec: IndexSpec,
    source: IndexSource,
    folder: IndexFolder,
    indexes: Indexes,
    idle_s: float,
    note: Callable[[float], None],
    stop: threading.Event,
) -> Served:
    """Make the index from the table, anew, and save it.

    Args:
        job: What is asked for.
        spec: The job's.
        source: The table.
        folder: Where it is saved; emptied first.
        indexes: Makes indexes.
        idle_s: As of the follower.
        note: Told the share that is done, 0 to 1.
        stop: Ends the work.

    Raises:
        Ended: on request. Neither slot nor files are left.
        WalvecError: it cannot be built. Neither slot nor files are left.
    """
    indexed = source.observe().indexed
    try:
        return _build(job, spec, indexed, source, folder, indexes, idle_s, note, stop)
    except BaseException as exc:
        source.end()
        with contextlib.suppress(WalvecError):
            source.discard()
        folder.clear()
        if stop.is_set():
            raise Ended from exc
        raise


def _build(
    job: Job,
    spec: IndexSpec,
    indexed: Indexed,
    source: IndexSource,
    folder: IndexFolder,
    indexes: Indexes,
    idle_s: float,
    note: Callable[[float], None],
    stop: threading.Event,
) -> Served:
    if indexed.dimension is not None:
        indexes.check_room(spec, indexed.dimension, max(indexed.rows, 0))  # before the server begins to keep WAL
    origin = source.begin(indexed)
    folder.clear()
    rows = indexed.rows if indexed.rows > 0 else source.count()
    codec = KeyCodec(indexed.key)
    index = KeyedIndex(codec, _maker(indexes, spec), indexed.dimension)
    done, room = 0, 0
    for chunk in _ahead(lambda halt: source.chunks(indexed, halt), stop):
        done += len(chunk.vectors) + chunk.skipped
        index.skipped += chunk.skipped
        if index.count + len(chunk.vectors) > room:
            room = max(rows * 51 // 50, (index.count + len(chunk.vectors)) * 5 // 4) + 1024
            if len(chunk.vectors):
                indexes.check_room(spec, chunk.vectors.shape[1], room)
        index.load(chunk.keys, chunk.vectors, room)
        note(done / max(rows, done, 1))
    if stop.is_set():
        raise Ended
    observed = source.observe()  # while the snapshot is open, in which the table cannot be rewritten
    source.end()
    if observed.indexed.identity != indexed.identity or observed.indexed.is_rewritten(indexed.storage):
        raise Unavailable(f"{job.table} was changed while it was read; it is read again.")
    served = _save_first(job, spec, observed, origin, folder, index, codec)
    if index.skipped:
        log.warning("external_index_skipped", job=str(job.id), rows=index.skipped)
    log.info("external_index_built", job=str(job.id), rows=index.count)
    served.follow(origin.lsn, idle_s)
    return served


def _save_first(
    job: Job,
    spec: IndexSpec,
    observed: Observed,
    origin: Origin,
    folder: IndexFolder,
    index: KeyedIndex,
    codec: KeyCodec,
) -> Served:
    indexed = observed.indexed
    name = identity(job, spec, indexed)
    manifest = Manifest(
        name, observed.publication, indexed.storage, origin.system, origin.timeline, origin.lsn, 1, index.count,
        index.dimension, {},
    )  # fmt: skip
    journal = Journal(folder.path, folder.owner(name), codec)
    journal.open(1)
    form = VectorFormat(indexed.base_type, spec.metric)
    served = Served(job, spec, indexed, form, index, folder, journal, manifest, indexed.storage)
    served.write(Checkpoint(1, origin.lsn))
    return served


def _maker(indexes: Indexes, spec: IndexSpec) -> Make:
    return lambda dimension, capacity: indexes.make(spec, dimension, capacity)


def _ahead(read: Callable[[threading.Event], Iterator[Chunk]], stop: threading.Event) -> Iterator[Chunk]:
    """Yield chunks, read by a thread of its own while those before are worked on, until ``stop``.

    Args:
        read: Yields the chunks until the event that it is given is set.
        stop: Ends it all.
    """
    filled: queue.Queue[Chunk | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
    halt = threading.Event()

    def hand_over(item: Chunk | BaseException | None) -> None:
        while not halt.is_set():
            with contextlib.suppress(queue.Full):
                filled.put(item, timeout=0.2)
                return

    def run() -> None:
        try:
            for chunk in read(halt):
                hand_over(chunk)
            hand_over(None)
        except BaseException as exc:
            hand_over(exc)

    reader = threading.Thread(target=run, name="walvec index load", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                item = filled.get(timeout=0.2)
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
    finally:
        halt.set()
        reader.join()
