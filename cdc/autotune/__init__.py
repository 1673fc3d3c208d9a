"""Autotune: the cheapest HNSW parameters that reach a recall, compared on hnswlib and measured in PostgreSQL."""

from cdc.autotune.tuner import HnswTuner, autotune, autotune_runner

__all__ = ["HnswTuner", "autotune", "autotune_runner"]
