"""An index that can be searched, with all that keeps it: its follower, its journal, its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from cdc.flow.vectorformat import VectorFormat
from cdc.jobs import IndexSpec, Job
from cdc.ports.indexes import Indexed, Observed
from cdc.services.index_files import IndexFolder, Manifest, unwritable
from cdc.services.index_follower import Checkpoint, IndexFollower
from cdc.services.index_journal import Journal, Place
from cdc.services.keyed_index import KeyedIndex

log = structlog.get_logger()

SKIPPED_S: Final = 60.0
"""Seconds at least between two lines in the log that say how many rows were left out."""

_QUICK: Final = 64  # rows of a journal are added to the index again, which takes longer than loading the base


def identity(job: Job, spec: IndexSpec, indexed: Indexed) -> str:
    """Return a digest of all that an index is made of and with: another one, another index."""
    parts = [str(job.id), job.id.database, job.place, str(job.table), spec.column, spec.metric, spec.m]
    return hashlib.sha256(json.dumps([*parts, spec.ef_construction, indexed.identity]).encode()).hexdigest()


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
    skipped_told: int = 0
    skipped_told_at: float = -SKIPPED_S
    is_followed: bool = False  # the table's changes are coming in
    is_closed: bool = False
    follower: IndexFollower = field(init=False)

    def follow(self, place: Place, idle_s: float) -> None:
        """Begin to take changes in, those after ``place``."""
        self.follower = IndexFollower(
            self.indexed, self.spec.column, self.form, self.index, self.journal, place, self.save, idle_s
        )
        self.follower.unsaved = self.unsaved

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the index as it is at ``checkpoint``; where that fails, the old base and the whole journal stand."""
        try:
            self.write(checkpoint)
        except OSError as exc:
            self.unsaved(exc)

    def unsaved(self, exc: OSError) -> None:
        """Say that the index could not be saved, and why."""
        log.warning("external_index_unsaved", job=str(self.job.id), message=str(unwritable(self.folder.path, exc)))

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
                lsn=checkpoint.place.lsn,
                commit=checkpoint.place.commit,
                changes=checkpoint.place.changes,
                segment=checkpoint.segment,
                storage=self.storage,
                rows=self.index.count,
                dimension=self.index.dimension,
                misfits=self.index.misfits,
            )
            self.manifest = self.folder.write(manifest, keys.arrays(), graph)
        except OSError:
            self.folder.abandon(checkpoint.segment)
            raise
        self.journal.drop_before(checkpoint.segment)

    def tell_skipped(self, now: float) -> None:
        """Log how many rows were left out since the last time, if any; at most once a minute."""
        skipped = self.index.skipped
        if skipped > self.skipped_told and now - self.skipped_told_at >= SKIPPED_S:
            log.warning("external_index_skipped", job=str(self.job.id), rows=skipped - self.skipped_told)
            self.skipped_told, self.skipped_told_at = skipped, now

    def adopt(self, job: Job, spec: IndexSpec, observed: Observed) -> bool:
        """Go on as the index of a job, which may have been edited.

        Returns:
            False where the job's index is made of or with something else, or somebody else has followed meanwhile.
        """
        alone = observed.slot.confirmed <= self.follower.durable and self.journal.is_newest()
        if not alone or identity(job, spec, self.indexed) != self.manifest.identity:
            return False
        self.job, self.spec = job, spec
        return True

    def settle(self, timeout_s: float, *, save: bool) -> None:
        """Wait until nothing is under way any more.

        Args:
            timeout_s: How long at most.
            save: Save the index for the next start, unless that reads the journal as quickly.
        """
        size = self.index.count * 4 * (self.index.dimension or 0)
        if save and not self.follower.failure and self.journal.bytes > size // _QUICK:
            self.follower.checkpoint()
        self.follower.wait_idle(timeout_s)

    def close(self) -> None:
        """End its threads. Its files stay, and it can be searched."""
        if not self.is_closed:
            self.is_closed = True
            self.follower.close()
