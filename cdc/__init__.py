"""walvec: embeddings that follow PostgreSQL rows through the write-ahead log.

Work arrives in two ways and leaves by one tail::

    WAL ──► wire ──► flow (dirty keys) ──┐
                                         ├─► batch ─► embed ─► write back ─► settle ─► acknowledge
    reconcile (keyset scan, hash diff) ──┘

Packages, from the words everybody shares up to the rim that people type at; a module knows only what stands below it:

``lsn`` ``rows`` ``jobs`` ``status`` ``errors``
    Values: log positions, tables and keys, what a pipeline reports, failures named by what can be done next.
``wire``
    pgoutput and the streaming-replication protocol: bytes to messages, with no socket and no clock.
``flow``
    Decisions: dirty keys, the ledger of acknowledged WAL, batches, what to do about a failure.
``prepare``
    From a row to the text that is embedded, and its hash.
``ports``
    What the services ask of the world, in walvec's own words.
``postgres`` ``telemetry`` ``testing``
    The world: adapters to PostgreSQL, to logs and metrics, and servers for tests and the demo.
``services``
    The journey of a row, reconcile, and supervision.
``app`` ``config`` ``daemon``
    Where objects meet, and the settings they are made from: one consumer, or a daemon of many.
``api`` ``cli``
    HTTP and command line.
"""

__version__ = "0.1.0"
