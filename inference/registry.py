"""From a runtime's name to an embedder. Heavy packages are imported only for the runtime that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from inference.embedder import Embedder
from inference.errors import ModelMisconfigured

RUNTIMES = ("triton", "ort", "hash")
LATER = ("openai", "cohere")


def make_embedder(
    runtime: str,
    model: str,
    *,
    triton_urls: Sequence[str] = (),
    request_timeout_s: float = 30.0,
    threads: int | None = None,
) -> Embedder:
    """Return an embedder, not yet started.

    Args:
        runtime: ``triton``, ``ort`` or ``hash``.
        model: its name on that runtime.
        triton_urls: ``grpc://`` or ``grpcs://`` URLs, for ``triton``.
        request_timeout_s: deadline of one request in seconds, for ``triton``.
        threads: worker threads, for ``ort``; by default one per usable core, at most 8.

    Raises:
        ModelMisconfigured: no such runtime, or settings it cannot work with.
    """
    if runtime == "triton":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or gRPC prints failed handshakes; it looks once, on import
        from inference.triton import TritonEmbedder

        return TritonEmbedder(model, triton_urls, request_timeout_s=request_timeout_s)
    if runtime == "ort":
        from inference.ort import OrtEmbedder

        return OrtEmbedder(model, threads=threads)
    if runtime == "hash":
        from inference.hashing import HashEmbedder

        return HashEmbedder(model)
    known = ", ".join(RUNTIMES)
    if runtime in LATER:
        raise ModelMisconfigured(
            f"Runtime {runtime} is not in this version of walvec: set WALVEC_RUNTIME to one of {known}.",
            reason="unknown_runtime",
        )
    raise ModelMisconfigured(
        f"There is no runtime {runtime[:40]!r}: set WALVEC_RUNTIME to one of {known}.", reason="unknown_runtime"
    )
