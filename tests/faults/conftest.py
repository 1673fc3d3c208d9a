from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cdc.app import EmbedderModel, make_model
from cdc.config import Settings
from cdc.flow.disposition import Failure
from cdc.ports import EmbedFailed, Vectors

SCHEMA = """
CREATE TABLE notes (id int PRIMARY KEY, title text, body text);
ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
INSERT INTO notes SELECT i, 'title ' || i, 'body ' || i FROM generate_series(1, 20) i;
CREATE PUBLICATION walvec FOR TABLE notes;
"""


class SwitchedModel(EmbedderModel):
    """The ``hash`` model, which can be switched off, or made to hang."""

    away = False
    hangs_s = 0.0

    @classmethod
    def of(cls, settings: Settings) -> SwitchedModel:
        return cls(make_model(settings)._embedder, settings.batch_rows, settings.batch_tokens)

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        if self.hangs_s:
            await asyncio.sleep(self.hangs_s)
        if self.away:
            raise EmbedFailed(Failure.UNAVAILABLE, "unreachable", "The model is away.")
        return await super().embed(texts, query=query, bulk=bulk)


@pytest.fixture
def notes18(database18):
    with database18.connect() as conn:
        conn.execute(SCHEMA)
        yield conn
