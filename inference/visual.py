"""An image model for rows that name images: texts in, files fetched, vectors out.

Files are fetched and embedded in portions, so that a batch holds only so many of them in memory, however large it is.
One bad image is one row's failure: the vectors of the others are kept until they are asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from inference.embedder import Limits, Vectors
from inference.errors import EmbedError
from inference.front import Front
from inference.images import ImageReader
from inference.kept import Kept, worst
from inference.triton import CANARY, CANARY_FILE, TritonEmbedder

PORTION = 8
"""Images that are fetched at once and embedded together."""
PORTIONS = 2
"""Portions under way at once: one is fetched while one is embedded. At most 16 images of 20 MB are held."""


class ImageEmbedder:
    """An image model that is asked by what rows say. Implements :class:`inference.embedder.Embedder`.

    Where the model turns out to take texts, it is given the texts as they are.
    """

    def __init__(self, front: Front, reader: ImageReader, *, visual: bool | None = None) -> None:
        """Put a reader of images before a model.

        Args:
            front: the model.
            reader: what fetches the images.
            visual: whether rows name images; None: if the model takes nothing else.
        """
        self.runtime = front.runtime
        self.model = front.model
        self._front = front
        self._reader = reader
        self._asked_visual = visual
        self.visual = bool(visual)
        """Whether rows name images. Known once :meth:`start` has returned."""
        self._turns = asyncio.Semaphore(PORTIONS)
        self._kept: Kept[Vectors] = Kept(lambda vector: vector.nbytes)

    @property
    def dimension(self) -> int:
        """Width of the vectors. Known once :meth:`start` has returned."""
        return self._front.dimension

    @property
    def limits(self) -> Limits:
        """Bounds for one request. An image's name is no text: only the number of rows counts."""
        given = self._front.limits
        if not self.visual:
            return given
        return Limits(given.max_rows, given.max_rows, 1, given.concurrency)

    async def start(self) -> None:
        """Reach the model.

        Raises:
            EmbedError: as the runtime has it.
        """
        await self._front.start()
        if self._asked_visual is None:
            self.visual = isinstance(self._front.inner, TritonEmbedder) and self._front.inner.takes_only_files

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return the vectors of the images that ``texts`` name, in order.

        Raises:
            TextRefused: one of them is no image that may be had.
            ModelFailed: one of them is not to be had now.
            EmbedError: as the runtime has it.
        """
        if not self.visual:
            return await self._front.embed(texts, query=query, bulk=bulk)
        missing = list(dict.fromkeys(text for text in texts if self._kept.get(text) is None))
        parts = [missing[i : i + PORTION] for i in range(0, len(missing), PORTION)]
        found: dict[str, Vectors] = {}
        failures: list[EmbedError] = []
        for outcome in await asyncio.gather(*(self._portion(part, bulk, failures) for part in parts)):
            found.update(outcome)
        if failures:
            for text, vector in found.items():
                self._kept.keep(text, vector)
            raise worst(failures)
        for text in texts:
            kept = self._kept.get(text)
            if kept is not None:
                found[text] = kept
        self._kept.drop(texts)
        return np.stack([found[text] for text in texts])

    async def probe(self) -> None:
        """Embed one black dot, or one short text where the model takes texts.

        Raises:
            EmbedError: as the runtime has it.
        """
        if self.visual:
            await self._front.embed_bytes([CANARY_FILE])
        else:
            await self._front.embed([CANARY])

    async def close(self) -> None:
        """Let go of connections."""
        await self._reader.close()
        await self._front.close()

    async def _portion(self, texts: Sequence[str], bulk: bool, failures: list[EmbedError]) -> dict[str, Vectors]:
        """Return the vectors of the images that could be had; add the failures of the others to ``failures``."""
        async with self._turns:
            outcomes = await asyncio.gather(*map(self._reader.read, texts), return_exceptions=True)
            files: dict[str, bytes] = {}
            for text, outcome in zip(texts, outcomes, strict=True):
                if isinstance(outcome, EmbedError):
                    failures.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    files[text] = outcome
            if not files:
                return {}
            try:
                vectors = await self._front.embed_bytes(list(files.values()), bulk=bulk)
            except EmbedError as error:
                failures.append(error)
                return {}
            return dict(zip(files, vectors, strict=True))
