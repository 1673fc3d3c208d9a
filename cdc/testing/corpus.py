"""The docstrings of Python's standard library: real English text that every machine has, several thousand rows of it.

Modules written in Python are parsed, never imported, so nothing of theirs runs; those written in C have no source to
parse and are imported and inspected. Order and content depend on nothing but the interpreter. What starts with an
underscore is left out, except methods such as ``__enter__`` that somebody wrote words for.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, Final

_SKIPPED: Final = frozenset({"idlelib", "test", "tests", "turtledemo", "lib2to3", "__pycache__", "site-packages"})

# Importing these has effects (on the terminal), or says that they are going away.
_LEFT_ALONE: Final = frozenset({"audioop", "crypt", "nis", "ossaudiodev", "readline", "spwd"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented module, class or function. ``module`` and ``qualname`` together are unique."""

    module: str
    qualname: str  # "" for the module itself
    signature: str  # "(a, b=1)"; "" where there is none
    doc: str


def load(limit: int | None = None) -> list[Entry]:
    """The first ``limit`` entries (all by default), in order of module and qualified name."""
    return list(islice(entries(), limit))


def entries() -> Iterator[Entry]:
    """Every documented object of the standard library, each once, module by module in alphabetical order."""
    sources = dict(_python_sources(Path(sysconfig.get_path("stdlib"))))
    compiled = {name for name in sys.stdlib_module_names if _is_public(name)} - sources.keys() - _SKIPPED - _LEFT_ALONE
    for name in sorted(sources.keys() | compiled):
        found = _parsed(name, sources[name]) if name in sources else _inspected(name)
        yield from sorted({entry.qualname: entry for entry in found}.values(), key=lambda entry: entry.qualname)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def _python_sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every public module written in Python, packages' own tests left out."""
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        standard = names and names[0] in sys.stdlib_module_names and _SKIPPED.isdisjoint(parts)
        if standard and all(name.isidentifier() and not name.startswith("_") for name in names):
            yield ".".join(names), path


# --- modules written in Python ----------------------------------------------------------------------------------


def _parsed(module: str, path: Path) -> Iterator[Entry]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a sample of bad syntax that some library keeps
        return
    if doc := ast.get_docstring(tree):
        yield Entry(module, "", "", doc)
    yield from _members(module, "", tree)


def _members(module: str, prefix: str, parent: ast.AST) -> Iterator[Entry]:
    """Public classes and functions, at whatever depth of ``if`` and ``try`` a module defines them."""
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
                yield from _members(module, prefix, node)
            continue
        if not _is_public(node.name):
            continue
        qualname = prefix + node.name
        if doc := ast.get_docstring(node):
            signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield Entry(module, qualname, signature, doc)
        if isinstance(node, ast.ClassDef):
            yield from _members(module, f"{qualname}.", node)


# --- modules written in C ---------------------------------------------------------------------------------------


def _inspected(module: str) -> Iterator[Entry]:
    if importlib.util.find_spec(module) is None:  # not built on this system
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        subject = importlib.import_module(module)
    if doc := inspect.getdoc(subject):
        yield Entry(module, "", "", doc)
    for name, member in list(vars(subject).items()):  # inspecting may add to it
        if not name.startswith("_") and isinstance(member, type | BuiltinFunctionType):
            yield from _documented(module, name, member)
            for inner, method in vars(member).items() if isinstance(member, type) else ():
                # Inherited boilerplate ("Initialize self.") is no text of its own.
                if not inner.startswith("_") and callable(method) and not isinstance(method, type):
                    yield from _documented(module, f"{name}.{inner}", method)


def _documented(module: str, qualname: str, member: Any) -> Iterator[Entry]:
    doc = member.__doc__
    if isinstance(doc, str) and doc.strip():
        yield Entry(module, qualname, _signature(member), inspect.cleandoc(doc))


def _signature(member: Any) -> str:
    try:
        return str(inspect.signature(member))
    except (ValueError, TypeError):  # many built-ins do not tell
        return ""
