"""An index made of what a table holds, or opened as it was saved and brought up to date from its journal."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog

from cdc.errors import ConfigError, Unavailable, WalvecError
from cdc.flow.keycodec import KeyCodec
from cdc.flow.keymap import restore
from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job
from cdc.ports.indexes import Chunk, Indexed, Indexes, IndexSource, Observed, Origin
from cdc.services.index_files import IndexFolder, IndexRefused, Manifest, writing
from cdc.services.index_follower import Checkpoint
from cdc.services.index_journal import Journal, JournalDamaged, Place
from cdc.services.index_served import Served, identity
from cdc.services.keyed_index import KeyedIndex, Make

log = structlog.get_logger()

_CHUNKS_AHEAD: Final = 16


class Ended(Exception):
    """The work was ended on request."""


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
        ConfigError: there is no memory for it.
        Unavailable: its files cannot be read or written now.
    """
    with writing(folder.path):
        return _reopen(job, spec, observed, folder, indexes, idle_s)


def _reopen(
    job: Job, spec: IndexSpec, observed: Observed, folder: IndexFolder, indexes: Indexes, idle_s: float
) -> Served | None:
    indexed, slot = observed.indexed, observed.slot
    manifest = folder.read(identity(job, spec, indexed))
    if manifest is None:
        return None
    if manifest.publication != observed.publication:
        raise IndexRefused("The publication of the index was changed or dropped, so changes may be missing.")
    if not slot.exists or slot.lost:
        raise IndexRefused("The replication slot of the index was dropped or invalidated, so changes are missing.")
    codec = KeyCodec(indexed.key)
    index = KeyedIndex(codec, _maker(indexes, spec), indexed.dimension)
    index.adopt_misfits(manifest.misfits)
    if manifest.dimension is not None and folder.graph(manifest).name in manifest.files:
        indexes.check_room(spec, manifest.dimension, manifest.rows)
        keys = restore(codec, folder.keys(manifest))
        index.adopt(indexes.load(spec, manifest.dimension, folder.graph(manifest), keys.live), keys)
    journal = Journal(folder.path, folder.owner(manifest.identity), codec)
    place = Place(manifest.lsn, manifest.commit, manifest.changes)
    try:
        for reached, changes in journal.replay(manifest.segment):
            index.apply(changes)
            place = reached
    except JournalDamaged as exc:
        raise IndexRefused(exc.message) from None
    if slot.confirmed > place.lsn:
        raise IndexRefused("The replication slot stands beyond what is saved, so changes are missing.")
    journal.open(journal.segment + 1)
    form = VectorFormat(indexed.base_type, spec.metric)
    served = Served(job, spec, indexed, form, index, folder, journal, manifest, manifest.storage)
    served.follow(place, idle_s)
    log.info("external_index_opened", job=str(job.id), rows=index.count)
    return served


def build(
    job: Job,
    spec: IndexSpec,
    source: IndexSource,
    folder: IndexFolder,
    indexes: Indexes,
    idle_s: float,
    note: Callable[[int, int], None],
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
        note: Told the rows that are done, and about how many there are.
        stop: Ends the work.

    Raises:
        Ended: on request. Neither slot nor files are left.
        WalvecError: it cannot be built, or not be saved. Neither slot nor files are left.
    """
    indexed = source.observe().indexed
    try:
        return _build(job, spec, indexed, source, folder, indexes, idle_s, note, stop)
    except BaseException as exc:
        source.end()
        with contextlib.suppress(WalvecError):
            source.discard()
        with contextlib.suppress(OSError):
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
    note: Callable[[int, int], None],
    stop: threading.Event,
) -> Served:
    if indexed.dimension is not None:
        indexes.check_room(spec, indexed.dimension, max(indexed.rows, 0))  # before the server begins to keep WAL
    origin = source.begin(indexed)
    with writing(folder.path, ConfigError):
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
        note(done, max(rows, done, 1))
    if stop.is_set():
        raise Ended
    observed = source.observe()  # while the snapshot is open, in which the table cannot be rewritten
    source.end()
    if observed.indexed.identity != indexed.identity or observed.indexed.is_rewritten(indexed.storage):
        raise Unavailable(f"{job.table} was changed while it was read; it is read again.")
    served = _save_first(job, spec, observed, origin, folder, index, codec)
    if index.skipped:
        log.warning("external_index_skipped", job=str(job.id), rows=index.skipped)
        served.skipped_told = index.skipped
    log.info("external_index_built", job=str(job.id), rows=index.count)
    served.follow(Place(origin.lsn), idle_s)
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
    form = VectorFormat(indexed.base_type, spec.metric)
    served = Served(job, spec, indexed, form, index, folder, journal, manifest, indexed.storage)
    with writing(folder.path, ConfigError):
        try:
            journal.open(1)
            served.write(Checkpoint(1, Place(origin.lsn)))
        except OSError:
            with contextlib.suppress(OSError):
                journal.close()
            raise
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
