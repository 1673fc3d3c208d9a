"""What a job asks of a model: Lantern's words and the daemon's settings made into one wish, which can be compared.

What a job leaves open, the daemon's settings say. But the daemon's keys go nowhere except to its own servers: a job
that names another address brings a key of its own, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cdc.config import Settings
from cdc.errors import ConfigError
from cdc.job_secrets import resolve
from cdc.jobs import EmbeddingSpec, JobKind
from inference import lantern, minilm, onnx_models
from inference.cohere import COHERE_URL
from inference.errors import ModelMisconfigured
from inference.openai import OPENAI_URL

SECRETS = ("api_token", "azure_entra_token", "token")
RECIPE = ("dimensions", "document_prefix", "input_type", "max_tokens", "normalize", "output", "pooling", "visual")
"""Parameters that vectors depend on."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A model as a job asks for it. Equal wishes are served by one model.

    ``model`` is its name on the runtime and ``name`` the one people read. ``own`` tells that ``url`` is the daemon's
    server, to which its certificates and headers go. ``recipe`` is all that results depend on, and no secret.
    """

    kind: JobKind
    runtime: str
    model: str
    name: str
    recipe: str
    url: str = ""
    own: bool = True
    secret: str = field(default="", repr=False)
    folder: Path | None = None
    params: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    note: str = field(default="", compare=False)

    def get(self, name: str, otherwise: Any = None) -> Any:
        """Return a parameter of the job."""
        return dict(self.params).get(name, otherwise)


def read_wish(settings: Settings, environ: Mapping[str, str], spec: EmbeddingSpec, kind: JobKind) -> Wish:
    """Return what a job asks for, checked as far as that goes without reaching anything.

    Raises:
        ConfigError: a parameter or a secret will not do.
        ModelMisconfigured: there is no such runtime, parameter or model.
    """
    runtime = spec.runtime.strip().lower()
    if kind is JobKind.COMPLETION and runtime != "openai":
        raise ConfigError(
            f"Completions run on the openai runtime alone, not on {spec.runtime[:40]!r}.",
            "Set the job's runtime to openai, and base_url in runtime_params to any server with that API.",
        )
    if runtime == "ort" and settings.ort_jobs == "triton":
        runtime = "triton"
    params = lantern.read_parameters(runtime, spec.params)
    folder = Path(settings.job_secrets) if settings.job_secrets else None
    for name in SECRETS:
        if name in params:
            params[name] = resolve(params[name], environ, folder, name)
    match runtime:
        case "ort":
            return _ort(settings, spec, params)
        case "triton":
            return _triton(settings, spec, params)
        case "openai":
            return _openai(settings, spec, kind, params)
        case "cohere":
            return _cohere(settings, spec, params)
        case _:
            return Wish(kind, runtime, spec.model, spec.model, _recipe(spec.model, params), params=_frozen(params))


def _ort(settings: Settings, spec: EmbeddingSpec, params: dict[str, Any]) -> Wish:
    if spec.model.lower() == lantern.VISUAL:
        raise ConfigError(
            f"{spec.model} embeds images, which no model in this process does.",
            "Serve it on Triton and set the job's runtime to triton.",
        )
    path = params.pop("data_path", "") or settings.models_dir
    params.pop("cache", None)  # models stay loaded as long as a job uses them
    folder = Path(path) if path else None
    model, note = spec.model, ""
    try:
        files = onnx_models.find(model, folder)
    except ModelMisconfigured as exc:
        stand_in = lantern.STAND_INS.get(lantern.short_name(model))
        if exc.reason != "unknown_model" or stand_in is None:
            raise
        if settings.model_stand_in == "off":
            raise ConfigError(
                f"The files of {model} are not in the folder of models, and WALVEC_MODEL_STAND_IN is off.",
                f"Put model.onnx and tokenizer.json into {path or 'the folder of WALVEC_MODELS_DIR'}/{model}.",
            ) from exc
        files = onnx_models.find(stand_in)
        note = (
            f"{stand_in} stands in for {model}, whose files are not in "
            f"{path or 'WALVEC_MODELS_DIR, which is not set'}: the vectors are not {model}'s, and become so once its "
            "files are there and the daemon is started again."
        )
        model = stand_in
    built_in = files is onnx_models.BUILT_IN
    name = minilm.NAME if built_in else model
    recipe = _recipe(name if built_in else f"{model.lower()}\0{files.identity}", params)
    return Wish(JobKind.EMBEDDING, "ort", model, name, recipe, folder=folder, params=_frozen(params), note=note)


def _triton(settings: Settings, spec: EmbeddingSpec, params: dict[str, Any]) -> Wish:
    url, own = _place(params.pop("url", ""), settings.triton_url)
    if not url:
        raise ConfigError(
            f"The job's model {spec.model} is to run on Triton, but no server is named.",
            "Set WALVEC_TRITON_URL, or url in the job's runtime_params.",
        )
    for name in ("data_path", "cache"):
        params.pop(name, None)
    if spec.model.lower() == lantern.VISUAL:
        params.setdefault("visual", True)
    model = spec.model.rpartition("/")[2]  # a folder of a model repository: publishers have no place in its name
    return Wish(
        JobKind.EMBEDDING,
        "triton",
        model,
        spec.model,
        _recipe(spec.model, params),
        url=url,
        own=own,
        secret=params.pop("token", ""),
        params=_frozen(params),
    )


def _openai(settings: Settings, spec: EmbeddingSpec, kind: JobKind, params: dict[str, Any]) -> Wish:
    if kind is JobKind.COMPLETION and "dimensions" in params:
        raise ConfigError("A completion has no dimensions.", "Remove dimensions from runtime_params.")
    url, own = _place(params.pop("base_url", ""), settings.openai_url or OPENAI_URL)
    entra, token = params.pop("azure_entra_token", ""), params.pop("api_token", "")
    secret = token or (f"Bearer {entra.removeprefix('Bearer ')}" if entra else "")
    prompt = params.get("system_prompt", "")
    if kind is not JobKind.COMPLETION and prompt:
        raise ConfigError("An embedding has no system_prompt.", "Remove it, or set the job's job_type to completion.")
    recipe = _recipe(spec.model, params)
    if kind is JobKind.COMPLETION:
        recipe = "\0".join(["completion", spec.model, f"system_prompt={prompt}"])
    return Wish(
        kind,
        "openai",
        spec.model,
        spec.model,
        recipe,
        url=url,
        own=own,
        secret=secret or (settings.openai_key if own else ""),
        params=_frozen(params),
    )


def _cohere(settings: Settings, spec: EmbeddingSpec, params: dict[str, Any]) -> Wish:
    url, own = _place(params.pop("base_url", ""), settings.cohere_url or COHERE_URL)
    secret = params.pop("api_token", "") or (settings.cohere_key if own else "")
    recipe = _recipe(spec.model, params)
    return Wish(
        JobKind.EMBEDDING, "cohere", spec.model, spec.model, recipe, url=url, own=own, secret=secret,
        params=_frozen(params),
    )  # fmt: skip


def _place(asked: str, usual: str) -> tuple[str, bool]:
    """Return the address to use, and whether it is the daemon's own server."""
    return (asked, _origin(asked) == _origin(usual)) if asked else (usual, True)


def _origin(url: str) -> tuple[str, str, int | None] | str:
    try:
        parts = urlsplit(url.strip())
        default = {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, parts.hostname or "", parts.port or default
    except ValueError:
        return url


def _recipe(model: str, params: Mapping[str, Any]) -> str:
    return "\0".join([model, *(f"{name}={params[name]}" for name in RECIPE if name in params)])


def _frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))
