"""The Triton servers of one URL list: a gRPC channel each, taken in turn, with the ailing ones left out for a while.

gRPC would balance over a list by itself, but only over numeric addresses and under one TLS name, and it keeps a
half-open connection for a quarter of an hour. Here a server that let a deadline pass gets a new connection and must
answer a knock of two seconds before it is trusted with a request again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inference.errors import ModelMisconfigured

DEFAULT_PORT = 8001
KNOCK_S = 2.0
REST_S = 1.0
"""How long a server that failed is passed over while another one is well."""

# A list of options replaces all of gRPC's and tritonclient's defaults, so what is wanted of them is repeated here.
CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own backoff reaches two minutes: a server that is back would wait for its first request that long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Without this a new channel would be given the old channel's half-open connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # No keepalive: Triton counts pings more frequent than every five minutes as abuse. Every call has a deadline.
]


@dataclass(frozen=True, slots=True)
class Address:
    """One server. ``host`` may be a name with several addresses; all of them are used."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """Return the address as the user writes it."""
        return f"{'grpcs' if self.tls else 'grpc'}://{self._netloc}"

    @property
    def target(self) -> str:
        """Return the address as gRPC writes it (grpc ``doc/naming.md``)."""
        return f"dns:///{self._netloc}"

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_urls(urls: Sequence[str]) -> list[Address]:
    """Read ``grpc://host:port`` and ``grpcs://host:port``, each string one URL or a comma-separated list.

    Raises:
        ModelMisconfigured: a URL that is none of these, or none at all.
    """
    parts = [part.strip() for url in urls for part in url.split(",") if part.strip()]
    if not parts:
        raise ModelMisconfigured(
            "The triton runtime has no server: set WALVEC_TRITON_URL=grpc://host:8001.", reason="bad_url"
        )
    return [_parse_url(part) for part in parts]


def _parse_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _bad_url("an entry of WALVEC_TRITON_URL is not a URL") from None
    if parts.scheme in ("http", "https"):
        secure = "s" if parts.scheme == "https" else ""
        raise _bad_url(
            f"walvec speaks gRPC with Triton, not {parts.scheme}, in this version: "
            f"give grpc{secure}://{host}:{DEFAULT_PORT} (Triton's gRPC port) in WALVEC_TRITON_URL"
        )
    if parts.scheme not in ("grpc", "grpcs") or not host:
        raise _bad_url("an entry of WALVEC_TRITON_URL is not of the form grpc://host:port or grpcs://host:port")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise _bad_url(f"the Triton URL for {host} may hold a host and a port and nothing else")
    return Address(host, port or DEFAULT_PORT, parts.scheme == "grpcs")


def _bad_url(what: str) -> ModelMisconfigured:
    return ModelMisconfigured(f"{what[0].upper()}{what[1:]}.", reason="bad_url")


class _Connection:
    """A channel and the calls on it; a retired one closes when its last call ends."""

    def __init__(self, address: Address) -> None:
        if address.tls:
            credentials = grpc.ssl_channel_credentials()
            self.channel = grpc.aio.secure_channel(address.target, credentials, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(address.target, options=CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.calls = 0
        self.retired = False


class Member:
    """One server: its channel, and whether it can be trusted with a request."""

    def __init__(self, address: Address) -> None:
        """Open a channel (which connects on first use). Needs a running event loop."""
        self.address = address
        self.proven = False
        self.resting_until = 0.0
        self._silent = False
        self._knocking = asyncio.Lock()
        self._connection = _Connection(address)

    async def call(self, method: str, request: Any, deadline: float) -> Any:
        """Call a method of ``GRPCInferenceService``.

        Args:
            method: name of the method, such as ``ModelInfer``.
            request: its message.
            deadline: on the clock of :func:`time.monotonic`.

        Raises:
            grpc.aio.AioRpcError: as the server or gRPC has it.
        """
        try:
            if self._silent:
                await self._knock(deadline)
            reply = await self._send(method, request, deadline - time.monotonic())
        except grpc.aio.AioRpcError as error:
            self.resting_until = time.monotonic() + REST_S
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._silent = True
            raise
        self.proven = True
        self.resting_until = 0.0
        return reply

    async def _knock(self, deadline: float) -> None:
        """Ask a server that fell silent for a sign of life, on a new connection; one caller asks for all."""
        async with self._knocking:
            if not self._silent:
                return
            await self._renew()
            timeout_s = min(KNOCK_S, deadline - time.monotonic())
            try:
                await self._send("ServerLive", service_pb2.ServerLiveRequest(), timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            self._silent = False  # an error, too, is a sign of life

    async def _send(self, method: str, request: Any, timeout_s: float) -> Any:
        connection = self._connection
        connection.calls += 1
        try:
            return await getattr(connection.stub, method)(request, timeout=max(0.001, timeout_s))
        finally:
            connection.calls -= 1
            if connection.retired and connection.calls == 0:
                await connection.channel.close()

    async def _renew(self) -> None:
        old, self._connection = self._connection, _Connection(self.address)
        old.retired = True
        if old.calls == 0:
            await old.channel.close()

    async def speaks_tls(self) -> bool:
        """Return whether a TLS handshake with the server succeeds, its certificate unchecked."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        try:
            async with asyncio.timeout(KNOCK_S):
                _, writer = await asyncio.open_connection(self.address.host, self.address.port, ssl=context)
        except OSError:  # TimeoutError and SSLError are among them
            return False
        writer.close()
        return True

    async def close(self) -> None:
        """Close the channel; calls in flight on it fail."""
        self._connection.retired = True
        await self._connection.channel.close()


class Members:
    """The servers in turn."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        """Open a channel to each."""
        self.members = [Member(address) for address in addresses]
        self._turn = 0

    def in_turn(self) -> Iterator[Member]:
        """Give each server once, beginning one further than the last time, those that lately failed last."""
        now = time.monotonic()
        start, self._turn = self._turn, (self._turn + 1) % len(self.members)
        ring = self.members[start:] + self.members[:start]
        yield from sorted(ring, key=lambda member: member.resting_until > now)

    async def close(self) -> None:
        """Close every channel."""
        for member in self.members:
            await member.close()
