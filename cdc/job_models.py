"""The models of jobs: made from what rows ask for, one object for all who ask for the same, closed at the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from cdc.app import EmbedderModel
from cdc.config import Settings
from cdc.errors import ConfigError
from cdc.job_wishes import Wish, read_wish
from cdc.jobs import EmbeddingSpec, JobKind
from cdc.ports import ModelChoice
from cdc.telemetry import logs
from inference import lantern
from inference.address import Access
from inference.completion import Completer
from inference.contract import ModelOptions
from inference.egress import Allowed
from inference.embedder import Embedder
from inference.errors import ModelMisconfigured
from inference.images import ImageReader, ImageRules
from inference.registry import ApiOptions, make_embedder
from inference.visual import ImageEmbedder

log = structlog.get_logger()

MOST_COMPLETION_TOKENS = 1 << 24
"""Tokens in a batch of completions, which are sent one by one: no bound of theirs."""


class JobModels:
    """Every model that the jobs of a daemon use, whichever database they are in."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        """Take the daemon's settings; nothing is reached yet.

        Args:
            settings: hold where a job says nothing.
            environ: what ``env:NAME`` names; by default the process's environment.

        Raises:
            ConfigError: WALVEC_IMAGE_HOSTS holds what is no host.
        """
        self._settings = settings
        self._environ = os.environ if environ is None else environ
        self._embedders: dict[Wish, Embedder] = {}
        self._models: dict[tuple[Wish, int], EmbedderModel] = {}
        self._noted: set[str] = set()
        try:
            self._rules = ImageRules(
                allowed=Allowed.parse(settings.image_hosts),
                roots=tuple(Path(part.strip()) for part in settings.image_roots.split(",") if part.strip()),
            )
        except ModelMisconfigured as exc:
            raise ConfigError(f"WALVEC_IMAGE_HOSTS: {exc}") from exc

    def choose(self, spec: EmbeddingSpec, kind: JobKind) -> ModelChoice:
        """Return the model that a job asks for, not yet started; the same object where the wish is the same.

        Raises:
            ConfigError: there is no such runtime, model, parameter or secret; the sentence is the job's failure.
        """
        try:
            wish = read_wish(self._settings, self._environ, spec, kind)
            logs.hide([wish.secret])
            model = self._model(wish, self._batch_rows(spec, wish))
        except ModelMisconfigured as exc:
            raise ConfigError(str(exc)) from exc
        if wish.note and wish.note not in self._noted:
            self._noted.add(wish.note)
            log.warning("model_stand_in", asked=spec.model, model=wish.name, message=wish.note)
        return ModelChoice(wish.name, wish.recipe, model, wish.note)

    async def close(self) -> None:
        """Close every model. No engine may be running any more."""
        made, self._embedders, self._models = list(self._embedders.values()), {}, {}
        await asyncio.gather(*(embedder.close() for embedder in made))

    def _batch_rows(self, spec: EmbeddingSpec, wish: Wish) -> int:
        """Return what the job says, else what Lantern would, within the daemon's bound where one is set."""
        asked = spec.batch_rows or 0
        rows = asked if asked > 0 else lantern.batch_rows(wish.runtime, spec.model)
        bounded = self._settings.origins.get("batch_rows", "default") != "default"
        return min(rows, self._settings.batch_rows) if bounded else rows

    def _model(self, wish: Wish, rows: int) -> EmbedderModel:
        """Return the model of a wish in batches of ``rows``; whoever wishes for others shares the embedder behind."""
        model = self._models.get((wish, rows))
        if model is None:
            embedder = self._embedders.get(wish)
            if embedder is None:
                embedder = self._embedders[wish] = self._make(wish)
            words = wish.kind is JobKind.COMPLETION
            tokens = MOST_COMPLETION_TOKENS if words else self._settings.batch_tokens
            model = self._models[wish, rows] = EmbedderModel(embedder, rows, tokens)
        return model

    def _make(self, wish: Wish) -> Embedder:
        settings = self._settings
        if wish.kind is JobKind.COMPLETION:
            return Completer(
                wish.model,
                wish.url,
                wish.secret,
                system_prompt=wish.get("system_prompt", ""),
                timeout_s=settings.completion_timeout_s,
                at_once=settings.completions,
            )
        front = make_embedder(
            wish.runtime,
            wish.model,
            triton_urls=[wish.url] if wish.runtime == "triton" else [],
            request_timeout_s=settings.request_timeout_s,
            access=self._access(wish),
            options=ModelOptions(
                pooling=wish.get("pooling", "auto"),
                normalize=wish.get("normalize"),
                tokenizer=Path(wish.get("tokenizer")) if wish.get("tokenizer") else None,
                max_tokens=wish.get("max_tokens"),
                output=wish.get("output", ""),
            ),
            api=ApiOptions(
                openai_url=wish.url if wish.runtime == "openai" else "",
                openai_key=wish.secret if wish.runtime == "openai" else "",
                cohere_url=wish.url if wish.runtime == "cohere" else "",
                cohere_key=wish.secret if wish.runtime == "cohere" else "",
                dimensions=wish.get("dimensions"),
                input_type=wish.get("input_type", ""),
            ),
            query_prefix=wish.get("query_prefix", ""),
            document_prefix=wish.get("document_prefix", ""),
            models_dir=wish.folder,
        )
        if wish.runtime != "triton":
            return front
        return ImageEmbedder(front, ImageReader(self._rules), visual=wish.get("visual"))

    def _access(self, wish: Wish) -> Access:
        """Return how Triton is let in to: with all that is set for the daemon's own, with the job's token elsewhere."""
        settings = self._settings
        token = {"authorization": f"Bearer {wish.secret}"} if wish.secret else {}
        if wish.runtime != "triton" or not wish.own:
            return Access(headers=token)
        return Access(
            ca_file=settings.triton_ca_file,
            cert_file=settings.triton_cert_file,
            key_file=settings.triton_key_file,
            headers={**settings.triton_metadata, **token},
        )
