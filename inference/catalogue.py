"""Models that are known to work, by runtime: width, length, licence, and where the weights come from.

Only a list to choose from: any model of a server can be used, whether it is named here or not. Widths and lengths are
those of the publishers' model cards and API references.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference import minilm, onnx_models
from inference.errors import EmbedError
from inference.front import Front
from inference.prefixes import Prefixes, known


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on a runtime; None where the server says. ``shortest``: the least width that can be asked for."""

    runtime: str
    model: str
    dimension: int | None = None
    tokens: int | None = None
    licence: str = ""
    weights: str = ""
    shortest: int | None = None
    prefixes: Prefixes | None = None
    """What is put before its texts, where that is set; else what it is known to want."""

    @property
    def dimensions(self) -> str:
        """The width as people read it."""
        if self.dimension is None:
            return ""
        return f"{self.shortest}–{self.dimension}" if self.shortest else str(self.dimension)

    @property
    def query_prefix(self) -> str:
        """What is put before its questions."""
        return (self.prefixes or known(self.model)).query

    @property
    def document_prefix(self) -> str:
        """What is put before its documents."""
        return (self.prefixes or known(self.model)).document

    def is_like(self, other: Entry) -> bool:
        """Return whether it is the same model on the same runtime."""
        return (self.runtime, self.model.lower()) == (other.runtime, other.model.lower())

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        names = ("runtime", "model", "dimension", "shortest", "tokens", "licence", "weights")
        row = {name: getattr(self, name) for name in names}
        return {**row, "query_prefix": self.query_prefix, "document_prefix": self.document_prefix}


def named(runtime: str, model: str) -> Entry:
    """Return what is known of a model, which may be its name alone."""
    asked = Entry(runtime, model)
    return next((entry for entry in entries() if entry.is_like(asked)), asked)


async def describe(front: Front, timeout_s: float = 5.0) -> tuple[Entry, str]:
    """Return a model as its runtime describes it, and in a sentence whether it answers."""
    entry = replace(named(front.runtime, front.model), prefixes=front.prefixes)
    try:
        async with asyncio.timeout(timeout_s):
            await front.start()
        limits = front.limits
        answers = f"it answers; at most {limits.max_rows} texts go into one request."
        return replace(entry, dimension=front.dimension, shortest=None, tokens=limits.max_tokens), answers
    except TimeoutError:
        return entry, f"it did not answer within {timeout_s:g} s."
    except EmbedError as error:
        return entry, str(error)
    finally:
        await front.close()


_HOSTED = "the provider's terms"
_SERVE = "its publisher; serve it with TEI, vLLM, Ollama …"


def entries(folder: Path | None = None) -> list[Entry]:
    """Return the list, with the models of a folder (``WALVEC_MODELS_DIR``) if one is given."""
    package = f"package {minilm.WEIGHTS_PACKAGE} {minilm.WEIGHTS_VERSION}, checked by SHA-256"
    return [
        Entry("ort", minilm.NAME, minilm.DIMENSION, minilm.MAX_TOKENS, "Apache-2.0", package),
        *_in(folder),
        *_SERVED,
        *_OPENAI,
        *_COHERE,
        Entry("hash", "hash-D", weights="none: a digest of the text, for tests; D from 1 to 16000"),
    ]


def _in(folder: Path | None) -> list[Entry]:
    """Return the models of a folder; how wide they are, only running them tells."""
    _, *names = onnx_models.available(folder, 1000)
    return [Entry("ort", name, weights=f"{folder}/{name}") for name in names]


_SERVED = (
    Entry("triton", "any of text, token ids or images", weights="your model repository; walvec model export makes one"),
    Entry("openai", "intfloat/multilingual-e5-small", 384, 512, "MIT", _SERVE),
    Entry("openai", "intfloat/e5-base-v2", 768, 512, "MIT", _SERVE),
    Entry("openai", "BAAI/bge-small-en-v1.5", 384, 512, "MIT", _SERVE),
    Entry("openai", "BAAI/bge-large-en-v1.5", 1024, 512, "MIT", _SERVE),
    Entry("openai", "BAAI/bge-m3", 1024, 8192, "MIT", _SERVE),
    Entry("openai", "nomic-ai/nomic-embed-text-v1.5", 768, 8192, "Apache-2.0", _SERVE),
    Entry("openai", "mixedbread-ai/mxbai-embed-large-v1", 1024, 512, "Apache-2.0", _SERVE),
    Entry("openai", "Snowflake/snowflake-arctic-embed-l-v2.0", 1024, 8192, "Apache-2.0", _SERVE),
    Entry("openai", "Qwen/Qwen3-Embedding-0.6B", 1024, 32768, "Apache-2.0", _SERVE),
)  # fmt: skip

_OPENAI = (
    Entry("openai", "text-embedding-3-small", 1536, 8192, _HOSTED, "hosted by OpenAI and Azure", shortest=1),
    Entry("openai", "text-embedding-3-large", 3072, 8192, _HOSTED, "hosted by OpenAI and Azure", shortest=1),
    Entry("openai", "text-embedding-ada-002", 1536, 8192, _HOSTED, "hosted by OpenAI and Azure"),
)

_COHERE = (
    Entry("cohere", "embed-v4.0", 1536, 128_000, _HOSTED, "hosted by Cohere", shortest=256),
    Entry("cohere", "embed-english-v3.0", 1024, 512, _HOSTED, "hosted by Cohere"),
    Entry("cohere", "embed-multilingual-v3.0", 1024, 512, _HOSTED, "hosted by Cohere"),
    Entry("cohere", "embed-english-light-v3.0", 384, 512, _HOSTED, "hosted by Cohere"),
    Entry("cohere", "embed-multilingual-light-v3.0", 384, 512, _HOSTED, "hosted by Cohere"),
)
