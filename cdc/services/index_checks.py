"""Whether the stream of an index still tells all there is."""

from __future__ import annotations

from cdc.ports.indexes import Observed
from cdc.services.index_served import Served


class StartOver(Exception):
    """What there is cannot be kept current any more; the message says why."""


def check(served: Served, observed: Observed) -> None:
    """Make sure that the stream tells all there is.

    Raises:
        StartOver: it does not.
    """
    indexed, told = observed.indexed, served.follower.truncates
    if served.index.is_outgrown:
        raise StartOver("Most rows have vectors of another width than the index.")
    if indexed.identity != served.indexed.identity:
        raise StartOver("The table's definition changed.")
    if observed.publication != served.manifest.publication:
        raise StartOver("The publication of the index was changed or dropped.")
    if not observed.slot.exists or observed.slot.lost:
        raise StartOver("The replication slot of the index was dropped or invalidated.")
    if indexed.storage == served.storage:
        served.truncates, served.suspected = told, ""
    elif not indexed.partitioned and told != served.truncates:  # a TRUNCATE, which the stream has told of
        served.truncates, served.suspected, served.storage = told, "", indexed.storage
        served.follower.checkpoint()
    elif indexed.partitioned or served.suspected == indexed.storage:
        raise StartOver("The table was rewritten, or its partitions changed.")
    else:  # perhaps a TRUNCATE that the stream has yet to tell of: the next look says
        served.suspected = indexed.storage
