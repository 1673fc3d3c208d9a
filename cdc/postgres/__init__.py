"""PostgreSQL: the replication connection, the catalogue, the control schema, and the way back in."""
