"""Runtime ``triton``: a model on one or more Triton servers, or on any server of the KServe v2 gRPC protocol.

What to send is read from the model's metadata, and one short text is embedded before any row is, which proves the
whole way and shows the dimension. Requests take the servers in turn; an outage of one is another one's work. Every
call has a deadline. A refusal (INVALID_ARGUMENT) is blamed on a text only after that short text has passed again: a
model replaced by one that refuses everything must not cost the rows.

The generated protocol classes of ``tritonclient`` are used as they are: its client object on top of them halves the
rows per second of large requests and turns status codes into strings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from inference import kserve
from inference.embedder import Limits, Vectors
from inference.errors import EmbedError, ModelMisconfigured, ModelUnavailable, RequestTooLarge, TextRefused
from inference.kserve import ModelContract
from inference.members import Member, Members, parse_urls
from inference.triton_errors import translate

CANARY = "walvec"
"""The text that shows whether the model works at all."""

REQUEST_TOKENS = 16_384
MAX_TOKENS = 512
"""Where most encoder models cut a text; Triton does not say. Only the estimate of a batch's cost rests on it."""
CONCURRENCY = 4
MOST_BYTES = 64 << 20
"""Texts of one message. Protocol buffers end at 2 GiB, and a server holds a message several times."""


class TritonEmbedder:
    """A text-to-vector model on Triton."""

    runtime = "triton"

    def __init__(self, model: str, urls: Sequence[str], *, request_timeout_s: float = 30.0) -> None:
        """Name model and servers; nothing is reached yet.

        Args:
            model: its name on the server.
            urls: ``grpc://host:port`` or ``grpcs://host:port``; a string may be a comma-separated list.
            request_timeout_s: deadline of one request, in seconds, connecting included.

        Raises:
            ModelMisconfigured: a URL is not one of these, or the timeout is not positive.
        """
        if not request_timeout_s > 0:
            raise ModelMisconfigured("WALVEC_REQUEST_TIMEOUT_S must be more than 0.", reason="bad_timeout")
        self.model = model
        self._addresses = parse_urls(urls)
        self._timeout_s = request_timeout_s
        self._members: Members | None = None
        self._contract: ModelContract | None = None
        self._dimension: int | None = None

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
        return Limits(self._contract.max_rows, REQUEST_TOKENS, MAX_TOKENS, CONCURRENCY)

    async def start(self) -> None:
        """Reach a server, read what the model wants and gives, and embed one short text.

        May be called again after it failed, and again later: it then looks anew.

        Raises:
            ModelUnavailable: no server, or none that has the model now.
            ModelMisconfigured: wrong port or credentials, or a model that is not text to vector.
            EmbedError: the model failed on the short text.
        """
        if self._members is None:
            self._members = Members(self._addresses)
        contract = await self._read_contract()
        vectors = await self._infer(contract, kserve.encode_texts([CANARY]), ())
        self._contract, self._dimension = contract, vectors.shape[1]

    async def embed(self, texts: Sequence[str], *, query: bool = False, bulk: bool = False) -> Vectors:
        """Return one vector per text, shape ``(texts, dimension)``, as the model gives them.

        The model is not told whether a text is a ``query``.

        Raises:
            RequestTooLarge: more rows than :attr:`limits` has, or than the server takes.
            TextRefused: the model takes a short text but not one of these.
            EmbedError: another of its kinds.
        """
        contract = self._contract
        if contract is None or self._dimension is None:
            raise self._not_started()
        if not texts:
            return np.empty((0, self._dimension), np.float32)
        if len(texts) > contract.max_rows:
            raise RequestTooLarge(
                f"Model {self.model} takes {contract.max_rows} texts at once, not {len(texts)}.", reason="too_many_rows"
            )
        try:
            parts = [
                await self._infer(contract, portion, texts)
                for portion in kserve.portions(kserve.encode_texts(texts), MOST_BYTES)
            ]
        except (TextRefused, RequestTooLarge) as error:
            await self._look_again(contract, error)
            raise
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def close(self) -> None:
        """Close the connections; requests in flight fail as unavailable."""
        members, self._members = self._members, None
        if members is not None:
            await members.close()

    async def _look_again(self, contract: ModelContract, error: EmbedError) -> None:
        """Find out whether a refusal is the texts' fault, by starting over.

        Raises:
            ModelMisconfigured: the model refuses the short text too.
            ModelUnavailable: the model was replaced meanwhile; or it is gone.
        """
        try:
            await self.start()
        except (TextRefused, RequestTooLarge) as refusal:
            raise ModelMisconfigured(
                f"Model {self.model} refuses every input, a short word too: {refusal}", reason="bad_contract"
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
        return kserve.read_contract(metadata, config)

    async def _infer(self, contract: ModelContract, encoded: Sequence[bytes], texts: Sequence[str]) -> Vectors:
        request = kserve.infer_request(self.model, contract, encoded)
        reply = await self._call("ModelInfer", request, texts)
        return kserve.read_vectors(reply, contract, len(encoded), self._dimension or contract.dimension)

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
            except grpc.aio.AioRpcError as error:
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

    async def _explain(self, error: Any, member: Member, texts: Sequence[str]) -> EmbedError:
        address, details = member.address, error.details() or ""
        known = translate(error.code(), details, url=address.url, model=self.model, proven=member.proven, texts=texts)
        hung_up = known.reason == "unavailable" and ("Socket closed" in details or "reset by peer" in details)
        if hung_up and not member.proven and not address.tls and await member.speaks_tls():
            return ModelMisconfigured(
                f"Triton at {address.url} speaks TLS on that port: use grpcs:// instead of grpc://.", reason="tls"
            )
        return known

    def _not_started(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"The triton runtime for model {self.model} is not started: call start() first.", reason="not_started"
        )
