"""Texts in, vectors out: the runtimes that walvec can embed with. Knows nothing of PostgreSQL or of ``cdc``."""
