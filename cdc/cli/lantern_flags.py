"""What Lantern's commands share: the database, the folder of models, and the runtime's parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cdc.cli.output import note
from cdc.config import Settings
from cdc.errors import ConfigError

COMPLETION: Final = "completion"
JOB_TYPES: Final = ("embedding-generation", COMPLETION)


def check_job_type(given: str) -> None:
    """Refuse what ``--job-type`` does not know.

    Raises:
        ConfigError: it does not know it.
    """
    if given not in JOB_TYPES:
        raise ConfigError(f"--job-type is {given!r}.", f"Use {' or '.join(JOB_TYPES)}.")


def with_database(settings: Settings, uri: str | None, data_path: str | None = None) -> Settings:
    """Return the settings with what Lantern's flags say: the database, and the folder of models."""
    settings = replace(settings, database_url=uri) if uri else settings
    if data_path and not Path(data_path).is_dir():
        note(f"--data-path names {data_path}, which is no folder: the models that come with walvec are used.")
    elif data_path:
        settings = replace(settings, models_dir=data_path)
    return settings


def params_of(text: str) -> dict[str, Any]:
    """Return the object that ``--runtime-params`` holds.

    Raises:
        ConfigError: it is no JSON object. The text is not repeated: it may hold a key.
    """
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError("--runtime-params is no JSON object.", """Write '{"base_url": "http://host:8080"}'.""")
    return found
