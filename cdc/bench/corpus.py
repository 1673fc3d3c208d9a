"""Real embeddings by the hundred thousand, for benchmarks of vector indexes: sentences found on this machine.

Docstrings and comments of the Python files of the standard library and of the installed packages, cut into sentences,
each once, embedded by the embedded MiniLM: some hundreds a second on two cores. The vectors are kept in ``.cache``, and
the work goes on where it was broken off.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cdc.errors import ConfigError
from inference import minilm
from inference.ort import OrtEmbedder

CACHE: Final = Path(".cache") / "bench"
_PORTION: Final = 2_048
_SHORTEST, _LONGEST = 30, 160  # characters of a sentence
_SEED: Final = 7
_ENOUGH: Final = 130_000  # sentences


def embeddings(rows: int, folder: Path = CACHE) -> NDArray[np.float32]:
    """Return ``rows`` embeddings of different sentences, shape ``(rows, 384)``, in an order that is random and fixed.

    Raises:
        ConfigError: this machine does not have so many sentences.
    """
    kept = folder / "sentences.npy"
    vectors = np.load(kept) if kept.exists() else np.empty((0, minilm.DIMENSION), np.float32)
    if len(vectors) >= rows:
        return np.asarray(vectors[:rows], np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "sentences.txt"
    if not listing.exists():
        listing.write_text("\n".join(_shuffled()), "utf-8")
    texts = listing.read_text("utf-8").split("\n")
    if len(texts) < rows:
        raise ConfigError(f"The Python files of this machine have {len(texts)} sentences; {rows} were asked for.")
    return asyncio.run(_embed(texts[:rows], vectors, kept))


async def _embed(texts: list[str], vectors: NDArray[np.float32], kept: Path) -> NDArray[np.float32]:
    model = OrtEmbedder()
    await model.start()
    parts = [vectors]
    for start in range(len(vectors), len(texts), _PORTION):
        parts.append(await model.embed(texts[start : start + _PORTION]))
        if len(parts) % 5 == 0 or start + _PORTION >= len(texts):
            parts = [np.concatenate(parts)]
            unfinished = kept.with_suffix(".part.npy")
            np.save(unfinished, parts[0])
            unfinished.replace(kept)
            print(f"  embedded {len(parts[0]):,} of {len(texts):,} sentences", file=sys.stderr, flush=True)
    await model.close()
    return np.concatenate(parts)


def _shuffled() -> list[str]:
    chance = random.Random(_SEED)
    folders = sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")})
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    chance.shuffle(files)
    found: dict[str, None] = {}
    for path in files:
        found.update(dict.fromkeys(_sentences(path)))
        if len(found) >= _ENOUGH:
            break
    sentences = list(found)
    chance.shuffle(sentences)
    return sentences


def _sentences(path: Path) -> Iterator[str]:
    for text in _words(path):
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z])|\n\s*\n|\n\s*[-*]\s", text):
            line = " ".join(sentence.split())
            if _SHORTEST <= len(line) <= _LONGEST and line.count(" ") >= 4 and _is_prose(line):
                yield line


def _words(path: Path) -> Iterator[str]:
    """Yield a file's strings that look like documentation, and its comments, those of neighbouring lines as one."""
    try:
        source = path.read_bytes()
        tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    except (OSError, SyntaxError, tokenize.TokenError, UnicodeDecodeError, ValueError):
        return
    comment: list[str] = []
    last = -2
    for token in tokens:
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and comment:
                yield " ".join(comment)
                comment = []
            comment.append(token.string.lstrip("#").strip())
            last = token.start[0]
        elif token.type == tokenize.STRING and token.string.lstrip("rRuU").startswith(('"""', "'''")):
            yield token.string.lstrip("rRuU").strip("\"'")
    if comment:
        yield " ".join(comment)


def _is_prose(line: str) -> bool:
    return sum(character.isalpha() or character == " " for character in line) >= 0.85 * len(line)
