"""The Triton servers of one URL list, taken in turn, with the ailing ones left out for a while.

gRPC would balance over a list by itself, but only over numeric addresses and under one TLS name, and it keeps a
half-open connection for a quarter of an hour. Here a server that let a deadline pass gets a new connection and must
answer a knock of two seconds before it is trusted with a request again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2

from inference.address import Access, Address

KNOCK_S = 2.0
REST_S = 1.0
"""How long a server that failed is passed over while another one is well."""


class CallFailed(Exception):
    """A call without a reply: the status, in gRPC's terms over HTTP too, and what the server or the transport says."""

    def __init__(self, code: grpc.StatusCode, details: str, retry_after_s: float | None = None) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.retry_after_s = retry_after_s


class Transport(Protocol):
    """One server's methods, over whichever wire."""

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Call a method of ``GRPCInferenceService`` with its message and return its reply's.

        Raises:
            CallFailed: there is none.
        """
        ...

    async def renew(self) -> None:
        """Use new connections from now on; calls under way end on the old ones."""
        ...

    async def close(self) -> None:
        """Close the connections; calls in flight on them fail."""
        ...


class Member:
    """One server: its transport, and whether it can be trusted with a request."""

    def __init__(self, address: Address, transport: Transport) -> None:
        self.address = address
        self.proven = False
        self.resting_until = 0.0
        self._silent = False
        self._knocking = asyncio.Lock()
        self._transport = transport

    async def call(self, method: str, request: Any, deadline: float) -> Any:
        """Call a method of ``GRPCInferenceService``.

        Args:
            method: name of the method, such as ``ModelInfer``.
            request: its message.
            deadline: on the clock of :func:`time.monotonic`.

        Raises:
            CallFailed: as the server or the transport has it.
        """
        try:
            if self._silent:
                await self._knock(deadline)
            reply = await self._transport.call(method, request, max(0.001, deadline - time.monotonic()))
        except CallFailed as error:
            self.resting_until = time.monotonic() + REST_S
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
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
            await self._transport.renew()
            timeout_s = min(KNOCK_S, deadline - time.monotonic())
            try:
                await self._transport.call("ServerLive", service_pb2.ServerLiveRequest(), max(0.001, timeout_s))
            except CallFailed as error:
                if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            self._silent = False  # an error, too, is a sign of life

    async def wants_certificate(self, access: Access) -> bool:
        """Return whether the server hangs up after a sound TLS handshake, before anything was said.

        That is how gRPC servers, in TLS 1.3, turn away a client without a certificate that they trust.
        """
        return await asyncio.to_thread(_wants_certificate, self.address, access.context())

    async def speaks_tls(self) -> bool:
        """Return whether a TLS handshake with the server succeeds, its certificate unchecked."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            async with asyncio.timeout(KNOCK_S):
                _, writer = await asyncio.open_connection(self.address.host, self.address.port, ssl=context)
        except OSError:  # TimeoutError and SSLError are among them
            return False
        writer.close()
        return True

    async def close(self) -> None:
        """Close the connections; calls in flight on them fail."""
        await self._transport.close()


def _wants_certificate(address: Address, context: ssl.SSLContext) -> bool:
    try:
        with (
            socket.create_connection((address.host, address.port), KNOCK_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as encrypted,
        ):
            return encrypted.recv(1) == b""
    except TimeoutError:
        return False  # it waits for a request, as it should
    except ConnectionResetError:
        return True
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in (error.reason or "")
    except OSError:
        return False


class Members:
    """The servers in turn."""

    def __init__(self, addresses: Sequence[Address], connect: Callable[[Address], Transport]) -> None:
        """Make a transport to each. Needs a running event loop."""
        self.members = [Member(address, connect(address)) for address in addresses]
        self._turn = 0

    def in_turn(self) -> Iterator[Member]:
        """Give each server once, beginning one further than the last time, those that lately failed last."""
        now = time.monotonic()
        start, self._turn = self._turn, (self._turn + 1) % len(self.members)
        ring = self.members[start:] + self.members[:start]
        yield from sorted(ring, key=lambda member: member.resting_until > now)

    async def close(self) -> None:
        """Close every connection."""
        for member in self.members:
            await member.close()
