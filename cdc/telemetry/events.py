"""Every event that walvec logs, and what it tells. Names are stable: searches and alerts may rely on them."""

from __future__ import annotations

EVENTS: dict[str, str] = {
    # the process
    "engine_started": "Replication, reconcile and the HTTP server are up.",
    "engine_stopping": "A signal was received; work in flight is finished and acknowledged.",
    "engine_stopped": "Everything in flight is settled and acknowledged.",
    "engine_failed": "The process ends with a fault that needs a person.",
    "library_log": "A line from a library (`logger`, `message`).",
    # database and slot
    "database_unavailable": "PostgreSQL cannot be reached; trying again with backoff.",
    "database_recovered": "PostgreSQL answers again.",
    "schema_migrated": "The control schema was created or brought up to date.",
    "slot_waiting": "The server waits for older transactions to end before it can make the slot.",
    "slot_created": "A replication slot was created.",
    "slot_connecting": "Replication is being started.",
    "slot_streaming": "Replication has started.",
    "slot_standby": "Another instance holds the slot; this one waits to take over.",
    "slot_disconnected": "The replication connection ended; it is opened again with backoff.",
    "slot_lost": "The slot is gone or invalidated; a new one and a reconcile follow, unless set to stop.",
    "fenced": "Another instance took over the slot; this one writes nothing any more.",
    "server_notice": "PostgreSQL sent a notice on the replication connection.",
    # publication and pipelines
    "publication_missing": "The publication does not exist; nothing is captured until it is back.",
    "publication_incomplete": "The publication leaves out a kind of change; embeddings fall behind until a reconcile.",
    "publication_restored": "The publication is back; every pipeline is reconciled.",
    "table_added": "A table joined the publication; its pipeline starts with a reconcile.",
    "table_left": "A table left the publication; its destination is no longer maintained.",
    "schema_changed": "A watched table's columns or replica identity changed.",
    "pipeline_ready": "A pipeline is in step with the stream.",
    "pipeline_paused": "A pipeline was paused: changes are queued, none is embedded.",
    "pipeline_resumed": "A paused pipeline goes on.",
    "pipeline_failed": "A pipeline stopped until something is mended; the others go on.",
    "index_built": "The vector index was built.",
    "index_failed": "The vector index could not be built; search goes on without it.",
    # reconcile
    "reconcile_started": "Source and destination are being compared by hash.",
    "reconcile_progress": "How far the comparison has come.",
    "reconcile_finished": "The destination equals the source.",
    "reconcile_failed": "A comparison was broken off; it goes on from its cursor.",
    # rows and model
    "model_unavailable": "The model cannot be reached or is overloaded; rows wait.",
    "model_recovered": "The model answers again.",
    "model_stand_in": "A job's model is not here; another of its family stands in for it, under its own name.",
    "batch_split": "A request failed and is tried again in smaller parts.",
    "row_dead_lettered": "Rows were set aside with an error; see `walvec errors list`.",
    "queue_spilled": "The backlog outgrew memory; keys go to the durable queue.",
    "queue_drained": "The durable queue is empty again.",
    # HTTP
    "http_listening": "The HTTP server listens (`address`).",
    "http_unprotected": "The HTTP server can be reached from other machines and no token is set.",
    "http_failed": "The HTTP server stopped by itself; the pipelines go on.",
    "http_request_failed": "A request hit an unexpected fault (`route`, `exception_type`).",
}
