"""Checks of where embeddings go: destinations, pgvector, and the pipelines that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from psycopg import sql

from cdc.postgres.doctor_facts import Check, Checks, Facts, Problem, fail, warn

_checks = Checks()
CHECKS: Final[list[Check]] = _checks.all

INDEX_LIMITS: Final = {"vector": 2000, "halfvec": 4000}
"""Most dimensions that pgvector can index, by type."""
SAFE_PGVECTOR: Final = (0, 8, 4)


@_checks.add(
    "WV034",
    "Embeddings can be written.",
    why="Each pipeline has a table of embeddings beside its source, which walvec makes and writes.",
    fix="GRANT CREATE ON SCHEMA … TO …; or GRANT SELECT, INSERT, UPDATE, DELETE ON … TO …;",
    needs="tables",
)
def _writable(facts: Facts) -> Iterator[Problem]:
    role = sql.Identifier(facts.role["name"]).as_string()
    existing = {(row["schema"], row["table"]): row for row in facts.destinations}
    for row in facts.destinations:
        if not row["writable"]:
            name = sql.Identifier(row["schema"], row["table"]).as_string()
            fix = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {role};"
            yield fail(f"The role may not write to {row['schema']}.{row['table']}.", fix)
    for table in facts.tables:
        schema = table.table.schema
        if (schema, f"{table.table.name}_embeddings") not in existing and not facts.access[table.oid]["create"]:
            fix = f"GRANT CREATE ON SCHEMA {sql.Identifier(schema).as_string()} TO {role};"
            yield fail(f"The role may not make a table of embeddings in schema {schema}.", fix)


@_checks.add(
    "WV040",
    "pgvector is installed, or not asked for.",
    why="Without it embeddings are plain real[] arrays with no index: searching reads them all.",
    fix="Install the pgvector package on the server, then CREATE EXTENSION vector;",
)
def _pgvector(facts: Facts) -> Iterator[Problem]:
    vector = facts.rows("vector")[0]
    if facts.settings.vector_type == "real[]" or vector["installed"]:
        return
    if not vector["available"]:
        yield warn("This server has no pgvector.")
    elif vector["needs_superuser"] and not facts.role["superuser"]:
        fix = "Let a DBA run CREATE EXTENSION vector;"
        yield warn("pgvector is on this server, but the role may not create it.", fix)


@_checks.add(
    "WV041",
    "pgvector's version has the fixes that matter.",
    why="Before 0.8.2 a parallel index build could overflow a buffer; before 0.8.4 VACUUM could break an HNSW index.",
    fix="Upgrade the pgvector package, then ALTER EXTENSION vector UPDATE;",
)
def _pgvector_version(facts: Facts) -> Iterator[Problem]:
    installed = facts.rows("vector")[0]["installed"]
    if installed and tuple(int(part) for part in re.findall(r"\d+", installed)[:3]) < SAFE_PGVECTOR:
        yield warn(f"pgvector {installed} is older than 0.8.4.")


@_checks.add(
    "WV042",
    "Existing destinations hold vectors of the right size and type, small enough for an index.",
    why="A vector of another dimension cannot be stored; past 2,000 dimensions (halfvec: 4,000) pgvector cannot index.",
    fix="Rename or drop the old destination, or set WALVEC_MODEL or WALVEC_VECTOR_TYPE to what it holds.",
    needs="tables",
)
def _dimension(facts: Facts) -> Iterator[Problem]:
    wanted = {(row["schema"], row["table"]): row["dimension"] for row in facts.pipelines}
    for row in facts.destinations:
        name = f"{row['schema']}.{row['table']}"
        expected, limit = wanted.get((row["schema"], row["table"])), INDEX_LIMITS.get(row["type"] or "")
        if limit is None:
            continue
        if row["dimension"] > limit:
            yield warn(f"{name} has {row['dimension']} dimensions; {row['type']} can be indexed up to {limit}.")
        if expected is not None and row["dimension"] not in (-1, expected):
            yield fail(f"{name} holds vectors of {row['dimension']} dimensions; the pipeline's model has {expected}.")


@_checks.add(
    "WV043",
    "Pipelines are well.",
    why="A pipeline in error stands still until it is mended; dead-lettered rows have no embedding.",
    fix="`walvec errors list`, then `walvec errors retry`.",
    needs="pipelines",
)
def _pipelines(facts: Facts) -> Iterator[Problem]:
    for row in facts.pipelines:
        if row["state"] == "error":
            fix = "Mend what it names; the pipeline goes on by itself."
            yield warn(f"{row['name']} is in error: {row['reason']}", fix)
        if row["dead"]:
            yield warn(f"{row['name']} has {row['dead']} dead-lettered rows.")


@_checks.add(
    "WV044",
    "Backfilled destinations have a vector index.",
    why="Without one every search reads the whole table.",
    fix="Wait for `walvec run` to build it after the first backfill, or set WALVEC_INDEX=off to do without.",
    needs="pipelines",
)
def _indexed(facts: Facts) -> Iterator[Problem]:
    ready = {(row["schema"], row["table"]): row["name"] for row in facts.pipelines if row["backfilled"]}
    for row in facts.destinations:
        name = ready.get((row["schema"], row["table"]))
        indexable = row["dimension"] is not None and 0 < row["dimension"] <= INDEX_LIMITS.get(row["type"] or "", 0)
        if facts.settings.index == "hnsw" and name and indexable and not row["indexed"]:
            yield warn(f"{name} is backfilled, and {row['schema']}.{row['table']} has no HNSW index.")
