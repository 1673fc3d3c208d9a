"""Models in a folder, to be run in this process: sentence-transformers as they are published, exported to ONNX.

``<folder>/<name>/`` holds ``model.onnx`` (or ``onnx/model.onnx``) and ``tokenizer.json``. What else is there is read as
sentence-transformers reads it: ``1_Pooling/config.json`` (how token states become a vector), ``modules.json`` (whether
it is scaled to length 1), ``sentence_bert_config.json``, ``tokenizer_config.json`` and ``config.json`` (where a text is
cut). The model that comes with walvec is one more, under a name of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference import minilm
from inference.errors import ModelMisconfigured
from inference.tokenizer import MAX_TOKENS

WEIGHTS = ("model.onnx", "onnx/model.onnx")
POOLING_FILE = "1_Pooling/config.json"
POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
"""Kinds of network that count positions from the padding's id on: two places of their table hold no token."""
MOST_TOKENS = 1 << 20
"""Tokenizers without a bound say one of thirty digits."""
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model on disk. ``pooling`` is ``auto`` (by what the network gives), ``mean``, ``cls`` or ``last``.

    ``normalize`` None: where it is pooled here. ``identity`` changes when the files that decide on vectors do.
    """

    name: str
    weights: Path | None
    """None: the weights of the package, see :mod:`inference.minilm`."""
    tokenizer: Path
    max_tokens: int
    pooling: str = "auto"
    normalize: bool | None = None
    identity: str = ""

    def cut(self, max_tokens: int | None) -> OnnxModel:
        """Return it with texts cut at ``max_tokens``, where that is set and shorter."""
        return self if not max_tokens else replace(self, max_tokens=min(max_tokens, self.max_tokens))


BUILT_IN = OnnxModel(minilm.NAME, None, minilm.TOKENIZER_FILE, minilm.MAX_TOKENS, "mean", True)


def find(name: str, folder: Path | None = None) -> OnnxModel:
    """Return the model called ``name``: from the folder, in any case, else the one that comes along.

    The publisher may be left out, there or here, but not be another one.

    Raises:
        ModelMisconfigured: there is none, the sentence names those that are there; or a file of it cannot be read.
    """
    if folder is not None:
        there = list(_names(folder))
        wanted = name.lower()
        bare = [found for found in there if found.lower() == wanted.rpartition("/")[2]]
        published = [found for found in there if "/" not in wanted and found.lower().endswith(f"/{wanted}")]
        for found in [*(found for found in there if found.lower() == wanted), *bare, *published]:
            return _read(name, folder / found)
    if name.lower().removeprefix("sentence-transformers/") == minilm.NAME:
        return BUILT_IN
    where = "set WALVEC_MODELS_DIR to a folder that has it" if folder is None else f"put it into {folder}/{name[:80]}"
    raise ModelMisconfigured(
        f"There is no model {name[:80]!r} to run in this process, only {', '.join(available(folder))}: "
        f"{where} (model.onnx and tokenizer.json), or have it served by Triton.",
        reason="unknown_model",
    )


def available(folder: Path | None = None, most: int = 20) -> list[str]:
    """Return the names of the models that can be run in this process, at most so many."""
    return [minilm.NAME, *(list(_names(folder))[:most] if folder is not None else [])]


def _names(folder: Path) -> Iterator[str]:
    """Yield ``name`` and ``publisher/name`` of the models in a folder, sorted."""
    for path in sorted(folder.glob("*")):
        if _weights(path) is not None:
            yield path.name
        elif path.is_dir():
            yield from (f"{path.name}/{below.name}" for below in sorted(path.glob("*")) if _weights(below) is not None)


def _weights(path: Path) -> Path | None:
    return next((path / file for file in WEIGHTS if (path / file).is_file()), None)


def _read(name: str, path: Path) -> OnnxModel:
    weights = _weights(path)
    assert weights is not None
    pooling = _pooling(path)
    modules = _json(path / "modules.json")
    normalize = None
    if isinstance(modules, list):
        normalize = any(str(module.get("type", "")).endswith(".Normalize") for module in modules)
    tokenizer = path / "tokenizer.json"
    return OnnxModel(name, weights, tokenizer, _max_tokens(path), pooling, normalize, _identity(weights, tokenizer))


def _pooling(path: Path) -> str:
    found = _json(path / POOLING_FILE)
    if not isinstance(found, dict):
        return "auto"
    asked = [mode for mode, on in found.items() if mode.startswith("pooling_mode_") and on is True]
    named = found.get("pooling_mode")
    if isinstance(named, str):
        asked = [next((mode for mode, short in POOLING_MODES.items() if short == named or mode.endswith(named)), named)]
    if len(asked) != 1 or asked[0] not in POOLING_MODES:
        raise ModelMisconfigured(
            f"{path / POOLING_FILE} asks for {' and '.join(asked) or 'nothing'}, which walvec does not know: it pools "
            "by mean, by the first token or by the last one.",
            reason="pooling",
        )
    return POOLING_MODES[asked[0]]


def _max_tokens(path: Path) -> int:
    """Return where texts are cut: what sentence-transformers says, else the tokenizer, and never past the network."""
    said = _number(_json(path / "sentence_bert_config.json"), "max_seq_length")
    if not said:
        truncation = (_json(path / "tokenizer.json") or {}).get("truncation")
        tokenizer = _json(path / "tokenizer_config.json")
        said = _number(truncation, "max_length") or _number(tokenizer, "model_max_length")
    config = _json(path / "config.json")
    positions = _number(config, "max_position_embeddings")
    if positions and str(config.get("model_type")) in OFFSET_POSITIONS:
        positions -= 2
    return min(said or MAX_TOKENS, positions or MOST_TOKENS)


def _number(found: Any, key: str) -> int:
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, int) and 0 < value <= MOST_TOKENS else 0


def _json(path: Path) -> Any:
    """Return a file's JSON; None where there is no such file.

    Raises:
        ModelMisconfigured: it cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ModelMisconfigured(f"{path} cannot be read: {what}.", reason="model_files") from error


def _identity(weights: Path, tokenizer: Path) -> str:
    """Return a digest of the files' sizes and of samples of them.

    Reading a gigabyte to learn that nothing has changed would be felt; another training leaves no stretch of the
    weights as it was, so that samples tell as well.
    """
    digest = hashlib.sha256()
    for file in sorted([*weights.parent.glob(f"{weights.name}*"), tokenizer]):
        try:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as content:
                for sample in range(SAMPLES):
                    content.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                    digest.update(content.read(SAMPLE_BYTES))
        except OSError as error:
            raise ModelMisconfigured(
                f"The model's file {file} cannot be read ({error.strerror}).", reason="model_missing"
            ) from error
    return digest.hexdigest()[:16]
