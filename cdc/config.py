"""Environment and flags to frozen settings.

The fields of :class:`Settings` are the one table of settings: flags, environment variables, ``walvec config show`` and
``docs/configuration.md`` are all made from it. A value comes from a flag, else from the environment or from the file
that ``WALVEC_<NAME>_FILE`` names, else from the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cdc import config_values as values
from cdc.config_values import Parse
from cdc.errors import ConfigError

PREFIX: Final = "WALVEC_"
RUNTIMES: Final = ("triton", "ort", "openai", "cohere", "hash")
MOST_INFLIGHT: Final = 16
RECIPE: Final = ("document_prefix", "input_type", "max_tokens", "model_output", "normalize", "pooling")
VECTOR_TYPES: Final = ("vector", "halfvec", "real[]")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people see it.

    ``default`` is what one would type for it; ``shown`` is what the documentation says instead, where that differs.
    """

    field: str
    default: str
    help: str
    parse: Parse
    group: str
    secret: bool
    shown: str

    @property
    def env(self) -> str:
        """The environment variable."""
        return PREFIX + self.field.upper()

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.field.replace("_", "-")


def _setting(
    default: str, parse: Parse, help: str, *, group: str = "Settings", secret: bool = False, shown: str = ""
) -> Any:
    metadata = {"default": default, "parse": parse, "help": help, "group": group, "secret": secret, "shown": shown}
    return dataclasses.field(default=parse(default) if default else "", metadata=metadata)


_PG, _MODEL, _FLOW, _HTTP, _INDEX = "PostgreSQL", "Model", "Batches and memory", "Serving and logs", "External indexes"
_JOBS = "Jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. ``origins`` tells where each value came from, by field."""

    database_url: str = _setting(
        "", values.dsn, "The watched database: a libpq URL or key=value pairs. Unset: libpq's PG* variables.",
        group=_PG, secret=True, shown="`PG*` variables",
    )  # fmt: skip
    publication: str = _setting("walvec", values.identifier, "The publication that says what is watched.", group=_PG)
    slot: str = _setting("walvec", values.slot, "The replication slot, one per consumer.", group=_PG)
    schema: str = _setting("walvec", values.schema, "The schema of walvec's own tables.", group=_PG)
    on_slot_lost: str = _setting(
        "reconcile", values.choice("reconcile", "stop"),
        "What to do when the slot is lost: make a new one and compare everything, or stop for a person.", group=_PG,
    )  # fmt: skip
    vector_type: str = _setting(
        "vector",
        values.choice(*VECTOR_TYPES),
        "The type of new embedding columns; real[] needs no pgvector.",
        group=_PG,
    )
    index: str = _setting(
        "hnsw", values.choice("hnsw", "off"), "The pgvector index, built after the first backfill.", group=_PG
    )
    runtime: str = _setting(
        "", values.choice(*RUNTIMES),
        "Where the model runs: triton, ort (in this process), openai (any server with that API: TEI, vLLM, Ollama, "
        "Azure …), cohere, or hash (no model, for tests).",
        group=_MODEL, shown="`triton` if a Triton URL is set, else `ort`",
    )  # fmt: skip
    triton_url: str = _setting(
        "", values.triton_urls, "Triton: grpc://host:port, grpcs://, http:// or https://. Several are used in turn.",
        group=_MODEL, shown="–",
    )  # fmt: skip
    triton_ca_file: str = _setting(
        "", values.file, "PEM file of the authority that Triton's certificate must be of.",
        group=_MODEL, shown="the system's, for gRPC gRPC's own",
    )  # fmt: skip
    triton_cert_file: str = _setting(
        "", values.file, "PEM file of the certificate to show to Triton.", group=_MODEL, shown="–"
    )
    triton_key_file: str = _setting(
        "", values.file, "PEM file of that certificate's key, without a passphrase.", group=_MODEL, shown="–"
    )
    triton_token: str = _setting(
        "", values.token, "Bearer token to send to Triton.", group=_MODEL, secret=True, shown="–"
    )
    triton_headers: str = _setting(
        "", values.headers, "Headers to send to Triton: name=value, one a line or with commas between.",
        group=_MODEL, secret=True, shown="–",
    )  # fmt: skip
    model: str = _setting("all-minilm-l6-v2", values.text, "The model's name on the runtime.", group=_MODEL)
    models_dir: str = _setting(
        "", values.file, "Folder of further ort models: `<name>/model.onnx` and `<name>/tokenizer.json`.",
        group=_MODEL, shown="–",
    )  # fmt: skip
    model_output: str = _setting(
        "", values.text, "The output to take, where a model on Triton has several.", group=_MODEL,
        shown="the only one, or the usual one",
    )  # fmt: skip
    tokenizer: str = _setting(
        "", values.file, "The model's tokenizer.json, for models on Triton that want token ids.",
        group=_MODEL, shown="–",
    )  # fmt: skip
    pooling: str = _setting(
        "auto", values.choice("auto", "none", "mean", "cls", "last"),
        "How a model's token states on Triton become a vector: mean of all, the first, the last; none: it gives a "
        "vector itself; auto: none where it does, else mean.", group=_MODEL,
    )  # fmt: skip
    normalize: str = _setting(
        "auto", values.choice("auto", "on", "off"),
        "Whether vectors from Triton are scaled to length 1; auto: where they are pooled here.", group=_MODEL,
    )  # fmt: skip
    max_tokens: int = _setting(
        "0", values.integer(0, 1 << 20), "Tokens of a text that a model on Triton or of ort reads; 0: what its "
        "tokenizer says, else 512.", group=_MODEL,
    )  # fmt: skip
    query_prefix: str = _setting(
        "", values.text, "Put before questions; none: nothing.", group=_MODEL, shown="what the model is known to want"
    )
    document_prefix: str = _setting(
        "", values.text, "Put before documents; none: nothing.", group=_MODEL, shown="what the model is known to want"
    )
    openai_url: str = _setting(
        "", values.http_url, "Base URL of the openai runtime; on Azure the resource's, or a deployment's.",
        group=_MODEL, shown="`https://api.openai.com/v1`",
    )  # fmt: skip
    openai_key: str = _setting(
        "", values.text, "Key of the openai runtime, or `Bearer` and a token.", group=_MODEL, secret=True, shown="–"
    )
    cohere_url: str = _setting(
        "", values.http_url, "Base URL of the cohere runtime, for private deployments.",
        group=_MODEL, shown="`https://api.cohere.com`",
    )  # fmt: skip
    cohere_key: str = _setting("", values.text, "Key of the cohere runtime.", group=_MODEL, secret=True, shown="–")
    dimensions: int = _setting(
        "0", values.integer(0, 16_000), "Width to ask of an openai or cohere model that can be shortened; 0: its own.",
        group=_MODEL,
    )  # fmt: skip
    input_type: str = _setting(
        "", values.choice("search_document", "search_query", "classification", "clustering"),
        "What the cohere runtime is told of every text.", group=_MODEL, shown="document or question, by use",
    )  # fmt: skip
    inflight: int = _setting("4", values.integer(1, 1024), "Embedding requests in flight, to begin with.", group=_MODEL)
    inflight_max: int = _setting(
        "0", values.integer(0, 1024), "Most embedding requests in flight: they grow in number while the model answers "
        "as fast, and halve when its queue is full.",
        group=_MODEL, shown="`WALVEC_INFLIGHT` where that is set, else 16",
    )  # fmt: skip
    request_timeout_s: float = _setting(
        "30", values.number(0.1, 3600), "Seconds for one embedding request.", group=_MODEL
    )
    max_attempts: int = _setting(
        "8", values.integer(1, 1000), "Attempts before a row is isolated and dead-lettered.", group=_MODEL
    )
    batch_rows: int = _setting("256", values.integer(1, 65536), "Most rows in one embedding request.", group=_FLOW)
    batch_tokens: int = _setting(
        "16384", values.integer(1, 1 << 24), "Most tokens in one embedding request, padding included.", group=_FLOW
    )
    batch_delay_ms: float = _setting(
        "0",
        values.number(0, 60_000),
        "Milliseconds to wait for a fuller batch when a request slot is free.",
        group=_FLOW,
    )
    queue_bytes: int = _setting(
        "64MiB", values.size, "Memory for pending text; past it only keys are held.", group=_FLOW
    )
    queue_rows: int = _setting(
        "1000000",
        values.integer(1, 1 << 31),
        "Keys held in memory; past it they go to the durable queue table.",
        group=_FLOW,
    )
    index_dir: str = _setting(
        "walvec-index", values.text, "Folder of the indexes that external index jobs keep; made, for its user alone.",
        group=_INDEX,
    )  # fmt: skip
    index_threads: int = _setting(
        "0", values.integer(0, 1024), "Threads that build an external index; 0: one a core. Two can be slower than one "
        "on a shared host.", group=_INDEX,
    )  # fmt: skip
    index_memory: int = _setting(
        "0", values.size_or_zero, "Most memory for one external index.", group=_INDEX,
        shown="80 % of what is available when it is built",
    )  # fmt: skip
    index_rebuild_percent: int = _setting(
        "25", values.integer(1, 100), "Share of replaced and deleted elements at which an external index is built "
        "afresh; 100: never.", group=_INDEX,
    )  # fmt: skip
    http: str = _setting(
        "127.0.0.1:9464", values.http, "Address of metrics, health, status page and search, or off.", group=_HTTP
    )
    http_token: str = _setting(
        "", values.text, "Bearer token asked on every path but /livez and /readyz.", group=_HTTP, secret=True, shown="–"
    )
    log_level: str = _setting(
        "info", values.choice("debug", "info", "warning", "error"), "Least level that is logged.", group=_HTTP
    )
    log_format: str = _setting(
        "auto", values.choice("auto", "json", "console"), "auto: JSON unless on a terminal.", group=_HTTP
    )
    model_stand_in: str = _setting(
        "on", values.choice("on", "off"),
        "Whether all-minilm-l6-v2 stands in where a job asks for all-MiniLM-L12-v2 and the folder of models lacks it.",
        group=_JOBS,
    )  # fmt: skip
    ort_jobs: str = _setting(
        "ort", values.choice("ort", "triton"),
        "Where jobs of the ort runtime compute: in this process, or on the Triton of WALVEC_TRITON_URL.", group=_JOBS,
    )  # fmt: skip
    job_secrets: str = _setting(
        "", values.file, "Folder whose files the secrets of jobs may name, as `file:NAME`.", group=_JOBS, shown="–"
    )
    completions: int = _setting(
        "8", values.integer(1, 1024), "Completions asked for at once, for each model.", group=_JOBS
    )
    job_hosts: str = _setting(
        "", values.text, "Hosts whose databases jobs may name, commas between.", group=_JOBS, shown="any",
    )  # fmt: skip
    completion_timeout_s: float = _setting("120", values.number(0.1, 3600), "Seconds for one completion.", group=_JOBS)
    image_hosts: str = _setting(
        "", values.text,
        "Hosts, addresses and networks that the URLs of images may lead to though they are not public; commas between.",
        group=_JOBS, shown="–",
    )  # fmt: skip
    image_roots: str = _setting(
        "", values.folders, "Folders whose files rows may name as images; commas between.", group=_JOBS, shown="–"
    )
    origins: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}), compare=False)

    def __repr__(self) -> str:
        """Name no value, so that no traceback or log line can hold a secret."""
        return f"<Settings publication={self.publication!r} slot={self.slot!r} schema={self.schema!r}>"

    @property
    def most_inflight(self) -> int:
        """How far the requests in flight may grow."""
        adaptive = self.origins.get("inflight", "default") == "default"
        return self.inflight_max or (max(self.inflight, MOST_INFLIGHT) if adaptive else self.inflight)

    @property
    def triton_metadata(self) -> dict[str, str]:
        """The headers for Triton, the bearer token among them."""
        token = {"authorization": f"Bearer {self.triton_token}"} if self.triton_token else {}
        return {**token, **dict(values.header_pairs(self.triton_headers))}

    @property
    def recipe(self) -> str:
        """The model, and all else that its vectors depend on, where it is set. Part of every source hash."""
        set_here = [(name, getattr(self, name)) for name in RECIPE]
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return "\0".join([self.model, *(f"{name}={value}" for name, value in set_here if value != usual[name])])

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None when HTTP is off."""
        if self.http == "off":
            return None
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port)


def table() -> Iterator[Setting]:
    """Yield every setting, in the order of the documentation."""
    for field in dataclasses.fields(Settings):
        if field.metadata:
            yield Setting(field=field.name, **field.metadata)


def load(environ: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """Return the settings of an environment and of flags (by field, ``<secret>_file`` included), which win.

    An empty variable counts as unset.

    Raises:
        ConfigError: A name is unknown, a value is not allowed, or a secret's file cannot be read.
    """
    flags = flags or {}
    _refuse_unknown(environ)
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in table():
        text, origin, name = _typed(setting, environ, flags)
        origins[setting.field] = origin
        if origin != "default":
            found[setting.field] = _parsed(setting, text, name)
    if not found.get("runtime"):
        found["runtime"] = "triton" if found.get("triton_url") else "ort"
    if found["runtime"] == "triton" and not found.get("triton_url"):
        raise ConfigError(
            "WALVEC_RUNTIME is triton, but no server is named.", "Set WALVEC_TRITON_URL=grpc://host:8001."
        )
    return Settings(**found, origins=MappingProxyType(origins))


def shown(settings: Settings, *, redact: bool = False) -> Iterator[tuple[Setting, str, str]]:
    """Yield each setting with its value for display and its origin. Secrets never show.

    Args:
        settings: The settings.
        redact: Leave out addresses too, for a text that is posted in public.
    """
    from cdc.postgres.connect import redact_dsn

    for setting in table():
        value = str(getattr(settings, setting.field))
        if value and setting.field == "database_url":
            value = "***" if redact else redact_dsn(value)
        elif value and (setting.secret or (redact and setting.field.endswith("_url"))):
            value = "***"
        yield setting, value, settings.origins.get(setting.field, "default")


def _typed(setting: Setting, environ: Mapping[str, str], flags: Mapping[str, str | None]) -> tuple[str, str, str]:
    """Return what was typed for a setting, where it came from, and the name it goes by there."""
    file_flag, file_env = flags.get(f"{setting.field}_file"), environ.get(f"{setting.env}_FILE")
    flag, env = flags.get(setting.field), environ.get(setting.env)
    if flag and file_flag:
        raise ConfigError(f"{setting.flag} and {setting.flag}-file are both given.", "Keep one of them.")
    if flag:
        return flag, "flag", setting.flag
    if setting.secret and file_flag:
        return _read(file_flag, f"{setting.flag}-file"), "file", f"{setting.flag}-file"
    if setting.secret and env and file_env:
        raise ConfigError(f"{setting.env} and {setting.env}_FILE are both set.", "Keep one of them.")
    if setting.secret and file_env:
        return _read(file_env, f"{setting.env}_FILE"), "file", f"{setting.env}_FILE"
    return (env, "environment", setting.env) if env else (setting.default, "default", setting.env)


def _parsed(setting: Setting, text: str, name: str) -> Any:
    try:
        return setting.parse(text)
    except ValueError as exc:
        value = "its value" if setting.secret else repr(text)
        raise ConfigError(f"{name}: {value} is not allowed.", f"It takes {exc}.") from None


def _read(path: str, name: str) -> str:
    try:
        text = Path(path).read_text("utf-8").strip("\r\n")
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{name} names {path}, which cannot be read: {reason}.") from None
    if not text:
        raise ConfigError(f"{name} names {path}, which is empty.")
    return text


_KUBERNETES: Final = re.compile(r"WALVEC_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes puts into every pod beside a Service whose name begins with ``walvec``: not meant as settings."""


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = {s.env for s in table()} | {f"{s.env}_FILE" for s in table() if s.secret}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or _KUBERNETES.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        remedy = f"Did you mean {near[0]}?" if near else "`walvec config show` lists every setting."
        raise ConfigError(f"{name} is not a setting of walvec.", remedy)


def markdown() -> str:
    """Return ``docs/configuration.md``."""
    lines = [
        "# Configuration",
        "",
        "<!-- Made by `python -m cdc.config > docs/configuration.md`; do not edit by hand. -->",
        "",
        "Every setting is an environment variable and a flag of the commands that use it; the flag wins.",
        "`walvec config show` prints each value and where it came from. An empty variable counts as unset;",
        "an unknown `WALVEC_*` name is an error. Secrets can be kept in a file: `WALVEC_DATABASE_URL_FILE` or",
        "`--database-url-file` names one, and it holds the value alone.",
        "",
        "Where the database URL leaves something open, libpq's own variables count: `PGHOST`, `PGPASSFILE`,",
        "`PGSERVICE`, `PGSSLMODE`, `PGOPTIONS` and the rest.",
    ]
    group = ""
    for setting in table():
        if setting.group != group:
            group = setting.group
            lines += ["", f"## {group}", "", "| variable | flag | default | meaning |", "|---|---|---|---|"]
        default = setting.shown or f"`{setting.default}`"
        secret = f" Secret: `{setting.env}_FILE` too." if setting.secret else ""
        lines.append(f"| `{setting.env}` | `{setting.flag}` | {default} | {setting.help}{secret} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
