"""Runtime ``triton``: a model on one or more Triton servers, or on any server of the KServe v2 protocol.

What to send is read from the model's metadata, and one short text is embedded before any row is, which proves the
whole way and shows the dimension. Requests take the servers in turn; an outage of one is another one's work. Every
call has a deadline. A failure is blamed on a text only after that short text has passed again: a model replaced by one
that refuses everything, or one that is broken, must not cost the rows.

Models that want token ids are given them: the texts are tokenised here, in a thread, with the model's own tokenizer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from inference import kserve
from inference.address import Access, Address, parse_urls
from inference.contract import ModelContract, ModelOptions, read_contract
from inference.embedder import Limits, Vectors
from inference.errors import (
    EmbedError,
    ModelFailed,
    ModelMisconfigured,
    ModelUnavailable,
    RequestTooLarge,
    TextRefused,
)
from inference.kserve_grpc import GrpcTransport
from inference.kserve_http import HttpTransport
from inference.members import CallFailed, Member, Members, Transport
from inference.pooling import pad
from inference.tokenizer import MAX_TOKENS, ModelTokenizer
from inference.tokens import count
from inference.triton_errors import translate

log = logging.getLogger(__name__)

CANARY = "walvec"
"""The text that shows whether the model works at all."""
CANARY_FILE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)
"""The same for a model of images: one black dot, as PNG."""

MOST_PADDED_TOKENS = 1 << 20
"""Triton sets no bound of its own; whoever cuts batches does."""
CONCURRENCY = 4
ALIKE = 0.9
"""Padding stays under a tenth of the tokens with mixed lengths (at 0: two fifths), for three times the requests."""
MOST_BYTES = 64 << 20
"""Texts of one message. Protocol buffers end at 2 GiB, and a server holds a message several times."""


class TritonEmbedder:
    """A model on Triton. Implements :class:`inference.embedder.ByteEmbedder`."""

    runtime = "triton"

    def __init__(
        self,
        model: str,
        urls: Sequence[str],
        *,
        request_timeout_s: float = 30.0,
        access: Access | None = None,
        options: ModelOptions | None = None,
    ) -> None:
        """Name model and servers; nothing is reached yet.

        Args:
            model: its name on the server.
            urls: ``grpc(s)://host:port`` or ``http(s)://host:port``; a string may be a comma-separated list.
            request_timeout_s: deadline of one request, in seconds, connecting included.
            access: certificates and headers.
            options: what the model does not say of itself.

        Raises:
            ModelMisconfigured: a URL is not one of these, a file is not there, or the timeout is not positive.
        """
        if not request_timeout_s > 0:
            raise ModelMisconfigured("WALVEC_REQUEST_TIMEOUT_S must be more than 0.", reason="bad_timeout")
        self.model = model
        self._addresses = parse_urls(urls)
        self._access = access or Access()
        self._access.check(self._addresses)
        self._options = options or ModelOptions()
        self._timeout_s = request_timeout_s
        self._members: Members | None = None
        self._contract: ModelContract | None = None
        self._dimension: int | None = None
        self._tokenizer: ModelTokenizer | None = None
        self._files_only = False
        run = os.urandom(3).hex()
        self._ids = (f"walvec-{run}-{n:x}" for n in itertools.count(1))
        """Ids of requests, as they stand in the logs of both sides: one token of the run, and a number."""

    @property
    def dimension(self) -> int:
        """Width of the vectors.

        Raises:
            ModelUnavailable: :meth:`start` has not succeeded yet.
        """
        if self._dimension is None:
            raise self._not_started()
        return self._dimension

    @property
    def limits(self) -> Limits:
        """Bounds for one request; the rows are the model's own ``max_batch_size``, where it has one.

        Raises:
            ModelUnavailable: :meth:`start` has not succeeded yet.
        """
        if self._contract is None:
            raise self._not_started()
        tokens = self._tokenizer.max_tokens if self._tokenizer else self._options.max_tokens or MAX_TOKENS
        return Limits(self._contract.max_rows, MOST_PADDED_TOKENS, tokens, CONCURRENCY, ALIKE)

    @property
    def takes_only_files(self) -> bool:
        """Whether the model has no use for texts: an image encoder. Known once :meth:`start` has returned."""
        contract = self._contract
        return contract is not None and (self._files_only or contract.inputs[0].role == "content")

    async def start(self) -> None:
        """Reach a server, read what the model wants and gives, and embed one short text (or one small image).

        May be called again after it failed, and again later: it then looks anew.

        Raises:
            ModelUnavailable: no server, or none that has the model now.
            ModelMisconfigured: wrong port or credentials, or a model that does not embed.
            EmbedError: the model failed on the short text.
        """
        if self._members is None:
            self._members = Members(self._addresses, self._connect)
        contract = await self._read_contract()
        tokenizer = await self._load_tokenizer(contract)
        self._tokenizer = tokenizer
        vectors = await self._canary(contract)
        self._contract, self._dimension = contract, vectors.shape[1]

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, shape ``(texts, dimension)``, as the model gives them.

        The model is not told whether a text is a ``query``; where the server has priorities, ``bulk`` has the lowest
        and all else the highest.

        Raises:
            RequestTooLarge: more rows than :attr:`limits` has, or than the server takes.
            TextRefused: the model takes a short text but not one of these.
            ModelFailed: the model broke on these texts, not on a short one.
            EmbedError: another of its kinds.
        """
        return await self._embed(len(texts), lambda contract: self._texts(contract, texts, bulk))

    async def embed_bytes(self, contents: Sequence[bytes], *, bulk: bool = False) -> Vectors:
        """Return one vector per file, shape ``(files, dimension)``, from a model with a BYTES input for files.

        Raises:
            EmbedError: as :meth:`embed`.
        """
        return await self._embed(len(contents), lambda contract: self._files(contract, contents, bulk))

    def bare(self, texts: Sequence[str]) -> Callable[[], Awaitable[object]]:
        """Return the bare loop's body: one ready-made request to the next server, the reply not looked at.

        Raises:
            ModelUnavailable: :meth:`start` has not succeeded yet.
            ModelMisconfigured: the model takes files.
        """
        contract, tokenizer = self._contract, self._tokenizer
        if contract is None:
            raise self._not_started()
        tensor = contract.input("text")
        if tokenizer is not None:
            ids, mask = pad(tokenizer.encode(texts), tokenizer.padding, contract.tokens)
            request = kserve.tokens_request(self.model, contract, ids, mask)
        elif tensor is not None and not self._files_only:
            request = kserve.bytes_request(self.model, contract, tensor, kserve.encode_texts(texts))
        else:
            raise ModelMisconfigured(f"Model {self.model} takes files, not texts.", reason="bad_contract")
        return lambda: self._call("ModelInfer", request)

    async def close(self) -> None:
        """Close the connections; requests in flight fail as unavailable."""
        members, self._members = self._members, None
        if members is not None:
            await members.close()

    # -- one request ------------------------------------------------------------------------------------------------

    async def _embed(self, rows: int, ask: Callable[[ModelContract], Awaitable[Vectors]]) -> Vectors:
        contract = self._contract
        if contract is None or self._dimension is None:
            raise self._not_started()
        if not rows:
            return np.empty((0, self._dimension), np.float32)
        if rows > contract.max_rows:
            raise RequestTooLarge(
                f"Model {self.model} takes {contract.max_rows} rows at once, not {rows}.", reason="too_many_rows"
            )
        try:
            return await ask(contract)
        except (TextRefused, RequestTooLarge, ModelFailed) as error:
            await self._look_again(contract, error)
            raise

    async def _texts(self, contract: ModelContract, texts: Sequence[str], bulk: bool) -> Vectors:
        if contract.inputs[0].role == "ids":
            return await self._tokens(contract, texts, bulk)
        tensor = contract.input("text")
        if tensor is None or self._files_only:
            raise ModelMisconfigured(f"Model {self.model} takes files, not texts.", reason="bad_contract")
        parts = []
        for portion in kserve.portions(kserve.encode_texts(texts), MOST_BYTES):
            request = kserve.bytes_request(self.model, contract, tensor, portion)
            parts.append(await self._infer(contract, request, len(portion), bulk, texts))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def _files(self, contract: ModelContract, contents: Sequence[bytes], bulk: bool) -> Vectors:
        # A model with one BYTES input under a name that says nothing may as well take files.
        tensor = contract.input("content") or contract.input("text")
        if tensor is None:
            raise ModelMisconfigured(f"Model {self.model} takes token ids, not files.", reason="bad_contract")
        parts = []
        for portion in kserve.portions(contents, MOST_BYTES):
            request = kserve.bytes_request(self.model, contract, tensor, portion)
            parts.append(await self._infer(contract, request, len(portion), bulk, ()))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def _tokens(self, contract: ModelContract, texts: Sequence[str], bulk: bool) -> Vectors:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise self._not_started()
        rows = await asyncio.to_thread(tokenizer.encode, texts)
        ids, mask = pad(rows, tokenizer.padding, contract.tokens)
        request = kserve.tokens_request(self.model, contract, ids, mask)
        vectors = await self._infer(contract, request, len(texts), bulk, texts, mask)
        count(sum(map(len, rows)))
        return vectors

    async def _infer(
        self,
        contract: ModelContract,
        request: Any,
        rows: int,
        bulk: bool,
        texts: Sequence[str],
        mask: Any = None,
    ) -> Vectors:
        kserve.mark(request, contract, next(self._ids), bulk=bulk)
        started = time.perf_counter()
        try:
            reply = await self._call("ModelInfer", request, texts)
        except EmbedError as error:
            log.debug("request %s of %d rows to %s failed: %s", request.id, rows, self.model, error.reason)
            raise
        log.debug("request %s of %d rows to %s: %.1f ms", request.id, rows, self.model, _ms(started))
        normalize = self._options.normalize
        if normalize is None:
            normalize = contract.pooling != "none"
        width = self._dimension or contract.dimension
        return kserve.read_vectors(reply, contract, rows, width, mask=mask, normalize=normalize)

    # -- what the model is ------------------------------------------------------------------------------------------

    async def _canary(self, contract: ModelContract) -> Vectors:
        if contract.input("content") != contract.inputs[0] and not self._files_only:
            try:
                return await self._texts(contract, [CANARY], False)
            except (TextRefused, ModelFailed):
                if contract.inputs[0].role != "text" or self._dimension is not None:
                    raise
                with contextlib.suppress(EmbedError):  # an image model whose input has a name that says nothing
                    vectors = await self._files(contract, [CANARY_FILE], False)
                    self._files_only = True
                    return vectors
                raise
        return await self._files(contract, [CANARY_FILE], False)

    async def _look_again(self, contract: ModelContract, error: EmbedError) -> None:
        """Find out whether a failure is the texts' fault, by starting over.

        Raises:
            ModelMisconfigured: the model refuses the short text too.
            ModelUnavailable: the model fails on it too, or was replaced meanwhile, or is gone.
        """
        try:
            await self.start()
        except (TextRefused, RequestTooLarge) as refusal:
            raise ModelMisconfigured(
                f"Model {self.model} refuses every input, a short word too: {refusal}", reason="bad_contract"
            ) from error
        except ModelFailed as failure:
            raise ModelUnavailable(
                f"Model {self.model} fails on every input, a short word too: {failure}", reason="model_broken"
            ) from error
        if self._contract != contract and isinstance(error, TextRefused):
            raise ModelUnavailable(
                f"Model {self.model} was replaced by one that is asked otherwise.", reason="model_replaced"
            ) from error

    async def _read_contract(self) -> ModelContract:
        metadata = await self._call("ModelMetadata", service_pb2.ModelMetadataRequest(name=self.model))
        try:
            config = (await self._call("ModelConfig", service_pb2.ModelConfigRequest(name=self.model))).config
        except ModelMisconfigured as error:
            if error.reason != "unimplemented":  # an extension of Triton that other servers lack
                raise
            config = None
        return read_contract(metadata, config, pooling=self._options.pooling, output=self._options.output)

    async def _load_tokenizer(self, contract: ModelContract) -> ModelTokenizer | None:
        if contract.inputs[0].role != "ids":
            return None
        path = self._options.tokenizer
        if path is None:
            raise ModelMisconfigured(
                f"Model {self.model} wants token ids: set WALVEC_TOKENIZER to the model's tokenizer.json.",
                reason="tokenizer",
            )
        if self._tokenizer is not None and (contract.tokens is None or self._tokenizer.max_tokens <= contract.tokens):
            return self._tokenizer
        return await asyncio.to_thread(_load, path, self._options.max_tokens, contract.tokens)

    # -- one call ---------------------------------------------------------------------------------------------------

    def _connect(self, address: Address) -> Transport:
        if address.is_http:
            return HttpTransport(address, self._access)
        return GrpcTransport(address, self._access)

    async def _call(self, method: str, request: Any, texts: Sequence[str] = ()) -> Any:
        """Call the servers in turn until one answers or the deadline passes.

        Raises:
            EmbedError: what the first server said that another could not mend, or else what the last one said.
        """
        members = self._members
        if members is None:
            raise self._not_started()
        deadline = time.monotonic() + self._timeout_s
        last: EmbedError = self._not_started()
        for member in members.in_turn():
            try:
                return await member.call(method, request, deadline)
            except CallFailed as error:
                if self._members is not members:
                    raise ModelUnavailable("The connection to Triton was closed.", reason="closed") from None
                last = await self._explain(error, member, texts)
            except asyncio.CancelledError:
                # Closing a channel cancels its calls; only a cancellation of the caller may look like one.
                task = asyncio.current_task()
                if self._members is members or (task is not None and task.cancelling()):
                    raise
                raise ModelUnavailable("The connection to Triton was closed.", reason="closed") from None
            if not isinstance(last, ModelUnavailable) or time.monotonic() >= deadline:
                break
        raise last

    async def _explain(self, error: CallFailed, member: Member, texts: Sequence[str]) -> EmbedError:
        address, details = member.address, error.details
        known = translate(
            error.code,
            details,
            url=address.url,
            model=self.model,
            proven=member.proven,
            texts=texts,
            secrets=list(self._access.headers.values()),
            retry_after_s=error.retry_after_s,
        )
        hung_up = known.reason in ("unavailable", "not_http", "not_grpc") and "refused" not in details
        if hung_up and not member.proven and not address.tls and await member.speaks_tls():
            secure = address.url.replace("://", "s://", 1)
            return ModelMisconfigured(
                f"Triton at {address.url} speaks TLS on that port: use {secure} instead.", reason="tls"
            )
        if hung_up and not member.proven and address.tls and await member.wants_certificate(self._access):
            return translate(error.code, "certificate_required", url=address.url, model=self.model)
        return known

    def _not_started(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"The triton runtime for model {self.model} is not started: call start() first.", reason="not_started"
        )


def _load(path: Path, max_tokens: int | None, fixed: int | None) -> ModelTokenizer:
    """Load a tokenizer that cuts where the settings say, else where its file does, but never past a fixed length."""
    tokenizer = ModelTokenizer.load(path, max_tokens)
    if fixed is not None and tokenizer.max_tokens > fixed:
        tokenizer = ModelTokenizer.load(path, fixed)
    return tokenizer


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
