"""Lantern's words for models: its names, its batch sizes, its ``runtime_params``, and walvec's own beside them.

A job's parameters are read and checked here, so that a misspelt one is named when the job appears and not when its
first row fails. Sources: Lantern's command line and daemon 0.5.1, its runtimes and its documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from inference import minilm
from inference.errors import ModelMisconfigured

VISUAL = "clip/vit-b-32-visual"
"""Lantern's one model of images."""
STAND_INS = MappingProxyType(dict.fromkeys(("all-minilm-l12-v2", "all-minilm-l12-v1", "all-minilm-l6-v1"), minilm.NAME))
"""Models for which the one that comes along may stand in: of the same family and width, but not of the same vectors."""

BATCH_ROWS = MappingProxyType(
    {
        "vit-b-32-textual": 2000,
        "vit-b-32-visual": 50,
        "bge-small-en": 300,
        "bge-base-en": 100,
        "bge-large-en": 60,
        "jina-embeddings-v2-small-en": 500,
        "jina-embeddings-v2-base-en": 80,
        "e5-base-v2": 300,
        "e5-large-v2": 100,
        "ember-v1": 100,
        "gte-base": 1000,
        "gte-large": 800,
        "all-minilm-l12-v2": 1000,
        "splade-v3": 150,
        "all-mpnet-base-v2": 400,
        "multi-qa-mpnet-base-dot-v1": 300,
        "text-embedding-ada-002": 500,
        "text-embedding-3-small": 500,
        "text-embedding-3-large": 500,
        "gpt-4": 2,
        "gpt-4o": 2,
        "gpt-4-turbo": 2,
        "gpt-4o-mini": 10,
    }
)
OTHER_ROWS, COHERE_ROWS = 100, 5000


def short_name(model: str) -> str:
    """Return a model's name without its publisher, in lower case."""
    return model.rpartition("/")[2].lower()


def batch_rows(runtime: str, model: str) -> int:
    """Return how many rows Lantern sends at once; the model's own limits hold besides."""
    return BATCH_ROWS.get(short_name(model), COHERE_ROWS if runtime == "cohere" else OTHER_ROWS)


# -- runtime_params ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a runtime. ``kind`` is ``text``, ``secret``, ``number`` or ``switch``; ``choices`` bound it."""

    kind: str
    choices: tuple[str, ...] = ()


_TEXT, _SECRET, _NUMBER, _SWITCH = (Parameter(kind) for kind in ("text", "secret", "number", "switch"))
_POOLED = {"max_tokens": _NUMBER, "query_prefix": _TEXT, "document_prefix": _TEXT}
_PREFIXED = {"query_prefix": _TEXT, "document_prefix": _TEXT}
_INPUT_TYPE = Parameter("text", ("search_document", "search_query", "classification", "clustering"))
_ORT = {"data_path": _TEXT, "cache": _SWITCH}
_TRITON = {
    "url": _TEXT,
    "token": _SECRET,
    "tokenizer": _TEXT,
    "output": _TEXT,
    "pooling": Parameter("text", ("auto", "none", "mean", "cls", "last")),
    "normalize": _SWITCH,
    "visual": _SWITCH,
    **_POOLED,
}

PARAMETERS: Mapping[str, Mapping[str, Parameter]] = MappingProxyType(
    {
        "ort": {**_ORT, **_POOLED},
        "triton": {**_TRITON, **_ORT},  # for jobs that say ort and are sent to Triton: what only ort needs is let pass
        "openai": {
            "base_url": _TEXT,
            "api_token": _SECRET,
            "azure_entra_token": _SECRET,
            "system_prompt": _TEXT,
            "dimensions": _NUMBER,
            **_PREFIXED,
        },
        "cohere": {
            "base_url": _TEXT,
            "api_token": _SECRET,
            "input_type": _INPUT_TYPE,
            "dimensions": _NUMBER,
            **_PREFIXED,
        },
        "hash": _PREFIXED,
    }
)
"""What a job may say to each runtime. ``url`` stands for ``base_url`` as well."""
OTHER_NAMES = MappingProxyType({"url": "base_url"})


def read_parameters(runtime: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Return a job's parameters by name: texts, whole numbers and booleans. Null and empty text count as not set.

    Args:
        runtime: one of :data:`PARAMETERS`.
        given: the job's JSON object. Numbers and booleans may be written as text.

    Raises:
        ModelMisconfigured: there is no such runtime or parameter, or its value is of another kind.
    """
    known = PARAMETERS.get(runtime)
    if known is None:
        raise ModelMisconfigured(
            f"There is no runtime {runtime[:40]!r}: set the job's runtime to one of {', '.join(PARAMETERS)}"
            f"{_near(runtime, PARAMETERS)}.",
            reason="unknown_runtime",
        )
    found: dict[str, Any] = {}
    for name, value in given.items():
        key = name if name in known else OTHER_NAMES.get(name, name)
        parameter = known.get(key)
        if parameter is None:
            raise ModelMisconfigured(
                f"The {runtime} runtime has no parameter {name[:40]!r} in runtime_params{_near(name, known)}: it takes "
                f"{', '.join(sorted(known))}.",
                reason="unknown_parameter",
            )
        if value is not None and value != "":
            found[key] = _value(key, parameter, value)
    return found


def _value(name: str, parameter: Parameter, value: object) -> object:
    match parameter.kind:
        case "number":
            if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal():
                return int(value)
            wanted = "a whole number"
        case "switch":
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false", "on", "off"):
                return value.lower() in ("true", "on")
            wanted = "true or false"
        case _:
            if isinstance(value, str) and (not parameter.choices or value in parameter.choices):
                return value
            wanted = f"one of {', '.join(parameter.choices)}" if parameter.choices else "text"
    raise ModelMisconfigured(f"runtime_params: {name} takes {wanted}.", reason="bad_parameter")


def _near(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
