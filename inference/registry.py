"""From a runtime's name to an embedder. Heavy packages are imported only for the runtime that is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference import prefixes
from inference.address import Access
from inference.contract import ModelOptions
from inference.embedder import Embedder
from inference.errors import ModelMisconfigured
from inference.front import Front

RUNTIMES = ("triton", "ort", "openai", "cohere", "hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """How to reach a web API and what to ask of it; an empty value is the API's own default."""

    openai_url: str = ""
    openai_key: str = ""
    cohere_url: str = ""
    cohere_key: str = ""
    dimensions: int | None = None
    input_type: str = ""

    def __repr__(self) -> str:
        """Name no value, so that no traceback or log line can hold a key."""
        return "<ApiOptions>"


def make_embedder(
    runtime: str,
    model: str,
    *,
    triton_urls: Sequence[str] = (),
    request_timeout_s: float = 30.0,
    threads: int | None = None,
    api: ApiOptions | None = None,
    query_prefix: str = "",
    document_prefix: str = "",
    access: Access | None = None,
    options: ModelOptions | None = None,
    models_dir: Path | None = None,
) -> Front:
    """Return an embedder, not yet started.

    Args:
        runtime: one of :data:`RUNTIMES`.
        model: its name on that runtime.
        triton_urls: ``grpc(s)://`` or ``http(s)://`` URLs, for ``triton``.
        request_timeout_s: deadline of one request in seconds, where one is sent.
        threads: worker threads, for ``ort``; by default one per usable core, at most 8.
        api: for ``openai`` and ``cohere``.
        query_prefix: put before questions; empty: what the model is known to want, ``none``: nothing.
        document_prefix: likewise before documents.
        access: certificates and headers, for ``triton``.
        options: what a model on ``triton`` does not say of itself; of ``ort`` only where its texts are cut.
        models_dir: folder of further models, for ``ort``.

    Raises:
        ModelMisconfigured: no such runtime, or settings it cannot work with.
    """
    wanted = prefixes.choose(model, query_prefix, document_prefix)
    if runtime in ("openai", "cohere"):
        return Front(_over_http(runtime, model, api or ApiOptions(), request_timeout_s), wanted)
    if api is not None and (api.dimensions is not None or api.input_type):
        raise ModelMisconfigured(
            f"The {runtime[:40]} runtime gives what its model gives: unset WALVEC_DIMENSIONS and WALVEC_INPUT_TYPE, "
            "or set WALVEC_RUNTIME to openai or cohere.",
            reason="bad_dimensions",
        )
    if runtime == "triton":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or gRPC prints failed handshakes; it looks once, on import
        from inference.triton import TritonEmbedder

        triton = TritonEmbedder(model, triton_urls, request_timeout_s=request_timeout_s, access=access, options=options)
        return Front(triton, wanted)
    if runtime == "ort":
        from inference.ort import OrtEmbedder

        most = options.max_tokens if options is not None else None
        return Front(OrtEmbedder(model, threads=threads, folder=models_dir, max_tokens=most), wanted)
    if runtime == "hash":
        from inference.hashing import HashEmbedder

        return Front(HashEmbedder(model), wanted)
    raise ModelMisconfigured(
        f"There is no runtime {runtime[:40]!r}: set WALVEC_RUNTIME to one of {', '.join(RUNTIMES)}.",
        reason="unknown_runtime",
    )


def _over_http(runtime: str, model: str, api: ApiOptions, request_timeout_s: float) -> Embedder:
    if runtime == "openai":
        from inference.openai import OpenAIEmbedder

        return OpenAIEmbedder(
            model, api.openai_url, api.openai_key, request_timeout_s=request_timeout_s, dimensions=api.dimensions
        )
    from inference.cohere import CohereEmbedder

    return CohereEmbedder(
        model,
        api.cohere_url,
        api.cohere_key,
        request_timeout_s=request_timeout_s,
        dimensions=api.dimensions,
        input_type=api.input_type,
    )
