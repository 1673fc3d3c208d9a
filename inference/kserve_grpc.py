"""KServe v2 over gRPC, on the generated protocol classes of ``tritonclient``.

Its client object on top of them is left out: that halves the rows per second of large requests, and turns status codes
into strings.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from inference.address import Access, Address
from inference.members import CallFailed

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


class _Connection:
    """A channel and the calls on it; a retired one closes when its last call ends."""

    def __init__(self, address: Address, access: Access) -> None:
        if address.tls:
            credentials = grpc.ssl_channel_credentials(*access.pem())
            self.channel = grpc.aio.secure_channel(address.target, credentials, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(address.target, options=CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.calls = 0
        self.retired = False


class GrpcTransport:
    """A channel to one server, which connects on first use."""

    def __init__(self, address: Address, access: Access) -> None:
        """Open the channel. Needs a running event loop.

        Raises:
            ModelMisconfigured: a certificate file has become unreadable.
        """
        self._address = address
        self._access = access
        self._metadata = [(name.lower(), value) for name, value in access.headers.items()]
        self._connection = _Connection(address, access)

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Call a method of ``GRPCInferenceService``.

        Raises:
            CallFailed: with the status as it came.
        """
        connection = self._connection
        connection.calls += 1
        try:
            return await getattr(connection.stub, method)(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code(), error.details() or "") from error
        finally:
            connection.calls -= 1
            if connection.retired and connection.calls == 0:
                await connection.channel.close()

    async def renew(self) -> None:
        """Open a new channel, with the certificate files as they are now."""
        old, self._connection = self._connection, _Connection(self._address, self._access)
        old.retired = True
        if old.calls == 0:
            await old.channel.close()

    async def close(self) -> None:
        """Close the channel; calls in flight on it fail."""
        self._connection.retired = True
        await self._connection.channel.close()
