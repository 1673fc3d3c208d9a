"""Names of events are a promise: each one that the code logs is in the list, and the documentation has the list."""

import ast
from pathlib import Path

from cdc.telemetry.catalogue import CATALOGUE
from cdc.telemetry.events import EVENTS

ROOT = Path(__file__).parents[2]
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


def logged():
    """Yield (place, event) for each call like ``_log.info("event", …)`` in modules that use structlog."""
    for package in ("cdc", "inference"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if "structlog" not in source:
                continue
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                    owner = ast.unparse(node.func.value)
                    if owner.rpartition(".")[2].lstrip("_") in ("log", "logger") and node.args:
                        first = node.args[0]
                        yield f"{path.name}:{node.lineno}", first.value if isinstance(first, ast.Constant) else None


def test_every_logged_event_is_listed():
    found = list(logged())
    assert "server.py" in {place.partition(":")[0] for place, _ in found}, "the search finds nothing any more"
    unlisted = [(place, event) for place, event in found if event not in EVENTS]
    assert not unlisted, "add these to cdc/telemetry/events.py"


def test_names_are_snake_case_and_explained():
    for name, meaning in EVENTS.items():
        assert name.isidentifier(), name
        assert name == name.lower(), name
        assert meaning.endswith("."), name


def test_documentation_lists_every_event_and_metric():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, meaning in EVENTS.items():
        assert f"| `{name}` | {meaning} |" in text
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in text
