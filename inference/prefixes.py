"""What models want to read before a question and before a document, by their names.

Retrieval models of these families were trained with an instruction in front of each text, and are clearly worse without
it; nothing at run time would say so. The words are those of the models' own cards, blanks included. Where a server adds
them by itself, both are set to ``none``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NONE = "none"
"""What one sets for no prefix, where the table has one."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Text put before every question and before every document."""

    query: str = ""
    document: str = ""

    def of(self, query: bool) -> str:
        """Return the one for a question or a document."""
        return self.query if query else self.document


_BGE = "Represent this sentence for searching relevant passages: "
_INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

FAMILIES: tuple[tuple[str, str, Prefixes], ...] = (
    ("e5-…-instruct, e5-mistral", r"e5-.*instruct|e5-mistral", Prefixes(_INSTRUCT)),
    ("e5, multilingual-e5", r"(multilingual-)?e5-(small|base|large)(-v\d+)?", Prefixes("query: ", "passage: ")),
    ("bge-{small,base,large}-en", r"bge-(small|base|large)-en(-v1\.5)?", Prefixes(_BGE)),
    (
        "bge-{small,base,large}-zh",
        r"bge-(small|base|large)-zh(-v1\.5)?",
        Prefixes("为这个句子生成表示以用于检索相关文章："),
    ),
    ("nomic-embed-text", r"nomic-embed-text(-v[\d.]+)?(-moe)?", Prefixes("search_query: ", "search_document: ")),
    ("snowflake-arctic-embed 1", r"snowflake-arctic-embed(-(xs|s|m|l|m-long|m-v1\.5))?", Prefixes(_BGE)),
    (
        "snowflake-arctic-embed 2",
        r"snowflake-arctic-embed2?(-[ml])?-v2\.0|snowflake-arctic-embed2",
        Prefixes("query: "),
    ),
    ("mxbai-embed-large", r"mxbai-embed-(large|xsmall)(-v1)?", Prefixes(_BGE)),
    ("qwen3-embedding", r"qwen3-embedding(-[\d.]+b)?", Prefixes(_INSTRUCT)),
    (
        "embeddinggemma",
        r"embeddinggemma(-300m)?",
        Prefixes("task: search result | query: ", "title: none | text: "),
    ),
)
"""A family as people call it, the names of its models, and what they want. The first that matches counts."""


def known(model: str) -> Prefixes:
    """Return what a model wants, by its name; nothing where the name is not known.

    Publishers' prefixes (``intfloat/``), versions after a colon (``:latest``), case, and underscores for dashes make
    no difference.
    """
    name = model.rpartition("/")[2].partition(":")[0].lower().replace("_", "-")
    for _, pattern, prefixes in FAMILIES:
        if re.fullmatch(pattern, name):
            return prefixes
    return Prefixes()


def choose(model: str, query: str = "", document: str = "") -> Prefixes:
    """Return what to put before texts: what was set, else what the model is known to want.

    Args:
        model: its name.
        query: the setting; empty: not set, ``none``: no prefix.
        document: likewise.
    """
    table = known(model)
    return Prefixes(_set(query, table.query), _set(document, table.document))


def _set(value: str, otherwise: str) -> str:
    return otherwise if not value else "" if value == NONE else value
